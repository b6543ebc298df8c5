"""What comes of a disk that fails at one act, in each program: made by migrations in this process.

``python -m tests.docs.failures_table`` prints the tables of docs/failures.md; a test compares the
two. The disks are files; the system calls of one side fail (`tests/support/broken_calls.py`). At
the end of each migration it is checked that nothing was lost: the copy that `inspect` calls
canonical has the data, and so it has once the same commands were run again with disks that work.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from zope.interface import implementer

from blockmig import (
    AlreadyDone,
    Destination,
    FileDisk,
    MigrationError,
    Mirror,
    Patience,
    Receiver,
    Runtime,
    Sender,
    Server,
    resume,
)
from blockmig.claims import forget_all
from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from blockmig.nbd import Errno
from blockmig.testing import MemoryNetwork, connect_client, synchronous
from tests.support.broken_calls import BrokenCalls, Predicate, on_deletion, on_disk, on_record

DATA = bytes(range(1, 251)) * 400 + bytes(1 << 20) + b"the end"
SIZE = len(DATA)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ANY = (errno.EIO, *NO_ROOM, errno.EROFS)
NOT_FULL = (errno.EIO, errno.EROFS)
PATIENCE = Patience(retry_policy=lambda failures: 1.0)
STEPS = ("write", "fsync", "rename", "fsync of the directory")
_ERROR_REPLY = re.compile(rb"\x67\x44\x66\x98(....)", re.S)


@dataclass(frozen=True)
class Case:
    """A fault.

    @ivar program: whose disk fails.
    @ivar place: at what, for people.
    @ivar step: which step of that; "" where it has none.
    @ivar fails: the same, for the calls.
    @ivar errors: what it fails with.
    @ivar unlink: the source is deleted.
    @ivar meanwhile: what happens to the disk in the middle.
    """

    program: str
    place: str
    fails: Predicate = lambda call, path, calls: False
    step: str = ""
    errors: tuple[int, ...] = ANY
    unlink: bool = True
    meanwhile: Callable[[World], None] | None = None


@implementer(IStreamClientEndpoint)
class Tapped:
    """An endpoint that keeps what its connections receive."""

    def __init__(self, endpoint: Any, heard: list[bytearray]) -> None:
        self._endpoint = endpoint
        self._heard = heard

    def connect(self, factory: Any) -> Any:
        build, heard = factory.buildProtocol, bytearray()
        self._heard.append(heard)

        def build_tapped(address: Any) -> Any:
            protocol = build(address)
            receive = protocol.dataReceived

            def received(data: bytes) -> None:
                heard.extend(data)
                receive(data)

            protocol.dataReceived = received
            return protocol

        factory.buildProtocol = build_tapped
        return self._endpoint.connect(factory)


class World:
    """Two hosts, and a migration from one to the other.

    @ivar source: the path of the source; likewise its destination.
    @ivar calls: the system calls of the side that fails.
    """

    def __init__(self, room: Path, case: Case, error: int) -> None:
        forget_all()
        self.source, self.destination = room / "source" / "web.img", room / "there" / "web.img"
        for path in (self.source, self.destination):
            path.parent.mkdir()
        self.source.write_bytes(DATA)
        self.case = case
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.heard: list[bytearray] = []
        endpoint = Tapped(self.network.client_endpoint("there"), self.heard)
        self.there = Destination(endpoint, "", "nbd://there/")
        self.calls = BrokenCalls()
        self.calls.error = error
        self.statuses: dict[str, str] = {}
        self._disks: list[FileDisk] = []

    def runtime(self, fails: bool) -> Runtime:
        return Runtime(self.clock, synchronous, self.calls if fails else Runtime.of().system)

    def disk(self, path: Path, runtime: Runtime, **options: Any) -> FileDisk:
        self._disks.append(FileDisk(str(path), system=runtime.system, **options))
        return self._disks[-1]

    def receive(self, fails: bool = False) -> Receiver:
        runtime = self.runtime(fails)
        disk = self.disk(self.destination, runtime, size=SIZE)
        receiver = Receiver(disk, runtime=runtime)
        port = self.network.listen("there", receiver.factory())

        def ended(result: Any) -> Any:
            port.stopListening()
            disk.close() if receiver.touched else disk.discard()
            return result

        self.note("receiver", receiver.complete().addBoth(ended))
        return receiver

    def note(self, who: str, done: Any) -> None:
        """Have the exit status of C{who} noted once it ends."""

        def succeeded(_: object) -> None:
            self.statuses[who] = "0"

        def failed(failure: Any) -> None:
            error = failure.value
            assert isinstance(error, MigrationError | OSError), failure
            self.statuses[who] = str(int(getattr(error, "status", 3)))

        done.addCallbacks(succeeded, failed)

    def close(self) -> None:
        for disk in self._disks:
            disk.close()

    def go_on_until_it_is_written(self) -> None:
        """Until the destination has begun to write the disk."""
        while not (self.destination.exists() and self.destination.stat().st_blocks):
            if not self.network.step():
                self.clock.advance(0)

    @property
    def errors(self) -> list[str]:
        """The NBD errors that were sent to the client, each once."""
        found = [
            int.from_bytes(number, "big")
            for data in self.heard
            for number in _ERROR_REPLY.findall(bytes(data))
        ]
        return [Errno(number).name for number in dict.fromkeys(found) if number]


@dataclass(frozen=True)
class Result:
    """What came of it.

    @ivar status: the exit status of the program.
    @ivar other: that of the other one, or what it does.
    @ivar server: what the server does then, where there is one.
    @ivar here: what `inspect` says of the source.
    @ivar there: what it says of the destination.
    @ivar both: which of both is canonical.
    """

    status: str
    other: str
    server: str
    here: str
    there: str = ""
    both: str = ""


def migrate(world: World) -> Result:
    """A migration between a sender (or a mirror) and a receiver, one of which has a bad disk."""
    case = world.case
    world.calls.fails = case.fails
    receiver = world.receive(fails=case.program == "receive")
    runtime = world.runtime(case.program != "receive")
    disk = world.disk(world.source, runtime, writable=case.program == "mirror")
    server: Server | None = None
    sending: Any
    if case.program == "mirror":
        server = Server(disk, runtime=runtime)
        server.complete().addErrback(lambda _: None)
        sending = Mirror(
            server, world.there, unlink=case.unlink, runtime=runtime, patience=PATIENCE
        )
        world.note("sender", sending.complete())
        sending.start().addErrback(lambda _: None)
    else:
        sending = Sender(disk, world.there, unlink=case.unlink, runtime=runtime, patience=PATIENCE)
        world.note("sender", sending.complete())
        sending.run().addErrback(lambda _: None)
    if case.meanwhile is not None:
        world.go_on_until_it_is_written()
        case.meanwhile(world)
    world.network.advance(12)
    ended = dict(world.statuses)
    state = "" if server is None else server.state
    for one in (sending, receiver, *([server] if server is not None else [])):
        one.stop()
    world.network.advance(12)
    own, other = ("receiver", "sender") if case.program == "receive" else ("sender", "receiver")
    goes_on = "tries on" if other == "sender" else "waits"
    result = Result(
        ended.get(own) or f"tries on ({world.statuses[own]} when stopped)",
        ended.get(other) or f"{goes_on} ({world.statuses[other]} when stopped)",
        state,
        *verdicts(world),
    )
    world.close()
    assert world.calls.hits or case.meanwhile is not None, f"{case}: nothing has failed"
    check_nothing_is_lost(world, result)
    return result


def verdicts(world: World) -> tuple[str, str, str]:
    """Of the source, of the destination, and which of both is canonical."""
    states = [examine(str(path)) for path in (world.source, world.destination)]
    which = {str(world.source): "source", str(world.destination): "destination"}
    one, other = (_SHORT.get(verdict_of(state).state, "unknown") for state in states)
    return one, other, which.get(verdict_of_pair(*states).canonical, "unknown")


def check_nothing_is_lost(world: World, result: Result) -> None:
    """The canonical copy has the data; and the same commands, run again, finish."""
    paths = {"source": world.source, "destination": world.destination}
    if world.case.meanwhile is not None:
        return  # that is what has happened to it
    if result.both in paths:
        assert paths[result.both].read_bytes() == DATA, result
    else:
        assert DATA in [path.read_bytes() for path in paths.values() if path.exists()], result
    run_again(world)
    assert world.destination.read_bytes() == DATA
    assert not world.case.unlink or not world.source.exists()
    assert verdicts(world) == ("not canonical", "canonical", "destination"), verdicts(world)


def run_again(world: World) -> None:
    """Both commands, with disks that work; each does its part, or has nothing left to do."""
    world.calls.error = 0
    forget_all()
    runtime = world.runtime(fails=False)
    endings: list[Any] = []
    try:
        world.receive().complete().addBoth(endings.append)
    except AlreadyDone:
        endings.append(None)
    try:
        sending = resume(
            str(world.source),
            world.there,
            unlink=world.case.unlink,
            patience=PATIENCE,
            runtime=runtime,
        )
        sending.run().addBoth(endings.append)
        world.network.advance(40)
        sending.stop()
    except AlreadyDone:
        endings.append(None)
    world.network.advance(10)
    world.close()


def serve(world: World) -> tuple[str, Result]:
    """A server whose disk fails, and a client that asks for what does; then it is stopped."""
    case = world.case
    runtime = world.runtime(fails=True)
    server = Server(world.disk(world.source, runtime), runtime=runtime)
    world.network.listen("there", server.factory())
    world.note("server", server.complete())
    client = world.network.result(connect_client(world.network.client_endpoint("there")))
    world.calls.fails = case.fails
    act = {
        "READ": lambda: client.read(SIZE - 4096, 4096),
        "WRITE": lambda: client.write(0, b"x" * 4096),
        "WRITE_ZEROES": lambda: client.zero(0, 65536),
        "TRIM": lambda: client.trim(0, 65536),
        "FLUSH": client.flush,
    }[case.place]
    if case.meanwhile is not None:
        case.meanwhile(world)
    try:
        world.network.result(act())
        error = ""
    except OSError as failed:
        error = errno.errorcode[failed.errno or 0]
    assert server.status()["errors"] == 1, "it was not counted"
    state = server.state
    server.stop()
    world.network.advance(5)
    source = verdict_of(examine(str(world.source))).state.value
    world.close()
    return error, Result(world.statuses["server"], "", state, source)


_SHORT = {state: state.value for state in CopyState} | {
    CopyState.CONDITIONAL: "canonical only if …"
}


def _records(program: str, kind: str, phase: str, number: int, **more: Any) -> Iterator[Case]:
    """The steps of writing a record."""
    for step in STEPS:
        place = f"`{kind}`" + (f" ({phase})" if phase else "")
        yield Case(program, place, on_record(kind, step, number), step, **more)


def _removal(program: str, kind: str) -> Iterator[Case]:
    place = f"removing `{kind}`"
    yield Case(program, place, on_record(kind, "unlink"), "unlink", NOT_FULL)
    yield Case(
        program, place, on_record(kind, "fsync after unlink"), "fsync of the directory", NOT_FULL
    )


def _sending(program: str) -> Iterator[Case]:
    yield Case(program, "reading the disk", on_disk("pread"), errors=(errno.EIO,))
    yield Case(program, "the disk is truncated", meanwhile=truncate_source, errors=(0,))
    yield from _records(program, "MIGRATING", "copying", 1)
    yield from _records(program, "MIGRATING", "copied", 2)
    yield Case(program, "deleting the disk", on_deletion("unlink"), "unlink", NOT_FULL)
    yield Case(
        program, "deleting the disk", on_deletion("fsync"), "fsync of the directory", NOT_FULL
    )
    yield from _records(program, "MIGRATED", "the source is kept", 1, unlink=False)
    yield from _records(program, "MIGRATING", "told", 3)
    yield from _records(program, "MIGRATED", "of a deleted disk", 1)
    yield from _removal(program, "MIGRATING")
    yield Case(
        program,
        "`MIGRATING` cannot be read any more at the end",
        lambda call, path, calls: (
            call == "open" and path.endswith(".MIGRATING") and calls.renamed["MIGRATING"] >= 2
        ),
        errors=(errno.EIO, errno.EACCES),
    )


def truncate_source(world: World) -> None:
    os.truncate(world.source, SIZE // 2)


def truncate_destination(world: World) -> None:
    os.truncate(world.destination, SIZE // 2)


def cases() -> Iterator[Case]:
    """All of them, in the order of the tables."""
    yield Case("receive", "writing data", on_disk("pwrite"))
    yield Case("receive", "writing zeroes", on_disk("fallocate"))
    yield Case("receive", "flushing the disk", on_disk("fdatasync", "fsync"), errors=NOT_FULL)
    yield Case("receive", "the disk is truncated", meanwhile=truncate_destination, errors=(0,))
    yield from _records("receive", "INCOMPLETE", "copying", 1)
    yield from _records("receive", "INCOMPLETE", "copied", 2)
    yield from _records("receive", "INCOMPLETE", "retired", 3)
    yield from _records("receive", "RECEIVED", "", 1)
    yield from _removal("receive", "INCOMPLETE")
    yield from _sending("send")
    yield from _sending("mirror")
    yield Case("serve", "READ", on_disk("pread"), errors=(errno.EIO,))
    yield Case(
        "serve",
        "READ",
        meanwhile=truncate_source,
        step="behind its new end, once it was truncated",
        errors=(0,),
    )
    yield Case("serve", "WRITE", on_disk("pwrite"))
    yield Case("serve", "WRITE_ZEROES", on_disk("fallocate", "pwrite"))
    yield Case("serve", "TRIM", on_disk("fallocate", "pwrite"), errors=NOT_FULL)
    yield Case("serve", "FLUSH", on_disk("fdatasync", "fsync"))


@contextmanager
def world_of(case: Case, error: int) -> Iterator[World]:
    """Two hosts for a while."""
    room = Path(tempfile.mkdtemp(prefix="failures-"))
    try:
        yield World(room, case, error)
    finally:
        shutil.rmtree(room)


def results(case: Case) -> dict[Result, list[str]]:
    """What comes of a fault, with the errors of which that comes, and the NBD errors."""
    found: dict[Result, dict[str, list[str]]] = {}
    for error in case.errors:
        with world_of(case, error) as world:
            if case.program == "serve":
                nbd, result = serve(world)
            else:
                result = migrate(world)
                nbd = ", ".join(world.errors)
            assert world.calls.hits or case.meanwhile is not None, f"{case}: nothing has failed"
        name = errno.errorcode[error] if error else ""
        found.setdefault(result, {}).setdefault(nbd, []).append(name)
    return {
        result: [
            (", ".join(filter(None, names)) + (f" → {nbd}" if nbd else "")).strip()
            for nbd, names in by_reply.items()
        ]
        for result, by_reply in found.items()
    }


Grouped = tuple[str, dict[Result, list[str]], list[str]]


def grouped(program: str) -> Iterator[Grouped]:
    """The places, each with those of its steps of which the same comes."""
    open_group: Grouped | None = None
    for case in cases():
        if case.program != program:
            continue
        found = results(case)
        if open_group is not None and open_group[:2] == (case.place, found):
            open_group[2].append(case.step)
            continue
        if open_group is not None:
            yield open_group
        open_group = (case.place, found, [case.step])
    if open_group is not None:
        yield open_group


@dataclass(frozen=True)
class Table:
    """A table, of one program whose disk fails.

    @ivar other: the program at the other end.
    @ivar columns: fields of L{Result}.
    """

    program: str
    other: str
    columns: tuple[str, ...]


_BOTH_ENDS = ("status", "other", "here", "there", "both")
TABLES = (
    Table("receive", "send", _BOTH_ENDS),
    Table("send", "receive", _BOTH_ENDS),
    Table("mirror", "receive", ("server", *_BOTH_ENDS)),
    Table("serve", "", ("server", "status", "here")),
)
_HEADINGS = {
    "status": "`{own}` ends with",
    "other": "`{other}` ends with",
    "server": "the server then",
    "here": "`inspect`, source",
    "there": "`inspect`, destination",
    "both": "canonical, by both",
}


def rows_of(program: str) -> Iterator[str]:
    """The lines of one table."""
    (table,) = (table for table in TABLES if table.program == program)
    headings = [
        _HEADINGS[column].format(own=program, other=table.other) for column in table.columns
    ]
    yield f"| what fails | error → NBD error | {' | '.join(headings)} |"
    yield "| --- " * (2 + len(headings)) + "|"
    for place, found, steps in grouped(program):
        shown = ", ".join(filter(None, steps))
        what = f"{place}: {shown}" if shown else place
        for result, errors in found.items():
            cells = [getattr(result, column) for column in table.columns]
            yield f"| {what} | {'; '.join(errors)} | {' | '.join(cells)} |"


def main() -> None:
    for table in TABLES:
        print(f"<!-- {table.program} -->", "", *rows_of(table.program), "", sep="\n")
        print("<!-- end -->")


if __name__ == "__main__":
    main()
