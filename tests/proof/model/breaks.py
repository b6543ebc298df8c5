"""Strangers, crashes, power losses, stops and cut connections."""

from __future__ import annotations

from collections.abc import Iterator

from tests.proof.model.cells import (
    COPIED,
    FORGOTTEN,
    NONE,
    OURS_THERE,
    SIZED,
    THEIRS,
    durable,
    phase_of,
)
from tests.proof.model.disk_steps import describe, source_losses, target_losses
from tests.proof.model.moves import NOBODY, Move
from tests.proof.model.programs import Step
from tests.proof.model.search import NEVER
from tests.proof.model.state import WIRES, Sender, State
from tests.proof.model.third_party import ThirdParty
from tests.proof.model.truth import received, retired_now


class Breaks(ThirdParty):
    """The moves of strangers, and of whatever breaks."""

    def foreign(self, state: State, message: tuple, who: str = "F") -> Move:
        label = f"{'foreign sender' if who == 'F' else 'stray'}: {' '.join(map(str, message[:2]))}"
        return Move(NEVER, label, "stranger", self.accept(state, who, message))

    def strangers_come(self, state: State) -> Iterator[Move]:
        if self.plain or state.receiver.doing != "idle":
            return
        yield self.foreign(state, ("disc", 0), "X")
        # The finisher of another migration; one that was acknowledged with this very file (it has
        # its token) is believed where there is a disk and no record (assumption 3).
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
            back = target.incomplete[0] != NONE and target.received[0] == NONE
            if back and not self.plain:
                lost = lost._replace(done=0)  # the record is back: that was not yet the end
            yield Move(NEVER, f"receiver loses power: {describe(target)}", NOBODY, lost)

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
            yield Move(NEVER, f"sender loses power: {describe(source)}", NOBODY, lost)

    def sender_is_stopped(self, state: State) -> Iterator[Move]:
        sender = state.sender
        late = retired_now(self.protocol, state.source)
        if sender.program != "attempt" or (late and self.rule("stop: only before retiring")):
            return
        stopped = self.end(state, 4)
        if late:  # only by mutation
            stopped = self.orphan(state)._replace(sender=Sender("stop-keep", status=4))
        yield Move(NEVER, "sender is stopped", NOBODY, stopped)

    def receiver_is_stopped(self, state: State) -> Iterator[Move]:
        """It looks at its file if that may be the only copy; with nothing wrong it is a crash."""
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

    def receipt_is_forgotten(self, state: State) -> Iterator[Move]:
        """C{blockmig forget} at the destination."""
        target = state.target
        over = state.receiver.doing in ("dead", "exit") and target.incomplete[0] == NONE
        if over and received(target):
            gone = target._replace(received=durable(FORGOTTEN))
            yield Move(NEVER, "forget", NOBODY, state._replace(target=gone))

    def cuts(self, state: State) -> Iterator[Move]:
        receiver = state.receiver
        if self.waiting_for_the_wire(state) and (state.main or state.side):
            yield Move(NEVER, "cut, as the sender sees", NOBODY, self.drop(state))
            if self.may_leave(state):
                left = self.leave_alone(state)._replace(left=True)
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
