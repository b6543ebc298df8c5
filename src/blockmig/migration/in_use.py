"""Refuses a disk whose file another program has open.

Owns the refusal; `storage.users` finds out who has it open. Rules:

* programs that only read for a moment (an indexer, a backup) come and go: they are given two
  seconds;
* on a network file system nobody can tell who has a file open on another host: that is logged, and
  the command goes on. Where a lease may not be taken it goes on without a word;
* for a disk that is served or sent only other writers matter; a destination must not be open
  anywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from twisted.internet.task import deferLater
from twisted.logger import Logger

from ..errors import Refused
from ..interfaces import IDisk
from ..runtime import Runtime
from ..storage import (
    User,
    filesystem_of,
    has_descriptor,
    held_descriptor,
    is_open_elsewhere,
    is_remote,
    users_of,
)

_log = Logger()

_READER_GRACE: Final = 2.0
_INTERVAL: Final = 0.1


def describe_users(users: Sequence[User]) -> str:
    return ", ".join(map(str, users)) or "another program"


async def refuse_in_use(
    disk: IDisk,
    path: str,
    *,
    readers: bool,
    runtime: Runtime,
) -> None:
    """Refuse the disk if another program has it open.

    @param path: where it is.
    @param readers: whether programs that only read it matter too.
    @param runtime: the reactor, threads and system calls to use.
    @raise Refused: another program has it open.
    @raise OSError: it was closed meanwhile.
    """
    if not has_descriptor(disk):
        return  # it was only just created
    writable = bool(getattr(disk, "writable", False))
    reactor = runtime.reactor
    end = reactor.seconds() + _READER_GRACE
    while (in_use := _is_open_elsewhere(disk, writable, runtime)) is True:
        if reactor.seconds() < end:
            await deferLater(reactor, _INTERVAL)
            continue
        users = await runtime.threads(_users_of, disk)
        only_read = bool(users) and all(user.writes is False for user in users)
        if only_read and writable and not readers:
            return  # a lease on a writable descriptor also conflicts with readers
        raise Refused(
            f"{path}: is open in {describe_users(users)}; close it first, or use in_use_anyway=True"
        )
    if in_use is None and is_remote(kind := filesystem_of(path)):
        _log.warn(
            "{disk}: is on {kind}, where it cannot be detected whether another program, here or on "
            "another host, has it open",
            event="perhaps-in-use",
            disk=path,
            kind=kind,
        )


# The disk may be closed at any time, and its number be another file's then.


def _is_open_elsewhere(disk: IDisk, readers: bool, runtime: Runtime) -> bool | None:
    with held_descriptor(disk) as descriptor:
        return is_open_elsewhere(descriptor, readers, runtime.system)


def _users_of(disk: IDisk) -> list[User]:
    """I{In a thread.}"""
    with held_descriptor(disk) as descriptor:
        return users_of(descriptor)
