"""Migrations: the two ends of one, and the hand-off between them.

Owns attempts, restarts, coverage, the order of the hand-off and its records. Knows the wire through
`nbd`, disks through `storage`, sockets through `transport`, and connections of clients through
`server`.
"""

from .accepting import accept
from .finisher import Finisher
from .found import SourceFound, source_found
from .in_use import refuse_in_use
from .inspection import (
    Found,
    Standing,
    Verdict,
    changing,
    check_canonical,
    judge,
    judge_pair,
    look,
    look_steadily,
)
from .live import Converge
from .mirror import Mirror, TakesOver
from .outcome import (
    ExitStatus,
    GaveUp,
    LocalFailure,
    MigrationError,
    Refused,
    Summary,
    Unconfirmed,
)
from .page import SIDE_EXPORT
from .receiver import Receiver
from .records import BadRecord, Kind, Phase, Record, Records, Side
from .sender import Progress, Sender
from .source_record import SourceRecord

__all__ = [
    "SIDE_EXPORT",
    "BadRecord",
    "Converge",
    "ExitStatus",
    "Finisher",
    "Found",
    "GaveUp",
    "Kind",
    "LocalFailure",
    "MigrationError",
    "Mirror",
    "Phase",
    "Progress",
    "Receiver",
    "Record",
    "Records",
    "Refused",
    "Sender",
    "Side",
    "SourceFound",
    "SourceRecord",
    "Standing",
    "Summary",
    "TakesOver",
    "Unconfirmed",
    "Verdict",
    "accept",
    "changing",
    "check_canonical",
    "judge",
    "judge_pair",
    "look",
    "look_steadily",
    "refuse_in_use",
    "source_found",
]
