"""What `receive` does: one migration into a disk."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.logger import Logger

from ..errors import AlreadyDone, GaveUp, MigrationError, Refused, Summary
from ..migration.destination.receiver import Receiver
from ..migration.identity import Identity
from ..migration.in_use import refuse_in_use
from ..migration.policy import Overrides
from ..migration.records.files import records_at
from ..migration.records.permitted import check_finished
from ..migration.records.verdict import look_at
from ..runtime import Runtime
from ..storage import (
    BlockDisk,
    DiskRefused,
    FileDisk,
    device_in_memory,
    filesystem_of,
    is_in_memory,
    open_disk,
)
from ..transport import server_endpoint
from . import operations
from .admittance import Admittance
from .listening import Listening, ListeningExport
from .logs import warn_of_again
from .receive import Options
from .tls import ListenerTLS, listener_tls

if TYPE_CHECKING:
    from ..control.server import Routes

_log = Logger()


class ReceiveOperation:
    """Receives one migration into the disk.

    @param make_endpoint: makes an endpoint to listen with, from the reactor and its description.
    """

    hung_up: Final = None

    def __init__(
        self,
        options: Options,
        runtime: Runtime,
        make_endpoint: Callable[[Any, str], Any] = server_endpoint,
    ) -> None:
        self._options = options
        self._runtime = runtime
        self._make_endpoint = make_endpoint
        self._listening: Listening | None = None
        self._receiver: Receiver | None = None
        self._stop_reason = ""
        self._routes: Routes = {}
        self._tls = ListenerTLS()

    @property
    def is_uncertain(self) -> bool:
        """Whether the source may be retired."""
        return self._receiver is not None and self._receiver.may_be_the_only_copy

    @property
    def longest_stop(self) -> float:
        """For how long a disk that does not answer is waited for (L{Patient})."""
        if (receiver := self._receiver) is None:
            return operations.LONGEST_STOP
        if receiver.keeps_the_disk:
            return math.inf
        return operations.LONGEST_FLUSH if receiver.is_completing else operations.LONGEST_STOP

    async def run(self) -> Summary:
        if not self._options["end-with-stdin"]:
            return await self._run()
        from .standard_input import StandardInput  # noqa: PLC0415 (few receivers need these)

        standard_input = StandardInput(
            self._runtime.reactor, lambda: self.stop("stopped, since standard input has closed")
        )
        try:
            return await self._run()
        finally:
            standard_input.stop()

    async def _run(self) -> Summary:
        options = self._options
        warn_of_again(options)
        try:
            self._tls = listener_tls(options, for_each=True, held=options.certificates)
        except Refused:
            self._check_records()  # what was received already needs no certificates
            raise
        control = options["control"]
        if options["replace"]:
            control = await self._replace()
        self._check_records()
        endpoints = [options["listen"]] if options["listen"] is not None else []
        self._listening = listening = Listening(
            self._runtime.reactor,
            endpoints,
            control,
            self._make_endpoint,
            admittance=Admittance.of(options),
        )
        disk = self._open()
        try:
            self._receiver = receiver = self._receive(disk)
            try:
                await self._check(disk, receiver)
                await self._listen(listening, receiver, disk)
                _warn_of_memory(disk, options["file"])
                return await receiver.complete()
            finally:
                await listening.close()
        finally:
            # A file that was created here, and never written to, is removed.
            touched = self._receiver is not None and self._receiver.touched
            disk.close() if touched else disk.discard()

    async def _replace(self) -> str | None:
        """End the receiver that is to be replaced; the path of the control socket to have."""
        from .replacement import end_other, meeting_place, routes  # noqa: PLC0415

        options = self._options
        control = meeting_place(options["file"], options["id"], options["state-dir"])
        if control is None:
            return None
        await end_other(control, options["file"], self._runtime)
        self._check_stopped()
        self._routes = routes(self.stop, self._runtime.reactor)
        return control

    def stop(self, why: str) -> None:
        self._stop_reason = why
        if self._listening is not None:
            self._listening.cancel()
        if self._receiver is not None:
            self._receiver.stop(why)

    def _check_records(self) -> None:
        """Check what the records say, before the disk is opened, made or locked: where it was
        received already it may be in use."""
        options, system = self._options, self._runtime.system
        path, directory = options["file"], options["state-dir"]
        with contextlib.suppress(DiskRefused):  # to open it is refused too, and says why
            records = records_at(path, directory, system)
            try:
                check_finished(
                    records,
                    lambda: look_at(path, system),
                    overwrite=bool(options["overwrite"]),
                    id=options["id"] or "",
                )
            except AlreadyDone as error:
                size = look_at(path, system).size
                if options["size"] not in (None, size):
                    raise Refused(
                        f"{path}: was received already, and has {size} bytes, not the "
                        f"{options['size']} of --size"
                    ) from None
                where = f" on {options['listen']}" if options["listen"] else ""
                raise AlreadyDone(f"{error}; nobody is listening{where}") from None

    def _open(self) -> FileDisk | BlockDisk:
        options = self._options
        try:
            return open_disk(
                options["file"],
                size=options["size"],
                sized_later=not (options["oldstyle"] or options["no-create"]),
                state_directory=options["state-dir"],
                system=self._runtime.system,
            )
        except DiskRefused as error:
            if options["oldstyle"] and not os.path.lexists(options["file"]):
                raise Refused(f"{error} (--oldstyle needs --size to create it)") from None
            raise Refused(str(error)) from None

    def _receive(self, disk: FileDisk | BlockDisk) -> Receiver:
        options = self._options
        return Receiver(
            disk,
            export=options["export"],
            oldstyle=bool(options["oldstyle"]),
            handshake_timeout=options["handshake-timeout"],
            idle_timeout=options["idle-timeout"],
            give_up_after=options["give-up-after"] or None,
            overrides=Overrides(
                overwrite=bool(options["overwrite"]),
                no_space_check=bool(options["no-space-check"]),
            ),
            identity=Identity(options["id"] or "", options.secret),
            tls=self._tls.policy,
            runtime=self._runtime,
        )

    async def _check(self, disk: FileDisk | BlockDisk, receiver: Receiver) -> None:
        """Check that the disk can be received into, before anybody can connect."""
        path = self._options["file"]
        try:
            if not self._options["in-use-anyway"]:
                await refuse_in_use(disk, path, readers=True, runtime=self._runtime)
            self._check_stopped()
            await receiver.check()
            self._check_stopped()
        except MigrationError as error:
            self._check_stopped()
            receiver.stop(str(error))
            raise

    def _check_stopped(self) -> None:
        """Raise L{GaveUp} if L{stop} was called during a check."""
        if self._stop_reason:
            raise GaveUp(f"{self._stop_reason}; nothing was touched")

    async def _listen(
        self, listening: Listening, receiver: Receiver, disk: FileDisk | BlockDisk
    ) -> None:
        options = self._options
        target = ListeningExport(
            receiver.factory(),
            options["file"],
            options["export"],
            "write this disk",
            receiver.status,
            self._routes,
            size=disk.size,
            tls=self._tls,
        )
        try:
            await listening.open(target, options["give-up-after"] or None)
        except MigrationError as error:
            receiver.stop(str(error))
            raise


def _warn_of_memory(disk: FileDisk | BlockDisk, path: str) -> None:
    """Warn if the disk is in memory, where a copy does not survive a restart."""
    # The node of a device is always in memory.
    kind = filesystem_of(path) if isinstance(disk, FileDisk) else "a device in memory"
    if is_in_memory(kind) or device_in_memory(path):
        _log.warn(
            "{disk}: is in memory ({kind}): what is received there is lost when this machine "
            "restarts",
            event="in-memory",
            disk=path,
            kind=kind,
        )
