"""All transitions: commands that start and end, their steps, what breaks, what others do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.proof.model.memory.decisions import DONE, REFUSED, Decisions, Receive, Send
from tests.proof.model.memory.reading import Reading
from tests.proof.model.memory.rules import Memory
from tests.proof.model.memory.state import (
    COPIED,
    COPYING,
    RECORDS,
    TOLD,
    File,
    Got,
    History,
    Place,
    Process,
    Record,
    Sent,
    State,
    changed,
    durable,
    losses,
    put,
    synced,
)
from tests.proof.model.programs import Step
from tests.proof.model.search import NEVER


class Move(NamedTuple):
    rank: int
    label: str
    actor: str
    state: State


class Setting(NamedTuple):
    """Where a scenario takes place: what is there, and which commands are run."""

    places: tuple[str, ...]
    disks: dict[str, str]
    """Each disk, and the place where it is at first."""
    commands: tuple[Send | Receive, ...]
    old: tuple[str, ...] = ()
    """Places where somebody's old data stands."""
    others: tuple[tuple[str, str], ...] = ()
    """What others may do, each once a fault: C{forget}, C{new} (a file), C{rm}; and where."""


class Machine:
    """The transitions of one setting under one set of rules."""

    def __init__(
        self, memory: Memory, setting: Setting, faults: int, kinds: frozenset[str]
    ) -> None:
        self.memory, self.setting = memory, setting
        self.faults, self.kinds = faults, kinds
        self.decisions = Decisions(memory.rules)
        self.at = {name: index for index, name in enumerate(setting.places)}
        self.commands = {command.name: command for command in setting.commands}

    def initial(self) -> State:
        files = {place: File(1, disk) for disk, place in self.setting.disks.items()}
        files |= {place: File(1, "o") for place in self.setting.old}
        count = len(self.setting.places)
        home = tuple(sorted(self.setting.disks.items()))
        return State(
            tuple(Place(durable(files.get(name))) for name in self.setting.places),
            (None,) * count,
            (None,) * count,
            History(home, (None,) * count, (None,) * count),
            self.faults,
        )

    # -- all moves --

    def moves(self, state: State) -> Iterator[Move]:
        for name in self.setting.places:
            p = self.at[name]
            if state.senders[p] is not None:
                yield from self.sender_moves(state, p)
            if state.receivers[p] is not None:
                yield from self.receiver_moves(state, p)
        yield from self.starts(state)
        if state.faults:
            spent = state._replace(faults=state.faults - 1)
            for name in self.setting.places:
                yield from self.breaks(spent, self.at[name])
            for act, where in self.setting.others:
                yield from self.others(spent, act, where)

    def starts(self, state: State) -> Iterator[Move]:
        for command in self.setting.commands:
            p = self.at[command.at]
            sending = isinstance(command, Send)
            if state.receivers[p] is not None or (sending and state.senders[p] is not None):
                continue
            if state.senders[p] is not None and state.places[p].file[0] is not None:
                continue  # locked
            if command.after and command.after not in state.history.used:
                continue
            what = self.decisions.of(command, state.places[p])
            if what in (DONE, REFUSED):
                continue
            process = Process(command.name, "look")
            row = "senders" if sending else "receivers"
            new = state._replace(**{row: put(getattr(state, row), p, process)})
            rank = 7 if self.needed(state, command, what) else NEVER
            yield Move(rank, f"{command.name} is run", "", new)

    def needed(self, state: State, command: Send | Receive, what: str) -> bool:
        """Whether a calm run needs it: a hand-off past its retirement is to come to its end."""
        place = state.places[self.at[command.at]]
        if what in ("tidy", "finish"):
            return True
        if isinstance(command, Send):
            last = place.migrated[0]
            there = state.places[self.at[command.to]].incomplete[0]
            same = there is not None and last is not None and there.migration == last.migration
            # Not before its receiver is there: others that wait for one may have to give up first.
            listens = state.receivers[self.at[command.to]] is not None
            return what == "again" and same and there.phase == TOLD and listens
        copy = place.incomplete[0]
        if copy is None or copy.phase < COPIED:
            return False
        source = state.places[self.at[copy.to]]
        said = [getattr(source, kind)[0] for kind in ("migrating", "migrated")]
        mark, moving = source.migrated[0], source.migrating[0]
        again = mark is not None and moving is not None and moving.follows == mark.migration
        retired = source.file[0] is None or (mark is not None and not again)
        return retired and any(one and one.migration == copy.migration for one in said)

    # -- the sender --

    def sender_moves(self, state: State, p: int) -> Iterator[Move]:
        sender: Process = state.senders[p]
        name = self.setting.places[p]
        steps = self.memory.sender[sender.program]
        if not steps:  # by mutation only
            yield Move(3, f"{name} looks", "", self.begin(state, p))
            return
        step = steps[sender.pc]
        if step.op == "ask":
            yield from self.ask(state, p, sender, step)
        elif step.op == "exit":
            yield Move(3, f"{sender.command}: exit 0", f"exit {sender.command}", self.end(state, p))
        else:
            new = self.next_step(self.on_source(state, p, sender, step), p)
            actor, label = "", f"{name}: {step.name}"
            if steps[sender.pc + 1 :][:1] and steps[sender.pc + 1].op == "exit":
                # Its exit is nothing that anybody could come before.
                new, actor = self.end(new, p), f"exit {sender.command}"
                label += f", {sender.command}: exit 0"
            yield Move(3, label, actor, new)

    def next_step(self, state: State, p: int) -> State:
        sender: Process = state.senders[p]
        sender = sender._replace(pc=sender.pc + 1, waiting=False)
        if sender.program == "look":
            return self.begin(state, p)
        return state._replace(senders=put(state.senders, p, sender))

    def end(self, state: State, p: int) -> State:
        receivers = state.receivers
        name = self.setting.places[p]
        for q, receiver in enumerate(receivers):
            if receiver is not None and receiver.bound == name:
                receivers = put(receivers, q, receiver._replace(bound=""))
        return state._replace(senders=put(state.senders, p, None), receivers=receivers)

    def begin(self, state: State, p: int) -> State:
        """What a sender does once it has looked, and after each drop."""
        sender: Process = state.senders[p]
        command = self.commands[sender.command]
        place = state.places[p]
        state = self.end(state, p)
        what = self.decisions.of(command, place)
        if what in (DONE, REFUSED):
            return state
        here = Reading(place, self.memory.rules)
        record = here.migrated if what == "again" else here.migrating
        if what == "attempt" and record is not None and not self.decisions.same(command, record):
            record = None  # that of a migration that is given up
        if record is None:
            assert isinstance(command, Send)
            assert here.file is not None
            number = self.fresh(state)
            record = Record(
                number, command.id or number, command.to, here.file.inode, **self.before(here)
            )
        content = here.file.content if here.file is not None else ""
        record = record._replace(phase=COPYING, confirmed=False)  # as it is said in claims
        process = Process(sender.command, what, record=record, content=content)
        return state._replace(senders=put(state.senders, p, process))

    def before(self, here: Reading) -> dict[str, Any]:
        """What a new record says of those that were there before."""
        if here.incomplete is not None and not here.complete:
            copy = here.incomplete
            return {"follows": copy.follows, "ids": copy.ids}
        _, last = here.latest
        if last is None:
            return {}
        if "new: the ids of before go into the new record" not in self.memory.rules:
            return {"follows": last.migration}
        ids = [*last.ids, last.id]
        for other in (here.migrated, here.received):
            if other is not None and other is not last:
                ids = [*other.ids, other.id, *ids]
        chosen = [id for id in dict.fromkeys(ids) if isinstance(id, str)]
        return {"follows": last.migration, "ids": tuple(chosen)}

    def fresh(self, state: State) -> int:
        used = set()
        for place in state.places:
            for kind in RECORDS:
                for record in getattr(place, kind)[1]:
                    if record is not None:
                        used |= {record.migration, record.follows}
        for process in (*state.senders, *state.receivers):
            if process is not None and process.record is not None:
                used |= {process.record.migration, process.record.follows}
        for one in (*state.history.sent, *state.history.got):
            if one is not None:
                used.add(one.migration)
        return next(number for number in range(1, 99) if number not in used)

    def ask(self, state: State, p: int, sender: Process, step: Step) -> Iterator[Move]:
        name = self.setting.places[p]
        q = self.at[sender.record.to]
        receiver: Process | None = state.receivers[q]
        linked = receiver is not None and receiver.bound == name
        label = f"{name}: {step.name}"
        if sender.waiting:
            if not linked:
                yield Move(4, f"{name} sees the end", "", self.begin(state, p))
            elif "cut" in self.kinds and state.faults:
                cut = state._replace(
                    faults=state.faults - 1,
                    receivers=put(state.receivers, q, receiver._replace(bound="")),  # type: ignore
                )
                yield Move(NEVER, f"{name} is cut off", "", self.begin(cut, p))
            return
        joins = step.what in ("claim", "retired") or sender.program == "again"
        if not linked and not joins:
            yield Move(4, f"{name} sees the end", "", self.begin(state, p))
            return
        if receiver is not None and receiver.program == "idle" and receiver.bound in ("", name):
            handler = self.admitted(state, q, str(step.what), sender.record)
            if handler:
                bound = receiver._replace(program=handler, pc=0, bound=name)
                if step.what == "claim":
                    bound = bound._replace(record=sender.record)
                asked = state._replace(
                    senders=put(state.senders, p, sender._replace(waiting=True)),
                    receivers=put(state.receivers, q, bound),
                )
                yield Move(2, label, "", asked)
            else:
                yield from self.refused(state, p, sender, f"{label}: refused")
        elif receiver is None or receiver.bound not in ("", name):
            # Nobody is there: it waits, and may give up.
            yield from self.refused(state, p, sender, f"{name}: nobody is there", 8)

    def refused(
        self, state: State, p: int, sender: Process, label: str, rank: int = 4
    ) -> Iterator[Move]:
        told = "finish: only alone when told" not in self.memory.rules
        migrating = state.places[p].migrating[0]
        told = told or (migrating is not None and migrating.phase == TOLD)
        gone = self.end(state, p)
        if sender.program == "again":
            yield Move(rank, f"{label}, exit 0", f"exit {sender.command}", gone)
        elif sender.program != "attempt" and told:
            alone = sender._replace(program="alone", pc=0, waiting=False)
            new = gone._replace(senders=put(gone.senders, p, alone))
            yield Move(rank, f"{label}, it finishes alone", "", new)
        else:
            yield Move(9, f"{label}, it gives up", "", gone)

    def admitted(self, state: State, q: int, what: str, record: Record) -> str:
        receiver: Process = state.receivers[q]
        command = self.commands[receiver.command]
        place: Place = state.places[q]
        copy = place.incomplete[0]
        same = copy is not None and copy.migration == record.migration
        if what == "claim":
            assert isinstance(command, Receive)
            return "claim" if self.decisions.lets_in(command, place, record) else ""
        if what == "retired":
            if not same or copy.phase < COPIED:
                return ""
            return "known" if copy.phase == TOLD else "retired"
        if what == "disc":
            return "disc" if same and copy.phase == TOLD else ""
        return what if receiver.record == record else ""

    def on_source(self, state: State, p: int, sender: Process, step: Step) -> State:
        place: Place = state.places[p]
        record: Record = sender.record
        history = state.history
        retires = False
        if step.op == "dirsync":
            place = synced(place)
        elif step.op == "unlink" and step.what == "file":
            place = place._replace(file=changed(place.file, None))
            retires = True
        elif step.op == "unlink":
            cell = getattr(place, str(step.what))
            other = cell[0] is not None and cell[0].migration != record.migration
            # To finish the first migration leaves the record of the second.
            if not (other and step.what == "migrating"):
                place = place._replace(**{str(step.what): changed(cell, None)})
        else:
            kind, phase = str(step.what).split(" ")
            if kind == "migrating":
                number = {"copying": COPYING, "copied": COPIED, "told": TOLD}[phase]
                record = record._replace(phase=number)
            else:
                record = record._replace(confirmed=phase == "confirmed", phase=TOLD)
                retires = phase == "retired"
            said = [one for one in (place.migrating[0], place.migrated[0]) if one is not None]
            ours = any(one.migration == record.migration for one in said)
            # Whoever finishes looks first whether another process has finished it meanwhile, and
            # the disk has come back; nothing comes between that look and the write.
            if ours or phase not in ("confirmed", "alone"):
                place = place._replace(**{kind: changed(getattr(place, kind), record)})
        if retires:
            place = place._replace(undo=(history.home, history.sent[p], history.doubled))
            if getattr(self.commands[sender.command], "overwrite", False):
                history = history._replace(doubled=history.doubled | {sender.content})
            home = dict(history.home)
            home[sender.content] = record.to
            sent = Sent(record.id, record.to, sender.content, record.migration)
            history = history._replace(
                home=tuple(sorted(home.items())), sent=put(history.sent, p, sent)
            )
        return state._replace(places=put(state.places, p, place), history=history)

    # -- the receiver --

    def receiver_moves(self, state: State, q: int) -> Iterator[Move]:
        receiver: Process = state.receivers[q]
        name = self.setting.places[q]
        if receiver.program == "idle":
            if not receiver.bound:
                gone = state._replace(receivers=put(state.receivers, q, None))
                command = self.commands[receiver.command]
                needed = self.needed(state, command, "go")
                yield Move(9 if needed else 6, f"{receiver.command} gives up", "", gone)
            return
        steps = self.memory.receiver[receiver.program]
        if receiver.pc >= len(steps):  # by mutation only
            yield Move(1, f"{name} has looked", "", self.looked(state, q))
            return
        step = steps[receiver.pc]
        if step.op == "reply":
            p = self.at[receiver.bound] if receiver.bound else -1
            idle = receiver._replace(program="idle", pc=0)
            new = state._replace(receivers=put(state.receivers, q, idle))
            yield Move(1, f"{name}: reply", "", self.next_step(new, p) if p >= 0 else new)
        elif step.op == "again":  # what it has found is tidied up: what does the command do now?
            yield Move(1, f"{name}: looks again", "", self.looked(state, q))
        elif step.op in ("complete", "exit"):
            p = self.at[receiver.bound] if receiver.bound else -1
            new = state._replace(receivers=put(state.receivers, q, None))
            new = self.next_step(new, p) if p >= 0 else new
            yield Move(1, f"{receiver.command}: exit 0", f"exit {receiver.command}", new)
        else:
            actor = f"write {receiver.command}" if step.op == "block" else ""
            yield Move(1, f"{name}: {step.name}", actor, self.on_target(state, q, receiver, step))

    def on_target(self, state: State, q: int, receiver: Process, step: Step) -> State:
        place: Place = state.places[q]
        history: History = state.history
        claimed: Record | None = receiver.record
        if step.op == "dirsync":
            place = synced(place)
        elif step.op == "unlink":
            kind = str(step.what)
            record = getattr(place, kind)[0]
            if kind == "incomplete" and record is not None:
                history = self.completed(state, q, record)
            # What the protocol removes when a new copy begins may be of its own migration by
            # mutation only.
            if kind in ("received", "migrated", "migrating") and (
                "new: what is finished goes when a copy begins" not in self.memory.rules
            ):
                record = None
            if record is not None:
                place = place._replace(**{kind: changed(getattr(place, kind), None)})
        elif step.op == "rename":
            kind, phase = str(step.what).split(" ")
            copy = place.incomplete[0]
            if kind == "received":
                if copy is not None:
                    done = copy._replace(confirmed=True)
                    place = place._replace(received=changed(place.received, done))
            elif phase == "copying":
                assert claimed is not None
                inode = place.file[0].inode if place.file[0] else self.fresh_inode(place)
                record = Record(
                    claimed.migration,
                    claimed.id,
                    receiver.bound or claimed.to,
                    inode,
                    **self.before(Reading(place, self.memory.rules)),
                )
                place = place._replace(incomplete=changed(place.incomplete, record))
                command = self.commands[receiver.command]
                assert isinstance(command, Receive)
                here = {disk for disk, where in history.home if where == command.at}
                if copy is not None and copy.phase >= COPIED:
                    here = set()  # nobody has meant an unfinished hand-off
                history = history._replace(begun=history.begun | here & set(command.over))
            elif copy is not None:
                number = {"copied": COPIED, "retired": TOLD}[phase]
                record = copy._replace(phase=number)
                place = place._replace(incomplete=changed(place.incomplete, record))
        elif step.op == "block":
            copy = place.incomplete[0]
            content = "~" if step.what == "~" else self.content_of(state, receiver)
            inode = place.file[0].inode if place.file[0] else (copy.inode if copy else 1)
            place = place._replace(file=changed(place.file, File(inode, content)))
            if step.what == "~":
                history = self.overwritten(state, q)
        else:
            assert step.op == "datasync"
            left = {place.file[0]} | ({None} & place.file[1])
            place = place._replace(file=(place.file[0], frozenset(left)))
        receiver = receiver._replace(pc=receiver.pc + 1)
        state = state._replace(
            places=put(state.places, q, place),
            receivers=put(state.receivers, q, receiver),
            history=history,
        )
        steps = self.memory.receiver[receiver.program]
        if receiver.pc == len(steps):  # it has looked
            return self.looked(state, q)
        return state

    def looked(self, state: State, q: int) -> State:
        receiver: Process = state.receivers[q]
        what = self.decisions.of(self.commands[receiver.command], state.places[q])
        if what in (DONE, REFUSED):
            return state._replace(receivers=put(state.receivers, q, None))
        program = "tidy" if what == "tidy" else "idle"
        return state._replace(
            receivers=put(state.receivers, q, receiver._replace(program=program, pc=0))
        )

    def content_of(self, state: State, receiver: Process) -> str:
        """What its sender sends; if that is no more, half of it has come."""
        sender = state.senders[self.at[receiver.bound]] if receiver.bound else None
        return sender.content if sender is not None else "~"

    def fresh_inode(self, place: Place) -> int:
        used = {file.inode for file in place.file[1] if file is not None}
        for kind in RECORDS:
            used |= {record.inode for record in getattr(place, kind)[1] if record is not None}
        return next(number for number in range(1, 99) if number not in used)

    def completed(self, state: State, q: int, record: Record) -> History:
        """The disconnect was accepted, and INCOMPLETE goes."""
        history, p = state.history, self.at[record.to]
        sent = history.sent[p]
        file = state.places[q].file[0]
        disk = file.content if file is not None else ""
        if sent is not None and sent.migration == record.migration:
            history = history._replace(sent=put(history.sent, p, sent._replace(complete=True)))
        used = history.used
        if isinstance(record.id, str):
            used = used | {(self.setting.places[q], record.id)}
        got = Got(record.id, disk, record.migration)
        return history._replace(got=put(history.got, q, got), used=used)

    def overwritten(self, state: State, q: int) -> History:
        """A disk that is here, and that the command was meant to overwrite, is given up."""
        history, name = state.history, self.setting.places[q]
        home = {
            disk: "" if place == name and disk in history.begun else place
            for disk, place in history.home
        }
        return history._replace(
            home=tuple(sorted(home.items())),
            sent=put(history.sent, q, history.sent[q] and history.sent[q]._replace(over=True)),
            got=put(history.got, q, None),
        )

    # -- what breaks, and what others do --

    def breaks(self, state: State, p: int) -> Iterator[Move]:
        name = self.setting.places[p]
        sender, receiver = state.senders[p], state.receivers[p]
        dead = state
        if sender is not None:
            dead = self.end(dead, p)
        dead = dead._replace(receivers=put(dead.receivers, p, None))
        if "crash" in self.kinds and dead is not state and (sender or receiver):
            yield Move(NEVER, f"{name} crashes", "", dead)
        if "power" in self.kinds:
            for place in losses(state.places[p]):
                yield Move(NEVER, f"{name} loses power", "", self.lost(dead, p, place))

    def lost(self, state: State, p: int, place: Place) -> State:
        history: History = state.history
        if place.undo:
            home, sent, doubled = place.undo
            said, now = place.migrated[0], history.sent[p]
            marked = said is not None and said.migration == now.migration
            if place.file[0] is not None and not marked:
                sent_before = put(history.sent, p, sent)
                history = history._replace(home=home, sent=sent_before, doubled=doubled)
            place = place._replace(undo=())
        return state._replace(places=put(state.places, p, place), history=history)

    def others(self, state: State, act: str, where: str) -> Iterator[Move]:
        p = self.at[where]
        place: Place = state.places[p]
        if state.senders[p] is not None or state.receivers[p] is not None:
            return
        history: History = state.history
        if act == "forget":
            free = place.migrating[0] is None and place.incomplete[0] is None
            if not free or (place.received[0] is None and place.migrated[0] is None):
                return
            kept = place.migrated[0]
            if kept is not None and place.file[0] is not None:
                return  # it wants to be told that the destination was checked
            place = synced(place._replace(received=durable(None), migrated=durable(None)))
            history = history._replace(forgotten=history.forgotten | {p})
        elif act == "new":
            if place.file[0] is not None or "n" in dict(history.home):
                return
            replaces = ("rm", where) in self.setting.others
            if replaces and "" not in dict(history.home).values():
                return  # nothing was removed there yet
            # Durable, and so is the deletion of what had the name before.
            place = place._replace(file=durable(File(self.fresh_inode(place), "n")), undo=())
            history = history._replace(home=tuple(sorted([*history.home, ("n", where)])))
        elif act == "rm":
            if place.file[0] is None or dict(history.home).get(place.file[0].content) != where:
                return
            if place.migrating[0] is not None or place.incomplete[0] is not None:
                return
            home = {**dict(history.home), place.file[0].content: ""}
            place = place._replace(file=durable(None))
            history = history._replace(home=tuple(sorted(home.items())))
        new = state._replace(places=put(state.places, p, place), history=history)
        yield Move(NEVER, f"{act} at {where}", "", new)

    # -- the calm run --

    def calm(self, state: State) -> Move | None:
        best: Move | None = None
        for move in self.moves(state):
            if move.rank < NEVER and (best is None or move.rank < best.rank):
                best = move
        return best
