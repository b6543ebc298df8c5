"""One disk, from place to place and home, with kill -9 at random: what is finished is remembered.

After each round both commands are run again, and now and then those of an earlier round: the second
runs exit with 0, the old ones say what became of it (with 0 where that is all that has happened
there), and none of them writes a byte.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from blockmig.migration.records.verdict import CopyState, examine, verdict_of
from tests.support.disks import MIB, digest, random_image
from tests.support.processes import BLOCKMIG, FULL, Processes, Running

ROUNDS: Final = 100 if FULL else 6
SIZE: Final = 2 * MIB
PLACES: Final = ("a", "b", "c")
REMEMBERED: Final = 30
"""Rounds that every place remembers: it keeps the ids of its last 32."""


@dataclass(frozen=True)
class Round:
    """The two commands of one round, and between which places the disk went."""

    id: str
    places: tuple[str, str]
    receive: tuple[str, ...]
    send: tuple[str, ...]


class World:
    """Three places with one name for the disk, and what has happened there.

    @ivar at: where the disk is now.
    """

    def __init__(self, processes: Processes, room: Path, seed: str) -> None:
        self._processes = processes
        self._room = room
        self._random = random.Random(seed)
        for place in PLACES:
            (room / place).mkdir()
        self.at = PLACES[0]
        random_image(self.path(self.at), SIZE)
        self.rounds: list[Round] = []
        self.kills = self.old = 0

    def path(self, place: str) -> Path:
        return self._room / place / "web.img"

    def begin(self) -> tuple[Round, str]:
        """The next round: its commands, and where the disk goes."""
        number = len(self.rounds)
        there = self._random.choice([place for place in PLACES if place != self.at])
        id, socket = f"round-{number}", self._room / "socket"
        kept = self._random.random() < 0.3
        return (
            Round(
                id,
                (self.at, there),
                (
                    *(BLOCKMIG, "receive", "--log-format", "json", "--file", str(self.path(there))),
                    *("--size", str(SIZE), "--id", id, "--overwrite"),
                    *("--listen", f"unix:{socket}"),
                ),
                (
                    *(BLOCKMIG, "send", "--log-format", "json", "--id", id, "--progress", "none"),
                    *(() if kept else ("--unlink",)),
                    *("--retry", "--max-rate", "40M"),
                    *(str(self.path(self.at)), f"nbd+unix:///?socket={socket}"),
                ),
            ),
            there,
        )

    def change(self) -> None:
        """Somebody uses the disk."""
        with self.path(self.at).open("r+b") as file:
            file.seek(self._random.randrange(SIZE - 4096))
            file.write(self._random.randbytes(4096))

    def play(self) -> None:
        self.change()
        wanted = digest(self.path(self.at))
        now, there = self.begin()
        receiver, sender = self._start(now.receive), self._start(now.send)
        for _ in range(self._random.choice((0, 0, 1, 1, 2))):
            time.sleep(self._random.random() * 0.4)
            victim = self._random.choice(("receiver", "sender", "both"))
            self.kills += 1
            if victim != "sender":
                receiver.kill()
                receiver = self._start(now.receive)
            if victim != "receiver":
                sender.kill()
                sender = self._start(now.send)
        assert sender.wait(90) == 0, (now, sender.stderr)
        assert receiver.wait(30) == 0, (now, receiver.stderr)
        self.at = there
        self.rounds.append(now)
        assert digest(self.path(there)) == wanted, now
        self.check_verdicts()

    def _start(self, command: tuple[str, ...]) -> Running:
        return self._processes.start(*command)

    def check_verdicts(self) -> None:
        """One place has the canonical copy."""
        states = {place: verdict_of(examine(str(self.path(place)))) for place in PLACES}
        canonical = {
            place for place, verdict in states.items() if verdict.state == CopyState.CANONICAL
        }
        assert canonical == {self.at}, states

    def run_again(self) -> None:
        """What is finished is said, and nothing is touched."""
        now = self.rounds[-1]
        before = self._seen()
        for command in (now.receive, now.send):
            running = self._start(command)
            assert running.wait(60) == 0, (command, running.stderr)
            assert self._seen() == before, command
        if len(self.rounds) > 1 and self._random.random() < 0.3:
            self.old += 1
            last = len(self.rounds) - 1
            number = self._random.randrange(max(0, last - REMEMBERED), last)
            old, later = self.rounds[number], self.rounds[number + 1 :]
            # Where nothing has come and gone since then, it is as it says.
            true = not any(old.places[0] in one.places for one in later)
            for command, status in ((old.receive, 1), (old.send, 0 if true else 1)):
                running = self._start(command)
                assert running.wait(60) == status, (command, running.stderr)
                assert self._seen() == before, command

    def _seen(self) -> dict[str, tuple[int, int, int]]:
        """Every file and directory, and whether anything was done to it."""
        seen = {}
        for place in PLACES:
            for name in (".", *os.listdir(self._room / place)):
                status = os.stat(self._room / place / name)
                seen[f"{place}/{name}"] = (status.st_mtime_ns, status.st_ino, status.st_size)
        return seen


def test_a_disk_goes_from_place_to_place_and_home(processes: Processes, room: Path) -> None:
    seed = time.strftime("%Y-%m-%d")
    world = World(processes, room, seed)
    for _ in range(ROUNDS):
        world.play()
        world.run_again()
    print(f"\n{ROUNDS} rounds, {world.kills} kills, {world.old} old commands run again")
