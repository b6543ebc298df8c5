"""The side export NAME.served, by which a server shows that its disk is in use.

Owns its content of 4096 bytes, the same for every reader: a JSON object, then zero bytes. Our
senders only look whether the name is listed, and then refuse this server as a destination (design,
R12); the content is for people. The export is read-only.
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
    """The part of L{blockmig.interfaces.IDisk} that is used of a read-only disk."""

    name = "the side export"
    size = _SIZE

    def __init__(self, text: bytes) -> None:
        self._text = text.ljust(_SIZE, b"\0")

    def fileno(self) -> None:
        """None: it is in memory."""

    def read(self, offset: int, length: int) -> bytes:
        return self._text[offset : offset + length]

    def extents(self, offset: int) -> Iterator[Extent]:
        yield Extent(offset, _SIZE - offset, hole=False)


@implementer(IExportHandler)
class ServedSideExport:
    """The handler of the side export.

    @param export: the name of the export that is served.
    @param size: bytes of its disk.
    @param runtime: reactor, threads and system calls.
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
        """Admit everything that a read-only export offers."""
        return Errno.OK

    def done(self, connection: Any, request: Request) -> None:
        """Nothing to do."""

    def failed(self, connection: Any, request: Request, error: BaseException | None) -> None:
        """Nothing to do: the disk is not involved."""

    def needs_flush(self, connection: Any) -> bool:
        """Never: the export offers no FLUSH."""
        return False

    def may_be_silent(self, connection: Any) -> bool:
        """Never: there is nothing to wait for."""
        return False

    def progress(self, connection: Any) -> None:
        """None is expected."""

    def disconnected(self, connection: Any) -> None:
        """Close the connection."""
        connection.close()

    def gone(self, connection: Any) -> None:
        """Nothing to do."""
