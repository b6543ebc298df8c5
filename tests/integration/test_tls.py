"""STARTTLS over real sockets: migrations, mirrors and relays, and who is not let in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from tests.support.disks import MIB, digest, random_image
from tests.support.embedding import receiving, sending
from tests.support.tls import world
from twisted.internet import reactor as installed
from twisted.internet.endpoints import clientFromString

from blockmig import Destination

reactor: Any = installed
SIZE = 6 * MIB + 5


def wait(working: Any, seconds: float = 60) -> Any:
    return working.addTimeout(seconds, reactor)


def destination(port: int | str, tls: Any) -> Destination:
    where = f"tcp:127.0.0.1:{port}" if isinstance(port, int) else port
    return Destination(clientFromString(reactor, where), tls=tls)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("unlink", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_disk_moves_over_TLS(tmp_path: Path, kind: str, unlink: bool) -> None:
    source = random_image(tmp_path / "source", SIZE)
    before = digest(source)
    copy = tmp_path / "copy"
    listen = "tcp:0:interface=127.0.0.1" if kind == "tcp" else f"unix:{tmp_path}/socket"
    async with receiving(copy, SIZE, tls=world().server, listen=listen) as (receiver, port):
        to = port.getHost().port if kind == "tcp" else listen
        there = destination(to, world().client)
        async with sending(source, there, unlink=unlink) as sender:
            assert (await wait(sender.run())).attempts == 1
        assert (await wait(receiver.complete())).bytes == SIZE
    assert digest(copy) == before
    assert source.exists() is not unlink
