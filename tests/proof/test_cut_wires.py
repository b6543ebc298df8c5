"""The wire is cut, reset, half-closed or stalled at any byte: both ends come to the same end.

The places are all boundaries between the messages of the last phase (and between their headers and
payloads), one byte either side of each, and random ones before that. Whenever something passes in
the last phase, and at every break, `inspect` is asked about the pair, and must name the copy that
is canonical by what is on disk: the source until it is retired, the destination from then on.

Timeouts are patched to fractions of a second: whatever else is to be seen must not need them, so
that they are short only where the wire stalls. What is not done in time with them is run again with
longer ones, since a busy machine may be slower than they are; what hangs is never done.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    DeferredSemaphore,
)
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.endpoints import clientFromString

from blockmig.client import Destination
from blockmig.errors import GaveUp, Unconfirmed
from blockmig.migration.destination import connections
from blockmig.migration.handoff import channel
from blockmig.migration.handoff.message import MESSAGE_SIZE
from blockmig.migration.policy import Patience
from blockmig.migration.records.verdict import examine_until_stable, verdict_of_pair
from blockmig.migration.source import attempt, finisher
from blockmig.migration.source.resume import resume
from tests.support.disks import digest, sparse_image
from tests.support.embedding import receiving
from tests.support.processes import FULL
from tests.support.wires import Break, wires

SIZE = 200_777
MESSAGE, HEADER, REPLY = MESSAGE_SIZE, 28, 16
KEEP, UNLINK = False, True
TRIES = ((6, 1.0), (2, 3.0), (1, 9.0))
"""How many cases at a time, and how many times slower than an idle machine they may be."""

# What passes after the reply to the last change: connection (1 is the export's, 2 the side
# export's), from the sender, the parts of the message.
LAST_PHASE = [
    (1, True, (HEADER,), "FLUSH"),
    (1, False, (REPLY,), "its reply"),
    (2, True, (HEADER, MESSAGE), "copied"),
    (2, False, (REPLY,), "its acknowledgement"),
    (2, True, (HEADER, MESSAGE), "retired"),
    (2, False, (REPLY,), "its acknowledgement"),
    (2, True, (HEADER,), "READ of the state, for its token"),
    (2, False, (REPLY, MESSAGE), "the state"),
    (1, True, (HEADER,), "DISC"),
    (2, True, (HEADER,), "READ of the state"),
    (2, False, (REPLY, MESSAGE), "the state"),
    (2, True, (HEADER,), "DISC of the side export"),
]


@dataclass
class Case:
    """One migration, and how its wire breaks."""

    unlink: bool
    cuts: list[int]
    how: Break
    whole: bool
    often: bool = False


class Late(Exception):
    """Not done in the time that there was."""


@dataclass
class Figures:
    """What came of all cases."""

    cases: Counter[str] = field(default_factory=Counter)
    late: int = 0
    breaks: int = 0
    runs: Counter[int] = field(default_factory=Counter)
    attempts: Counter[int] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)
    slowest: float = 0.0

    def report(self, title: str) -> None:
        """Print them."""
        print(
            f"\n{title}: {sum(self.cases.values())} cases in {time.monotonic() - self.began:.1f} s "
            f"(slowest {self.slowest:.1f} s), {self.breaks} breaks, all complete "
            f"({self.late} late at first)\n"
            f"  by kind: {dict(sorted(self.cases.items()))}\n"
            f"  commands run per migration: {dict(sorted(self.runs.items()))}, "
            f"attempts: {dict(sorted(self.attempts.items()))}\n"
            f"  verdicts: {dict(self.verdicts)}, all right"
        )


class Migration:
    """One case under way, in a directory of its own."""

    def __init__(self, room: Path, case: Case, figures: Figures, slowness: float = 1.0) -> None:
        self.room = room
        self.case = case
        self.figures = figures
        self.slowness = slowness
        self.source = room / "source"
        self.destination = room / "destination"
        self.wrong: list[str] = []
        self.messages: list[list[Any]] = []
        self.passed = 0

    # What is true, and what is said.

    def _retired(self) -> bool:
        if self.case.unlink:
            return not self.source.exists()
        return (self.room / "source.MIGRATED").exists()

    def look(self) -> None:
        """Compare the verdict with the truth, which must not change meanwhile."""
        while True:
            before = self._retired()
            verdict = verdict_of_pair(
                *examine_until_stable([str(self.source), str(self.destination)])[0]
            )
            if before == self._retired():
                break
        expected = self.destination if before else self.source
        self.figures.verdicts[expected.name] += 1
        if verdict.canonical != str(expected) or verdict.state != "canonical":
            self.wrong.append(f"{expected.name} is canonical, but: {verdict}; {self._listing()}")

    def _listing(self) -> list[str]:
        return sorted(os.listdir(self.room))

    # The sender's program, the same each time.

    def _command(self, port: int) -> Deferred[Any]:
        uri = f"nbd://127.0.0.1:{port}/"
        endpoint = clientFromString(reactor, f"tcp:127.0.0.1:{port}")
        patience = 0.7 * self.slowness if self.case.how == Break.STALL else None
        return resume(
            str(self.source),
            Destination(endpoint, uri=uri),
            unlink=self.case.unlink,
            patience=Patience(
                retry=True, give_up_after=patience, retry_policy=lambda failures: 0.01
            ),
        ).run()

    async def run(self) -> None:
        """From the beginning to the end, which both sides must come to."""
        case, began = self.case, time.monotonic()
        image(self.source)
        before = digest(self.source)
        idle = 0.4 * self.slowness if case.how == Break.STALL else 60.0
        runs = 0
        async with receiving(self.destination, SIZE, idle_timeout=idle) as (receiver, port):
            done = receiver.complete()
            done.addErrback(lambda failure: failure.value)
            async with wires(
                port.getHost().port, case.cuts, case.how, case.whole, self.look, case.often
            ) as wire:
                while True:
                    runs += 1
                    if runs == 8:
                        raise Late(f"{case}: not done by seven commands")
                    try:
                        await self._command(wire.port).addTimeout(15 * self.slowness, reactor)
                        break
                    except DeferredTimeout:
                        raise Late(f"{case}: the command has not ended") from None
                    except (GaveUp, Unconfirmed) as error:
                        # With a wire that is stalled for ever there is no other way: whoever
                        # wants no end of waiting stops the command, and runs it again.
                        if case.how != Break.STALL:
                            raise AssertionError(f"gave up: {error}") from None
                        self.look()
                assert not case.cuts or wire.cut, f"{case}: {wire.passed} bytes passed"
                self.figures.breaks += wire.cut
                self.messages, self.passed = wire.messages, wire.passed
                outcome = await done.addTimeout(10 * self.slowness, reactor)
                if isinstance(outcome, CancelledError):
                    raise Late(f"{case}: the receiver has not ended")
                assert not isinstance(outcome, Exception), f"{case}: {outcome}"
        assert not self.wrong, f"{case}: {self.wrong}"
        assert digest(self.destination) == before, f"{case}: not the same"
        left = ["destination", "destination.RECEIVED", "source", "source.MIGRATED"]
        if case.unlink:
            left.remove("source")
        assert self._listing() == left, f"{case}: left {self._listing()}"
        if not case.unlink:
            assert digest(self.source) == before
        self.look()
        assert not self.wrong, f"{case}: {self.wrong}"
        figures = self.figures
        figures.runs[runs] += 1
        figures.attempts[outcome.attempts] += 1
        mode = "unlink" if case.unlink else "keep"
        figures.cases[f"{mode} {case.how.value} {'all' if case.whole else 'one'}"] += 1
        figures.slowest = max(figures.slowest, time.monotonic() - began)


CONTENT = {0: random.Random(1).randbytes(70_000), 150_000: random.Random(2).randbytes(50_777)}


def image(path: Path) -> None:
    """Data, zeroes, data."""
    sparse_image(path, SIZE, CONTENT)


@pytest.fixture
def arena() -> Iterator[Path]:
    """A directory in memory: there are hundreds of migrations, each with dozens of fsyncs."""
    directory = Path(tempfile.mkdtemp(prefix="blockmig-wires-", dir="/dev/shm"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def short_timeouts(stalls: bool, slowness: float = 1.0) -> Iterator[None]:
    """An acknowledged sender's patience is always short, the rest only where a wire stalls."""
    values = [(finisher, "_SEARCH_TIME", 0.3), (finisher, "_FIRST_DELAY", 0.02)]
    if stalls:
        values += [
            (channel, "ANSWER_TIMEOUT", 0.4),
            (finisher, "ANSWER_TIMEOUT", 0.4),
            (attempt, "_CLOSE_TIMEOUT", 0.4),
            (attempt, "_HANDSHAKE_TIMEOUT", 0.4),
            (connections, "_CLOSE_GRACE", 0.4),
        ]
    with pytest.MonkeyPatch.context() as patch:
        for module, name, value in values:
            assert hasattr(module, name)
            patch.setattr(module, name, value * slowness)
        yield


async def run_all(arena: Path, cases: list[Case], figures: Figures, stalls: bool) -> None:
    """Some at a time: those that stall are waiting most of the time."""
    failures: list[str] = []
    late: list[tuple[Case, Late]] = []

    async def run(number: int, case: Case, slowness: float) -> None:
        room = arena / str(number)
        room.mkdir()
        try:
            await Migration(room, case, figures, slowness).run()
        except Late as error:
            late.append((case, error))
        except Exception as error:
            failures.append(f"{case}: {type(error).__name__}: {error}")
        shutil.rmtree(room)

    def start(number: int, case: Case, slowness: float) -> Deferred[None]:
        return Deferred.fromCoroutine(run(number, case, slowness))

    remaining = cases
    for together, slowness in TRIES:
        gate = DeferredSemaphore(together)
        with short_timeouts(stalls, slowness):
            runs = [gate.run(start, *numbered, slowness) for numbered in enumerate(remaining)]
            await DeferredList(runs)
        remaining, errors = [case for case, _ in late], [str(error) for _, error in late]
        figures.late += len(late)
        late.clear()
    failures += errors
    assert not failures, f"{len(failures)} of {len(cases)}:\n" + "\n".join(failures[:20])


async def places(arena: Path, unlink: bool) -> tuple[int, list[int], list[int]]:
    """Where the last phase begins, its boundaries, and those with one byte either side.

    What an uncut migration says in it must be what this module says.
    """
    (arena / "pilot").mkdir()
    pilot = Migration(arena / "pilot", Case(unlink, [], Break.CLOSE, True), Figures())
    await pilot.run()
    expected = [[number, up, sum(parts)] for number, up, parts, _ in LAST_PHASE]
    tail = pilot.messages[-len(LAST_PHASE) :]
    assert tail == expected, tail
    position = begin = pilot.passed - sum(length for _, _, length in expected)
    boundaries = [begin]
    for _, _, parts, _ in LAST_PHASE:
        for part in parts:
            position += part
            boundaries.append(position)
    assert position == pilot.passed
    near = {place + by for place in boundaries for by in (-1, 0, 1)} - {position + 1}
    shutil.rmtree(arena / "pilot")
    return begin, boundaries, sorted(near)


@pytest.mark.parametrize("stalls", [False, True], ids=["broken", "stalled"])
@pytest_twisted.ensureDeferred
async def test_a_wire_that_breaks_in_the_last_phase_leaves_one_canonical_copy(
    arena: Path, stalls: bool
) -> None:
    """Every boundary and the bytes beside it, by every kind of break, of one or all connections."""
    figures, cases = Figures(), []
    kinds = [Break.STALL] if stalls else [Break.CLOSE, Break.RESET, Break.HALF]
    for unlink in (UNLINK, KEEP):
        _, boundaries, near = await places(arena, unlink)
        for place in near if FULL else boundaries:
            cases += [
                Case(unlink, [place], how, whole, often=True)
                for how in kinds
                for whole in (True, False)
            ]
    if not FULL:
        random.Random(5).shuffle(cases)
        del cases[60 if stalls else 120 :]
    await run_all(arena, cases, figures, stalls)
    figures.report(
        f"cut wires, last phase: {len(LAST_PHASE)} messages, {len(boundaries)} boundaries with "
        f"those of headers, {len(near)} places"
    )


@pytest.mark.parametrize("stalls", [False, True], ids=["broken", "stalled"])
@pytest_twisted.ensureDeferred
async def test_a_wire_that_breaks_before_the_last_phase_only_delays_the_migration(
    arena: Path, stalls: bool
) -> None:
    """Also two or three breaks in one migration, wherever the later ones fall."""
    seed = random.randrange(1 << 32)
    print(f"\nseed {seed}")
    generator = random.Random(seed)
    figures, cases = Figures(), []
    kinds = [Break.STALL] if stalls else [Break.CLOSE, Break.RESET, Break.HALF]
    count = (125 if stalls else 375) if FULL else (20 if stalls else 60)
    begins = {unlink: (await places(arena, unlink))[0] for unlink in (UNLINK, KEEP)}
    while len(cases) < count:
        unlink = generator.random() < 0.5
        early = generator.choice([1500, begins[unlink]])
        cuts = [generator.randrange(1, early)]
        if generator.random() < 0.3:
            cuts += [generator.randrange(1, begins[unlink] + 9000)]
        cases.append(Case(unlink, cuts, generator.choice(kinds), generator.random() < 0.5))
    await run_all(arena, cases, figures, stalls)
    figures.report("cut wires, random places before the last phase")
