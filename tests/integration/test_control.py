"""The control socket, socket activation and notification, between real processes.

What runs here is a small program around `open_control` (and around the endpoints that a service
manager's sockets become), so that these are tested by themselves.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import ITS_OWN, Processes, Running, until

from blockmig.cli.status import run as run_status
from blockmig.control import ControlError, ControlLost, ControlRefused, ask, client

PROGRAM = """
import os, signal, sys, time
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from blockmig.control import ControlError, ControlRefused
from blockmig.control.server import open_control

path, *start = sys.argv[1:]
os.umask(0)
counts = {"asked": 0}
port = None

def status():
    counts["asked"] += 1
    return {"role": "serve", "pid": os.getpid(), **counts}

def refuse(body):
    raise ControlRefused(f"not {body}", 409)

def say(line):
    print(line, flush=True)

async def run():
    global port
    while start and not os.path.exists(start[0]):
        time.sleep(0.0001)
    try:
        port = await open_control(
            reactor, path, status,
            {("POST", "/echo"): lambda body: body,
             ("POST", "/slow"): lambda body: deferLater(reactor, body, lambda: "slow"),
             ("POST", "/refuse"): refuse},
            connections=4)
    except ControlError as error:
        say(f"refused: {error}")
        reactor.stop()
        return
    say("open")
    signal.signal(signal.SIGTERM, lambda *_: reactor.callFromThread(end))

def end():
    Deferred.fromCoroutine(port.close()).addCallback(lambda _: say("closed")).addCallback(
        lambda _: reactor.stop())

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(run()))
reactor.run(installSignalHandlers=False)
"""


@pytest.fixture
def start(processes: Processes) -> Callable[..., Running]:
    """Starts the program, and waits until it is open or refused."""

    def begin(path: Path, *more: Path, prefix: tuple[str, ...] = ()) -> Running:
        running = processes.start(sys.executable, "-c", PROGRAM, path, *more, prefix=prefix)
        if not more:
            until(
                lambda: running.stdout.endswith("\n") or running.status is not None,
                what=running.stderr,
            )
            assert running.stderr == ""
        return running

    return begin


def names(room: Path) -> list[str]:
    return sorted(path.name for path in room.iterdir() if not path.name.startswith("process-"))


def listening(path: Path, backlog: int = 5) -> socket.socket:
    handle = socket.socket(socket.AF_UNIX)
    handle.bind(str(path))
    handle.listen(backlog)
    return handle


def test_a_control_socket_answers_and_is_removed_at_the_end(
    start: Callable[..., Running], room: Path
) -> None:
    path = room / "control"
    running = start(path)
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    assert ask(str(path), "GET", "/status") == {"role": "serve", "pid": running.pid, "asked": 1}
    assert ask(str(path), "POST", "/echo", {"ä": [1, None]}) == {"ä": [1, None]}
    for method, resource, body, status, words in (
        ("GET", "/none", None, 404, "there is no '/none'"),
        ("POST", "/status", {}, 405, "GET only"),
        ("POST", "/refuse", "me", 409, "not me"),
        ("POST", "/echo", "x" * 10_000_000, 413, "at most 1048576 bytes"),
    ):
        with pytest.raises(ControlRefused, match=words) as caught:
            ask(str(path), method, resource, body)
        assert caught.value.http_status == status
    running.signal(signal.SIGTERM)
    assert running.wait() == 0
    assert (running.stdout, running.stderr) == ("open\nclosed\n", "")
    assert names(room) == []


def test_a_live_control_socket_is_not_taken(start: Callable[..., Running], room: Path) -> None:
    path = room / "control"
    first = start(path)
    before = path.lstat().st_ino
    second = start(path)
    assert second.stdout == f"refused: {path} is in use: another process listens there\n"
    assert second.wait() == 0
    assert path.lstat().st_ino == before
    assert ask(str(path), "GET", "/status")["pid"] == first.pid


def test_a_socket_of_another_program_is_not_taken(
    start: Callable[..., Running], room: Path
) -> None:
    path = room / "control"
    with listening(path):
        assert "in use" in start(path).stdout
        assert names(room) == ["control"]


def test_a_dead_control_socket_is_replaced(start: Callable[..., Running], room: Path) -> None:
    path = room / "control"
    for _ in range(3):
        running = start(path)
        assert running.stdout == "open\n"
        running.kill()
        assert names(room) == ["control", "control.lock"]
    running = start(path)
    assert ask(str(path), "GET", "/status")["pid"] == running.pid
    running.signal(signal.SIGTERM)
    running.wait()
    assert names(room) == []


def test_a_dead_control_socket_whose_process_id_was_reused_is_replaced(
    start: Callable[..., Running], room: Path
) -> None:
    path = room / "control"
    start(path).kill()
    (room / "control.lock").unlink()
    (room / "control.lock").symlink_to(str(os.getpid()))
    running = start(path)
    assert running.stdout == "open\n"
    assert os.readlink(room / "control.lock") == str(running.pid)


def test_locks_are_shared_with_UNIX_endpoints_of_Twisted(
    processes: Processes, start: Callable[..., Running], room: Path
) -> None:
    """A socket that a UNIX endpoint of Twisted left, and one of ours that Twisted finds."""
    path = room / "control"
    program = (
        "from twisted.internet import reactor, endpoints, protocol\n"
        f"d = endpoints.serverFromString(reactor, 'unix:{path}').listen(protocol.Factory())\n"
        "d.addBoth(lambda result: print(result, flush=True))\n"
        "reactor.run()\n"
    )
    theirs = processes.start(sys.executable, "-c", program)
    until(lambda: theirs.stdout)
    assert "in use" in start(path).stdout
    theirs.kill()
    ours = start(path)
    assert ours.stdout == "open\n"
    theirs = processes.start(sys.executable, "-c", program)
    until(lambda: "Cannot acquire lock" in theirs.stdout)
    assert ask(str(path), "GET", "/status")["pid"] == ours.pid


def test_a_file_that_is_no_socket_is_not_replaced(
    start: Callable[..., Running], room: Path
) -> None:
    path = room / "control"
    path.write_text("precious")
    assert start(path).stdout.startswith(f"refused: {path} is something else")
    assert path.read_text() == "precious"
    assert names(room) == ["control"]


def test_of_many_that_start_at_once_one_gets_the_socket(
    start: Callable[..., Running], room: Path
) -> None:
    """Others left a socket and a lock behind; all but one process are refused, and say so."""
    path, go = room / "control", room / "go"
    for turn in range(3):
        if turn:
            path.unlink(missing_ok=True)
            listening(path).close()
            (room / "control.lock").unlink(missing_ok=True)
            (room / "control.lock").symlink_to(str(2**30))
        starters = [start(path, go) for _ in range(8)]
        time.sleep(1.0)
        go.touch()
        until(lambda starters=starters: all(each.stdout for each in starters))
        (winner,) = [each for each in starters if each.stdout == "open\n"]
        for each in starters:
            if each is not winner:
                assert "is in use" in each.stdout
                assert each.wait() == 0
        assert ask(str(path), "GET", "/status")["pid"] == winner.pid
        assert os.readlink(room / "control.lock") == str(winner.pid)
        winner.kill()
        go.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else takes root")
def test_no_other_user_may_connect(
    processes: Processes, start: Callable[..., Running], room: Path
) -> None:
    room.chmod(0o755)
    path = room / "control"
    start(path)
    # Becomes somebody else only when it runs: an interpreter in /root may be root's alone.
    program = (
        "import os, socket, sys\n"
        "client = socket.socket(socket.AF_UNIX)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: client.connect(sys.argv[1])\n"
        "except OSError as error: print(os.strerror(error.errno))\n"
    )
    asked = processes.run(sys.executable, "-I", "-c", program, path)
    assert asked.stdout == "Permission denied\n", asked.stderr


def test_connections_beyond_the_maximum_get_no_answer(
    start: Callable[..., Running], room: Path
) -> None:
    path = str(room / "control")
    start(Path(path))
    idle = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    for handle in idle:
        handle.connect(path)
    with pytest.raises(ControlError, match="without an answer"):
        ask(path, "GET", "/status")
    for handle in idle:
        handle.close()
    until(lambda: _asked(path))


def _asked(path: str) -> Any:
    try:
        return ask(path, "GET", "/status")
    except ControlError:
        return None


def test_a_client_that_leaves_does_not_disturb_the_server(
    start: Callable[..., Running], room: Path
) -> None:
    path = str(room / "control")
    running = start(Path(path))
    with pytest.raises(ControlLost, match=r"no answer on .* within 0\.2 s"):
        ask(path, "POST", "/slow", 0.5, timeout=0.2)
    assert ask(path, "POST", "/slow", 0.5) == "slow"
    assert running.stderr == ""


def test_an_answer_may_take_longer_than_a_connection(
    start: Callable[..., Running], room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also without any limit, for as long as the server lives."""
    monkeypatch.setattr(client, "_CONNECT_TIMEOUT", 0.3)
    path = str(room / "control")
    running = start(Path(path))
    assert ask(path, "POST", "/slow", 0.8, timeout=20) == "slow"
    assert ask(path, "POST", "/slow", 0.8, timeout=None) == "slow"
    threading.Timer(0.5, running.kill).start()
    with pytest.raises(ControlLost, match="without an answer"):
        ask(path, "POST", "/slow", 60, timeout=None)
    running.process.wait(20)  # until then its socket may still take connections
    with pytest.raises(ControlError, match="nobody listens") as caught:
        ask(path, "POST", "/slow", 60, timeout=None)
    assert not isinstance(caught.value, ControlLost)


def test_a_connection_is_waited_for_only_briefly(
    room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_CONNECT_TIMEOUT", 0.3)
    path = str(room / "control")
    with listening(Path(path), backlog=0), socket.socket(socket.AF_UNIX) as other:
        other.connect(path)
        for timeout in (20, None):
            with pytest.raises(ControlError, match=r"no connection to .* within 0\.3 s"):
                ask(path, "GET", "/status", timeout=timeout)


def test_each_reason_for_a_missing_server_is_reported(room: Path) -> None:
    path = room / "control"

    def why() -> str:
        began = time.monotonic()
        with pytest.raises(ControlError) as caught:
            ask(str(path), "GET", "/status", timeout=0.3)
        assert time.monotonic() - began < 5
        assert "\n" not in str(caught.value)
        assert str(path)[:100] in str(caught.value)
        return str(caught.value)

    assert "there is no control socket" in why()
    with listening(path, backlog=0):
        assert "no answer" in why()
        assert "no connection" in why()  # the queue is full
    assert "nobody listens" in why()
    path.unlink()
    path.write_text("")
    assert "is not a socket" in why()
    path = Path("/" + "x" * 200)
    assert "too long" in why()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"NBDMAGICIHAVEOPT\0\3", "not a control socket"),
        (b"", "without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "not a control socket"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}", "not a control socket"),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 2\r\n\r\n[]", "HTTP status 502"),
    ],
)
def test_strange_answers_are_reported_as_errors(room: Path, answer: bytes, words: str) -> None:
    path = room / "control"

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with listening(path) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(ControlError, match=words):
            ask(str(path), "GET", "/status", timeout=5)
        thread.join()


def test_a_denied_permission_is_reported(processes: Processes, room: Path) -> None:
    path = room / "control"
    program = "import sys; from blockmig.control import ask; ask(sys.argv[1], 'GET', '/status')"
    with listening(path):
        path.chmod(0)
        capabilities = ("--bounding-set", "-dac_override,-dac_read_search,-fowner")
        prefix = capabilities if os.geteuid() == 0 else ()
        asked = processes.run(sys.executable, "-c", program, path, prefix=prefix)
    assert asked.stderr.endswith("may only be used by its owner: permission denied\n")


def test_the_status_command_prints_text_or_JSON(
    start: Callable[..., Running], room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = room / "control"
    options = {"control": str(path), "json": False}
    assert run_status(options) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"blockmig: there is no control socket at {path}\n")
    running = start(path)
    assert run_status(options) == 0
    assert f"pid {running.pid}, up" in capsys.readouterr().out
    assert run_status(options | {"json": True}) == 0
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert json.loads(out)["asked"] == 2


def test_the_status_command_imports_neither_web_nor_reactor(processes: Processes) -> None:
    program = (
        "import sys, blockmig.control, blockmig.cli.status\n"
        "found = {'twisted.web', 'twisted.internet.reactor'} & set(sys.modules)\n"
        "assert not found, found\n"
    )
    processes.checked(*ITS_OWN, program)


ACTIVATED = """
import os, signal, sys
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.protocol import Factory, Protocol
from blockmig.cli.systemd import (
    BadActivation, Notifier, activated_endpoints, initial_environment)

class Greets(Protocol):
    def connectionMade(self):
        self.transport.write(f"{os.getpid()} {self.transport.getHost()}".encode())
        self.transport.loseConnection()

def end(*_):
    notifier.stopping()
    reactor.callFromThread(
        lambda: gatherResults([port.stopListening() for port in ports if port]).addBoth(
            lambda result: print(result, flush=True) or reactor.stop()))

notifier = Notifier(os.environ)
try:
    endpoints = activated_endpoints(reactor, os.environ, initial_environment())
except BadActivation as error:
    sys.exit(str(error))
left = sorted(name for name in os.environ if name.startswith("LISTEN"))
ports = []
for endpoint in endpoints:
    endpoint.listen(Factory.forProtocol(Greets)).addCallback(ports.append)
signal.signal(signal.SIGTERM, end)
print(len(ports), left, sorted(os.listdir("/proc/self/fd")).count("3"), flush=True)
notifier.ready("greeting")
reactor.run(installSignalHandlers=False)
"""


class Manager:
    """Like systemd, keeps sockets open and passes them to one process after the other."""

    def __init__(self, *sockets: socket.socket) -> None:
        self._sockets = sockets
        self.process: subprocess.Popen[str] | None = None

    def start(self, **environment: str) -> subprocess.Popen[str]:
        # Above all others first, so that none is overwritten before it was moved.
        moves = "".join(
            f"os.dup2({each.fileno()}, {200 + number}); "
            for number, each in enumerate(self._sockets)
        ) + "".join(
            f"os.dup2({200 + number}, {3 + number}); " for number in range(len(self._sockets))
        )
        shift = (
            f"import os, sys; {moves}os.closerange({3 + len(self._sockets)}, 300); "
            "script = 'export LISTEN_PID=$$; exec \"$@\"'; "
            "os.execvp('sh', ['sh', '-c', script, 'sh', *sys.argv[1:]])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", shift, sys.executable, "-c", ACTIVATED],
            pass_fds=[each.fileno() for each in self._sockets],
            env={**os.environ, "LISTEN_FDS": str(len(self._sockets)), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.process

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for each in self._sockets:
            each.close()


@pytest.fixture
def manager(room: Path) -> Iterator[Manager]:
    """Of one TCP socket, and of two UNIX sockets, one of which has no file."""
    first = socket.create_server(("127.0.0.1", 0))
    second = listening(room / "activated")
    (room / "activated").chmod(0o600)
    third = socket.socket(socket.AF_UNIX)
    third.bind("")
    third.listen(5)
    made = Manager(first, second, third)
    yield made
    made.end()


def greeting(to: socket.socket) -> str:
    with socket.socket(to.family) as handle:
        handle.settimeout(20)
        handle.connect(to.getsockname())
        text = b""
        while more := handle.recv(1000):
            text += more
        return text.decode()


def test_passed_sockets_are_used_by_one_process_after_another(manager: Manager, room: Path) -> None:
    """The file of the socket stays, with its mode."""
    path = room / "activated"
    before = path.lstat()
    for _ in range(2):
        process = manager.start()
        assert process.stdout is not None
        assert process.stdout.readline().startswith("3 [] ")
        for number in (0, 1, 2, 1, 0):
            assert greeting(manager._sockets[number]).split()[0] == str(process.pid)
        assert "activated" in greeting(manager._sockets[1])
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (0, "[None, None, None]\n", "")
        now = path.lstat()
        assert (now.st_mode, now.st_ino) == (before.st_mode, before.st_ino)


def test_bad_activation_variables_are_refused(manager: Manager) -> None:
    """The variables are a parent's, which did not remove them."""
    process = manager.start(LISTEN_FDS="x")
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (
        1,
        "socket activation: LISTEN_FDS is 'x', which is not a number\n",
    )
    process = manager.start(LISTEN_FDS="4")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert err.startswith("socket activation: descriptor 6 ")
    assert err.count("\n") == 1


def test_the_service_manager_is_notified(manager: Manager, room: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(room / "notify"))
        told.settimeout(20)
        process = manager.start(NOTIFY_SOCKET=str(room / "notify"))
        assert told.recv(1000).decode().split("\n") == [
            "READY=1",
            f"MAINPID={process.pid}",
            "STATUS=greeting",
        ]
        process.send_signal(signal.SIGTERM)
        assert told.recv(1000) == b"STOPPING=1"
        assert process.wait(20) == 0
