"""A mirror under a client that writes (L{tests.proof.mirror_crashes}).

C{python -m tests.proof.test_mirror_crashes [FILTER ...]} plays the cases outside of pytest.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from blockmig.control import ControlError
from blockmig.migration.records.files import Kind, Phase
from blockmig.migration.records.verdict import CopyState, examine, verdict_of, verdict_of_pair
from tests.proof.mirror_crashes.running import run, struck, summary
from tests.support.disks import MIB, random_image
from tests.support.mirroring import Mirrored, longest
from tests.support.processes import Processes

FULL: Final = os.environ.get("BLOCKMIG_FULL") == "1"

SAMPLE: Final = 8

BREAKS: Final = 100 if FULL else 8


def test_every_mirror_struck_at_any_point_ends_well() -> None:
    """All of them with BLOCKMIG_FULL=1, otherwise a part of them."""
    results = run(None if FULL else SAMPLE, time.strftime("%Y-%m-%d"))
    print(summary(results))
    wrong = [result for result in results if result.wrong]
    assert not wrong, f"{len(wrong)} cases went wrong: {wrong[0].story}"
    assert struck(results) >= (len(results) * 4 // 5 if FULL else SAMPLE)


@pytest.mark.parametrize("unlink", [True, False] if FULL else [True])
def test_a_mirror_broken_off_at_any_time_leaves_no_canonical_copy(
    processes: Processes, room: Path, unlink: bool
) -> None:
    """Mirror after mirror is broken off, and its copy is not canonical; or it is too late."""
    generator = random.Random(time.strftime("%Y-%m-%d"))
    disk = random_image(room / "disk", 8 * MIB)
    # Spread over the time that a mirror takes and more, so that some of a few are in time.
    times = [generator.uniform(i, i + 1) * 0.8 / BREAKS for i in range(BREAKS // 2)]
    generator.shuffle(times)
    left, breaks, homes = BREAKS // 2, 0, 0
    while left > 0:
        homes, late = homes + 1, False
        home = room / f"{homes}"
        home.mkdir()
        mirrored, copy = Mirrored(processes, home, disk), home / "copy"
        receiver = processes.receive(copy, "--size", 8 * MIB)
        with mirrored.writer() as writer:
            while left > 0:
                left -= 1
                outcome = mirrored.mirror(
                    receiver, max_rate=60 * MIB, max_pause=0.05, unlink=unlink
                )
                time.sleep(times[left])
                try:
                    mirrored.ask("POST", "/break", {})
                except ControlError:
                    assert outcome.result()["status"] == 0
                    late = True
                    break
                assert outcome.result()["status"] == 4
                breaks += 1
                writer.go_on(3)
                found = examine(str(copy))
                record = found.record(Kind.INCOMPLETE)
                assert record is not None
                assert record.phase == Phase.COPYING
                assert verdict_of(found).state == CopyState.NOT_CANONICAL
                assert verdict_of(examine(str(disk))).state == CopyState.CANONICAL
                assert verdict_of_pair(examine(str(disk)), found).canonical == str(disk)
                writer.go_on(3)
            else:
                writer.stop()
                mirrored.stop()
            requests = writer.wait()
        assert longest(requests) < 2
        mirrored.history.add(requests)
        if late:
            mirrored.ended()
            assert receiver.wait() == 0
            assert verdict_of_pair(examine(str(disk)), examine(str(copy))).canonical == str(copy)
            disk = copy
        mirrored.history.check(disk)
    print(f"\n{breaks} of {BREAKS // 2} in time")
    assert breaks > (BREAKS // 8 if FULL else 0)


def main() -> None:
    only = tuple(sys.argv[1:])
    began = time.monotonic()
    results = run(None if only or FULL else SAMPLE, time.strftime("%Y-%m-%d"), only)
    for result in sorted(results, key=lambda result: -result.seconds)[:5]:
        print(f"{result.seconds:.1f} s: {result.case}")
    missed = Counter(result.case.point.name for result in results if result.missed)
    print("missed:", dict(missed))
    print(summary(results), f"in {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
