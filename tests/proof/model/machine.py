"""All transitions of the model, and how its runs end when nothing more goes wrong."""

from __future__ import annotations

from collections.abc import Iterator

from tests.proof.model.breaks import Breaks
from tests.proof.model.cells import (
    ABSENT,
    AWAY,
    COPIED,
    DESTROYED,
    FORGOTTEN,
    LOST,
    MOVED,
    NONE,
    OTHER,
    OURS_THERE,
    REPLACED,
    RETIRED,
    SIZED,
    THERE,
    V1,
    V2,
    durable,
    phase_of,
)
from tests.proof.model.disk_steps import ON_DISK, UNSEEN
from tests.proof.model.moves import NOBODY, Move
from tests.proof.model.search import NEVER
from tests.proof.model.state import WIRES, Receiver, Sender, Source, State, Target
from tests.proof.model.truth import acknowledged, confirmed, received, retired_now


class Machine(Breaks):
    """The transitions of one protocol."""

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
                durable(NONE),
                0,
            ),
            V1,
            0,
            False,
            self.faults,
        )

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
            if "forget" in self.kinds:
                yield from self.receipt_is_forgotten(spent)

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
        if received(state.target):
            return True
        return "rerun" in self.kinds and self.concluded(state)

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
            if sender.status == 0 and state.source.migrating[0] == NONE:
                again = state._replace(sender=Sender("look"))
                if self.protocol.sender["look"] and not confirmed(state.source):
                    yield Move(NEVER, "send is run again", NOBODY, again)
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
                left = self.leave_alone(state)._replace(left=True)
                if not self.listening(state):
                    yield Move(8, "sender: acknowledged, and nobody is there", NOBODY, left)
                elif dead:
                    yield Move(NEVER, "sender: acknowledged, and tried for long", NOBODY, left)

    def may_leave(self, state: State) -> bool:
        """Whether the sender may end without having found a receiver."""
        may = acknowledged(state.source) or not self.rule("leave: only when acknowledged")
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
        unseen = state.source.migrating[0] == NONE and not confirmed(state.source)
        if state.sender.program != "exit" or (state.sender.status == 0 and unseen):
            state = state._replace(sender=Sender("dead"), source=state.source._replace(tmp=0))
        return state

    def good_end(self, state: State) -> str:
        """How both ended well, in a word; `` if they did not."""
        sender, receiver, target = state.sender, state.receiver, state.target
        finished = state.done == 1 and target.incomplete[0] == NONE
        sent = sender.program == "exit" and sender.status == 0
        sent = sent and state.source.migrating[0] == NONE
        if self.plain and sent:
            return "both"
        got = (receiver.doing == "exit" and receiver.status == 0) or (
            receiver.doing == "dead" and finished and self.nothing_to_run(state)
        )
        if sent and got and not self.plain:
            return "both"
        forgotten = target.received[0] == FORGOTTEN
        if forgotten and sent and finished and (receiver.doing, receiver.status) == ("exit", 1):
            return "refused"
        if sent and state.left and phase_of(target.incomplete[0]) == RETIRED:
            return "acknowledged"
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
        # Deleted by somebody else: if both records say that the copy is whole, both can finish.
        finishes = phase_of(source.migrating[0]) >= COPIED and (phase >= COPIED or state.done)
        return source.file[0] == LOST and not (self.protocol.unlink and finishes)
