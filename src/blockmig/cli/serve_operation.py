"""What `serve` does: serves a disk to clients, until it is stopped or the disk has moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from ..errors import GaveUp, LocalFailure, MigrationError, Refused
from ..migration.in_use import refuse_in_use
from ..migration.records.files import Record, records_at
from ..migration.records.relayed import relayed_away
from ..migration.records.verdict import look_at
from ..nbd import NBDURI, BadURI, handoff_export_name, parse_uri
from ..runtime import Runtime
from ..server import Relay, Server
from ..storage import BlockDisk, DepartedDisk, DiskRefused, FileDisk, image_format, open_disk
from ..syscalls import describe_error
from ..transport import client_endpoint, server_endpoint
from .admittance import Admittance
from .listening import Listening, ListeningExport, import_control
from .mirror_manager import MirrorManager
from .serve import Options
from .standby import Standby
from .tls import ListenerTLS, destination_at, listener_tls, with_certificates

_log = Logger()

_BUSY: Final = 1.0
"""Seconds for which the receiver may still have the address, with C{--standby}."""

_FORMAT_PROBE: Final = 4096
"""Bytes at the start of a disk that tell the format of an image."""


class ServeOperation:
    """Serves the disk.

    @param make_endpoint: makes an endpoint to listen with, from the reactor and its description.
    @param make_client_endpoint: makes the endpoint of a mirror's destination, from the reactor and
        its URI.
    """

    def __init__(
        self,
        options: Options,
        runtime: Runtime,
        make_endpoint: Callable[[Any, str], Any] = server_endpoint,
        make_client_endpoint: Callable[[Any, NBDURI], Any] = client_endpoint,
    ) -> None:
        self._options = options
        self._runtime = runtime
        self._make_endpoint = make_endpoint
        self._make_client_endpoint = make_client_endpoint
        self._listening: Listening | None = None
        self._mirrors: MirrorManager | None = None
        self._opening: Deferred[FileDisk | BlockDisk] | None = None
        self._stop_reason = ""
        self._tls = ListenerTLS()

    async def run(self) -> None:
        options = self._options
        self._tls = listener_tls(options, for_each=False)
        self._listening = listening = Listening(
            self._runtime.reactor,
            options["listen"],
            options["control"],
            self._make_endpoint,
            admittance=Admittance.of(options),
        )
        path = options["file"]
        try:
            if (record := self._went_away()) is not None:
                await self._relay(record, listening)
                return
            with await self._open_disk(listening) as disk:
                # Looks at the records, now that the disk is locked: nobody can begin to migrate it.
                server = self._make_server(disk)
                if not options["in-use-anyway"]:
                    await refuse_in_use(disk, path, readers=False, runtime=self._runtime)
                    if self._stop_reason:
                        raise GaveUp(f"{self._stop_reason}; nothing was touched")
                image = await self._runtime.threads(_format_of, disk)
                if self._stop_reason:
                    raise GaveUp(f"{self._stop_reason}; nothing was touched")
                _warn_of(disk, path, image)
                await self._serve(server, listening)
        except DiskRefused as error:
            raise Refused(str(error)) from None

    def stop(self, why: str) -> None:
        """Stop accepting connections, and let the server finish."""
        self._stop_reason = why
        if self._opening is not None:
            self._opening.cancel()
        if self._listening is not None:
            self._listening.cancel()
            if self._mirrors is not None:
                self._listening.stop()
                self._mirrors.stop(why)

    def hung_up(self) -> None:
        """SIGHUP: read the certificates again; bad ones change nothing."""
        self._tls.read_again()

    async def _open_disk(self, listening: Listening) -> FileDisk | BlockDisk:
        """Open the disk; with C{--standby} once its receiver is done."""
        options = self._options

        def opener() -> FileDisk | BlockDisk:
            return open_disk(
                options["file"],
                writable=not options["read-only"],
                state_directory=options["state-dir"],
                system=self._runtime.system,
            )

        if not options["standby"]:
            return opener()
        standby = Standby(
            options["file"],
            self._runtime,
            state_directory=options["state-dir"],
            id=options["id"] or "",
            give_up_after=options["give-up-after"] or None,
        )
        listening.waiting(standby.what)
        if options["control"]:
            import_control()  # clients would wait for that too
        self._opening = Deferred.fromCoroutine(standby.open(opener))
        try:
            return await self._opening
        except CancelledError:
            raise GaveUp("stopped before it could listen") from None
        finally:
            self._opening = None

    def _went_away(self) -> Record | None:
        """The record of the disk that went away with its clients relayed, if it did.

        With C{--standby} it is to come home.
        """
        options, system = self._options, self._runtime.system
        if options["standby"]:
            return None
        try:
            records = records_at(options["file"], options["state-dir"], system)
            return relayed_away(records, look_at(options["file"], system))
        except DiskRefused:
            return None  # to open it is refused too, and says why

    async def _relay(self, record: Record, listening: Listening) -> None:
        """Relay clients again, as before a restart; the disk here is not opened."""
        options, path = self._options, self._options["file"]
        if options["read-only"]:
            raise Refused(
                f"{path}: has moved to {record.destination}, where clients are relayed to "
                f"{record.successor}; a relay cannot keep them from writing: leave out --read-only"
            )
        try:
            uri = parse_uri(record.successor)
        except BadURI as error:
            raise Refused(f"{path}: its record does not say where it is: {error}") from None
        server = self._make_server(DepartedDisk(path, record.size))
        relay = Relay(
            destination_at(
                with_certificates(uri, options["tls-certificates"]),
                self._make_client_endpoint,
                self._runtime.reactor,
                str(uri),
            ),
            receiver_export=handoff_export_name(uri.export),
            linger=options["linger"],
            awaits_first=True,
            runtime=self._runtime,
        )
        _log.info(
            "{disk}: has moved to {destination}; relaying clients to {successor}",
            event="relaying-again",
            disk=path,
            destination=str(record.destination),
            successor=str(uri),
        )
        server.relay(relay)
        await self._serve(server, listening)

    def _make_server(self, disk: FileDisk | BlockDisk | DepartedDisk) -> Server:
        options = self._options
        return Server(
            disk,
            options["export"],
            read_only=bool(options["read-only"]),
            oldstyle=bool(options["oldstyle"]),
            max_connections=options["max-connections"],
            max_per_address=options["max-per-address"],
            handshake_timeout=options["handshake-timeout"],
            request_timeout=options["request-timeout"],
            tls=self._tls.policy,
            runtime=self._runtime,
        )

    async def _serve(self, server: Server, listening: Listening) -> None:
        mirrors = MirrorManager(
            server,
            self._runtime,
            self._make_client_endpoint,
            in_use_anyway=bool(self._options["in-use-anyway"]),
            linger=self._options["linger"],
            certificates=self._options["tls-certificates"] or "",
        )
        try:
            await self._listen(listening, server, mirrors)
            self._mirrors = mirrors
            await mirrors.complete()
        except OSError as error:
            raise LocalFailure(f"{server.disk.name}: {describe_error(error)}") from None
        finally:
            await listening.close()
        was_relayed = isinstance(server.disk, DepartedDisk)
        totals = server.status()["totals"]
        _log.info(
            "stopped: {connections} connection(s), {requests} request(s), {bytes_read} bytes read "
            "and {bytes_written} written; the disk was {what}",
            event="stopped",
            what="handed over" if mirrors.handed_over or was_relayed else "flushed",
            **totals,
        )

    async def _listen(self, listening: Listening, server: Server, mirrors: MirrorManager) -> None:
        options = self._options
        target = ListeningExport(
            server.factory(),
            options["file"],
            options["export"],
            "read this disk" if options["read-only"] else "read and write this disk",
            mirrors.status,
            mirrors.routes,
            size=server.disk.size,
            tls=self._tls,
        )
        try:
            await listening.open(target, busy_for=_BUSY if options["standby"] else 0.0)
        except MigrationError:
            server.stop()
            await server.complete()
            raise


def _warn_of(disk: FileDisk | BlockDisk, path: str, image: str) -> None:
    """Warn of what may be a mistake, but is served all the same.

    @param image: the format of an image that it looks like; "" for none.
    """
    if image:
        _log.warn(
            "{disk}: looks like a {image} image; its bytes are served as they are",
            event="not-raw",
            disk=path,
            image=image,
        )
    if isinstance(disk, FileDisk) and (links := disk.links()) > 1:
        _log.warn(
            "{disk}: has {links} names (hard links); records beside the other names are not "
            "checked",
            event="hard-links",
            disk=path,
            links=links,
        )


def _format_of(disk: FileDisk | BlockDisk) -> str:
    """I{Slow.}"""
    try:
        return image_format(disk.read(0, min(disk.size, _FORMAT_PROBE)))
    except OSError:
        return ""  # clients get the error when they read there
