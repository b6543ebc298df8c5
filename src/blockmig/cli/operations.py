"""What a command does, from its options to its outcome; the same under `blockmig` and `twistd`.

An operation is run once, may be stopped, and opens and closes what it needs. It ends with a
`Summary`, or with a `MigrationError` whose message is the one line for the user.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from typing import Any, Protocol

from twisted.logger import Logger

from ..client import Destination
from ..errors import (
    ExitStatus,
    GaveUp,
    LocalFailure,
    MigrationError,
    Refused,
    Summary,
)
from ..migration.destination.receiver import Receiver
from ..migration.in_use import refuse_in_use
from ..migration.policy import Overrides, Patience
from ..migration.records.files import Records
from ..migration.records.permitted import SourceFound, source_found
from ..migration.records.verdict import check_canonical
from ..migration.source.finisher import Finisher
from ..migration.source.record import SourceRecord
from ..migration.source.sender import Sender
from ..nbd import NBDURI
from ..runtime import Runtime
from ..server import Server
from ..storage import (
    BlockDisk,
    DiskRefused,
    FileDisk,
    device_in_memory,
    filesystem_of,
    image_format,
    is_in_memory,
    open_disk,
    record_path,
)
from ..syscalls import describe_error
from ..transport import client_endpoint, server_endpoint
from .listening import Listening, Offer
from .options import ReceiveOptions, SendOptions, ServeOptions
from .progress import Display
from .served_mirror import Mirrors

_log = Logger()

_HEAD = 4096
"""Bytes in which the marks of image formats are."""


class Operation(Protocol):
    """A command under way."""

    async def run(self) -> Summary | None:
        """Do it; None where nothing was migrated."""

    def stop(self, why: str) -> None:
        """End it early, if that is still possible."""


class _Listener:
    """What the operations that listen have in common.

    @param runtime: what the outside world is.
    @param make_endpoint: makes an endpoint to listen with, from the reactor and its description.
    """

    def __init__(
        self,
        options: Any,
        runtime: Runtime,
        make_endpoint: Callable[[Any, str], Any] = server_endpoint,
    ) -> None:
        self._options = options
        self._runtime = runtime
        self._make_endpoint = make_endpoint
        self._listening: Listening | None = None
        self._stopped = ""

    def _check_stopped(self) -> None:
        """After something that takes time: whether somebody has lost patience.

        @raise GaveUp: somebody has.
        """
        if self._stopped:
            raise GaveUp(f"{self._stopped}; nothing was touched")


class Receive(_Listener):
    """`receive`: one migration into a disk."""

    _options: ReceiveOptions
    _receiver: Receiver | None = None

    async def run(self) -> Summary:
        """Listen, receive, close."""
        options = self._options
        wanted = [options["listen"]] if options["listen"] is not None else []
        self._listening = listening = Listening(
            self._runtime.reactor, wanted, options["control"], self._make_endpoint
        )
        try:
            disk = open_disk(
                options["file"],
                size=options["size"],
                state_directory=options["state-dir"],
                system=self._runtime.system,
            )
        except DiskRefused as error:
            if options["size"] is None and not os.path.lexists(options["file"]):
                raise Refused(f"{error} (--size creates it)") from None
            raise Refused(str(error)) from None
        try:
            self._receiver = receiver = Receiver(
                disk,
                export=options["export"],
                oldstyle=bool(options["oldstyle"]),
                handshake_timeout=options["handshake-timeout"],
                idle_timeout=options["idle-timeout"],
                give_up_after=options["give-up-after"] or None,
                overrides=Overrides(bool(options["again"]), bool(options["overwrite"])),
                runtime=self._runtime,
            )
            try:
                await self._check(disk, receiver)
                await self._listen(listening, receiver)
                self._warn_of_memory(disk)
                return await receiver.complete()
            finally:
                await listening.close()
        finally:
            # A file that we made, and nobody began to fill, is no copy of anything.
            touched = self._receiver is not None and self._receiver.touched
            disk.close() if touched else disk.discard()

    async def _check(self, disk: FileDisk | BlockDisk, receiver: Receiver) -> None:
        """Whether the disk is one to receive into, before anybody can reach it."""
        path = self._options["file"]
        try:
            if not self._options["in-use-anyway"]:
                await refuse_in_use(disk, path, readers=True, runtime=self._runtime)
            self._check_stopped()
            await receiver.check()
            self._check_stopped()
        except (MigrationError, OSError) as error:
            self._check_stopped()
            receiver.stop(str(error))
            if isinstance(error, MigrationError):
                raise
            raise LocalFailure(f"{path}: {describe_error(error)}") from None

    def _warn_of_memory(self, disk: FileDisk | BlockDisk) -> None:
        """Once it listens: then it is not refused any more."""
        path = self._options["file"]
        # That of a device's node is in memory always.
        kind = filesystem_of(path) if isinstance(disk, FileDisk) else "a device in memory"
        if is_in_memory(kind) or device_in_memory(path):
            _log.warn(
                "{disk}: is in memory ({kind}): what is received there is gone with the next "
                "restart of this machine",
                event="in-memory",
                disk=path,
                kind=kind,
            )

    async def _listen(self, listening: Listening, receiver: Receiver) -> None:
        options = self._options
        try:
            offer = Offer(
                receiver.factory(),
                options["file"],
                options["export"],
                "write this disk",
                receiver.status,
            )
            await listening.open(offer, options["give-up-after"] or None)
        except MigrationError as error:
            receiver.stop(str(error))
            raise

    def stop(self, why: str) -> None:
        """End the migration as it stands."""
        self._stopped = why
        if self._listening is not None:
            self._listening.cancel()
        if self._receiver is not None:
            self._receiver.stop(why)


class Serve(_Listener):
    """`serve`: a disk to clients, until it is stopped."""

    _options: ServeOptions
    _server: Server | None = None
    _mirrors: Mirrors | None = None

    async def run(self) -> None:
        """Listen, serve, close."""
        options = self._options
        self._listening = listening = Listening(
            self._runtime.reactor, options["listen"], options["control"], self._make_endpoint
        )
        read_only, state_directory = bool(options["read-only"]), options["state-dir"]
        try:
            with open_disk(
                options["file"],
                writable=not read_only,
                state_directory=state_directory,
                system=self._runtime.system,
            ) as disk:
                # Only now that nobody else can begin to migrate it.
                check_canonical(options["file"], state_directory, self._runtime.system)
                if not options["in-use-anyway"]:
                    await refuse_in_use(
                        disk,
                        options["file"],
                        readers=False,
                        runtime=self._runtime,
                    )
                    self._check_stopped()
                if image := self._format_of(disk):
                    _log.warn(
                        "{disk}: begins as a {image} image; its bytes are served as they are",
                        event="not-raw",
                        disk=options["file"],
                        image=image,
                    )
                if isinstance(disk, FileDisk) and (links := disk.links()) > 1:
                    _log.warn(
                        "{disk}: has {links} names (hard links); the records that may stand beside "
                        "the others are not looked at",
                        event="hard-links",
                        disk=options["file"],
                        links=links,
                    )
                await self._serve(disk, listening, read_only)
        except DiskRefused as error:
            raise Refused(str(error)) from None

    @staticmethod
    def _format_of(disk: FileDisk | BlockDisk) -> str:
        try:
            return image_format(disk.read(0, min(disk.size, _HEAD)))
        except OSError:
            return ""  # clients will hear of it, if they read there

    async def _serve(
        self, disk: FileDisk | BlockDisk, listening: Listening, read_only: bool
    ) -> None:
        options = self._options
        server = Server(
            disk,
            options["export"],
            read_only=read_only,
            oldstyle=bool(options["oldstyle"]),
            max_connections=options["max-connections"],
            handshake_timeout=options["handshake-timeout"],
            request_timeout=options["request-timeout"],
            runtime=self._runtime,
        )
        mirrors = Mirrors(
            server,
            self._runtime,
            client_endpoint,
            in_use_anyway=bool(options["in-use-anyway"]),
        )
        try:
            try:
                danger = "read this disk" if read_only else "read and write this disk"
                await listening.open(
                    Offer(
                        server.factory(),
                        options["file"],
                        options["export"],
                        danger,
                        mirrors.status,
                        mirrors.routes,
                    )
                )
            except MigrationError:
                server.stop()
                await server.complete()
                raise
            self._server, self._mirrors = server, mirrors
            await server.complete()
            if mirrors.current is not None:
                try:
                    await mirrors.current.handed_over()
                finally:
                    await mirrors.told()
        except OSError as error:
            raise LocalFailure(f"{disk.name}: {describe_error(error)}") from None
        finally:
            await listening.close()
        totals = server.status()["totals"]
        _log.info(
            "stopped: {connections} connection(s), {requests} request(s), {bytes_read} bytes read "
            "and {bytes_written} written; the disk is {what}",
            event="stopped",
            what="handed over" if mirrors.handed_over else "flushed",
            **totals,
        )

    def stop(self, why: str) -> None:
        """Stop accepting, and let the server come to its end."""
        self._stopped = why
        if self._listening is not None:
            self._listening.cancel()
        if self._server is None or self._listening is None or self._mirrors is None:
            return
        self._listening.stop()
        mirror, server = self._mirrors.current, self._server
        if mirror is None or mirror.over:
            server.stop(why)
        else:
            # A disk that is being retired is not served any more, whatever comes of it.
            mirror.complete().addBoth(lambda _: server.stop(why))
            mirror.stop(why)


class Send:
    """`send`: a disk to an NBD server.

    @param runtime: what the outside world is.
    @param make_endpoint: makes the endpoint to connect to, from the reactor and its URI.
    """

    def __init__(
        self,
        options: SendOptions,
        runtime: Runtime,
        display: Display,
        make_endpoint: Callable[[Any, NBDURI], Any] = client_endpoint,
    ) -> None:
        self._options = options
        self._runtime = runtime
        self._display = display
        self._make_endpoint = make_endpoint
        self._running: Sender | Finisher | None = None
        self._stopped = ""

    async def run(self) -> Summary:
        """Open, send, close; or finish what was begun before."""
        try:
            disk, records = self._open()
        except DiskRefused as error:
            raise Refused(str(error)) from None
        try:
            found = self._found(disk, records)
            if disk is None or found.retired:
                return await self._finish(records, found)
            await self._check(disk)
            return await self._send(disk)
        finally:
            if disk is not None:
                disk.close()

    def _found(self, disk: FileDisk | BlockDisk | None, records: Records) -> SourceFound:
        """What the records let us do."""
        unlink = bool(self._options["unlink"])
        try:
            return source_found(
                records,
                disk.identity() if disk is not None else None,
                str(self._options.uri),
                unlink=unlink,
                again=bool(self._options["again"]),
            )
        except Refused:
            if unlink and isinstance(disk, FileDisk):
                # What keeps the disk from being deleted may keep records from being written.
                try:
                    disk.check_unlink()
                except DiskRefused as error:
                    raise Refused(str(error)) from None
            raise

    def _open(self) -> tuple[FileDisk | BlockDisk | None, Records]:
        """The disk, if it is still there, and its records."""
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
        """Whether the disk is one to be sent."""
        options, path = self._options, self._options["file"]
        if not options["in-use-anyway"]:
            await refuse_in_use(disk, path, readers=False, runtime=self._runtime)
            if self._stopped:
                raise GaveUp(f"{self._stopped}; {path} is untouched and canonical")
        if options["raw-anyway"]:
            return
        try:
            image = image_format(disk.read(0, min(disk.size, _HEAD)))
        except OSError as error:
            raise LocalFailure(f"{path}: {describe_error(error)}") from None
        if image:
            raise Refused(
                f"{path}: begins as a {image} image, and only raw disks are sent: convert it "
                f"(qemu-img convert -O raw {shlex.quote(path)} NEW), or say --raw-anyway to send "
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

    async def _finish(self, records: Records, found: SourceFound) -> Summary:
        options, record = self._options, found.record
        assert record is not None
        _log.info(
            "{disk} was retired on an earlier run; its migration to {destination} is only to be "
            "finished",
            event="finishing",
            disk=options["file"],
            destination=str(record.destination),
        )
        self._running = finisher = Finisher(
            SourceRecord.finishing(records, found),
            self._destination(),
            give_up_after=options["give-up-after"] or None,
            runtime=self._runtime,
        )
        return await finisher.run()

    def _destination(self) -> Destination:
        uri = self._options.uri
        return Destination(self._make_endpoint(self._runtime.reactor, uri), uri.export, str(uri))

    def stop(self, why: str) -> None:
        """End the migration as it stands."""
        self._stopped = why
        if self._running is not None:
            self._running.stop(why)


async def report(operation: Operation) -> ExitStatus:
    """Run C{operation}, log one line of how it ended, and give its exit status."""
    try:
        summary = await operation.run()
    except MigrationError as error:
        _log.error("{why}", event="error", why=str(error), status=int(error.status))
        return error.status
    except Exception:
        _log.failure("this is a bug of blockmig", event="bug", status=int(ExitStatus.FAILED))
        return ExitStatus.FAILED
    if summary is None:
        return ExitStatus.DONE
    _log.info(
        "complete: {bytes} bytes ({data} of data, {zeroes} of zeroes) in {seconds:.2f} s, "
        "{megabytes:.1f} MB/s of data, {attempts} attempt(s)",
        event="complete",
        bytes=summary.bytes,
        data=summary.data,
        zeroes=summary.zeroes,
        seconds=round(summary.seconds, 3),
        rate=round(summary.rate),
        megabytes=summary.rate / 1e6,
        attempts=summary.attempts,
    )
    return ExitStatus.DONE
