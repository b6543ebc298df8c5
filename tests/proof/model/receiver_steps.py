"""How the receiver handles a message, a file-system call at a time.

What changes only its memory, and what it sends, happens together with the call before it.
"""

from __future__ import annotations

from tests.proof.model.cells import (
    ABSENT,
    COPIED,
    COPYING,
    CUT,
    CUT_EARLY,
    DELETED,
    DESTROYED,
    EMPTY,
    HOLE,
    NONE,
    OLD,
    OURS_THERE,
    REPLACED,
    RETIRED,
    SAVED,
    SIZED,
    THEIRS,
    TORN,
    WHOLE,
    durable,
    ident_of,
    phase_of,
)
from tests.proof.model.disk_steps import IN_MEMORY, UNSEEN, DiskSteps
from tests.proof.model.programs import Step
from tests.proof.model.state import WIRES, Receiver, State, Target, Wire
from tests.proof.model.truth import complete, received


class ReceiverSteps(DiskSteps):
    """The receiver: from its start to its end."""

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
        """The handler is done: wait for the next message; connections that nobody needs go."""
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
        """Start with the file that has the name now, whichever it is, unless it is refused."""
        if self.refused(state):
            return state._replace(receiver=Receiver("exit", status=1))
        target = state.target
        if self.is_done(target):
            doing = "tidy" if target.incomplete[0] != NONE else "done"
            return self.run_receiver(state._replace(receiver=Receiver(doing)), calls=0)
        if target.name == DELETED:
            nothing = durable(HOLE)
            target = target._replace(
                name=OURS_THERE, file=durable(ABSENT), first=nothing, second=nothing
            )
        elif target.file[0] == CUT:
            target = target._replace(file=durable(EMPTY))  # nothing was left of it
        state = state._replace(receiver=Receiver("look"), target=target)
        return self.run_receiver(state, calls=0)

    def is_done(self, target: Target) -> bool:
        """Whether a receiver that is started finds that all of it was done before."""
        whole = target.name == OURS_THERE and target.file[0] == SIZED
        return complete(target) and whole and self.rule("start: what is received is done")

    def refused(self, state: State) -> bool:
        """Whether a receiver does not start here."""
        target = state.target
        value, file = target.incomplete[0], target.file[0]
        if self.plain or self.is_done(target):
            return False
        if TORN in (value, target.received[0]):
            return True
        if received(target) and value == NONE and self.rule("start: what is received is done"):
            return True  # another disk
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
        """The receiver ends by itself, with exit 3; whoever asked is refused."""
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
        # A claim goes with its attempt; where that was not claimed it still waits for its own: also
        # where what had been its sender's connection came late.
        claim = receiver.claim if receiver.ident == THEIRS else ()
        return receiver._replace(bound="", covered=covered, claim=claim, ident=0)

    def in_memory(self, state: State, step: Step) -> State:
        receiver = state.receiver
        if step.op == "fail":
            return self.fail(state)
        if step.op == "done":
            return self.kill_receiver(state, 0)
        if step.op == "look":
            return self.look_at_target(state, step)
        if step.op == "claim":
            if self.rule("claim: ends its sender's older side connections"):
                state = state._replace(old_side=None if receiver.who == "H" else state.old_side)
            if receiver.who == "X" and state.side is not None:  # by mutation only
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
        if op == "read":
            read = ("complete", receiver.ident) if complete else (phase, ident)
            return self.sweep(self.answer(state, who, ("state", *read)), who)
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
            hanging = bool(receiver.bound) and receiver.ident == message[1] != THEIRS
            if self.rule("claim: in memory until the first change"):
                # But what takes its own `copied` back does so at once: a change may never come.
                own = phase == COPIED and ident == message[1]
                if who == "X" and not own:
                    return state  # nothing of it can be seen
                if hanging:
                    state = self.end_hanging(state)
                    receiver = state.receiver
                if not (late or other):
                    falls = own and self.rule("claim: its own `copied` falls back")
                    handler = "claim" if falls else "claim-kept"
            elif not (busy or late or other):
                handler = "claim"
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
            # What a foreign sender has copied has no id that could be announced.
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

    def may_be_ours(self, state: State, acknowledged: bool) -> bool:
        """Whether a receiver without a record may believe that an earlier one was complete."""
        blank = state.target.file[0] != SIZED and self.rule("anew: not on a blank disk")
        return not blank and (
            acknowledged or not self.rule("anew: only from an acknowledged sender")
        )

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
        bound = receiver.bound
        if who != bound:
            claimed = receiver.claim[1:] == (message[2],)
            replaces = (
                claimed
                and bool(receiver.bound)
                and receiver.ident == THEIRS
                and self.rule("attempt: a claimed one replaces an unclaimed one")
            )
            busy = bool(receiver.bound) and not replaces
            if busy and self.rule("change: refused while another's attempt goes on"):
                return "", receiver
            kept = 0 if self.rule("drop: coverage is forgotten") else receiver.covered
            another = ident != THEIRS and not (claimed and receiver.claim[0] == ident)
            if phase == COPIED and another and self.rule("change: refused on an identified copied"):
                return "", receiver
            if claimed:
                receiver = receiver._replace(bound=who, ident=receiver.claim[0], covered=kept)
            else:
                return "write-first", receiver._replace(bound=who, ident=THEIRS, covered=kept)
        # That the record is there already does not say that the file has its size, and the name.
        first = who != bound and self.rule("change: the first of an attempt begins it anew")
        fresh = (phase == COPYING and not first) or (
            phase == COPIED and not self.rule("change: copied falls back first")
        )
        fresh = fresh and ident == receiver.ident
        return ("write" if fresh else "write-first"), receiver

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
        """Nobody has the file open any more: without a name it is gone."""
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
        """What counts as the harm when somebody else destroys a whole copy (assumption 6)."""
        return CUT_EARLY if "destroyed copy" in self.kinds else DESTROYED
