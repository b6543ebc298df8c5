"""The edits that break nothing by themselves, and the assumptions that the product needs."""

from __future__ import annotations

from tests.proof.model.edits import FLUSH_EARLY, OVER_DATA, Mutation
from tests.proof.model.programs import drop, without

REDUNDANT = [
    # What breaks nothing alone, since something else guards it too, and what that is.
    # The short form tries the kinds of faults that could matter, the long form all.
    Mutation(
        "FLUSH answered before `copied`",
        "step 6 asks for `copied`",
        FLUSH_EARLY,
        kinds=frozenset({"crash", "power"}),
    ),
    Mutation(
        "the created file's directory not fsynced at the start",
        "the fsync of the record's directory does it",
        drop("receiver:look", "look.dirsync"),
        kinds=frozenset({"power"}),
    ),
    Mutation(
        "a claim does not end the sender's own hanging attempt",
        "the end of that connection comes by itself, only later",
        without("claim: ends a hanging attempt of its own"),
        kinds=frozenset({"cut"}),
    ),
]

LIMITS = [
    # What the product cannot do anything about: an assumption lifted, and what breaks then.
    Mutation(
        "assumption 1 lifted: a stranger writes to a receiver started on a finished disk",
        "R5",
        without(),
        faults=3,
        kinds=frozenset({"crash", "forget", "late stranger", "finished stranger"}),
        **OVER_DATA,
    ),
    Mutation(
        "assumptions 1 and 2 lifted: receive is run again after all has ended, a stranger comes",
        "R5",
        without(),
        faults=2,
        kinds=frozenset({"forget", "late stranger", "finished stranger", "rerun"}),
        **OVER_DATA,
    ),
    Mutation(
        "assumption 2 lifted: both commands are run again after all has ended",
        "R6",
        without(),
        faults=2,
        kinds=frozenset({"crash", "forget", "rerun"}),
        **OVER_DATA,
    ),
    Mutation(
        "assumption 3 lifted: a sender acknowledged by an earlier migration into that very file",
        "R5",
        without(),
        kinds=frozenset({"stranger", "earlier finisher"}),
        unlink=False,
        **OVER_DATA,
    ),
    Mutation(
        "assumption 4 lifted: the source is written to between the look and its deletion",
        "R1",
        without(),
        kinds=frozenset({"write source", "between look and act"}),
    ),
    Mutation(
        "assumption 4 lifted: the source is replaced between the look and its deletion",
        "R13",
        without(),
        kinds=frozenset({"swap source", "between look and act"}),
    ),
    Mutation(
        "assumption 4 lifted: the destination is deleted between the look and `complete`",
        "R13",
        without(),
        kinds=frozenset({"swap target", "between look and act"}),
    ),
    Mutation(
        "assumption 4 lifted: the destination is cut between the look and the last block",
        "R2",
        without(),
        kinds=frozenset({"cut target", "between look and act"}),
    ),
    Mutation(
        "assumption 5 lifted: the source is moved while MIGRATING says copied",
        "R1",
        without(),
        faults=2,
        kinds=frozenset({"swap source", "crash", "moved late"}),
    ),
    Mutation(
        "assumption 5 lifted: it is used again, and deleted, while MIGRATING says copied",
        "R3",
        without(),
        faults=2,
        kinds=frozenset({"swap source", "crash", "deleted late"}),
    ),
    Mutation(
        "assumption 6 lifted: the destination is cut once it is said to be copied",
        "R2",
        without(),
        kinds=frozenset({"cut target", "destroyed copy"}),
    ),
    Mutation(
        "assumption 6 lifted: it is deleted then, and its receiver dies",
        "R1",
        without(),
        faults=2,
        kinds=frozenset({"swap target", "crash", "destroyed copy"}),
    ),
]
