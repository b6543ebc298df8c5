"""The receiver at the other end of a `move`: `blockmig receive`, started there by the user's ssh.

Owns the ssh process, and the judgement of why a receiver has ended. How NBD connections get to the
receiver is the L{Way<blockmig.cli.way.Way>}'s: through this ssh, or beside it. In either case there
is one ssh for any number of them.

Rules:

* it is the user's ssh, with its configuration, agent and host keys, and may ask for a passphrase on
  the terminal. Only what would break a move is set: no connection that others share carries it
  (ControlMaster), since that outlives it; and a host that has gone is noticed within a minute;
* the secret goes by standard input, which then stays open: when it closes, in whichever way, the
  receiver ends as by SIGTERM. No argument, log line or record has the secret (design, section 2:
  R10);
* ssh does not get the terminal's SIGINT: what a Ctrl-C does to the two sides is decided here;
* a receiver that has refused, or has failed for a reason of its own, is not started again. One
  whose ssh has died, or that was killed, is started again when somebody next connects.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import ProcessProtocol
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ..errors import AlreadyDone, ExitStatus, GaveUp, LocalFailure, MigrationError, Refused
from ..lives import OneShot
from ..nbd import NBDURI
from ..transport import client_endpoint
from ..units import printable
from .direct_tls import NO_ADDRESS
from .remote_place import RemotePlace
from .tunnel import NO_DIRECTORY
from .way import FarFailed, NoWay, Way

_log = Logger()

_SSH_OPTIONS: Final = (
    *("-T", "-o", "ControlMaster=no", "-o", "ControlPath=none", "-o", "RemoteCommand=none"),
    *("-o", "ExitOnForwardFailure=no"),  # of forwards in the configuration, which others may have
    *("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"),
)
_WITHOUT_SIGNALS: Final = 'trap "" INT QUIT; exec "$@"'
"""An ignored signal stays so in the program that is executed, and ssh keeps to that."""

_SSH_FAILED: Final = 255
_NOT_FOUND: Final = (126, 127)
_NOT_FORWARDED: Final = ": open failed: "
_PERMANENT: Final = {
    ExitStatus.REFUSED: Refused,
    ExitStatus.FAILED: LocalFailure,
    ExitStatus.GAVE_UP: GaveUp,
}
_TOO_OLD: Final = ("not recognized", "unknown command")
_LONGEST_LINE: Final = 65536

_GRACE: Final = 5.0
"""Seconds in which a receiver whose migration is complete ends by itself."""
_END_TIMEOUT: Final = 10.0
_KILL_TIMEOUT: Final = 2.0
_PIPES_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True)
class Ending:
    """How a receiver, or its ssh, has ended.

    @ivar error: what that means: a L{MigrationError} where another try would end in the same way,
        L{AlreadyDone} where the migration is complete there; None where it has just completed it.
    @ivar said: the receiver's own last word; "" where it had none.
    """

    error: MigrationError | FarFailed | None
    said: str = ""


class _Session(ProcessProtocol):
    """One ssh process.

    @param way: how the data gets there, for which the receiver's errors are judged.
    @param first: what the receiver's standard input has first.
    @param not_forwarded: called when a connection did not get through, with why.
    @ivar listening: fires when the receiver listens; fails with what L{Ending} says, if it has
        ended before.
    @ivar ended: fires with the L{Ending}.
    """

    transport: Any

    def __init__(
        self,
        reactor: Any,
        host: str,
        way: Way,
        first: bytes,
        not_forwarded: Callable[[str], None],
    ) -> None:
        self.listening: OneShot[None] = OneShot()
        self.ended: OneShot[Ending] = OneShot()
        self._reactor = reactor
        self._host = host
        self._way = way
        self._first = first
        self._hindrance: MigrationError | None = None
        self._buffer = b""
        self._last_line = ""
        self._final: dict[str, Any] = {}
        self._not_forwarded = not_forwarded
        self._waiting: Any = None
        self._is_to_end = False

    def connectionMade(self) -> None:
        self.transport.write(self._first)

    def close_input(self) -> None:
        """Have the receiver end; of what it says only its last word is told any more."""
        self._is_to_end = True
        self.transport.closeStdin()

    def signal(self, name: str) -> None:
        """Send ssh a signal."""
        with contextlib.suppress(Exception):  # it has ended, or was never started
            self.transport.signalProcess(name)

    def outReceived(self, data: bytes) -> None:
        pass  # what a login shell's start-up files print

    def errReceived(self, data: bytes) -> None:
        *lines, rest = (self._buffer + data).split(b"\n")
        self._buffer = rest[-_LONGEST_LINE:]
        for line in lines:
            self._line(line.decode(errors="replace").strip())

    def _line(self, line: str) -> None:
        if not line or self.ended.is_known:
            return
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            self._event(event)
            return
        if _NOT_FORWARDED in line and self._way.forwards:
            self._not_forwarded(
                f"{self._host}: its sshd does not lead to the receiver's socket; does it forward "
                f"UNIX sockets (AllowStreamLocalForwarding)? ({printable(line)})"
            )
        self._last_line = printable(line)
        _log.debug("{host}: {line}", event="ssh", host=self._host, line=self._last_line)

    def _event(self, event: dict[str, Any]) -> None:
        name, message = event["event"], printable(event.get("message", ""))
        if name == "listening" and not self.listening.is_known:
            self._way.opened(str(event.get("uri", "")))
            self.listening.resolve(None)
        if name == "cannot-listen":
            self._cannot_listen(message)
        if name in ("error", "already-done", "complete"):
            self._final = event
            return
        serious = event.get("level") in ("warn", "error", "critical") and not self._is_to_end
        tell = _log.warn if serious else _log.debug
        tell("{host}: {message}", event="far", host=self._host, message=message)

    def _cannot_listen(self, message: str) -> None:
        """The receiver tries on; but where another way may do, nobody waits for that."""
        why = message.replace(" yet: ", ": ", 1).removesuffix("; trying again")
        error = self._way.judged(Refused(f"{self._host}: {why}"))
        if isinstance(error, NoWay) and self._hindrance is None:
            self._hindrance = error
            self.close_input()

    def processExited(self, reason: Failure) -> None:
        # Who has inherited the pipes, such as a proxy command, may keep them open for ever.
        self._waiting = self._reactor.callLater(_PIPES_TIMEOUT, self._end, reason)

    def processEnded(self, reason: Failure) -> None:
        if self._waiting is not None and self._waiting.active():
            self._waiting.cancel()
        self._end(reason)

    def _end(self, reason: Failure) -> None:
        if self.ended.is_known:
            return
        self.errReceived(b"\n")
        error = self._hindrance or self._error(reason)
        if isinstance(error, MigrationError):
            error = self._way.judged(error)
        ending = Ending(error, printable(self._final.get("message", "")))
        why = ending.error or FarFailed(f"{self._host}: its receiver is complete")
        self.ended.resolve(ending)
        self.listening.resolve(Failure(why))

    def _error(self, reason: Any) -> MigrationError | FarFailed | None:
        host, line = self._host, self._last_line
        name, said = self._final.get("event", ""), printable(self._final.get("message", ""))
        status = 0 if reason.check(ProcessDone) else reason.value.exitCode
        if status is None:
            number = reason.value.signal
            return FarFailed(f"{host}: ssh was killed by {signal.Signals(number).name}")
        if status == ExitStatus.DONE and name == "complete":
            return None
        if status == ExitStatus.DONE and name == "already-done":
            return AlreadyDone(f"{host}: {said}")
        if status == _SSH_FAILED:
            return FarFailed(f"{host}: ssh failed: {line or 'it does not say why'}")
        if status in _NOT_FOUND:
            return Refused(
                f"{host}: {line or 'command not found'}: is blockmig installed there? "
                "--remote-command says what it is called"
            )
        if status == NO_DIRECTORY:
            return Refused(f"{host}: a directory for the sockets cannot be made: {line}")
        if status == NO_ADDRESS:
            return Refused(
                f"{host}: nothing there says to which address ssh has connected (SSH_CONNECTION): "
                "give --data-address"
            )
        if status in _PERMANENT and name == "error":
            return _PERMANENT[ExitStatus(status)](f"{host}: {said}")
        if status == ExitStatus.REFUSED:
            why = line.removeprefix("blockmig: ") or "it does not say why"
            if any(words in why for words in _TOO_OLD):
                return Refused(f"{host}: the blockmig there is too old for `move` ({why})")
            return Refused(f"{host}: {why}")
        what = said or line or "it does not say why"
        return FarFailed(f"{host}: its receiver ended with status {status}: {what}")


class FarReceiver:
    """Starts the receiver when somebody connects, and again after its ssh has died.

    @param ssh: the words of the ssh command.
    @param arguments: of the receiver, all but where it listens.
    @param way: how connections get to it.
    @param on_end: called when a receiver has ended that nobody starts again.
    @ivar listened: whether a receiver ever listened.
    @ivar verdict: why no receiver is started any more; None as long as one may be.
    @ivar last_failure: why the last try to start one, or to reach it, failed; "" if none did.
    @ivar when_reached: fires when the way has first led to one that listens.
    """

    def __init__(
        self,
        reactor: Any,
        place: RemotePlace,
        *,
        ssh: Sequence[str],
        command: str,
        arguments: Callable[[], Sequence[str]],
        secret: bytes,
        way: Way,
        on_end: Callable[[MigrationError], None],
    ) -> None:
        self.listened = False
        self.verdict: MigrationError | None = None
        self.last_failure = ""
        self.when_reached: OneShot[None] = OneShot()
        self._reactor = reactor
        self._place = place
        self._ssh = ssh
        self._command = command
        self._arguments = arguments
        self._secret = secret
        self._way = way
        self._on_end = on_end
        self._session: _Session | None = None
        self._closing = False

    async def reached(self) -> NBDURI:
        """Where to connect to the receiver, once it listens.

        @raise FarFailed: nowhere, and that may change.
        @raise MigrationError: there will be none.
        """
        if self.verdict is not None:
            raise self.verdict
        session = self._session
        if session is None or session.ended.is_known:
            session = self._start()
        await session.listening.wait()
        try:
            uri = await self._way.reach()
        except (FarFailed, MigrationError) as error:
            _log.debug("{why}", event="not-reached", why=str(error))
            if isinstance(error, MigrationError):
                self._refuse(error)
            else:
                self.last_failure = str(error)
            raise
        self.last_failure = ""
        self.when_reached.resolve(None)
        return uri

    @property
    def was_reached(self) -> bool:
        """Whether the way has ever led to a receiver."""
        return self.when_reached.is_known

    async def ended(self) -> None:
        """Return when the receiver that is there now has ended."""
        if self._session is not None:
            await self._session.ended.wait()

    def _start(self) -> _Session:
        if self._closing:
            raise FarFailed(f"{self._place.host}: the receiver is being stopped")
        if shutil.which(self._ssh[0]) is None:
            error = Refused(f"{self._ssh[0]}: command not found; --ssh says what it is called")
            self._refuse(error)
            raise error
        try:
            first = self._way.input(self._secret)
        except MigrationError as error:
            self._refuse(error)
            raise
        self._session = session = _Session(
            self._reactor, self._place.host, self._way, first, self._not_forwarded
        )
        session.listening.wait().addCallbacks(self._listening, lambda _: None)
        session.ended.wait().addCallback(self._ended)
        words = ["/bin/sh", "-c", _WITHOUT_SIGNALS, "sh", *self._ssh_words()]
        self._reactor.spawnProcess(session, words[0], words, env=None)
        return session

    def _ssh_words(self) -> list[str]:
        options = self._way.ssh_options()
        script = self._way.script(self._command, self._arguments())
        return [
            *(*self._ssh, *_SSH_OPTIONS, *options, "--", self._place.ssh_host),
            f"sh -c {shlex.quote(script)}",
        ]

    def _listening(self, _: None) -> None:
        self.listened = True
        self.last_failure = ""

    def _refuse(self, error: MigrationError) -> None:
        """Start no receiver any more."""
        if self.verdict is None:
            self.verdict = error
            self._on_end(error)

    def _not_forwarded(self, why: str) -> None:
        self.last_failure = why
        _log.debug("{why}", event="not-forwarded", why=why)

    def _ended(self, ending: Ending) -> None:
        error = ending.error
        if self._closing:
            return
        if isinstance(error, FarFailed):
            self.last_failure = str(error)
            _log.debug("{why}", event="far-ended", why=str(error))
        elif error is not None:
            self._refuse(error)

    async def close(self, complete: bool) -> Ending | None:
        """End the receiver, if there is one; its last word, or None if it is not known.

        @param complete: its migration is complete, and it ends by itself.
        """
        self._closing = True
        session = self._session
        if session is not None:
            if complete:
                await self._ends(session, _GRACE)
            if not session.ended.is_known:
                session.close_input()
                if not await self._ends(session, _END_TIMEOUT):
                    for name in ("TERM", "KILL"):
                        session.signal(name)
                        if await self._ends(session, _KILL_TIMEOUT):
                            break
        self._way.close()
        ending = session.ended.result if session is not None else None
        return ending if isinstance(ending, Ending) else None

    def remove_left_behind(self) -> None:
        """Remove what an earlier process has left here that was killed when it had completed."""
        self._way.remove_left_behind()

    async def _ends(self, session: _Session, seconds: float) -> bool:
        """Wait so long for its end; whether it came."""
        waiting = session.ended.wait()
        timeout = deferLater(self._reactor, seconds, waiting.cancel)
        with contextlib.suppress(CancelledError):
            await waiting
        timeout.addErrback(lambda _: None).cancel()
        return session.ended.is_known


@implementer(IStreamClientEndpoint)
class FarEndpoint:
    """Connects to the receiver, which is started if need be."""

    def __init__(self, reactor: Any, far: FarReceiver) -> None:
        self._reactor = reactor
        self._far = far

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        uri = await self._far.reached()
        connected: IProtocol = await client_endpoint(self._reactor, uri).connect(factory)
        return connected
