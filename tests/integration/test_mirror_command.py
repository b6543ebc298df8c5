"""`mirror`, `break` and `rate` as their users see them, with a server that only talks.


It answers on a real control socket as it is told to, so that every end that a mirror may come to
is seen, however rare.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.processes import BLOCKMIG, FULL, ITS_OWN, Processes, Running, until

URI = "nbd://127.0.0.1:10809/web"

# Answers to each resource are given in files: it takes the one that is there, or waits for one.
PROGRAM = """
import json, os, signal, sys
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from blockmig.control import ControlRefused
from blockmig.control.server import open_control

room = sys.argv[1]

def found(name):
    try:
        with open(os.path.join(room, name + ".answer")) as file:
            return json.load(file)
    except FileNotFoundError:
        return None

def route(name):
    async def answer(body):
        print(json.dumps([name, body]), flush=True)
        while (answer := found(name)) is None:
            await deferLater(reactor, 0.02)
        if answer == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if "refused" in answer:
            raise ControlRefused(answer["refused"], answer.get("http", 409))
        return answer
    return answer

def status():
    return found("status") or {}

async def run():
    names = ("mirror", "mirror/wait", "break", "rate")
    routes = {("POST", f"/{name}"): route(name.replace("/", "-")) for name in names}
    await open_control(reactor, os.path.join(room, "control"), status, routes)
    print('["open", null]', flush=True)

reactor.callWhenRunning(lambda: Deferred.fromCoroutine(run()))
reactor.run()
"""

MIRROR: dict[str, Any] = {
    "state": "copying",
    "destination": URI,
    "zeroes": 100,
    "left": 600,
    "attempts": 1,
    "last_error": "",
    "converging": True,
}


class Server:
    """The server that only talks."""

    def __init__(self, processes: Processes, room: Path) -> None:
        self.control = room / "control"
        self.disk = str(room / "disk")
        self._room = room
        self._processes = processes
        self.running = processes.start(sys.executable, "-c", PROGRAM, room)
        self.wait_asked("open")

    def answers(self, name: str, answer: Any) -> None:
        path = self._room / f"{name}.answer"
        path.with_suffix(".new").write_text(json.dumps(answer))
        path.with_suffix(".new").rename(path)

    def stands(self, **changes: Any) -> None:
        self.answers("status", {"size": 1000, "disk": self.disk, "mirror": {**MIRROR, **changes}})

    @property
    def asked(self) -> list[tuple[str, Any]]:
        lines = self.running.stdout.splitlines(keepends=True)
        asked = [json.loads(line) for line in lines if line.endswith("\n")]
        return [(name, body) for name, body in asked if name != "open"]

    def wait_asked(self, name: str) -> None:
        until(lambda: f'["{name}"' in self.running.stdout, what=self.running.stderr)

    def start(self, command: str, *more: str | Path) -> Running:
        return self._processes.start(BLOCKMIG, command, "--control", self.control, *more)

    def run(self, command: str, *more: str | Path) -> Running:
        return self._processes.run(BLOCKMIG, command, "--control", self.control, *more, timeout=20)


@pytest.fixture
def server(processes: Processes, room: Path) -> Iterator[Server]:
    made = Server(processes, room)
    made.answers("mirror", {"destination": URI, "attempt": 1})
    yield made
    assert made.running.stderr == ""


def assert_one_line(text: str, *words: str) -> None:
    assert text.count("\n") == 1, text
    for word in words:
        assert word in text, text


# Without waiting for the end.


def test_mirror_reports_that_it_has_begun_and_exits(server: Server) -> None:
    began = time.monotonic()
    ended = server.run(
        "mirror", URI, "--unlink", "--max-rate", "1M", "--max-pause=20", "--timeout=7"
    )
    assert time.monotonic() - began < 10
    assert (ended.status, ended.stdout) == (0, "")
    assert_one_line(ended.stderr, f"the mirror to {URI} has begun")
    assert server.asked == [
        (
            "mirror",
            {
                "uri": URI,
                "unlink": True,
                "again": False,
                "overwrite": False,
                "plain": False,
                "id": "",
                "secret": "",
                "max_rate": 1 << 20,
                "max_pause": 0.02,
                "timeout": 7,
                "converge": "wait",
                "then": "exit",
                "relay_to": None,
                "linger": None,
            },
        )
    ]


def test_mirror_waits_for_a_late_acceptance(server: Server, room: Path) -> None:
    """A slow destination is waited for even with --no-wait."""
    (room / "mirror.answer").unlink()
    running = server.start("mirror", URI, "--no-wait", "-q")
    server.wait_asked("mirror")
    time.sleep(0.4)
    assert running.status is None
    server.answers("mirror", {"destination": URI, "attempt": 1})
    assert running.wait() == 0
    assert running.stderr == ""


@pytest.mark.parametrize("wait", ["--wait", "--no-wait"])
def test_a_refused_mirror_exits_with_status_1(server: Server, wait: str) -> None:
    server.answers("mirror", {"refused": "the export is smaller than the disk"})
    ended = server.run("mirror", URI, wait)
    assert (ended.status, ended.stdout) == (1, "")
    assert_one_line(ended.stderr, "error: the export is smaller than the disk")
    ended = server.run("mirror", URI, wait, "--log-format", "json")
    (event,) = ended.events()
    assert (event["event"], event["status"]) == ("error", 1)
    assert event["why"] == "the export is smaller than the disk"


@pytest.mark.parametrize("wait", ["--wait", "--no-wait"] if FULL else ["--wait"])
def test_a_missing_control_socket_exits_with_status_1(
    processes: Processes, room: Path, wait: str
) -> None:
    ended = processes.run(BLOCKMIG, "mirror", "--control", room / "none", URI, wait)
    assert (ended.status, ended.stdout) == (1, "")
    assert_one_line(ended.stderr, f"there is no control socket at {room / 'none'}")


@pytest.mark.parametrize("wait", ["--wait", "--no-wait"] if FULL else ["--no-wait"])
def test_a_server_that_dies_before_it_answers_exits_with_status_5(
    server: Server, wait: str
) -> None:
    server.answers("mirror", "die")
    ended = server.run("mirror", URI, wait)
    assert (ended.status, ended.stdout) == (5, "")
    assert_one_line(ended.stderr, "without an answer", "`blockmig inspect DISK`")


def test_bad_usage_sends_no_request(server: Server) -> None:
    for arguments in (
        ["http://x/"],
        [URI, "--relay-to", URI],
        [URI, "--then", "relay", "--relay-to", "nowhere"],
        [URI, "--wait", "--no-wait"],
    ):
        ended = server.run("mirror", *arguments)
        assert (ended.status, ended.stdout) == (1, "")
        assert_one_line(ended.stderr, "blockmig: ")
    assert server.asked == []


def test_an_interrupt_before_the_start_exits_with_status_4(server: Server, room: Path) -> None:
    (room / "mirror.answer").unlink()
    running = server.start("mirror", URI)
    server.wait_asked("mirror")
    running.signal(signal.SIGINT)
    assert running.wait() == 4
    assert_one_line(running.stderr, f"`blockmig break --control {server.control}`")


# Waiting for the end.


def wait_for(server: Server, *options: str) -> Running:
    running = server.start("mirror", URI, "--wait", "--log-format", "json", *options)
    server.wait_asked("mirror-wait")
    return running


def test_progress_and_the_summary_are_printed_as_JSON(server: Server) -> None:
    server.stands()
    running = wait_for(server, "--progress", "json")

    def shown() -> list[tuple[int, ...]]:
        lines = [line for line in running.stdout.splitlines(keepends=True) if line.endswith("\n")]
        names = ("attempt", "done", "total", "data", "zeroes")
        return [tuple(json.loads(line)[name] for name in names) for line in lines]

    until(lambda: (1, 400, 1000, 300, 100) in shown())
    server.stands(attempts=2, left=300, last_error="the connection was lost")
    until(lambda: (2, 700, 1000, 600, 100) in shown())
    assert running.wait_event("restart")["why"] == "the connection was lost"
    assert running.status is None
    summary = {"bytes": 1000, "data": 1800, "zeroes": 100, "seconds": 2.5, "attempts": 2}
    server.answers("mirror-wait", {"status": 0, "message": "complete", "summary": summary})
    assert running.wait() == 0
    assert shown()[-1] == (2, 1000, 1000, 900, 100)
    assert [event["event"] for event in running.events()] == [
        "mirroring",
        "attempt",
        "restart",
        "attempt",
        "complete",
    ]
    event = running.wait_event("complete")
    assert {name: event[name] for name in summary} == summary
    assert event["message"] == (
        "complete: 1000 bytes (1800 of data, 100 of zeroes) in 2.50 s, 0.0 MB/s of data, "
        "2 attempt(s)"
    )


@pytest.mark.parametrize("progress", ["bar", "none", "auto"] if FULL else ["bar"])
def test_other_displays_end_with_the_summary(server: Server, progress: str) -> None:
    server.stands()
    running = server.start("mirror", URI, "--wait", "--progress", progress)
    server.wait_asked("mirror-wait")
    time.sleep(0.3)
    summary = {"bytes": 1000, "data": 900, "zeroes": 100, "seconds": 2.5, "attempts": 1}
    server.answers("mirror-wait", {"status": 0, "message": "complete", "summary": summary})
    assert running.wait() == 0
    assert running.stdout == ""
    assert running.stderr.count("complete: 1000 bytes") == 1


@pytest.mark.parametrize("status", [1, 3, 4, 5] if FULL else [3])
def test_the_exit_status_is_the_one_that_the_server_reports(server: Server, status: int) -> None:
    answer = {"status": status, "message": "no space left on device", "summary": None}
    server.answers("mirror-wait", answer)
    ended = server.run("mirror", URI, "--wait", "--log-format=json")
    assert (ended.status, ended.stdout) == (status, "")
    (event,) = ended.events("error")
    assert (event["why"], event["status"]) == ("no space left on device", status)


@pytest.mark.parametrize("known", [False, True])
def test_a_server_that_dies_during_the_wait_exits_with_status_5(
    server: Server, known: bool
) -> None:
    if known:
        server.stands()
    running = wait_for(server, "--progress", "json")
    if known:
        until(lambda: running.stdout)
    server.running.kill()
    assert running.wait() == 5
    (event,) = running.events("error")
    assert "the server ended without reporting how the mirror ended" in event["why"]
    disk = server.disk if known else "DISK"
    assert f"`blockmig inspect {disk}` says which copy is canonical" in event["why"]
    assert "Traceback" not in running.stderr


def test_a_failed_status_request_does_not_matter(server: Server, room: Path) -> None:
    running = wait_for(server, "--progress", "json")
    server.answers("status", ["no status"])
    time.sleep(1.5)
    server.stands()
    until(lambda: running.stdout)
    server.answers("mirror-wait", {"status": 0, "message": "it was finished", "summary": None})
    assert running.wait() == 0
    assert running.wait_event("complete")["message"] == "it was finished"


@pytest.mark.parametrize("number", [signal.SIGINT, *([signal.SIGTERM] if FULL else [])])
def test_a_signal_ends_the_wait_and_the_mirror_continues(
    server: Server, number: signal.Signals
) -> None:
    server.stands()
    running = wait_for(server, "--progress", "json")
    until(lambda: running.stdout)
    running.signal(number)
    began = time.monotonic()
    assert running.wait() == 4
    assert time.monotonic() - began < 5, "the thread that asks was waited for"
    (event,) = running.events("error")
    assert number.name in event["why"]
    assert f"`blockmig break --control {server.control}` cancels it" in event["why"]
    assert [name for name, _ in server.asked] == ["mirror", "mirror-wait"]
    assert server.running.status is None


def test_a_signal_before_the_start_exits_with_status_4(server: Server, room: Path) -> None:
    (room / "mirror.answer").unlink()
    running = server.start("mirror", URI, "--wait")
    server.wait_asked("mirror")
    running.signal(signal.SIGTERM)
    assert running.wait() == 4
    assert_one_line(running.stderr, "the mirror goes on")


# The others.


def test_break_prints_nothing_or_the_refusal(server: Server) -> None:
    server.answers("break", {})
    ended = server.run("break")
    assert (ended.status, ended.stderr) == (0, "")
    server.answers("break", {"refused": "it is too late: the source was retired"})
    ended = server.run("break")
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr == "blockmig: it is too late: the source was retired\n"
    assert server.asked == [("break", {})] * 2


def test_rate_prints_the_limit_or_the_refusal(server: Server) -> None:
    for text, rate, said in (("100M", 100 << 20, "at most 100 MiB/s"), ("none", None, "no limit")):
        server.answers("rate", {"max_rate": rate})
        ended = server.run("rate", text)
        assert (ended.status, ended.stdout, ended.stderr) == (0, said + "\n", "")
        assert server.asked[-1] == ("rate", {"max_rate": rate})
    server.answers("rate", {"refused": "nothing is being mirrored"})
    ended = server.run("rate", "1M")
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr == "blockmig: nothing is being mirrored\n"


@pytest.mark.parametrize("command", [["break"], *([["rate", "1M"]] if FULL else [])])
def test_break_and_rate_without_a_server_exit_with_status_1(
    processes: Processes, room: Path, command: list[str]
) -> None:
    ended = processes.run(BLOCKMIG, *command, "--control", room / "none")
    assert (ended.status, ended.stdout) == (1, "")
    assert_one_line(ended.stderr, "blockmig: there is no control socket")


def test_an_interrupted_break_exits_with_status_4(server: Server) -> None:
    running = server.start("break")
    server.wait_asked("break")
    running.signal(signal.SIGINT)
    assert running.wait() == 4
    assert running.stderr == "blockmig: stopped by SIGINT\n"


def test_status_shows_the_mirror(server: Server) -> None:
    server.stands(state="holding")
    ended = server.run("status")
    assert f"mirror: holding, to {URI}" in ended.stdout
    ended = server.run("status", "--json")
    assert json.loads(ended.stdout)["mirror"] == {**MIRROR, "state": "holding"}


def test_commands_that_do_not_wait_import_no_reactor(processes: Processes, server: Server) -> None:
    server.answers("break", {})
    server.answers("rate", {"max_rate": None})
    program = (
        "import atexit, sys\n"
        "from blockmig.cli.main import main\n"
        "unwanted = {'twisted.internet.reactor', 'twisted.web', 'blockmig.cli.operations',\n"
        "  'blockmig.cli.mirror_operation', 'blockmig.cli.serve_operation'}\n"
        "atexit.register(lambda: print(*(unwanted & set(sys.modules))))\n"
        "main(sys.argv[1:])\n"
    )
    for arguments in (["mirror", URI], ["break"], ["rate", "none"]):
        asked = [*ITS_OWN, program, *arguments, "--control", str(server.control)]
        ended = processes.run(*asked)
        assert ended.status == 0, ended.stderr
        assert ended.stdout.splitlines()[-1] == "", arguments
