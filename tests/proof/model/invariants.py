"""The rules of the design (R1 to R13) that can be checked in one state, or in one move.

Liveness, that every run comes to a good end, is L{tests.proof.model.explorer}'s.
"""

from __future__ import annotations

from tests.proof.model.cells import (
    ABSENT,
    COPIED,
    DESTROYED,
    FOREIGN,
    FOREIGN2,
    GONE,
    HOLE,
    LOOKED_RETIRED,
    MARKED,
    MISTAKEN,
    NAMELESS,
    NONE,
    OLD,
    OURS_THERE,
    REPLACED,
    RETIRED,
    SAID_RETIRED,
    SAVED,
    SIZED,
    SPOILT,
    THEIRS,
    THERE,
    TORN,
    V3,
    WHOLE,
    ident_of,
    members,
    phase_of,
)
from tests.proof.model.protocol import Protocol
from tests.proof.model.state import State
from tests.proof.model.truth import (
    holds,
    holds_foreign,
    may_be_retired,
    preserved,
    retired_now,
    said_done,
    surely_retired,
    verdict_of_pair,
    verdict_of_source,
    verdict_of_target,
)

Known = dict[tuple, list[str]]
"""What was found of the two disks, to be looked at once."""


def violations(
    protocol: Protocol, before: State | None, actor: str, state: State, known: Known
) -> list[str]:
    """The invariants that this state, or the act that led to it, breaks: the most telling first."""
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

    # R11: what is finished is remembered, and not before it is finished.
    unsure = target.received[1] & (1 << NONE | 1 << TORN)
    if protocol.peer != "plain" and state.done and unsure and target.incomplete[1] & 1 << NONE:
        found.append("R11 the destination may forget that it is complete")
    marks = source.migrated[1] & ~(1 << NONE | 1 << TORN)
    if protocol.unlink and marks and source.file[1] & 1 << THERE:
        found.append("R11 a tombstone, and the disk may be back")
    forgets = source.migrating[1] & 1 << NONE and source.migrated[1] & (1 << NONE | 1 << TORN)
    if protocol.unlink and source.file[0] == GONE and forgets:
        found.append("R11 the source may forget where it has gone")
    if "done: only if the end was seen" in protocol.rules:
        said = said_done(source)
    else:
        said = source.migrating[0] == NONE and source.migrated[0] >= MARKED
    if said and not (state.done == 1 or protocol.peer == "plain"):
        found.append("R11 the sender says done again, and is not")

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
