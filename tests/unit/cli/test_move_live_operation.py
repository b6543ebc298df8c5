"""`move --control`: what is asked of the server, and what is concluded; no ssh and no server."""

from __future__ import annotations

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import mirror_operation, move_live_operation
from blockmig.cli.commands import parse
from blockmig.cli.direct_tls import DirectTLS
from blockmig.cli.far_receiver import Ending
from blockmig.cli.move_live_operation import MoveLiveOperation
from blockmig.cli.progress import NoDisplay
from blockmig.cli.tunnel import Tunnel
from blockmig.cli.way import FarFailed, NoWay
from blockmig.control import ControlError, ControlRefused
from blockmig.errors import ExitStatus, GaveUp, LocalFailure, MigrationError, Refused
from blockmig.nbd import NBDURI
from blockmig.runtime import Runtime
from blockmig.testing import synchronous

ADDRESS = "ssh://web2/x/web.img"
SUMMARY = {"bytes": 5000, "data": 5000, "zeroes": 0, "seconds": 1.0, "attempts": 1}
CANCELLED = {"status": 4, "message": "the mirror was cancelled; kept", "summary": None}


class Far:
    """A receiver that listens when the test says so."""

    def __init__(self, reactor, place, *, on_end, arguments, secret, way, **_):
        self.way = way
        self.on_end, self.arguments, self.secret = on_end, arguments, secret
        self.verdict, self.last_failure, self.listened = None, "", True
        self.sockets = []
        self.ends = []
        self.closed = []
        self.ending = Ending(GaveUp("x"), "stopped there")

    def reached(self):
        self.sockets.append(Deferred())
        return self._wait(self.sockets[-1])

    def ended(self):
        self.ends.append(Deferred())
        return self._wait(self.ends[-1])

    async def _wait(self, waiting):
        return await waiting

    async def close(self, complete):
        self.closed.append(complete)
        return self.ending

    def refuse(self, error):
        self.verdict = error
        self.on_end(error)


class MoveLiveTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.asked = []
        self.fars = []
        self.status = {"disk": "/d/web.img", "size": 5000}
        self.answers = {
            "/mirror": {"destination": ADDRESS, "attempt": 1},
            "/mirror/wait": Deferred(),
            "/break": {},
        }
        for module in (move_live_operation, mirror_operation):
            self.patch(module, "in_thread", lambda reactor, function: maybeDeferred(function))
        self.patch(move_live_operation, "FarReceiver", self.made)

    def made(self, *arguments, **keywords):
        self.far = Far(*arguments, **keywords)
        self.fars.append(self.far)
        return self.far

    def ask(self, path, method, resource, body=None, timeout=None):
        self.asked.append((resource, body))
        answer = self.status if resource == "/status" else self.answers[resource]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def begin(self, *more):
        _, options = parse(["move", "--control", "/c", "web2:/x/web.img", *more])
        runtime = Runtime(self.clock, synchronous)
        self.operation = MoveLiveOperation(options, runtime, NoDisplay(), self.ask)
        self.result = Deferred.fromCoroutine(self.operation.run())

    def begun(self, *more):
        self.begin(*more)
        self.far.sockets[0].callback(NBDURI(socket="/private/nbd"))
        self.far.sockets[1].callback(NBDURI(socket="/private/nbd"))  # of what keeps it up

    def body(self, resource):
        (body,) = [body for name, body in self.asked if name == resource]
        return body

    def failed(self, kind=MigrationError):
        return self.failureResultOf(self.result, kind).value

    def test_the_server_is_asked_to_mirror_to_the_socket_by_another_name(self):
        self.begun("--unlink", "--max-rate", "1M")
        body = self.body("/mirror")
        self.assertEqual("nbd+unix:///?socket=/private/nbd", body["uri"])
        self.assertEqual(ADDRESS, body["address"])
        self.assertEqual((True, 1 << 20, "exit"), (body["unlink"], body["max_rate"], body["then"]))
        self.assertEqual(self.far.secret.hex(), body["secret"])
        arguments = self.far.arguments()
        self.assertIn("--size=5000", arguments)
        self.assertIn(f"--id={body['id']}", arguments)

    def test_over_TLS_the_server_gets_the_certificate_by_its_control_socket(self):
        self.begin("--data", "tls")
        uri = NBDURI(host="192.0.2.7", port=4711, tls=True, tls_hostname="a.invalid")
        self.far.sockets[0].callback(uri)
        body = self.body("/mirror")
        self.assertEqual("nbds://192.0.2.7:4711/?tls-hostname=a.invalid", body["uri"])
        self.assertEqual(ADDRESS, body["address"])
        self.assertEqual(self.far.way.certificates.decode(), body["certificates"])
        self.assertIn("BEGIN PRIVATE KEY", body["certificates"])

    def test_ssh_comes_after_TLS_that_leads_nowhere(self):
        self.begin("--data", "auto")
        self.assertIsInstance(self.far.way, DirectTLS)
        self.far.sockets[0].errback(NoWay("web2: closed", "open it"))
        self.assertEqual([[False], []], [one.closed for one in self.fars])
        self.assertIsInstance(self.far.way, Tunnel)
        self.far.sockets[0].callback(NBDURI(socket="/private/nbd"))
        body = self.body("/mirror")
        self.assertEqual("nbd+unix:///?socket=/private/nbd", body["uri"])
        self.assertNotIn("certificates", body)

    def test_nothing_else_is_tried_once_the_mirror_has_begun(self):
        self.begin("--data", "auto")
        self.far.sockets[0].callback(NBDURI(host="192.0.2.7", port=4711, tls=True))
        self.far.refuse(NoWay("web2: cannot listen any more", "x"))
        self.answers["/mirror/wait"].callback(CANCELLED)
        self.assertIn("cannot listen any more", str(self.failed(Refused)))
        self.assertEqual(1, len(self.fars))

    def test_without_another_way_it_ends(self):
        self.begin("--data", "tls")
        self.far.sockets[0].errback(NoWay("web2: closed", "open it"))
        self.assertEqual("web2: closed: open it", str(self.failed(NoWay)))
        self.assertNotIn("/mirror", [name for name, _ in self.asked])

    def test_the_server_reports_the_end(self):
        self.begun()
        self.assertNoResult(self.result)
        self.answers["/mirror/wait"].callback({"status": 0, "message": "", "summary": SUMMARY})
        self.assertEqual(5000, self.successResultOf(self.result).bytes)
        self.assertEqual([True], self.far.closed)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_nothing_is_asked_before_the_receiver_listens(self):
        self.begin()
        self.assertEqual(["/status"], [name for name, _ in self.asked])
        self.far.sockets[0].errback(FarFailed("web2: ssh failed: no route"))
        self.assertEqual("web2: ssh failed: no route", str(self.failed(Refused)))
        self.assertEqual([False], self.far.closed)

    def test_a_server_that_is_not_there(self):
        self.status = None
        self.ask = lambda *_: (_ for _ in ()).throw(ControlError("nobody listens on /c"))
        self.begin()
        error = str(self.failed(Refused))
        self.assertIn("nobody listens on /c; a disk that is not served any more", error)

    def test_a_receiver_is_no_server(self):
        self.status = {"state": "waiting"}
        self.begin()
        self.assertIn("is not the control socket of a `blockmig serve`", str(self.failed(Refused)))

    def test_the_mirror_of_an_earlier_move_is_cancelled_first(self):
        self.status["mirror"] = {"state": "copying", "destination": ADDRESS}
        self.begun()
        names = [name for name, _ in self.asked]
        self.assertEqual(["/status", "/break", "/mirror"], names[:3])

    def test_another_mirror_is_left_alone(self):
        self.status["mirror"] = {"state": "copying", "destination": "nbd://web3/"}
        self.begin()
        self.assertIn("a mirror to nbd://web3/ is running", str(self.failed(Refused)))
        self.assertEqual(["/status"], [name for name, _ in self.asked])

    def test_one_that_is_over_does_not_count(self):
        self.status["mirror"] = {"state": "failed", "destination": "nbd://web3/"}
        self.begun()
        self.assertNotIn("/break", [name for name, _ in self.asked])

    def test_a_stop_cancels_the_mirror_and_says_what_became_of_both(self):
        self.begun()
        self.operation.stop("stopped by SIGINT")
        self.assertEqual({}, self.body("/break"))
        self.answers["/mirror/wait"].callback(CANCELLED)
        error = self.failed()
        self.assertEqual(ExitStatus.GAVE_UP, error.status)
        self.assertEqual(
            "stopped by SIGINT: the mirror was cancelled; kept; web2:/x/web.img: stopped there",
            str(error),
        )

    def test_a_stop_that_is_too_late_waits_for_the_end(self):
        self.begun()
        self.answers["/break"] = ControlRefused("it is too late", 409)
        self.operation.stop("stopped by SIGINT")
        self.assertNoResult(self.result)
        self.answers["/mirror/wait"].callback({"status": 0, "message": "", "summary": SUMMARY})
        self.successResultOf(self.result)

    def test_a_stop_while_ssh_is_starting(self):
        self.begin()
        self.operation.stop("stopped by SIGTERM")
        self.assertIn("stopped by SIGTERM: nothing was begun", str(self.failed(GaveUp)))
        self.assertEqual(["/status"], [name for name, _ in self.asked])

    def test_a_stop_while_the_server_is_asked(self):
        self.status["mirror"] = {"state": "copying", "destination": ADDRESS}
        self.answers["/break"] = Deferred()
        self.begin()
        self.operation.stop("stopped by SIGTERM")
        self.answers["/break"].callback({})
        self.assertIn("stopped by SIGTERM: nothing was begun", str(self.failed(GaveUp)))
        self.assertEqual([], self.far.sockets)

    def test_ssh_is_started_again_while_the_mirror_goes_on(self):
        self.begun()
        self.far.ends[0].callback(None)
        self.assertEqual(2, len(self.far.sockets))
        self.clock.advance(1)
        self.assertEqual(3, len(self.far.sockets))
        self.far.sockets[2].errback(FarFailed("web2: ssh failed"))
        self.clock.advance(1)  # twice as long as the time before
        self.assertEqual(3, len(self.far.sockets))
        self.clock.advance(1)
        self.assertEqual(4, len(self.far.sockets))
        self.assertNoResult(self.result)

    def test_a_disk_that_fails_there_ends_the_mirror(self):
        self.begun()
        self.far.refuse(LocalFailure("web2: no space"))
        self.assertEqual({}, self.body("/break"))
        self.answers["/mirror/wait"].callback(CANCELLED)
        error = self.failed(LocalFailure)
        self.assertEqual("web2: no space; the mirror was cancelled; kept", str(error))

    def test_what_the_server_could_not_finish_has_a_command_that_does(self):
        self.begun()
        end = {"status": 5, "message": "not known", "summary": None}
        self.answers["/mirror/wait"].callback(end)
        error = self.failed()
        self.assertEqual(ExitStatus.UNCONFIRMED, error.status)
        self.assertIn("`blockmig move /d/web.img web2:/x/web.img` finishes it", str(error))
