"""What must be so after each act."""

from __future__ import annotations

import signal
from pathlib import Path

from blockmig.migration.records.accept import accept
from blockmig.migration.records.files import Kind, Phase
from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from tests.proof.exchanged.acts import BLIND, DESTROYS, NAMES
from tests.proof.exchanged.third_party import ThirdParty, digest_of, foreign_digest, record_of
from tests.proof.matrix.plays import SIDES
from tests.proof.matrix.room import Room, right_digest
from tests.proof.volatile import DIED


class Findings:
    """What is wrong, by its kind."""

    def __init__(self, room: Room, party: ThirdParty) -> None:
        self.room = room
        self.party = party
        self.wrong: dict[str, str] = {}

    def add(self, kind: str, what: str) -> None:
        self.wrong.setdefault(kind, what)

    def _copies(self) -> dict[Path, str]:
        room = self.room
        return {
            path: digest_of(path)
            for directory in (room.source.parent, room.destination.parent)
            for path in sorted(directory.iterdir())
            if path.stat().st_size > 4096
        }

    def retired(self) -> bool:
        """Whether the source was retired, by its own sender."""
        if self.party.retired:
            return True
        if self.room.play.unlink and self.party.took_the_name:
            return False
        return self.room.retired()

    def check_bytes(self) -> None:
        """Whether all that was there is still there."""
        party, copies = self.party, set(self._copies().values())
        if party.needed not in copies:
            self.add("lost", "no file has all bytes of the disk")
        if party.case.act == "replace" and foreign_digest() not in copies:
            self.add("foreign", f"the file that was put in the {party.case.place}'s place is gone")

    def check_verdicts(self, at_end: bool = True) -> None:
        """Whether inspect calls canonical only what is canonical.

        @param at_end: the programs have had their time to see what was done.
        """
        room, party = self.room, self.party
        source, destination = examine(str(room.source)), examine(str(room.destination))
        pair = verdict_of_pair(source, destination)
        incomplete = destination.record(Kind.INCOMPLETE)
        for name, verdict in (
            ("source", verdict_of(source)),
            ("destination", verdict_of(destination)),
            ("pair", pair),
        ):
            room.note(f"verdict on the {name}: {verdict.line} | {verdict.why}")
            if verdict.state == CopyState.NOT_CANONICAL and party.took_the_name and at_end:
                self._check_denial(name, party.case.act, verdict.why)
            if verdict.state != CopyState.CANONICAL:
                continue
            if verdict.canonical == str(room.destination):
                # Who had no record there then can have none now.
                knew = party.recorded["destination"] or party.case.place == "source"
                if (
                    digest_of(room.destination) not in (right_digest(), *self._acceptable())
                    and knew
                ):
                    self.add("verdict", f"the {name} is called {verdict.line!r}: {verdict.why}")
            elif party.case.act == "replace" and party.case.place == "source":
                # Without a record there it is nobody's, once the copy is known to be canonical.
                unfinished = incomplete is not None and incomplete.phase == Phase.COPIED
                if party.recorded["source"] and unfinished and not incomplete.retired:
                    self.add("verdict", f"another file has the source's name: {verdict.line!r}")
            elif self.retired():
                self.add("verdict", f"the source is retired, and the {name} {verdict.line!r}")

    def _check_denial(self, name: str, act: str, why: str) -> None:
        """The source has lost its name, and one of the two is called not canonical.

        What was moved away must not be taken for what we have deleted; and where it was deleted,
        what may be the only copy must not be taken back.
        """
        if name == "source" and act == "rename" and self.room.play.unlink:
            self.add("deleted", f"the source was moved away, and it is said: {why}")
        if name == "destination" and act in DESTROYS and self.party.copied:
            self.add("deleted", f"the source was deleted, and of its copy is said: {why}")

    def check_statuses(self) -> None:
        """Whether the programs that have ended may have ended with these statuses."""
        room, party = self.room, self.party
        sender, receiver = (
            child.status if child is not None else None
            for child in (room.running["sender"], room.running["receiver"])
        )
        room.note(f"the sender ended with {sender}, the receiver with {receiver}")
        there = digest_of(room.destination)
        if receiver == 0 and there not in self._acceptable():
            self.add("zero", "the receiver ended with 0, and its disk's name leads to another")
        if sender == 0 and not (self.retired() or party.took_the_name):
            self.add("status", "the sender ended with 0, and the source is not retired")
        if sender in (1, 3, 4) and self.retired() and not party.retired:
            self.add("status", f"the sender ended with {sender}, and the source is retired")
        copied = record_of(room, "receiver", Kind.INCOMPLETE)
        if (
            receiver == 4
            and self.retired()
            and there == party.needed
            and copied is not None
            and copied.phase == Phase.COPIED
        ):
            self.add("status", "the receiver ended with 4, and has the only copy")
        for side, status in (("sender", sender), ("receiver", receiver)):
            if status not in (None, 0, 1, 3, 4, 5, -signal.SIGKILL, DIED):
                self.add("status", f"the {side} ended with {status}")
        ctime = party.case.act == "touch" or not party.did
        if ctime and not party.case.dies and (sender, receiver) != (0, 0):
            self.add("touched", f"nothing was changed, but they ended with {sender}, {receiver}")
        if receiver == 3 and party.case.place == "destination" and party.case.act in NAMES:
            self._check_rescue()

    def _acceptable(self) -> tuple[str, ...]:
        """The digests that a complete destination may have."""
        party = self.party
        # By the time of another run the other file is the disk.
        another = party.case.act == "replace" and party.case.place == "source"
        return (party.needed, *([foreign_digest()] if another and self.room.rerun else []))

    def _check_rescue(self) -> None:
        """A copy that was saved under another name, and is the only one, must be recognised."""
        room = self.room
        for path, found in self._copies().items():
            if (
                not self.retired()
                or found != self.party.needed
                or path.parent == room.source.parent
            ):
                continue
            verdict = verdict_of(examine(str(path)))
            room.note(f"verdict on {path.name}: {verdict.line} | {verdict.why}")
            if verdict.state not in (CopyState.CANONICAL, CopyState.CONDITIONAL):
                self.add("rescue", f"what was saved as {path.name} is called {verdict.line!r}")
            else:
                accept(str(path), "the matrix")
                if verdict_of(examine(str(path))).state != CopyState.CANONICAL:
                    self.add("rescue", f"what was saved as {path.name} cannot be accepted")

    def check_logs(self) -> None:
        """No log may show a bug."""
        for side in SIDES:
            log = self.room.log(side)
            text = log.read_text(errors="replace") if log.exists() else ""
            for sign in ("Traceback", "bug of blockmig", "Unhandled"):
                if sign in text:
                    self.add("log", f"{sign!r} is in the {side}'s log")

    def known(self, kind: str) -> bool:
        """Whether no program could have prevented this."""
        case = self.party.case
        saved = case.blind == "look -> copied" and case.act in NAMES
        if case.blind and kind in BLIND[case.blind].wrong and not saved:
            return True
        if kind == "deleted" and case.act == "rename":
            return self.party.may_delete and case.side == "sender" and case.dies is not None
        if kind in ("zero", "verdict") and case.place == "destination":
            return self.party.complete  # it was, and is none of ours any more
        return kind == "lost" and self.party.destroyed_it()
