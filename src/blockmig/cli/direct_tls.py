"""The data of a `move` over TLS, directly to a TCP port at the other end.

Owns the certificates of this run, and the judgement whether the port can be reached. Rules:

* both ends have one-time certificates (L{blockmig.cli.one_time}), and each demands that of the
  other. The receiver's go to it by its standard input, after the secret: they are in no argument,
  no environment, no log and no file;
* it listens at the address at which ssh has reached its host, and nowhere else, unless another one
  was given; and says through ssh which port it has;
* before the first connection of the migration, one is made that only says hello inside TLS. Where
  that does not succeed within ten seconds, nothing was sent.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ..client import ClientFailed, NBDClient
from ..errors import MigrationError, Refused
from ..nbd import NBDURI, BadURI, ClientHandshake, handoff_export_name, parse_uri
from ..runtime import Runtime
from ..transport import ClientTLS, client_endpoint
from .tls import check_extra
from .way import FarFailed, NoWay

if TYPE_CHECKING:
    from .one_time import OneTimeCertificates

_log = Logger()

REACH_TIMEOUT: Final = 10.0
"""Seconds in which the port has to answer inside TLS."""
NO_ADDRESS: Final = 73
"""The shell's status where nothing says at which address ssh has come."""

_INSTEAD: Final = "or send the data through ssh: --data ssh"
_ABOUT_THIS: Final = (
    *("blockmig[tls]", "--tls-", "--data-address", "cannot listen on", "standard input: "),
)
"""Words in what is wrong there that another way may do without."""


class DirectTLS:
    """A L{Way<blockmig.cli.way.Way>}.

    @param host: as ssh knows it, for messages.
    @param address: where the receiver is to listen; None for where ssh has come.
    @param port: the port there; 0 for any that is free.
    @param one_place: where to connect to must not change, whichever receiver listens there.
    @param patient: a port that is not reached at first may be tried again.
    """

    forwards: Final = False

    def __init__(
        self,
        runtime: Runtime,
        host: str,
        address: str | None,
        port: int,
        *,
        one_place: bool = False,
        patient: bool = False,
    ) -> None:
        self.tls = ClientTLS(self._creator)
        self._runtime = runtime
        self._host = host
        self._address = address
        self._port = port
        self._one_place = one_place
        self._patient = patient
        self._both: OneTimeCertificates | None = None
        self._policy: ClientTLS | None = None
        self._uri: NBDURI | None = None
        self._reached = False

    # Certificates: made when they are needed, since a move that is done already needs none.

    def _made(self) -> OneTimeCertificates:
        if self._both is None:
            try:
                check_extra()
            except Refused as error:
                raise NoWay(f"on this host, {error}", f"install that, {_INSTEAD}") from None
            from .one_time import make_certificates  # noqa: PLC0415

            self._both = make_certificates()
        return self._both

    @property
    def certificates(self) -> bytes:
        return self._made().sender

    def _creator(self) -> Any:
        if self._policy is None:
            from .one_time import sender_tls  # noqa: PLC0415

            self._policy = sender_tls(self.certificates)
        return self._policy.creator()

    # What is started there.

    def ssh_options(self) -> list[str]:
        if self._uri is not None and self._one_place:
            self._address, self._port = self._uri.host, self._uri.port
        self._uri = None
        return []

    def script(self, command: str, arguments: Sequence[str]) -> str:
        own = ["--tls-certificates=-", "--tls-verify-peer"]
        rest = " ".join(map(shlex.quote, [*own, *arguments]))
        if self._address is not None:
            listen = shlex.quote(f"--listen={_bracketed(self._address)}:{self._port}")
            return f"{command} receive {listen} {rest}"
        return (
            f'set -- $SSH_CONNECTION; case "$3" in "") exit {NO_ADDRESS};; *:*) at="[$3]";; '
            f'*) at="$3";; esac; {command} receive --listen="$at:{self._port}" {rest}'
        )

    def input(self, secret: bytes) -> bytes:
        return secret + b"\n" + self._made().receiver + b"\n"

    def opened(self, uri: str) -> None:
        try:
            found = parse_uri(uri)
        except BadURI:
            return
        if found.host:
            from .one_time import RECEIVER_NAME  # noqa: PLC0415

            self._uri = NBDURI(
                host=found.host, port=found.port, tls=True, tls_hostname=RECEIVER_NAME
            )

    def judged(self, error: MigrationError) -> MigrationError:
        said = str(error)
        if isinstance(error, NoWay):
            return error
        if isinstance(error, Refused) and any(words in said for words in _ABOUT_THIS):
            return NoWay(said, f"mend that, {_INSTEAD}")
        return error

    # The way.

    async def reach(self) -> NBDURI:
        uri = self._uri
        if uri is None:
            raise FarFailed(f"{self._host}: the receiver there does not say where it listens")
        if self._reached:
            return uri
        where = f"{_bracketed(uri.host)}:{uri.port}"
        why = await self._hello(uri)
        if not why:
            self._reached = True
            _log.info("the data goes over TLS to {where}", event="data", way="tls", where=where)
            return uri
        error = NoWay(
            f"{self._host}: its port for the data, {where}, cannot be reached from here ({why})",
            "open it in the firewalls (--data-port and --data-address say which one it is), "
            f"{_INSTEAD}",
        )
        raise FarFailed(str(error)) if self._patient else error

    async def _hello(self, uri: NBDURI) -> str:
        """Say hello inside TLS; why that does not succeed, "" if it does."""
        reactor = self._runtime.reactor
        handshake = ClientHandshake(handoff_export_name("") or "")
        client = NBDClient(handshake, self._runtime, REACH_TIMEOUT, tls=self.tls)
        saying = Deferred.fromCoroutine(client.connect(client_endpoint(reactor, uri)))
        saying.addTimeout(REACH_TIMEOUT, reactor)
        try:
            await saying
        except defer.TimeoutError:
            return f"no answer within {REACH_TIMEOUT:g} s"
        except ClientFailed as error:
            return str(error).removeprefix("cannot connect to the destination: ").rstrip(".")
        client.disconnect()
        return ""

    def close(self) -> None:
        pass

    def remove_left_behind(self) -> None:
        pass


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
