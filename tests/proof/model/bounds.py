"""The explorations of the unchanged protocol."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tests.proof.model.explorer import Result, explore
from tests.proof.model.faults import AT_BOTH, AT_SOURCE, AT_TARGET, BREAKS, KINDS, QUIET
from tests.proof.model.protocol import Protocol, build


@dataclass(frozen=True)
class Bound:
    """One exploration of the unchanged protocol."""

    unlink: bool
    peer: str
    faults: int
    kinds: frozenset[str] = KINDS
    full: bool = False  # only when the whole is asked for
    there: str = ""
    overwrite: bool = False

    @property
    def protocol(self) -> Protocol:
        return build(self.unlink, self.peer, self.there, self.overwrite)

    def explore(self) -> Result:
        return explore(self.protocol, self.faults, self.kinds)

    @property
    def name(self) -> str:
        names = {KINDS: "all kinds", BREAKS: "breaks"}
        kinds = names.get(self.kinds) or "+".join(sorted(self.kinds))
        return f"{self.protocol.name}, faults {self.faults}: {kinds}"


BOUNDS = [
    Bound(True, "blockmig", 1),
    Bound(False, "blockmig", 1, there="blank"),
    Bound(True, "blockmig", 1, there="data"),
    Bound(True, "blockmig", 1, there="data", overwrite=True),
    Bound(True, "blockmig", 2, QUIET),
    Bound(True, "plain", 3, BREAKS),
    Bound(True, "plain", 2),
    Bound(True, "foreign", 3, BREAKS),
    Bound(True, "foreign", 3, BREAKS, there="blank"),
    Bound(True, "foreign", 2),
    Bound(True, "foreign", 2, there="data", overwrite=True),
    Bound(False, "blockmig", 1, full=True),
    Bound(False, "blockmig", 1, full=True, there="data", overwrite=True),
    Bound(False, "blockmig", 2, QUIET, full=True),
    Bound(False, "blockmig", 2, QUIET, full=True, there="blank"),
    Bound(False, "blockmig", 2, QUIET, full=True, there="data", overwrite=True),
    Bound(True, "plain", 3, full=True),
    Bound(False, "plain", 3, full=True),
    Bound(True, "foreign", 3, full=True),
    Bound(True, "foreign", 3, full=True, there="blank"),
    Bound(True, "foreign", 3, full=True, there="data", overwrite=True),
    Bound(True, "blockmig", 2, full=True),
    Bound(False, "blockmig", 2, full=True),
    Bound(True, "blockmig", 2, full=True, there="data", overwrite=True),
    Bound(False, "blockmig", 3, QUIET, full=True),
    Bound(True, "blockmig", 3, AT_SOURCE, full=True),
    Bound(False, "blockmig", 3, AT_SOURCE, full=True),
    Bound(True, "blockmig", 3, AT_TARGET, full=True),
    Bound(True, "blockmig", 3, AT_BOTH, full=True),
]


def whole() -> bool:
    """Whether the long form is asked for."""
    return os.environ.get("BLOCKMIG_FULL") == "1"
