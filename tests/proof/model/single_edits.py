"""Every edit of one step: each left out, and each two neighbours exchanged."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator

from tests.proof.model.edits import OVER_DATA
from tests.proof.model.explorer import Result, explore
from tests.proof.model.faults import KINDS, QUIET
from tests.proof.model.programs import Step, edited, steps_of
from tests.proof.model.protocol import Protocol, build

Explored = list[tuple[Protocol, int, frozenset[str]]]

HARMLESS = {
    # Which edits break nothing, and why; names as of L{single_edits}, patterns of fnmatch.
    "*M.write 1 before M.write 0*": "blocks may come in any order",
    "sender:attempt: no H.read": "the answer to the claim decides, the state only explains",
    "sender:attempt: H.copying before H.read": "the answer to the claim decides",
    "sender:finish: no H.read": "the answer to `retired` decides",
    "sender:finish: H.retired before H.read": "the answer to `retired` decides",
    "sender:anew: M.disc before H.retired": "it is void, and the next try finds `retired`",
    "*MIGRATING(*).write before H.*": "nobody sees a temporary file",
    "*MIGRATING(*).write before M.* (plain)": "nobody sees a temporary file",
    "*INCOMPLETE(*).write before disk.fdatasync": "nobody sees a temporary file",
    "sender:*: no M.closed": "`complete` is asked for",
    "sender:*: H.complete before M.closed": "`complete` is asked for",
    "sender:*: no M.closed (plain)": "a plain peer has it all since FLUSH",
    "sender:*: MIGRATING.unlink before M.closed (plain)": "a plain peer has it all since FLUSH",
    "sender:attempt: M.write 0 before MIGRATING(copying).dirsync*": "only FLUSH needs the id",
    "sender:attempt: no MIGRATING(copying).rename (plain)": "a plain peer knows no id",
    "sender:attempt: no MIGRATING(copying).dirsync (plain)": "a plain peer knows no id",
    "*: MIGRATING(copying).dirsync before * (plain)": "a plain peer knows no id",
    "sender:stop: *": "a stopped sender leaves its id, and goes on with it",
    "sender:unsay: no MIGRATING(copying).rename*": "assumption 5, while it still says copied",
    "sender:unsay: no MIGRATING(copying).dirsync*": "assumption 5, while it may say copied",
    "sender:unsay: MIGRATING(copying).dirsync before *": "assumption 5, while it may say copied",
    "sender:back: no back.copying": "a whole copy is nobody's disk before `retired`",
    "sender:back: *back.read": "it keeps one from claiming where there is no copy of this disk",
    "sender:attempt: M.connect before source.fsync*": "the scan has not begun",
    "*(*).write before *look*": "nobody sees a temporary file",
    "receiver:*: no copying.look": "what it would have found is found before `copied`",
    "receiver:rescue: no fail": "the disk is saved, and nothing says that it is complete",
    "receiver:claim: *file.size*": "what was copied has its size",
    "receiver:claim: no claim": "it is taken for a foreign attempt, and the next one claims",
    "receiver:claim-kept: reply before claim": "both are memory",
    "*MIGRATED(confirmed).write before H.*": "nobody sees a temporary file",
    "*MIGRATED(confirmed).write before M.* (plain)": "nobody sees a temporary file",
    "*RECEIVED.write before *": "nobody sees a temporary file",
    "receiver:look: look.dirsync before file.create": "the fsync of the record's directory does it",
    "receiver:claim: reply before claim": "both are memory",
    "receiver:write-first: block.write before file.size": "one fdatasync makes both durable",
    "receiver:write*: reply before block.write*": "the FLUSH is handled after it",
    "receiver:flush: no disk.fdatasync": "while it is not whole, FLUSH promises nothing",
    "receiver:flush: no reply": "while it is not whole, FLUSH promises nothing",
    "receiver:flush: reply before disk.fdatasync": "while it is not whole, FLUSH promises nothing",
    "receiver:flush-whole: reply before INCOMPLETE(copied).dirsync": "`copied` is asked for",
}


def harmless(name: str) -> str:
    """Why that edit breaks nothing, or nothing."""
    return next(
        (why for pattern, why in HARMLESS.items() if fnmatch.fnmatchcase(name, pattern)), ""
    )


def single_edits() -> Iterator[tuple[str, Explored]]:
    """Each step left out, and each two neighbours exchanged: the name, and what to explore."""
    for peer in ("blockmig", "plain"):
        base = build(peer=peer)
        programs = [f"sender:{name}" for name in base.sender]
        programs += [f"receiver:{name}" for name in base.receiver]
        for program in programs:
            for name, new in edits_of(steps_of(base, program)):
                kept = {step.name for step in new}
                if program == "sender:attempt" and "source.unlink" not in kept:
                    continue  # it never retires: there is no hand-off
                if program in ENDING and "MIGRATING.unlink" not in kept:
                    continue  # it never ends
                if not new or (program.startswith("sender") and "exit" in name.split()):
                    continue  # no step of the protocol
                yield (
                    f"{program}: {name}{' (plain)' if peer == 'plain' else ''}",
                    bounds_of(peer, program, name, new),
                )


ENDING = ("sender:finish", "sender:anew")


def edits_of(steps: list[Step]) -> Iterator[tuple[str, list[Step]]]:
    for i, step in enumerate(steps):
        yield f"no {step.name}", steps[:i] + steps[i + 1 :]
    for i, (one, two) in enumerate(itertools.pairwise(steps)):
        yield f"{two.name} before {one.name}", [*steps[:i], two, one, *steps[i + 2 :]]


def bounds_of(peer: str, program: str, name: str, new: list[Step]) -> Explored:
    if peer == "plain":
        return [(edited(build(peer=peer), program, new), 2, KINDS)]
    # A receiver without a record waits on a disk only where it may be overwritten.
    over_data = OVER_DATA if program == "sender:anew" else {}
    ours = edited(build(**over_data), program, new)
    if program == "sender:anew":  # two lead there
        return [(ours, 3, frozenset({"crash", "cut", "power", "forget"}))]
    if program in ENDING:
        return [(ours, 2, QUIET)]  # one fault leads there, it takes one more to go wrong
    if program == "receiver:look":
        return [(ours, 2, frozenset({"crash"})), (ours, 1, frozenset({"power"}))]
    explored: Explored = []
    for pattern, kinds in TWO_FAULTS.items():
        if fnmatch.fnmatchcase(f"{program}: {name}", pattern):
            explored.append((ours, 2, frozenset(kinds)))
    if program.startswith("receiver"):
        explored.append((edited(build(peer="foreign"), program, new), 2, KINDS))
    explored.append((ours, 1, KINDS))
    return explored


TWO_FAULTS = {
    # Those that two faults have to meet, and which.
    "sender:attempt: *source.look first*": {"swap source", "crash"},
    "sender:attempt: no H.copied": {"cut", "stranger"},
    "sender:unsay: *": {"stop", "power"},
    "receiver:claim: *": {"stop", "cut", "power"},
    "receiver:claim: *INCOMPLETE(copying).rename": {"swap source", "crash"},
    "receiver:claim: *INCOMPLETE(copying).dirsync*": {"stranger", "crash"},
    "receiver:rescue: *": {"swap target", "stop"},
}


def first_broken(explored: Explored) -> Result:
    """The first of these explorations that breaks, else the last."""
    results = (explore(*bounds) for bounds in explored)
    last: Result | None = None
    for last in results:
        if last.broken:
            break
    assert last is not None
    return last
