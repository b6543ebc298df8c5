"""What a command does, from its options to its outcome; the same under `blockmig` and `twistd`.

An operation is run once, may be stopped, and opens and closes what it needs. It ends with a
`Summary`, or with a `MigrationError` whose message is the one line for the user.
"""

from __future__ import annotations

from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IListeningPort
from twisted.logger import Logger

from ..migration import (
    ExitStatus,
    GaveUp,
    MigrationError,
    Receiver,
    Refused,
    Sender,
    Summary,
)
from ..storage import DiskRefused, open_disk
from ..transport import (
    BadEndpoint,
    CannotListen,
    client_endpoint,
    listen,
    listening_uri,
    server_endpoint,
    stop_listening,
)
from .options import ReceiveOptions, SendOptions
from .progress import Display

_log = Logger()


class Operation(Protocol):
    """A command under way."""

    async def run(self) -> Summary:
        """Do it."""

    def stop(self, why: str) -> None:
        """End it early, if that is still possible."""


class Receive:
    """`receive`: one migration into a disk."""

    def __init__(self, options: ReceiveOptions, reactor: Any) -> None:
        self._options = options
        self._reactor = reactor
        self._receiver: Receiver | None = None
        self._listening: Deferred[IListeningPort] | None = None

    async def run(self) -> Summary:
        """Listen, receive, close."""
        options = self._options
        try:
            endpoint = server_endpoint(self._reactor, options["listen"])
            disk = open_disk(options["file"], size=options["size"])
        except (BadEndpoint, DiskRefused) as error:
            raise Refused(str(error)) from None
        self._receiver = receiver = Receiver(
            disk,
            export=options["export"],
            oldstyle=bool(options["oldstyle"]),
            handshake_timeout=options["handshake-timeout"],
            idle_timeout=options["idle-timeout"],
            give_up_after=options["give-up-after"] or None,
            reactor=self._reactor,
        )
        try:
            port = await self._listen(endpoint, receiver)
            try:
                return await receiver.complete()
            finally:
                await stop_listening(port)
        finally:
            # Without an attempt the file that we made is no copy of anything.
            disk.close() if receiver.attempts else disk.discard()

    async def _listen(self, endpoint: Any, receiver: Receiver) -> IListeningPort:
        text, export = self._options["listen"], self._options["export"]
        self._listening = Deferred.fromCoroutine(
            listen(
                self._reactor,
                endpoint,
                receiver.factory(),
                text,
                self._options["give-up-after"] or None,
            )
        )
        try:
            port = await self._listening
        except CannotListen as error:
            receiver.stop(str(error))
            raise Refused(str(error)) from None
        except TimeoutError as error:
            receiver.stop(str(error))
            raise GaveUp(str(error)) from None
        except CancelledError:
            raise GaveUp("stopped before it could listen") from None
        finally:
            self._listening = None
        uri, local = listening_uri(port, export)
        _log.info(
            "listening on {uri} for {disk}", event="listening", uri=uri, disk=self._options["file"]
        )
        if not local:
            _log.warn(
                "{uri} can be reached from other machines, without TLS and without an allow-list: "
                "anybody there can write this disk",
                event="exposed",
                uri=uri,
            )
        return port

    def stop(self, why: str) -> None:
        """End the migration as it stands."""
        if self._listening is not None:
            self._listening.cancel()
        if self._receiver is not None:
            self._receiver.stop(why)


class Send:
    """`send`: a disk to an NBD server."""

    def __init__(self, options: SendOptions, reactor: Any, display: Display) -> None:
        self._options = options
        self._reactor = reactor
        self._display = display
        self._sender: Sender | None = None

    async def run(self) -> Summary:
        """Open, send, close."""
        options = self._options
        try:
            disk = open_disk(options["file"], writable=False)
        except DiskRefused as error:
            raise Refused(str(error)) from None
        try:
            self._sender = Sender(
                disk,
                client_endpoint(self._reactor, options.uri),
                options.uri.export,
                unlink=bool(options["unlink"]),
                retry=bool(options["retry"]),
                give_up_after=options["give-up-after"] or None,
                max_rate=options["max-rate"],
                reactor=self._reactor,
            )
            self._display.start(self._sender.progress, self._reactor)
            try:
                return await self._sender.run()
            finally:
                self._display.stop()
        finally:
            disk.close()

    def stop(self, why: str) -> None:
        """End the migration as it stands."""
        if self._sender is not None:
            self._sender.stop(why)


async def report(operation: Operation) -> ExitStatus:
    """Run C{operation}, log one line of how it ended, and give its exit status."""
    try:
        summary = await operation.run()
    except MigrationError as error:
        _log.error("{why}", event="error", why=str(error), status=int(error.status))
        return error.status
    except Exception:
        _log.failure("this is a bug of blockmig", event="bug", status=int(ExitStatus.FAILED))
        return ExitStatus.FAILED
    _log.info(
        "complete: {bytes} bytes ({data} of data, {zeroes} of zeroes) in {seconds:.2f} s, "
        "{megabytes:.1f} MB/s of data, {attempts} attempt(s)",
        event="complete",
        bytes=summary.bytes,
        data=summary.data,
        zeroes=summary.zeroes,
        seconds=round(summary.seconds, 3),
        rate=round(summary.rate),
        megabytes=summary.rate / 1e6,
        attempts=summary.attempts,
    )
    return ExitStatus.DONE
