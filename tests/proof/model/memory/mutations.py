"""The edits that must each break a rule, and those that something else makes up for."""

from __future__ import annotations

from tests.proof.model.memory.rules import Memory
from tests.proof.model.memory.scenarios import Scenario
from tests.proof.model.programs import Step, both, drop, edited, move, steps_of, without
from tests.proof.model.variants import Variant

SEND, COMPLETE, WRITE = "sender:attempt", "receiver:disc", "receiver:write"
ONE = Scenario("one migration")
CALM = Scenario("one migration", faults=0)
HOME = Scenario("home", unlink=False, faults=0)
NEW_FILE = Scenario("a new file beside the tombstone, with a new id")
THREE = Scenario("three migrations under a supervisor", faults=0)
SECOND = Scenario("another disk to the same place", faults=0)

AGAIN = Scenario("once more", unlink=False, faults=0)
STOPPED = Scenario(
    "once more, and the first command meets a new receiver",
    unlink=False,
    faults=2,
    kinds=frozenset({"crash"}),
)


def forget_early(memory: Memory) -> Memory:
    """A sender that removes the MIGRATED of before once its own MIGRATING is durable."""
    steps = steps_of(memory, SEND)
    at = [step.name for step in steps].index("ask write")
    removal = Step("MIGRATED.unlink", "unlink", "migrated")
    return edited(memory, SEND, [*steps[:at], removal, *steps[at:]])


def tidied_is_done(memory: Memory) -> Memory:
    """A receiver that has removed the INCOMPLETE of a finished migration exits with 0."""
    steps = steps_of(memory, "receiver:tidy")
    return edited(memory, "receiver:tidy", [*steps[:-1], Step("exit", "exit", 0)])


MUTATIONS = [
    # The order at both ends.
    Variant(
        "the tombstone before the deletion is durable",
        "R11",
        move(SEND, "MIGRATED(confirmed).rename", "source.dirsync"),
        CALM,
    ),
    Variant(
        "MIGRATING removed before the tombstone",
        "R11",
        move(SEND, ("MIGRATING.unlink", "MIGRATING.gone.dirsync"), "MIGRATED(confirmed).rename"),
        CALM,
    ),
    Variant(
        "MIGRATING removed before the tombstone is durable",
        "R11",
        move(SEND, "MIGRATING.unlink", "MIGRATED(confirmed).dirsync"),
        CALM,
    ),
    Variant(
        "INCOMPLETE removed before RECEIVED is durable",
        "R11",
        move(COMPLETE, "INCOMPLETE.unlink", "RECEIVED(confirmed).dirsync"),
        CALM,
    ),
    Variant("no RECEIVED", "R11", drop(COMPLETE, "RECEIVED(confirmed).rename"), CALM),
    Variant(
        "`complete` before RECEIVED",
        "R11",
        move(COMPLETE, "complete", "RECEIVED(confirmed).rename"),
        CALM,
    ),
    Variant(
        "`complete` before INCOMPLETE is removed",
        "R11",
        move(COMPLETE, "complete", "INCOMPLETE.unlink"),
        CALM,
    ),
    Variant(
        "a receiver that finds both believes a RECEIVED that may not be durable",
        "R11",
        drop("receiver:look", "look.dirsync"),
        ONE,
    ),
    Variant(
        "a sender that finds both believes a tombstone that may not be durable",
        "R11",
        drop("sender:look", "look.dirsync"),
        ONE,
    ),
    Variant(
        "a receiver that finds both says done, whoever is asked for", "R11", tidied_is_done, ONE
    ),
    Variant(
        "the first byte before INCOMPLETE is durable",
        "R7",
        move(WRITE, "block.first", "INCOMPLETE(copying).dirsync"),
        ONE,
    ),
    Variant(
        "finished records removed before INCOMPLETE is durable",
        "R11",
        move(WRITE, ("RECEIVED.unlink", "MIGRATED.unlink"), "INCOMPLETE(copying).dirsync"),
        NEW_FILE,
    ),
    # When a command is done.
    Variant(
        "done, although nobody has seen the end",
        "R11",
        without("done: only if it is confirmed"),
        ONE,
    ),
    Variant(
        "done, whatever file is there",
        "R11",
        without("done: only if the file is the one"),
        NEW_FILE,
    ),
    Variant(
        "done, wherever it went",
        "R11",
        without("done: only with that destination"),
        Scenario("the same id to another place", faults=0),
    ),
    Variant(
        "done, whatever the id",
        "R11",
        without("done: only with that id"),
        Scenario("a new file beside the tombstone, with a new id", faults=0),
    ),
    Variant(
        "done, although another copy has been begun",
        "R11",
        without("done: not beside an unfinished copy"),
        SECOND,
    ),
    Variant(
        "done, although the disk has gone on",
        "R11",
        without("done: the later of two records counts"),
        Scenario("onward", unlink=False, faults=0),
    ),
    Variant(
        "which record is later is not looked at",
        "R1",
        without("latest: said by `follows`"),
        Scenario("onward", unlink=False, faults=0),
    ),
    Variant(
        "which record is later is not looked at, where one was left",
        "R1",
        both(drop(WRITE, "MIGRATED.unlink"), without("latest: said by `follows`")),
        HOME,
    ),
    Variant("finishing alone, untold", "R11", without("finish: only alone when told"), ONE),
    # What begins anew.
    Variant(
        "a new file is sent without a new id",
        "R11",
        without("new: a finished record stops what is not a new id"),
        Scenario("one migration, and others", faults=2),
    ),
    Variant("an id is used twice", "R11", without("new: an id is used once"), THREE),
    Variant(
        "the ids of before are forgotten",
        "R7",
        without("new: the ids of before go into the new record"),
        THREE,
    ),
    Variant(
        "a retired disk is sent",
        "R1",
        without("new: a retired disk is not sent"),
        Scenario("a new file beside the tombstone, with a new id", unlink=False, faults=0),
    ),
    Variant(
        "finished records stay when a copy begins",
        "R6",
        without("new: what is finished goes when a copy begins"),
        Scenario("home, and there again"),
    ),
    Variant(
        "a retired disk that is sent once more counts as any other",
        "R1",
        without("again: a retired disk stays so until it is retired anew"),
        AGAIN,
    ),
    Variant(
        "the first command begins another migration where the second was stopped",
        "R1",
        without("again: the retired disk is still what MIGRATED says"),
        STOPPED,
    ),
    Variant(
        "MIGRATED removed when the disk is sent once more, before it is retired anew",
        "R1",
        forget_early,
        AGAIN,
    ),
    # What is not to be overwritten.
    Variant(
        "--overwrite covers an unfinished hand-off, and another's claim is let in there",
        "R7",
        without("overwrite: not an unfinished hand-off", "claim: another's `copied` is refused"),
        Scenario("another disk to the same place"),
    ),
    Variant(
        "--overwrite without an id, in a loop, of a file that is new there",
        "R7",
        without("overwrite: not without an id where something was finished"),
        Scenario("a receiver without an id, and a new file", faults=2, kinds=frozenset()),
    ),
    Variant(
        "a receiver with an id takes any sender, in a loop",
        "R11",
        without("claim: another's than the chosen id is refused"),
        Scenario("a receiver that is restarted for ever", faults=0),
    ),
    Variant(
        "a claim with an id that was finished there is let in",
        "R11",
        without("claim: an id that was finished here is refused"),
        Scenario("a third disk with an id that was used"),
    ),
    Variant(
        "a receiver starts on somebody's disk",
        "R7",
        without("start: data without a record is refused"),
        Scenario("a place with somebody's disk", faults=0),
    ),
]

REDUNDANT = [
    Variant(
        "the first byte before finished records are gone: INCOMPLETE decides",
        "",
        move(WRITE, "block.first", "RECEIVED.unlink"),
        Scenario("home"),
    ),
    Variant(
        "--overwrite covers an unfinished hand-off: another's claim is refused there",
        "",
        without("overwrite: not an unfinished hand-off"),
        SECOND,
    ),
    Variant(
        "another's claim is let in on `copied`: a receiver with another id does not start there",
        "",
        without("claim: another's `copied` is refused"),
        SECOND,
    ),
]
