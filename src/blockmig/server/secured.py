"""The TLS of a client's connection: who is let in, and what the log says of who is not.

Owns the verdict on a client, once its certificate is verified. What TLS does on the wire is the
transport's affair (`transport.secure`), and what is said inside it that of the phases.

Rules (design, section 2: R5, R10):

* a client that is refused is told nothing, and sees nothing of an export;
* a handshake that fails costs its connection and one line of the log, of which there is a bounded
  number a minute;
* what was received inside TLS counts, a DISC above all, however the connection ends after it: each
  message was authenticated. That the stream ends, with close_notify or without, is never more than
  its end: whoever has not sent DISC by then has dropped out. So the end needs no proof, which
  clients such as QEMU do not give, and which anybody on the way could withhold.
"""

from __future__ import annotations

import typing
from typing import Any

from twisted.logger import Logger

from ..transport import ServerTLS, TLSFailure
from .limited_log import LimitedLog

if typing.TYPE_CHECKING:
    from ..transport.secure import SecureTransport

_log = Logger()


class SecuredClient(typing.Protocol):
    """What TLS needs of its connection."""

    @property
    def peer(self) -> str:
        """Its address, for messages."""

    def tls_stands(self) -> None:
        """The client is let in."""

    def plaintext_received(self, view: memoryview) -> None:
        """The client sent the bytes of C{view}, which are valid only until this returns."""

    def plaintext_finished(self) -> None:
        """The client sends no more."""

    def close(self) -> None:
        """Send what is due, then close."""


class Secured:
    """The TLS of one connection, as seen from above; a C{SecureUser}.

    @param client: the connection.
    @param policy: how TLS is spoken, and with whom.
    @param log: bounds the lines about those who are not let in.
    @ivar transport: the connection's transport, once made.
    @ivar certificate: the client's verified certificate; None before that, and where there is none.
    """

    transport: SecureTransport

    def __init__(self, client: SecuredClient, policy: ServerTLS, log: LimitedLog) -> None:
        self.certificate: Any = None
        self._client = client
        self._policy = policy
        self._lines = log
        self._stands = False
        self._finished = False

    def tls_established(self) -> None:
        """Let the client in, or not."""
        self._stands = True
        certificate = self.transport.verified_certificate
        if why := self._why_refused(certificate):
            self._note("tls-refused", f"refused: {why}")
            self._client.close()
            return
        self.certificate = certificate
        self._client.tls_stands()

    def _why_refused(self, certificate: Any) -> str:
        try:
            return self._policy.refusal(certificate)
        except Exception as error:  # who cannot be judged is not let in
            return f"the policy fails: {type(error).__name__}: {error}"

    def tls_received(self, view: memoryview) -> None:
        self._client.plaintext_received(view)

    def tls_finished(self) -> None:
        self.finished()

    def finished(self) -> None:
        """The client sends no more, whether it has said so or not."""
        if not self._finished:
            self._finished = True
            self._client.plaintext_finished()

    def tls_failed(self, failure: TLSFailure) -> None:
        """As if the connection was lost; nobody is there to whom more could be said."""
        self._note("tls-failed", f"TLS failed: {failure}")
        if self._stands:
            self.finished()
            self.transport.loseConnection()
        else:
            self._client.close()

    def _note(self, event: str, why: str) -> None:
        if self._lines.has_room():
            _log.warn(
                "{peer}: {why}; connection closed{others}",
                event=event,
                peer=self._client.peer,
                why=why,
                others=self._lines.others(),
            )
