"""What a child process runs: the real commands, with our calls and our endpoints.

Only what makes a run short is not the product's own: the seconds between tries, those for which a
receiver that has acknowledged everything is looked for, and the window of the write-behind, which
no small disk would ever fill.
"""

from __future__ import annotations

import gc
import importlib
import socket
import struct
from dataclasses import replace
from pathlib import Path

from blockmig.cli.commands import parse
from blockmig.cli.logs import begin_logging, line_writer
from blockmig.cli.operations import report, run_operation
from blockmig.cli.progress import make_display
from blockmig.cli.receive_operation import ReceiveOperation
from blockmig.cli.send_operation import SendOperation
from blockmig.cli.serve_operation import ServeOperation
from blockmig.migration.destination import write_behind
from blockmig.migration.source import finisher, sender
from blockmig.nbd import ClientHandshake, Command
from blockmig.runtime import Runtime
from tests.proof.launcher.mirror_points import MirrorPoints
from tests.proof.launcher.watched import Watch
from tests.proof.volatile import Points, VolatileCalls

for _name in ("default", "endpoints", "epollreactor", "tcp", "threads", "udp", "unix"):
    # The children must not have to import it each time.
    importlib.import_module(f"twisted.internet.{_name}")

_PAUSE = 0.05
PATIENCE = 3.0
"""Seconds for which a sender looks for a receiver that has acknowledged everything."""
_SMALL_WINDOW = 256 << 10


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


def run_command(arguments: list[str], points: Points, watch: Watch, log: int, looks: bool) -> int:
    """What `cli.launch` does, with our calls and our endpoints."""
    if arguments[0] == "stranger":
        return _send_as_a_stranger(*arguments[1:])
    command, options = parse(arguments)
    from twisted.internet import reactor

    operation: SendOperation | ReceiveOperation | ServeOperation
    system = VolatileCalls(points, options["file"], watch.sent, watch.send, looks)
    runtime = replace(Runtime.of(reactor), system=system)
    if command.name == "send":
        display = make_display("none")
        operation = SendOperation(options, runtime, display, watch.client_endpoint)
    elif command.name == "serve":
        operation = ServeOperation(options, runtime, watch.clients_endpoint, watch.client_endpoint)
        assert isinstance(points, MirrorPoints)
        points.watch(operation, reactor)
    else:
        operation = ReceiveOperation(options, runtime, watch.server_endpoint)
    gc.freeze()
    gc.enable()
    begin_logging(options, line_writer(log))
    return run_operation(reactor, report(operation), operation.stop)


def shorten_waits() -> None:
    for module, name, value in (
        (sender, "_usual_delay", lambda failures: _PAUSE),
        (finisher, "_FIRST_DELAY", _PAUSE),
        (finisher, "_LONGEST_DELAY", _PAUSE),
        (finisher, "_SEARCH_TIME", PATIENCE),
        (write_behind, "_WINDOW", _SMALL_WINDOW),
    ):
        assert hasattr(module, name), f"{module.__name__} has no {name} any more"
        setattr(module, name, value)
