"""How a case is played: struck, looked at, continued, and checked at its end."""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from blockmig.control import ControlError
from blockmig.migration.records.files import Kind, Phase, Records
from blockmig.migration.records.verdict import CopyState, examine, verdict_of
from tests.proof.mirror_crashes.plays import Case, Result, Wrong, expect
from tests.proof.mirror_crashes.room import Room
from tests.proof.volatile import Strike
from tests.support.mirroring import Lost

PATIENCE: Final = 20.0
"""Seconds after which a point is not waited for any longer."""

LONG_PAUSE: Final = 2.0


def begin(room: Room, case: Case | None, record: Path | None = None) -> None:
    """Start both, have a client write, and begin the mirror."""
    strikes: dict[str, Strike | None] = {"receiver": None, "server": None}
    if case is not None and case.what == "kill receiver":
        strikes["receiver"] = Strike(case.point)
    elif case is not None:
        strikes["server"] = Strike(case.point, kind="break" if case.what == "break" else "process")
    for name, strike in strikes.items():
        room.start(name, strike, record / name if record is not None else None)
    expect(room.running["server"].alive, "the server has not begun")
    room.write()
    room.goes_on()
    room.mirror()


def completes(room: Room) -> None:
    """It completes by itself, and ends well."""
    expect(room.ended("server") == 0, "the server did not end with 0")
    if "receiver" in room.running:
        expect(room.ended("receiver") == 0, "the receiver did not end with 0")
    room.written()
    room.check_end()


def _anew(room: Room) -> None:
    """Another mirror of a disk that is not retired, with time for its hold on a busy machine."""
    room.mirror(max_pause=LONG_PAUSE)
    completes(room)


def _in_vain(room: Room) -> None:
    """The point was not reached, nor the end: on a busy machine no hold may be short enough."""
    try:
        room.ask("/break", {})
    except ControlError:  # now of all times it comes to its end
        completes(room)
        return
    room.note("broken off, and begun anew")
    room.goes_on()
    _anew(room)


def _server_was_killed(room: Room, result: Result) -> None:
    room.written()
    result.retired = room.look()
    room.history.check(room.destination if result.retired else room.source)
    if result.retired:
        if room.left_to_finish():
            room.start("sender")
            expect(room.ended("sender") == 0, "the migration could not be finished")
        expect(room.ended("receiver") == 0, "the receiver did not end with 0")
        room.check_end()
        return
    room.start("server")
    room.write()
    room.goes_on()
    _anew(room)


def _receiver_was_killed(room: Room, result: Result) -> None:
    # What the server does about it, it does in a moment.
    room.wait(lambda: room.begun is not None, 10)
    room.wait(lambda: False, 0.1)
    result.retired = room.look()
    writer = room.writer
    if not result.retired and writer is not None and writer.running:
        # It may be retired yet, if all was there, and the server only waited for the medium.
        with contextlib.suppress(AssertionError):
            room.goes_on()
    complete = verdict_of(examine(str(room.destination))).state == CopyState.CANONICAL
    again = room.start("receiver")
    if complete:  # it died after its last act, and the server does not need it any more
        expect(room.ended("receiver") == 0, "the receiver, already complete, did not end with 0")
    else:
        expect(again.alive, "the receiver could not be started again")
    if room.begun or result.retired:
        completes(room)
    else:  # it was never accepted, and that is all
        room.goes_on()
        _anew(room)


def _was_broken_off(room: Room, result: Result) -> None:
    server = room.running["server"]
    if "too-late" in server.reported:
        result.retired = True
        completes(room)
        return
    room.goes_on()
    result.retired = room.look()
    expect(not result.retired, "the mirror was broken off, and the source is retired")
    record = Records(str(room.destination)).read(Kind.INCOMPLETE)
    expect(
        record is None or record.phase == Phase.COPYING,
        "the mirror was broken off, and the destination says that all was copied",
    )
    found = examine(str(room.destination))
    expect(
        record is None or verdict_of(found).state == CopyState.NOT_CANONICAL,
        f"the mirror was broken off, and the destination is called {verdict_of(found).line!r}",
    )
    room.goes_on()
    _anew(room)


AFTERMATH: Final[dict[str, Callable[[Room, Result], None]]] = {
    "kill server": _server_was_killed,
    "kill receiver": _receiver_was_killed,
    "break": _was_broken_off,
}


def _play(room: Room, case: Case, result: Result) -> None:
    begin(room, case)
    struck = room.running["receiver" if case.what == "kill receiver" else "server"]

    def decided() -> bool:
        if struck.struck or not struck.reported.isdisjoint(("broken", "too-late")):
            return True
        return not room.running["server"].alive

    if not room.wait(decided, PATIENCE):
        result.missed = True
        _in_vain(room)
    elif struck.struck or not struck.reported.isdisjoint(("broken", "too-late")):
        room.note(f"{case.what}, {case.point}")
        AFTERMATH[case.what](room, result)
    else:
        result.missed = True
        completes(room)


def play_case(case: Case) -> Result:
    began = time.monotonic()
    result = Result(case)
    room = Room(case.play, case.unlink)
    try:
        _play(room, case, result)
    except (Wrong, Lost) as error:
        result.wrong.append(str(error))
    except Exception:
        result.wrong.append(traceback.format_exc())
    finally:
        room.end()
        if result.wrong:
            result.story = f"=== {case}\n" + "\n".join(result.wrong) + "\n" + room.story()
        shutil.rmtree(room.top, ignore_errors=True)
        result.seconds = time.monotonic() - began
    return result
