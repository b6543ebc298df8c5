"""The disk that the caller of a migration has given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import LocalFailure, Refused
from ..interfaces import IDisk
from ..storage import DiskRefused, guard
from ..syscalls import describe_error


def guarded(disk: IDisk) -> IDisk:
    """The disk, guarded if it is not one of ours (L{guard}).

    @raise Refused: it cannot be a disk.
    """
    try:
        return guard(disk)
    except DiskRefused as error:
        raise Refused(str(error)) from error.__cause__


@contextmanager
def failing_locally(disk: IDisk) -> Iterator[None]:
    """What the disk raises meanwhile is a failure of the disk.

    @raise LocalFailure: it has raised something.
    """
    try:
        yield
    except OSError as error:
        raise LocalFailure(f"{disk.name}: {describe_error(error)}") from error
