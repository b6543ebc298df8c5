"""What a command does that is started, by what stands at its place.

It is C{done} (exit 0 at once, nothing touched), C{refused} (exit 1), or the name of the program
that it goes on with.  This is all that a command asks of the records, and is asked of every command
in every state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.proof.model.memory.reading import Reading
from tests.proof.model.memory.state import COPIED, COPYING, TOLD, Place, Record


@dataclass(frozen=True)
class Send:
    """C{send}, run at one place, to another.

    C{overwrite}: a human has it sent once more that was retired and kept here, and answers for the
    copy where it went before.  C{after}: the place and the id of what was complete before anybody
    thought of this command.
    """

    name: str
    at: str
    to: str
    id: Any = None
    after: tuple[str, str] | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Receive:
    """C{receive}, run at one place.  `over`: the disks that it is meant to overwrite."""

    name: str
    at: str
    id: Any = None
    overwrite: bool = False
    over: tuple[str, ...] = ()
    after: tuple[str, str] | None = None


DONE, REFUSED = "done", "refused"


class Decisions:
    """The rules by which commands are started."""

    def __init__(self, rules: frozenset[str]) -> None:
        self.rules = rules

    def of(self, command: Send | Receive, place: Place) -> str:
        reading = Reading(place, self.rules)
        if isinstance(command, Send):
            return self.send(command, reading)
        return self.receive(command, reading)

    def used(self, id: Any, *records: Record | None) -> bool:
        """Whether that id was finished there before."""
        if "new: an id is used once" not in self.rules:
            return False
        return any(record is not None and id in (record.id, *record.ids) for record in records)

    # -- send --

    def send(self, command: Send, here: Reading) -> str:
        if here.incomplete is not None and "done: not beside an unfinished copy" in self.rules:
            return REFUSED
        if here.migrating is not None:
            return self.go_on(command, here, here.migrating)
        kind, last = here.latest
        if last is None:
            return REFUSED if here.file is None else "attempt"
        if kind == "migrated":
            return self.beside_migrated(command, here, last)
        # A received disk goes on; a RECEIVED about another file is ignored, but for its ids.
        fresh = command.id is None or not self.used(command.id, last)
        return "attempt" if here.file is not None and fresh else REFUSED

    def same(self, command: Send, record: Record) -> bool:
        """Whether that record is about what this command is about."""
        there = record.to == command.to or "done: only with that destination" not in self.rules
        id = command.id in (None, record.id) or "done: only with that id" not in self.rules
        return there and id

    def go_on(self, command: Send, here: Reading, record: Record) -> str:
        if not self.same(command, record):
            mark = here.sent_again
            if mark is None:
                return REFUSED
            if "again: the retired disk is still what MIGRATED says" in self.rules:
                return self.beside_migrated(command, here, mark)
            # The second migration is given up, and another begun.
            return "attempt" if here.file is not None and record.phase == COPYING else REFUSED
        if here.migrated is not None and here.migrated.migration == record.migration:
            return "tidy" if here.migrated.confirmed else "finish"
        if here.file is None:
            return "finish" if record.phase >= COPIED else REFUSED
        return "attempt" if here.is_its_file(record) else REFUSED

    def beside_migrated(self, command: Send, here: Reading, record: Record) -> str:
        # A kept source is the one that was sent; of one that was deleted there is none.
        its = here.is_its_file(record)
        right = here.file is None or its
        if "done: only if the file is the one" not in self.rules:
            right = True
        if self.same(command, record) and right:
            confirmed = record.confirmed or "done: only if it is confirmed" not in self.rules
            return DONE if confirmed else "again"
        if here.file is None:
            return REFUSED
        if its and not command.overwrite and "new: a retired disk is not sent" in self.rules:
            return REFUSED
        if command.id is None:
            finished = "new: a finished record stops what is not a new id" in self.rules
            return REFUSED if finished else "attempt"
        return REFUSED if self.used(command.id, record, here.received) else "attempt"

    # -- receive --

    def receive(self, command: Receive, here: Reading) -> str:
        copy = here.incomplete
        if here.complete:
            return "tidy"
        if copy is not None and "done: not beside an unfinished copy" in self.rules:
            if command.id is None or command.id == copy.id:
                return "go"
            fresh = not self.used(command.id, copy._replace(id=None))
            free = (
                copy.phase == COPYING or "overwrite: not an unfinished hand-off" not in self.rules
            )
            return "go" if fresh and free else REFUSED
        moving = here.migrating
        guarded = "overwrite: not an unfinished hand-off" in self.rules
        if moving is not None and moving.phase >= COPIED and guarded:
            return REFUSED
        kind, last = here.latest
        if "done: the later of two records counts" not in self.rules and here.received:
            kind, last = "received", here.received
        if last is not None:
            its = here.is_its_file(last) or "done: only if the file is the one" not in self.rules
            id = command.id in (None, last.id) or "done: only with that id" not in self.rules
            if kind == "received" and its and id:
                return DONE
            if not command.overwrite:
                finished = "new: a finished record stops what is not a new id" in self.rules
                return REFUSED if finished or here.file is not None else "go"
            if command.id is None:
                asked = "overwrite: not without an id where something was finished"
                return REFUSED if asked in self.rules else "go"
            return REFUSED if self.used(command.id, here.migrated, here.received) else "go"
        data = here.file is not None and here.file.content != ""
        if (
            data
            and not command.overwrite
            and "start: data without a record is refused" in self.rules
        ):
            return REFUSED
        return "go"

    # -- claims --

    def lets_in(self, command: Receive, place: Place, claim: Record) -> bool:
        """Whether a receiver takes this claim."""
        here = Reading(place, self.rules)
        copy = here.incomplete
        chosen = "claim: another's than the chosen id is refused"
        if command.id is not None and command.id != claim.id and chosen in self.rules:
            return False
        if copy is not None and copy.migration == claim.migration:
            return copy.phase != TOLD
        guarded = "claim: another's `copied` is refused" in self.rules
        if copy is not None and (copy.phase == TOLD or (copy.phase == COPIED and guarded)):
            return False
        finished = "claim: an id that was finished here is refused"
        before = copy._replace(id=None) if copy is not None else None
        spent = self.used(claim.id, here.migrated, here.received, before)
        return not (spent and finished in self.rules)
