"""All transitions: our sender, who listens, what dies, and what strangers do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tests.proof.model.identity.receiving import STRANGERS, Receiving
from tests.proof.model.identity.rules import Identity
from tests.proof.model.identity.state import (
    BARE,
    COPIED,
    COPYING,
    FOREIGN,
    HALF,
    ME,
    NOBODY,
    OTHER,
    RETIRED,
    RIGHT,
    WHOLE,
    Place,
    Record,
    Sender,
    State,
)
from tests.proof.model.search import NEVER

PLACES = {RIGHT: "right", OTHER: "other"}


class Move(NamedTuple):
    rank: int
    label: str
    actor: str
    state: State


class Machine(Receiving):
    """The transitions of one case under one set of rules."""

    def __init__(self, programs: Identity, strangers: bool) -> None:
        super().__init__(programs)
        self.strangers = strangers

    def initial(self) -> State:
        return State(Sender("dead"), None, "", False, NOBODY, Place(1), Place(2), 0)

    def moves(self, state: State) -> Iterator[Move]:
        yield from self.sender_moves(state)
        for who in (RIGHT, OTHER, FOREIGN, NOBODY):
            if who == OTHER and self.strangers:
                continue  # strangers come to P only
            if who != state.listening:
                rank = 7 if who == RIGHT else NEVER
                yield Move(rank, f"{who or 'nobody'} listens", "", self.listen(state, who))
        if state.listening in PLACES:
            again = self.listen(state, state.listening)
            yield Move(NEVER, f"{state.listening} is started again", "", again)
        if state.sender.program not in ("dead", "exit"):
            dead = self.cut(state)._replace(sender=Sender("dead"))
            yield Move(NEVER, "the sender dies", "", dead)
            if not self.rule("stop: what was acknowledged is kept"):
                yield Move(NEVER, "the sender is stopped", "", self.forgotten(dead))
            if state.sender.to:
                yield Move(NEVER, "cut", "", self.drop_ours(state))
        if state.listening == RIGHT and state.right.alive:
            yield from self.idle(state)
            if self.strangers:
                yield from self.stranger_moves(state)

    # -- who listens --

    def listen(self, state: State, who: str) -> State:
        """Another process has the address; the one before is dead."""
        if state.listening in PLACES:
            old = getattr(state, PLACES[state.listening])
            old = old._replace(alive=False, claims=frozenset(), attempt=None)
            state = state._replace(**{PLACES[state.listening]: old})
        state = self.drop_ours(state)
        if who in PLACES:
            place: Place = getattr(state, PLACES[who])
            if not place.received:
                number = place.record.place if place.record else self.fresh(state)
                place = place._replace(alive=True, number=number)
            state = state._replace(**{PLACES[who]: place})
        return state._replace(listening=who)

    def fresh(self, state: State) -> int:
        used = {state.sender.bound, state.migrating.place if state.migrating else 0, 0}
        for place in (state.right, state.other):
            used |= {place.number, place.record.place if place.record else 0}
        return next(number for number in range(1, 20) if number not in used)

    # -- the sender --

    def cut(self, state: State) -> State:
        """Our connections end."""
        if state.sender.to in PLACES:
            name = PLACES[state.sender.to]
            state = state._replace(**{name: self.drop(getattr(state, name), ME)})
        return state

    def forgotten(self, state: State) -> State:
        """Only by mutation: a stopped sender leaves what one leaves that dies."""
        record = state.migrating
        if record is None or record.phase != COPYING or state.gone:
            return state
        return state._replace(migrating=None)

    def drop_ours(self, state: State) -> State:
        if state.sender.program in ("dead", "exit"):
            return state
        if state.tombstone:
            return self.ended(state, 0)  # it needs nobody any more
        state = self.cut(state)
        return state._replace(sender=state.sender._replace(program="connect", pc=0, to=""))

    def ended(self, state: State, status: int) -> State:
        return self.cut(state)._replace(sender=Sender("exit", status=status))

    def sender_moves(self, state: State) -> Iterator[Move]:
        sender = state.sender
        if sender.program == "exit" and sender.status == 0:
            return
        if sender.program in ("dead", "exit"):
            if state.tombstone:
                return
            yield Move(7, "the sender starts", "", state._replace(sender=Sender("connect")))
            return
        steps = self.programs.sender[sender.program]
        step = steps[sender.pc]
        if step.op == "connect":
            yield from self.connect(state)
        elif step.op == "exit":
            yield Move(3, "exit 0", "exit", self.ended(state, 0))
        elif step.op in ("record", "retire", "tombstone"):
            yield Move(3, step.name, step.op, self.next_step(self.on_source(state, step)))
        else:
            new = self.asked(state, step.op)
            if new is not None:
                yield Move(3, step.name, "", self.next_step(new))
            else:
                yield Move(8, f"{step.name}: refused", "", self.drop_ours(state))

    def next_step(self, state: State) -> State:
        return state._replace(sender=state.sender._replace(pc=state.sender.pc + 1))

    def connect(self, state: State) -> Iterator[Move]:
        """The sender looks who is there, and says how it goes on."""
        sender, record, to = state.sender, state.migrating, state.listening
        if state.gone == FOREIGN:
            alone = sender._replace(program="alone", pc=0)
            yield Move(3, "all is at F, which has no records", "", state._replace(sender=alone))
            return
        if to == NOBODY or (to in PLACES and not getattr(state, PLACES[to]).alive):
            told = record is not None and record.phase == RETIRED
            if told and state.gone:
                alone = sender._replace(program="alone", pc=0)
                yield Move(9, "nobody is there: alone", "", state._replace(sender=alone))
            return
        if self.refuses(state, to):
            yield Move(9, f"{to} is refused", "", self.ended(state, 1))
            return
        program = "plain" if to == FOREIGN else "finish" if state.gone else "attempt"
        claimed = sender.claimed or program == "attempt"
        new = sender._replace(program=program, pc=0, to=to, claimed=claimed)
        yield Move(3, f"connects to {to}", "", state._replace(sender=new))

    def refuses(self, state: State, to: str) -> bool:
        """Whether the sender does not take what is at the address."""
        sender, record = state.sender, state.migrating
        if to == FOREIGN:
            by_record = record is not None and record.identified
            if by_record and self.rule("plain: not what was claimed, by its record"):
                return True
            if sender.claimed and self.rule("plain: not what was claimed, in this process"):
                return True
            chosen = self.case.chosen and not self.case.plain
            return chosen and self.rule("plain: not with a chosen id, unless told")
        place: Place = getattr(state, PLACES[to])
        bound = record.place if record is not None else 0
        if bound and bound != place.number and self.rule("place: only its own, by its record"):
            return True
        here = self.rule("place: only its own, in this process")
        if sender.bound and sender.bound != place.number and here:
            return True
        if state.gone:  # there is nothing to send: only where it is known
            return place.record is None or place.record.owner != ME
        return False

    def asked(self, state: State, op: str) -> State | None:
        """What a message to the other side makes of the state, None where it is refused."""
        to = state.sender.to
        if to == FOREIGN:
            amount = {"write": HALF, "rest": WHOLE}.get(op, state.foreign)
            return state._replace(foreign=amount)
        place: Place = getattr(state, PLACES[to])
        act = {
            "claim": self.claim,
            "write": self.write,
            "rest": self.rest,
            "flush": self.flush,
            "announce": self.announce,
            "disc": self.disc,
        }[op]
        new = act(place, ME)
        if new is None:
            return None
        sender = state.sender
        if op == "claim" and not self.rule("place: it is bound only when it may be whole"):
            sender = sender._replace(bound=place.number)
        return state._replace(**{PLACES[to]: new}, sender=sender)

    def on_source(self, state: State, step: object) -> State:
        op, what = step.op, step.what  # type: ignore[attr-defined]
        sender, record = state.sender, state.migrating
        if op == "retire":
            return state._replace(gone=sender.to)
        if op == "tombstone":
            return state._replace(tombstone=True, migrating=None)
        identified = sender.to in PLACES or (record is not None and record.identified)
        number = getattr(state, PLACES[sender.to]).number if sender.to in PLACES else 0
        old = record.place if record is not None else 0
        if what == "copying":
            place = old
            if not self.rule("place: it is bound only when it may be whole"):
                place = number
            new = Record(COPYING, ME, identified, place)
        elif what == "place":
            new = Record(COPYING, ME, identified, number)
            state = state._replace(sender=sender._replace(bound=number))
        else:
            phase = {"copied": COPIED, "told": RETIRED}[what]
            new = Record(phase, ME, identified, old)
        return state._replace(migrating=new, begun=state.begun or identified)

    # -- strangers, and time --

    def idle(self, state: State) -> Iterator[Move]:
        """An attempt of a stranger that makes no progress is ended."""
        place = state.right
        if place.attempt is None or place.attempt.owner == ME:
            return
        record = place.record
        held = place.attempt.owner != BARE and record is not None and record.phase >= COPIED
        # Once all of it is covered any change is progress, and it may go on so for ever.
        held = held or place.attempt.amount == WHOLE
        if not held and self.rule("attempt: without progress it ends"):
            gone = state._replace(right=self.drop(place, place.attempt.owner))
            yield Move(6, "no progress: the stranger's attempt ends", "", gone)

    def stranger_moves(self, state: State) -> Iterator[Move]:
        for who in STRANGERS:
            for name in ("claim", "write", "rest", "flush", "announce", "disc"):
                if name == "claim" and who == BARE:
                    continue
                place = getattr(self, name)(state.right, who)
                if place is not None and place != state.right:
                    new = state._replace(right=place)
                    if not place.alive:
                        new = self.drop_ours(new)
                    yield Move(NEVER, f"{who}: {name}", "stranger", new)
            gone = self.drop(state.right, who)
            if gone != state.right:
                yield Move(NEVER, f"{who} leaves", "", state._replace(right=gone))

    def calm(self, state: State) -> Move | None:
        best: Move | None = None
        for move in self.moves(state):
            if move.rank < NEVER and (best is None or move.rank < best.rank):
                best = move
        return best
