"""What the records of a place say: which of them counts, and what C{inspect} makes of it."""

from __future__ import annotations

from tests.proof.model.memory.state import COPIED, COPYING, TOLD, Place, Record


class Reading:
    """The records of one place, as they are visible."""

    def __init__(self, place: Place, rules: frozenset[str]) -> None:
        self.rules = rules
        self.file = place.file[0]
        self.migrating: Record | None = place.migrating[0]
        self.migrated: Record | None = place.migrated[0]
        self.incomplete: Record | None = place.incomplete[0]
        self.received: Record | None = place.received[0]

    @property
    def complete(self) -> bool:
        """INCOMPLETE and RECEIVED of one migration."""
        both = self.incomplete is not None and self.received is not None
        return both and self.incomplete.migration == self.received.migration  # type: ignore

    @property
    def latest(self) -> tuple[str, Record | None]:
        """Which finished record is the later, and its name."""
        sent, got = self.migrated, self.received
        if sent is None or got is None:
            return ("migrated", sent) if sent is not None else ("received", got)
        if "latest: said by `follows`" not in self.rules:
            return "received", got
        return ("migrated", sent) if sent.follows == got.migration else ("received", got)

    @property
    def sent_again(self) -> Record | None:
        """MIGRATED, where it counts beside the MIGRATING of a later migration: a human has that
        disk sent once more."""
        later = self.migrating is not None and self.migrated is not None
        if not later or self.migrating.follows != self.migrated.migration:  # type: ignore
            return None
        return None if self.superseded else self.migrated

    @property
    def superseded(self) -> bool:
        """Whether MIGRATED does not count beside the MIGRATING of a later migration: it does if
        that is of the same disk, which a human has sent once more."""
        later = self.migrating is not None and self.migrated is not None
        if not later or self.migrating.follows != self.migrated.migration:  # type: ignore
            return False
        again = "again: a retired disk stays so until it is retired anew" in self.rules
        return not (again and self.migrating.inode == self.migrated.inode)  # type: ignore

    def is_its_file(self, record: Record) -> bool:
        return self.file is not None and self.file.inode == record.inode

    @property
    def verdict(self) -> str:
        """What `inspect` says of this place alone."""
        copy = self.incomplete
        if copy is not None and not self.complete:
            words = {COPYING: "not canonical", COPIED: "only if", TOLD: "canonical"}
            return words[copy.phase] if self.is_its_file(copy) else "unknown"
        if self.complete and self.file is not None:
            return "canonical"
        kind, last = self.latest
        if self.file is None:
            return "nothing here" if last is None and self.migrating is None else "not canonical"
        if self.migrated is not None and kind == "migrated" and not self.superseded:
            return "not canonical" if self.is_its_file(self.migrated) else "unknown"
        return "canonical"
