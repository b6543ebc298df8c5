"""The service manager's side: socket activation (sd_listen_fds(3)) and notices (sd_notify(3)).

Without a service manager nothing happens. The environment is an argument; variables that are not
meant for child processes are removed from it.

Importing Twisted's endpoints removes C{LISTEN_PID} and C{LISTEN_FDS} from the environment of the
process, and loses their values if there is no C{LISTEN_FDNAMES}. So the environment that the
process was started with is read as well.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

from twisted.internet.endpoints import AdoptedStreamServerEndpoint
from twisted.internet.interfaces import IStreamServerEndpoint

from ..transport.adopting import AdoptedUNIXEndpoint
from ..units import printable

_LISTEN_FDS_START: Final = 3
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class BadActivation(Exception):
    """The sockets that the service manager passed cannot be used; the message says why."""


def initial_environment() -> dict[str, str]:
    """The environment that this process was started with (proc(5)), before any change."""
    try:
        with open("/proc/self/environ", "rb") as file:
            lines = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(line).partition("=") for line in lines if line)
    return {name: value for name, _, value in pairs}


def is_activated(environment: Mapping[str, str], initial: Mapping[str, str] | None = None) -> bool:
    """Whether sockets were passed to this process.

    @param initial: where to look up missing variables; see L{initial_environment}.
    """
    process = environment.get("LISTEN_PID", (initial or {}).get("LISTEN_PID"))
    return process == str(os.getpid())


def keep_activation(environment: MutableMapping[str, str]) -> None:
    """Have this process take the sockets that were passed to the one that it was forked from.

    To be called once it is known that they were (L{is_activated}): twistd becomes a daemon.
    """
    environment["LISTEN_PID"] = str(os.getpid())


def listening_descriptors(
    environment: MutableMapping[str, str], initial: Mapping[str, str] | None = None
) -> list[int]:
    """The descriptors that were passed to this process, as sd_listen_fds(3); to be called once.

    Neither they nor the variables that announce them are inherited by child processes.

    @param initial: where to look up missing variables; see L{initial_environment}.
    @raise BadActivation: the variables are not valid, or a descriptor is not open.
    """
    started = initial or {}
    given = {name: environment.pop(name, started.get(name)) for name in _VARIABLES}
    process, count = given["LISTEN_PID"], given["LISTEN_FDS"]
    if process is None or count is None:
        return []
    for name, text in (("LISTEN_PID", process), ("LISTEN_FDS", count)):
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise BadActivation(f"socket activation: {name} is {text!r}, which is not a number")
    if int(process) != os.getpid():
        return []
    descriptors = list(range(_LISTEN_FDS_START, _LISTEN_FDS_START + int(count)))
    for descriptor in descriptors:
        try:
            os.set_inheritable(descriptor, False)
        except OSError as error:
            raise BadActivation(
                f"socket activation: descriptor {descriptor} of {count}: {error.strerror}"
            ) from None
    return descriptors


def activated_endpoints(
    reactor: Any,
    environment: MutableMapping[str, str],
    initial: Mapping[str, str] | None = None,
) -> list[IStreamServerEndpoint]:
    """Endpoints of the sockets that were passed to this process, in order; to be called once.

    An endpoint owns its descriptor, and can be listened on once. The file of a UNIX socket stays as
    the service manager made it, also after the end.

    @param initial: where to look up missing variables; see L{initial_environment}.
    @raise BadActivation: one of them is not a listening stream socket.
    """
    descriptors = listening_descriptors(environment, initial)
    return [_endpoint(reactor, descriptor) for descriptor in descriptors]


def _endpoint(reactor: Any, descriptor: int) -> IStreamServerEndpoint:
    def bad_activation(why: str) -> BadActivation:
        return BadActivation(f"socket activation: descriptor {descriptor} {why}")

    try:
        handle = socket.socket(fileno=descriptor)
    except OSError:
        raise bad_activation("is not a socket") from None
    # From here the handle owns the descriptor, and closes it when it is collected.
    try:
        if handle.type != socket.SOCK_STREAM:
            raise bad_activation("is not a stream socket: use ListenStream=")
        if not handle.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise bad_activation("does not listen: set Accept=no")
        if handle.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            raise bad_activation(f"has an address family that cannot be used: {handle.family!r}")
    except BadActivation:
        handle.detach()
        raise
    if handle.family == socket.AF_UNIX:
        return AdoptedUNIXEndpoint(reactor, handle)
    return AdoptedStreamServerEndpoint(reactor, handle.detach(), handle.family)


def notify(state: str, environment: Mapping[str, str]) -> None:
    """Send C{state}, lines such as C{READY=1}, to the service manager, as sd_notify(3).

    Never blocks, and ignores errors: at worst the service manager does not know. Does nothing
    without a service manager.
    """
    address = environment.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError, ValueError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as handle,
    ):
        handle.setblocking(False)
        handle.sendto(state.encode(errors="replace"), os.fsencode(address))


class Notifier:
    """The notices of a command to the service manager.

    @param environment: C{NOTIFY_SOCKET} is left in it: child processes may send notices for us.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def ready(self, status: str = "") -> None:
        """Report that the start is complete: the ports are listening.

        @param status: one line for C{systemctl status}.
        """
        # twistd forks, so the service manager may know another process id.
        lines = ["READY=1", f"MAINPID={os.getpid()}", *self._status(status)]
        notify("\n".join(lines), self._environment)

    def status(self, status: str) -> None:
        """Report C{status}, one line."""
        notify("\n".join(self._status(status)), self._environment)

    def stopping(self, status: str = "") -> None:
        """Report that the command is stopping."""
        notify("\n".join(["STOPPING=1", *self._status(status)]), self._environment)

    @staticmethod
    def _status(status: str) -> list[str]:
        # A line break would begin another assignment.
        return [f"STATUS={printable(' '.join(status.split()))}"] if status else []
