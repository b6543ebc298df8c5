"""Plays the cases outside of pytest."""

from __future__ import annotations

import argparse
import signal
import sys
import time

from tests.proof.exchanged.running import SAMPLE, run


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(description="a third party at the files")
    parser.add_argument("--full", action="store_true", help="all of it")
    parser.add_argument("--count", type=int, help="so many cases of it")
    parser.add_argument("--seed", default=time.strftime("%Y-%m-%d"), help="of which to choose")
    parser.add_argument("--stop", type=int, default=20, help="stop at so many wrong cases")
    parser.add_argument("only", nargs="*", help="texts that a case's name must have")
    given = parser.parse_args()
    whole = given.full or bool(given.only)
    count = given.count if given.count is not None else (None if whole else SAMPLE)
    report = run(count, given.seed, given.only, most_wrong=given.stop)
    print("\n".join(report.lines()))
    for result in sorted(report.results, key=lambda result: -result.seconds)[:5]:
        print(f"{result.seconds:.1f} s: {result.case}")
    raise SystemExit(bool(report.wrong or report.misplaced))


if __name__ == "__main__":
    main()
