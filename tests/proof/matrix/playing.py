"""How a case is played: struck, looked at, started again, and checked at its end."""

from __future__ import annotations

import os
import time
import traceback
from collections import Counter

from blockmig.migration.records.accept import accept
from blockmig.migration.records.files import Kind
from blockmig.migration.records.verdict import CopyState
from tests.proof.launcher import commands
from tests.proof.launcher.child import Child
from tests.proof.matrix.checks import (
    check_again,
    check_copy,
    check_end,
    check_status,
    check_verdicts,
)
from tests.proof.matrix.plays import LONGEST, OVERWRITE, SIDES, Case, Result, Wrong
from tests.proof.matrix.room import Room
from tests.proof.volatile import DIED


def restart(room: Room, eager: str) -> None:
    """Start again what is to be started again, until both have ended, and well.

    @param eager: how to start a receiver that is not needed, as long as the sender has not ended.
    """
    starts: Counter[str] = Counter()
    needless = False
    while True:
        for side in ("receiver", "sender"):
            child = room.running[side]
            if child is None or not child.alive:
                needless |= _start_again(room, side, eager, starts)
        alive = {
            side: child for side, child in room.running.items() if child is not None and child.alive
        }
        if not alive:
            return
        if needless and list(alive) == ["receiver"]:
            # Nobody will come any more; whoever started it will see that.
            room.note("the receiver that was not needed is ended")
            alive["receiver"].kill()
            return
        if not room.wait(lambda alive=alive: not all(child.alive for child in alive.values())):
            raise Wrong(f"not ended within {LONGEST:g} s: {list(alive)}")
        for side, child in alive.items():
            if not child.alive:
                room.note(f"the {side} ended with {child.status}")
                check_status(room, side, child.status or 0)


def _start_again(room: Room, side: str, eager: str, starts: Counter[str]) -> bool:
    """Start one again, if that is what its operator would do.

    @return: whether it was started although there was no need, and has something to do.
    """
    child = room.running[side]
    status = child.status if child is not None else None
    if status == 0:
        return False
    if status is not None and status not in (DIED, -9):
        check_status(room, side, status)
    sender = room.running["sender"]
    waited_for = sender is not None and (sender.alive or not room.nothing_left("sender"))
    needless = room.nothing_left(side)
    if needless and (not (eager and side == "receiver" and waited_for) or starts[side]):
        room.note(f"the {side} need not be started again")
        room.running[side] = None
        return False
    # A sender that met nobody, since its receiver had just died, may try once more.
    if starts[side] > (status == 1 and side == "sender"):
        raise Wrong(f"the {side}, started again, ended with {status}")
    starts[side] += 1
    room.note(f"the {side} is started again (it had ended with {status})")
    if needless:
        check_again(room, side, *(["--overwrite"] if eager == OVERWRITE else []))
        room.running[side] = None
        return False
    child = room.start(side)
    # It may have finished the migration before anybody has looked whether it listens.
    if side == "receiver" and not room.listening(child) and child.status != 0:
        raise Wrong(f"the receiver, started again, ended with {child.status}")
    return needless


def set_up(room: Room) -> None:
    """Play what comes before the scenario's own run."""
    setup = room.play.setup
    if setup is None:
        return
    side, strike = setup
    room.start_both({side: strike})
    struck = room.running[side]
    if struck is None or not room.wait(lambda: not struck.alive) or struck.status != DIED:
        raise Wrong("the scenario could not be set up")
    room.end()


def _play_stranger(room: Room, case: Case, result: Result) -> None:
    """A sender that is not blockmig's, and knows nothing of how its receiver fares."""
    room.start_both({"receiver": case.strike})
    receiver = room.running["receiver"]
    assert receiver is not None
    if not room.wait(lambda: receiver.struck or not receiver.alive):
        raise Wrong("neither struck nor ended")
    result.missed = not receiver.struck
    room.end()
    result.verdicts = check_copy(room)
    if room.nothing_left("receiver"):
        return
    if receiver.status == 0:
        raise Wrong("the receiver ended with 0, and the migration is not complete")
    if os.path.lexists(room.records("receiver").name(Kind.RECEIVED)):
        # It has died between its last two acts.
        again = room.start("receiver")
        if not room.wait(lambda: not again.alive) or again.status != 0:
            raise Wrong(f"the receiver, started again, ended with {again.status}")
        if not room.nothing_left("receiver"):
            raise Wrong("its record is still there")
        return
    room.start_both()
    if not room.wait(lambda: not any(child.alive for child in room.children())):
        raise Wrong("the second try has no end")
    if [child.status for child in room.children()] != [0, 0]:
        raise Wrong(f"the second try ended with {[child.status for child in room.children()]}")
    there = sorted(os.listdir(room.destination.parent))
    if check_copy(room)[1] != CopyState.CANONICAL or there != ["disk", "disk.RECEIVED"]:
        raise Wrong("the second try has not come to its end")


def play_case(case: Case) -> Result:
    began = time.monotonic()
    result = Result(case)
    room = Room(case.play)
    try:
        play = _play_stranger if case.play.scenario == "stranger" else _play
        play(room, case, result)
    except Wrong as error:
        result.wrong.append(str(error))
    except Exception:
        result.wrong.append(traceback.format_exc())
    finally:
        room.end()
        if result.wrong:
            result.story = f"=== {case}\n" + "\n".join(result.wrong) + "\n" + room.story()
        room.clear()
        result.seconds = time.monotonic() - began
    return result


def _play(room: Room, case: Case, result: Result) -> None:
    strike, other = case.strike, SIDES[case.side == "sender"]
    set_up(room)
    room.start_both({case.side: strike})

    def decided() -> bool:
        struck = room.running[case.side]
        if struck is not None and struck.struck:
            return True
        return all(not child.alive for child in room.children())

    if not room.wait(decided):
        raise Wrong(f"neither struck nor ended within {LONGEST:g} s")
    struck = room.running[case.side]
    if struck is None or not struck.struck:
        result.missed = True
    else:
        room.note(f"the {case.side} was struck {strike.point}")
        _look_at_ruins(room, case, struck, room.running[other], result)
    if case.late and _ends_alone(room):
        return
    restart(room, case.eager)
    check_end(room)


def _ends_alone(room: Room) -> bool:
    """Whether the sender ends well without its receiver; then a human can accept the copy."""
    sender = room.running["sender"]
    if sender is None:
        return False
    room.wait(lambda: not sender.alive, commands.PATIENCE + 2)
    if sender.status != 0:
        return False
    room.note("the sender ended with 0, alone")
    check_status(room, "sender", 0)
    check_verdicts(room)
    records = room.records("receiver")
    if not os.path.lexists(records.name(Kind.RECEIVED)):
        accept(str(room.destination), "the matrix")
        check_verdicts(room)
    return True


def _look_at_ruins(
    room: Room, case: Case, struck: Child, other: Child | None, result: Result
) -> None:
    if struck.alive:
        # Let the other one get as far as it can.
        room.wait(lambda: False, 0.1)
    if case.both:
        struck.kill()
        if other is not None and case.strike.kind != "process":
            other.fail(case.strike.kind)
        elif other is not None:
            other.kill()
        result.verdicts = check_verdicts(room)
        return
    for child in (struck, other):
        if child is not None:
            child.stop()
    result.verdicts = check_verdicts(room)
    struck.kill()
    if other is not None:
        other.go_on()
