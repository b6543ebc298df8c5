"""The crash matrix (L{tests.proof.matrix}); a third party at the files (L{tests.proof.exchanged}).

C{python -m tests.proof.test_crash_matrix [--full] [FILTER ...]} plays the matrix outside of pytest.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from typing import Final

from tests.proof.exchanged import running as exchanged
from tests.proof.exchanged.acts import BLIND
from tests.proof.matrix.cases import plays, record
from tests.proof.matrix.running import run

FULL: Final = os.environ.get("BLOCKMIG_FULL") == "1"

SAMPLE: Final = 40
"""Cases of an ordinary run, other ones each day: what plays them works. `make proof` plays all."""


def test_every_migration_struck_at_any_point_ends_well() -> None:
    """The whole matrix with BLOCKMIG_FULL=1, otherwise a part of it."""
    report = run(FULL, None if FULL else SAMPLE, time.strftime("%Y-%m-%d"))
    print("\n".join(report.lines()))
    assert not report.wrong, f"{len(report.wrong)} cases went wrong: {report.wrong[0].story}"
    assert sum(result.missed for result in report.results) <= max(1, len(report.results) // 50)


def test_what_a_third_party_does_to_the_files_costs_no_copy() -> None:
    report = exchanged.run(None if FULL else exchanged.SAMPLE, time.strftime("%Y-%m-%d"))
    print("\n".join(report.lines()))
    assert not report.wrong, f"{len(report.wrong)} cases went wrong: {report.wrong[0].story}"
    assert not report.misplaced
    assert sum(result.missed for result in report.results) <= max(2, len(report.results) // 20)
    if FULL:
        blind = {result.case.blind for result in report.results if result.known}
        assert blind >= set(BLIND), "one of the blind instants is none"


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing is left behind
    parser = argparse.ArgumentParser(description="the crash matrix")
    parser.add_argument("--full", action="store_true", help="all of it")
    parser.add_argument("--count", type=int, help="so many cases of it")
    parser.add_argument("--seed", default=time.strftime("%Y-%m-%d"), help="of which to choose")
    parser.add_argument("--stop", type=int, default=20, help="stop at so many wrong cases")
    parser.add_argument("--points", action="store_true", help="only list the points")
    parser.add_argument("only", nargs="*", help="texts that a case's name must have")
    given = parser.parse_args()
    if given.points:
        for play in plays(given.full):
            if all(text in str(play) for text in given.only):
                for side, points in record(play).items():
                    print(f"{play} {side}")
                    print("\n".join(f"  {point} {dirty}" for point, dirty in points))
        return
    whole = given.full or bool(given.only)
    count = given.count if given.count is not None else (None if whole else SAMPLE)
    report = run(given.full, count, given.seed, given.only, most_wrong=given.stop)
    print("\n".join(report.lines()))
    raise SystemExit(bool(report.wrong))


if __name__ == "__main__":
    main()
