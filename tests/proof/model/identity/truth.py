"""What must be so in every state, of every act, and at the end of every calm run."""

from __future__ import annotations

from collections.abc import Iterator

from tests.proof.model.explorer import Result, result_of
from tests.proof.model.identity.machine import PLACES, Machine
from tests.proof.model.identity.state import (
    CLAIMED,
    COPIED,
    FOREIGN,
    ME,
    RETIRED,
    RIGHT,
    WHOLE,
    Attempt,
    Place,
    State,
)
from tests.proof.model.search import Walk


class Checked(Machine):
    """The machine with its rules."""

    def misdeeds(self, before: State, actor: str, state: State) -> list[str]:
        if actor == "stranger":
            return list(self.wrong_stranger(before.right, state.right))
        if actor == "retire":
            return list(self.wrong_retirement(before))
        if actor == "exit" and not self.may_be_canonical(state):
            return ["R3 the sender said done, and nothing says that it is"]
        return []

    def violations(self, before: State, actor: str, state: State) -> list[str]:
        found = self.misdeeds(before, actor, state)
        copies = self.may_be_canonical(state)
        if state.gone and len(copies) > 1:
            found.append(f"R1 both: {' and '.join(copies)} are canonical by the records")
        if state.gone and not copies:
            found.append("R1 neither: retired, and no copy says that it is whole")
        for place in (state.right, state.other):
            said = place.received == ME or (
                place.record and place.record.owner == ME and place.record.phase == RETIRED
            )
            if said and not state.gone:
                found.append("R1 both: said to be retired, and is not")
            whole = place.record is not None and place.record.phase >= COPIED
            if whole and place.record and place.copy != (place.record.owner, WHOLE):
                found.append("R2 the record says copied, the disk is not")
        if self.case.guarded:
            attempt, record = state.right.attempt, state.right.record
            owners = {attempt and attempt.owner, record and record.owner, state.right.received}
            if owners - {ME, None, ""}:
                found.append("R10 a stranger was let in by a receiver that was given an id")
        return found

    def may_be_canonical(self, state: State) -> list[str]:
        """The copies that anybody takes for the disk, once the source is retired."""
        found = []
        for name, field in PLACES.items():
            place: Place = getattr(state, field)
            record = place.record
            says = record is not None and record.owner == ME and record.phase >= COPIED
            if says or (place.received == ME and place.copy == (ME, WHOLE)):
                found.append(name)
        if state.gone == FOREIGN and state.foreign == WHOLE:
            found.append(FOREIGN)
        return found

    def wrong_retirement(self, state: State) -> Iterator[str]:
        record, to = state.migrating, state.sender.to
        if record is None:
            return
        if to == FOREIGN and self.case.chosen and not self.case.plain:
            yield "R10 an id was chosen, and it is retired for a plain server, unasked"
        if state.begun and to == FOREIGN:
            yield "R10 what began identified is retired for a plain server"
        elif to in PLACES:
            number = getattr(state, PLACES[to]).number
            if record.place != number:
                yield "R10 retired at a place that is not its own"

    def wrong_stranger(self, past: Place, place: Place) -> Iterator[str]:
        if past.attempt is not None and past.attempt.owner == ME != getattr(
            place.attempt, "owner", ""
        ):
            yield "R10 a stranger ended our attempt"
        if ME in past.claims and ME not in place.claims and place.alive:
            yield "R10 a stranger ended our claim"
        record = past.record
        if record is not None and record.owner == ME and record.phase >= COPIED:
            if place.record != record:
                yield "R5 a stranger changed what our record says"
            if place.copy != past.copy:
                yield "R5 a stranger wrote to our copy"

    # -- how calm runs end --

    def over(self, state: State) -> str:
        return ""

    def good_loop(self, state: State) -> str:
        return self.excused(state)

    def good_end(self, state: State) -> str:
        if state.tombstone and state.sender.status in (0, -1):
            place = state.right if state.gone == RIGHT else state.other
            if state.gone == FOREIGN or place.received == ME or place.record:
                return "done"
        return self.excused(state)

    def excused(self, state: State) -> str:
        """Why it is no wonder that this does not come to its end."""
        place, record = state.right, state.migrating
        if place.received and place.received != ME:
            return "" if self.case.guarded else "another's"
        copied = place.record is not None and place.record.phase >= COPIED
        held = copied and place.record is not None and place.record.owner == CLAIMED
        # Once it has covered all of it, any change counts as progress.
        going_on = place.attempt == Attempt(CLAIMED, WHOLE)
        if held or going_on:
            return "" if self.case.guarded else "held by a stranger"
        # It may be whole at another place, which is not at the address any more.
        elsewhere = record is not None and record.place not in (0, place.number)
        return "bound elsewhere" if elsewhere and self.may_be_whole(state) else ""

    def may_be_whole(self, state: State) -> bool:
        record = state.other.record
        begun = record is not None and record.owner == ME
        return begun or state.other.received == ME

    def starts_of(self, state: State) -> Iterator[tuple[State, str]]:
        yield state, "with all going on"

    def rule_of(self, last: State) -> str:
        return "R10"


def explore(machine: Checked) -> Result:
    walk = Walk(machine)
    if walk.broken:
        return result_of(walk, {})
    ends = walk.ends(machine, lambda key: State(*key, 0), machine.starts_of, machine.rule_of)
    return result_of(walk, ends)
