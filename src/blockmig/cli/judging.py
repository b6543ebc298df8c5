"""`inspect` and `accept`: what a human asks and decides; no reactor is needed for either."""

from __future__ import annotations

import getpass
import json
import os
import sys

from ..migration import (
    ExitStatus,
    Found,
    MigrationError,
    Standing,
    Verdict,
    accept,
    judge,
    judge_pair,
    look,
    look_at_both,
)
from ..storage import DiskRefused
from .options import AcceptOptions, InspectOptions


def run_inspect(options: InspectOptions) -> ExitStatus:
    """Print the verdict."""
    try:
        disks, directory = options["disks"], options["state-dir"]
        if len(disks) == 1:
            found = [look(disks[0], directory)]
        else:
            found = list(look_at_both(disks[0], disks[1], directory))
    except DiskRefused as error:
        print(f"blockmig: {error}", file=sys.stderr)
        return ExitStatus.FAILED
    verdict = judge(found[0]) if len(found) == 1 else judge_pair(*found)
    if options["json"]:
        print(json.dumps(_as_json(verdict, found)))
    else:
        lines = [verdict.line, f"why: {verdict.why}", f"do: {verdict.advice}"]
        lines += [
            f"now: {place.path} is open in another program: it may be on the move, wait for that"
            for place in found
            if place.in_use
        ]
        print("\n".join(lines))
    certain = verdict.standing in (Standing.CANONICAL, Standing.NOT_CANONICAL)
    return ExitStatus.DONE if certain else ExitStatus.UNCONFIRMED


def _as_json(verdict: Verdict, found: list[Found]) -> dict[str, object]:
    return {
        "verdict": verdict.standing.value,
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


def run_accept(options: AcceptOptions) -> ExitStatus:
    """Put it on record."""
    try:
        accepted = accept(options["disk"], _who(), options["state-dir"])
    except MigrationError as error:
        print(f"blockmig: {error}", file=sys.stderr)
        return error.status
    print(f"{options['disk']} is canonical, by word of {accepted.by}, {accepted.changed}")
    return ExitStatus.DONE


def _who() -> str:
    """The human, as far as the system knows."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"user {os.getuid()}"
    behind = os.environ.get("SUDO_USER")
    return f"{behind} (as {name})" if behind and behind != name else name
