"""A mutation of the hand-off, and the shorthands for them.

The edits themselves are L{programs}'.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.proof.model.explorer import Result, explore
from tests.proof.model.faults import BREAKS
from tests.proof.model.programs import Edit, move
from tests.proof.model.protocol import build


@dataclass(frozen=True)
class Mutation:
    """An edit of the protocol, and the invariant that it must break."""

    name: str
    breaks: str
    edit: Edit
    peer: str = "blockmig"
    unlink: bool = True
    faults: int = 1
    kinds: frozenset[str] = BREAKS
    there: str = ""
    overwrite: bool = False

    def explore(self, kinds: frozenset[str] | None = None) -> Result:
        protocol = self.edit(build(self.unlink, self.peer, self.there, self.overwrite))
        return explore(protocol, self.faults, kinds or self.kinds)


def calls(kind: str) -> tuple[str, ...]:
    """The names of the steps that write a record."""
    return tuple(f"{kind}.{call}" for call in ("write", "fsync", "rename", "dirsync"))


SEND = "sender:attempt"
UNLINK = ("source.unlink", "source.dirsync")
LEAVE = ("M.disc", "M.closed")
REMOVE = ("MIGRATING.unlink", "MIGRATING.gone.dirsync")
ON_DEVICE: dict = {"unlink": False, "there": "blank"}
OVER_DATA: dict = {"there": "data", "overwrite": True}
KEEP: dict = {"unlink": False}
PLAIN: dict = {"peer": "plain"}
FOREIGN_SENDER: dict = {"peer": "foreign"}
SWAP: dict = {"kinds": frozenset({"swap source"})}
SWAP_KEPT: dict = {"unlink": False, **SWAP}
WRITE: dict = {"kinds": frozenset({"write source"})}
LOOKS = ("source.look first", "source.look")
LATE: dict = {"faults": 2, "kinds": frozenset({"cut", "late stranger"})}
COMPLETE = "receiver:disc-complete"
FORGOTTEN_THERE: dict = {"faults": 2, "kinds": frozenset({"crash", "forget"})}
CRASHES: dict = {"kinds": frozenset({"crash"})}
CUTS: dict = {"faults": 2, "kinds": frozenset({"cut"})}

FLUSH_EARLY = move("receiver:flush-whole", "reply", "INCOMPLETE(copied).write")
