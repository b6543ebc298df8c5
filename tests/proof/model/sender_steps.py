"""What the sender sends, how it takes the answers, and how it ends."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from tests.proof.model.cells import (
    COPIED,
    COPYING,
    DATED,
    NAMELESS,
    NONE,
    NOTHING,
    OURS,
    RETIRED,
    THEIRS,
    THERE,
    TORN,
    UNCHANGED,
    WRITTEN,
    ident_of,
    members,
    phase_of,
)
from tests.proof.model.programs import Step
from tests.proof.model.receiver_steps import ReceiverSteps
from tests.proof.model.state import WIRES, Sender, Source, State, Wire
from tests.proof.model.truth import acknowledged, confirmed, received, retired_now


class SenderSteps(ReceiverSteps):
    """The sender: from its start to its end."""

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
                    told = acknowledged(state.source)
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
            return self.forget(state)
        return self.advance(state)

    def begin(self, state: State) -> State:
        """What a sender does once it has looked, and after each drop."""
        source, sender = state.source, state.sender
        migrating = source.migrating[0]
        state = state._replace(source=source._replace(tmp=0, changed=UNCHANGED))
        told = acknowledged(source)
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
        elif retired and migrating == NONE and source.migrated[0] == NONE:
            status = 1  # no such file
        elif retired and migrating == NONE and self.says_done(source):
            status = 0
        elif retired and phase_of(migrating) == COPYING and migrating != NONE:
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
        elif retired:  # nobody has seen the end
            ident = ident_of(source.migrated[0])
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
        if program == "finish" and confirmed(source):
            return self.conclude(state, "MIGRATING.unlink")
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
        """A number that nothing else remembers; in the product, part of a UUID."""
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
                return self.leave_alone(state)  # it has another disk
            if sender.program == "back":  # until the attempt's connection is gone over there
                return self.take_back(state)
            return self.drop(state)
        if reply[0] == "ok":
            if step.name == "H.copying":
                sender = sender._replace(kept=False)
            elif step.name == "H.retired" and acknowledged(state.source):
                pc = sender.pc  # acknowledged already, and recorded
                while steps[pc + 1].name.startswith("MIGRATING(told)"):
                    pc += 1
                sender = sender._replace(pc=pc)
            return self.next_step(state._replace(sender=sender))
        return self.hear_state(state, step, reply)

    def hear_state(self, state: State, step: Step, reply: tuple) -> State:
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
        told = acknowledged(state.source)
        if copied_of_ours or reply[1:] == (RETIRED, sender.ident):
            return self.next_step(state)
        if (
            told
            and reply[1] == -1
            and self.rule("finish: an acknowledged sender announces it where no record is")
        ):
            return self.advance(
                state._replace(sender=sender._replace(program="anew", pc=0, waiting=False))
            )
        if complete or told:
            return self.conclude(state) if complete else self.leave_alone(state)
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
            return self.forget(state)
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

    def forget(self, state: State) -> State:
        """No copy is whole. The id is kept all the same: it goes on where it was acknowledged."""
        kept = self.rule("stop: an acknowledged id is kept")
        return self.go_to(self.orphan(state), "stop-keep" if kept else "stop")

    def give_up(self, state: State) -> State:
        """It may go on saying so: the id is kept."""
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

    def says_done(self, source: Source) -> bool:
        """Whether a sender that finds nothing but MIGRATED says that this is done."""
        return confirmed(source) or not self.rule("done: only if the end was seen")

    def leave_alone(self, state: State) -> State:
        """The destination was told, and is not there: MIGRATED says so, and no more."""
        return self.go_to(self.orphan(state), "alone")

    def conclude(self, state: State, first: str = "MIGRATED(confirmed).write") -> State:
        """All that is left is to record that the destination is complete."""
        steps = self.protocol.sender[state.sender.program]
        names = [step.name for step in steps]
        pc = names.index(first) if first in names else names.index("MIGRATING.unlink")
        sender = state.sender._replace(pc=pc, waiting=False)
        return self.orphan(state)._replace(sender=sender)

    def concluded(self, state: State) -> bool:
        """Whether the sender looks for no receiver any more."""
        if state.source.migrating[0] == NONE or confirmed(state.source):
            return True
        steps = self.protocol.sender.get(state.sender.program, [])[state.sender.pc :]
        return bool(steps) and not any(step.op in ("ask", "connect") for step in steps)

    def nothing_to_run(self, state: State) -> bool:
        """Assumption 2: the destination's verdict is `canonical`, and nobody waits for it."""
        if not self.protocol.overwrite:
            return False  # it may be run, and is refused
        if state.target.incomplete[0] != NONE or "rerun" in self.kinds:
            return False
        if received(state.target):
            return False  # it says that it is done
        return state.done == 2 or (state.done == 1 and self.concluded(state))

    def unguarded(self, state: State) -> bool:
        """Assumption 1: the receiver was started on a finished disk, and `retired` has not come."""
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
            # A connection lost while `copied` was being recorded here: it does not retire then.
            return steps[pc - 1].name == "MIGRATING(copied).dirsync"
        return steps[pc].op in ("ask", "closed", "connect")


def cookies(message: tuple) -> Iterable[int]:
    if not message:
        return ()
    return {"write": message[2:3], "copying": message[2:3], "retired": message[2:3]}.get(
        message[0], message[1:2] if message[0] == "disc" else ()
    )
