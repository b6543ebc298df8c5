"""Whether somebody else has a disk's file open, which is then no disk to migrate.

Owns the refusal; how it is found out is the affair of `storage.users`. Rules:

* programs that only look (an indexer, a backup) come and go: they are given two seconds;
* on a network file system it cannot be told who has a file open elsewhere: that is said, and the
  command goes on. So it does, without a word, where a lease may not be asked for;
* whoever serves a disk, or sends it, minds only those who write to it; a destination must be
  nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..errors import Refused
from ..interfaces import IDisk
from ..runtime import Runtime
from ..storage import User, filesystem_of, is_open_elsewhere, is_remote, users_of

_log = Logger()

_READER_GRACE: Final = 2.0
_INTERVAL: Final = 0.1


def describe_users(users: Sequence[User]) -> str:
    """Who has a file open, for a message."""
    return ", ".join(map(str, users)) or "another program"


async def refuse_in_use(
    disk: IDisk,
    path: str,
    *,
    readers: bool,
    runtime: Runtime,
) -> None:
    """See whether anybody else has the disk open.

    @param path: where it is.
    @param readers: whether those matter who only read.
    @param runtime: what the outside world is.
    @raise Refused: somebody has.
    """
    descriptor = disk.fileno()
    if descriptor is None:
        return  # it was only just made
    writable = bool(getattr(disk, "writable", False))
    reactor = runtime.reactor
    end = reactor.seconds() + _READER_GRACE
    while (in_use := is_open_elsewhere(descriptor, writable, runtime.system)) is True:
        if reactor.seconds() < end:
            await deferLater(reactor, _INTERVAL)
            continue
        users = await runtime.threads(users_of, descriptor)
        only_read = bool(users) and all(user.writes is False for user in users)
        if only_read and writable and not readers:
            return  # who reads is met too on a writable descriptor
        raise Refused(
            f"{path}: is open in {describe_users(users)}; end that first, or say --in-use-anyway"
        )
    if in_use is None and is_remote(kind := filesystem_of(path)):
        _log.warn(
            "{disk}: is on {kind}, where it cannot be told whether another program, here or on "
            "another host, has it open",
            event="perhaps-in-use",
            disk=path,
            kind=kind,
        )
