"""For the tests of programs that embed blockmig: disks, wires and threads that do as they are told.

Owns a disk in memory, a network in memory that is driven by a L{twisted.internet.task.Clock}, two
stand-ins for threads, a client, and the checks of disks. Nothing of blockmig but tests uses it.

Rules:

* nothing happens by itself: bytes move when the network is pumped, time passes when the clock is
  advanced, and the same test takes the same course each time;
* no reactor, no socket, no thread, and no time but the clock's; only L{check_disk} has threads, to
  call a disk as it will be called;
* what is not possible with a real disk or a real connection is not possible here, but for failures
  that are asked for.
"""

from .check import check_disk
from .client import NBDClient, connect_client
from .disk import Call, MemoryDisk, RecordedMemoryDisk, UnlinkableMemoryDisk
from .network import MemoryConnection, MemoryNetwork
from .threads import ManualThreads, synchronous
from .transport import Direction, MemoryAddress, MemoryTransport

__all__ = [
    "Call",
    "Direction",
    "ManualThreads",
    "MemoryAddress",
    "MemoryConnection",
    "MemoryDisk",
    "MemoryNetwork",
    "MemoryTransport",
    "NBDClient",
    "RecordedMemoryDisk",
    "UnlinkableMemoryDisk",
    "check_disk",
    "connect_client",
    "synchronous",
]
