"""A disk is moved: sent as `send` does, to a receiver that is started for it.

Owns the id of the migration, and what is said of the two sides together.

Rules:

* the id is that of the records, where this disk was sent to this place before; else it is made from
  the two places and from what was finished here last. So the same command has the same id after any
  crash, without anything that has to be kept, and another one once the disk has come back;
* nothing is started before the records here allow it: a move that is finished says so at once;
* that a receiver says that it has received this very migration is proof enough of its end, for a
  source that is retired: it comes from the host itself, through ssh. For a source that is not
  retired it proves nothing, and is refused;
* the receiver is told to end, and its last word is waited for, before anything is said of both.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from typing import Any, Final

from twisted.logger import Logger

from ..client import Destination
from ..errors import (
    AlreadyDone,
    GaveUp,
    LocalFailure,
    MigrationError,
    Refused,
    Summary,
    Unconfirmed,
)
from ..migration.identity import Identity
from ..migration.records.advice import command_here
from ..migration.records.files import BadRecord, Kind, records_at, this_host
from ..migration.records.finished import read_finished
from ..migration.source.progress import Progress
from ..migration.source.resume import Source
from ..runtime import Runtime
from ..storage import DiskRefused
from ..syscalls import SystemCalls
from .far_receiver import Ending, FarEndpoint, FarReceiver
from .move import Options
from .progress import Display
from .send_operation import SendOperation
from .way import Data, FarFailed, NoWay, make_way

_log = Logger()


class MoveOperation:
    """Moves the disk, or finishes a move whose source was retired in an earlier run.

    @param kind: the way of the data.
    """

    hung_up: Final = None

    def __init__(
        self, options: Options, runtime: Runtime, display: Display, kind: Data = Data.SSH
    ) -> None:
        self._options = options
        self._runtime = runtime
        options["id"] = self._id = migration_id(options, runtime.system)
        name = short_name(os.path.realpath(options["file"]), self._id)
        self._way = make_way(kind, options, runtime, name)
        self._far = FarReceiver(
            runtime.reactor,
            options.uri,
            ssh=shlex.split(options["ssh"]),
            command=options["remote-command"],
            arguments=self._arguments,
            secret=options.secret,
            way=self._way,
            on_end=self._far_ended,
        )
        self._endpoint = FarEndpoint(runtime.reactor, self._far)
        self._display = _LateDisplay(display, self._far)
        self._send = SendOperation(
            options, runtime, self._display, lambda *_: self._endpoint, tls=self._way.tls
        )
        self._stop_reason = ""

    @property
    def is_uncertain(self) -> bool:
        """Whether the source is retired, or may be."""
        return self._send.is_uncertain

    async def run(self) -> Summary:
        outcome: Summary | MigrationError
        try:
            outcome = await self._send.run()
        except MigrationError as error:
            outcome = error
        except BaseException:
            await self._far.close(complete=False)
            raise
        ending = await self._far.close(complete=isinstance(outcome, Summary))
        if isinstance(outcome, Summary):
            return outcome
        return await self._concluded(outcome, ending)

    @property
    def no_way(self) -> NoWay | None:
        """Why the data does not go this way; None if it does, or that is not known."""
        there = self._far.verdict
        return there if isinstance(there, NoWay) and not self._far.was_reached else None

    def stop(self, why: str) -> None:
        self._stop_reason = why
        self._send.stop(why)

    def _far_ended(self, error: MigrationError) -> None:
        self._send.stop(str(error))

    def _arguments(self) -> list[str]:
        """Those of the receiver."""
        size = _size_of(self._options["file"], self._runtime.system)
        return receiver_arguments(self._options, size)

    # What is said in the end.

    async def _concluded(self, error: MigrationError, ending: Ending | None) -> Summary:
        """The outcome of a move whose sender has ended with C{error}."""
        far, place = self._far, self._options.uri.shown
        there = far.verdict
        completed = isinstance(there, AlreadyDone) or (ending is not None and ending.error is None)
        if completed and isinstance(error, Unconfirmed):
            return await self._confirm()
        if isinstance(error, AlreadyDone):
            far.remove_left_behind()
        if isinstance(error, AlreadyDone | Unconfirmed):
            raise error
        if isinstance(there, AlreadyDone):
            inspect = f"`blockmig inspect {shlex.quote(self._options['file'])}`"
            raise Refused(
                f"{there}; but {self._options['file']} is not marked as migrated: see {inspect}, "
                "and the same there; to move it all the same, give a new --id, and --overwrite"
            )
        stopped = bool(self._stop_reason)
        if not self._display.attempted:
            if there is not None and not stopped:
                raise there
            if isinstance(error, Refused) and far.last_failure:
                raise Refused(far.last_failure)
        if there is not None and not stopped:
            # The sender's message has it; a disk that has failed there is no reason to try again.
            raise LocalFailure(str(error)) if isinstance(there, LocalFailure) else error
        if not isinstance(error, GaveUp):
            raise error
        if not far.listened:
            raise GaveUp(f"{error}; no receiver was running at {place}")
        raise GaveUp(f"{error}; {last_word(ending, place)}")

    async def _confirm(self) -> Summary:
        """The source is retired, and the other host says that it is complete: record that."""
        options, runtime = self._options, self._runtime
        source = Source.at(options["file"], options["state-dir"], runtime.system)
        try:
            finisher = source.finisher(
                Destination(self._endpoint, options.uri.export, str(options.uri), self._way.tls),
                unlink=bool(options["unlink"]),
                identity=Identity(self._id, options.secret),
                runtime=runtime,
            )
            if finisher is None:
                records = records_at(options["file"], options["state-dir"], runtime.system)
                raise Unconfirmed(
                    f"{options.uri.shown} is complete, but {options['file']} is not retired: see "
                    f"`{command_here('inspect', records)}`"
                )
            finisher.assume_complete()
            return await finisher.run()
        finally:
            source.close()


def receiver_arguments(options: Options, size: int | None) -> list[str]:
    """The arguments of the receiver, but where it listens.

    @param size: bytes of the disk; None if it is gone.
    """
    arguments = [
        *(f"--file={options.uri.path}", f"--id={options['id']}", "--secret=-"),
        *("--end-with-stdin", "--replace", "--log-format=json"),
    ]
    # Of a disk that is gone there is a copy, or there is nothing to be moved.
    arguments.append("--no-create" if size is None else f"--size={size}")
    if options.overwrite_there:
        arguments.append("--overwrite")
    if options["no-space-check"]:
        arguments.append("--no-space-check")
    return arguments


def last_word(ending: Ending | None, place: str) -> str:
    """What became of the other side of a move that was stopped."""
    if ending is None:
        return f"what the receiver of {place} does is not known: it ends with its ssh"
    if isinstance(ending.error, FarFailed):
        return f"{ending.error}; what there is at {place} is not the canonical copy"
    return f"{place}: {ending.said}" if ending.said else f"{place} is not the canonical copy"


def migration_id(options: Options, system: SystemCalls) -> str:
    """The id of the migration of this disk to that place; see the rules above."""
    if options["id"] is not None:
        return str(options["id"])
    address, last = str(options.uri), ""
    path = os.path.realpath(options["file"])
    try:
        records = records_at(options["file"], options["state-dir"], system)
        path = records.disk
        finished = read_finished(records)
        for record in (records.read(Kind.MIGRATING), finished.went):
            if record is not None and record.id and record.destination.address == address:
                return record.id
        last = finished.latest.migration if finished.latest is not None else ""
    except (BadRecord, DiskRefused, OSError):
        pass  # the sender reports it
    return f"move-{short_name(this_host(), path, address, last)}"


def short_name(*facts: str) -> str:
    """A name made of all that."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _size_of(path: str, system: SystemCalls) -> int | None:
    """Bytes of a file or device; None if it is gone."""
    try:
        descriptor = system.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        system.close(descriptor)


class _LateDisplay:
    """Shows nothing until the receiver is reached: ssh may have to ask for a passphrase first.

    @ivar attempted: whether the receiver has accepted an attempt.
    """

    def __init__(self, display: Display, far: FarReceiver) -> None:
        self.write = display.write
        self.interval = display.interval
        self._display = display
        self._far = far
        self._progress: Progress | None = None
        self._started = self._stopped = False

    @property
    def attempted(self) -> bool:
        return self._progress is not None and self._progress.attempt > 0

    def start(self, progress: Progress, reactor: Any) -> None:
        self._progress = progress

        def reached(_: None) -> None:
            if not self._stopped:
                self._started = True
                self._display.start(progress, reactor)

        self._far.when_reached.wait().addCallback(reached)

    def stop(self) -> None:
        self._stopped = True
        if self._started:
            self._display.stop()
