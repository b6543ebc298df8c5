"""What a process does to its own directory, and what a power loss leaves of it.

Also the base of the transitions' classes: the protocol, its rules, and the faults that may strike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tests.proof.model.cells import (
    ABSENT,
    AWAY,
    CONFIRMED,
    COPIED,
    COPYING,
    CUT,
    CUT_EARLY,
    EMPTY,
    FOREIGN,
    FOREIGN2,
    GONE,
    HOLE,
    MARKED,
    MISTAKEN,
    NONE,
    OTHER,
    RETIRED,
    SAID,
    SAID_RETIRED,
    SAVED,
    SIZED,
    SPOILT,
    THEIRS,
    THERE,
    UNCONFIRMED,
    V1,
    V2,
    V3,
    changed,
    durable,
    entry_synced,
    ident_of,
    members,
    phase_of,
    record,
)
from tests.proof.model.programs import Step
from tests.proof.model.protocol import RULES, Protocol
from tests.proof.model.state import Source, State, Target

ON_DISK = ("tmp", "sync", "rename", "dirsync", "unlink")
"""What the sender does to its directory."""

UNSEEN = ("tmp", "sync")
"""What is done to a temporary file: nobody looks at it, and a crash forgets it."""

IN_MEMORY = ("claim", "reply", "close", "complete", "look", "fail", "done")
"""What the receiver does together with the call before it."""


class DiskSteps:
    """One protocol, the faults that may strike it, and its file-system calls."""

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
            value = record(CONFIRMED if phase else UNCONFIRMED, ident)
            return source._replace(migrated=changed(source.migrated, value, torn), tmp=0)
        value = record({"copying": COPYING, "copied": COPIED, "told": RETIRED}[phase], ident)
        return source._replace(migrating=changed(source.migrating, value, torn), tmp=0)

    def on_target(self, state: State, step: Step) -> State:
        target, receiver = state.target, state.receiver
        if step.op == "tmp":
            target = target._replace(tmp=1)
        elif step.op == "sync":
            target = target._replace(tmp=2 if target.tmp else 0)
        elif step.op == "rename" and step.what == "RECEIVED ":
            known = target.incomplete[0] != NONE  # else an acknowledged sender has said so
            value = record(0, ident_of(target.incomplete[0]) if known else receiver.ident)
            torn = target.tmp != 2
            target = target._replace(received=changed(target.received, value, torn), tmp=0)
            state = state._replace(done=2 if receiver.who in ("F", "X") else 1)
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
            target = target._replace(
                file=file,
                incomplete=entry_synced(target.incomplete),
                received=entry_synced(target.received),
            )
            if not self.says_copied(target):  # what was copied before does not count any more
                harm = min(target.harm, CUT_EARLY)
                target = target._replace(late=0, harm=harm)
        elif step.op == "unlink":
            target = target._replace(incomplete=changed(target.incomplete, NONE))
            if not state.done:
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

    def says_copied(self, target: Target) -> bool:
        return any(phase_of(value) >= COPIED for value in members(target.incomplete[1]))


def source_losses(source: Source) -> Iterator[Source]:
    for file, migrating, migrated in itertools.product(
        members(source.file[1]), members(source.migrating[1]), members(source.migrated[1])
    ):
        yield Source(durable(file), durable(migrating), durable(migrated), 0, source.changed)


def target_losses(target: Target) -> Iterator[Target]:
    seen = set()
    for file, first, second, incomplete, received in itertools.product(
        members(target.file[1]),
        members(target.first[1]),
        members(target.second[1]),
        members(target.incomplete[1]),
        members(target.received[1]),
    ):
        blocks = (first, second) if file == SIZED else (HOLE, HOLE)
        lost = target._replace(
            file=durable(file),
            first=durable(blocks[0]),
            second=durable(blocks[1]),
            incomplete=durable(incomplete),
            received=durable(received),
            tmp=0,
        )
        if lost not in seen:
            seen.add(lost)
            yield lost


def describe(disk: Source | Target) -> str:
    """What a power loss left, for a trace."""
    if isinstance(disk, Source):
        file, migrating, migrated = disk.file[0], disk.migrating[0], disk.migrated[0]
        words = [f"file {'there' if file == THERE else 'gone'}", f"MIGRATING {word(migrating)}"]
        return ", ".join([*words, *(["MIGRATED"] if migrated >= MARKED else [])])
    file = {ABSENT: "absent", EMPTY: "empty", SIZED: "sized", CUT: "cut"}[disk.file[0]]
    said = ["INCOMPLETE " + word(disk.incomplete[0])]
    said += ["RECEIVED"] if disk.received[0] >= MARKED else []
    return ", ".join([f"file {file}", *said])


def word(value: int) -> str:
    if value < 2:
        return ("none", "torn")[value]
    return f"{('copying', 'copied', 'retired')[phase_of(value)]} of {ident_of(value)}"
