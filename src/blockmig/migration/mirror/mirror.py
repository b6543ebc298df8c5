"""A mirror: sends the disk of a running server to a destination, and hands it over.

Owns the migration from the first connection to the moment when the server's clients are closed, or
passed through to the server that takes over. What is sent, and when clients are held, is up to
`pre_copy`; attempts, records and the hand-off are the `sender`'s: this is a migration like any
other, but for the clients.

Rules (design, section 2):

* what goes wrong before the first handshake was accepted ends the mirror; after that an early drop,
  or an error of the destination's, means another attempt, after a while;
* as long as the source is not being retired the mirror can be broken off: clients never notice, and
  the destination is left C{copying};
* once the source is retired this server serves nobody any more, whatever becomes of the
  destination: clients are closed, or kept waiting for the server that takes over;
* a mirror that ended otherwise leaves the server as it was before, ready for another one;
* a server has one mirror at a time, from when that is made until it has ended. A server that is
  stopped has its mirror stopped first; a mirror of a server that was stopped does not begin.
"""

from __future__ import annotations

from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from ...claims import Claim, check_unclaimed
from ...client import Destination
from ...errors import MigrationError, Refused, Summary, Unconfirmed
from ...lives import Life, LifeState, OneShot
from ...nbd import handoff_export_name
from ...runtime import Runtime
from ...server import Relay, Server
from ...transport import YieldingLimiter
from ..identity import ANYBODY, Identity
from ..policy import NO_OVERRIDES, Overrides, Patience
from ..source.sender import Sender
from .pre_copy import Converge, MirrorPhase, PreCopy

_log = Logger()

LONGEST_PAUSE: Final = 0.5
"""Seconds for which clients are held at most, by default."""

PATIENCE: Final = Patience(reply_timeout=60.0)
"""With a destination that answers nothing, and keeps clients waiting, there is less of it."""


class Mirror:
    """Mirrors a server's disk while clients use it, then hands it over.

    @param server: its disk is the source; waiting for it and closing it stays up to the caller.
    @param destination: where its receiver is.
    @param unlink: delete the disk's file just before the disconnect.
    @param overrides: checks to override.
    @param max_rate: bytes of data per second; None for no limit.
    @param longest_pause: seconds for which clients may be held.
    @param converge: what to do where clients write faster than the data is transferred.
    @param successor: pass clients through to this server after the hand-off; None to close them.
    @param linger: seconds for which clients that come back are still passed through when the last
        one has left; C{math.inf} for ever.
    @param patience: how long the destination is tried.
    @param identity: the id and the secret of the migration, the same as the receiver's.
    @param runtime: the reactor, threads and system calls to use; None for the real ones.
    @ivar destination: its URI, as given.
    @raise InUse: the server has a mirror already.
    @raise Refused: the server was stopped, the records beside the disk forbid it, or it cannot be
        deleted.
    """

    def __init__(
        self,
        server: Server,
        destination: Destination,
        *,
        unlink: bool = False,
        overrides: Overrides = NO_OVERRIDES,
        max_rate: float | None = None,
        longest_pause: float = LONGEST_PAUSE,
        converge: Converge = Converge.WAIT,
        successor: Destination | None = None,
        linger: float = 0.0,
        patience: Patience = PATIENCE,
        identity: Identity = ANYBODY,
        runtime: Runtime | None = None,
    ) -> None:
        check_unclaimed(server, server.disk.name)
        if refusal := _refusal(server):
            raise refusal
        self._runtime = runtime = runtime or Runtime.of()
        self.destination = destination.uri
        self._server = server
        self._reactor = reactor = runtime.reactor
        self._unlink = unlink
        self._converge = converge
        self._longest_pause = longest_pause
        self._successor = successor
        self._linger = linger
        self._limiter = YieldingLimiter(reactor, self._clients_last_busy, max_rate)
        self._passes = PreCopy(
            server,
            longest_pause=longest_pause,
            converge=converge,
            reactor=reactor,
            give_up=self._give_up,
            finishing=self._hand_over_early,
            limiter=self._limiter,
        )
        self._sender = Sender(
            server.disk,
            destination,
            unlink=unlink,
            overrides=overrides,
            patience=patience,
            passes=self._passes,
            identity=identity,
            successor=successor.uri if successor is not None else "",
            runtime=runtime,
        )
        self._began: float | None = None
        self._ended_at: float | None = None
        self._state = ""
        self._why = ""
        self._accepted: OneShot[int] = OneShot()
        self._life: Life[Summary] = Life(
            f"the mirror of {server.disk.name}", begin=self._begin, call_off=self._call_off
        )
        self._claim = Claim(server, self, server.disk.name)

    # Start and end.

    def start(self) -> Deferred[int]:
        """Begin; to be called once.

        Cancelling what it returns is to stop the mirror: that then fails once it has ended.

        @return: fires with the number of the attempt when the destination has accepted the first
            handshake; fails as L{complete} does if it does not come to that, and with L{InUse}
            where it was started before.
        """
        return self._life.run_until(self._accepted.wait)

    def _begin(self) -> None:
        self._began = self._reactor.seconds()
        if refusal := _refusal(self._server):
            self._end_unbegun(Failure(refusal))
            return
        self._server.mirror = self
        self._passes.start()
        self._sender.when_accepted.addCallback(
            lambda _: self._accepted.resolve(self._sender.progress.number)
        )
        self._sender.run().addBoth(self._end).addErrback(_bug)

    def complete(self) -> Deferred[Summary]:
        """The outcome; it may be asked for at any time, and repeatedly.

        Cancelling it only stops waiting.

        @return: fires with a L{Summary} when the disk is handed over (the server's clients may
            still be there: see L{Server.complete}), or fails with a L{MigrationError}: with
            L{Unconfirmed} the source is retired, or its records could not be made to say that it
            is not; with any other the server goes on serving.
        """
        return self._life.wait()

    async def handed_over(self) -> None:
        """To be awaited once the server has ended: then the mirror has too.

        @raise Unconfirmed: the source is retired, and the destination may not know it.
        """
        try:
            await self.complete()
        except Unconfirmed:
            raise
        except MigrationError:
            return  # the server went on, and has ended by itself

    @property
    def over(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self._life.state == LifeState.ENDED

    @property
    def too_late(self) -> bool:
        """Whether the source is retired, or about to be."""
        return self._sender.retiring

    @property
    def source_is_gone(self) -> bool:
        """Whether the source was deleted, and the destination was seen to be complete: nothing
        will ever need it again."""
        return self._unlink and self._sender.source.end_seen

    def stop(self, why: str = "stopped") -> None:
        """Break it off, unless it is too late for that."""
        self._life.stop(why)

    def _call_off(self, why: str) -> None:
        self._state = "broken"
        self._sender.stop(why)
        if self._began is None:
            self._sender.complete().addErrback(self._end_unbegun)

    def _end_unbegun(self, failure: Failure) -> None:
        """It ends without having touched the server."""
        self._state = self._state or "failed"
        self._why = failure.getErrorMessage()
        self._release(failure)

    def _release(self, outcome: Summary | Failure) -> None:
        """The server may have another mirror."""
        self._claim.release()
        self._life.end(outcome)
        if isinstance(outcome, Failure):
            self._accepted.resolve(outcome)

    def set_rate(self, rate: float | None) -> None:
        """Change the rate limit.

        @param rate: bytes of data per second; None for no limit.
        """
        self._limiter.set_rate(rate)

    def _clients_last_busy(self) -> float:
        """While they are held, the mirror may take all of the reactor's time."""
        held = self._passes.phase != MirrorPhase.COPYING
        return float("-inf") if held else self._server.latency.last_used

    def _give_up(self, why: str) -> None:
        self._sender.stop(why)

    def _end(self, result: Summary | Failure) -> None:
        self._ended_at = self._reactor.seconds()
        self._passes.stop()
        self._server.mirror = None
        if not isinstance(result, Failure):
            self._state = "complete"
            self._hand_over()
        else:
            broken = self._state == "broken" and not self.too_late
            self._state = "broken" if broken else "failed"
            self._why = result.getErrorMessage()
            if not result.check(MigrationError):
                _log.failure("this is a bug of blockmig", result, event="bug")
            self._fail()
        self._release(result)

    def _fail(self) -> None:
        if self.too_late:
            self._server.hand_over()
        else:
            _log.warn(
                "{disk}: the mirror to {destination} has ended, clients are still served: {why}",
                event="mirror-ended",
                disk=self._server.disk.name,
                destination=self.destination,
                why=self._why,
            )
            self._server.release()

    def _hand_over(self) -> None:
        successor = self._successor
        if successor is None:
            self._server.hand_over()
        else:
            self._server.relay(
                Relay(
                    successor,
                    receiver_export=handoff_export_name(successor.export),
                    linger=self._linger,
                    runtime=self._runtime,
                )
            )

    def _hand_over_early(self) -> None:
        """Clients need not wait until the destination is notified, unless they wait for its
        server."""
        if self._successor is None:
            self._server.hand_over()

    # How it stands.

    @property
    def state(self) -> str:
        """C{starting}, C{copying}, C{holding}, C{handing over}, C{waiting} (for another attempt),
        C{relaying}, C{complete}, C{failed} or C{broken}.
        """
        if self.over:
            relaying = self._state == "complete" and self._server.state == "relaying"
            return "relaying" if relaying else self._state
        if not self._sender.progress.attempt:
            return "starting"
        return self._passes.phase.value if self._sender.connected else "waiting"

    def status(self) -> dict[str, Any]:
        """How it stands, for humans and scripts: times in seconds, sizes in bytes."""
        passes, convergence = self._passes, self._passes.convergence
        progress = self._sender.progress
        began = self._began if self._began is not None else self._reactor.seconds()
        now = self._ended_at if self._ended_at is not None else self._reactor.seconds()
        throttle = self._server.changes.throttle
        done = isinstance(self._life.outcome, Summary)
        left, data_left = (0, 0) if done else (passes.left, passes.data_left)
        seen = self._server.relayed_pause
        running = not self.over and self._sender.connected
        end, pause = (convergence.forecast(data_left) if running else None) or (None, None)
        return {
            "state": self.state,
            "destination": self.destination,
            "unlink": self._unlink,
            "pass": passes.number,
            "sent": progress.data,
            "zeroes": progress.zeroes,
            "left": left,
            "data_left": data_left,
            "dirty": passes.dirty.bytes,
            "rate": round(convergence.rate),
            "dirty_rate": round(convergence.dirty_rate),
            "converging": passes.converging,
            "expected_end": None if end is None else round(end, 1),
            "expected_pause": None if pause is None else round(pause, 3),
            "attempts": progress.attempt,
            "last_error": self._why or self._sender.last_error,
            "cause": self._sender.cause,
            "max_rate": self._limiter.rate,
            "max_pause": self._longest_pause,
            "converge": self._converge.value,
            "then": "exit" if self._successor is None else "relay",
            "throttle": round(throttle.rate) if throttle is not None else None,
            "seconds": round(now - began, 3),
            "pause": None if passes.pause is None else round(passes.pause, 4),
            "client_pause": None if seen is None else round(seen, 4),
            "rest": passes.sent_while_held,
            "holds": passes.hold_count,
        }


def _refusal(server: Server) -> Refused | None:
    """Why a mirror of C{server} cannot begin, if it cannot."""
    if server.state == "serving":
        return None
    return Refused(f"{server.disk.name}: its server is {server.state}: no mirror of it can begin")


def _bug(failure: Failure) -> None:
    _log.failure("while ending a mirror", failure, event="bug")
