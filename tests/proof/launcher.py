"""Runs the real commands in child processes that can be struck at any point.

Owns the processes, and the names of the messages that pass between them. The product has no
switches for this: it is given file-system calls (L{tests.proof.volatile}) and endpoints to use, and
the launcher gives it its own. Everything else (options, operations, logging, reactor, exit status)
is what `blockmig` itself does in `cli.starting`.

Rules:

* children are forked by a process that never imported the reactor and has no other thread;
* messages are recognised in the stream, and given to the program one by one: a point before a
  message lies before its first byte was given to the transport, or its last to the protocol; the
  point after it once the kernel has all of it, or the protocol has acted on it;
* on the wires C{tcp} and C{unix} the transport is the real one, so that payloads go by sendfile and
  splice past the protocol; on C{wrapped} it is a stranger to blockmig, and all goes through memory;
* a child ends when its harness does.

Only what makes a run short is not the product's own: the seconds between tries, those for which a
receiver that knows everything is looked for, and the window of the write-behind, which no small
disk would ever fill.

A server that mirrors its disk is struck at what it says to the destination, and at its calls into
the kernel; the names of its points begin with what the mirror was at: `pass 2: `, `hold: `. Its
clients' connections are nobody's point. It can also be told to break the mirror off at a point:
that is a strike of the kind C{break}, and it tells C{broken} or C{too-late}.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from twisted.internet.defer import Deferred

from blockmig.cli.commands import parse
from blockmig.cli.logs import begin_logging, write_to
from blockmig.cli.operations import report, run_operation
from blockmig.cli.progress import make_display
from blockmig.cli.receiving import Receive
from blockmig.cli.sending import Send
from blockmig.cli.serving import Serve
from blockmig.control import ControlRefused
from blockmig.migration.destination import write_behind
from blockmig.migration.handoff.message import MESSAGE_SIZE, BadMessage, decode_message
from blockmig.migration.mirror.pre_copy import MirrorPhase, PreCopy
from blockmig.migration.source import finisher, sender
from blockmig.nbd import ClientHandshake, Command, Option, OptionReply, Request
from blockmig.runtime import Runtime
from blockmig.server import ServerConnection
from blockmig.transport import client_endpoint, server_endpoint
from tests.proof.volatile import DIED, ORPHANED, Journal, Point, Points, Strike, VolatileCalls

for _name in ("default", "endpoints", "epollreactor", "tcp", "threads", "udp", "unix"):
    # The children must not have to import it each time.
    importlib.import_module(f"twisted.internet.{_name}")

_PAUSE = 0.05
PATIENCE = 3.0
"""Seconds for which a sender looks for a receiver that has acknowledged everything."""
_SMALL_WINDOW = 256 << 10
_GO_ON = "go on"

Steps = Generator[tuple[int, str | None], bytes, None]
"""Asks for so many bytes, and gives the name of the message that the last ones completed."""


class Dialogue:
    """What is said on one connection, in both directions.

    @ivar export: C{M} for the main export, C{H} for the side export, C{?} before it is known.
    """

    def __init__(self) -> None:
        self.export = "?"
        self._requests: dict[int, Request] = {}
        self.from_client = _Stream(self._client())
        self.from_server = _Stream(self._server())

    def _client(self) -> Steps:
        name: str | None = None
        yield 4, None
        name, option = "flags", 0
        while option not in (Option.GO, Option.EXPORT_NAME):
            _, option, length = struct.unpack("!QII", (yield 16, name))
            data = (yield length, None) if length else b""
            name = Option(option).name
        self.export = "H" if b".handoff" in data else "M"
        while True:
            request = Request(*struct.unpack("!4xHHQQI", (yield 28, name)))
            self._requests[request.cookie] = request
            name = Command(request.command).name
            if request.command == Command.WRITE:
                name = self._named("tell", (yield request.length, name), name)

    def _server(self) -> Steps:
        yield 18, None
        name: str | None = "greeting"
        while True:
            _, option, reply, length = struct.unpack("!QIII", (yield 20, name))
            if length:
                yield length, None
            name = f"{Option(option).name} answer"
            if option == Option.GO and reply == OptionReply.ACK:
                break
        name = "GO done"
        while True:
            error, cookie = struct.unpack("!4xIQ", (yield 16, name))
            request = self._requests.pop(cookie)
            command = Command(request.command).name
            name = f"{command} refused" if error else f"{command} reply"
            if request.command == Command.READ and not error:
                name = self._named("page", (yield request.length, name), name)

    @staticmethod
    def _named(what: str, payload: bytes, otherwise: str) -> str:
        if len(payload) == MESSAGE_SIZE:
            with contextlib.suppress(BadMessage):
                return f"{what} {decode_message(payload).phase}"
        return f"{otherwise} payload"


class _Stream:
    """One direction, cut where messages end."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._left, _ = next(steps)
        self._seen = b""

    def cut(self, data: bytes) -> Iterator[tuple[bytes, str | None]]:
        """Pieces of C{data}, each with the name of the message that it completes, if it does."""
        while data:
            piece, data = data[: self._left], data[self._left :]
            self._seen += piece
            yield piece, self._passed(len(piece))

    def moved(self, count: int) -> str | None:
        """Bytes have gone past us."""
        return self._passed(count)

    def _passed(self, count: int) -> str | None:
        self._left -= count
        if self._left:
            return None
        seen, self._seen = self._seen, b""
        self._left, name = self._steps.send(seen)
        return name


class _Staged(int):
    """The number of a point, and its whole name."""

    name = ""


class StagedPoints(Points):
    """Points of a server, whose names begin with what its mirror is at."""

    def __init__(
        self,
        journal: Journal,
        strike: Strike | None,
        tell: Callable[[str], None],
        record: bool = False,
    ) -> None:
        super().__init__(journal, strike, tell, record)
        self._stage = ""
        self._break: Callable[[], Any] | None = None

    def before(self, name: str) -> int:
        name = self._stage + name
        number = _Staged(super().before(name))
        number.name = name
        return number

    def after(self, name: str, number: int) -> None:
        super().after(number.name if isinstance(number, _Staged) else name, number)

    def _reach(self, point: Point) -> None:
        strike = self._strike
        if strike is None or strike.point != point or strike.kind != "break":
            super()._reach(point)
        elif self._break is not None:
            self._break()

    def watch(self, operation: Serve, reactor: Any) -> None:
        """Know what the mirror of C{operation} is at, and how to break it off."""

        async def end() -> None:
            assert operation._mirrors is not None
            try:
                await operation._mirrors.end({})
            except ControlRefused:
                self._tell("too-late")
            else:
                self._tell("broken")

        self._break = lambda: reactor.callFromThread(Deferred.fromCoroutine, end())
        send, hold, release = PreCopy._send_pass, PreCopy._hold, PreCopy._release

        async def _send_pass(passes: PreCopy, attempt: Any) -> None:
            if passes.phase != MirrorPhase.HOLDING:
                self._stage = f"pass {passes.number}: "
            with self.around("a pass"):
                await send(passes, attempt)

        async def _hold(passes: PreCopy, attempt: Any) -> None:
            self._stage = "hold: "
            with self.around("the hold begins"):
                await hold(passes, attempt)

        def _release(passes: PreCopy) -> None:
            if passes.phase != MirrorPhase.COPYING:
                self._stage = "released: "
            release(passes)

        patched: Any = PreCopy
        patched._send_pass, patched._hold, patched._release = _send_pass, _hold, _release


class _Foreign:
    """A transport that blockmig does not know, around one that it would."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _Watched:
    """Has the points of one connection be points.

    @param is_server: this end is the server's.
    """

    def __init__(self, points: Points, protocol: Any, is_server: bool, foreign: bool) -> None:
        self._points = points
        self._dialogue = dialogue = Dialogue()
        streams = (dialogue.from_client, dialogue.from_server)
        self._incoming, self._outgoing = streams if is_server else reversed(streams)
        self._foreign = foreign
        self._written = self._sent = 0
        self._due: list[tuple[int, str, int]] = []
        self.descriptor = -1
        self._lose, protocol.connectionLost = protocol.connectionLost, self._lost
        self._connect, protocol.makeConnection = protocol.makeConnection, self._connected
        if isinstance(protocol, ServerConnection):
            self._enter, protocol._enter = protocol._enter, self._entered
        else:
            self._receive, protocol.dataReceived = protocol.dataReceived, self._received

    def _entered(self, phase: Any) -> None:
        """Of a server's connection: what comes goes to its phase, by the transport or past it."""
        self._receive, phase.dataReceived = phase.dataReceived, self._received
        self._move, phase.payload_moved = phase.payload_moved, self._moved
        self._enter(phase)

    def _connected(self, transport: Any) -> None:
        self._write, transport.write = transport.write, self._writing
        self._to_kernel, transport.writeSomeData = transport.writeSomeData, self._to_kernel_some
        self.descriptor = transport.fileno()
        self._connect(_Foreign(transport) if self._foreign else transport)

    def _lost(self, *reason: Any) -> None:
        self.descriptor = -1
        self._lose(*reason)

    def _received(self, data: bytes) -> None:
        for piece, name in self._incoming.cut(data):
            if name is None:
                self._receive(piece)
            else:
                with self._points.around(f"{self._dialogue.export} in: {name}"):
                    self._receive(piece)

    def _moved(self, count: int) -> None:
        name = self._incoming.moved(count)
        if name is None:
            self._move(count)
        else:
            with self._points.around(f"{self._dialogue.export} in: {name}"):
                self._move(count)

    def _writing(self, data: bytes) -> None:
        for piece, name in self._outgoing.cut(data):
            if name is not None:
                label = f"{self._dialogue.export} out: {name}"
                number = self._points.before(label)
                self._due.append((self._written + len(piece), label, number))
            self._written += len(piece)
            self._write(piece)

    def _to_kernel_some(self, data: bytes) -> Any:
        count = self._to_kernel(data)
        if isinstance(count, int) and count > 0:
            self._sent += count
            while self._due and self._due[0][0] <= self._sent:
                _, label, number = self._due.pop(0)
                self._points.after(label, number)
        return count

    def send(self, handle: Any, data: bytes, flags: int) -> None:
        """Give bytes to the kernel past the transport, message by message."""
        for piece, name in self._outgoing.cut(data):
            if name is None:
                _send_all(handle, piece, flags)
            else:
                with self._points.around(f"{self._dialogue.export} out: {name}"):
                    _send_all(handle, piece, flags)

    def went_past(self, count: int) -> None:
        """So many bytes were given to the kernel by another way than the transport."""
        name = self._outgoing.moved(count)
        if name is not None:
            with self._points.around(f"{self._dialogue.export} out: {name}"):
                pass


def _send_all(handle: Any, data: bytes, flags: int) -> None:
    """Half a message would be none of our points."""
    handle.settimeout(10)
    try:
        handle.sendall(data, flags)
    finally:
        handle.setblocking(False)


class _Factory:
    """Watches every connection of another factory."""

    def __init__(self, watch: _Watch, factory: Any, is_server: bool) -> None:
        self._watch = watch
        self._factory = factory
        self._is_server = is_server

    def __getattr__(self, name: str) -> Any:
        return getattr(self._factory, name)

    def buildProtocol(self, address: Any) -> Any:
        protocol = self._factory.buildProtocol(address)
        if protocol is not None:
            self._watch.add(protocol, self._is_server)
        return protocol


class _Endpoint:
    """Watches every connection of another endpoint."""

    def __init__(self, watch: _Watch, endpoint: Any, watched: bool = True) -> None:
        self._watch = watch
        self._endpoint = endpoint
        self._watched = watched

    def connect(self, factory: Any) -> Any:
        return self._endpoint.connect(_Factory(self._watch, factory, False))

    def listen(self, factory: Any) -> Any:
        def listening(port: Any) -> Any:
            self._watch.tell("listening")
            return port

        if self._watched:
            factory = _Factory(self._watch, factory, True)
        return self._endpoint.listen(factory).addCallback(listening)


class _Watch:
    """All connections of one process."""

    def __init__(self, points: Points, foreign: bool, tell: Callable[[str], None]) -> None:
        self._points = points
        self._foreign = foreign
        self._all: list[_Watched] = []
        self.tell = tell

    def add(self, protocol: Any, is_server: bool) -> None:
        self._all.append(_Watched(self._points, protocol, is_server, self._foreign))

    def _watched(self, descriptor: int) -> _Watched | None:
        # The newest, since descriptors are used again; none for a server's client.
        found = (one for one in reversed(self._all) if one.descriptor == descriptor)
        return next(found, None)

    def sent(self, descriptor: int, count: int) -> None:
        """By sendfile(2)."""
        watched = self._watched(descriptor)
        if watched is not None:
            watched.went_past(count)

    def send(self, handle: Any, data: bytes, flags: int) -> None:
        """By send(2)."""
        watched = self._watched(handle.fileno())
        if watched is not None:
            watched.send(handle, data, flags)
        else:
            _send_all(handle, data, flags)

    def server_endpoint(self, reactor: Any, text: str) -> Any:
        return _Endpoint(self, server_endpoint(reactor, text))

    def clients_endpoint(self, reactor: Any, text: str) -> Any:
        """That of a server whose clients are not watched."""
        return _Endpoint(self, server_endpoint(reactor, text), watched=False)

    def client_endpoint(self, reactor: Any, uri: Any) -> Any:
        return _Endpoint(self, client_endpoint(reactor, uri))


def _send_as_a_stranger(path: str, host: str, port: str) -> int:
    """The least that a sender can do: all of it as data, no FLUSH, a disconnect."""
    request = struct.Struct("!IHHQQI")
    data = Path(path).read_bytes()
    wire = socket.create_connection((host, int(port)))
    handshake = ClientHandshake("")
    while handshake.next_event() is None:
        handshake.receive_data(wire.recv(4096))
        wire.sendall(handshake.data_to_send())
    for offset in range(0, len(data), _SMALL_WINDOW):
        payload = data[offset : offset + _SMALL_WINDOW]
        header = request.pack(0x25609513, 0, Command.WRITE, offset, offset, len(payload))
        wire.sendall(header + payload)
        if wire.recv(16, socket.MSG_WAITALL)[4:8] != bytes(4):
            return 4
    wire.sendall(request.pack(0x25609513, 0, Command.DISC, 0, 0, 0))
    wire.shutdown(socket.SHUT_WR)
    return 0 if wire.recv(1) == b"" else 4


def _operate(arguments: list[str], points: Points, watch: _Watch, log: int, looks: bool) -> int:
    """What `cli.starting` does, with our calls and our endpoints."""
    if arguments[0] == "stranger":
        return _send_as_a_stranger(*arguments[1:])
    command, options = parse(arguments)
    from twisted.internet import reactor

    operation: Send | Receive | Serve
    system = VolatileCalls(points, options["file"], watch.sent, watch.send, looks)
    runtime = replace(Runtime.of(reactor), system=system)
    if command.name == "send":
        display = make_display("none")
        operation = Send(options, runtime, display, watch.client_endpoint)
    elif command.name == "serve":
        operation = Serve(options, runtime, watch.clients_endpoint, watch.client_endpoint)
        assert isinstance(points, StagedPoints)
        points.watch(operation, reactor)
    else:
        operation = Receive(options, runtime, watch.server_endpoint)
    gc.freeze()
    gc.enable()
    begin_logging(options, write_to(log))
    return run_operation(reactor, report(operation), operation.stop)


def _be_quick() -> None:
    sender.backoffPolicy = lambda: lambda failures: _PAUSE
    finisher._FIRST_DELAY = finisher._LONGEST_DELAY = _PAUSE
    finisher._PATIENCE = PATIENCE
    write_behind._WINDOW = _SMALL_WINDOW


def _child(
    arguments: list[str],
    log: Path,
    aside: Path,
    strike: Strike | None,
    record: Path | None,
    foreign: bool,
    looks: bool,
    up: int,
    down: int,
) -> NoReturn:
    """The whole life of a child."""
    gc.disable()  # as `cli.starting` does at the start
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    status = ORPHANED
    try:
        _be_quick()

        def tell(what: str) -> None:
            os.write(up, what.encode() + b"\n")

        kind = StagedPoints if arguments[0] == "serve" else Points
        points = kind(Journal(str(aside)), strike, tell, record is not None)

        def obey() -> None:
            while (kind := os.read(down, 64).decode()) == _GO_ON:
                points.go_on()
            if not kind:
                os._exit(ORPHANED)
            points.crash(kind)

        threading.Thread(target=obey, daemon=True).start()
        status = _operate(arguments, points, _Watch(points, foreign, tell), output, looks)
        points.ended(status)
        if record is not None:
            record.write_text(json.dumps(points.recorded))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


class Child:
    """A command in a process of its own.

    @param arguments: of `blockmig`.
    @param log: where its log goes, after what is there.
    @param aside: a directory for what it deletes.
    @param strike: where to strike it.
    @param record: where to keep its points, once it ended.
    @param foreign: have it see strange transports.
    @param looks: calls that only look at the disk are points too.
    @ivar status: its exit status, once it ended; negative for a signal.
    @ivar told: what it told: C{listening}, C{hung}, C{struck}, C{held}, C{broken}, C{too-late}.
    """

    _all: ClassVar[list[Child]] = []

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        aside: Path,
        *,
        strike: Strike | None = None,
        record: Path | None = None,
        foreign: bool = False,
        looks: bool = False,
    ) -> None:
        assert "twisted.internet.reactor" not in sys.modules, "fork before, not after"
        self.status: int | None = None
        self.told: set[str] = set()
        self._up, up = os.pipe()
        down, self._down = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for other in self._all:
                other._close()
            os.close(self._up)
            os.close(self._down)
            _child(arguments, log, aside, strike, record, foreign, looks, up, down)
        os.close(up)
        os.close(down)
        self._process = os.pidfd_open(self.pid)
        self._all.append(self)

    def _close(self) -> None:
        for descriptor in (self._up, self._down, self._process):
            os.close(descriptor)

    @property
    def alive(self) -> bool:
        """Whether it has not ended, as far as was looked."""
        return self.status is None

    @property
    def struck(self) -> bool:
        """Whether its strike has come."""
        return self.status == DIED or not self.told.isdisjoint(("hung", "struck", "held"))

    def _ended(self, status: int) -> None:
        self.status = os.waitstatus_to_exitcode(status)
        self._close()
        self._all.remove(self)

    def stop(self) -> None:
        """Freeze all of it."""
        if not self.alive:
            return
        os.kill(self.pid, signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            self._ended(status)

    def go_on(self) -> None:
        """Undo L{stop}."""
        if self.alive:
            os.kill(self.pid, signal.SIGCONT)

    def let_go(self) -> None:
        """Undo the hold at its strike."""
        if self.alive:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._down, _GO_ON.encode())

    def interrupt(self) -> None:
        """Ask it to stop, as its operator would."""
        if self.alive:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """kill -9."""
        if self.alive:
            os.kill(self.pid, signal.SIGKILL)
            self._ended(os.waitpid(self.pid, 0)[1])

    def fail(self, kind: str) -> None:
        """Have it die a death of this kind, wherever it is."""
        if self.alive:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._down, kind.encode())
            self._ended(os.waitpid(self.pid, 0)[1])


def wait(children: list[Child], until: Callable[[], bool], seconds: float) -> bool:
    """Look after children until something is so.

    @return: whether it was, in time.
    """
    end = time.monotonic() + seconds
    while not until():
        poll, owners = select.poll(), {}
        for child in children:
            if child.alive:
                for descriptor in (child._up, child._process):
                    poll.register(descriptor, select.POLLIN)
                    owners[descriptor] = child
        left = end - time.monotonic()
        if left <= 0 or not owners:
            return until()
        for descriptor, _ in poll.poll(left * 1000):
            child = owners[descriptor]
            if not child.alive:
                continue
            if descriptor == child._up:
                text = os.read(descriptor, 4096).decode()
                child.told.update(text.split())
                if text:
                    continue
            child._ended(os.waitpid(child.pid, 0)[1])
    return True
