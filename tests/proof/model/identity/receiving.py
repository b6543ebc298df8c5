"""What a receiver lets in, of ours and of strangers: each answer is the new place, or None."""

from __future__ import annotations

from tests.proof.model.identity.rules import Identity
from tests.proof.model.identity.state import (
    BARE,
    CLAIMED,
    COPIED,
    COPYING,
    HALF,
    ME,
    RETIRED,
    WHOLE,
    Attempt,
    Place,
    Record,
)


class Receiving:
    """The rules of a receiver."""

    def __init__(self, programs: Identity) -> None:
        self.programs = programs
        self.case = programs.case

    def rule(self, name: str) -> bool:
        return name in self.programs.rules

    def knows(self, who: str) -> bool:
        """Whether claims of them are let in, by id and secret."""
        if who == ME or not self.case.chosen:
            return True
        if self.case.secret and self.rule("secret: no claim without a proof"):
            return False
        return self.case.known or not self.rule("id: no other claims")

    def claim(self, place: Place, who: str) -> Place | None:
        record = place.record
        if not self.knows(who) or (record is not None and record.phase == RETIRED):
            return None
        if record is not None and record.phase == COPIED:
            own = record.owner == who
            kept = self.rule("claim: another's identified `copied` is kept")
            if not own and record.owner != BARE and kept:
                return None
            if own:  # at once: by this it is taken back
                place = place._replace(record=record._replace(phase=COPYING), attempt=None)
        if not self.rule("claim: it costs no record"):
            place = self.begun(place, who)
        claims = place.claims if self.rule("claim: others stay") else frozenset[str]()
        if not self.rule("claim: others stay") and place.attempt and place.attempt.owner != who:
            place = place._replace(attempt=None)
        return place._replace(claims=claims | {who})

    def begun(self, place: Place, who: str) -> Place:
        record = Record(COPYING, who, place=place.number)
        return place._replace(record=record, attempt=None)

    def write(self, place: Place, who: str) -> Place | None:
        """The first change of a connection, or one after `copied`."""
        record, attempt = place.record, place.attempt
        retired = record is not None and record.phase == RETIRED
        if retired and self.rule("change: refused once retired"):
            return None
        if who == BARE and self.case.chosen and self.rule("id: no foreign changes"):
            return None
        if who != BARE and who not in place.claims:
            return None
        if attempt is not None and attempt.owner != who and not self.replaces(attempt, who):
            return None
        whole = record is not None and record.phase == COPIED and record.owner != who
        if whole and record is not None:
            if record.owner == BARE and who != BARE:
                if not self.rule("claim: an unidentified `copied` yields"):
                    return None
            elif record.owner != BARE and self.rule("change: an identified `copied` is kept"):
                return None
        place = self.begun(place, who)
        return place._replace(attempt=Attempt(who), copy=(who, HALF))

    def replaces(self, attempt: Attempt, who: str) -> bool:
        if attempt.owner == BARE:
            return who != BARE and self.rule("attempt: a claimed one replaces an unclaimed one")
        if who == BARE:
            return not self.rule("change: another's is refused while an attempt goes on")
        return not self.rule("attempt: a claimed one is replaced by its own only")

    def rest(self, place: Place, who: str) -> Place | None:
        if place.attempt is None or place.attempt.owner != who:
            return None
        return place._replace(attempt=Attempt(who, WHOLE), copy=(who, WHOLE))

    def flush(self, place: Place, who: str) -> Place | None:
        if place.attempt is None or place.attempt.owner != who or place.record is None:
            return None
        if place.attempt.amount != WHOLE:
            return place
        return place._replace(record=place.record._replace(phase=max(COPIED, place.record.phase)))

    def announce(self, place: Place, who: str) -> Place | None:
        record = place.record
        if record is None or record.phase < COPIED:
            return None
        known = record.owner == who != BARE  # a foreign migration has no id to be announced
        if not known and self.rule("retired: only with the id"):
            return None
        return place._replace(record=record._replace(phase=RETIRED))

    def disc(self, place: Place, who: str) -> Place | None:
        """Complete, or None: then it is a drop."""
        record, attempt = place.record, place.attempt
        if record is None or record.phase < COPIED:
            return None
        mine = attempt is not None and attempt.owner == who and attempt.amount == WHOLE
        known = record.phase == RETIRED and record.owner == who != BARE
        if not self.rule("disc: only with the id"):
            known = record.phase == RETIRED
        # An identified migration is complete once its source is retired, and not before.
        if not (known or (mine and record.owner == who == BARE)):
            return None
        return place._replace(
            record=None, received=record.owner, alive=False, claims=frozenset(), attempt=None
        )

    def drop(self, place: Place, who: str) -> Place:
        attempt = place.attempt if place.attempt and place.attempt.owner != who else None
        return place._replace(attempt=attempt, claims=place.claims - {who})


STRANGERS = (CLAIMED, BARE)
