"""The sender's steps as data, the rules of both ends, and the cases that are explored."""

from __future__ import annotations

from dataclasses import dataclass

from tests.proof.model.programs import Programs, Step

RULES = {
    "plain: not what was claimed, by its record",
    "plain: not what was claimed, in this process",
    "plain: not with a chosen id, unless told",
    "stop: what was acknowledged is kept",
    "place: only its own, by its record",
    "place: only its own, in this process",
    "place: it is bound only when it may be whole",
    "id: no foreign changes",
    "id: no other claims",
    "secret: no claim without a proof",
    "claim: it costs no record",
    "claim: others stay",
    "claim: another's identified `copied` is kept",
    "claim: an unidentified `copied` yields",
    "attempt: a claimed one replaces an unclaimed one",
    "attempt: a claimed one is replaced by its own only",
    "attempt: without progress it ends",
    "change: another's is refused while an attempt goes on",
    "change: an identified `copied` is kept",
    "change: refused once retired",
    "retired: only with the id",
    "disc: only with the id",
}


@dataclass(frozen=True)
class Case:
    """What the two commands were told, and what strangers know."""

    name: str
    chosen: bool = False
    """Both ends were given one id."""
    plain: bool = False
    known: bool = False
    """Strangers know the id."""
    secret: bool = False

    @property
    def guarded(self) -> bool:
        """Whether no stranger is let in."""
        return self.chosen and (self.secret or not self.known)


@dataclass(frozen=True)
class Identity(Programs):
    """The programs, and the case."""

    case: Case


def build(case: Case) -> Identity:
    finish = [
        Step("announce", "announce"),
        Step("MIGRATING(told)", "record", "told"),
        Step("disc", "disc"),
        Step("MIGRATED", "tombstone"),
        Step("exit", "exit"),
    ]
    sender = {
        "connect": [Step("connect", "connect")],
        "attempt": [
            Step("claim", "claim"),
            Step("MIGRATING(copying)", "record", "copying"),
            Step("write", "write"),
            Step("MIGRATING(place)", "record", "place"),
            Step("rest", "rest"),
            Step("flush", "flush"),
            Step("MIGRATING(copied)", "record", "copied"),
            Step("retire", "retire"),
            *finish,
        ],
        "finish": finish,
        "plain": [
            Step("MIGRATING(copying)", "record", "copying"),
            Step("write", "write"),
            Step("rest", "rest"),
            Step("flush", "flush"),
            Step("MIGRATING(copied)", "record", "copied"),
            Step("retire", "retire"),
            Step("MIGRATED", "tombstone"),
            Step("exit", "exit"),
        ],
        "alone": [Step("MIGRATED", "tombstone"), Step("exit", "exit")],
    }
    return Identity(sender, {}, frozenset(RULES), case)
