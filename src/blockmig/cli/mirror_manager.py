"""The mirrors of a running `serve`: handles the requests that start, change and cancel them.

Owns the current or last mirror, and the end of the server, which may follow from a mirror or has to
wait for one. Rules:

* One mirror at a time; a request for a second one is refused and disturbs nothing.
* The request that starts a mirror is answered when the destination has accepted. A request that
  waits for the end is answered before the control socket is closed. A client that announced that it
  will wait is given a few seconds to do so, since a small disk may be done before it asks.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..client import Destination
from ..control import ControlRefused
from ..control.server import Routes
from ..errors import AlreadyDone, ExitStatus, MigrationError, Refused, Summary
from ..migration.identity import Identity
from ..migration.mirror.mirror import Mirror
from ..migration.mirror.pre_copy import Converge
from ..migration.policy import Overrides, Patience
from ..nbd import NBDURI, BadURI, parse_uri
from ..runtime import Runtime
from ..server import Server
from ..storage import DiskRefused
from .tls import (
    LARGEST_BUNDLE,
    check_client,
    destination_at,
    held_policy,
    with_certificates,
)

_log = Logger()

_LONGEST_ADDRESS: Final = 4096
_WAITER_TIMEOUT: Final = 5.0
"""Seconds for the request that was announced with C{"wait": true}."""


class MirrorManager:
    """Runs the mirrors of one server.

    @param make_endpoint: makes the endpoint to connect to, from the reactor and its URI.
    @param in_use_anyway: other programs may have the disk open.
    @param linger: seconds for which a relay keeps its address, unless the mirror says otherwise.
    @param certificates: the directory with those for TLS, unless the mirror names another.
    @ivar current: the mirror that is running, or the last one.
    """

    def __init__(
        self,
        server: Server,
        runtime: Runtime,
        make_endpoint: Callable[[Any, NBDURI], Any],
        *,
        in_use_anyway: bool = False,
        linger: float = 0.0,
        certificates: str = "",
    ) -> None:
        self.current: Mirror | None = None
        self._server = server
        self._runtime = runtime
        self._make_endpoint = make_endpoint
        self._in_use_anyway = in_use_anyway
        self._linger = linger
        self._certificates = certificates
        self._expected_waiter: Deferred[None] | None = None

    @property
    def handed_over(self) -> bool:
        """Whether another server has the disk now."""
        return self.current is not None and self.current.over and self.current.too_late

    @property
    def flushes_last(self) -> bool:
        """Whether the server's last flush has begun."""
        return self._server.flushes_last

    @property
    def routes(self) -> Routes:
        """The handlers for the control socket."""
        return {
            ("POST", "/mirror"): self.start,
            ("POST", "/mirror/wait"): self.wait,
            ("POST", "/break"): self.end,
            ("POST", "/rate"): self.set_rate,
        }

    def status(self) -> dict[str, Any]:
        """The status of the server, and of the mirror if there was one."""
        status = self._server.status()
        if self.current is not None:
            status["mirror"] = self.current.status()
        return status

    async def complete(self) -> None:
        """Return when the server has ended, and the end of the mirror was reported.

        @raise OSError: the last flush failed.
        @raise MigrationError: the disk was handed over, but the destination may not know.
        """
        await self._server.complete()
        if self.current is not None:
            try:
                await self.current.handed_over()
            finally:
                await self.end_reported()

    def stop(self, why: str) -> None:
        """Stop the server, which calls its mirror off."""
        self._server.stop(why)

    def _running(self) -> Mirror:
        if self.current is None or self.current.over:
            raise ControlRefused("no mirror is running", 409)
        return self.current

    async def start(self, body: Any) -> dict[str, Any]:
        """Start a mirror; answered when the destination has accepted the first handshake."""
        if self.current is not None and not self.current.over:
            raise ControlRefused(f"a mirror to {self.current.destination} is running already", 409)
        if self._server.state != "serving":
            raise ControlRefused(f"the server is {self._server.state}: no mirror can begin", 409)
        try:
            mirror = self._make(_RequestBody(body))
        except (AlreadyDone, Refused, DiskRefused) as error:
            raise ControlRefused(str(error), 409) from None
        self.current = mirror
        self._expected_waiter = Deferred() if isinstance(body, dict) and body.get("wait") else None
        mirror.complete().addBoth(self._ended, mirror)
        try:
            attempt = await mirror.start()
        except MigrationError as error:
            self._expected_waiter = None
            raise ControlRefused(str(error), 409) from None
        return {"destination": mirror.destination, "attempt": attempt}

    async def end_reported(self) -> None:
        """Return when the expected waiter has come, or is overdue."""
        if self._expected_waiter is None:
            return
        with contextlib.suppress(defer.TimeoutError):
            await self._expected_waiter.addTimeout(_WAITER_TIMEOUT, self._runtime.reactor)

    def _make(self, body: _RequestBody) -> Mirror:
        uri, after = body.uri("uri"), body.uri("uri")
        successor = None
        if body.one_of("then", "exit", "relay") == "relay":
            if body.has("relay_to"):
                after = body.uri("relay_to")
            # Its record has to say all that connecting again takes, after a restart too.
            successor = self._destination(after, str(after))
        return Mirror(
            self._server,
            self._destination(uri, body.address(), body.certificates()),
            unlink=body.flag("unlink"),
            overrides=Overrides(
                body.flag("again") or body.flag("overwrite"),
                self._in_use_anyway,
                body.flag("plain"),
            ),
            identity=body.identity(),
            max_rate=body.rate(),
            longest_pause=body.seconds("max_pause", 0.5),
            converge=Converge(body.one_of("converge", *Converge)),
            successor=successor,
            linger=body.linger(self._linger),
            patience=Patience(reply_timeout=body.seconds("timeout", 60.0)),
            runtime=self._runtime,
        )

    def _destination(self, uri: NBDURI, address: str = "", held: bytes = b"") -> Destination:
        uri = with_certificates(uri, self._certificates)
        policy = held_policy(uri, held) if held else None
        found = destination_at(uri, self._make_endpoint, self._runtime.reactor, address, tls=policy)
        if policy is None:
            check_client(uri, found.tls)
        return found

    def _ended(self, result: Summary | Failure, mirror: Mirror) -> None:
        if isinstance(result, Failure):
            return  # the mirror has logged it
        status = mirror.status()
        _log.info(
            "{disk} was handed over to {destination}, after {seconds:.2f} s; clients were held for "
            "{milliseconds:.0f} ms while the last {rest} bytes were sent",
            event="handed-over",
            disk=self._server.disk.name,
            destination=mirror.destination,
            seconds=result.seconds,
            milliseconds=1000 * (status["pause"] or 0),
            rest=status["rest"],
        )
        if mirror.source_is_gone:
            self._server.disk_unused().addCallback(lambda _: self._close_disk())

    def _close_disk(self) -> None:
        """Nobody can come back to a disk that was deleted: its space is given back now.

        Only by closing it: whoever else has it open, or has given it another name, keeps it.
        """
        disk = self._server.disk
        disk.close()
        _log.info(
            "{disk}: was deleted, and its space is given back", event="closed", disk=disk.name
        )

    async def wait(self, body: Any) -> dict[str, Any]:
        """Answered when the mirror has ended, with the outcome."""
        if self.current is None:
            raise ControlRefused("no mirror is running", 409)
        waiter, self._expected_waiter = self._expected_waiter, None
        if waiter is not None:
            waiter.callback(None)
        try:
            summary = await self.current.complete()
        except MigrationError as error:
            return {"status": int(error.status), "message": str(error), "summary": None}
        status, message = ExitStatus.DONE, "the disk was handed over"
        return {"status": int(status), "message": message, "summary": asdict(summary)}

    async def end(self, body: Any) -> dict[str, Any]:
        """Cancel the mirror; answered when the clients are released."""
        mirror = self._running()
        if mirror.too_late:
            raise ControlRefused("it is too late: the source is being retired", 409)
        over: Deferred[Any] = mirror.complete().addBoth(lambda result: result)
        mirror.stop("the mirror was cancelled")
        if not isinstance(await over.addErrback(lambda failure: failure.value), MigrationError):
            raise ControlRefused("it is too late: the disk was handed over", 409)
        return {}

    def set_rate(self, body: Any) -> dict[str, Any]:
        mirror, rate = self._running(), _RequestBody(body).rate()
        mirror.set_rate(rate)
        return {"max_rate": rate}


class _RequestBody:
    """The body of a request; every field is validated."""

    def __init__(self, body: Any) -> None:
        if not isinstance(body, dict):
            raise ControlRefused("the request's body is not a JSON object", 400)
        self._body = body

    def has(self, name: str) -> bool:
        return self._body.get(name) is not None

    def _bad(self, name: str) -> ControlRefused:
        return ControlRefused(f"{name}: {self._body.get(name)!r} is not valid", 400)

    def uri(self, name: str) -> NBDURI:
        try:
            self._body[name].encode()
            return parse_uri(self._body[name])
        except UnicodeEncodeError:
            raise self._bad(name) from None
        except BadURI as error:
            raise ControlRefused(f"{name}: {error}", 400) from None
        except (KeyError, TypeError, AttributeError):
            raise self._bad(name) from None

    def address(self) -> str:
        """What the destination is to be called; "" for by its URI."""
        value = self._body.get("address", "")
        if not isinstance(value, str) or len(value) > _LONGEST_ADDRESS or not value.isprintable():
            raise self._bad("address")
        return value

    def certificates(self) -> bytes:
        """Those of a client, as PEM; empty where the URI, or the server, has them."""
        value = self._body.get("certificates", "")
        if not isinstance(value, str) or not value.isascii() or len(value) > LARGEST_BUNDLE:
            raise ControlRefused("certificates: is not valid", 400)
        return value.encode()

    def flag(self, name: str) -> bool:
        value = self._body.get(name, False)
        if not isinstance(value, bool):
            raise self._bad(name)
        return value

    def one_of(self, name: str, *choices: str) -> str:
        value = self._body.get(name, choices[0])
        if value not in choices:
            raise self._bad(name)
        return str(value)

    def seconds(self, name: str, default: float) -> float:
        value = self._body.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise self._bad(name)
        return float(value)

    def linger(self, default: float) -> float:
        value = self._body.get("linger")
        if value is None:
            return default
        if value == "forever":
            return math.inf
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            raise self._bad("linger")
        return float(value)

    def identity(self) -> Identity:
        id, secret = self._body.get("id", ""), self._body.get("secret", "")
        if not isinstance(id, str) or not isinstance(secret, str):
            raise ControlRefused("id or secret: is not valid", 400)
        try:
            return Identity(id, bytes.fromhex(secret))
        except ValueError as error:  # never with the secret in it
            raise ControlRefused(f"id or secret: {error}", 400) from None

    def rate(self) -> float | None:
        value = self._body.get("max_rate")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < 2**63:
            raise self._bad("max_rate")
        return float(value)
