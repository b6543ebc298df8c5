"""What is finished is remembered (R11): the records of many migrations, and old commands run again.

The hand-off's model has one migration between two places, and every message of it.  This one has
several places, and several commands, of which each may be run again at any time: also when another
migration has come since.  What it asks is what the records make of that.

The modules, from the bottom up: C{state} (disks, records, processes), C{rules} (the steps as
data), C{reading} (which of the records counts, and what C{inspect} says), C{decisions} (what a
command does that is started), C{machine} (the transitions), C{truth} (what must be so),
C{scenarios} (what is explored, and how), C{mutations}.

What is abstract
================

A file is an inode and a content: a disk's, half of one (C{~}), somebody's old data (C{o}), or none.
It is written in place, so that an inode says nothing of which migration filled it.  Records are
renamed and made durable in two steps, files written and synced likewise; a power loss leaves any
mixture of what was not synced.  (Torn records, and wires on which messages are late, are the
hand-off's model's.)  A message and its answer are one step each, and are lost with either process.

At a place there is one process at most; a sender whose disk is deleted holds nothing any more, and
a receiver may start beside it.  What a command says at once (done, or refused) needs no process:
in every state every command is asked.  Two senders of one disk do not run at once.

The records have no clock, and the ids are those of the commands, or made up with the UUID.

B{Others} do C{forget}, put a new file where a tombstone is, or delete a received disk.
"""
