"""What a service manager and blockmig tell each other.

Owns both directions: the sockets that it opened for us (sd_listen_fds(3)), and what we say of
ourselves (sd_notify(3)). Without a service manager there is neither, and nothing happens. The
environment is an argument; what is not meant for our children is removed from it.

Twisted takes part in this unasked: importing its endpoints takes C{LISTEN_PID} and C{LISTEN_FDS}
out of the process's environment, and forgets what they said if there is no C{LISTEN_FDNAMES}. So
what the process was started with is asked for as well.
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

_LISTEN_FDS_START: Final = 3
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class BadActivation(Exception):
    """What the service manager passed cannot be listened on; the message says why."""


def initial_environment() -> dict[str, str]:
    """The environment that this process was started with, whatever became of it (proc(5))."""
    try:
        with open("/proc/self/environ", "rb") as file:
            lines = file.read().split(b"\0")
    except OSError:
        return {}
    pairs = (os.fsdecode(line).partition("=") for line in lines if line)
    return {name: value for name, _, value in pairs}


def listening_descriptors(
    environment: MutableMapping[str, str], initial: Mapping[str, str] | None = None
) -> list[int]:
    """The descriptors that were passed to this process, and to no other; as sd_listen_fds(3).

    They are not inherited by children, nor are the variables that tell of them. To be called once.

    @param initial: is asked for variables that are missing; see L{initial_environment}.
    @raise BadActivation: the variables make no sense, or a descriptor is not open.
    """
    started = initial or {}
    given = {name: environment.pop(name, started.get(name)) for name in _VARIABLES}
    process, count = given["LISTEN_PID"], given["LISTEN_FDS"]
    if process is None or count is None:
        return []
    for name, text in (("LISTEN_PID", process), ("LISTEN_FDS", count)):
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise BadActivation(f"socket activation: {name} is {text!r}, which is no number")
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
    """Endpoints of the sockets that were passed to this process, in their order; none if none was.

    An endpoint owns its descriptor, and can be listened on once. A UNIX socket's file stays as the
    service manager made it, and stays. To be called once.

    @param initial: is asked for variables that are missing; see L{initial_environment}.
    @raise BadActivation: one of them is no stream socket that listens.
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
    # From here the descriptor is the handle's, which closes it when it is forgotten.
    try:
        if handle.type != socket.SOCK_STREAM:
            raise bad_activation("is not a stream socket: ListenStream= makes one")
        if not handle.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise bad_activation("does not listen: Accept=no is wanted")
        if handle.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
            raise bad_activation(f"is of a family that cannot be used: {handle.family!r}")
    except BadActivation:
        handle.detach()
        raise
    if handle.family == socket.AF_UNIX:
        return AdoptedUNIXEndpoint(reactor, handle)
    return AdoptedStreamServerEndpoint(reactor, handle.detach(), handle.family)


def notify(state: str, environment: Mapping[str, str]) -> None:
    """Tell the service manager C{state}, lines such as C{READY=1}; as sd_notify(3).

    Nothing happens without one. It is never waited for, and nothing that goes wrong is of
    importance: at worst it does not know.
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
    """What a service manager is told in the course of a command.

    @param environment: that of the process; C{NOTIFY_SOCKET} is left in it, for children may speak
        for us.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def ready(self, status: str = "") -> None:
        """The start is over: what is needed listens.

        @param status: one line for C{systemctl status}.
        """
        # Under twistd, which forks, the manager may know of another process.
        lines = ["READY=1", f"MAINPID={os.getpid()}", *self._status(status)]
        notify("\n".join(lines), self._environment)

    def status(self, status: str) -> None:
        """How things stand, in one line."""
        notify("\n".join(self._status(status)), self._environment)

    def stopping(self, status: str = "") -> None:
        """The end has begun."""
        notify("\n".join(["STOPPING=1", *self._status(status)]), self._environment)

    @staticmethod
    def _status(status: str) -> list[str]:
        # A line more would be an assignment more.
        return [f"STATUS={' '.join(status.split())}"] if status else []
