"""The protocol as data: the steps of both ends in their order, and the rules of the receiver.

Edits of the protocol (L{tests.proof.model.programs}) change this data, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.proof.model.cells import HOLE, OLD
from tests.proof.model.programs import Programs, Step


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
class Protocol(Programs):
    """The hand-off's programs, and what it is about."""

    name: str
    unlink: bool
    peer: str  # "blockmig": with the side export; "plain": a server without; "foreign": no sender
    there: str = ""
    """What was there before at the destination: nothing; `blank`, a device (or file) of its size
    that is all holes; `data`, one that holds somebody's data.  That it is there, full-size and
    without a record, says nothing of a migration."""
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
    "claim: ends its sender's older side connections",
    "claim: in memory until the first change",
    "claim: ends a hanging attempt of its own",
    "claim: its own `copied` falls back",
    "attempt: a claimed one replaces an unclaimed one",
    "change: copied falls back first",
    "change: the first of an attempt begins it anew",
    "change: refused after retired",
    "change: refused on an identified copied",
    "change: refused while another's attempt goes on",
    "disc: only when covered",
    "disc: only with the id",
    "drop: coverage is forgotten",
    "anew: only from an acknowledged sender",
    "anew: not on a blank disk",
    "finish: the source must be gone",
    "finish: an acknowledged sender announces it where no record is",
    "leave: only when acknowledged",
    "stop: only before retiring",
    "stop: the receiver looks first",
    "stop: an acknowledged id is kept",
    "stop: the id is kept from FLUSH on",
    "stop: the id that was found is kept until it is claimed",
    "plain: an older connection is dead before the next",
    "start: a disk that holds data is refused",
    "start: what is received is done",
    "done: only if the end was seen",
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
    "inspect: another file than the record's is recognised",
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
    remove = [*writing("MIGRATED", "confirmed"), *abandon]
    # The destination was told, and nobody is there: nobody has seen the end.
    alone = [*(writing("MIGRATED") if unlink else []), *abandon, Step("exit", "exit", 0)]
    begin = [Step("source.fsync", "baseline")]
    copied = [Step("source.look first", "look"), *writing("MIGRATING", "copied")]
    look = [Step("source.look", "look")]
    data = [
        Step("M.write 0", "ask", "M write 0"),
        Step("M.write 1", "ask", "M write 1"),
        Step("M.flush", "ask", "M flush"),
    ]
    announce = [Step("H.retired", "ask", "H retired"), *writing("MIGRATING", "told")]
    leave = [Step("M.disc", "disc"), Step("M.closed", "closed")]
    confirm = [Step("H.complete", "ask", "H read"), *remove, Step("exit", "exit", 0)]
    always = {
        # What a process that died left visible is not durable yet: whoever starts makes it so
        # before it believes it, and before it announces it.
        "look": [Step("look.dirsync", "dirsync")],
        # The ends of a sender that did not retire its source; the status is decided before.
        "stop": [*abandon, Step("exit", "exit")],  # only by mutation
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
                Step("H.read", "ask", "H read"),
                Step("H.copying", "ask", "H copying"),
                *writing("MIGRATING", "copying"),
                *data,
                Step("H.copied", "ask", "H copied"),
                *copied,
                *look,
                *retire,
                *announce,
                *leave,
                *confirm,
            ],
            "finish": [
                Step("M.connect", "connect"),
                Step("H.read", "ask", "H read"),
                *announce,
                *leave,
                *confirm,
            ],
            # The receiver has no record: it was started anew on the disk that it had completed.
            "anew": [Step("H.retired", "ask", "H retired"), *leave, *confirm],
            "alone": alone,
            # If it is, `stop` follows.
            "back": [Step("back.read", "ask", "H read"), Step("back.copying", "ask", "H copying")],
            **always,
        }
        # The file was looked at before; in the product just before the bytes of the record.
        record_copying = [Step("copying.look", "look"), *writing("INCOMPLETE", "copying")]
        receiver = {
            "look": [Step("file.create", "create"), Step("look.dirsync", "dirsync")],
            # One that takes its own `copied` back; any other is memory, until its first change.
            "claim": [
                *record_copying,
                Step("file.size", "size"),
                Step("claim", "claim"),
                Step("reply", "reply"),
            ],
            "claim-kept": [Step("claim", "claim"), Step("reply", "reply")],
            # Only what changes the last block can bring the size back after a cut.
            "write": [
                Step("end.look", "look", "end"),
                Step("block.write", "block"),
                Step("reply", "reply"),
            ],
            "write-first": [  # the first of an attempt, or a change of what is `copied`
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
                *writing("RECEIVED"),
                Step("INCOMPLETE.unlink", "unlink", "INCOMPLETE"),
                Step("INCOMPLETE.gone.dirsync", "dirsync"),
                Step("complete", "complete"),
            ],
            # A start that finds RECEIVED: makes it durable before it believes it; and also removes
            # the INCOMPLETE of the same migration.
            "done": [Step("done.dirsync", "dirsync"), Step("done", "done")],
            "tidy": [
                Step("tidy.dirsync", "dirsync"),
                Step("INCOMPLETE.unlink", "unlink", "INCOMPLETE"),
                Step("INCOMPLETE.gone.dirsync", "dirsync"),
                Step("done", "done"),
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
    return Protocol(sender, receiver, frozenset(RULES), kind, unlink, peer, there, overwrite)
