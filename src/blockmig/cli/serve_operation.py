"""What `serve` does: serves a disk to clients, until it is stopped or the disk has moved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.logger import Logger

from ..errors import GaveUp, LocalFailure, MigrationError, Refused
from ..migration.in_use import refuse_in_use
from ..nbd import NBDURI
from ..runtime import Runtime
from ..server import Server
from ..storage import BlockDisk, DiskRefused, FileDisk, image_format, open_disk
from ..syscalls import describe_error
from ..transport import client_endpoint, server_endpoint
from .listening import Listening, ListeningExport
from .mirror_manager import MirrorManager
from .serve import Options

_log = Logger()

_FORMAT_PROBE: Final = 4096
"""Bytes at the start of a disk that tell the format of an image."""


class ServeOperation:
    """Serves the disk.

    @param make_endpoint: makes an endpoint to listen with, from the reactor and its description.
    @param make_client_endpoint: makes the endpoint of a mirror's destination, from the reactor and
        its URI.
    """

    survives_hangup: Final = True

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
        self._stop_reason = ""

    async def run(self) -> None:
        options, system = self._options, self._runtime.system
        self._listening = listening = Listening(
            self._runtime.reactor, options["listen"], options["control"], self._make_endpoint
        )
        path, state_directory = options["file"], options["state-dir"]
        try:
            with open_disk(
                path,
                writable=not options["read-only"],
                state_directory=state_directory,
                system=system,
            ) as disk:
                # Looks at the records, now that the disk is locked: nobody can begin to migrate it.
                server = self._make_server(disk)
                if not options["in-use-anyway"]:
                    await refuse_in_use(disk, path, readers=False, runtime=self._runtime)
                    if self._stop_reason:
                        raise GaveUp(f"{self._stop_reason}; nothing was touched")
                _warn_of(disk, path)
                await self._serve(server, listening)
        except DiskRefused as error:
            raise Refused(str(error)) from None

    def stop(self, why: str) -> None:
        """Stop accepting connections, and let the server finish."""
        self._stop_reason = why
        if self._listening is not None:
            self._listening.cancel()
            if self._mirrors is not None:
                self._listening.stop()
                self._mirrors.stop(why)

    def _make_server(self, disk: FileDisk | BlockDisk) -> Server:
        options = self._options
        return Server(
            disk,
            options["export"],
            read_only=bool(options["read-only"]),
            oldstyle=bool(options["oldstyle"]),
            max_connections=options["max-connections"],
            handshake_timeout=options["handshake-timeout"],
            request_timeout=options["request-timeout"],
            runtime=self._runtime,
        )

    async def _serve(self, server: Server, listening: Listening) -> None:
        mirrors = MirrorManager(
            server,
            self._runtime,
            self._make_client_endpoint,
            in_use_anyway=bool(self._options["in-use-anyway"]),
        )
        try:
            await self._listen(listening, server, mirrors)
            self._mirrors = mirrors
            await mirrors.complete()
        except OSError as error:
            raise LocalFailure(f"{server.disk.name}: {describe_error(error)}") from None
        finally:
            await listening.close()
        totals = server.status()["totals"]
        _log.info(
            "stopped: {connections} connection(s), {requests} request(s), {bytes_read} bytes read "
            "and {bytes_written} written; the disk was {what}",
            event="stopped",
            what="handed over" if mirrors.handed_over else "flushed",
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
        )
        try:
            await listening.open(target)
        except MigrationError:
            server.stop()
            await server.complete()
            raise


def _warn_of(disk: FileDisk | BlockDisk, path: str) -> None:
    """Warn of what may be a mistake, but is served all the same."""
    if image := _format_of(disk):
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
    try:
        return image_format(disk.read(0, min(disk.size, _FORMAT_PROBE)))
    except OSError:
        return ""  # clients get the error when they read there
