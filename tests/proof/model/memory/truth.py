"""What must be so in every state, and of every act."""

from __future__ import annotations

from collections.abc import Iterator

from tests.proof.model.explorer import Result, result_of
from tests.proof.model.memory.decisions import DONE, Receive, Send
from tests.proof.model.memory.machine import Machine
from tests.proof.model.memory.reading import Reading
from tests.proof.model.memory.state import COPIED, TOLD, File, Got, Place, Record, State
from tests.proof.model.search import Walk


class Checked(Machine):
    """The machine with its rules."""

    def misdeeds(self, before: State, actor: str, state: State) -> list[str]:
        if not actor:
            return []
        act, name = actor.split(" ", 1)
        command = self.commands[name]
        if act == "write":
            assert isinstance(command, Receive)
            return list(self.wrong_write(before, command))
        if not self.is_done(before, command, state, leaving=True):
            return [f"R11 exit 0 of {name}, and it is not complete"]
        return []

    def violations(self, before: State, actor: str, state: State) -> list[str]:
        found = self.misdeeds(before, actor, state)
        for name, home in state.history.home:
            if home and any(
                file is None or file.content != name for file in state.places[self.at[home]].file[1]
            ):
                found.append(f"R1 neither: the only copy of {name} is lost")
        for p, place in enumerate(state.places):
            found += self.wrong_verdict(state, p, place)
            found += self.forgotten(state, p, place)
        for command in self.setting.commands:
            place = state.places[self.at[command.at]]
            if self.decisions.of(command, place) == DONE and not self.is_done(
                state, command, state
            ):
                found.append(f"R11 {command.name} says done, and is not")
        return found

    def wrong_write(self, state: State, command: Receive) -> Iterator[str]:
        q = self.at[command.at]
        receiver = state.receivers[q]
        if receiver.pc != [s.op for s in self.memory.receiver[receiver.program]].index("block"):
            return
        if receiver.program != "write":
            return
        for name, home in state.history.home:
            if home == command.at and name not in state.history.begun:
                yield f"R12 the only copy of {name} is overwritten"
        record = receiver.record
        p = self.at[receiver.bound] if receiver.bound else -1
        sender = state.senders[p] if p >= 0 else None
        if sender is not None:
            meant = getattr(self.commands[sender.command], "overwrite", False)
            home = dict(state.history.home).get(sender.content)
            if home not in (receiver.bound, None) and not meant:
                yield f"R1 {sender.content} is sent, and is not canonical"
            sent = state.history.sent[p]
            again = sent is not None and not sent.over and p not in state.history.forgotten
            if again and not isinstance(record.id, str):
                yield "R11 what was done is followed by another, without a new id"
        if (command.at, record.id) in state.history.used and q not in state.history.forgotten:
            yield f"R11 the id {record.id} is used again, and writes"

    def wrong_verdict(self, state: State, p: int, place: Place) -> Iterator[str]:
        verdict = Reading(place, self.memory.rules).verdict
        name = self.setting.places[p]
        home = dict(state.history.home)
        file: File | None = place.file[0]
        if file is not None and verdict == "canonical":
            if file.content == "~":
                yield f"R7 half a copy at {name} is canonical"
            elif (
                home.get(file.content) not in (None, "", name)
                and file.content not in state.history.doubled
            ):
                yield f"R1 both: {file.content} is canonical at {name} too"
        here = [disk for disk, where in home.items() if where == name]
        begun = place.incomplete[0] is not None and set(here) <= state.history.begun
        if here and verdict in ("not canonical", "nothing here") and not begun:
            yield f"R7 {here[0]} is canonical at {name}, and the verdict is not"
        if file is not None and place.migrated[0] is not None and self.memory.unlink:
            record = place.migrated[0]
            if file.inode == record.inode and here and place.received[0] is None:
                yield f"R11 a tombstone at {name} beside the disk that it is about"
        sent = state.history.sent[p]
        said = [
            one for one in place.migrated[1] if one and sent and one.migration == sent.migration
        ]
        if said and self.memory.unlink and place.undo:
            yield f"R11 a tombstone at {name} before the deletion is durable"

    def forgotten(self, state: State, p: int, place: Place) -> Iterator[str]:
        """What is finished is in a record, whatever power loss comes."""
        if p in state.history.forgotten:
            return
        name = self.setting.places[p]
        if None in place.incomplete[1]:
            if state.history.got[p] is not None and None in place.received[1]:
                yield f"R11 {name} may forget what it received"
            sent = state.history.sent[p]
            if sent and not sent.over and None in place.migrating[1] and None in place.migrated[1]:
                yield f"R11 {name} may forget what it sent"

    def is_done(
        self, state: State, command: Send | Receive, after: State, leaving: bool = False
    ) -> bool:
        """Whether exit 0 of that command is true."""
        home = dict(state.history.home)
        p = self.at[command.at]
        if isinstance(command, Receive):
            got = state.history.got[p]
            there = got is not None and home.get(got.disk) == command.at
            if got is None or not (there or got.disk in state.history.doubled):
                return False
            if place_is_begun(state.places[p].incomplete[0], got):
                return False
            return command.id in (None, got.id)
        sent = state.history.sent[p]
        if sent is None or (not leaving and (sent.over or command.at in home.values())):
            return False
        if sent.to != command.to or command.id not in (None, sent.id):
            return False
        if sent.complete or not leaving:
            return sent.complete
        copy = state.places[self.at[sent.to]].incomplete
        return all(
            record is not None and record.phase == TOLD and record.migration == sent.migration
            for record in copy[1]
        )

    # -- how calm runs end --

    def over(self, state: State) -> str:
        return ""

    def good_loop(self, state: State) -> str:
        """A receiver that is started again and again, and whose sender does not come."""
        return "human" if self.good_end(state) == "human" else ""

    def good_end(self, state: State) -> str:
        """Nothing that was retired is left unfinished."""
        for p, place in enumerate(state.places):
            migrating = place.migrating[0]
            if migrating is not None and migrating.phase >= COPIED:
                file, marked = place.file[0], place.migrated[0]
                if file is not None and file.inode != migrating.inode:
                    return "human"  # somebody has put another file there
                if file is None or (marked and marked.migration == migrating.migration):
                    return ""
            copy = place.incomplete[0]
            if copy is not None and copy.phase == TOLD:
                source = state.places[self.at[copy.to]]
                there, went = source.file[0], source.migrated[0]
                if there is not None and (went is None or went.inode != there.inode):
                    return "human"  # its sender does not get past what somebody has put there
            if copy is not None and copy.phase == TOLD and p not in state.history.forgotten:
                return "forgotten" if state.history.forgotten else ""
        return "finished" if any(state.history.got) else "nothing"

    def starts_of(self, state: State) -> Iterator[tuple[State, str]]:
        yield state, "with all going on"

    def rule_of(self, last: State) -> str:
        return "R6"


def place_is_begun(copy: Record | None, got: Got) -> bool:
    """Whether the copy of another migration has been begun there since."""
    return copy is not None and copy.migration != got.migration


def explore(machine: Checked) -> Result:
    """Visit every state that the machine can reach, and ask how each ends."""
    walk = Walk(machine)
    if walk.broken:
        return result_of(walk, {})
    ends = walk.ends(machine, lambda key: State(*key, 0), machine.starts_of, machine.rule_of)
    return result_of(walk, ends)
