"""The hand-off as a small model, explored exhaustively; and two more beside it.

Nothing here touches Twisted or blockmig: the model is a second, independent description of the
protocol (design section 2, and the order of steps of one attempt), small enough that every
interleaving of its steps with every fault can be tried.  L{explorer.explore} walks all of them
breadth first, so that the first violation found is also a shortest one, and
L{mutations.MUTATIONS} holds the edits of the protocol that must each make it fail.

The modules, from the bottom up (each imports only from those listed before it):

 - C{cells}, C{state}: what a disk remembers, and the state of the whole model;
 - C{protocol}: the steps of both ends, and the rules of what is let in, as data;
 - C{truth}: what is so, and what `inspect` says of it; C{invariants}: the design's rules;
 - C{moves}, C{faults}: what a transition is, and the kinds of faults;
 - C{disk_steps}, C{receiver_steps}, C{sender_steps}, C{third_party}, C{breaks}, C{machine}: the
   transitions: one class in six layers, each of which calls only those before it;
 - C{search}, C{explorer}: visits every state, and checks each;
 - C{programs}, C{edits}, C{mutations}, C{limits}, C{single_edits}: the protocol changed, and what
   breaks then;
 - C{bounds}, C{reports}: the explorations of the unchanged protocol, and the tables;
 - C{identity}, C{memory}, C{variants}, C{all_models}: the other models, each its own package, with
   the walk and the edits of this one.

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

A B{claim} is memory until the first change of its connection, which records the migration, and
begins the copy; only a claim that takes its own `copied` back is recorded at once.  A claim of a
stranger can therefore not be seen; what a stranger with a claim does is L{identity}'s.  A receiver
that is started where RECEIVED is does not wait, but says that it is done (with the INCOMPLETE of
the same migration it first removes that); a sender that finds MIGRATED and nothing else says so
too, if it had seen the end; else it tries to see it once more.

H stays open from its first READ to the end of the attempt; where it was lost meanwhile, the sender
opens another one to ask for `copied`, and for nothing else.  Its messages are C{read}, which is
answered with the receiver's C{state}, and the sender's announcements C{copying}, C{copied} and
C{retired}.  A sender is B{acknowledged} once the receiver has acknowledged its `retired`, and
MIGRATING has it recorded (its field `told`: MIGRATING(told)).

B{Strangers}: a bare DISC on a connection of its own, a claim of another migration, a foreign sender
that writes any number of blocks, may FLUSH, may write again, and may DISC or vanish, and the
finisher of another migration, acknowledged or not: its `retired`, and its DISC.

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

Where nothing on either disk distinguishes two cases, no program can; these are the product's
limits.  Each is lifted by a kind of fault of its own, and L{limits.LIMITS} shows what breaks then.

 1. B{finished stranger}: a stranger does not write to, or claim, a receiver that somebody has
    started with C{--overwrite} on a finished disk, which has no record any more: overwriting is
    what it was started for.  Used in L{SenderSteps.unguarded}, for what strangers send, and only
    until `retired` has reached that receiver.
 2. B{rerun}: who finds `canonical` without a record, and a sender that has ended, or has concluded
    and is about to (in keep mode: MIGRATED says that the destination is complete, so that it is
    not looked for again), has nothing to run: a receiver that has C{--overwrite} is not started
    again there.  Used in L{SenderSteps.nothing_to_run}, for the start of a receiver.  A sender that
    still has MIGRATING does count: then both commands are run again, and both must end with 0.
 3. B{earlier finisher}: no sender that was acknowledged with this very file (it has its token),
    in an earlier migration, is still about when a receiver is started there on a disk of that size
    that is not blank (or rather: it is believed).  Used in L{Breaks.strangers_come}.
 4. B{between look and act}: nobody changes a file between a look and the act right after it, which
    are two system calls: at the source the last look and the deletion (or MIGRATED); at the
    destination the look at its end and the write of its last block, and the last look and the
    removal of INCOMPLETE.  (What strikes between another look and its act is found by the next.)
    Used in L{ThirdParty.source_is_changed} and L{ThirdParty.target_is_changed}.
 5. B{gone late}: while MIGRATING says copied, or is about to after the first look, nobody moves
    the source away, nor deletes it once it was written to again: a source that is missing then
    counts as deleted by us.  Used in L{ThirdParty.gone_late}.
 6. B{destroyed copy}: nobody destroys a copy after the destination has said that it is whole:
    cuts it, or deletes or replaces its file so that it is gone when the receiver dies.  Where that
    happens nevertheless it is let pass (L{cells.DESTROYED}): what others have destroyed themselves
    we have not lost.  But the receiver must not call complete, or save, what is not the disk any
    more; and what it has open it must not let go of by its own will.

The first three are needed only once somebody has removed RECEIVED (the fault C{forget}), and with
C{--overwrite} (or on a disk that is all zeroes, of which there is nothing to be seen, and which the
model has not): without it a receiver refuses a disk that
holds data and has no record, and may be started again at any time, by anybody.

Disks do not fail; nobody touches the records, but to clear away an unfinished copy, or a RECEIVED
where that is a kind of fault (C{forget}); there is no C{blockmig accept}; two senders of one source
do not run at once; no server of ours writes to the source (mirrors); and a plain destination is
blank.

What counts as a good end
=========================

From every state found, with no more faults, once as it is and once with both sides started again,
the run must come to exit 0 at both ends.  Some ends that are not that are let pass, and counted
where they can be distinguished: where RECEIVED was removed a receiver that is started again
refuses, since its disk holds data (C{refused}; with C{--overwrite} it is not started, see
assumption 2); the sender was acknowledged, found nobody and left, so that the receiver keeps a
`retired` record and knows that it is canonical, without a disconnect (C{acknowledged}), or waits on
a disk that is complete and has no record (C{late}: it was
started with C{--overwrite} while the sender was leaving); a stranger's whole migration was received
instead of ours (C{another's}); others have left what no program can mend, such as a file of theirs
in the place of ours (C{human}: L{machine.Machine.human} says which).
"""
