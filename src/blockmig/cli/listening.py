"""The listening ports of a command, its control socket, and its notices to the service manager.

Owns all of them from opening to closing. Connections go to the factory of the operation.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger

from .. import __version__
from ..control import ControlError
from ..errors import GaveUp, Refused
from ..transport import (
    BadEndpoint,
    CannotListen,
    listen,
    listening_uris,
    server_endpoint,
    stop_listening,
)
from ..units import describe_size
from .admittance import Admittance, reach_of_address, reach_of_endpoint, reach_of_text
from .systemd import (
    BadActivation,
    Notifier,
    activated_endpoints,
    initial_environment,
)
from .tls import ListenerTLS, endpoint_of

if TYPE_CHECKING:
    from ..control.server import ControlPort, Routes

_log = Logger()

DEFAULT_ENDPOINT: Final = "127.0.0.1:10809"
"""Where to listen without `--listen` and without sockets from systemd."""

_PASSED: Final = "the socket that systemd passed"


def import_control() -> None:
    """Import now what is otherwise imported when a control socket is opened."""
    from ..control import server, web  # noqa: F401, PLC0415


@dataclass(frozen=True)
class ListeningExport:
    """The export that a command offers.

    @ivar factory: makes the protocols of the connections.
    @ivar disk: the name of the disk, for the log.
    @ivar danger: what anybody who can reach a port can do, for the log.
    @ivar status: the status for the control socket, to which version, pid and ports are added.
    @ivar routes: further handlers for the control socket.
    @ivar size: bytes of the disk; 0 if the sender says that.
    @ivar tls: how connections speak TLS.
    """

    factory: IProtocolFactory
    disk: str
    export: str
    danger: str
    status: Callable[[], dict[str, Any]]
    routes: Routes = field(default_factory=dict)
    size: int = 0
    tls: ListenerTLS = field(default_factory=ListenerTLS)


class Listening:
    """The ports and the control socket of one command.

    @param endpoints: where to listen, as for `--listen`; if there are none, the sockets that
        systemd passed, or else L{DEFAULT_ENDPOINT}.
    @param control: the path of the control socket; None for none.
    @param make_endpoint: makes the endpoint to listen with, from the reactor and its description.
    @param admittance: who may connect; None for anybody who can reach it, where that is only this
        machine.
    @ivar uris: how each port can be reached.
    @raise Refused: an endpoint is not valid, or somebody could connect who should not.
    """

    def __init__(
        self,
        reactor: Any,
        endpoints: Iterable[str],
        control: str | None,
        make_endpoint: Callable[[Any, str], Any] = server_endpoint,
        environment: MutableMapping[str, str] = os.environ,
        *,
        admittance: Admittance | None = None,
    ) -> None:
        self.uris: list[str] = []
        self._admittance = admit = admittance or Admittance()
        self._reactor = reactor
        self._control_path = control
        self._ports: list[IListeningPort] = []
        self._control: ControlPort | None = None
        self._opening: Deferred[Any] | None = None
        self._closing: Deferred[None] | None = None
        self._notifier = Notifier(environment)
        self._tls = ListenerTLS()
        try:
            passed = activated_endpoints(reactor, environment, initial_environment())
            described = list(endpoints)
            if passed and described:
                raise Refused("systemd passed sockets: leave out --listen, or the socket unit")
            if not passed and not described:
                described = [DEFAULT_ENDPOINT]
            self._endpoints = [
                (one, make_endpoint(reactor, admit.endpoint(endpoint_of(one)))) for one in described
            ]
            self._endpoints += [(_PASSED, one) for one in passed]
            places = [(text, reach_of_text(endpoint_of(text))) for text in described]
            admit.check([*places, *((_PASSED, reach_of_endpoint(one)) for one in passed)])
        except BadActivation as error:
            raise Refused(str(error)) from None
        except BadEndpoint as error:
            raise Refused(f"--listen: {error}") from None

    def waiting(self, status: str) -> None:
        """Tell the service manager what is waited for before it listens."""
        self._notifier.status(status)

    async def open(
        self,
        target: ListeningExport,
        give_up_after: float | None = None,
        busy_for: float = 0.0,
    ) -> None:
        """Listen on every endpoint, then notify the service manager.

        @param give_up_after: seconds to retry after a temporary failure; None to retry forever.
        @param busy_for: seconds for which an address may still be in use.
        @raise Refused: the failure is permanent.
        @raise GaveUp: the failure lasted too long, or L{cancel} was called.
        """
        self._opening = Deferred.fromCoroutine(self._open(target, give_up_after, busy_for))
        try:
            await self._opening
        except (CannotListen, ControlError) as error:
            raise Refused(str(error)) from None
        except TimeoutError as error:
            raise GaveUp(str(error)) from None
        except CancelledError:
            raise GaveUp("stopped before it could listen") from None
        finally:
            self._opening = None
        self._notifier.ready(f"{target.disk} at {', '.join(self.uris)}")

    async def _open(
        self, target: ListeningExport, give_up_after: float | None, busy_for: float
    ) -> None:
        self._tls = target.tls
        if self._control_path is not None:
            from ..control.server import open_control  # noqa: PLC0415 (few commands have one)

            self._control = await open_control(
                self._reactor,
                self._control_path,
                lambda: self._status(target.status()),
                {**self._admittance.routes, **target.routes},
            )
        factory = self._admittance.allow.guard(target.factory, self._reactor.seconds)
        amount = describe_size(target.size) if target.size else "which gets the sender's size"
        for text, endpoint in self._endpoints:
            port = await listen(
                self._reactor, endpoint, factory, text, give_up_after, busy_for=busy_for
            )
            self._ports.append(port)
            reach = reach_of_address(port.getHost())
            self._admittance.check_one(text, reach)
            uris, _ = listening_uris(port, target.export, tls=target.tls.required)
            self.uris += uris
            for uri in uris:
                _log.info(
                    "listening on {uri} for {disk}, " + amount,
                    event="listening",
                    uri=uri,
                    disk=target.disk,
                    size=target.size or None,
                )
            self._admittance.report(uris[0], reach, target.danger)

    def _status(self, status: dict[str, Any]) -> dict[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "listening": list(self.uris),
            "tls": self._tls.described,
            **self._admittance.status(),
            **status,
        }

    def cancel(self) -> None:
        """Stop trying to listen."""
        if self._opening is not None:
            self._opening.cancel()

    def stop(self) -> Deferred[None]:
        """Stop accepting connections; the control socket stays open.

        @return: fires when every port is closed.
        """
        if self._closing is None:
            self._notifier.stopping()
            self._closing = Deferred.fromCoroutine(self._close_ports())
        return self._closing

    async def _close_ports(self) -> None:
        closing = [Deferred.fromCoroutine(stop_listening(port)) for port in self._ports]
        for closed in closing:
            await closed

    async def close(self) -> None:
        """Close the ports and the control socket."""
        await self.stop()
        if self._control is not None:
            await self._control.close()
