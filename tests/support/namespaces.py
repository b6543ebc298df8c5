"""A network and a state directory for each of the processes that run tests side by side.

Whoever kills a server starts another at its port, and some tests need a certain port or address:
nobody else may have taken it meanwhile. And root's state directory knows of every other one that is
in use on this host: tests neither leave notes there nor look through those of others.

Only root may do that. For others there is a chance of one in some thousand that a port is gone, and
their state directory is used.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from typing import Final

from blockmig.storage import default_state_directory

CLONE_NEWNET: Final = 0x40000000
CLONE_NEWNS: Final = 0x20000
MS_REC_PRIVATE: Final = 0x44000

OUTSIDE: list[str] = []
"""What to put before a command that needs the machine's own network."""


def leave_the_network() -> None:
    """Have this thread, and all that it starts, see nothing but a loopback device of its own."""
    if _libc().unshare(CLONE_NEWNET) == 0:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        OUTSIDE[:] = ["nsenter", f"--net=/proc/{os.getppid()}/ns/net", "--"]


def leave_the_state_directory() -> None:
    """Have this thread, and all that it starts, see an empty one in memory."""
    if os.geteuid() != 0:
        return
    usual = default_state_directory()
    os.makedirs(usual, exist_ok=True)
    libc = _libc()
    if (
        libc.unshare(CLONE_NEWNS) == 0
        and libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None) == 0
        and libc.mount(b"tmpfs", os.fsencode(usual), b"tmpfs", 0, b"mode=755") == 0
    ):
        assert not os.listdir(usual)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = [*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p]
    return libc
