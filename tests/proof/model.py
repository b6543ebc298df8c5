"""The hand-off as a small model, explored exhaustively.

Nothing here touches Twisted or blockmig: the model is a second, independent telling of the protocol
(design section 2, and the order of steps of one attempt), small enough that every interleaving of
its steps with every fault can be tried.  L{explore} walks all of them breadth first, so that the
first violation found is also a shortest one, and L{MUTATIONS} holds the edits of the protocol that
must each make it fail.

What is abstract, and what is not
=================================

The disk has two blocks, so that an attempt can be half done.  Its content is one of three versions
of the source (whoever owns the source may change it once, while no sender runs, and it may be
written to once while one does), or the bytes of a foreign client, or what was there before: a hole,
or somebody's data.

A B{cell} is anything that a disk remembers: a record, a directory entry, a block, a file's size.
It is a pair (what is visible now, the set of what a power loss may leave).  A rename adds its value
to the set; fsync of the directory shrinks the set to what is visible.  A record that was renamed
before its bytes were fsynced may also be left I{torn}, and no fsync of a directory mends that.
Cells are independent of each other: whatever is not synced may be lost or kept in any combination.

A B{process crash} loses the process and its connections and nothing of the disk; a B{power loss} is
a crash that also picks, for each cell, any member of its set.  Either can strike each side at any
step, also when its process is dead already, and dead processes are started again, with the same
command, at any later time or never (but see the assumptions below).

The B{wire} is the sender's connection M to the main export and H to the side export.  Each carries
at most one message in each direction (the sender of the model does not pipeline), delivered at any
time or never (a stall).  A cut is noticed by either end first; what the other end already sent may
still arrive, at any later time, or be lost.  So messages of a dead sender's connection haunt its
successor: at most one such orphan of M and one of H at a time, a newer one displacing the older.
Connecting is atomic, since nothing of the hand-off travels in the handshake.

The B{receiver} handles one message to its end before the next (it serialises what changes its
state), a file-system call at a time.  Steps that change only a process's memory, and the sending of
a message, happen together with the file-system call before them: a crash in between is the same as
a crash after, with the message lost.  What is done to a temporary file happens together with the
rename after it: nothing reads a temporary file, and a start truncates it.

H stays open from its first page to the end of the attempt; where it was lost meanwhile, the sender
opens another one to ask for `copied`, and for nothing else.

B{Strangers}: a bare DISC on a connection of its own, a claim of another migration, a foreign sender
that writes any number of blocks, may FLUSH, may write again, and may DISC or vanish, and the
finisher of another migration, told or not: its `retired`, and its DISC.

B{Others} are whoever else can write in the two directories, or has the disk open.  The source may
be deleted, replaced by another file, moved to another name, or moved and replaced; it may be
written to, plainly, by a mapping, or with its mtime put back (cut or grown, it is as if written to:
its mtime changes too).  The destination may be deleted (moved away is no worse), replaced, or cut
to nothing (grown is no worse), or be cleared away with its record while nothing goes on.  What they
do is durable at once.  A process knows its file by the descriptor: a file without a name is no more
once that is closed.  A I{look} compares what the name leads to with what is open; it happens at one
instant, the receiver's together with the call before it, and no look together with the act that it
is for.

B{Bounds}: C{faults} in total, of any kinds: crash or power loss of either side, a cut, a stop of
either, the coming of a stranger, an act of others.  Restarts, attempts and time-outs are not
bounded: the states are finite, and a loop of attempts is a loop in the graph.

Time does not exist: whatever a timer may do it may do at any moment.

What is assumed
===============

Where nothing on either disk tells two cases apart, no program can; these are the product's limits.
Each is lifted by a kind of fault of its own, and L{LIMITS} shows what it then is that breaks.

 1. B{finished stranger}: a stranger does not write to, or claim, a receiver that somebody has
    started with C{--overwrite} on a finished disk, which has no record any more: it was told to.
    Used in L{Machine.unguarded}, for what strangers send, and only until that receiver has heard
    `retired`.
 2. B{rerun}: who finds `canonical` without a record, and a sender that has ended, or has concluded
    and is about to (in keep mode: MIGRATED says that the destination is complete, so that it is
    not looked for again), has nothing to run: a receiver that has C{--overwrite} is not started
    again there.  Used in L{Machine.nothing_to_run}, for the start of a receiver.  A sender that
    still has MIGRATING does count: then both commands are run again, and both must end with 0.
 3. B{earlier finisher}: no sender that was told by this very file (it has its token), in an
    earlier migration, is still about when a receiver is started there on a disk of that size
    that is not blank (or rather: it is believed).  Used in L{Machine.strangers_come}.
 4. B{between look and act}: nobody changes a file between a look and the act right after it, which
    are two system calls: at the source the last look and the deletion (or MIGRATED); at the
    destination the look at its end and the write of its last block, and the last look and the
    removal of INCOMPLETE.  (What strikes between another look and its act is found by the next.)
    Used in L{Machine.source_is_changed} and L{Machine.target_is_changed}.
 5. B{gone late}: while MIGRATING says copied, or is about to after the first look, nobody moves
    the source away, nor deletes it once it was written to again: a source that is missing then
    counts as deleted by us.  Used in L{Machine.gone_late}.
 6. B{destroyed copy}: nobody destroys a copy after the destination has said that it is whole:
    cuts it, or deletes or replaces its file so that it is gone when the receiver dies.  Where that
    happens nevertheless it is let pass (L{DESTROYED}): what others have destroyed themselves we
    have not lost.  But the receiver must not call complete, or save, what is not the disk any more;
    and what it has open it must not let go of by its own will.

The first three are needed with C{--overwrite} only (or on a disk that is all zeroes, of which
there is nothing to be seen, and which the model has not): without it a receiver refuses a disk that
holds data and has no record, and may be started again at any time, by anybody.

Disks do not fail; nobody touches the records, but to clear away an unfinished copy; there is no
C{--again} and no C{blockmig accept}; two senders of one source do not run at once; no server of
ours writes to the source (mirrors); and a plain destination is blank.

What counts as a good end
=========================

From every state found, with no more faults, once as it is and once with both sides started again,
the run must come to exit 0 at both ends.  Some ends that are not that are let pass, and counted
where they can be told apart: a process that died after its own last act finds nothing left to do
(the sender refuses to start, exit 1; the receiver does too, since its disk holds data: C{refused};
with C{--overwrite} it is not started, see assumption 2); the sender was told, found nobody and
left, so that the receiver keeps a `retired` record and knows that it is canonical, without a
disconnect (C{told}), or waits on a disk that is complete and has no record (C{late}: it was started
with C{--overwrite} while the sender was leaving); a stranger's whole migration was received instead
of ours (C{another's}); others have left what no program can mend, such as a file of theirs in the
place of ours (C{human}: L{Machine.human} says which).
"""

from __future__ import annotations

import fnmatch
import gc
import itertools
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import NamedTuple

# --- Cells -------------------------------------------------------------------------------------

Cell = tuple[int, int]
"""What is visible, and the bit mask of what a power loss may leave."""

NONE, TORN = 0, 1
"""Values of every record: not there; there, but not readable."""

GONE, THERE, LOST, OTHER, MOVED, AWAY, SPOILT = 0, 2, 3, 4, 5, 6, 7
"""The source's file: deleted by us; at its name; deleted, replaced, moved, moved and replaced by
somebody else; and, by mutation only, the other file deleted in its place."""

NOTHING = (GONE, LOST, MOVED)  # its name leads to nothing
ANOTHER = (OTHER, AWAY)  # its name leads to another file
NAMELESS = (LOST, OTHER)  # it has no name any more, and not by our doing

UNCHANGED, WRITTEN, DATED = 0, 1, 2
"""The source since the scan began: as it was; its mtime (or size) is another; its ctime alone is:
it was written to, and the mtime put back."""

ABSENT, EMPTY, SIZED, CUT = 0, 2, 3, 4  # the destination's file
OURS_THERE, DELETED, REPLACED = 0, 1, 2  # what the destination's name leads to
LOOKED_COPIED, LOOKED_RETIRED = 1, 2  # which of its looks a receiver has behind it
SAVED, SAID, SAID_RETIRED, MISTAKEN = 1, 2, 4, 8
"""What there is under another name: a copy of the disk; beside it a record that says copied, or
that the source is retired; what is no copy of the disk."""

WHOLE, CUT_EARLY, DESTROYED = 0, 1, 2
"""What somebody else did to the destination's data: nothing; cut before it was said to be copied;
and after that, or deleted it with nobody there to have it open."""

HOLE, V1, V2, FOREIGN, FOREIGN2, V3, OLD = 0, 1, 2, 3, 4, 5, 6  # a block's content
MARKED, CONFIRMED = 2, 3  # MIGRATED, and the same once the destination was complete

COPYING, COPIED, RETIRED = 0, 1, 2
"""Phases of INCOMPLETE and of MIGRATING; RETIRED is `told` in the latter."""

OURS = (0, 1, 2)
"""Ids that our sender may mint: a lost id is never minted again while anything remembers it."""

THEIRS = 3
"""The id that a receiver makes up for a foreign sender."""


def record(phase: int, ident: int) -> int:
    return 2 + phase * 4 + ident


def phase_of(value: int) -> int:
    """The phase of a record's value, -1 when it has none."""
    return -1 if value < 2 else (value - 2) // 4


def ident_of(value: int) -> int:
    return -1 if value < 2 else (value - 2) % 4


def members(mask: int) -> Iterator[int]:
    return (value for value in range(mask.bit_length()) if mask >> value & 1)


def durable(value: int) -> Cell:
    return (value, 1 << value)


def changed(cell: Cell, value: int, torn: bool = False) -> Cell:
    return (value, cell[1] | 1 << value | (torn << TORN))


def entry_synced(cell: Cell) -> Cell:
    """The directory is durable; whether the bytes behind a name are is not its business."""
    torn = 0 if cell[0] == NONE else cell[1] & 1 << TORN
    return (cell[0], 1 << cell[0] | torn)


# --- The state ---------------------------------------------------------------------------------


def swift(kind: type) -> type:
    """A NamedTuple that replaces its fields in half the time: it is most of what is done here."""
    places = {name: place for place, name in enumerate(kind._fields)}  # type: ignore[attr-defined]

    def replaced(self: tuple, /, **changes: object) -> tuple:
        values = list(self)
        for name, value in changes.items():
            values[places[name]] = value
        return tuple.__new__(kind, values)

    kind._replace = replaced  # type: ignore[attr-defined]
    return kind


@swift
class Source(NamedTuple):
    """The sender's directory.  `tmp`: 0 no temporary file, 1 one not synced, 2 a synced one."""

    file: Cell
    migrating: Cell
    migrated: Cell
    tmp: int
    changed: int = UNCHANGED


@swift
class Target(NamedTuple):
    """The receiver's directory and its disk: the file that the receiver has open, or would open.

    @ivar name: what the name of that file leads to.
    @ivar late: how far the receiver was with its looks when that became so, or 0.
    @ivar harm: what others did to the data.
    @ivar saved: what the receiver has made of it under another name.
    """

    file: Cell
    first: Cell
    second: Cell
    incomplete: Cell
    tmp: int
    name: int = OURS_THERE
    late: int = 0
    harm: int = WHOLE
    saved: int = 0


@swift
class Sender(NamedTuple):
    """`program` is a key of L{Protocol.sender}, or `dead`, `exit`, `never`."""

    program: str
    pc: int = 0
    waiting: bool = False
    ident: int = 0
    cookie: int = 0
    status: int = 0
    kept: bool = False
    """A copy there may be whole, and of this id: the id must not be forgotten."""


@swift
class Receiver(NamedTuple):
    """`doing` is `dead`, `idle`, `complete`, `exit`, or a key of L{Protocol.receiver}.

    @ivar who: the connection whose message is being handled: M, H, their orphans m, h, a stray X,
        a foreign sender F.
    @ivar bound: the connection whose attempt goes on, or nothing.
    @ivar claim: id and cookie of the last claim, not yet bound by a first write.
    @ivar finish: the cookie with which a DISC may finish a retired migration.
    @ivar anew: the id of a migration that an earlier receiver had completed, as the told sender
        says; -1 without.
    """

    doing: str
    pc: int = 0
    message: tuple = ()
    who: str = ""
    bound: str = ""
    ident: int = 0
    covered: int = 0
    claim: tuple = ()
    finish: int = 0
    anew: int = -1
    status: int = 0


@swift
class Wire(NamedTuple):
    """One connection: the message on its way up, the reply on its way down, the receiver's end."""

    up: tuple = ()
    down: tuple = ()
    alive: bool = True


@swift
class State(NamedTuple):
    source: Source
    sender: Sender
    main: Wire | None
    side: Wire | None
    old_main: Wire | None
    old_side: Wire | None
    receiver: Receiver
    target: Target
    version: int
    done: int  # history: 0 no disconnect was accepted, 1 our sender's, 2 a stranger's
    left: bool  # history: the sender concluded without the receiver that is there now
    faults: int


WIRES = {"M": "main", "H": "side", "m": "old_main", "h": "old_side"}


# --- The protocol, as data ---------------------------------------------------------------------


class Step(NamedTuple):
    name: str
    op: str
    what: str | int = ""


def writing(kind: str, phase: str = "") -> list[Step]:
    """The four steps by which a record is written."""
    name = f"{kind}({phase})" if phase else kind
    return [
        Step(f"{name}.write", "tmp"),
        Step(f"{name}.fsync", "sync"),
        Step(f"{name}.rename", "rename", f"{kind} {phase}"),
        Step(f"{name}.dirsync", "dirsync"),
    ]


@dataclass(frozen=True)
class Protocol:
    """The steps of both sides, in their order, and the rules by which messages are let in."""

    name: str
    unlink: bool
    peer: str  # "blockmig": with the side export; "plain": a server without; "foreign": no sender
    sender: dict[str, list[Step]]
    receiver: dict[str, list[Step]]
    rules: frozenset[str] = field(default_factory=frozenset)
    there: str = ""
    """What was there before at the destination: nothing; `blank`, a device (or file) of its size
    that is all holes; `data`, one that holds somebody's data.  That it is there, full-size and
    without a record, tells nothing of a migration."""
    overwrite: bool = False
    """The receiver is started with `--overwrite`, each time."""

    @property
    def before(self) -> int:
        """What a block holds before the first migration."""
        return OLD if self.there == "data" else HOLE


RULES = {
    "claim: refused once retired",
    "claim: refused on another's copied",
    "claim: refused while an attempt goes on",
    "claim: ends every older side connection",
    "claim: ends a hanging attempt of its own",
    "claim: copied falls back",
    "change: copied falls back first",
    "change: refused after retired",
    "change: refused on an identified copied",
    "change: refused while another's attempt goes on",
    "disc: only when covered",
    "disc: only with the id",
    "drop: coverage is forgotten",
    "anew: only from a told sender",
    "anew: not on a blank disk",
    "finish: the source must be gone",
    "finish: a told sender that finds no record tells it",
    "leave: only when told",
    "stop: only before retiring",
    "stop: the receiver looks first",
    "stop: the id is kept from FLUSH on",
    "stop: the id that was found is kept until it is claimed",
    "plain: an older connection is dead before the next",
    "start: a disk that holds data is refused",
    "start: another disk than the whole one of the record is refused",
    "begin: another file than the record's is refused",
    "claim: not once the last name is gone",
    "back: not once the last name is gone",
    "look: the source's name",
    "look: the source's mtime and size",
    "look: the source's ctime",
    "look: the destination's name",
    "look: the destination's size",
    "rescue: what has lost its name is saved",
    "rescue: what was cut is not",
    "inspect: another file than the record's is told apart",
}


def build(
    unlink: bool = True, peer: str = "blockmig", there: str = "", overwrite: bool = False
) -> Protocol:
    """The protocol as the product has it."""
    retire = (
        [Step("source.unlink", "unlink", "file"), Step("source.dirsync", "dirsync")]
        if unlink
        else writing("MIGRATED")
    )
    abandon = [
        Step("MIGRATING.unlink", "unlink", "MIGRATING"),
        Step("MIGRATING.gone.dirsync", "dirsync"),
    ]
    remove = [*([] if unlink else writing("MIGRATED", "confirmed")), *abandon]
    begin = [Step("source.fsync", "baseline")]
    copied = [Step("source.look first", "look"), *writing("MIGRATING", "copied")]
    look = [Step("source.look", "look")]
    data = [
        Step("M.write 0", "ask", "M write 0"),
        Step("M.write 1", "ask", "M write 1"),
        Step("M.flush", "ask", "M flush"),
    ]
    tell = [Step("H.retired", "ask", "H retired"), *writing("MIGRATING", "told")]
    leave = [Step("M.disc", "disc"), Step("M.closed", "closed")]
    confirm = [Step("H.complete", "ask", "H page"), *remove, Step("exit", "exit", 0)]
    always = {
        # What a process that died left visible is not durable yet: whoever starts makes it so
        # before it believes it, and before it tells anybody.
        "look": [Step("look.dirsync", "dirsync")],
        # The ends of a sender that did not retire its source; the status is decided before.
        "stop": [*abandon, Step("exit", "exit")],
        "stop-keep": [Step("exit", "exit")],
        # MIGRATING says copied no more; then the destination's `copied` is taken back.
        "unsay": writing("MIGRATING", "copying"),
    }
    if peer == "plain":
        sender = {
            "attempt": [
                *begin,
                Step("M.connect", "connect"),
                *writing("MIGRATING", "copying"),
                *data,
                *copied,
                *look,
                *retire,
                *leave,
                *remove,
                Step("exit", "exit", 0),
            ],
            "finish": [*remove, Step("exit", "exit", 0)],
            **always,
        }
        receiver = {
            "look": [],
            "write": [Step("block.write", "block"), Step("reply", "reply")],
            "flush": [Step("disk.fdatasync", "datasync"), Step("reply", "reply")],
            "disc-drop": [Step("close", "close")],
        }
    else:
        sender = {
            "attempt": [
                *begin,
                Step("M.connect", "connect"),
                Step("H.page", "ask", "H page"),
                Step("H.copying", "ask", "H copying"),
                *writing("MIGRATING", "copying"),
                *data,
                Step("H.copied", "ask", "H copied"),
                *copied,
                *look,
                *retire,
                *tell,
                *leave,
                *confirm,
            ],
            "finish": [
                Step("M.connect", "connect"),
                Step("H.page", "ask", "H page"),
                *tell,
                *leave,
                *confirm,
            ],
            # The receiver has no record: it was started anew on the disk that it had completed.
            "anew": [Step("H.retired", "ask", "H retired"), *leave, *confirm],
            # If it is, `stop` follows.
            "back": [Step("back.page", "ask", "H page"), Step("back.copying", "ask", "H copying")],
            **always,
        }
        # What is on record was looked at; in the product just before the bytes of the record.
        record_copying = [Step("copying.look", "look"), *writing("INCOMPLETE", "copying")]
        receiver = {
            "look": [Step("file.create", "create"), Step("look.dirsync", "dirsync")],
            "claim": [
                *record_copying,
                Step("file.size", "size"),
                Step("claim", "claim"),
                Step("reply", "reply"),
            ],
            "claim-kept": [Step("claim", "claim"), Step("reply", "reply")],  # by mutation only
            # Only what changes the last block can bring the size back after a cut.
            "write": [
                Step("end.look", "look", "end"),
                Step("block.write", "block"),
                Step("reply", "reply"),
            ],
            "write-first": [  # an attempt without a claim, or a change of what is `copied`
                *record_copying,
                Step("file.size", "size"),
                Step("end.look", "look", "end"),
                Step("block.write", "block"),
                Step("reply", "reply"),
            ],
            "flush": [Step("disk.fdatasync", "datasync"), Step("reply", "reply")],
            "flush-whole": [
                Step("disk.fdatasync", "datasync"),
                Step("copied.look", "look"),
                *writing("INCOMPLETE", "copied"),
                Step("reply", "reply"),
            ],
            "retired": [
                Step("retired.look", "look", "rescue"),
                *writing("INCOMPLETE", "retired"),
                Step("reply", "reply"),
            ],
            "retired-known": [Step("reply", "reply")],
            "disc-complete": [
                Step("disk.fdatasync", "datasync"),
                Step("complete.look", "look", "rescue"),
                Step("INCOMPLETE.unlink", "unlink", "INCOMPLETE"),
                Step("INCOMPLETE.gone.dirsync", "dirsync"),
                Step("complete", "complete"),
            ],
            "disc-drop": [Step("close", "close")],
            # What a look has found: the sender is refused, and exit 3.
            "fail": [Step("fail", "fail")],
            "rescue": [
                Step("rescue.record", "save", "record"),
                Step("rescue.copy", "save", "copy"),
                Step("fail", "fail"),
            ],
        }
    kind = f"{'unlink' if unlink else 'keep'}, {peer} peer" if peer != "foreign" else "foreign"
    if there:
        kind += (
            " over data" if overwrite else f" on {'a blank device' if there == 'blank' else there}"
        )
    rules = frozenset(RULES)
    return Protocol(kind, unlink, peer, sender, receiver, rules, there, overwrite)


# --- Truth -------------------------------------------------------------------------------------


def retired_now(protocol: Protocol, source: Source) -> bool:
    """Whether we have retired the source, as far as its directory shows it."""
    return source.file[0] == GONE if protocol.unlink else source.migrated[0] >= MARKED


def may_be_retired(protocol: Protocol, source: Source) -> bool:
    """Whether it is, or is after some power loss."""
    return bool(source.file[1] & 1 << GONE if protocol.unlink else source.migrated[1] & ~1)


def surely_retired(protocol: Protocol, source: Source) -> bool:
    """Whether it is and stays so, whatever power loss comes: no name leads to it, or it is marked.

    What somebody else has deleted, or replaced, needs no retiring any more.
    """
    elsewhere = 1 << MOVED | 1 << AWAY
    if protocol.unlink:
        return not source.file[1] & (1 << THERE | elsewhere)
    marked = not source.migrated[1] & ~(1 << MARKED | 1 << CONFIRMED)
    return marked and not source.file[1] & elsewhere


def holds(target: Target, version: int) -> bool:
    """Whether the destination durably has every byte of that version."""
    return (
        target.file[1] == 1 << SIZED
        and target.first[1] == 1 << version
        and target.second[1] == 1 << version
    )


def preserved(target: Target, version: int) -> bool:
    """Whether that version is there, or would be, had nobody else destroyed a whole copy of it."""
    return bool(target.saved & SAVED) or target.harm == DESTROYED or holds(target, version)


def holds_foreign(target: Target) -> bool:
    theirs = 1 << FOREIGN | 1 << FOREIGN2
    return target.file[1] == 1 << SIZED and all(
        not mask & ~theirs and mask & (mask - 1) == 0
        for mask in (target.first[1], target.second[1])
    )


# --- The verdicts of `inspect`, from what is visible in the directories --------------------------


def verdict_of_source(protocol: Protocol, source: Source) -> str:
    migrating, file = source.migrating[0], source.file[0]
    if TORN in (migrating, source.migrated[0]):
        return "unknown"
    if source.migrated[0] >= MARKED:
        return "not canonical"
    if file in ANOTHER and migrating != NONE:
        # A record, and a file that is not the one that it is about.
        told_apart = "inspect: another file than the record's is told apart" in protocol.rules
        return "unknown" if told_apart else "canonical"
    if file not in NOTHING:
        return "canonical"
    if migrating == NONE:
        return "nothing here"
    # A source that is kept is never missing by our doing.
    copied = protocol.unlink and phase_of(migrating) >= COPIED
    return "not canonical" if copied else "unknown"


def verdict_of_target(protocol: Protocol, target: Target) -> str:
    value = target.incomplete[0]
    if value == TORN:
        return "unknown"
    if value == NONE and target.name == OURS_THERE:
        file = target.file[0]
        return {ABSENT: "nothing here", SIZED: "canonical"}.get(file, "not canonical")
    if value == NONE:  # another file is what it looks like
        return "nothing here" if target.name == DELETED else "canonical"
    told_apart = "inspect: another file than the record's is told apart" in protocol.rules
    if told_apart and target.name == REPLACED:
        return "unknown"
    if phase_of(value) == COPYING:
        return "not canonical"
    if told_apart and (target.name == DELETED or target.file[0] != SIZED):
        return "unknown"
    return "only if retired" if phase_of(value) == COPIED else "canonical"


def verdict_of_pair(protocol: Protocol, source: Source, target: Target) -> str:
    """Which copy is canonical, from what stands in the two directories."""
    ours, theirs = verdict_of_source(protocol, source), verdict_of_target(protocol, target)
    if theirs == "only if retired":
        same = ident_of(target.incomplete[0]) == ident_of(source.migrating[0])
        if ours == "canonical":
            return "source"
        return "target" if ours == "not canonical" and same else "unknown"
    if ours == "canonical":
        # While a source is not retired, it does not matter what the destination looks like.
        nothing = target.incomplete[0] in (NONE, TORN) and source.migrating[0] != NONE
        yields = theirs in ("not canonical", "nothing here") or nothing
        return "source" if yields else "unknown"
    if theirs == "canonical":
        return "target" if ours in ("not canonical", "nothing here") else "unknown"
    return "unknown"


# --- The invariants ----------------------------------------------------------------------------


Known = dict[tuple, list[str]]
"""What was found of the two disks, to be looked at once."""


def violations(
    protocol: Protocol, before: State | None, actor: str, state: State, known: Known
) -> list[str]:
    """The invariants that this state breaks, or the act that led to it: the most telling first."""
    found = misdeeds(protocol, before, actor, state) if before is not None else []
    disks = (state.source, state.target, state.version, state.done)
    if disks not in known:
        known[disks] = of_the_disks(protocol, state)
    return found + known[disks] + of_the_processes(protocol, state)


def of_the_disks(protocol: Protocol, state: State) -> list[str]:
    """The invariants that break by what stands on the two disks."""
    found: list[str] = []
    source, target = state.source, state.target
    data = (target.first, target.second)

    # R2: the record stands before the first byte, and `copied` is true.
    if protocol.peer != "plain":
        written = any(cell[1] & ~(1 << HOLE | 1 << OLD) for cell in data)
        unrecorded = written and not state.done and target.incomplete[1] & 1 << NONE
        if unrecorded and target.name == OURS_THERE:
            found.append("R2 bytes without a record")
        for value in members(target.incomplete[1]):
            if phase_of(value) >= COPIED and not says_true(state, value):
                found.append("R2 the record says copied, the disk is not")
        said = phase_of(target.incomplete[0]) >= COPIED
        if said and target.name != OURS_THERE and not target.late:
            found.append("R2 the record says copied of a file that had lost its name")

    # R12: nobody's data is overwritten unasked.
    if protocol.there == "data" and not protocol.overwrite:
        touched = any(cell[1] != 1 << OLD for cell in data) or target.incomplete[1] != 1 << NONE
        if touched:
            found.append("R12 somebody's disk was taken for a destination")

    # R1: one canonical copy, never none and never two.
    if protocol.peer != "foreign":
        if may_be_retired(protocol, source) and not preserved(target, state.version):
            found.append("R1 neither: retired, and the destination does not durably hold it")
        # Without a record beside it a disk is what it looks like.
        bare = target.saved == SAVED
        believed = (
            state.done == 1
            or bare
            or bool(target.saved & SAID_RETIRED)
            or any(phase_of(value) == RETIRED for value in members(target.incomplete[1]))
        )
        if believed and not surely_retired(protocol, source):
            found.append("R1 both: the destination was given away, the source can still be used")
        if state.done == 2 and may_be_retired(protocol, source):
            found.append("R1 neither: retired in favour of another's disk")
        # R13: what is retired, or saved, is what was opened.
        if target.saved & MISTAKEN:
            found.append("R13 saved, and said to be the disk, which it is not")
        if source.file[0] == SPOILT or (
            not protocol.unlink and source.file[0] != THERE and may_be_retired(protocol, source)
        ):
            found.append("R13 another file was retired, or none")

    # R3: what is complete is durable, R13: and the file that has the name.
    if state.done and not (
        holds_foreign(target) if state.done == 2 else holds(target, state.version)
    ):
        found.append("R3 completed, and not durable")
    if state.done and target.name != OURS_THERE:
        found.append("R13 completed, and its name leads elsewhere")

    # R7: the verdicts, from what is visible, never contradict the truth.
    if protocol.peer != "foreign":
        found += wrong_verdicts(protocol, state, retired_now(protocol, source))
    elif target.name == OURS_THERE and target.harm == WHOLE and not state.done:
        verdict = verdict_of_target(protocol, target)
        if verdict in ("canonical", "unknown") and not unbegun(protocol, state):
            found.append("R7 the destination's verdict is wrong")
    return found


def of_the_processes(protocol: Protocol, state: State) -> list[str]:
    """The invariants that break by what a process says, or is about."""
    found: list[str] = []
    source, sender, receiver, target = state.source, state.sender, state.receiver, state.target
    plain = protocol.peer == "plain"

    # R3: exit 0 if and only if complete and durable.
    if (
        not plain
        and receiver.doing == "exit"
        and receiver.status == 0
        and not (state.done and target.incomplete[1] == 1 << NONE)
    ):
        found.append("R3 the receiver said done, and is not")
    if sender.program == "exit" and sender.status == 0:
        known = plain or all(
            phase_of(value) == RETIRED or (value == NONE and state.done)
            for value in members(target.incomplete[1])
        )
        if not (surely_retired(protocol, source) and preserved(target, state.version) and known):
            found.append("R3 the sender said done, and is not")

    # R4: an attempt's coverage dies with it, and is true while it lives.
    if not plain and receiver.covered:
        if not receiver.bound:
            found.append("R4 coverage outlived its attempt")
        undisturbed = state.version != V3 and target.harm == WHOLE
        if receiver.bound == "M" and receiver.ident != THEIRS and undisturbed:
            for bit, cell in enumerate((target.first, target.second)):
                if receiver.covered >> bit & 1 and cell[0] != state.version:
                    found.append("R4 covered, but not by this attempt")

    # R8: a sender that did not retire leaves the source as it was, and says so only then.
    gave_up = sender.program == "exit" and sender.status in (3, 4)
    if gave_up and may_be_retired(protocol, source):
        found.append("R8 gave up after retiring")

    # R6, the part that is not liveness: nothing is copied from a source that is retired.
    if sender.program == "attempt" and retired_now(protocol, source):
        step = protocol.sender["attempt"][sender.pc]
        if step.name.startswith("M.write"):
            found.append("R6 copies again after retiring")
    return found


def says_true(state: State, value: int) -> bool:
    """Whether a record that says `copied` is true of the data."""
    target = state.target
    data = (target.first, target.second)
    if target.harm == DESTROYED or target.saved or target.file[0] == ABSENT:
        return True  # it was; what is there now is another matter
    if ident_of(value) != THEIRS and state.version != V3:
        return holds(target, target.first[0])
    # What a foreign sender sends, or one whose source is being written to, may be any bytes.
    return all(cell[1] & (cell[1] - 1) == 0 and cell[0] not in (HOLE, OLD) for cell in data)


def misdeeds(protocol: Protocol, before: State, actor: str, state: State) -> list[str]:
    """The acts that break an invariant, whatever led to the same state otherwise."""
    found: list[str] = []
    target, past = state.target, before.target
    # R5: what a stranger does completes nothing but a whole disk of its own, and touches nothing
    # of a copy that is canonical.
    if actor == "stranger":
        data = (target.first, target.second)
        if state.done != before.done and not all(cell[0] in (FOREIGN, FOREIGN2) for cell in data):
            found.append("R5 a stranger completed what it had not written")
        went_on = before.receiver.bound in ("M", "m")
        if went_on and (
            state.receiver.bound != before.receiver.bound
            or target.incomplete[0] != past.incomplete[0]
        ):
            found.append("R5 a stranger disturbed the attempt that goes on")
        if retired_now(protocol, state.source) and (
            data != (past.first, past.second) or target.incomplete[0] != past.incomplete[0]
        ):
            found.append("R5 a stranger changed the canonical copy")
    # R13: no name leads to the source any more, and the copy that says it is whole is kept.
    if state.source.file[0] in NAMELESS and not state.done:
        said, says = phase_of(past.incomplete[0]), phase_of(target.incomplete[0])
        ours = ident_of(past.incomplete[0]) != THEIRS
        fell = ours and said >= COPIED > says and state.receiver.doing not in ("dead", "exit")
        # What was sent before that cannot be held back; a claim that was sent later says so.
        sent_before = before.receiver.doing == "claim"
        sent_after = before.receiver.message[-1:] == ("nameless",)
        if fell and (sent_after or not sent_before):
            found.append("R13 the copy of a source that is gone was taken back")
    if past.name != OURS_THERE and state.sender.waiting and state.side and before.side:
        step = protocol.sender[state.sender.program][state.sender.pc]
        answered = not before.side.down and state.side.down == ("ok",)
        if answered and step.name == "H.retired" and past.late < LOOKED_RETIRED:
            found.append("R13 `retired` was acknowledged for a file that had lost its name")
    return found


def unbegun(protocol: Protocol, state: State) -> bool:
    """Whether the destination is a disk that was there before, and no migration has touched it.

    Its verdict by itself (it is canonical: no migration was begun) is about another disk than ours.
    """
    target = state.target
    nothing = target.file[0] == SIZED and target.incomplete[0] == NONE and not state.done
    content = OLD if target.first[0] == OLD else protocol.before
    untouched = target.first[0] == target.second[0] == content
    return nothing and untouched and (bool(protocol.there) or content == OLD)


def wrong_verdicts(protocol: Protocol, state: State, retired: bool) -> list[str]:
    found = []
    source, target = state.source, state.target
    file = source.file[0]
    ours = verdict_of_source(protocol, source)
    if file in (THERE, GONE):
        if ours == "unknown" or {"canonical": retired, "not canonical": not retired}.get(
            ours, False
        ):
            found.append("R7 the source's verdict is wrong")
        if ours == "nothing here" and not retired:
            found.append("R7 the source's verdict is wrong")
    elif ours == "canonical" and source.migrating[0] != NONE:
        found.append("R7 the source's verdict is wrong")
    if protocol.peer == "plain" or state.done == 2:
        return found  # a plain server has no verdict; another's disk is not this source's pair
    theirs, before = verdict_of_target(protocol, target), unbegun(protocol, state)
    if target.name != OURS_THERE or target.harm != WHOLE:
        said = phase_of(target.incomplete[0]) >= COPIED or (
            target.name == REPLACED and target.incomplete[0] != NONE
        )
        if said and theirs != "unknown":
            found.append("R7 the destination's verdict is wrong")
    else:
        # A source that has no name any more, and not by us, leaves the copy the only one.
        right = retired or before or file in NAMELESS
        if theirs == "unknown" or {"canonical": not right, "not canonical": retired}.get(
            theirs, theirs == "nothing here" and retired
        ):
            found.append("R7 the destination's verdict is wrong")
    if before and source.migrating[0] == NONE and not retired:
        return found  # two disks that have nothing to do with each other
    pair = verdict_of_pair(protocol, source, target)
    if file not in (THERE, GONE):
        # Others have taken it away: it is not the source at this name, whatever else is.
        wrong = pair == "source" and source.migrating[0] != NONE
    elif target.name != OURS_THERE or target.harm != WHOLE:
        wrong = pair not in ("source" if not retired else "", "unknown")
    else:
        wrong = pair != ("target" if retired else "source")
    if wrong:
        found.append("R7 the pair's verdict is wrong")
    return found


# --- Transitions -------------------------------------------------------------------------------


class Move(NamedTuple):
    """One transition.  `rank` orders them for the calm run; NEVER is not part of a calm run."""

    rank: int
    label: str
    actor: str
    state: State


ON_DISK = ("tmp", "sync", "rename", "dirsync", "unlink")
"""What the sender does to its directory."""

UNSEEN = ("tmp", "sync")
"""What is done to a temporary file: nobody looks at it, and a crash forgets it."""

IN_MEMORY = ("claim", "reply", "close", "complete", "look", "fail")
"""What the receiver does together with the call before it."""

NEVER = 100
NOBODY = "nobody"

BREAKS = frozenset({"crash", "power", "cut", "stop", "stranger"})
"""The kinds of faults that touch no file; `late stranger` is one that comes only once the source
is retired."""

OTHERS = frozenset({"swap source", "write source", "swap target", "cut target"})
"""Those of somebody else who deletes, exchanges or changes what stands there."""

KINDS = BREAKS | OTHERS
"""All that an ordinary exploration has; those that lift an assumption are L{LIFTS}."""

LIFTS = frozenset(
    {
        "finished stranger",
        "rerun",
        "earlier finisher",
        "between look and act",
        "moved late",
        "deleted late",
        "destroyed copy",
    }
)

QUIET = frozenset({"crash", "power", "cut"})
AT_SOURCE = frozenset({"swap source", "write source", "crash", "cut"})
AT_TARGET = frozenset({"swap target", "cut target", "crash", "cut"})
AT_BOTH = frozenset({"swap source", "swap target", "crash", "stop"})


class Machine:
    """The transitions of one protocol."""

    def __init__(self, protocol: Protocol, faults: int, kinds: frozenset[str]) -> None:
        self.protocol = protocol
        self.faults = faults
        self.kinds = kinds
        self.plain = protocol.peer == "plain"
        attempt = protocol.sender["attempt"]
        self.retire_index = next(
            index
            for index, step in enumerate(attempt)
            if (step.op, step.what) in (("unlink", "file"), ("rename", "MIGRATED "))
        )

    def rule(self, name: str) -> bool:
        assert name in RULES, name
        return name in self.protocol.rules

    def initial(self) -> State:
        foreign = self.protocol.peer == "foreign"
        return State(
            Source(durable(THERE), durable(NONE), durable(NONE), 0),
            Sender("never" if foreign else "dead"),
            None,
            None,
            None,
            None,
            Receiver("dead"),
            Target(
                durable(SIZED if self.plain or self.protocol.there else ABSENT),
                durable(self.protocol.before),
                durable(self.protocol.before),
                durable(NONE),
                0,
            ),
            V1,
            0,
            False,
            self.faults,
        )

    # -- what any process does to its own directory --

    def on_source(self, source: Source, step: Step, ident: int) -> Source:
        if step.op == "tmp":
            return source._replace(tmp=1)
        if step.op == "sync":
            return source._replace(tmp=2 if source.tmp else 0)
        if step.op == "dirsync":
            return source._replace(
                file=durable(source.file[0]),
                migrating=entry_synced(source.migrating),
                migrated=entry_synced(source.migrated),
            )
        if step.op == "unlink":
            if step.what == "file":
                # By mutation only it is another file, or none.
                value = {THERE: GONE, OTHER: SPOILT, AWAY: SPOILT}
                return source._replace(
                    file=changed(source.file, value.get(source.file[0], source.file[0]))
                )
            return source._replace(migrating=changed(source.migrating, NONE))
        kind, phase = str(step.what).split(" ")
        torn = source.tmp != 2
        if kind == "MIGRATED":
            value = CONFIRMED if phase else MARKED
            return source._replace(migrated=changed(source.migrated, value, torn), tmp=0)
        value = record({"copying": COPYING, "copied": COPIED, "told": RETIRED}[phase], ident)
        return source._replace(migrating=changed(source.migrating, value, torn), tmp=0)

    def on_target(self, state: State, step: Step) -> State:
        target, receiver = state.target, state.receiver
        if step.op == "tmp":
            target = target._replace(tmp=1)
        elif step.op == "sync":
            target = target._replace(tmp=2 if target.tmp else 0)
        elif step.op == "rename":
            phase = str(step.what).split(" ")[1]
            value = record(
                {"copying": COPYING, "copied": COPIED, "retired": RETIRED}[phase],
                receiver.message[1] if receiver.doing in ("claim", "retired") else receiver.ident,
            )
            torn = target.tmp != 2
            target = target._replace(incomplete=changed(target.incomplete, value, torn), tmp=0)
        elif step.op == "dirsync":
            file = target.file
            if file[0] != ABSENT:
                file = (file[0], file[1] & ~(1 << ABSENT))
            target = target._replace(file=file, incomplete=entry_synced(target.incomplete))
            if not self.says_copied(target):  # what was copied before does not count any more
                harm = min(target.harm, CUT_EARLY)
                target = target._replace(late=0, harm=harm)
        elif step.op == "unlink":
            target = target._replace(incomplete=changed(target.incomplete, NONE))
            state = state._replace(done=2 if receiver.who in ("F", "X") else 1)
        elif step.op == "create":
            if target.file[0] == ABSENT:
                target = target._replace(file=changed(target.file, EMPTY))
        elif step.op == "size":
            if target.file[0] in (ABSENT, EMPTY):  # a new one; not one that was cut
                target = target._replace(file=changed(target.file, SIZED))
        elif step.op == "save":
            # With its bytes durable before it has the other name; a foreign sender's as well.
            if ident_of(target.incomplete[0]) != THEIRS:
                retired = receiver.message[0] == "retired"
                retired = retired or phase_of(target.incomplete[0]) == RETIRED
                if step.what == "record":
                    saved = SAID_RETIRED if retired else SAID
                else:
                    # While the source is in use, a copy of what it was is what `copied` says.
                    data = (target.first[0], target.second[0])
                    wanted = {state.version} if retired else {V1, V2, V3}
                    right = target.file[0] == SIZED and set(data) <= wanted
                    saved = SAVED if right else MISTAKEN
                target = target._replace(saved=target.saved | saved)
        elif step.op == "block":
            block = receiver.message[1]
            if block == 1 and target.file[0] == CUT:  # the last: the size is right again
                target = target._replace(file=changed(target.file, SIZED))
            if receiver.who != "F":
                content = receiver.message[3]
            else:  # a second write of the same block by a foreign sender brings other bytes
                content = FOREIGN2 if receiver.covered >> block & 1 else FOREIGN
            name = ("first", "second")[block]
            target = target._replace(**{name: changed(getattr(target, name), content)})
            state = state._replace(
                receiver=receiver
                if self.plain
                else receiver._replace(covered=receiver.covered | 1 << block)
            )
        elif step.op == "datasync":
            file = target.file
            if file[0] in (SIZED, CUT):
                file = (file[0], file[1] & (1 << file[0] | 1 << ABSENT))
            target = target._replace(
                file=file, first=durable(target.first[0]), second=durable(target.second[0])
            )
        else:
            raise AssertionError(step)
        return state._replace(target=target)

    # -- the receiver --

    def listening(self, state: State) -> bool:
        """Whether it lets connections in: not any more once it is complete."""
        return state.receiver.doing not in ("dead", "look", "complete", "exit")

    def free(self, state: State) -> bool:
        return state.receiver.doing in ("idle", "complete")

    def run_receiver(self, state: State, calls: int = 1) -> State:
        """One file-system call that can be seen, and all after it that cannot."""
        doing, pc = state.receiver.doing, state.receiver.pc
        steps = self.protocol.receiver.get(doing)
        while steps is not None and pc < len(steps):
            step = steps[pc]
            if step.op in IN_MEMORY:
                state = self.in_memory(state, step)
                if state.receiver.doing in ("idle", "complete", "exit"):
                    return state
                if state.receiver.doing != doing:  # a look has found something
                    doing, pc = state.receiver.doing, 0
                    steps = self.protocol.receiver[doing]
                    continue
            elif not calls:
                return state._replace(receiver=state.receiver._replace(pc=pc))
            else:
                unseen = (
                    step.op in UNSEEN
                    or (step.op == "size" and state.target.file[0] in (SIZED, CUT))
                    or (step.op == "create" and state.target.file[0] != ABSENT)
                )
                state = self.on_target(state, step)
                calls -= not unseen
            pc += 1
        return state if steps is None else self.rest(state)

    def rest(self, state: State) -> State:
        """The handler is through: wait for the next message; connections nobody needs go."""
        who = state.receiver.who
        if state.receiver.doing == "look":
            return self.looked_up(state)
        state = state._replace(
            receiver=state.receiver._replace(doing="idle", pc=0, message=(), who="")
        )
        return self.sweep(state, who)

    def looked_up(self, state: State) -> State:
        """The receiver has read its directory."""
        if self.refused(state):
            return state._replace(receiver=Receiver("exit", status=1))
        target = state.target
        if target.name == REPLACED:
            other = durable(OLD)
            target = target._replace(file=durable(SIZED), first=other, second=other)
        target = target._replace(name=OURS_THERE, late=0)
        if not self.says_copied(target):
            target = target._replace(harm=WHOLE)
        return state._replace(receiver=Receiver("idle"), target=target)

    def start_receiver(self, state: State) -> State:
        """With the file that has the name now, whichever it is, unless it is refused."""
        if self.refused(state):
            return state._replace(receiver=Receiver("exit", status=1))
        target = state.target
        if target.name == DELETED:
            nothing = durable(HOLE)
            target = target._replace(
                name=OURS_THERE, file=durable(ABSENT), first=nothing, second=nothing
            )
        elif target.file[0] == CUT:
            target = target._replace(file=durable(EMPTY))  # nothing was left of it
        state = state._replace(receiver=Receiver("look"), target=target)
        return self.run_receiver(state, calls=0)

    def refused(self, state: State) -> bool:
        """Whether a receiver does not start here."""
        target = state.target
        value, file = target.incomplete[0], target.file[0]
        if self.plain:
            return False
        if value == TORN:
            return True
        if phase_of(value) >= COPIED:
            other = target.name != OURS_THERE or file != SIZED
            return other and self.rule(
                "start: another disk than the whole one of the record is refused"
            )
        holds_data = target.name == REPLACED or (
            target.name == OURS_THERE
            and file == SIZED
            and not target.first[0] == target.second[0] == HOLE
        )
        # An unfinished copy is nobody's data, if it is the file that the record is about.
        unfinished = phase_of(value) == COPYING and target.name == OURS_THERE
        if holds_data and not unfinished and not self.protocol.overwrite:
            return self.rule("start: a disk that holds data is refused")
        return False

    def fail(self, state: State) -> State:
        """The receiver ends by itself, with exit 3; whoever asked is told."""
        who = state.receiver.who
        return self.kill_receiver(self.answer(state, who, ("refused",)), 3)

    def look_at_target(self, state: State, step: Step) -> State:
        """The receiver looks at name, inode and size of its file."""
        target, receiver = state.target, state.receiver
        cut = target.file[0] == CUT and self.rule("look: the destination's size")
        gone = target.name != OURS_THERE and self.rule("look: the destination's name")
        if step.what == "end" and receiver.message[1] == 0:
            return state
        if not (cut or gone):
            return state
        rescue = step.what == "rescue" and self.rule("rescue: what has lost its name is saved")
        if cut and self.rule("rescue: what was cut is not"):
            rescue = False
        return state._replace(
            receiver=receiver._replace(doing="rescue" if rescue else "fail", pc=0)
        )

    def sweep(self, state: State, who: str) -> State:
        if who in ("m", "h"):
            wire = getattr(state, WIRES[who])
            if wire is not None and not wire.up and state.receiver.bound != who:
                state = state._replace(**{WIRES[who]: None})
        return state

    def end_attempt(self, receiver: Receiver) -> Receiver:
        covered = 0 if self.rule("drop: coverage is forgotten") else receiver.covered
        return receiver._replace(bound="", covered=covered, claim=(), ident=0)

    def in_memory(self, state: State, step: Step) -> State:
        receiver = state.receiver
        if step.op == "fail":
            return self.fail(state)
        if step.op == "look":
            return self.look_at_target(state, step)
        if step.op == "claim":
            if self.rule("claim: ends every older side connection"):
                state = state._replace(old_side=None if receiver.who != "h" else state.old_side)
                if receiver.who != "H" and state.side is not None:
                    state = state._replace(side=state.side._replace(up=(), alive=False))
            return state._replace(receiver=receiver._replace(claim=receiver.message[1:3]))
        if step.op == "reply":
            if receiver.doing.startswith("retired"):
                state = state._replace(receiver=receiver._replace(finish=receiver.message[2]))
            return self.answer(state, receiver.who, ("ok",))
        if step.op == "close":
            who = receiver.who
            if who == "M" and state.main is not None:
                state = state._replace(main=state.main._replace(alive=False))
            elif who == "m":
                state = state._replace(old_main=None)
            if receiver.bound == who and who:
                state = state._replace(receiver=self.end_attempt(receiver))
            if self.plain:  # whoever waits for the disconnect may use the disk from now on
                state = state._replace(done=1)
            return self.rest(state)
        assert step.op == "complete"
        main = state.main
        if main is not None:
            main = main._replace(alive=False, up=())
        return state._replace(
            main=main,
            old_main=None,
            receiver=Receiver("complete", ident=receiver.ident),
        )

    def answer(self, state: State, who: str, reply: tuple) -> State:
        if who in ("M", "H"):
            wire = getattr(state, WIRES[who])
            if wire is not None and wire.alive:
                state = state._replace(**{WIRES[who]: wire._replace(down=reply)})
        return state

    def accept(self, state: State, who: str, message: tuple) -> State:
        """A message has arrived: which handler takes it, or is it refused."""
        receiver = state.receiver
        complete = receiver.doing == "complete"
        value = state.target.incomplete[0]
        phase, ident = phase_of(value), ident_of(value)
        if receiver.anew >= 0:
            phase, ident = RETIRED, receiver.anew  # in memory only
        op = message[0]
        handler = ""
        if op == "page":
            page = ("complete", receiver.ident) if complete else (phase, ident)
            return self.sweep(self.answer(state, who, ("page", *page)), who)
        if complete:
            pass
        elif op == "copying":
            busy = bool(receiver.bound) and self.rule("claim: refused while an attempt goes on")
            late = phase == RETIRED and self.rule("claim: refused once retired")
            other = (
                phase == COPIED
                and ident not in (THEIRS, message[1])
                and self.rule("claim: refused on another's copied")
            )
            if busy and receiver.ident == message[1] == ident != THEIRS:
                state = self.end_hanging(state)
            if not (busy or late or other):
                kept = phase == COPIED and not self.rule("claim: copied falls back")
                handler = "claim-kept" if kept else "claim"
        elif op == "write":
            handler, receiver = self.admit_change(receiver, who, message, phase, ident)
        elif op == "flush":
            whole = who == receiver.bound and receiver.covered == 3
            handler = (
                "flush-whole" if whole and "flush-whole" in self.protocol.receiver else "flush"
            )
            if phase in (COPIED, RETIRED):
                handler = "flush"  # the record says it already
        elif op == "copied":
            if phase == COPIED and ident == message[1]:
                return self.sweep(self.answer(state, who, ("ok",)), who)
        elif op == "retired":
            # What a foreign sender has copied has no id that could be told.
            if phase in (COPIED, RETIRED) and ident == message[1] != THEIRS:
                handler = "retired" if phase == COPIED else "retired-known"
            elif value == NONE and receiver.anew < 0 and self.may_be_ours(state, message[3]):
                handler = "retired-known"
                receiver = receiver._replace(anew=message[1])
        elif op == "disc":
            handler = "disc-drop"
            mine = who == receiver.bound and receiver.covered == 3
            known = phase == RETIRED and message[1] and message[1] == receiver.finish
            if not self.rule("disc: only when covered"):
                mine = True
            if not self.rule("disc: only with the id"):
                known = phase == RETIRED
            if (mine or known) and not self.plain:
                handler = "disc-complete"
                receiver = receiver._replace(ident=ident)
        if not handler:
            return self.sweep(self.answer(state, who, ("refused",)), who)
        receiver = receiver._replace(doing=handler, pc=0, message=message, who=who)
        state = state._replace(receiver=receiver)
        return self.run_receiver(state, calls=0)

    def may_be_ours(self, state: State, told: bool) -> bool:
        """Whether a receiver without a record may believe that an earlier one was complete."""
        blank = state.target.file[0] != SIZED and self.rule("anew: not on a blank disk")
        return not blank and (told or not self.rule("anew: only from a told sender"))

    def end_hanging(self, state: State) -> State:
        """The sender of the attempt that goes on has lost it: abort its connection."""
        receiver = state.receiver
        if receiver.bound not in ("M", "m"):
            return state
        if not self.rule("claim: ends a hanging attempt of its own"):
            return state
        if receiver.bound == "m":
            state = state._replace(old_main=None)
        elif state.main is not None:
            state = state._replace(main=state.main._replace(up=(), alive=False))
        return state._replace(receiver=self.end_attempt(receiver))

    def admit_change(
        self, receiver: Receiver, who: str, message: tuple, phase: int, ident: int
    ) -> tuple[str, Receiver]:
        if self.plain:
            return "write", receiver
        if phase == RETIRED and self.rule("change: refused after retired"):
            return "", receiver
        if who != receiver.bound:
            if receiver.bound and self.rule("change: refused while another's attempt goes on"):
                return "", receiver
            kept = 0 if self.rule("drop: coverage is forgotten") else receiver.covered
            if receiver.claim == (ident, message[2]):
                receiver = receiver._replace(bound=who, ident=ident, covered=kept)
            elif (
                phase == COPIED
                and ident != THEIRS
                and self.rule("change: refused on an identified copied")
            ):
                return "", receiver
            else:
                return "write-first", receiver._replace(bound=who, ident=THEIRS, covered=kept)
        fresh = phase == COPYING or (
            phase == COPIED and not self.rule("change: copied falls back first")
        )
        fresh = fresh and ident == receiver.ident
        return ("write" if fresh else "write-first"), receiver

    # -- the sender --

    def advance(self, state: State) -> State:
        """Send what is next to be sent, if it can be."""
        while True:
            sender = state.sender
            steps = self.protocol.sender.get(sender.program)
            if steps is None or sender.waiting:
                return state
            step = steps[sender.pc]
            if step.op == "connect":
                if not self.listening(state):
                    return state
                state = state._replace(main=Wire())
                if self.plain and self.rule("plain: an older connection is dead before the next"):
                    state = state._replace(old_main=None)
            elif step.op == "disc":
                if state.main is not None and state.main.alive:
                    disc = ("disc", sender.cookie)
                    state = state._replace(main=state.main._replace(up=disc))
            elif step.op == "ask":
                channel, what, *argument = str(step.what).split(" ")
                if channel == "H" and state.side is None:
                    if not self.listening(state):
                        return state
                    state = state._replace(side=Wire())
                wire = getattr(state, WIRES[channel])
                if wire is None or not wire.alive:
                    return state
                message: tuple = (what,)
                if what == "write":
                    message = (what, int(argument[0]), sender.cookie, state.version)
                elif what == "copying":
                    message = (what, sender.ident, sender.cookie)
                    if state.source.file[0] in NAMELESS and sender.kept:
                        # The copy there may be whole, and is the only one then.
                        back = "back" if sender.program == "back" else "claim"
                        if self.rule(f"{back}: not once the last name is gone"):
                            return self.leave_it(state, sure=back == "back")
                        message = (*message, "nameless")
                elif what == "retired":
                    told = phase_of(state.source.migrating[0]) == RETIRED
                    message = (what, sender.ident, sender.cookie, told)
                elif what == "flush" and self.rule("stop: the id is kept from FLUSH on"):
                    sender = sender._replace(kept=True)
                elif what == "copied":
                    message = (what, sender.ident)
                state = state._replace(**{WIRES[channel]: wire._replace(up=message)})
                return state._replace(sender=sender._replace(waiting=True))
            else:
                return state
            state = state._replace(sender=sender._replace(pc=sender.pc + 1))

    def next_step(self, state: State) -> State:
        sender = state.sender
        state = state._replace(sender=sender._replace(pc=sender.pc + 1, waiting=False))
        through = sender.pc + 1 == len(self.protocol.sender[sender.program])
        if sender.program == "look" and through:
            return self.begin(state)
        if sender.program == "unsay" and through:
            return self.take_back(state)
        if sender.program == "back" and through:  # taken back
            state = self.orphan(state)
            return state._replace(sender=sender._replace(program="stop", pc=0, waiting=False))
        return self.advance(state)

    def begin(self, state: State) -> State:
        """What a sender does once it has looked, and after each drop."""
        source, sender = state.source, state.sender
        migrating = source.migrating[0]
        state = state._replace(source=source._replace(tmp=0, changed=UNCHANGED))
        told = phase_of(migrating) == RETIRED
        # The process that has it open knows what it did itself; another goes by the directory.
        has_it = sender.program == "attempt"
        retired = retired_now(self.protocol, source)
        if self.protocol.unlink and not has_it:
            retired = source.file[0] in NOTHING
        if not self.rule("finish: the source must be gone"):
            retired = retired or phase_of(migrating) in (COPIED, RETIRED)
        status = -1
        if TORN in (migrating, source.migrated[0]):
            status = 1
        elif retired and migrating == NONE:
            status = 1  # no such file, or MIGRATED: there is nothing to do
        elif retired and phase_of(migrating) == COPYING:
            status = 1  # gone, and not by us
        elif not (retired or has_it) and source.file[0] != THERE:
            # Gone, where it was to be kept; or another disk, and if a record stands beside it,
            # not the one that the record is about.
            gone = source.file[0] in NOTHING or migrating == NONE
            if gone or self.rule("begin: another file than the record's is refused"):
                status = 1
        if status >= 0:
            return state._replace(sender=Sender("exit", status=status))
        ident = sender.ident if sender.program == "attempt" else -1
        if migrating != NONE:
            ident = ident_of(migrating)
        elif ident < 0:
            ident = self.fresh_ident(state)
        program = "finish" if retired or told else "attempt"
        kept = sender.kept
        if sender.program == "look":
            found = self.rule("stop: the id that was found is kept until it is claimed")
            kept = migrating != NONE and found
        kept = kept and program == "attempt"
        new = Sender(program, ident=ident, cookie=self.fresh_cookie(state), kept=kept)
        state = state._replace(sender=new)
        if program == "finish" and source.migrated[0] == CONFIRMED:
            return self.conclude(state)
        return self.advance(state)

    def fresh_ident(self, state: State) -> int:
        used = {ident_of(value) for value in members(state.target.incomplete[1])}
        used |= {ident_of(value) for value in members(state.source.migrating[1])}
        used |= set(state.receiver.claim[:1])
        if state.receiver.bound:
            used.add(state.receiver.ident)
        for message in (state.old_side and state.old_side.up, state.receiver.message):
            if message and message[0] in ("copying", "copied", "retired"):
                used.add(message[1])
        return next(ident for ident in OURS if ident not in used)

    def fresh_cookie(self, state: State) -> int:
        """A number that nothing else remembers; a UUID's part, in the program."""
        used = {*state.receiver.claim[1:], state.receiver.finish}
        for wire in (state.old_main, state.old_side):
            if wire is not None:
                used.update(cookies(wire.up))
        used.update(cookies(state.receiver.message))
        return next(number for number in itertools.count(1) if number not in used)

    def orphan(self, state: State, which: str = "MH") -> State:
        """The sender's ends are closed; what it sent may still arrive."""
        for live, old in zip(which, which.lower(), strict=True):
            wire = getattr(state, WIRES[live])
            if wire is None:
                continue
            receiver = state.receiver
            changes: dict[str, object] = {WIRES[live]: None}
            handled = receiver.who == live
            needed = wire.alive and (bool(wire.up) or receiver.bound == live or handled)
            if needed:
                if getattr(state, WIRES[old]) is not None:
                    if receiver.who == old:  # the older one is being served: the newer is lost
                        if receiver.bound == live:
                            changes["receiver"] = self.end_attempt(receiver)
                        state = state._replace(**changes)
                        continue
                    if receiver.bound == old:
                        receiver = self.end_attempt(receiver)
                if handled:
                    receiver = receiver._replace(who=old)
                if receiver.bound == live:
                    receiver = receiver._replace(bound=old)
                changes[WIRES[old]] = Wire(wire.up)
                changes["receiver"] = receiver
            state = state._replace(**changes)
        if which == "MH":
            state = state._replace(source=state.source._replace(changed=UNCHANGED))
        return state

    def drop(self, state: State) -> State:
        """The sender has lost a connection, or was refused: this attempt is over."""
        sender = state.sender
        if sender.program == "back":
            return self.give_up(state)
        state = self.orphan(state)
        if self.plain and retired_now(self.protocol, state.source):
            return state._replace(sender=Sender("exit", status=5))
        return self.begin(state._replace(sender=sender))

    def hear(self, state: State, channel: str) -> State:
        """A reply has reached the sender."""
        sender = state.sender
        wire = getattr(state, WIRES[channel])
        reply = wire.down
        state = state._replace(**{WIRES[channel]: wire._replace(down=())})
        steps = self.protocol.sender[sender.program]
        step = steps[sender.pc]
        if reply[0] == "refused":
            if sender.program == "anew" and step.name == "H.retired":
                return self.conclude(state)  # it has another disk
            if sender.program == "back":  # until the attempt's connection is gone over there
                return self.take_back(state)
            return self.drop(state)
        if reply[0] == "ok":
            if step.name == "H.copying":
                sender = sender._replace(kept=False)
            elif step.name == "H.retired" and phase_of(state.source.migrating[0]) == RETIRED:
                pc = sender.pc  # told already, and on record
                while steps[pc + 1].name.startswith("MIGRATING(told)"):
                    pc += 1
                sender = sender._replace(pc=pc)
            return self.next_step(state._replace(sender=sender))
        return self.hear_page(state, step, reply)

    def hear_page(self, state: State, step: Step, reply: tuple) -> State:
        sender = state.sender
        if sender.program == "back":
            ours = reply[1] in (COPYING, COPIED) and reply[2] == sender.ident
            return self.next_step(state) if ours else self.give_up(state)
        complete = reply[1:] == ("complete", sender.ident)
        if complete and state.receiver.doing != "complete":
            state = state._replace(left=True)  # that receiver is no more
        if step.name == "H.complete":
            if complete:
                return self.next_step(self.close_side(state))
            return self.drop(state)
        copied_of_ours = reply[1] == COPIED and reply[2] == sender.ident
        if sender.program == "attempt":
            another = reply[1] == COPIED and reply[2] != THEIRS and not copied_of_ours
            if not another and reply[1] != RETIRED:
                return self.next_step(state)
            if state.source.migrating[0] == NONE:  # the first attempt: a human has to look
                return self.orphan(state)._replace(sender=Sender("exit", status=1))
            return self.drop(state)
        told = phase_of(state.source.migrating[0]) == RETIRED
        if copied_of_ours or reply[1:] == (RETIRED, sender.ident):
            return self.next_step(state)
        if (
            told
            and reply[1] == -1
            and self.rule("finish: a told sender that finds no record tells it")
        ):
            return self.advance(
                state._replace(sender=sender._replace(program="anew", pc=0, waiting=False))
            )
        if complete or told:
            return self.conclude(state)
        return self.orphan(state)._replace(sender=Sender("exit", status=5))

    # How a sender ends that has not retired its source.

    def look_at_source(self, state: State, step: Step) -> State:
        """The sender looks at name, inode, size and times of its file."""
        file, altered = state.source.file[0], state.source.changed
        if file != THERE and not self.rule("look: the source's name"):
            file = THERE
        if altered == WRITTEN and not self.rule("look: the source's mtime and size"):
            altered = UNCHANGED
        if altered == DATED and not self.rule("look: the source's ctime"):
            altered = UNCHANGED
        if file in NAMELESS:
            # The copy is the only one, and MIGRATING is to say so.
            first = step.name == "source.look first" and altered == UNCHANGED
            return self.next_step(state) if first else self.leave_it(state)
        if file != THERE or altered == WRITTEN:
            return self.end(state, 3)
        return self.drop(state) if altered == DATED else self.next_step(state)

    def end(self, state: State, status: int) -> State:
        """The migration ends; the source is as it was, and a copy that is whole is taken back."""
        source, sender = state.source, state.sender
        if (
            source.file[0] in NAMELESS
            and sender.kept
            and self.rule("back: not once the last name is gone")
        ):
            return self.leave_it(state)
        state = self.orphan(state)
        state = state._replace(
            source=state.source._replace(tmp=0), sender=sender._replace(status=status)
        )
        if source.migrating[0] == NONE:
            return self.go_to(state, "stop-keep")
        if not sender.kept:
            return self.go_to(state, "stop")
        # First this: whoever moves the source away from now on is not taken for us.
        copied = phase_of(source.migrating[0]) >= COPIED
        return self.go_to(state, "unsay") if copied else self.take_back(state)

    def take_back(self, state: State) -> State:
        """The destination is not to say any more that its copy is whole."""
        state = self.orphan(state)
        if self.plain or state.sender.status == 5:
            return self.give_up(state)
        cookie = self.fresh_cookie(state)
        return self.go_to(state._replace(sender=state.sender._replace(cookie=cookie)), "back")

    def give_up(self, state: State) -> State:
        """It may say so on: the id is kept."""
        return self.go_to(self.orphan(state), "stop-keep")

    def leave_it(self, state: State, sure: bool = True) -> State:
        """The source has lost its last name: its copy is the only one, and stays as it is.

        If it is of a source that was changed, or perhaps so, a human has to look.
        """
        sure = sure and state.source.changed == UNCHANGED
        copied = phase_of(state.source.migrating[0]) >= COPIED
        state = self.orphan(state)
        state = state._replace(
            source=state.source._replace(tmp=0), sender=state.sender._replace(status=5)
        )
        return self.go_to(state, "unsay" if copied and not sure else "stop-keep")

    def go_to(self, state: State, program: str) -> State:
        old = state.sender
        sender = Sender(program, ident=old.ident, status=old.status)
        if program in ("back", "unsay"):
            sender = sender._replace(cookie=old.cookie, kept=old.kept)
        return self.advance(state._replace(sender=sender))

    def conclude(self, state: State) -> State:
        """Nothing is left but to put on record that the destination is complete."""
        steps = self.protocol.sender[state.sender.program]
        names = [step.name for step in steps]
        first = "MIGRATING.unlink" if self.protocol.unlink else "MIGRATED(confirmed).write"
        pc = names.index(first) if first in names else names.index("MIGRATING.unlink")
        sender = state.sender._replace(pc=pc, waiting=False)
        return self.orphan(state)._replace(sender=sender)

    def concluded(self, state: State) -> bool:
        """Whether the sender looks for no receiver any more."""
        if state.source.migrating[0] == NONE or state.source.migrated[0] == CONFIRMED:
            return True
        steps = self.protocol.sender.get(state.sender.program, [])[state.sender.pc :]
        return bool(steps) and not any(step.op in ("ask", "connect") for step in steps)

    def nothing_to_run(self, state: State) -> bool:
        """Assumption 2: the destination's verdict is `canonical`, and nobody waits for it."""
        if not self.protocol.overwrite:
            return False  # it may be run, and is refused
        if state.target.incomplete[0] != NONE or "rerun" in self.kinds:
            return False
        return state.done == 2 or (state.done == 1 and self.concluded(state))

    def unguarded(self, state: State) -> bool:
        """Assumption 1: the receiver was started on a finished disk, and was told nothing yet."""
        if "finished stranger" in self.kinds or not self.protocol.overwrite:
            return False
        finished = bool(state.done) and state.target.incomplete[0] == NONE
        return finished and state.receiver.anew < 0

    def close_side(self, state: State) -> State:
        return state._replace(side=None)

    def waiting_for_the_wire(self, state: State) -> bool:
        steps, pc = self.protocol.sender.get(state.sender.program), state.sender.pc
        if steps is None:
            return False
        if pc and steps[pc].name in ("source.look", "source.unlink", "MIGRATED.write"):
            # A connection lost while `copied` was put on record here: it does not retire then.
            return steps[pc - 1].name == "MIGRATING(copied).dirsync"
        return steps[pc].op in ("ask", "closed", "connect")

    # -- all moves --

    def moves(self, state: State) -> Iterator[Move]:
        yield from self.receiver_moves(state)
        yield from self.sender_moves(state)
        yield from self.stranger_moves(state)
        if state.faults:
            spent = state._replace(faults=state.faults - 1)
            late = "late stranger" in self.kinds and retired_now(self.protocol, state.source)
            if late or "stranger" in self.kinds:
                yield from self.strangers_come(spent)
            yield from self.receiver_dies(spent)
            if not self.plain:
                yield from self.target_is_changed(spent)
            if state.sender.program != "never":
                yield from self.source_is_changed(spent)
                yield from self.sender_dies(spent)
                if state.sender.program not in ("dead", "exit"):
                    if "stop" in self.kinds:
                        yield from self.sender_is_stopped(spent)
                    if "cut" in self.kinds:
                        yield from self.cuts(spent)
            if "stop" in self.kinds:
                yield from self.receiver_is_stopped(spent)

    def receiver_moves(self, state: State) -> Iterator[Move]:
        receiver = state.receiver
        if receiver.doing == "dead" and not self.nothing_to_run(state):
            yield Move(7, "receiver starts", NOBODY, self.start_receiver(state))
        elif receiver.doing == "exit" and self.run_again(state):
            rank = 7 if receiver.status in (3, 5) else NEVER
            yield Move(rank, "receive is run again", NOBODY, self.start_receiver(state))
        elif receiver.doing in self.protocol.receiver:
            steps = self.protocol.receiver[receiver.doing][receiver.pc :]
            step = next((step for step in steps if step.op not in UNSEEN), steps[0])
            actor = "stranger" if receiver.who in ("F", "X") else NOBODY
            yield Move(0, f"receiver: {step.name}", actor, self.run_receiver(state))
        if self.free(state):
            for rank, who in ((1, "M"), (1, "H"), (NEVER, "m"), (NEVER, "h")):
                wire = getattr(state, WIRES[who])
                if wire is not None and wire.alive and wire.up:
                    ready = state._replace(**{WIRES[who]: wire._replace(up=())})
                    label = f"receiver gets {' '.join(map(str, wire.up[:2]))} on {who}"
                    yield Move(rank, label, NOBODY, self.accept(ready, who, wire.up))
        for who in ("m", "h"):
            wire = getattr(state, WIRES[who])
            if wire is not None and receiver.who != who:
                gone = state._replace(**{WIRES[who]: None})
                if receiver.bound == who:
                    gone = gone._replace(receiver=self.end_attempt(receiver))
                yield Move(0, f"receiver sees {who} end", NOBODY, gone)
        if receiver.doing == "complete":
            rank = 9 if state.sender.program == "exit" or state.side is None else NEVER
            yield Move(rank, "receiver: exit 0", NOBODY, self.kill_receiver(state, 0))

    def run_again(self, state: State) -> bool:
        """Whether `receive` may be run again after its end."""
        if state.receiver.status in (3, 5) or not self.protocol.overwrite:
            return True
        return "rerun" in self.kinds and self.concluded(state)

    def kill_receiver(self, state: State, status: int | None = None) -> State:
        def severed(wire: Wire | None) -> Wire | None:
            return wire and wire._replace(up=(), alive=False)

        return state._replace(
            receiver=Receiver("dead") if status is None else Receiver("exit", status=status),
            main=severed(state.main),
            side=severed(state.side),
            old_main=None,
            old_side=None,
            target=self.let_go(state, killed=status is None)._replace(tmp=0),
        )

    def let_go(self, state: State, killed: bool) -> Target:
        """Nobody has the file open any more: without a name it is no more."""
        target = state.target
        if target.name == OURS_THERE or target.file[0] == ABSENT:
            return target
        harm = target.harm
        if killed and (target.late or self.says_copied(target)) and not target.saved & SAVED:
            harm = self.destroyed
        return target._replace(
            file=durable(ABSENT), first=durable(HOLE), second=durable(HOLE), harm=harm
        )

    @property
    def destroyed(self) -> int:
        """What it is when somebody else destroys a whole copy (assumption 6)."""
        return CUT_EARLY if "destroyed copy" in self.kinds else DESTROYED

    def sender_moves(self, state: State) -> Iterator[Move]:
        sender = state.sender
        if sender.program == "never":
            return
        if sender.program == "dead" or (sender.program == "exit" and sender.status in (3, 4, 5)):
            fresh = state._replace(sender=Sender("look"))
            if not self.protocol.sender["look"]:
                fresh = self.begin(fresh)
            yield Move(7, "sender starts", NOBODY, fresh)
            unretired = not retired_now(self.protocol, state.source)
            if state.version == V1 and unretired and state.source.file[0] == THERE:
                yield Move(NEVER, "the source is changed", NOBODY, state._replace(version=V2))
            return
        if sender.program == "exit":
            return
        step = self.protocol.sender[sender.program][sender.pc]
        after_disc = any(
            earlier.op == "disc" for earlier in self.protocol.sender[sender.program][: sender.pc]
        )
        if sender.waiting:
            channel = str(step.what)[0]
            wire = getattr(state, WIRES[channel])
            if wire.down:
                label = f"sender gets {' '.join(map(str, wire.down))}"
                yield Move(2, label, NOBODY, self.hear(state, channel))
        elif step.op in ("connect", "ask"):
            sent = self.advance(state)
            if sent is not state and sent != state:
                yield Move(3, f"sender: {step.name}", NOBODY, sent)
            elif step.op == "ask" and (not self.listening(state)):
                yield Move(4, "sender cannot connect", NOBODY, self.drop(state))
        elif step.op == "closed":
            if state.main is None or not state.main.alive:
                gone = state._replace(main=None)
                yield Move(3, "sender sees M closed", NOBODY, self.next_step(gone))
        elif step.op == "exit":
            status = sender.status if step.what == "" else int(step.what)
            done = self.orphan(state)._replace(sender=Sender("exit", status=status))
            yield Move(3, f"sender: exit {status}", NOBODY, done)
        elif step.op == "look":
            yield Move(3, f"sender: {step.name}", NOBODY, self.look_at_source(state, step))
        elif step.op == "baseline":
            yield Move(3, f"sender: {step.name}", NOBODY, self.next_step(state))
        else:
            steps, pc, source = self.protocol.sender[sender.program], sender.pc, state.source
            while steps[pc].op in UNSEEN:
                source = self.on_source(source, steps[pc], sender.ident)
                pc += 1
            if steps[pc].op in ON_DISK:
                source = self.on_source(source, steps[pc], sender.ident)
            else:  # only by mutation: what follows is not the rename
                pc -= 1
            moved = state._replace(source=source, sender=sender._replace(pc=pc))
            yield Move(3, f"sender: {steps[pc].name}", NOBODY, self.next_step(moved))
        if sender.program == "back":
            yield Move(NEVER, "sender gives up taking it back", NOBODY, self.give_up(state))
        if self.waiting_for_the_wire(state) and step.op != "closed":
            dead = [
                name
                for name in ("main", "side")
                if (wire := getattr(state, name)) is not None
                and not wire.alive
                and not (name == "main" and after_disc)
            ]
            if dead:
                yield Move(4, "sender sees the connection end", NOBODY, self.drop(state))
            if "side" in dead and step.name == "H.copied" and self.listening(state):
                again = state._replace(side=None, sender=sender._replace(waiting=False))
                yield Move(3, "sender opens another H", NOBODY, self.advance(again))
            if self.may_leave(state):
                # The thirty seconds: in a calm run the receiver is back long before.
                left = self.conclude(state)._replace(left=True)
                if not self.listening(state):
                    yield Move(8, "sender: told, and nobody is there", NOBODY, left)
                elif dead:
                    yield Move(NEVER, "sender: told, and tried for long", NOBODY, left)

    def may_leave(self, state: State) -> bool:
        """Whether the sender may end without having found a receiver."""
        told = phase_of(state.source.migrating[0]) == RETIRED
        may = told or not self.rule("leave: only when told")
        return may and state.sender.program in ("finish", "anew")

    def stranger_moves(self, state: State) -> Iterator[Move]:
        """A foreign sender that is let in goes on as it likes; one that comes is a fault."""
        receiver = state.receiver
        if self.plain or receiver.doing != "idle":
            return
        if receiver.bound == "F":
            gone = state._replace(receiver=self.end_attempt(receiver))
            yield Move(0, "foreign sender vanishes", "stranger", gone)
            for block in (0, 1):
                yield self.foreign(state, ("write", block, 0))
            yield self.foreign(state, ("flush",))
            yield self.foreign(state, ("disc", 0))
        elif self.protocol.peer == "foreign" and not receiver.bound and not self.unguarded(state):
            for block in (0, 1):
                yield self.foreign(state, ("write", block, 0))
        if receiver.finish == -1:  # never, unless a rule is lifted
            yield self.foreign(state, ("disc", -1), "X")

    def foreign(self, state: State, message: tuple, who: str = "F") -> Move:
        label = f"{'foreign sender' if who == 'F' else 'stray'}: {' '.join(map(str, message[:2]))}"
        return Move(NEVER, label, "stranger", self.accept(state, who, message))

    def strangers_come(self, state: State) -> Iterator[Move]:
        if self.plain or state.receiver.doing != "idle":
            return
        yield self.foreign(state, ("disc", 0), "X")
        # The finisher of another migration; one that was told by this very file (it has its token)
        # is believed where there is a disk and no record (assumption 3).
        yield self.foreign(state, ("retired", THEIRS, -1, False), "X")
        bare = state.target.file[0] == SIZED and state.target.incomplete[0] == NONE
        if not bare or "earlier finisher" in self.kinds:
            yield self.foreign(state, ("retired", THEIRS, -1, True), "X")
        if self.protocol.peer != "foreign" and not self.unguarded(state):
            # Another blockmig sender, with an id of its own; its data comes as a foreign one's.
            yield self.foreign(state, ("copying", THEIRS, -1), "X")
            if state.receiver.bound != "F":
                yield self.foreign(state, ("write", 0, 0))

    def receiver_dies(self, state: State) -> Iterator[Move]:
        receiver = state.receiver
        dead = self.kill_receiver(state)
        if receiver.doing == "exit":
            dead = dead._replace(receiver=receiver)
        elif receiver.doing != "dead" and "crash" in self.kinds:
            yield Move(NEVER, "receiver crashes", NOBODY, dead)
        if "power" not in self.kinds:
            return
        for target in target_losses(state.target):
            lost = dead._replace(target=target)
            if target.incomplete[0] != NONE and not self.plain:
                lost = lost._replace(done=0)  # the record is back: that was not yet the end
            yield Move(NEVER, f"receiver loses power: {tell(target)}", NOBODY, lost)

    def sender_dies(self, state: State) -> Iterator[Move]:
        alive = state.sender.program not in ("dead", "exit")
        dead = self.orphan(state)
        dead = dead._replace(source=dead.source._replace(tmp=0))
        if alive:
            dead = dead._replace(sender=Sender("dead"))
            if "crash" in self.kinds:
                yield Move(NEVER, "sender crashes", NOBODY, dead)
        if "power" not in self.kinds:
            return
        for source in source_losses(state.source):
            lost = dead._replace(source=source)
            yield Move(NEVER, f"sender loses power: {tell(source)}", NOBODY, lost)

    def sender_is_stopped(self, state: State) -> Iterator[Move]:
        sender = state.sender
        late = retired_now(self.protocol, state.source)
        if sender.program != "attempt" or (late and self.rule("stop: only before retiring")):
            return
        stopped = self.end(state, 4)
        if late:  # only by mutation
            stopped = self.orphan(state)._replace(sender=Sender("stop-keep", status=4))
        yield Move(NEVER, "sender is stopped", NOBODY, stopped)

    # -- what somebody else does to the files --

    def source_is_changed(self, state: State) -> Iterator[Move]:
        """Deleted, replaced, moved, moved and replaced; or written to, by a program that takes no
        lock: plainly, by a mapping, or with the mtime put back."""
        source, sender = state.source, state.sender
        attempt = self.protocol.sender["attempt"] if sender.program == "attempt" else []
        pc = sender.pc
        # What was retired is nobody's disk any more.
        if source.file != durable(THERE) or source.migrated != durable(NONE):
            return
        if sender.program == "exit" and sender.status < 3:
            return
        act = attempt[self.retire_index].name if attempt else ""
        lifted = "between look and act" in self.kinds
        if attempt and self.about_to(attempt, pc, "source.look", act) and not lifted:
            return  # assumption 4
        if "swap source" in self.kinds:
            for value, how in (
                (LOST, "deleted"),
                (OTHER, "replaced"),
                (MOVED, "moved"),
                (AWAY, "moved and replaced"),
            ):
                if value in (MOVED, LOST) and self.gone_late(state, value):
                    continue
                moved = state._replace(source=source._replace(file=durable(value)))
                yield Move(NEVER, f"the source is {how}", NOBODY, moved)
        names = [step.name for step in attempt]
        if "write source" in self.kinds and state.version != V3 and attempt:
            synced = names.index("source.fsync") if "source.fsync" in names else -1
            if pc <= synced:
                return  # before the scan: as if no sender ran
            # A mapped write to a page that was dirty before shows nowhere.
            mapped = WRITTEN if synced >= 0 else source.changed
            for altered, how in (
                (WRITTEN, ""),
                (mapped, ", by a mapping"),
                (DATED, ", its mtime put back"),
            ):
                written = source._replace(changed=altered)
                label = f"the source is written to{how}"
                yield Move(NEVER, label, NOBODY, state._replace(source=written, version=V3))

    def gone_late(self, state: State, how: int) -> bool:
        """Assumption 5: while MIGRATING says copied nobody moves the source away, or deletes it
        once it was written to again; nor when it is about to say so, the first look being over."""
        if how == LOST and holds(state.target, state.version):
            return False
        if {MOVED: "moved late", LOST: "deleted late"}[how] in self.kinds:
            return False
        if any(phase_of(value) >= COPIED for value in members(state.source.migrating[1])):
            return True
        sender = state.sender
        steps = self.protocol.sender.get(sender.program, [])
        return self.about_to(steps, sender.pc, "source.look first", "MIGRATING(copied).rename")

    def about_to(self, steps: list[Step], pc: int, look: str, act: str) -> bool:
        """Whether that look has just been taken, and that act is all that follows."""
        unseen = (*UNSEEN, "reply")
        before = [step.name for step in steps[:pc] if step.op not in unseen]
        after = [step.name for step in steps[pc:] if step.op not in unseen]
        return before[-1:] == [look] and after[:1] == [act]

    def says_copied(self, target: Target) -> bool:
        return any(phase_of(value) >= COPIED for value in members(target.incomplete[1]))

    def looked(self, state: State, steps: list[Step]) -> int:
        """Which of its looks the receiver has behind it; what strikes now they did not miss."""
        target, receiver = state.target, state.receiver
        done = [step.name for step in steps[: receiver.pc]]
        said = max(phase_of(value) for value in members(target.incomplete[1]))
        if said == RETIRED or (receiver.doing == "retired" and "retired.look" in done):
            return LOOKED_RETIRED
        if said == COPIED or self.about_to(
            steps, receiver.pc, "copied.look", "INCOMPLETE(copied).rename"
        ):
            return LOOKED_COPIED
        return 0

    def target_is_changed(self, state: State) -> Iterator[Move]:
        """Deleted, replaced, cleared away with its record; or cut."""
        target, receiver = state.target, state.receiver
        alive = receiver.doing not in ("dead", "exit")
        if target.name != OURS_THERE or target.file[0] == ABSENT or state.done:
            return  # after the end it is a disk like any other
        if not alive and target.incomplete[0] == NONE:
            return  # no migration has to do with it
        steps = self.protocol.receiver.get(receiver.doing, [])
        lifted = "between look and act" in self.kinds
        if self.about_to(steps, receiver.pc, "complete.look", "INCOMPLETE.unlink") and not lifted:
            return  # assumption 4
        late = self.looked(state, steps)
        if "swap target" in self.kinds:
            for name, how in ((DELETED, "deleted"), (REPLACED, "replaced")):
                yield self.swapped(state, how, target._replace(name=name, late=late))
            begun = phase_of(target.incomplete[0]) == COPYING and not late
            if begun and receiver.doing == "idle" and not receiver.bound and not receiver.claim:
                gone = target._replace(name=DELETED, incomplete=durable(NONE))
                yield self.swapped(state, "cleared away with its record", gone)
        if "cut target" not in self.kinds or target.file[0] != SIZED:
            return
        if self.about_to(steps, receiver.pc, "end.look", "block.write") and not lifted:
            return  # assumption 4
        cut = target._replace(
            file=durable(CUT),
            first=durable(HOLE),
            second=durable(HOLE),
            harm=self.destroyed if late else CUT_EARLY,
        )
        yield Move(NEVER, "the destination is cut", NOBODY, state._replace(target=cut))

    def swapped(self, state: State, how: str, target: Target) -> Move:
        new = state._replace(target=target)
        if state.receiver.doing in ("dead", "exit"):
            new = new._replace(target=self.let_go(new, killed=True))
        return Move(NEVER, f"the destination is {how}", NOBODY, new)

    def receiver_is_stopped(self, state: State) -> Iterator[Move]:
        """It looks at its file if that may be the only copy; if nothing is wrong, it is a crash."""
        target, receiver = state.target, state.receiver
        if receiver.doing != "idle" or phase_of(target.incomplete[0]) < COPIED:
            return
        looking = state._replace(receiver=receiver._replace(message=("stop",)))
        found = self.look_at_target(looking, Step("stop.look", "look", "rescue"))
        if found is not looking and self.rule("stop: the receiver looks first"):
            yield Move(NEVER, "receiver is stopped", NOBODY, self.run_receiver(found, calls=0))
        elif target.name != OURS_THERE:
            dead = self.kill_receiver(state, 5)
            yield Move(NEVER, "receiver is stopped", NOBODY, dead)

    def cuts(self, state: State) -> Iterator[Move]:
        receiver = state.receiver
        if self.waiting_for_the_wire(state) and (state.main or state.side):
            yield Move(NEVER, "cut, as the sender sees", NOBODY, self.drop(state))
            if self.may_leave(state):
                left = self.conclude(state)._replace(left=True)
                yield Move(NEVER, "cut, and the sender has tried for long", NOBODY, left)
            step = self.protocol.sender[state.sender.program][state.sender.pc]
            if step.name == "H.copied" and state.side and self.listening(state):
                again = self.orphan(state, "H")
                again = again._replace(sender=again.sender._replace(waiting=False))
                yield Move(NEVER, "H cut, as the sender sees", NOBODY, self.advance(again))
        for who in ("M", "H"):
            wire = getattr(state, WIRES[who])
            if wire is not None and wire.alive and receiver.who != who:
                cut = state._replace(**{WIRES[who]: wire._replace(up=(), alive=False)})
                if receiver.bound == who:
                    cut = cut._replace(receiver=self.end_attempt(receiver))
                yield Move(NEVER, f"{who} cut, as the receiver sees", NOBODY, cut)

    # -- the calm run --

    def calm(self, state: State) -> Move | None:
        """The one next move when nothing more goes wrong, None at the end."""
        best: Move | None = None
        for move in self.moves(state):
            if move.rank < NEVER and (best is None or move.rank < best.rank):
                best = move
        return best

    def both_restarted(self, state: State) -> State:
        state = self.orphan(state._replace(faults=0))
        if state.receiver.doing != "exit":
            state = self.kill_receiver(state)
        else:
            state = state._replace(old_main=None, old_side=None)
        if state.sender.program != "exit":
            state = state._replace(sender=Sender("dead"), source=state.source._replace(tmp=0))
        return state

    def good_end(self, state: State) -> str:
        """How well both ended: `` if not at all."""
        sender, receiver, target = state.sender, state.receiver, state.target
        removed = state.source.migrating[1] == 1 << NONE
        finished = state.done == 1 and target.incomplete[0] == NONE
        sent = sender.program == "exit" and (
            (sender.status == 0 and state.source.migrating[0] == NONE)
            or (sender.status == 1 and removed and surely_retired(self.protocol, state.source))
        )
        if self.plain and sent:
            return "both"
        got = (receiver.doing == "exit" and receiver.status == 0) or (
            receiver.doing == "dead" and finished and self.nothing_to_run(state)
        )
        if sent and got and not self.plain:
            return "both"
        if sent and finished and receiver.doing == "exit" and receiver.status == 1:
            return "refused"
        if sent and state.left and phase_of(target.incomplete[0]) == RETIRED:
            return "told"
        if sent and state.left and finished and receiver.doing == "idle":
            return "late"
        return "human" if self.human(state) else ""

    def human(self, state: State) -> bool:
        """Whether somebody else has done what no program can mend, so that a human has to look."""
        source, target = state.source, state.target
        if self.protocol.there == "data" and not self.protocol.overwrite:
            return True  # there is no place to receive into
        phase = phase_of(target.incomplete[0])
        if source.file[0] in (OTHER, MOVED, AWAY) or target.saved or target.harm == DESTROYED:
            return True
        if target.name != OURS_THERE and (target.name == REPLACED or phase >= COPIED):
            return True
        # Deleted by somebody else: who has a copy on record, and the other too, can finish.
        finishes = phase_of(source.migrating[0]) >= COPIED and (phase >= COPIED or state.done)
        return source.file[0] == LOST and not (self.protocol.unlink and finishes)


def cookies(message: tuple) -> Iterable[int]:
    if not message:
        return ()
    return {"write": message[2:3], "copying": message[2:3], "retired": message[2:3]}.get(
        message[0], message[1:2] if message[0] == "disc" else ()
    )


def source_losses(source: Source) -> Iterator[Source]:
    for file, migrating, migrated in itertools.product(
        members(source.file[1]), members(source.migrating[1]), members(source.migrated[1])
    ):
        yield Source(durable(file), durable(migrating), durable(migrated), 0, source.changed)


def target_losses(target: Target) -> Iterator[Target]:
    seen = set()
    for file, first, second, incomplete in itertools.product(
        members(target.file[1]),
        members(target.first[1]),
        members(target.second[1]),
        members(target.incomplete[1]),
    ):
        blocks = (first, second) if file == SIZED else (HOLE, HOLE)
        lost = target._replace(
            file=durable(file),
            first=durable(blocks[0]),
            second=durable(blocks[1]),
            incomplete=durable(incomplete),
            tmp=0,
        )
        if lost not in seen:
            seen.add(lost)
            yield lost


def tell(disk: Source | Target) -> str:
    """What a power loss left, for a trace."""
    if isinstance(disk, Source):
        file, migrating, migrated = disk.file[0], disk.migrating[0], disk.migrated[0]
        words = [f"file {'there' if file == THERE else 'gone'}", f"MIGRATING {word(migrating)}"]
        return ", ".join([*words, *(["MIGRATED"] if migrated >= MARKED else [])])
    file = {ABSENT: "absent", EMPTY: "empty", SIZED: "sized", CUT: "cut"}[disk.file[0]]
    return f"file {file}, INCOMPLETE {word(disk.incomplete[0])}"


def word(value: int) -> str:
    if value < 2:
        return ("none", "torn")[value]
    return f"{('copying', 'copied', 'retired')[phase_of(value)]} of {ident_of(value)}"


# --- The explorer ------------------------------------------------------------------------------


@dataclass
class Result:
    """What exploring one protocol came to."""

    protocol: Protocol
    faults: int
    states: int
    transitions: int
    seconds: float
    broken: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)

    @property
    def rule(self) -> str:
        """The invariant of the first violation, `` when there is none."""
        return self.broken[0].split()[0] if self.broken else ""


def explore(protocol: Protocol, faults: int, kinds: frozenset[str] = KINDS) -> Result:
    """Visit every reachable state, breadth first, until an invariant breaks.

    Safety is checked in each state as it is found; liveness (R4, R6) of all of them afterwards,
    in the order in which they were found.
    """
    gc.disable()  # all is kept until the end
    try:
        return explore_all(Machine(protocol, faults, kinds))
    finally:
        gc.enable()


def explore_all(machine: Machine) -> Result:
    """Visit every state that the machine can reach."""
    protocol, faults = machine.protocol, machine.faults
    started = time.monotonic()
    first = machine.initial()
    parents: dict[State, tuple[State, str] | None] = {first: None}
    # With the same state and more faults to spare everything is reachable that is with fewer:
    # the most that a state was reached with is what counts.
    spare: dict[tuple, int] = {first[:-1]: first.faults}
    calm: dict[tuple, tuple | None] = {}
    looked_at: Known = {}
    queue = deque([first])
    transitions = 0

    def result(broken: list[str], state: State | None, *more: str) -> Result:
        trace = [*trace_to(parents, state), *more] if state is not None else []
        seconds = time.monotonic() - started
        return Result(protocol, faults, len(spare), transitions, seconds, broken, trace)

    while queue:
        state = queue.popleft()
        best: Move | None = None
        for move in machine.moves(state):
            transitions += 1
            new = move.state
            if move.rank < NEVER and (best is None or move.rank < best.rank):
                best = move
            key = new[:-1]
            if spare.get(key, -1) >= new.faults:
                # The act may still be wrong, when the state is not.
                if broken := misdeeds(protocol, state, move.actor, new):
                    return result(broken, state, move.label)
                continue
            spare[key] = new.faults
            parents[new] = (state, move.label)
            if broken := violations(protocol, state, move.actor, new, looked_at):
                return result(broken, new)
            queue.append(new)
        calm[state[:-1]] = best and best.state[:-1]
    if protocol.peer == "foreign":
        return result([], None)
    ends: dict[str, int] = {}
    known: dict[tuple, str] = {}
    for key in spare:
        restarted = machine.both_restarted(State(*key, 0))
        for start, how in ((key, "with both going on"), (restarted[:-1], "with both restarted")):
            end = calm_end(machine, start, known, calm)
            ends[end] = ends.get(end, 0) + 1
            if not end:
                labels, last = calm_trace(machine, State(*start, 0))
                name = "R6" if retired_now(protocol, last.source) else "R4"
                found = next(whole for whole in parents if whole[:-1] == key)
                return result([f"{name} never ends well, {how}"], found, f"({how})", *labels)
    final = result([], None)
    final.ends = ends
    return final


def trace_to(parents: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    labels = []
    here: State = state
    while (entry := parents[here]) is not None:
        here, label = entry
        labels.append(label)
    return labels[::-1]


def calm_end(
    machine: Machine, key: tuple, known: dict[tuple, str], calm: dict[tuple, tuple | None]
) -> str:
    """How the run from here ends when nothing more goes wrong; `` if badly or never.

    @param key: a state but for its faults.
    @param known: what is known of other states.
    @param calm: of those that were explored, the next when nothing goes wrong.
    """
    path: list[tuple] = []
    on_path: set[tuple] = set()
    while key not in known:
        state = State(*key, 0)
        if key in on_path:
            known[key] = "human" if machine.human(state) else ""
            break
        path.append(key)
        on_path.add(key)
        if state.done == 2:  # the receiver has taken another's disk: ours has nowhere to go
            known[key] = "another's"
            break
        if key not in calm:
            move = machine.calm(state)
            calm[key] = move and move.state[:-1]
        following = calm[key]
        if following is None:
            known[key] = machine.good_end(state)
            break
        key = following
    for passed in path:
        known[passed] = known[key]
    return known[key]


def calm_trace(machine: Machine, state: State) -> tuple[list[str], State]:
    """The calm run from here, as far as its first repetition."""
    labels: list[str] = []
    seen = set()
    while state not in seen and (move := machine.calm(state)) is not None:
        seen.add(state)
        labels.append(move.label)
        state = move.state
    return labels, state


# --- Mutations ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """An edit of the protocol, and the invariant that it must break."""

    name: str
    breaks: str
    edit: Callable[[Protocol], Protocol]
    peer: str = "blockmig"
    unlink: bool = True
    faults: int = 1
    kinds: frozenset[str] = BREAKS
    there: str = ""
    overwrite: bool = False

    def explore(self, kinds: frozenset[str] | None = None) -> Result:
        protocol = self.edit(build(self.unlink, self.peer, self.there, self.overwrite))
        return explore(protocol, self.faults, kinds or self.kinds)


def edited(protocol: Protocol, program: str, steps: list[Step]) -> Protocol:
    side, name = program.split(":")
    return replace(protocol, **{side: {**getattr(protocol, side), name: steps}})


def steps_of(protocol: Protocol, program: str) -> list[Step]:
    side, name = program.split(":")
    return list(getattr(protocol, side)[name])


def drop(program: str, *names: str) -> Callable[[Protocol], Protocol]:
    """Leave those steps out."""

    def edit(protocol: Protocol) -> Protocol:
        steps = steps_of(protocol, program)
        assert set(names) <= {step.name for step in steps}, names
        return edited(protocol, program, [step for step in steps if step.name not in names])

    return edit


def move(program: str, names: str | tuple[str, ...], before: str) -> Callable[[Protocol], Protocol]:
    """Do those steps, in their order, just before another one."""
    moved = (names,) if isinstance(names, str) else names

    def edit(protocol: Protocol) -> Protocol:
        steps = steps_of(protocol, program)
        taken = [step for step in steps if step.name in moved]
        assert len(taken) == len(moved), names
        rest = [step for step in steps if step.name not in moved]
        at = next(index for index, step in enumerate(rest) if step.name == before)
        return edited(protocol, program, rest[:at] + taken + rest[at:])

    return edit


def without(*rules: str) -> Callable[[Protocol], Protocol]:
    """Lift those rules."""
    assert set(rules) <= RULES, rules
    return lambda protocol: replace(protocol, rules=protocol.rules - set(rules))


def both(*edits: Callable[[Protocol], Protocol]) -> Callable[[Protocol], Protocol]:
    def edit(protocol: Protocol) -> Protocol:
        for one in edits:
            protocol = one(protocol)
        return protocol

    return edit


def calls(kind: str) -> tuple[str, ...]:
    """The names of the steps that write a record."""
    return tuple(f"{kind}.{call}" for call in ("write", "fsync", "rename", "dirsync"))


SEND = "sender:attempt"
UNLINK = ("source.unlink", "source.dirsync")
LEAVE = ("M.disc", "M.closed")
REMOVE = ("MIGRATING.unlink", "MIGRATING.gone.dirsync")
ON_DEVICE: dict = {"unlink": False, "there": "blank"}
OVER_DATA: dict = {"there": "data", "overwrite": True}
KEEP: dict = {"unlink": False}
PLAIN: dict = {"peer": "plain"}
FOREIGN_SENDER: dict = {"peer": "foreign"}
SWAP: dict = {"kinds": frozenset({"swap source"})}
SWAP_KEPT: dict = {"unlink": False, **SWAP}
WRITE: dict = {"kinds": frozenset({"write source"})}
LOOKS = ("source.look first", "source.look")
LATE: dict = {"faults": 2, "kinds": frozenset({"cut", "late stranger"})}
CRASHES: dict = {"kinds": frozenset({"crash"})}
CUTS: dict = {"faults": 2, "kinds": frozenset({"cut"})}

FLUSH_EARLY = move("receiver:flush-whole", "reply", "INCOMPLETE(copied).write")

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
    Mutation("`retired` told before unlink", "R1", move(SEND, "H.retired", "source.unlink")),
    Mutation(
        "`retired` told before fsync of the directory",
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
        "a new attempt leaves `copied` standing",
        "R2",
        without("change: copied falls back first", "claim: copied falls back"),
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
        "the told sender concludes alone from page none",
        "R6",
        without("finish: a told sender that finds no record tells it"),
        **CRASHES,
        **OVER_DATA,
    ),
    Mutation(
        "a receiver started anew does not believe the told sender",
        "R6",
        drop("sender:anew", "H.retired"),
        **CRASHES,
        **OVER_DATA,
    ),
    Mutation(
        "a fresh receiver accepts `retired` from a sender that was not told",
        "R5",
        without("anew: only from a told sender"),
        **ON_DEVICE,
    ),
    Mutation(
        "the same on a blank disk",
        "R5",
        without("anew: only from a told sender", "anew: not on a blank disk"),
    ),
    Mutation(
        "a fresh receiver of a blank disk believes a told sender",
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
        without("stop: the id is kept from FLUSH on"),
        kinds=frozenset({"stop"}),
    ),
    Mutation(
        "a stopped sender forgets the id that it found, unclaimed",
        "R4",
        without("stop: the id that was found is kept until it is claimed"),
        faults=2,
        kinds=frozenset({"crash", "stop"}),
    ),
    Mutation(
        "a claim leaves another's `copied` standing",
        "R4",
        without("claim: copied falls back"),
        kinds=frozenset({"stranger"}),
    ),
    Mutation(
        # An attempt goes on only with a receiver that lives; one who takes back ends there.
        "the claim acknowledged before its record, by which `copied` is taken back",
        "R4",
        move("receiver:claim", ("claim", "reply"), "INCOMPLETE(copying).write"),
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
        "another's claim is let in on `copied`",
        "R5",
        without("claim: refused on another's copied"),
        **LATE,
    ),
    Mutation(
        "a claim is let in after `retired`", "R5", without("claim: refused once retired"), **LATE
    ),
    Mutation(
        "another's change is let in during an attempt",
        "R5",
        without("change: refused while another's attempt goes on"),
    ),
    Mutation(
        "another's claim is let in during an attempt",
        "R5",
        without("claim: refused while an attempt goes on"),
    ),
    # Finishing.
    Mutation("DISC before `retired` is told", "R6", move(SEND, LEAVE, "H.retired"), **CRASHES),
    Mutation(
        "DISC before MIGRATING(told)",
        "R6",
        move(SEND, LEAVE, "MIGRATING(told).write"),
        **CRASHES,
    ),
    Mutation("MIGRATING removed before DISC", "R6", move(SEND, REMOVE, "M.disc"), **CRASHES),
    Mutation(
        "MIGRATING removed before `complete` is read",
        "R6",
        move(SEND, REMOVE, "H.complete"),
        **CRASHES,
    ),
    Mutation("retired without asking for `copied`", "R7", drop(SEND, "H.copied")),
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
        drop("receiver:claim", "INCOMPLETE(copying).fsync"),
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
        "MIGRATING(told) before it was told",
        "R7",
        move(SEND, calls("MIGRATING(told)"), "H.retired"),
    ),
    Mutation("sender leaves without having told", "R7", without("leave: only when told")),
    Mutation(
        "file sized before the record",
        "R7",
        move("receiver:claim", "file.size", "INCOMPLETE(copying).write"),
    ),
    Mutation(
        "a late claim of an earlier connection is let in",
        "R7",
        without("claim: ends every older side connection"),
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
        "inspect does not tell another file from the record's",
        "R7",
        without("inspect: another file than the record's is told apart"),
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
        without("start: a disk that holds data is refused"),
        kinds=frozenset({"late stranger"}),
    ),
    Mutation(
        "a receiver goes on with another disk than the whole one of its record",
        "R7",
        without("start: another disk than the whole one of the record is refused"),
        kinds=frozenset({"swap target"}),
    ),
]

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
        faults=2,
        kinds=frozenset({"crash", "late stranger", "finished stranger"}),
        **OVER_DATA,
    ),
    Mutation(
        "assumptions 1 and 2 lifted: receive is run again after all has ended, a stranger comes",
        "R5",
        without(),
        faults=1,
        kinds=frozenset({"late stranger", "finished stranger", "rerun"}),
        **OVER_DATA,
    ),
    Mutation(
        "assumption 2 lifted: both commands are run again after all has ended",
        "R6",
        without(),
        faults=1,
        kinds=frozenset({"crash", "rerun"}),
        **OVER_DATA,
    ),
    Mutation(
        "assumption 3 lifted: a sender that an earlier migration into that very file has told",
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


# --- Every edit of one step ---------------------------------------------------------------------


Explored = list[tuple[Protocol, int, frozenset[str]]]

HARMLESS = {
    # Which edits break nothing, and why; names as of L{single_edits}, patterns of fnmatch.
    "*M.write 1 before M.write 0*": "blocks may come in any order",
    "sender:attempt: no H.page": "the answer to the claim decides, the page only explains",
    "sender:attempt: H.copying before H.page": "the answer to the claim decides",
    "sender:finish: no H.page": "the answer to `retired` decides",
    "sender:finish: H.retired before H.page": "the answer to `retired` decides",
    "sender:anew: M.disc before H.retired": "it is void, and the next try finds `retired`",
    "*MIGRATING(*).write before H.*": "nobody sees a temporary file",
    "*MIGRATING(*).write before M.* (plain)": "nobody sees a temporary file",
    "*INCOMPLETE(*).write before disk.fdatasync": "nobody sees a temporary file",
    "sender:*: no M.closed": "`complete` is asked for",
    "sender:*: H.complete before M.closed": "`complete` is asked for",
    "sender:*: no M.closed (plain)": "a plain peer has it all since FLUSH",
    "sender:*: MIGRATING.unlink before M.closed (plain)": "a plain peer has it all since FLUSH",
    "sender:attempt: M.write 0 before MIGRATING(copying).dirsync*": "only FLUSH needs the id",
    "sender:attempt: no MIGRATING(copying).rename (plain)": "a plain peer knows no id",
    "sender:attempt: no MIGRATING(copying).dirsync (plain)": "a plain peer knows no id",
    "*: MIGRATING(copying).dirsync before * (plain)": "a plain peer knows no id",
    "sender:stop: *": "a stopped sender may leave its id, and go on with it",
    "sender:unsay: no MIGRATING(copying).rename*": "assumption 5, while it still says copied",
    "sender:unsay: no MIGRATING(copying).dirsync*": "assumption 5, while it may say copied",
    "sender:unsay: MIGRATING(copying).dirsync before *": "assumption 5, while it may say copied",
    "sender:back: *back.page": "it keeps one from claiming where there is no copy of this disk",
    "sender:attempt: M.connect before source.fsync*": "the scan has not begun",
    "*(*).write before *look*": "nobody sees a temporary file",
    "receiver:*: no copying.look": "what it would have found is found before `copied`",
    "receiver:rescue: no fail": "the disk is saved, and nobody is told that it is complete",
    "receiver:claim: claim before file.size": "the claim is memory",
    "receiver:look: look.dirsync before file.create": "the fsync of the record's directory does it",
    "receiver:claim: reply before claim": "both are memory",
    "receiver:write-first: block.write before file.size": "one fdatasync makes both durable",
    "receiver:write-first: no block.write": "what is not written is not covered",
    "receiver:write*: reply before block.write*": "the FLUSH is handled after it",
    "receiver:flush: no disk.fdatasync": "while it is not whole, FLUSH promises nothing",
    "receiver:flush: no reply": "while it is not whole, FLUSH promises nothing",
    "receiver:flush: reply before disk.fdatasync": "while it is not whole, FLUSH promises nothing",
    "receiver:flush-whole: reply before INCOMPLETE(copied).dirsync": "`copied` is asked for",
}


def harmless(name: str) -> str:
    """Why that edit breaks nothing, or nothing."""
    return next(
        (why for pattern, why in HARMLESS.items() if fnmatch.fnmatchcase(name, pattern)), ""
    )


def single_edits() -> Iterator[tuple[str, Explored]]:
    """Each step left out, and each two neighbours exchanged: the name, and what to explore."""
    for peer in ("blockmig", "plain"):
        base = build(peer=peer)
        programs = [f"sender:{name}" for name in base.sender]
        programs += [f"receiver:{name}" for name in base.receiver if name != "claim-kept"]
        for program in programs:
            for name, new in edits_of(steps_of(base, program)):
                kept = {step.name for step in new}
                if program == "sender:attempt" and "source.unlink" not in kept:
                    continue  # it never retires: there is no hand-off
                if program in ENDING and "MIGRATING.unlink" not in kept:
                    continue  # it never ends
                if not new or (program.startswith("sender") and "exit" in name.split()):
                    continue  # no step of the protocol
                yield (
                    f"{program}: {name}{' (plain)' if peer == 'plain' else ''}",
                    bounds_of(peer, program, name, new),
                )


ENDING = ("sender:finish", "sender:anew")


def edits_of(steps: list[Step]) -> Iterator[tuple[str, list[Step]]]:
    for i, step in enumerate(steps):
        yield f"no {step.name}", steps[:i] + steps[i + 1 :]
    for i, (one, two) in enumerate(itertools.pairwise(steps)):
        yield f"{two.name} before {one.name}", [*steps[:i], two, one, *steps[i + 2 :]]


def bounds_of(peer: str, program: str, name: str, new: list[Step]) -> Explored:
    if peer == "plain":
        return [(edited(build(peer=peer), program, new), 2, KINDS)]
    # A receiver without a record waits on a disk only where it may be overwritten.
    over_data = OVER_DATA if program == "sender:anew" else {}
    ours = edited(build(**over_data), program, new)
    if program in ENDING:
        return [(ours, 2, QUIET)]  # one fault leads there, it takes one more to go wrong
    if program == "receiver:look":
        return [(ours, 2, frozenset({"crash"})), (ours, 1, frozenset({"power"}))]
    explored: Explored = []
    for pattern, kinds in TWO_FAULTS.items():
        if fnmatch.fnmatchcase(f"{program}: {name}", pattern):
            explored.append((ours, 2, frozenset(kinds)))
    if program.startswith("receiver"):
        explored.append((edited(build(peer="foreign"), program, new), 2, KINDS))
    explored.append((ours, 1, KINDS))
    return explored


TWO_FAULTS = {
    # Those that two faults have to meet, and which.
    "sender:attempt: *source.look first*": {"swap source", "crash"},
    "sender:unsay: *": {"stop", "power"},
    "receiver:rescue: *": {"swap target", "stop"},
}


def first_broken(explored: Explored) -> Result:
    """The first of these explorations that breaks, else the last."""
    results = (explore(*bounds) for bounds in explored)
    last: Result | None = None
    for last in results:
        if last.broken:
            break
    assert last is not None
    return last


# --- The report --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bound:
    """One exploration of the unchanged protocol."""

    unlink: bool
    peer: str
    faults: int
    kinds: frozenset[str] = KINDS
    full: bool = False  # only when the whole is asked for
    there: str = ""
    overwrite: bool = False

    @property
    def protocol(self) -> Protocol:
        return build(self.unlink, self.peer, self.there, self.overwrite)

    def explore(self) -> Result:
        return explore(self.protocol, self.faults, self.kinds)

    @property
    def name(self) -> str:
        names = {KINDS: "all kinds", BREAKS: "breaks"}
        kinds = names.get(self.kinds) or "+".join(sorted(self.kinds))
        return f"{self.protocol.name}, faults {self.faults}: {kinds}"


BOUNDS = [
    Bound(True, "blockmig", 1),
    Bound(False, "blockmig", 1, there="blank"),
    Bound(True, "blockmig", 1, there="data"),
    Bound(True, "blockmig", 1, there="data", overwrite=True),
    Bound(True, "blockmig", 2, QUIET),
    Bound(True, "plain", 3, BREAKS),
    Bound(True, "plain", 2),
    Bound(True, "foreign", 3, BREAKS),
    Bound(True, "foreign", 3, BREAKS, there="blank"),
    Bound(True, "foreign", 2),
    Bound(True, "foreign", 2, there="data", overwrite=True),
    Bound(False, "blockmig", 1, full=True),
    Bound(False, "blockmig", 1, full=True, there="data", overwrite=True),
    Bound(False, "blockmig", 2, QUIET, full=True),
    Bound(False, "blockmig", 2, QUIET, full=True, there="blank"),
    Bound(False, "blockmig", 2, QUIET, full=True, there="data", overwrite=True),
    Bound(True, "plain", 3, full=True),
    Bound(False, "plain", 3, full=True),
    Bound(True, "foreign", 3, full=True),
    Bound(True, "foreign", 3, full=True, there="blank"),
    Bound(True, "foreign", 3, full=True, there="data", overwrite=True),
    Bound(True, "blockmig", 2, full=True),
    Bound(False, "blockmig", 2, full=True),
    Bound(True, "blockmig", 2, full=True, there="data", overwrite=True),
    Bound(False, "blockmig", 3, QUIET, full=True),
    Bound(True, "blockmig", 3, AT_SOURCE, full=True),
    Bound(False, "blockmig", 3, AT_SOURCE, full=True),
    Bound(True, "blockmig", 3, AT_TARGET, full=True),
    Bound(True, "blockmig", 3, AT_BOTH, full=True),
]


def whole() -> bool:
    """Whether the long form is asked for."""
    return os.environ.get("BLOCKMIG_FULL") == "1"


def row_of_bound(bound: Bound, result: Result) -> str:
    ends = ", ".join(f"{count} {end}" for end, count in result.ends.items())
    verdict = result.broken[0] if result.broken else "holds"
    if ends:
        verdict += f"  (calm runs: {ends})"
    return (
        f"{bound.name:<64} {result.states:>9} {result.transitions:>9} {result.seconds:6.1f} s  "
        f"{verdict}"
    )


def row_of_mutation(mutation: Mutation, result: Result) -> str:
    broken = result.broken[0] if result.broken else f"nothing: {mutation.breaks}"
    return f"{mutation.name:<60} {len(result.trace) or '-':>3}  {broken}"


def report(out: Callable[[str], object] = print) -> None:
    """Both tables, as text."""
    out(f"{'protocol':<64} {'states':>9} {'moves':>9} {'time':>8}")
    for bound in BOUNDS:
        if whole() or not bound.full:
            out(row_of_bound(bound, bound.explore()))
    out("")
    out(f"{'mutation':<60} {'len':>3}  the first invariant broken")
    for mutation in (*MUTATIONS, *LIMITS):
        out(row_of_mutation(mutation, mutation.explore()))
    for mutation in REDUNDANT:
        out(row_of_mutation(mutation, mutation.explore(KINDS if whole() else None)))
    if whole():
        out("")
        out("every single edit: a step left out, or two neighbours exchanged")
        for name, explored in single_edits():
            result = first_broken(explored)
            broken = result.broken[0] if result.broken else f"nothing: {harmless(name)}"
            out(f"{name:<75} {broken}")


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    report()
