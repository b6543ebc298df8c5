"""The edits that must each break a rule."""

from __future__ import annotations

from tests.proof.model.edits import (
    COMPLETE,
    CRASHES,
    CUTS,
    FLUSH_EARLY,
    FOREIGN_SENDER,
    FORGOTTEN_THERE,
    KEEP,
    LATE,
    LEAVE,
    LOOKS,
    ON_DEVICE,
    OVER_DATA,
    PLAIN,
    REMOVE,
    SEND,
    SWAP,
    SWAP_KEPT,
    UNLINK,
    WRITE,
    Mutation,
    calls,
)
from tests.proof.model.programs import both, drop, move, without

FORGETS = "stop: an acknowledged id is kept"
"""Without it a sender that is stopped forgets which migration it was, where no copy is whole."""
RECORDED = "claim: in memory until the first change"

MUTATIONS = [
    # The commit point and what goes before it.
    Mutation("unlink before FLUSH", "R1", move(SEND, UNLINK, "M.flush")),
    Mutation("unlink before FLUSH, plain peer", "R1", move(SEND, UNLINK, "M.flush"), **PLAIN),
    Mutation("MIGRATED before FLUSH", "R1", move(SEND, calls("MIGRATED"), "M.flush"), **KEEP),
    Mutation("no FLUSH, plain peer", "R1", drop(SEND, "M.flush"), **PLAIN),
    Mutation(
        "FLUSH answered before fdatasync, plain peer",
        "R1",
        move("receiver:flush", "reply", "disk.fdatasync"),
        **PLAIN,
    ),
    Mutation("DISC before unlink", "R1", move(SEND, LEAVE, "source.unlink")),
    Mutation("DISC before unlink, plain peer", "R1", move(SEND, LEAVE, "source.unlink"), **PLAIN),
    Mutation("`retired` announced before unlink", "R1", move(SEND, "H.retired", "source.unlink")),
    Mutation(
        "`retired` announced before fsync of the directory",
        "R1",
        move(SEND, "H.retired", "source.dirsync"),
    ),
    Mutation("no fsync of the directory after unlink", "R1", drop(SEND, "source.dirsync")),
    Mutation(
        "no fsync of the directory after MIGRATED", "R1", drop(SEND, "MIGRATED.dirsync"), **KEEP
    ),
    Mutation(
        "a sender started again believes what may not be durable",
        "R1",
        drop("sender:look", "look.dirsync"),
    ),
    Mutation(
        "finish by the record, the source not looked at",
        "R1",
        without("finish: the source must be gone"),
    ),
    Mutation(
        "plain peer: late writes of the connection before",
        "R1",
        without("plain: an older connection is dead before the next"),
        **PLAIN,
    ),
    # The records of the destination.
    Mutation(
        "`copied` record before fdatasync",
        "R2",
        move("receiver:flush-whole", calls("INCOMPLETE(copied)"), "disk.fdatasync"),
    ),
    Mutation(
        "first byte before fsync of the record's directory",
        "R2",
        move("receiver:write-first", ("file.size", "block.write"), "INCOMPLETE(copying).dirsync"),
        **FOREIGN_SENDER,
    ),
    Mutation(
        "a change leaves `copied` standing",
        "R2",
        without("change: copied falls back first"),
        **FOREIGN_SENDER,
    ),
    Mutation(
        "the first change of an attempt finds its record, and does not begin it anew",
        "R2",
        without("change: the first of an attempt begins it anew"),
        kinds=frozenset({"crash"}),
    ),
    Mutation(
        "a new attempt leaves `copied` standing",
        "R2",
        without("change: copied falls back first", "claim: its own `copied` falls back"),
    ),
    # Completion.
    Mutation(
        "INCOMPLETE removed before fdatasync",
        "R3",
        move(
            "receiver:disc-complete",
            ("INCOMPLETE.unlink", "INCOMPLETE.gone.dirsync"),
            "disk.fdatasync",
        ),
        **FOREIGN_SENDER,
    ),
    Mutation(
        "no fsync of the directory before exit 0",
        "R3",
        drop("receiver:disc-complete", "INCOMPLETE.gone.dirsync"),
    ),
    # A receiver that was started anew on the finished disk.
    Mutation(
        "an acknowledged sender concludes alone where it reads that there is no record",
        "R6",
        without("finish: an acknowledged sender announces it where no record is"),
        **FORGOTTEN_THERE,
        **OVER_DATA,
    ),
    Mutation(
        "a receiver started anew does not believe the acknowledged sender",
        "R6",
        drop("sender:anew", "H.retired"),
        **FORGOTTEN_THERE,
        **OVER_DATA,
    ),
    Mutation(
        "a fresh receiver accepts `retired` from a sender that was not acknowledged",
        "R5",
        without("anew: only from an acknowledged sender"),
        **ON_DEVICE,
    ),
    Mutation(
        "the same on a blank disk",
        "R5",
        without("anew: only from an acknowledged sender", "anew: not on a blank disk"),
    ),
    Mutation(
        "a fresh receiver of a blank disk believes an acknowledged sender",
        "R5",
        without("anew: not on a blank disk"),
    ),
    # Attempts.
    Mutation("coverage kept after a drop", "R4", without("drop: coverage is forgotten")),
    Mutation(
        "MIGRATING(copying) only after the data",
        "R4",
        move(SEND, calls("MIGRATING(copying)"), "H.copied"),
        **CRASHES,
    ),
    Mutation(
        "no claim before the first byte", "R4", drop(SEND, "H.copying"), kinds=frozenset({"crash"})
    ),
    Mutation(
        "a stopped sender forgets its id after FLUSH",
        "R4",
        without(FORGETS, "stop: the id is kept from FLUSH on"),
        kinds=frozenset({"stop"}),
    ),
    Mutation(
        "a stopped sender forgets the id that it found, unclaimed",
        "R4",
        without(
            FORGETS,
            "stop: the id that was found is kept until it is claimed",
        ),
        faults=2,
        kinds=frozenset({"crash", "stop"}),
    ),
    Mutation(
        "a claim leaves its own `copied` standing: it is never taken back",
        "R4",
        without("claim: its own `copied` falls back", FORGETS),
        kinds=frozenset({"stop"}),
    ),
    Mutation(
        # An attempt goes on only with a receiver that lives; one who takes back ends there.
        "the claim acknowledged before its record, by which `copied` is taken back",
        "R4",
        both(
            move("receiver:claim", ("claim", "reply"), "INCOMPLETE(copying).write"),
            without(FORGETS),
        ),
        kinds=frozenset({"stop"}),
    ),
    # Strangers.
    Mutation("a stray DISC completes", "R5", without("disc: only when covered")),
    Mutation("finishing needs no id", "R5", without("disc: only with the id")),
    Mutation(
        "a change is let in after `retired`", "R5", without("change: refused after retired"), **LATE
    ),
    Mutation(
        "another's change is let in on `copied`",
        "R5",
        without("change: refused on an identified copied"),
        **LATE,
    ),
    Mutation(
        "another's claim is let in on `copied`, and recorded",
        "R5",
        without(RECORDED, "claim: refused on another's copied"),
        **LATE,
    ),
    Mutation(
        "a claim is let in after `retired`, and recorded",
        "R5",
        without(RECORDED, "claim: refused once retired"),
        **LATE,
    ),
    Mutation(
        "another's change is let in during an attempt",
        "R5",
        without("change: refused while another's attempt goes on"),
    ),
    Mutation(
        "another's claim is let in during an attempt, and recorded",
        "R5",
        without(RECORDED, "claim: refused while an attempt goes on"),
    ),
    # Finishing.
    Mutation("DISC before `retired` is announced", "R6", move(SEND, LEAVE, "H.retired"), **CRASHES),
    Mutation(
        "DISC before MIGRATING(told)",
        "R6",
        move(SEND, LEAVE, "MIGRATING(told).write"),
        **CRASHES,
    ),
    Mutation("MIGRATING removed before DISC", "R11", move(SEND, REMOVE, "M.disc"), **CRASHES),
    Mutation(
        "MIGRATING removed before `complete` is read",
        "R11",
        move(SEND, REMOVE, "H.complete"),
        **CRASHES,
    ),
    # What is finished is remembered.
    Mutation(
        "the tombstone before the deletion",
        "R11",
        move(SEND, calls("MIGRATED(confirmed)"), "source.unlink"),
    ),
    Mutation(
        "the tombstone before the deletion is durable",
        "R11",
        move(SEND, calls("MIGRATED(confirmed)")[:3], "source.dirsync"),
    ),
    Mutation(
        "MIGRATING removed before the tombstone",
        "R11",
        move(SEND, REMOVE, "MIGRATED(confirmed).write"),
    ),
    Mutation(
        "MIGRATING removed before the tombstone is durable",
        "R11",
        move(SEND, "MIGRATING.unlink", "MIGRATED(confirmed).dirsync"),
    ),
    Mutation("no tombstone", "R11", drop(SEND, *calls("MIGRATED(confirmed)"))),
    Mutation("the tombstone renamed without fsync", "R7", drop(SEND, "MIGRATED(confirmed).fsync")),
    Mutation(
        "the tombstone says that the end was seen before it was",
        "R11",
        both(
            move(SEND, calls("MIGRATED(confirmed)"), "M.disc"),
            move(SEND, REMOVE, "M.disc"),
        ),
    ),
    Mutation(
        "a sender that has finished alone says done when it is run again",
        "R11",
        without("done: only if the end was seen"),
        **CUTS,
    ),
    Mutation(
        "INCOMPLETE removed before RECEIVED",
        "R11",
        move(COMPLETE, ("INCOMPLETE.unlink", "INCOMPLETE.gone.dirsync"), "RECEIVED.write"),
    ),
    Mutation(
        "INCOMPLETE removed before RECEIVED is durable",
        "R11",
        move(COMPLETE, "INCOMPLETE.unlink", "RECEIVED.dirsync"),
    ),
    Mutation("RECEIVED renamed without fsync", "R11", drop(COMPLETE, "RECEIVED.fsync")),
    Mutation(
        "RECEIVED before fdatasync",
        "R3",
        move(COMPLETE, calls("RECEIVED"), "disk.fdatasync"),
        **FOREIGN_SENDER,
    ),
    Mutation(
        "`complete` answered before RECEIVED",
        "R3",
        move(COMPLETE, "complete", "RECEIVED.write"),
    ),
    Mutation(
        "`complete` answered before INCOMPLETE is removed",
        "R3",
        move(COMPLETE, "complete", "INCOMPLETE.unlink"),
    ),
    Mutation(
        "a receiver that finds both removes INCOMPLETE before RECEIVED is durable",
        "R11",
        drop("receiver:tidy", "tidy.dirsync"),
        faults=2,
        kinds=frozenset({"crash", "power"}),
    ),
    Mutation(
        "a receiver started again does not look for RECEIVED",
        "R6",
        without("start: what is received is done"),
        kinds=frozenset({"crash"}),
    ),
    Mutation(
        "retired without asking for `copied`",
        "R7",
        drop(SEND, "H.copied"),
        faults=2,
        kinds=frozenset({"cut", "stranger"}),
    ),
    Mutation(
        "a receiver started again believes what may not be durable",
        "R3",
        drop("receiver:look", "look.dirsync"),
        faults=2,
        kinds=frozenset({"crash"}),
    ),
    Mutation(
        "no fsync of the directory after MIGRATING's removal",
        "R6",
        drop(SEND, "MIGRATING.gone.dirsync"),
        kinds=frozenset({"power"}),
    ),
    # Verdicts.
    Mutation(
        "MIGRATING(copied) after unlink", "R7", move(SEND, calls("MIGRATING(copied)"), "H.retired")
    ),
    Mutation(
        "unlink before fsync of MIGRATING(copied)'s directory",
        "R7",
        move(SEND, "source.unlink", "MIGRATING(copied).dirsync"),
    ),
    Mutation("MIGRATING renamed without fsync", "R7", drop(SEND, "MIGRATING(copied).fsync")),
    Mutation("MIGRATED renamed without fsync", "R7", drop(SEND, "MIGRATED.fsync"), **KEEP),
    Mutation(
        "INCOMPLETE(copying) renamed without fsync",
        "R7",
        drop("receiver:write-first", "INCOMPLETE(copying).fsync"),
    ),
    Mutation(
        "INCOMPLETE(copied) renamed without fsync",
        "R7",
        drop("receiver:flush-whole", "INCOMPLETE(copied).fsync"),
    ),
    Mutation(
        "no fsync of the directory after INCOMPLETE(copied)",
        "R7",
        drop("receiver:flush-whole", "INCOMPLETE(copied).dirsync"),
    ),
    Mutation(
        "`retired` acknowledged before it is durable",
        "R7",
        move("receiver:retired", "reply", "INCOMPLETE(retired).dirsync"),
    ),
    Mutation(
        "MIGRATING(told) before it was acknowledged",
        "R7",
        move(SEND, calls("MIGRATING(told)"), "H.retired"),
    ),
    Mutation(
        "sender leaves unacknowledged",
        "R7",
        without("leave: only when acknowledged"),
    ),
    Mutation(
        "file sized before the record",
        "R7",
        move("receiver:write-first", "file.size", "INCOMPLETE(copying).write"),
    ),
    Mutation(
        "a late claim of an earlier connection is let in",
        "R7",
        without("claim: ends its sender's older side connections"),
        **CUTS,
    ),
    Mutation(
        "FLUSH answered before `copied`, and `copied` not asked for",
        "R7",
        both(FLUSH_EARLY, drop(SEND, "H.copied")),
    ),
    # Going on.
    Mutation(
        "a sender stopped after retiring gives up", "R8", without("stop: only before retiring")
    ),
    # The same file to the end: the source.
    Mutation("the source is not looked at", "R13", drop(SEND, *LOOKS), **SWAP),
    Mutation("the source, which is kept, is not looked at", "R13", drop(SEND, *LOOKS), **SWAP_KEPT),
    Mutation("the source is not looked at, plain peer", "R13", drop(SEND, *LOOKS), **SWAP, **PLAIN),
    Mutation("the source is not looked at, and written to", "R1", drop(SEND, *LOOKS), **WRITE),
    Mutation(
        "the source is not looked at, and written to, plain peer",
        "R1",
        drop(SEND, *LOOKS),
        **WRITE,
        **PLAIN,
    ),
    Mutation("no look just before retiring", "R13", drop(SEND, "source.look"), **SWAP),
    Mutation("no look just before MIGRATED", "R13", drop(SEND, "source.look"), **SWAP_KEPT),
    Mutation(
        "no look before MIGRATING(copied)",
        "R1",
        drop(SEND, "source.look first"),
        faults=2,
        kinds=frozenset({"swap source", "crash"}),
    ),
    Mutation(
        "the look comes before MIGRATING(copied) is durable",
        "R13",
        move(SEND, "source.look", "MIGRATING(copied).dirsync"),
        **SWAP,
    ),
    Mutation(
        "the source's name is not looked at", "R13", without("look: the source's name"), **SWAP
    ),
    Mutation(
        "the name of a source that is kept is not looked at",
        "R13",
        without("look: the source's name"),
        **SWAP_KEPT,
    ),
    Mutation(
        "the source's mtime and size are not looked at",
        "R1",
        without("look: the source's mtime and size"),
        **WRITE,
    ),
    Mutation("its ctime is not looked at", "R1", without("look: the source's ctime"), **WRITE),
    Mutation(
        "no fsync before the scan, so that mapped writes do not show",
        "R1",
        drop(SEND, "source.fsync"),
        **WRITE,
    ),
    # A source that somebody else has deleted.
    Mutation(
        "taken back although the source is gone, by one that is stopped",
        "R13",
        without("back: not once the last name is gone"),
        faults=2,
        kinds=frozenset({"swap source", "stop"}),
    ),
    Mutation(
        "taken back although the source is gone, by the next attempt",
        "R13",
        without("claim: not once the last name is gone"),
        faults=2,
        kinds=frozenset({"swap source", "cut"}),
    ),
    Mutation(
        "another file in the place of the source is sent by its record",
        "R13",
        without(
            "begin: another file than the record's is refused",
            "claim: not once the last name is gone",  # that other file has a name
        ),
        faults=2,
        kinds=frozenset({"swap source", "crash"}),
    ),
    Mutation(
        "inspect takes another file for the record's",
        "R7",
        without("inspect: another file than the record's is recognised"),
        **SWAP,
    ),
    # The same file to the end: the destination.
    Mutation(
        "no look before INCOMPLETE(copied)",
        "R2",
        drop("receiver:flush-whole", "copied.look"),
        kinds=frozenset({"swap target"}),
    ),
    Mutation(
        "no look before INCOMPLETE(copied), the destination cut",
        "R2",
        drop("receiver:flush-whole", "copied.look"),
        kinds=frozenset({"cut target"}),
    ),
    Mutation(
        "the look comes before the last fdatasync",
        "R2",
        move("receiver:flush-whole", "copied.look", "disk.fdatasync"),
        kinds=frozenset({"swap target"}),
    ),
    Mutation(
        "no look at the size before the last block, which mends it",
        "R2",
        both(drop("receiver:write", "end.look"), drop("receiver:write-first", "end.look")),
        kinds=frozenset({"cut target"}),
    ),
    Mutation(
        "no look before `retired` is acknowledged",
        "R13",
        drop("receiver:retired", "retired.look"),
        kinds=frozenset({"swap target"}),
    ),
    Mutation(
        "no look before it is complete",
        "R13",
        drop("receiver:disc-complete", "complete.look"),
        kinds=frozenset({"swap target"}),
    ),
    Mutation(
        "no look before it is complete, the destination cut",
        "R3",
        drop("receiver:disc-complete", "complete.look"),
        kinds=frozenset({"cut target"}),
    ),
    Mutation(
        "the disk that has lost its name is not saved",
        "R1",
        without("rescue: what has lost its name is saved"),
        kinds=frozenset({"swap target"}),
    ),
    Mutation(
        "a receiver that is stopped does not look whether its file has lost its name",
        "R1",
        without("stop: the receiver looks first"),
        faults=2,
        kinds=frozenset({"swap target", "stop"}),
    ),
    Mutation(
        "a disk that is saved when the source is not retired has no record",
        "R1",
        drop("receiver:rescue", "rescue.record"),
        faults=2,
        kinds=frozenset({"swap target", "stop"}),
    ),
    Mutation(
        "a disk that was cut is saved, and said to be whole",
        "R13",
        without("rescue: what was cut is not"),
        kinds=frozenset({"cut target"}),
    ),
    # What is there before.
    Mutation(
        "a receiver starts on somebody's disk",
        "R12",
        without("start: a disk that holds data is refused"),
        there="data",
        kinds=frozenset({"stranger"}),
    ),
    Mutation(
        "a receiver started again on a finished disk waits for the next",
        "R5",
        without("start: a disk that holds data is refused", "start: what is received is done"),
        kinds=frozenset({"late stranger"}),
    ),
    Mutation(
        "a receiver goes on with another disk than the whole one of its record",
        "R7",
        without("start: another disk than the whole one of the record is refused"),
        kinds=frozenset({"swap target"}),
    ),
]
