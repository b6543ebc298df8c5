"""The disk that the caller of a migration has given."""

from __future__ import annotations

from ..errors import Refused
from ..interfaces import IDisk
from ..storage import DiskRefused, guard


def guarded(disk: IDisk) -> IDisk:
    """The disk, guarded if it is not one of ours (L{guard}).

    @raise Refused: it cannot be a disk.
    """
    try:
        return guard(disk)
    except DiskRefused as error:
        raise Refused(str(error)) from error.__cause__
