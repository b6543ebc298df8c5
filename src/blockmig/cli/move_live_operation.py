"""What `move --control` does: has a running server mirror its disk to a receiver started here.

Owns the ssh for as long as the mirror goes on, and what is said of server and receiver together.

Rules:

* the mirror is the server's, and its clients are never in danger: whatever dies here, they go on;
* the server reaches the receiver at one place for as long as this goes on: the socket of a tunnel,
  or an address and a port that a receiver which is started again has too. It records the place as
  `move` does, so that `move FILE` finishes what the server could not;
* ssh is started again while the mirror goes on; where the receiver has refused, the mirror is
  cancelled;
* a mirror that an earlier `move` to the same place has left behind is cancelled first: its secret
  died with that;
* Ctrl-C cancels the mirror, unless it is too late: then its end is waited for.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ..control import ControlError, ControlRefused, ask
from ..errors import (
    AlreadyDone,
    ExitStatus,
    GaveUp,
    MigrationError,
    Refused,
    Summary,
    Unconfirmed,
)
from ..nbd import NBDURI
from ..runtime import Runtime
from ..units import printable
from . import mirror
from .far_receiver import FarReceiver
from .mirror_operation import MirrorOperation, in_thread
from .mirror_request import Ask
from .move import Options
from .move_choice import log_next
from .move_operation import last_word, migration_id, receiver_arguments, short_name
from .progress import Display
from .values import integer_field
from .way import Data, FarFailed, NoWay, Way, make_way, ways

_log = Logger()

_FIRST_DELAY: Final = 1.0
_LONGEST_DELAY: Final = 60.0
_OVER: Final = ("complete", "failed", "broken")


class MoveLiveOperation:
    """Moves the disk of a running server."""

    hung_up: Final = None

    def __init__(
        self, options: Options, runtime: Runtime, display: Display, ask: Ask = ask
    ) -> None:
        self._options = options
        self._runtime = runtime
        self._display = display
        self._ask = ask
        self._size = 0
        self._way: Way
        self._mirror: MirrorOperation | None = None
        self._stop_reason = ""
        self._over = False
        self._waiting: Deferred[Any] | None = None

    async def run(self) -> Summary | None:
        await self._prepare()
        *others, last = ways(self._options["data"])
        for kind in others:
            try:
                return await self._by(kind)
            except NoWay as error:
                if self._mirror is not None:
                    raise
                log_next(error)
        return await self._by(last)

    async def _by(self, kind: Data) -> Summary | None:
        """Move it with the data going that way."""
        options, place = self._options, self._options.uri.shown
        far = self._receiver(kind)
        try:
            outcome: Summary | MigrationError | None = await self._move(far)
        except MigrationError as error:
            outcome = error
        except BaseException:
            await far.close(complete=False)
            raise
        self._over = True
        if self._waiting is not None:
            self._waiting.cancel()
        ending = await far.close(complete=not isinstance(outcome, MigrationError))
        if not isinstance(outcome, MigrationError):
            return outcome
        # By the status: the server's own report is an error of another class.
        if outcome.status == ExitStatus.UNCONFIRMED:
            again = f"blockmig move {shlex.quote(options['file'])} {shlex.quote(place)}"
            raise Unconfirmed(f"{outcome}; when the server has ended, `{again}` finishes it")
        if outcome.status == ExitStatus.GAVE_UP and self._stop_reason:
            raise GaveUp(f"{self._stop_reason}: {outcome}; {last_word(ending, place)}")
        raise outcome

    def stop(self, why: str) -> None:
        self._stop_reason = why
        self._cancel()

    async def _prepare(self) -> None:
        """Look at the server."""
        options = self._options
        try:
            status = await self._request("GET", "/status")
        except ControlError as error:
            raise Refused(
                f"{printable(error)}; a disk that is not served any more is moved by its name: "
                "blockmig move FILE HOST:PATH"
            ) from None
        disk, size = status.get("disk"), integer_field(status, "size")
        if not isinstance(disk, str) or size is None:
            raise Refused(f"{options['control']}: is not the control socket of a `blockmig serve`")
        self._size, options["file"] = size, disk
        options["id"] = migration_id(options, self._runtime.system)
        found = status.get("mirror")
        if isinstance(found, dict) and found.get("state") not in _OVER:
            await self._cancel_earlier(found)

    def _receiver(self, kind: Data) -> FarReceiver:
        """What starts the receiver."""
        options, runtime = self._options, self._runtime
        name = short_name(options["file"], options["id"])
        self._way = make_way(kind, options, runtime, name, one_place=True)
        return FarReceiver(
            runtime.reactor,
            options.uri,
            ssh=shlex.split(options["ssh"]),
            command=options["remote-command"],
            arguments=self._arguments,
            secret=options.secret,
            way=self._way,
            on_end=self._far_ended,
        )

    async def _cancel_earlier(self, found: dict[str, Any]) -> None:
        destination = printable(found.get("destination", "?"))
        if destination != str(self._options.uri):
            raise Refused(f"a mirror to {destination} is running already")
        try:
            await self._request("POST", "/break", {})
        except ControlError as error:
            raise GaveUp(f"the mirror of an earlier move is not done: {printable(error)}") from None
        _log.info("the mirror that an earlier move has left behind was cancelled", event="break")

    def _arguments(self) -> Sequence[str]:
        return receiver_arguments(self._options, self._size)

    async def _move(self, far: FarReceiver) -> Summary | None:
        if self._stop_reason:
            raise GaveUp("nothing was begun")
        try:
            self._waiting = Deferred.fromCoroutine(far.reached())
            uri = await self._waiting
        except FarFailed as error:
            raise Refused(str(error)) from None
        except CancelledError:
            raise GaveUp("nothing was begun") from None
        finally:
            self._waiting = None
        self._keep_up(far)
        self._mirror = MirrorOperation(
            self._mirror_options(uri),
            self._runtime.reactor,
            self._display,
            self._ask,
            in_thread,
            address=str(self._options.uri),
        )
        try:
            return await self._mirror.run()
        except MigrationError as error:
            there = far.verdict
            unconfirmed = error.status == ExitStatus.UNCONFIRMED
            if there is None or unconfirmed or self._stop_reason:
                raise
            raise type(there)(f"{there}; {error}") from None

    def _mirror_options(self, uri: NBDURI) -> mirror.Options:
        """What `mirror --wait` would have been given."""
        options, given = mirror.Options(), self._options
        for name in ("control", "id", "unlink", "max-rate"):
            options[name] = given[name]
        options["overwrite"] = int(given["overwrite"])
        options["wait"] = 1
        options.uri, options.secret = uri, given.secret
        options.certificates = self._way.certificates
        return options

    # While the mirror goes on.

    def _keep_up(self, far: FarReceiver) -> None:
        """Start ssh again whenever it has died."""

        async def keep() -> None:
            delay = _FIRST_DELAY
            while not self._over and far.verdict is None:
                try:
                    await far.reached()
                    delay = _FIRST_DELAY
                    await far.ended()
                except FarFailed as error:
                    _log.warn("{why}", event="restart", why=str(error))
                if self._over or far.verdict is not None:
                    return
                self._waiting = deferLater(self._runtime.reactor, delay)
                await self._waiting
                delay = min(2 * delay, _LONGEST_DELAY)

        Deferred.fromCoroutine(keep()).addErrback(self._no_more)

    def _no_more(self, failure: Failure) -> None:
        """Nothing keeps ssh up any more: a verdict is told where it is found."""
        if not failure.check(MigrationError, CancelledError):
            _log.failure(
                "this is a bug of blockmig: ssh is not started again", failure, event="bug"
            )

    def _far_ended(self, error: MigrationError) -> None:
        if self._mirror is not None and not isinstance(error, AlreadyDone):
            self._cancel()

    def _cancel(self) -> None:
        """Cancel the mirror, if there is one, and it is not too late."""
        if self._mirror is not None:
            self._request("POST", "/break", {}).addErrback(self._not_cancelled)
        elif self._waiting is not None:
            self._waiting.cancel()

    def _not_cancelled(self, failure: Failure) -> None:
        failure.trap(ControlError)
        if failure.check(ControlRefused):
            _log.warn("{why}", event="too-late", why=printable(failure.value))

    def _request(self, method: str, resource: str, body: Any = None) -> Deferred[Any]:
        path = self._options["control"]
        return in_thread(self._runtime.reactor, lambda: self._ask(path, method, resource, body))
