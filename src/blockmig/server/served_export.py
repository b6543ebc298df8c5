"""The side export NAME.served: how a server says that its disk is in use, and no destination.

Owns one page of 4096 bytes, the same for every reader: a JSON object, then zero bytes. That the
name is listed says it all to a sender of ours, which then refuses to write here (design, R12); the
page is for people. Nothing can be written to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, cast

from zope.interface import implementer

from ..interfaces import Extent
from ..nbd import SERVED_EXPORT, Errno, Export, Request, TransmissionFlag
from ..runtime import Runtime
from .access import DiskAccess
from .handler import IExportHandler
from .latency import LatencyMonitor

_SIZE: Final = 4096


class _TextDisk:
    """Of L{blockmig.interfaces.IDisk} only what can come to be called of a read-only disk."""

    name = "the side export"
    size = _SIZE

    def __init__(self, text: bytes) -> None:
        self._text = text.ljust(_SIZE, b"\0")

    def fileno(self) -> None:
        """In memory."""

    def read(self, offset: int, length: int) -> bytes:
        """A part of the page."""
        return self._text[offset : offset + length]

    def extents(self, offset: int) -> Iterator[Extent]:
        """All data."""
        yield Extent(offset, _SIZE - offset, hole=False)


@implementer(IExportHandler)
class ServedSideExport:
    """What connections to the side export ask.

    @param export: the name of the export that is served.
    @param size: bytes of its disk.
    @param runtime: what the outside world is.
    """

    allows_fast_path = False
    held = False

    def __init__(self, export: str, size: int, runtime: Runtime) -> None:
        flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.READ_ONLY
        says = "a blockmig serve gives this disk to its clients: it is in use, and no destination"
        text = {"blockmig": 1, "export": "served", "size": size, "says": says}
        self.export = Export(export + SERVED_EXPORT, _SIZE, flags)
        self.disk: Any = _TextDisk(json.dumps(text).encode() + b"\n")
        self.access = DiskAccess(
            cast(Any, self.disk), runtime.threads, LatencyMonitor(), runtime.system
        )

    def admit(self, connection: Any, request: Request) -> Errno:
        """Whatever a read-only export offers."""
        return Errno.OK

    def done(self, connection: Any, request: Request) -> None:
        """Nothing depends on it."""

    def failed(self, connection: Any, request: Request, error: BaseException | None) -> None:
        """Nothing of the disk is concerned."""

    def needs_flush(self, connection: Any) -> bool:
        """It cannot be asked."""
        return False

    def may_be_silent(self, connection: Any) -> bool:
        """Whoever has read it may as well leave."""
        return False

    def disconnected(self, connection: Any) -> None:
        """The reader has what it wanted."""
        connection.close()

    def gone(self, connection: Any) -> None:
        """Nothing depends on it."""
