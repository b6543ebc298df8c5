"""blockmig moves the disks of running machines between hosts over NBD.

The names here, in `blockmig.interfaces`, `blockmig.service` and `blockmig.testing` are for programs
that embed blockmig, and stay as they are documented; those here are loaded on first use. Everything
else is private, and may change with any version.

The packages are layers, each of which may import some others (`tests/unit/test_layers.py` has the
list): `nbd` is the wire protocol, `storage` the disks, `transport` moves bytes between the two;
`client` and `server` are the two ends of an NBD connection; `migration` is what it is all for;
`cli` and `control` are the user's side. `runtime` is what all that does I/O is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .lazy import lazily

if TYPE_CHECKING:
    from .client import Destination
    from .errors import (
        AlreadyDone,
        ExitStatus,
        GaveUp,
        InUse,
        LocalFailure,
        MigrationError,
        Refused,
        Summary,
        Unconfirmed,
    )
    from .migration.check.check import check_migration
    from .migration.check.report import CheckItem, CheckReport, CheckResult
    from .migration.destination.receiver import Receiver
    from .migration.identity import Identity
    from .migration.mirror.mirror import Mirror
    from .migration.mirror.pre_copy import Converge
    from .migration.policy import Overrides, Patience
    from .migration.records.verdict import examine, verdict_of
    from .migration.source.finisher import Finisher
    from .migration.source.resume import resume
    from .migration.source.sender import Sender
    from .runtime import Runtime, go_by_monotonic_clock
    from .server import AllowList, Exports, Relay, Server
    from .storage import BlockDisk, FileDisk, open_disk
    from .transport import ClientTLS, ServerTLS, TLSFailure

__version__ = "0.1.0"

_MODULES: Final = {
    "AllowList": "server",
    "AlreadyDone": "errors",
    "BlockDisk": "storage",
    "CheckItem": "migration.check.report",
    "CheckReport": "migration.check.report",
    "CheckResult": "migration.check.report",
    "ClientTLS": "transport",
    "Converge": "migration.mirror.pre_copy",
    "Destination": "client",
    "ExitStatus": "errors",
    "Exports": "server",
    "FileDisk": "storage",
    "Finisher": "migration.source.finisher",
    "GaveUp": "errors",
    "Identity": "migration.identity",
    "InUse": "errors",
    "LocalFailure": "errors",
    "MigrationError": "errors",
    "Mirror": "migration.mirror.mirror",
    "Overrides": "migration.policy",
    "Patience": "migration.policy",
    "Receiver": "migration.destination.receiver",
    "Refused": "errors",
    "Relay": "server",
    "Runtime": "runtime",
    "Sender": "migration.source.sender",
    "Server": "server",
    "ServerTLS": "transport",
    "Summary": "errors",
    "TLSFailure": "transport",
    "Unconfirmed": "errors",
    "check_migration": "migration.check.check",
    "examine": "migration.records.verdict",
    "go_by_monotonic_clock": "runtime",
    "open_disk": "storage",
    "resume": "migration.source.resume",
    "verdict_of": "migration.records.verdict",
}

__all__ = [
    "AllowList",
    "AlreadyDone",
    "BlockDisk",
    "CheckItem",
    "CheckReport",
    "CheckResult",
    "ClientTLS",
    "Converge",
    "Destination",
    "ExitStatus",
    "Exports",
    "FileDisk",
    "Finisher",
    "GaveUp",
    "Identity",
    "InUse",
    "LocalFailure",
    "MigrationError",
    "Mirror",
    "Overrides",
    "Patience",
    "Receiver",
    "Refused",
    "Relay",
    "Runtime",
    "Sender",
    "Server",
    "ServerTLS",
    "Summary",
    "TLSFailure",
    "Unconfirmed",
    "check_migration",
    "examine",
    "go_by_monotonic_clock",
    "open_disk",
    "resume",
    "verdict_of",
]

if not TYPE_CHECKING:
    __getattr__ = lazily(__name__, _MODULES)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
