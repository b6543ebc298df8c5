"""The receiver that `move` starts through ssh; the ssh process is scripted."""

from __future__ import annotations

import json
import os
import shlex

from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.direct_tls import NO_ADDRESS
from blockmig.cli.far_receiver import FarFailed, FarReceiver
from blockmig.cli.remote_place import RemotePlace
from blockmig.cli.tunnel import Tunnel, remote_script
from blockmig.cli.way import NoWay
from blockmig.errors import AlreadyDone, GaveUp, LocalFailure, Refused
from blockmig.nbd import NBDURI

SECRET = b"not to be seen in any argument"


class Process:
    """An ssh process, and its transport."""

    def __init__(self, protocol, words):
        self.protocol = protocol
        self.words = words
        self.written = b""
        self.input_closed = False
        self.signals = []

    def write(self, data):
        self.written += data

    def closeStdin(self):
        self.input_closed = True

    def signalProcess(self, name):
        self.signals.append(name)

    def say(self, *lines):
        for line in lines:
            text = line if isinstance(line, str) else json.dumps(line)
            self.protocol.errReceived(text.encode() + b"\n")

    def event(self, name, level="info", **fields):
        self.say({"time": 1.0, "level": level, "event": name, "message": f"{name}!", **fields})

    def end(self, status=0, signal=None):
        status = None if signal else status
        reason = ProcessTerminated(status, signal, 0) if status or signal else ProcessDone(0)
        self.protocol.processExited(Failure(reason))
        self.protocol.processEnded(Failure(reason))


class Reactor(Clock):
    """A clock that starts processes."""

    def __init__(self):
        super().__init__()
        self.processes = []

    def spawnProcess(self, protocol, executable, words, env):
        process = Process(protocol, words)
        self.processes.append(process)
        protocol.transport = process
        protocol.connectionMade()


class NarrowWay:
    """Leads there when the test says so, and takes whatever is wrong for its own fault."""

    forwards = False
    missing = None

    def __init__(self):
        self.uris = []
        self.opened = self.uris.append
        self.reached = Deferred()

    def ssh_options(self):
        return ["-x"]

    def script(self, command, arguments):
        return command

    def input(self, secret):
        if self.missing is not None:
            raise self.missing
        return secret + b"\n"

    def judged(self, error):
        return error if isinstance(error, NoWay) else NoWay(str(error), "judged")

    async def reach(self):
        return await self.reached

    def close(self):
        pass


class Case(SynchronousTestCase):
    def setUp(self):
        self.reactor = Reactor()
        self.ends = []
        self.waiting = []
        self.far = self.made("sh")
        self.addCleanup(self.cleaned)

    def made(self, *ssh):
        return FarReceiver(
            self.reactor,
            RemotePlace("root@[2001:db8::7]", "/x/web.img"),
            ssh=ssh,
            command="sudo blockmig",
            arguments=lambda: ["--file=/x/it's", "--id=one"],
            secret=SECRET,
            way=self.made_way(),
            on_end=self.ends.append,
        )

    def made_way(self):
        return Tunnel(self.id()[-16:])

    def cleaned(self):
        closing = Deferred.fromCoroutine(self.far.close(complete=False))
        for _ in range(3):
            self.reactor.advance(20)
        self.successResultOf(closing)
        for one in self.waiting:
            one.addErrback(lambda _: None)

    def connecting(self):
        self.waiting.append(Deferred.fromCoroutine(self.far.reached()))
        return self.waiting[-1]

    @property
    def process(self):
        return self.reactor.processes[-1]

    def ended(self, *lines, status=0, signal=None, kind=FarFailed):
        """What a receiver's end means, that has said these lines before it listened."""
        connecting = self.connecting()
        self.process.say(*lines)
        self.process.end(status, signal)
        return str(self.failureResultOf(connecting, kind).value)


class StartTests(Case):
    def test_who_connects_waits_until_the_receiver_listens(self):
        connecting = self.connecting()
        self.assertNoResult(connecting)
        self.assertFalse(self.far.listened)
        self.process.event("listening")
        path = self.successResultOf(connecting).socket
        self.assertTrue(self.far.listened)
        directory = os.path.dirname(path)
        self.assertEqual(0o700, os.stat(directory).st_mode & 0o777)

    def test_one_ssh_carries_all_connections(self):
        first, second = self.connecting(), self.connecting()
        self.process.event("listening")
        third = self.connecting()
        paths = {self.successResultOf(one) for one in (first, second, third)}
        self.assertEqual(1, len(paths))
        self.assertEqual(1, len(self.reactor.processes))

    def test_the_secret_goes_by_standard_input_only(self):
        self.connecting()
        self.assertEqual(SECRET + b"\n", self.process.written)
        self.assertNotIn(SECRET.decode(), " ".join(self.process.words))
        self.assertFalse(self.process.input_closed)

    def test_ssh_gets_what_it_needs(self):
        self.connecting()
        words = self.process.words
        self.assertEqual(["/bin/sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh", "sh"], words[:5])
        self.assertIn("ControlPath=none", words)
        self.assertEqual(["--", "root@2001:db8::7"], words[-3:-1])
        _, far = words[words.index("-L") + 1].split(":")
        command, flag, script = shlex.split(words[-1])
        self.assertEqual(("sh", "-c"), (command, flag))
        self.assertIn(f"mkdir -m 700 {os.path.dirname(far)} ", script)
        self.assertIn(f"sudo blockmig receive --listen=unix:{far}:mode=666", script)
        self.assertIn(shlex.quote("--file=/x/it's"), script)

    def test_the_script_keeps_the_status_and_leaves_nothing(self):
        script = remote_script("blockmig", ["--id=1"], "/tmp/d")
        self.assertTrue(script.endswith("; status=$?; rm -rf /tmp/d; exit $status"), script)

    def test_a_missing_ssh_is_named(self):
        self.far = self.made("no-such-ssh")
        error = self.failureResultOf(self.connecting(), Refused)
        self.assertIn("no-such-ssh: command not found", str(error.value))
        self.assertEqual([], self.reactor.processes)

    def test_a_receiver_whose_ssh_has_died_is_started_again_when_somebody_connects(self):
        self.connecting()
        self.process.event("listening")
        self.process.say("Connection to web2 closed by remote host.")
        self.process.end(255)
        self.assertEqual([], self.ends)
        self.assertEqual(1, len(self.reactor.processes))
        again = self.connecting()
        self.assertEqual(2, len(self.reactor.processes))
        self.process.event("listening")
        self.successResultOf(again)

    def test_one_that_has_refused_is_not_started_again(self):
        self.ended({"event": "error", "message": "no"}, status=1, kind=Refused)
        self.assertEqual(1, len(self.ends))
        self.failureResultOf(self.connecting(), Refused)
        self.assertEqual(1, len(self.reactor.processes))


class EndingTests(Case):
    def error(self, message):
        return {"event": "error", "level": "error", "message": message}

    def test_a_refusal_is_the_receivers_own_word(self):
        said = self.ended(self.error("/x: holds data"), status=1, kind=Refused)
        self.assertEqual("root@[2001:db8::7]: /x: holds data", said)

    def test_a_failure_of_the_disk_is_a_failure(self):
        self.assertIn("no space", self.ended(self.error("no space"), status=3, kind=LocalFailure))

    def test_a_receiver_that_was_stopped_has_given_up(self):
        self.ended(self.error("stopped by SIGTERM"), status=4, kind=GaveUp)

    def test_one_that_is_not_sure_is_asked_again(self):
        self.assertIn("status 5", self.ended(self.error("stopped"), status=5))
        self.assertEqual([], self.ends)

    def test_ssh_says_why_it_failed(self):
        said = self.ended("Host key verification failed.", status=255)
        self.assertEqual("root@[2001:db8::7]: ssh failed: Host key verification failed.", said)
        self.assertEqual(said, self.far.last_failure)

    def test_a_command_that_is_not_there(self):
        for status in (126, 127):
            self.far = self.made("sh")
            said = self.ended("sh: 1: blockmig: not found", status=status, kind=Refused)
            self.assertIn("sh: 1: blockmig: not found: is blockmig installed there?", said)
            self.assertIn("--remote-command", said)

    def test_an_old_blockmig(self):
        line = "blockmig: option --end-with-stdin not recognized (see `blockmig receive --help`)"
        said = self.ended(line, status=1, kind=Refused)
        self.assertIn("the blockmig there is too old for `move` (option --end-with", said)

    def test_other_refusals_without_an_event(self):
        said = self.ended("sudo: a password is required", status=1, kind=Refused)
        self.assertEqual("root@[2001:db8::7]: sudo: a password is required", said)

    def test_no_directory_for_the_socket(self):
        said = self.ended("mkdir: /tmp: No space left on device", status=72, kind=Refused)
        self.assertIn("mkdir: /tmp: No space left on device", said)

    def test_what_was_received_already(self):
        said = self.ended({"event": "already-done", "message": "nothing to do"}, kind=AlreadyDone)
        self.assertIn("nothing to do", said)
        self.assertEqual(1, len(self.ends))

    def test_a_killed_receiver_may_be_started_again(self):
        self.assertIn("status 137", self.ended(status=137))
        self.assertIn("killed by SIGKILL", self.ended(signal=9))
        self.assertEqual([], self.ends)

    def test_an_sshd_that_forwards_no_sockets(self):
        self.connecting()
        self.process.event("listening")
        for why in ("administratively prohibited", "connect failed"):
            self.process.say(f"channel 2: open failed: {why}: open failed")
            self.assertIn("AllowStreamLocalForwarding", self.far.last_failure)
            self.assertIn(why, self.far.last_failure)

    def test_what_is_said_without_an_end_of_line_counts(self):
        connecting = self.connecting()
        self.process.protocol.errReceived(b"ssh: no route")
        self.process.end(255)
        self.assertIn("ssh: no route", str(self.failureResultOf(connecting, FarFailed).value))

    def test_pipes_that_others_hold_open_are_not_waited_for(self):
        connecting = self.connecting()
        self.process.protocol.processExited(Failure(ProcessTerminated(255, None, 0)))
        self.assertNoResult(connecting)
        self.reactor.advance(1)
        self.failureResultOf(connecting, FarFailed)

    def test_no_line_can_change_the_terminal(self):
        said = self.ended("\x1b[2Jboo", status=255)
        self.assertNotIn("\x1b", said)


class WayTests(Case):
    """With a way that may turn out to be none."""

    def made_way(self):
        self.way = NarrowWay()
        return self.way

    def failed(self, connecting, kind=NoWay):
        return str(self.failureResultOf(connecting, kind).value)

    def test_where_it_listens_is_told_to_the_way(self):
        connecting = self.connecting()
        self.process.event("listening", uri="nbds://192.0.2.7:4711/")
        self.process.event("listening", uri="nbds://192.0.2.8:4711/")
        self.assertEqual(["nbds://192.0.2.7:4711/"], self.way.uris)
        self.assertNoResult(connecting)
        self.way.reached.callback(NBDURI(host="192.0.2.7", port=4711))
        self.assertEqual("192.0.2.7", self.successResultOf(connecting).host)

    def test_nothing_is_shown_before_it_is_reached(self):
        self.connecting()
        shown = self.far.when_reached.wait()
        self.process.event("listening")
        self.assertNoResult(shown)
        self.way.reached.callback(NBDURI(host="192.0.2.7", port=4711))
        self.successResultOf(shown)

    def test_what_does_not_lead_there_is_a_verdict(self):
        connecting = self.connecting()
        self.process.event("listening")
        self.way.reached.errback(NoWay("closed", "open it"))
        self.assertEqual("closed: open it", self.failed(connecting))
        self.assertIsInstance(self.far.verdict, NoWay)
        self.assertEqual([self.far.verdict], self.ends)
        self.failed(self.connecting())
        self.assertEqual(1, len(self.reactor.processes))

    def test_what_may_yet_lead_there_is_none(self):
        connecting = self.connecting()
        self.process.event("listening")
        self.way.reached.errback(FarFailed("closed"))
        self.failed(connecting, FarFailed)
        self.assertEqual(("closed", None), (self.far.last_failure, self.far.verdict))

    def test_a_way_without_what_it_needs_starts_no_ssh(self):
        self.way.missing = NoWay("no TLS here", "install it")
        self.failed(self.connecting())
        self.assertEqual([], self.reactor.processes)
        self.assertEqual([self.way.missing], self.ends)

    def test_a_receiver_that_cannot_listen_is_not_waited_for(self):
        connecting = self.connecting()
        message = "cannot listen on 192.0.2.77:0 yet: Cannot assign …; trying again"
        for _ in range(2):
            self.process.say({"event": "cannot-listen", "level": "warn", "message": message})
        self.assertTrue(self.process.input_closed)
        self.process.say({"event": "error", "message": "stopped before it could listen"})
        self.process.end(4)
        said = self.failed(connecting)
        self.assertEqual(
            "root@[2001:db8::7]: cannot listen on 192.0.2.77:0: Cannot assign …: judged", said
        )

    def test_a_tunnel_waits_for_that(self):
        self.made_way = super().made_way
        self.far = self.made("sh")
        self.connecting()
        self.process.say({"event": "cannot-listen", "level": "warn", "message": "not yet: x"})
        self.assertFalse(self.process.input_closed)

    def test_a_host_that_does_not_know_its_address(self):
        connecting = self.connecting()
        self.process.end(NO_ADDRESS)
        self.assertIn("SSH_CONNECTION", self.failed(connecting))

    def test_what_others_forward_does_not_matter(self):
        self.connecting()
        self.process.say("channel 2: open failed: connect failed: Connection refused")
        self.assertEqual("", self.far.last_failure)


class CloseTests(Case):
    def closing(self, complete=False):
        return Deferred.fromCoroutine(self.far.close(complete))

    def test_a_receiver_ends_when_its_input_closes(self):
        self.connecting()
        self.process.event("listening")
        closing = self.closing()
        self.assertTrue(self.process.input_closed)
        self.process.say({"event": "error", "message": "stopped; it is not complete"})
        self.process.end(4)
        self.assertEqual("stopped; it is not complete", self.successResultOf(closing).said)
        self.assertEqual([], self.process.signals)
        self.assertEqual([], self.ends)

    def test_only_its_last_word_is_told_then(self):
        levels = []

        def observe(event):
            if event.get("event") == "far":
                levels.append(event["log_level"].name)

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.connecting()
        self.process.event("restart", "warn")
        closing = self.closing()
        self.process.event("restart", "warn")
        self.assertEqual(["warn", "debug"], levels)
        self.process.end(4)
        self.successResultOf(closing)

    def test_one_that_is_complete_ends_by_itself(self):
        self.connecting()
        self.process.event("listening")
        closing = self.closing(complete=True)
        self.assertFalse(self.process.input_closed)
        self.process.event("complete")
        self.process.end()
        self.assertIs(None, self.successResultOf(closing).error)

    def test_an_ssh_that_does_not_end_is_killed(self):
        self.connecting()
        closing = self.closing()
        self.reactor.advance(10)
        self.assertEqual(["TERM"], self.process.signals)
        self.reactor.advance(2)
        self.assertEqual(["TERM", "KILL"], self.process.signals)
        self.reactor.advance(2)
        self.assertIs(None, self.successResultOf(closing))

    def test_the_directory_is_removed(self):
        connecting = self.connecting()
        self.process.event("listening")
        directory = os.path.dirname(self.successResultOf(connecting).socket)
        closing = self.closing()
        self.process.end(255)
        self.successResultOf(closing)
        self.assertFalse(os.path.exists(directory))

    def test_what_one_that_was_killed_has_left_behind_is_used_again(self):
        connecting = self.connecting()
        self.process.event("listening")
        path = self.successResultOf(connecting).socket
        with open(path, "w"):
            pass
        killed, self.far = self.far, self.made("sh")
        connecting = self.connecting()
        self.process.event("listening")
        again = self.successResultOf(connecting).socket
        self.assertEqual(os.path.dirname(path), os.path.dirname(again))
        self.assertEqual([], os.listdir(os.path.dirname(again)))
        self.reactor.processes[0].end(255)
        self.successResultOf(Deferred.fromCoroutine(killed.close(complete=False)))

    def test_a_directory_that_others_can_use_is_not_used(self):
        connecting = self.connecting()
        self.process.event("listening")
        directory = os.path.dirname(self.successResultOf(connecting).socket)
        os.chmod(directory, 0o755)
        self.addCleanup(os.rmdir, directory)
        self.far = self.made("sh")
        connecting = self.connecting()
        self.process.event("listening")
        other = os.path.dirname(self.successResultOf(connecting).socket)
        self.assertNotEqual(directory, other)
        self.assertEqual(0o700, os.stat(other).st_mode & 0o777)

    def test_what_one_has_left_behind_that_was_killed_at_its_end_is_removed(self):
        connecting = self.connecting()
        self.process.event("listening")
        directory = os.path.dirname(self.successResultOf(connecting).socket)
        os.chmod(directory, 0o755)
        self.made("sh").remove_left_behind()
        self.assertTrue(os.path.exists(directory))  # others can use it: it is not ours
        os.chmod(directory, 0o700)
        self.made("sh").remove_left_behind()
        self.assertFalse(os.path.exists(directory))
        self.made("sh").remove_left_behind()

    def test_nothing_is_started_any_more(self):
        self.successResultOf(self.closing())
        self.failureResultOf(self.connecting(), FarFailed)
        self.assertEqual([], self.reactor.processes)

    def test_no_timer_is_left(self):
        self.connecting()
        closing = self.closing()
        self.process.end(255)
        self.successResultOf(closing)
        self.assertEqual([], self.reactor.getDelayedCalls())
