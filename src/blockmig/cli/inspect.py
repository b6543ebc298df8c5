"""`inspect`: shows which copy is the canonical one, from the records beside the disks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from ..errors import ExitStatus
from ..units import printable
from . import common, usage
from .usage import Flag, Parameter

if TYPE_CHECKING:
    from ..migration.records.verdict import DiskState, Verdict


class Options(usage.Options):
    synopsis = "blockmig inspect DISK [OTHER] [options]"
    longdesc = (
        "Show whether DISK is the canonical copy, from the migration records beside it: the first "
        "line is the verdict (and whether a migration of it is going on), the next says why, the "
        "next what to do. DISK itself may be gone. If the other side's disk can be reached from "
        "this host too, give it as OTHER, for one verdict on both. If DISK is a directory, there "
        "is one line for each disk that has records there. Nothing is changed. The exit status is "
        "0 if the verdict is certain (canonical or not canonical), and 5 if it is not."
    )
    examples = (
        (
            "blockmig inspect web.img",
            "Is this copy the one to use?",
        ),
        (
            "blockmig inspect /var/lib/images",
            "One line for each disk with records there.",
        ),
    )
    statuses = (0, 1, 3, 5)
    optFlags: ClassVar[tuple[Flag, ...]] = (common.JSON,)
    optParameters: ClassVar[tuple[Parameter, ...]] = (common.STATE_DIRECTORY,)

    def parseArgs(self, *arguments: str) -> None:
        if not 1 <= len(arguments) <= 2:
            raise usage.UsageError("expected one or two arguments: DISK [OTHER]")
        self["disks"] = tuple(map(common.check_path, arguments))


def run(options: Options) -> int:
    """Print the verdict, and return 0 if it is certain."""
    disks = options["disks"]
    usage.show_any_name()
    if len(disks) == 1 and os.path.isdir(disks[0]):
        return _inspect_all(options, disks[0])
    return _inspect(options)


def _inspect_all(options: Options, directory: str) -> int:
    """One line for each disk that has records in a directory."""
    from ..errors import LocalFailure  # noqa: PLC0415
    from ..migration.records.directory import recorded_disks  # noqa: PLC0415
    from ..migration.records.verdict import (  # noqa: PLC0415
        examine_until_stable,
        unstable_verdict,
        verdict_of,
    )
    from ..storage import DiskRefused  # noqa: PLC0415

    found, uncertain, failed = [], 0, False
    try:
        paths = recorded_disks(directory)
    except LocalFailure as error:
        usage.complain(error)
        return error.status
    for path in paths:
        try:
            states, steady = examine_until_stable([path], directory)
        except DiskRefused as error:
            usage.complain(error)
            failed = True
            continue
        verdict = verdict_of(states[0]) if steady else unstable_verdict([path])
        uncertain += not verdict.certain
        if options["json"]:
            found.append(_as_json(verdict, states))
        else:
            usage.show(printable(usage.with_any_name(f"{path}: {verdict.line}{_note(states)}")))
    if options["json"]:
        usage.show(json.dumps({"directory": directory, "verdicts": found}))
    elif not paths:
        usage.show(f"{directory}: there is no record of a migration")
    if failed:
        return ExitStatus.FAILED
    return ExitStatus.UNCONFIRMED if uncertain or not paths else ExitStatus.DONE


def _inspect(options: Options) -> int:
    """The verdict on one disk, or on two."""
    from ..migration.records.verdict import (  # noqa: PLC0415
        examine_until_stable,
        unstable_verdict,
        verdict_of,
        verdict_of_pair,
    )
    from ..storage import DiskRefused  # noqa: PLC0415

    try:
        states, steady = examine_until_stable(options["disks"], options["state-dir"])
    except DiskRefused as error:
        usage.complain(error)
        return ExitStatus.FAILED
    if not steady:
        verdict = unstable_verdict(options["disks"])
    else:
        verdict = verdict_of(states[0]) if len(states) == 1 else verdict_of_pair(*states)
    if options["json"]:
        usage.show(json.dumps(_as_json(verdict, states)))
    else:
        note = _note(states)
        wait = "wait for the end of the migration that is going on; without one: " if note else ""
        lines = [f"{verdict.line}{note}", f"why: {verdict.why}", f"do: {wait}{verdict.advice}"]
        lines += [
            f"now: {state.path} is open in another program: wait, if it is being migrated"
            for state in states
            if state.in_use and not note
        ]
        lines += [
            f"note: {why}"
            for state in states
            for why in state.bad.values()
            if why not in verdict.why
        ]
        usage.show("\n".join(printable(usage.with_any_name(line)) for line in lines))
    return ExitStatus.DONE if verdict.certain else ExitStatus.UNCONFIRMED


def _is_copied(state: DiskState) -> bool:
    """Whether a program seems to copy the disk, or into it, at this moment."""
    from ..migration.records.files import Kind  # noqa: PLC0415

    return state.in_use and bool({Kind.INCOMPLETE, Kind.MIGRATING} & set(state.records))


def _note(states: Sequence[DiskState]) -> str:
    """What is going on, for the first line: what is found may be otherwise in a moment.

    Of two disks both are in use then; a receiver may well wait for its sender.
    """
    return " (being copied now)" if all(map(_is_copied, states)) else ""


def _as_json(verdict: Verdict, states: list[DiskState]) -> dict[str, object]:
    return {
        "verdict": verdict.state.value,
        "line": verdict.line,
        "why": verdict.why,
        "do": verdict.advice,
        "canonical": verdict.canonical or None,
        "disks": [
            {
                "path": state.path,
                "size": state.size,
                "in_use": state.in_use,
                "records": {
                    kind.value: json.loads(record.encode(kind))
                    for kind, record in state.records.items()
                },
                "unreadable": {kind.value: why for kind, why in state.bad.items()},
            }
            for state in states
        ],
    }
