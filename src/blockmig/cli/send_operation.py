"""What `send` does: sends a disk to an NBD server, or finishes an earlier run."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any, Final

from twisted.logger import Logger

from ..client import Destination
from ..errors import GaveUp, LocalFailure, Refused, Summary
from ..migration.in_use import refuse_in_use
from ..migration.policy import Overrides, Patience
from ..migration.records.files import Records
from ..migration.records.permitted import SourceState, source_state
from ..migration.source.finisher import Finisher
from ..migration.source.record import SourceRecord
from ..migration.source.sender import Sender
from ..nbd import NBDURI
from ..runtime import Runtime
from ..storage import BlockDisk, DiskRefused, FileDisk, image_format, open_disk, record_path
from ..syscalls import describe_error
from ..transport import client_endpoint
from .progress import Display
from .send import Options

_log = Logger()

_FORMAT_PROBE: Final = 4096
"""Bytes at the start of a disk that tell the format of an image."""


class SendOperation:
    """Sends the disk, or finishes a migration whose source was retired in an earlier run.

    @param make_endpoint: makes the endpoint to connect to, from the reactor and its URI.
    """

    def __init__(
        self,
        options: Options,
        runtime: Runtime,
        display: Display,
        make_endpoint: Callable[[Any, NBDURI], Any] = client_endpoint,
    ) -> None:
        self._options = options
        self._runtime = runtime
        self._display = display
        self._make_endpoint = make_endpoint
        self._running: Sender | Finisher | None = None
        self._stop_reason = ""

    async def run(self) -> Summary:
        try:
            disk, records = self._open()
        except DiskRefused as error:
            raise Refused(str(error)) from None
        try:
            state = self._source_state(disk, records)
            if disk is None or state.retired:
                return await self._finish(records, state)
            await self._check(disk)
            return await self._send(disk)
        finally:
            if disk is not None:
                disk.close()

    def _source_state(self, disk: FileDisk | BlockDisk | None, records: Records) -> SourceState:
        """What the records say, and allow."""
        unlink = bool(self._options["unlink"])
        try:
            return source_state(
                records,
                disk.identity() if disk is not None else None,
                str(self._options.uri),
                unlink=unlink,
                again=bool(self._options["again"]),
            )
        except Refused:
            if unlink and isinstance(disk, FileDisk):
                # What prevents the deletion may have prevented the records: report the former.
                try:
                    disk.check_unlink()
                except DiskRefused as error:
                    raise Refused(str(error)) from None
            raise

    def _open(self) -> tuple[FileDisk | BlockDisk | None, Records]:
        """The disk, or None if it is gone, and its records."""
        path, directory = self._options["file"], self._options["state-dir"]
        if os.path.exists(path):
            disk = open_disk(
                path, writable=False, state_directory=directory, system=self._runtime.system
            )
            return disk, Records(disk.record_path, self._runtime.system)
        return None, Records(
            record_path(path, directory, self._runtime.system), self._runtime.system
        )

    async def _check(self, disk: FileDisk | BlockDisk) -> None:
        """Check that the disk can be sent."""
        options, path = self._options, self._options["file"]
        if not options["in-use-anyway"]:
            await refuse_in_use(disk, path, readers=False, runtime=self._runtime)
            if self._stop_reason:
                raise GaveUp(f"{self._stop_reason}; {path} is untouched and canonical")
        if options["raw-anyway"]:
            return
        try:
            image = image_format(disk.read(0, min(disk.size, _FORMAT_PROBE)))
        except OSError as error:
            raise LocalFailure(f"{path}: {describe_error(error)}") from None
        if image:
            raise Refused(
                f"{path}: looks like a {image} image, and only raw disks are sent: convert it "
                f"(qemu-img convert -O raw {shlex.quote(path)} NEW), or give --raw-anyway to send "
                "its bytes as they are"
            )

    async def _send(self, disk: FileDisk | BlockDisk) -> Summary:
        options = self._options
        self._running = sender = Sender(
            disk,
            self._destination(),
            unlink=bool(options["unlink"]),
            overrides=Overrides(
                again=bool(options["again"]),
                overwrite=bool(options["overwrite"]),
                in_use_anyway=bool(options["in-use-anyway"]),
            ),
            patience=Patience(
                retry=bool(options["retry"]), give_up_after=options["give-up-after"] or None
            ),
            max_rate=options["max-rate"],
            runtime=self._runtime,
        )
        self._display.start(sender.progress, self._runtime.reactor)
        try:
            return await sender.run()
        finally:
            self._display.stop()

    async def _finish(self, records: Records, state: SourceState) -> Summary:
        options, record = self._options, state.record
        assert record is not None
        _log.info(
            "{disk} was retired in an earlier run: finishing its migration to {destination}, "
            "without copying again",
            event="finishing",
            disk=options["file"],
            destination=str(record.destination),
        )
        self._running = finisher = Finisher(
            SourceRecord.finishing(records, state),
            self._destination(),
            give_up_after=options["give-up-after"] or None,
            runtime=self._runtime,
        )
        return await finisher.run()

    def _destination(self) -> Destination:
        uri = self._options.uri
        return Destination(self._make_endpoint(self._runtime.reactor, uri), uri.export, str(uri))

    def stop(self, why: str) -> None:
        self._stop_reason = why
        if self._running is not None:
            self._running.stop(why)
