"""What somebody else does to the files of either side."""

from __future__ import annotations

from collections.abc import Iterator

from tests.proof.model.cells import (
    ABSENT,
    AWAY,
    COPIED,
    COPYING,
    CUT,
    CUT_EARLY,
    DATED,
    DELETED,
    HOLE,
    LOOKED_COPIED,
    LOOKED_RETIRED,
    LOST,
    MOVED,
    NONE,
    OTHER,
    OURS_THERE,
    REPLACED,
    RETIRED,
    SIZED,
    THERE,
    V3,
    WRITTEN,
    durable,
    members,
    phase_of,
)
from tests.proof.model.disk_steps import UNSEEN
from tests.proof.model.moves import NOBODY, Move
from tests.proof.model.programs import Step
from tests.proof.model.search import NEVER
from tests.proof.model.sender_steps import SenderSteps
from tests.proof.model.state import State, Target
from tests.proof.model.truth import holds


class ThirdParty(SenderSteps):
    """The moves of whoever else can write in the two directories."""

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

    def looked(self, state: State, steps: list[Step]) -> int:
        """The last look that the receiver has taken; it cannot have seen what is done now."""
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
        if self.about_to(steps, receiver.pc, "complete.look", "RECEIVED.rename") and not lifted:
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
