"""What `send` does: sends a disk to an NBD server, or finishes an earlier run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ..client import Destination
from ..errors import GaveUp, Summary
from ..interfaces import IDisk
from ..migration.identity import Identity
from ..migration.in_use import refuse_in_use
from ..migration.policy import Overrides, Patience
from ..migration.source.finisher import Finisher
from ..migration.source.image import refuse_image
from ..migration.source.resume import Source
from ..migration.source.sender import Sender
from ..runtime import Runtime
from ..transport import client_endpoint
from .logs import warn_of_again
from .progress import Display
from .send import SendingOptions
from .tls import check_client, destination_at

if TYPE_CHECKING:
    from ..transport import ClientTLS


class SendOperation:
    """Sends the disk, or finishes a migration whose source was retired in an earlier run.

    @param make_endpoint: makes the endpoint to connect to, from the reactor and its URI.
    @param tls: how connections speak TLS, where that is not up to the URI.
    """

    hung_up: Final = None

    def __init__(
        self,
        options: SendingOptions,
        runtime: Runtime,
        display: Display,
        make_endpoint: Callable[[Any, Any], Any] = client_endpoint,
        *,
        tls: ClientTLS | None = None,
    ) -> None:
        self._options = options
        self._runtime = runtime
        self._display = display
        self._make_endpoint = make_endpoint
        self._tls = tls
        self._identity = Identity(options["id"] or "", options.secret)
        self._running: Sender | Finisher | None = None
        self._stop_reason = ""

    @property
    def is_uncertain(self) -> bool:
        """Whether the source is retired, or may be."""
        running = self._running
        return isinstance(running, Finisher) or (running is not None and running.retiring)

    async def run(self) -> Summary:
        options = self._options
        warn_of_again(options)
        source = Source.at(options["file"], options["state-dir"], self._runtime.system)
        try:
            finisher = source.finisher(
                self._destination(),
                unlink=bool(options["unlink"]),
                overrides=self._overrides(),
                patience=self._patience(),
                identity=self._identity,
                runtime=self._runtime,
            )
            if finisher is not None:
                self._running = finisher
                return await finisher.run()
            assert source.disk is not None
            check_client(self._options.uri, self._destination().tls)
            await self._check(source.disk)
            return await self._send(source.disk)
        finally:
            source.close()

    async def _check(self, disk: IDisk) -> None:
        """Check that the disk can be sent."""
        options, path = self._options, self._options["file"]
        if not options["in-use-anyway"]:
            await refuse_in_use(disk, path, readers=False, runtime=self._runtime)
            if self._stop_reason:
                raise GaveUp(f"{self._stop_reason}; {path} is untouched and canonical")
        if not options["raw-anyway"]:
            await self._runtime.threads(refuse_image, disk, path)
            if self._stop_reason:
                raise GaveUp(f"{self._stop_reason}; {path} is untouched and canonical")

    async def _send(self, disk: IDisk) -> Summary:
        self._running = sender = Sender(
            disk,
            self._destination(),
            unlink=bool(self._options["unlink"]),
            overrides=self._overrides(),
            patience=self._patience(),
            max_rate=self._options["max-rate"],
            identity=self._identity,
            runtime=self._runtime,
        )
        self._display.start(sender.progress, self._runtime.reactor)
        try:
            return await sender.run()
        finally:
            self._display.stop()

    def _overrides(self) -> Overrides:
        options = self._options
        return Overrides(
            overwrite=bool(options["overwrite"]),
            in_use_anyway=bool(options["in-use-anyway"]),
            plain=bool(options["plain"]),
        )

    def _patience(self) -> Patience:
        options = self._options
        return Patience(
            retry=bool(options["retry"]),
            give_up_after=options["give-up-after"] or None,
            reply_timeout=options["timeout"],
        )

    def _destination(self) -> Destination:
        reactor = self._runtime.reactor
        return destination_at(self._options.uri, self._make_endpoint, reactor, tls=self._tls)

    def stop(self, why: str) -> None:
        self._stop_reason = why
        if self._running is not None:
            self._running.stop(why)
