"""The steps of both ends as data, and the rules by which commands and claims are let in."""

from __future__ import annotations

from dataclasses import dataclass

from tests.proof.model.programs import Programs, Step

RULES = {
    "done: only if it is confirmed",
    "done: only if the file is the one",
    "done: only with that destination",
    "done: only with that id",
    "done: not beside an unfinished copy",
    "done: the later of two records counts",
    "latest: said by `follows`",
    "new: a finished record stops what is not a new id",
    "new: an id is used once",
    "new: the ids of before go into the new record",
    "new: a retired disk is not sent",
    "new: what is finished goes when a copy begins",
    "again: a retired disk stays so until it is retired anew",
    "again: the retired disk is still what MIGRATED says",
    "overwrite: not an unfinished hand-off",
    "overwrite: not without an id where something was finished",
    "claim: an id that was finished here is refused",
    "claim: another's than the chosen id is refused",
    "claim: another's `copied` is refused",
    "start: data without a record is refused",
    "finish: only alone when told",
}


@dataclass(frozen=True)
class Memory(Programs):
    """The programs."""

    unlink: bool = True


def writing(kind: str, phase: str = "") -> list[Step]:
    name = f"{kind}({phase})" if phase else kind
    return [
        Step(f"{name}.rename", "rename", f"{kind.lower()} {phase}"),
        Step(f"{name}.dirsync", "dirsync"),
    ]


def removing(kind: str) -> list[Step]:
    return [
        Step(f"{kind}.unlink", "unlink", kind.lower()),
        Step(f"{kind}.gone.dirsync", "dirsync"),
    ]


def build(unlink: bool = True) -> Memory:
    """The protocol as the product is to have it."""
    retire = (
        [Step("source.unlink", "unlink", "file"), Step("source.dirsync", "dirsync")]
        if unlink
        else writing("MIGRATED", "retired")
    )
    announce = [Step("ask retired", "ask", "retired"), *writing("MIGRATING", "told")]
    confirm = [
        Step("ask disc", "ask", "disc"),
        *writing("MIGRATED", "confirmed"),
        *removing("MIGRATING"),
        Step("exit", "exit", 0),
    ]
    sender = {
        "look": [Step("look.dirsync", "dirsync")],
        "attempt": [
            Step("ask claim", "ask", "claim"),
            *writing("MIGRATING", "copying"),
            Step("ask write", "ask", "write"),
            Step("ask rest", "ask", "rest"),
            Step("ask flush", "ask", "flush"),
            *writing("MIGRATING", "copied"),
            *retire,
            *announce,
            *confirm,
        ],
        "finish": [*announce, *confirm],
        "again": confirm,
        "tidy": [*removing("MIGRATING"), Step("exit", "exit", 0)],
        "alone": [
            *(writing("MIGRATED", "alone") if unlink else []),
            *removing("MIGRATING"),
            Step("exit", "exit", 0),
        ],
    }
    reply = [Step("reply", "reply")]
    receiver = {
        "look": [Step("look.dirsync", "dirsync")],
        "claim": reply,
        "write": [
            *writing("INCOMPLETE", "copying"),
            Step("RECEIVED.unlink", "unlink", "received"),
            Step("MIGRATED.unlink", "unlink", "migrated"),
            Step("MIGRATING.unlink", "unlink", "migrating"),
            Step("before.gone.dirsync", "dirsync"),
            Step("block.first", "block", "~"),
            *reply,
        ],
        "rest": [Step("block.rest", "block", "all"), *reply],
        "flush": [Step("datasync", "datasync"), *writing("INCOMPLETE", "copied"), *reply],
        "retired": [*writing("INCOMPLETE", "retired"), *reply],
        "known": reply,
        "disc": [
            *writing("RECEIVED", "confirmed"),
            *removing("INCOMPLETE"),
            Step("complete", "complete"),
        ],
        "tidy": [*removing("INCOMPLETE"), Step("look again", "again")],
    }
    return Memory(sender, receiver, frozenset(RULES), unlink)
