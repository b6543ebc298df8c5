"""`inspect`: tells which copy is the canonical one, from what stands beside the disks."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, ClassVar

from ..errors import ExitStatus
from . import common, usage
from .usage import Flag, Parameter

if TYPE_CHECKING:
    from ..migration.records.verdict import DiskState, Verdict


class Options(usage.Options):
    """Options of `inspect`."""

    synopsis = "blockmig inspect DISK [OTHER] [options]"
    longdesc = (
        "Tell whether DISK is the canonical copy, from what stands beside it: first the verdict, "
        "then why, then what to do. DISK may be gone. With the path of the other side's disk, "
        "where both can be seen from here, one verdict for the two. Nothing is changed. "
        "Exit statuses: 0 the verdict is certain (canonical, or not canonical), 1 bad usage, "
        "3 it cannot be looked at, 5 the verdict is not certain."
    )
    optFlags: ClassVar[tuple[Flag, ...]] = (Flag("json", "Print one JSON object."),)
    optParameters: ClassVar[tuple[Parameter, ...]] = (common.STATE_DIRECTORY,)

    def parseArgs(self, *arguments: str) -> None:
        """One disk or two."""
        if not 1 <= len(arguments) <= 2:
            raise usage.UsageError("one disk is wanted, or the two of one migration: DISK [OTHER]")
        self["disks"] = arguments


def run(options: Options) -> int:
    """Print the verdict; 0 if it is certain."""
    from ..migration.records.verdict import (  # noqa: PLC0415
        CopyState,
        examine_until_stable,
        unstable_verdict,
        verdict_of,
        verdict_of_pair,
    )
    from ..storage import DiskRefused  # noqa: PLC0415

    try:
        found, steady = examine_until_stable(options["disks"], options["state-dir"])
    except DiskRefused as error:
        print(f"blockmig: {error}", file=sys.stderr)
        return ExitStatus.FAILED
    if not steady:
        verdict = unstable_verdict(options["disks"])
    else:
        verdict = verdict_of(found[0]) if len(found) == 1 else verdict_of_pair(*found)
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:  # a name of a file need not be text
        reconfigure(errors="backslashreplace")
    if options["json"]:
        print(json.dumps(_as_json(verdict, found)))
    else:
        lines = [verdict.line, f"why: {verdict.why}", f"do: {verdict.advice}"]
        lines = [line.replace("\n", "?") for line in lines]
        lines += [
            f"now: {place.path} is open in another program: it may be on the move, wait for that"
            for place in found
            if place.in_use
        ]
        print("\n".join(lines))
    certain = verdict.state in (CopyState.CANONICAL, CopyState.NOT_CANONICAL)
    return ExitStatus.DONE if certain else ExitStatus.UNCONFIRMED


def _as_json(verdict: Verdict, found: list[DiskState]) -> dict[str, object]:
    return {
        "verdict": verdict.state.value,
        "line": verdict.line,
        "why": verdict.why,
        "do": verdict.advice,
        "canonical": verdict.canonical or None,
        "disks": [
            {
                "path": place.path,
                "size": place.size,
                "in_use": place.in_use,
                "records": {
                    kind.value: json.loads(record.encode(kind))
                    for kind, record in place.records.items()
                },
                "unreadable": {kind.value: why for kind, why in place.bad.items()},
            }
            for place in found
        ],
    }
