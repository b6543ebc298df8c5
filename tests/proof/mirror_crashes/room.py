"""The two directories of a case, the programs that work there, and what must hold there."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from blockmig.control import ControlError, ask
from blockmig.migration.records.files import Kind, Records
from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from tests.proof.launcher.child import Child, wait
from tests.proof.mirror_crashes.plays import LONGEST, PLAYS, SIZE, WRITERS, expect
from tests.proof.volatile import Strike
from tests.support.disks import digest, random_image
from tests.support.mirroring import UNANSWERED, History, Writer, longest


class Room:
    """The two directories of a case, and the programs that work there."""

    parent: ClassVar[str | None] = None

    def __init__(self, play: str, unlink: bool) -> None:
        self.top = Path(tempfile.mkdtemp(dir=self.parent))
        self.unlink = unlink
        for name in ("source", "destination", "aside"):
            (self.top / name).mkdir()
        self.source = random_image(self.top / "source" / "disk", SIZE)
        self.destination = self.top / "destination" / "disk"
        self.history = History(self.source, self.top / "expected")
        self.uri = f"nbd+unix:///?socket={self.top}/receiver"
        self.served = f"nbd+unix:///?socket={self.top}/server"
        self.control = str(self.top / "control")
        self.play = play
        self.wanted = {"uri": self.uri, "unlink": unlink, **PLAYS[play]}
        self.commands = {
            "receiver": [
                "receive", "--file", str(self.destination), "--size", str(SIZE),
                "--listen", f"unix:{self.top}/receiver",
            ],
            "server": [
                "serve", "--file", str(self.source), "--control", self.control,
                "--listen", f"unix:{self.top}/server",
            ],
            "sender": ["send", *(["--unlink"] if unlink else []), str(self.source), self.uri],
        }  # fmt: skip
        self.running: dict[str, Child] = {}
        self.writer: Writer | None = None
        self.begun: bool | None = None
        self._writers = 0
        self._lines: list[str] = []

    def log(self, name: str) -> Path:
        return self.top / f"{name}.log"

    def note(self, line: str) -> None:
        self._lines.append(f"{time.strftime('%H:%M:%S')} {line}")

    def story(self) -> str:
        """What happened, the logs, and the files, for whoever has to understand a failure."""
        parts = list(self._lines)
        for name in self.commands:
            if self.log(name).exists():
                parts += [f"--- {name}:", self.log(name).read_text(errors="replace").rstrip()]
        for place in ("source", "destination"):
            for path in sorted((self.top / place).iterdir()):
                size = path.stat().st_size
                parts.append(f"--- {place}/{path.name}: {size} bytes")
                if path.suffix and size < 4096:
                    parts.append(" ".join(path.read_text(errors="replace").split()))
        return "\n".join(parts)

    # Who works there.

    def start(self, name: str, strike: Strike | None = None, record: Path | None = None) -> Child:
        self.note(f"the {name} is started; to be struck: {strike and strike.point}")
        child = Child(
            self.commands[name], self.log(name), self.top / "aside", strike=strike, record=record
        )
        self.running[name] = child
        if name != "sender":
            self.wait(lambda: not child.alive or "listening" in child.reported)
        return child

    def wait(self, condition: Callable[[], bool], seconds: float = LONGEST) -> bool:
        """Attend to all of them until a condition holds, which may change without them."""
        end = time.monotonic() + seconds
        children = list(self.running.values())
        while not wait(children, condition, 0.02):
            if time.monotonic() >= end:
                return False
            if not any(child.alive for child in children):
                time.sleep(0.005)
        return True

    def ended(self, name: str) -> int:
        """Its exit status, once it has ended."""
        child = self.running[name]
        expect(self.wait(lambda: not child.alive), f"the {name} does not end")
        assert child.status is not None
        self.note(f"the {name} ended with {child.status}")
        return child.status

    def write(self) -> None:
        """Have somebody write to the server."""
        self._writers += 1
        self.writer = Writer(
            [self.served] * 2,
            self.top / f"writer-{self._writers}",
            depth=3,
            **WRITERS[self.play],
        )

    def mirror(self, **others: Any) -> None:
        """Ask for a mirror, and do not wait for the answer.

        @param others: what is wanted in place of the play's.
        """

        def asking() -> None:
            try:
                self.ask("/mirror", {**self.wanted, **others})
            except ControlError as error:
                self.begun = False
                self.note(f"no mirror: {error}")
            else:
                self.begun = True

        self.begun = None
        threading.Thread(target=asking, daemon=True).start()

    def ask(self, resource: str, body: Any) -> Any:
        return ask(self.control, "POST", resource, body, 30.0)

    def written(self) -> None:
        """The writer has lost its server, and reports what it was answered."""
        writer, self.writer = self.writer, None
        if writer is not None:
            requests = writer.wait()
            self.history.add(requests)
            unanswered = sum(request.answered == UNANSWERED for request in requests)
            self.note(f"{len(requests)} requests, {unanswered} of them not answered")
            late = longest(requests)
            expect(late < 10, f"a client waited for {late:.1f} s")

    def goes_on(self) -> None:
        """Expect that the writer is served."""
        assert self.writer is not None
        self.writer.go_on(5)

    def end(self) -> None:
        for child in self.running.values():
            child.kill()
        if self.writer is not None:
            self.writer.kill()

    # What is so.

    def retired(self) -> bool:
        """Whether the source is retired, by the files alone."""
        if self.unlink:
            return not self.source.exists()
        return Records(str(self.source)).read(Kind.MIGRATED) is not None

    def left_to_finish(self) -> bool:
        """Whether, as far as the source's directory shows, the retired migration is unfinished."""
        records = Records(str(self.source))
        migrated = records.read(Kind.MIGRATED)
        confirmed = migrated is not None and migrated.confirmed
        return os.path.lexists(records.name(Kind.MIGRATING)) or not confirmed

    def check_verdicts(self, went_on: bool = False) -> bool:
        """Check that the verdicts are true, all programs being held still.

        @param went_on: clients may have written to the source since the destination recorded that
            its copy is whole, which the destination cannot know.
        @return: whether the source is retired.
        """
        retired = self.retired()
        there = not retired and self.destination.exists()
        whole = there and (went_on or digest(self.source) == digest(self.destination))
        source, destination = examine(str(self.source)), examine(str(self.destination))
        at_source, at_destination = verdict_of(source), verdict_of(destination)
        pair = verdict_of_pair(source, destination)
        for verdict in (at_source, at_destination, pair):
            self.note(f"verdict: {verdict.line} | {verdict.why}")
        if retired:
            known = (CopyState.CANONICAL, CopyState.CONDITIONAL)
            expect(
                at_source.state == CopyState.NOT_CANONICAL,
                f"the source is retired, and called {at_source.line!r}",
            )
        else:
            known = (CopyState.NOT_CANONICAL, *([CopyState.CONDITIONAL] if whole else []))
            expect(
                at_source.state == CopyState.CANONICAL,
                f"the source is not retired, and called {at_source.line!r}",
            )
        nothing = not (retired or self.destination.exists() or destination.records)
        expect(
            at_destination.state in known or nothing,
            f"the source is {'' if retired else 'not '}retired, the destination called "
            f"{at_destination.line!r}",
        )
        canonical = self.destination if retired else self.source
        expect(
            (pair.state == CopyState.CANONICAL and pair.canonical == str(canonical))
            or (destination.empty and pair.state == CopyState.UNKNOWN),
            f"{canonical} is canonical, and the two are called {pair.line!r}",
        )
        return retired

    def released(self) -> bool:
        """Whether clients were held for too long, and went on: their copy may have been whole."""
        log = self.log("server").read_text(errors="replace")
        return "clients are released, and the mirror goes on" in log

    def look(self) -> bool:
        """Hold all still, and check the verdicts; whether the source is retired."""
        for child in self.running.values():
            child.stop()
        try:
            return self.check_verdicts(self.running["server"].alive or self.released())
        finally:
            for child in self.running.values():
                child.go_on()

    def check_end(self) -> None:
        """Check that it is complete, and that nothing else is there."""
        self.history.check(self.destination)
        expect(self.check_verdicts(), "the source is not retired")
        found = {place: sorted(os.listdir(self.top / place)) for place in ("source", "destination")}
        source = ["disk.MIGRATED"] if self.unlink else ["disk", "disk.MIGRATED"]
        there = ["disk", "disk.RECEIVED"]
        expect(found == {"source": source, "destination": there}, f"there are {found}")
        for name in self.commands:
            text = self.log(name).read_text(errors="replace") if self.log(name).exists() else ""
            for sign in ("Traceback", "bug of blockmig", "Unhandled"):
                expect(sign not in text, f"{sign!r} is in the {name}'s log")
