"""A network for each of the processes that run tests side by side.

Whoever kills a server starts another at its port, and some tests need a certain port or address:
nobody else may have taken it meanwhile.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from typing import Final

CLONE_NEWNET: Final = 0x40000000

OUTSIDE: list[str] = []
"""What to put before a command that needs the machine's own network."""


def leave_the_network() -> None:
    """Have this thread, and all that it starts, see nothing but a loopback device of its own.

    Only root may do that. For others there is a chance of one in some thousand that a port is gone.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        OUTSIDE[:] = ["nsenter", f"--net=/proc/{os.getppid()}/ns/net", "--"]
