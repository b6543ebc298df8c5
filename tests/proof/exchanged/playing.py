"""How a case is played."""

from __future__ import annotations

import time
import traceback
from typing import Final

from blockmig.migration.records.files import Kind
from tests.proof.exchanged.acts import Case, Result
from tests.proof.exchanged.findings import Findings
from tests.proof.exchanged.third_party import ThirdParty, record_of
from tests.proof.matrix.checks import check_end
from tests.proof.matrix.playing import set_up
from tests.proof.matrix.plays import LONGEST, SIDES, Wrong
from tests.proof.matrix.room import Room
from tests.proof.volatile import HOLD, Strike

PATIENCE: Final = 1.0
"""Seconds for which a sender looks for a receiver that has acknowledged everything."""

GRACE: Final = 0.4
"""Seconds after which a program is stopped that goes on alone with nothing to do."""


class ExchangeRoom(Room):
    """A room in which looks at the disks are points too."""

    looks = True
    rerun = False


def _come_to_an_end(room: Room) -> None:
    """Wait for both; one that goes on with nothing to do is stopped, as its operator would."""
    if not room.wait(lambda: not all(child.alive for child in room.children())):
        raise Wrong(f"neither has ended within {LONGEST:g} s")
    for side, child in room.running.items():
        other = room.running[SIDES[side == "sender"]]
        if child is None or not child.alive:
            continue
        seconds = GRACE
        if other is not None and other.status == 0:
            seconds = LONGEST if side == "sender" else GRACE
        elif side == "sender":
            record = record_of(room, "sender", Kind.MIGRATING)
            seconds += PATIENCE * 3 if record is not None and record.told else 0
        while not room.wait(lambda child=child: not child.alive, seconds):
            if room.log(side).read_text().rstrip().rpartition("\n")[2].startswith("# started"):
                continue  # it has hardly begun, and could not be stopped in good order
            room.note(f"the {side} is stopped")
            child.interrupt()
            if not room.wait(lambda child=child: not child.alive, 20):
                raise Wrong(f"the {side} does not stop")
            break


def _run_again(room: ExchangeRoom) -> None:
    """Start again, as operators would, what has not ended with 0; it may be refused."""
    room.rerun = True
    for side in ("receiver", "sender"):
        child = room.running[side]
        done = side == "sender" and room.nothing_left("sender")
        if (child is None or child.status != 0) and not done:
            room.note(f"the {side} is started again")
            child = room.start(side)
            if side == "receiver" and not room.listening(child) and child.status not in (0, 1, 3):
                raise Wrong(f"the receiver, started again, ended with {child.status}")
    _come_to_an_end(room)


def _play(room: ExchangeRoom, case: Case, result: Result) -> None:
    set_up(room)
    room.running = dict.fromkeys(SIDES)
    later = Strike(case.dies) if case.dies and case.dies != case.point else None
    room.start_both({case.side: Strike(case.point, kind=HOLD, then=later)})
    held = room.running[case.side]
    assert held is not None
    other = room.running[SIDES[case.side == "sender"]]
    if not room.wait(lambda: held.struck or not any(child.alive for child in room.children())):
        raise Wrong(f"neither held nor ended within {LONGEST:g} s")
    if not held.struck or not held.alive:
        result.missed = True
        return
    both = [child for child in (held, other) if child is not None]
    for child in both:
        child.stop()
    party = ThirdParty(room, case)
    room.note(f"held {case.point}, and somebody else did: {case.act} the {case.place}")
    findings = Findings(room, party)
    findings.check_verdicts(at_end=False)
    for child in both:
        child.go_on()
    if case.dies == case.point:
        held.kill()
    else:
        held.let_go()
        if other is None and room.wait(lambda: not held.alive or "listening" in held.reported):
            room.start("sender")
    _come_to_an_end(room)
    _check(findings, room)
    result.ends = tuple(child.status if child else None for child in room.running.values())
    if (case.again or case.dies) and result.ends != (0, 0) and not findings.wrong:
        _run_again(room)
        _check(findings, room)
    if not party.did and not case.dies and not findings.wrong:
        check_end(room)
    for kind, what in findings.wrong.items():
        if findings.known(kind):
            result.known[kind] = what
        else:
            result.wrong.append(f"{kind}: {what}")


def _check(findings: Findings, room: Room) -> None:
    findings.check_statuses()
    findings.check_verdicts()
    findings.check_bytes()
    findings.check_logs()


def play_case(case: Case) -> Result:
    began = time.monotonic()
    result = Result(case)
    room = ExchangeRoom(case.play)
    try:
        _play(room, case, result)
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
