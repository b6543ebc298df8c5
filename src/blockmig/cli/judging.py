"""`inspect` and `accept`: what a human asks and decides; no reactor is needed for either."""

from __future__ import annotations

import getpass
import json
import os
import sys

from ..errors import ExitStatus, MigrationError
from ..migration.records.accept import accept
from ..migration.records.verdict import (
    Found,
    Standing,
    Verdict,
    changing,
    judge,
    judge_pair,
    look_steadily,
)
from ..storage import DiskRefused
from .options import AcceptOptions, InspectOptions


def run_inspect(options: InspectOptions) -> ExitStatus:
    """Print the verdict."""
    try:
        found, steady = look_steadily(options["disks"], options["state-dir"])
    except DiskRefused as error:
        print(f"blockmig: {error}", file=sys.stderr)
        return ExitStatus.FAILED
    if not steady:
        verdict = changing(options["disks"])
    else:
        verdict = judge(found[0]) if len(found) == 1 else judge_pair(*found)
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
    if accepted.identified:
        source = accepted.source
        print(f"if {source.disk}.MIGRATING stands on {source.host}, it may be removed")
    return ExitStatus.DONE


def _who() -> str:
    """The human, as far as the system knows."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):
        name = f"user {os.getuid()}"
    behind = os.environ.get("SUDO_USER")
    return f"{behind} (as {name})" if behind and behind != name else name
