"""Forks processes that have imported blockmig already; started by L{tests.support.forking}.

    forkserver.py CONNECTION

Each message on the connection is a command: its arguments, directory and environment in JSON, and
descriptors for its output, its errors, and the status that it will end with. The answer is its pid.
Rules:

* the server imports neither the reactor nor anything that starts a thread;
* a child is in a session of its own before its pid is known, and ends when the server does;
* from then on it does what an interpreter of its own would do, to its very end.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import types
from typing import Any, Final, NoReturn

PR_SET_PDEATHSIG: Final = 1
_HIGHEST: Final = 1024
"""More than the descriptors that a server can have."""

ELSEWHERE: Final = ("blockmig.testing", "blockmig.cli.tap")
"""What no command imports."""

TWISTED: Final = ("default", "endpoints", "epollreactor", "ssl", "tcp", "threads", "udp", "unix")
OTHERS: Final = ("getopt", "encodings.idna")


def preload() -> None:
    """Import what the commands import."""
    import blockmig

    for module in pkgutil.walk_packages(blockmig.__path__, "blockmig."):
        if not module.name.startswith(ELSEWHERE) and not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in (*(f"twisted.internet.{name}" for name in TWISTED), *OTHERS):
        importlib.import_module(name)
    assert "twisted.internet.reactor" not in sys.modules


def fork(connection: socket.socket) -> dict[str, Any]:
    """Serve until the other end is closed.

    @return: in a child: the command that it is.
    """
    prctl = ctypes.CDLL(None).prctl
    server = os.getpid()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(writer)
    statuses: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([connection, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
            while statuses and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                status = statuses.pop(ended[0])
                with contextlib.suppress(BrokenPipeError):  # nobody asks any more
                    os.write(status, str(ended[1]).encode())
                os.close(status)
        if connection in ready:
            text, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            if not text:
                os._exit(0)
            pid = os.fork()
            if pid:
                for descriptor in descriptors[:2]:
                    os.close(descriptor)
                statuses[pid] = descriptors[2]
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != server:
                os._exit(1)
            for number, descriptor in enumerate(descriptors[:2], 1):
                os.dup2(descriptor, number)
            connection.send(str(os.getpid()).encode())
            connection.detach()
            os.closerange(3, _HIGHEST)
            command = json.loads(text)
            assert isinstance(command, dict)
            return command


def become(command: dict[str, Any]) -> NoReturn:
    """Run it as the interpreter would."""
    arguments = command["arguments"]
    os.chdir(command["directory"])
    os.environ.clear()
    os.environ.update(command["environment"])
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    program = command["program"]
    if program is None:
        sys.argv = arguments
        sys.path.insert(0, os.path.dirname(arguments[0]))
        program = "import sys\nfrom blockmig.cli.main import main\nsys.exit(main())\n"
    else:
        sys.argv = ["-c", *arguments[3:]]
        sys.path.insert(0, "")
    exec(compile(program, "<string>", "exec"), module.__dict__)
    raise SystemExit


if __name__ == "__main__":
    preload()
    gc.collect()
    gc.freeze()
    become(fork(socket.socket(fileno=int(sys.argv[1]))))
