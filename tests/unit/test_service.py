"""Twisted services: in which order they start and stop, and what comes of them."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
from functools import partial

from twisted.application.service import IService, MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IStreamServerEndpoint
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from blockmig import (
    AllowList,
    AlreadyDone,
    Destination,
    ExitStatus,
    Exports,
    FileDisk,
    Finisher,
    GaveUp,
    InUse,
    Patience,
    Receiver,
    Refused,
    Sender,
    Server,
    claims,
    resume,
)
from blockmig.nbd import HandshakeRefused
from blockmig.runtime import Runtime
from blockmig.server import LatencyMonitor
from blockmig.service import ReceiverService, SenderService, ServerService
from blockmig.testing import (
    ManualThreads,
    MemoryAddress,
    MemoryDisk,
    MemoryNetwork,
    connect_client,
    synchronous,
)

SIZE = 5000
DATA = bytes(range(250)) * 20


@implementer(IStreamServerEndpoint)
class Endpoint:
    """Listens when the test says so, or fails."""

    def __init__(self):
        self.listening = []

    def listen(self, factory):
        self.listening.append(Deferred())
        return self.listening[-1]


@implementer(IListeningPort)
class SlowPort:
    """Is closed when the test says so."""

    def startListening(self):
        raise AssertionError("it listens")

    def stopListening(self):
        self.stopping = Deferred()
        return self.stopping

    def getHost(self):
        return MemoryAddress("slow")


@implementer(IStreamServerEndpoint)
class Failing:
    """Fails at once, so many times."""

    def __init__(self, other, number=errno.EADDRINUSE, times=1):
        self.other = other
        self.number = number
        self.times = times

    def listen(self, factory):
        if self.times:
            self.times -= 1
            raise CannotListenError("here", 1, OSError(self.number, "not now"))
        return self.other.listen(factory)


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.threads = synchronous
        self.disks = []

    def runtime(self):
        return Runtime(self.clock, self.threads)

    def opener(self, content=DATA):
        def opened():
            self.disks.append(MemoryDisk(content))
            return self.disks[-1]

        return opened

    @property
    def disk(self):
        return self.disks[-1]

    def closed(self):
        return ["close" in disk.names() for disk in self.disks]

    def where(self, name="server"):
        return self.network.server_endpoint(name)

    def make_server(self, disk, **options):
        options.setdefault("latency", LatencyMonitor(lambda: 0.0))
        return Server(disk, runtime=self.runtime(), **options)

    def serving(self, *where, disk=None, **options):
        make = partial(self.make_server, **options)
        where = where or (self.where(),)
        return ServerService(disk or self.opener(), *where, make=make, reactor=self.clock)

    def receiving(self, *where, content=bytes(SIZE), **options):
        make = lambda disk: Receiver(disk, runtime=self.runtime(), **options)  # noqa: E731
        where = where or (self.where("receiver"),)
        opener = self.opener(content)
        return ReceiverService(opener, *where, make=make, reactor=self.clock)

    def sending(self, name="receiver", **options):
        destination = Destination(self.network.client_endpoint(name))
        options.setdefault("patience", Patience(retry=True, retry_policy=lambda failures: 1.0))
        make = lambda disk, to: Sender(disk, to, runtime=self.runtime(), **options)  # noqa: E731
        return SenderService(self.opener(), destination, make=make)

    def client(self, name="server", export=""):
        return self.network.result(connect_client(self.network.client_endpoint(name), export))

    @contextlib.contextmanager
    def logged(self, level, words):
        """A line is logged meanwhile, by the service."""
        with capturedLogs() as events:
            yield
        mine = [event for event in events if event["log_namespace"] == "blockmig.service"]
        lines = [(event["log_level"].name, event.get("why", event["log_format"])) for event in mine]
        self.assertTrue([line for line in lines if line[0] == level and words in line[1]], lines)

    def nobody_listens(self, name="server"):
        error = self.failureResultOf(self.connecting(name)).value
        self.assertIn("nobody listens", str(error))

    def connecting(self, name):
        connecting = connect_client(self.network.client_endpoint(name))
        self.network.pump()
        return connecting

    def nothing_left(self):
        self.network.pump()
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertNotIn(False, self.closed())
        gc.collect()
        self.assertEqual([], self.flushLoggedErrors())


class ServerServiceTests(Case):
    def test_it_provides_the_interface(self):
        for service in (self.serving(), self.receiving(), self.sending()):
            self.assertTrue(verifyObject(IService, service))

    def test_a_start_opens_the_disk_and_a_stop_closes_it(self):
        service = self.serving()
        self.assertEqual([], self.disks)
        self.assertIsNone(service.server)
        service.startService()
        self.assertEqual(DATA[:10], self.network.result(self.client().read(0, 10)))
        self.assertEqual("serving", service.server.state)
        stopped, outcome = service.stopService(), service.complete()
        self.network.pump()
        self.successResultOf(stopped)
        self.assertIsNone(self.successResultOf(outcome))
        self.assertIsNone(service.server)
        self.nobody_listens()
        self.nothing_left()

    def test_an_allow_list_says_who_may_connect(self):
        allow = AllowList([])
        service = ServerService(
            self.opener(), self.where(), make=self.make_server, allow=allow, reactor=self.clock
        )
        service.startService()
        self.failureResultOf(self.connecting("server"))
        allow.replace(None)
        client = self.client()
        self.assertEqual(DATA[:10], self.network.result(client.read(0, 10)))
        self.assertEqual(1, allow.replace([]))
        self.network.pump()
        self.assertTrue(client.lost)
        self.assertEqual(1, allow.refused)

    def test_the_port_is_closed_first_and_the_disk_last(self):
        self.threads = threads = ManualThreads()
        service = self.serving()
        service.startService()
        client = self.client()
        flushing = client.flush()
        self.network.pump()
        stopped, outcome = service.stopService(), service.complete()
        self.nobody_listens()
        self.assertEqual("stopping", service.server.state)
        self.assertNoResult(stopped)
        self.assertEqual([False], self.closed())
        threads.run(1)
        self.network.result(flushing)
        self.network.pump()
        self.assertTrue(client.lost)
        self.assertEqual(["flush"], threads.names())
        self.assertEqual([False], self.closed())
        self.assertNoResult(outcome)
        threads.run()
        self.network.pump()
        self.assertEqual(["flush", "flush", "close"], self.disk.names())
        self.successResultOf(stopped)
        self.successResultOf(outcome)
        self.nothing_left()

    def test_a_port_that_takes_its_time_is_waited_for(self):
        endpoint = Endpoint()
        service = self.serving(endpoint)
        service.startService()
        port = SlowPort()
        endpoint.listening[0].callback(port)
        stopped = [service.stopService(), service.stopService()]
        self.network.pump()
        self.assertEqual("stopped", service.server.state)
        self.assertNoResult(stopped[0])
        self.assertEqual([False], self.closed())
        port.stopping.callback(None)
        for each in stopped:
            self.successResultOf(each)
        self.assertEqual([True], self.closed())

    def test_a_disk_that_was_given_is_not_closed(self):
        disk = MemoryDisk(DATA)
        service = self.serving(disk=disk)
        service.startService()
        self.network.result(service.stopService())
        self.assertEqual(["flush"], disk.names())

    def test_several_endpoints_serve_one_disk(self):
        service = self.serving(self.where("one"), self.where("two"))
        service.startService()
        self.assertEqual(["one", "two"], [port.getHost().name for port in service.ports])
        self.network.result(self.client("one").write(0, b"new"))
        self.assertEqual(b"new", self.network.result(self.client("two").read(0, 3)))
        self.network.result(service.stopService())
        self.assertEqual([], service.ports)
        self.nobody_listens("one")
        self.nobody_listens("two")

    def test_a_stop_before_the_start_is_harmless(self):
        service = self.serving()
        outcome = service.complete()
        for _ in range(2):
            self.successResultOf(service.stopService())
        self.failureResultOf(outcome, GaveUp)
        service.startService()
        self.client()
        outcome = service.complete()
        self.network.result(service.stopService())
        self.successResultOf(outcome)

    def test_who_asks_after_a_stop_before_the_start_hears_of_that(self):
        for service in (self.serving(), self.receiving(), self.sending()):
            self.successResultOf(service.stopService())
            error = self.failureResultOf(service.complete(), GaveUp).value
            self.assertEqual("its service was stopped", str(error))

    def test_a_second_start_does_nothing(self):
        service = self.serving()
        service.startService()
        service.startService()
        service.privilegedStartService()
        self.assertEqual(1, len(self.disks))
        self.network.result(service.stopService())

    def test_each_of_several_stops_fires(self):
        service = self.serving()
        service.startService()
        self.client()
        stops = [service.stopService(), service.stopService()]
        self.network.pump()
        for stopped in (*stops, service.stopService()):
            self.assertIsNone(self.successResultOf(stopped))
        self.assertEqual(1, self.disk.names().count("close"))

    def test_after_a_stop_it_can_be_started_again(self):
        service = self.serving()
        for count in (1, 2):
            service.startService()
            self.client()
            self.assertEqual(count, len(self.disks))
            outcome = service.complete()
            self.assertNoResult(outcome)
            self.network.result(service.stopService())
            self.successResultOf(outcome)
        self.nothing_left()

    def test_a_start_while_it_is_stopping_begins_after_that(self):
        self.threads = threads = ManualThreads()
        service = self.serving()
        service.startService()
        first = service.complete()
        stopped = service.stopService()
        service.startService()
        self.assertTrue(service.running)
        self.assertEqual(1, len(self.disks))
        threads.run()
        self.network.pump()
        self.successResultOf(stopped)
        self.successResultOf(first)
        self.assertEqual([True, False], self.closed())
        self.assertTrue(service.running)
        self.assertEqual("serving", service.server.state)
        stopped = service.stopService()
        threads.run()
        self.network.result(stopped)
        self.nothing_left()

    def test_a_start_while_it_is_stopping_can_be_taken_back(self):
        self.threads = threads = ManualThreads()
        service = self.serving()
        service.startService()
        service.stopService()
        service.startService()
        stopped = service.stopService()
        threads.run()
        self.network.result(stopped)
        self.assertEqual([True], self.closed())
        self.assertFalse(service.running)
        self.nobody_listens()

    def test_a_start_after_a_stop_that_fails_is_logged(self):
        self.threads = threads = ManualThreads()
        service = self.serving()
        service.startService()
        service.stopService()
        service.startService()
        service._disk = lambda: 1 / 0
        threads.run()
        self.network.pump()
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))
        self.failureResultOf(service.complete(), ZeroDivisionError)
        self.assertFalse(service.running)
        self.nothing_left()

    def test_a_server_that_ends_by_itself_ends_the_service(self):
        service = self.serving()
        service.startService()
        outcome = service.complete()
        service.server.hand_over()
        self.network.pump()
        self.successResultOf(outcome)
        self.assertEqual([True], self.closed())
        service.privilegedStartService()
        service.startService()
        self.nobody_listens()
        self.successResultOf(service.stopService())
        self.nothing_left()

    def test_an_object_whose_making_stops_the_service_never_begins(self):
        made = []

        def make(disk):
            made.append(self.make_server(disk))
            service.stopService()
            return made[-1]

        service = ServerService(self.opener(), self.where(), make=make, reactor=self.clock)
        outcome = service.complete()
        service.startService()
        self.network.pump()
        self.assertEqual("stopped", made[0].state)
        self.assertIsNone(service.server)
        self.assertFalse(service.running)
        self.failureResultOf(outcome, GaveUp)
        self.nothing_left()

    def restarting(self, endpoint, made):
        """A service that is stopped and started again by its first `make`, which then fails."""

        def make(disk):
            made.append(disk)
            if len(made) == 1:
                service.stopService()
                service.startService()
                raise ValueError("cannot be made")
            return self.make_server(disk)

        service = ServerService(MemoryDisk(DATA), endpoint, make=make, reactor=self.clock)
        return service

    def check_it_runs(self, service, made):
        self.assertEqual((2, 1), (len(made), service.running))
        self.assertIsNotNone(service.server)
        service.startService()
        self.assertEqual(2, len(made), "it runs already")
        self.successResultOf(service.stopService())
        self.assertFalse(service.running)

    def test_a_start_that_fails_takes_nothing_back_from_the_one_that_it_made(self):
        made = []
        service = self.restarting(Endpoint(), made)
        self.assertRaises(ValueError, service.startService)
        self.check_it_runs(service, made)

    def test_nor_from_one_that_waits_for_the_end_of_the_first(self):
        made, endpoint, port = [], Endpoint(), SlowPort()
        service = self.restarting(endpoint, made)
        service.privilegedStartService()
        endpoint.listening[0].callback(port)
        self.assertRaises(ValueError, service.startService)
        self.assertEqual((1, 1), (len(made), service.running))
        port.stopping.callback(None)
        self.check_it_runs(service, made)

    def stopped_by_a_making_that_raises(self, error):
        def make(disk):
            service.stopService()
            raise error

        service = ServerService(MemoryDisk(DATA), Endpoint(), make=make, reactor=self.clock)
        with contextlib.suppress(ValueError):
            service.startService()
        self.assertFalse(service.running)
        self.failureResultOf(service.complete(), GaveUp)

    def test_a_start_that_fails_after_a_stop_stays_stopped(self):
        self.stopped_by_a_making_that_raises(ValueError("cannot be made"))
        self.stopped_by_a_making_that_raises(AlreadyDone("it is there"))

    def test_a_mirror_of_the_server_is_waited_for_before_the_disk_is_closed(self):
        class Mirror:
            def __init__(self):
                self.ended = Deferred()

            def complete(self):
                return self.ended

        service = self.serving()
        service.startService()
        service.server.mirror = mirror = Mirror()
        outcome = service.complete()
        service.server.hand_over()
        self.network.pump()
        self.assertEqual("stopped", service.server.state)
        self.assertEqual([False], self.closed())
        self.assertNoResult(outcome)
        mirror.ended.errback(GaveUp("it was too slow"))
        self.assertIsNone(self.successResultOf(outcome))
        self.nothing_left()

    def test_a_disk_object_has_one_service_at_a_time(self):
        disk = MemoryDisk(DATA)
        first, second = self.serving(disk=disk), self.serving(self.where("other"), disk=disk)
        first.startService()
        self.assertRaises(InUse, second.startService)
        self.failureResultOf(second.complete(), InUse)
        self.network.result(first.stopService())
        second.startService()
        self.client("other")
        self.network.result(second.stopService())

    def test_a_failed_last_flush_is_the_outcome_and_is_logged(self):
        service = self.serving()
        service.startService()
        outcome = service.complete()
        self.disk.fail("flush", OSError(errno.EIO, "broken"))
        with self.logged("error", "broken"):
            self.assertIsNone(self.network.result(service.stopService()))
        self.assertEqual(errno.EIO, self.failureResultOf(outcome, OSError).value.errno)
        self.assertEqual([True], self.closed())
        self.failureResultOf(service.complete(), OSError)

    def test_a_disk_that_cannot_be_closed_hides_no_outcome(self):
        service = self.serving()
        service.startService()
        self.disk.close = lambda: 1 / 0
        self.assertIsNone(self.network.result(service.stopService()))
        self.successResultOf(service.complete())

    def test_who_cancels_a_wait_only_stops_waiting(self):
        self.threads = threads = ManualThreads()
        service = self.serving()
        service.startService()
        outcomes, stops = [service.complete(), service.complete()], []
        outcomes[0].cancel()
        self.failureResultOf(outcomes[0], CancelledError)
        self.client()
        stops = [service.stopService(), service.stopService()]
        stops[0].cancel()
        self.failureResultOf(stops[0], CancelledError)
        self.network.pump()
        threads.run()
        self.network.pump()
        self.successResultOf(stops[1])
        self.successResultOf(outcomes[1])
        self.nothing_left()

    def test_it_can_be_started_again_from_within_its_outcome(self):
        service = self.serving()
        service.startService()
        again = []

        def ended(_):
            service.stopService()
            service.startService()
            again.append(service.complete())

        service.complete().addCallback(ended)
        service.server.hand_over()
        self.network.pump()
        self.assertEqual("serving", service.server.state)
        self.assertNoResult(again[0])
        self.network.result(service.stopService())
        self.successResultOf(again[0])
        self.assertEqual([True, True], self.closed())

    def test_nothing_is_unhandled_if_nobody_asks_for_the_outcome(self):
        service = self.serving()
        service.startService()
        self.disk.fail("flush", OSError(errno.EIO, "broken"))
        self.network.result(service.stopService())
        del service
        self.nothing_left()


class StartTests(Case):
    """What goes wrong at the start."""

    def failed(self, service, kind, start=None):
        before, after = service.complete(), None
        error = self.assertRaises(kind, start or service.startService)
        self.assertFalse(service.running)
        after = service.complete()
        self.network.pump()
        for outcome in (before, after):
            self.assertIs(error, self.failureResultOf(outcome, kind).value)
        self.assertIsNone(self.successResultOf(service.stopService()))
        self.nothing_left()
        return error

    def test_an_address_in_use_is_raised_before_the_disk_is_opened(self):
        self.serving().startService()
        self.disks.clear()
        error = self.failed(self.serving(), Refused)
        self.assertIn("cannot listen", str(error))
        self.assertEqual([], self.disks)

    def test_an_address_in_use_is_raised_by_the_privileged_start(self):
        service = self.serving(Failing(self.where()))
        self.failed(service, Refused, service.privilegedStartService)

    def test_the_ports_before_the_one_that_fails_are_closed(self):
        self.failed(self.serving(self.where("one"), Failing(self.where("two"))), Refused)
        self.nobody_listens("one")

    def test_after_a_failed_start_it_can_be_started_again(self):
        service = self.serving(Failing(self.where()))
        self.failed(service, Refused)
        service.startService()
        self.client()
        self.network.result(service.stopService())
        self.successResultOf(service.complete())

    def test_a_disk_that_cannot_be_opened_closes_the_port(self):
        def opener():
            raise OSError(errno.ENOENT, "none")

        self.failed(self.serving(disk=opener), OSError)
        self.nobody_listens()

    def test_an_object_that_cannot_be_made_closes_the_disk(self):
        self.failed(self.serving(export="x" * 5000), ValueError)
        self.assertEqual([True], self.closed())
        self.nobody_listens()

    def test_an_address_that_may_come_is_waited_for(self):
        service = self.serving(Failing(self.where(), errno.EADDRNOTAVAIL, times=3))
        service.startService()
        self.network.advance(2)
        self.nobody_listens()
        self.network.advance(2)
        self.client()
        self.network.result(service.stopService())
        self.nothing_left()

    def test_a_stop_ends_the_wait_for_an_address(self):
        service = self.serving(Failing(self.where(), errno.EADDRNOTAVAIL, times=3))
        service.startService()
        self.network.result(service.stopService())
        self.successResultOf(service.complete())
        self.nothing_left()

    def test_a_late_failure_to_listen_is_the_outcome_and_is_logged(self):
        endpoint = Endpoint()
        service = self.serving(endpoint)
        service.startService()
        outcome = service.complete()
        self.assertNoResult(outcome)
        with self.logged("error", "cannot listen"):
            endpoint.listening[0].errback(CannotListenError("here", 1, OSError(13, "denied")))
            self.network.pump()
        self.assertIn("cannot listen", str(self.failureResultOf(outcome, Refused).value))
        self.assertEqual([True], self.closed())
        self.successResultOf(service.stopService())
        self.nothing_left()

    def test_a_stop_while_listening_begins_calls_that_off(self):
        endpoint = Endpoint()
        service = self.serving(endpoint)
        service.startService()
        stopped = service.stopService()
        self.network.pump()
        self.successResultOf(stopped)
        self.successResultOf(service.complete())
        self.nothing_left()

    def test_what_is_wrong_with_the_arguments_is_said_at_once(self):
        self.assertRaises(ValueError, ServerService, self.opener(), reactor=self.clock)
        self.assertRaises(ValueError, ServerService, self.opener(), "tpc:1", reactor=self.clock)
        self.assertRaises(ValueError, SenderService, self.opener(), "ndb://x/", reactor=self.clock)
        self.assertRaises(TypeError, ServerService, "/a/path", self.where(), reactor=self.clock)


class LateTests(Case):
    """What comes when nobody waits for it any more."""

    def test_a_port_that_opens_after_the_stop_is_closed(self):
        endpoint = Endpoint()
        service = self.serving(endpoint)
        service.startService()
        self.successResultOf(service.stopService())
        port = SlowPort()
        endpoint.listening[0].callback(port)
        self.assertIsInstance(port.stopping, Deferred)
        port.stopping.callback(None)
        self.nothing_left()

    def test_a_disk_whose_opening_has_stopped_the_service_is_closed(self):
        opener = self.opener()

        def stopping():
            service.stopService()
            return opener()

        service = self.serving(disk=stopping)
        service.complete().addErrback(lambda _: None)
        service.startService()
        self.nothing_left()


class PrivilegesTests(Case):
    def test_ports_are_opened_with_privileges_and_the_disk_without(self):
        service = self.serving()
        service.privilegedStartService()
        self.assertEqual([], self.disks)
        early = self.connecting("server")
        self.failureResultOf(early)
        service.startService()
        self.client()
        self.network.result(service.stopService())
        self.nobody_listens()

    def test_a_stop_closes_ports_that_were_opened_with_privileges_only(self):
        service = self.serving()
        outcome = service.complete()
        service.privilegedStartService()
        self.assertNoResult(outcome)
        self.network.result(service.stopService())
        self.nobody_listens()
        self.assertEqual([], self.disks)
        self.failureResultOf(outcome, GaveUp)
        self.failureResultOf(service.complete(), GaveUp)


class ParentTests(Case):
    def test_children_start_and_stop_with_their_parent(self):
        parent = MultiService()
        server, receiver = self.serving(), self.receiving()
        for child in (server, receiver):
            child.setServiceParent(parent)
        parent.privilegedStartService()
        parent.startService()
        self.client()
        self.client("receiver")
        self.network.result(parent.stopService())
        self.assertEqual([True, True], self.closed())
        self.failureResultOf(receiver.complete(), GaveUp)
        self.nothing_left()

    def test_a_child_of_a_running_parent_starts_at_once(self):
        parent = MultiService()
        parent.startService()
        service = self.serving()
        service.setServiceParent(parent)
        self.client()
        self.network.result(service.disownServiceParent())
        self.assertEqual([True], self.closed())


class MigrationTests(Case):
    def test_a_sender_and_a_receiver_end_when_the_disk_has_arrived(self):
        receiver, sender = self.receiving(), self.sending()
        receiver.startService()
        sender.startService()
        outcomes = sender.complete(), receiver.complete()
        with self.logged("info", "complete: {bytes} bytes"):
            self.network.advance(10)
        for outcome in outcomes:
            self.assertEqual(SIZE, self.successResultOf(outcome).bytes)
        self.assertEqual(DATA, self.disks[0].content)
        self.nobody_listens("receiver")
        self.assertIsNone(receiver.receiver)
        self.assertIsNone(sender.sender)
        self.assertTrue(receiver.running)
        self.nothing_left()
        self.assertEqual(2, len(self.disks))
        for service in (receiver, sender):
            self.successResultOf(service.stopService())

    def test_what_is_done_already_is_no_failure_to_start(self):
        def done(*_):
            raise AlreadyDone("it was received")

        where = self.where("receiver")
        receiver = ReceiverService(self.opener(SIZE), where, make=done, reactor=self.clock)
        there = Destination(self.network.client_endpoint("receiver"))
        sender = SenderService(self.opener(), there, make=done)
        for service in (receiver, sender):
            outcome = service.complete()
            with self.logged("info", "it was received"):
                service.startService()
                self.network.pump()
            error = self.failureResultOf(outcome, AlreadyDone).value
            self.assertEqual(ExitStatus.DONE, error.status)
            self.assertFalse(service.running)
            self.successResultOf(service.stopService())
        self.nobody_listens("receiver")
        self.nothing_left()

    def test_a_receiver_that_is_stopped_says_what_it_has(self):
        service = self.receiving()
        service.startService()
        outcome = service.complete()
        with self.logged("info", "its service was stopped"):
            self.network.result(service.stopService())
        error = self.failureResultOf(outcome, GaveUp).value
        self.assertIn("its service was stopped", str(error))
        self.nothing_left()

    def test_a_sender_that_comes_while_the_disk_is_checked_is_not_what_is_found_there(self):
        self.threads = threads = ManualThreads()
        service = self.receiving()
        service.startService()
        client = self.client("receiver")
        writing = client.write(0, DATA)
        self.network.pump()
        looks = []

        def meanwhile(call):
            """While the check looks at the disk, the sender writes to it."""
            if call.method == "probe" and not looks:
                looks.append(threads.names())
                threads.run()
                self.network.pump()
                threads.run()
                self.assertEqual(DATA, self.disk.content)

        self.disk.observe(meanwhile)
        self.assertEqual("_check_disk", threads.names()[0])
        threads.run(1)
        self.assertEqual(1, len(looks))
        self.network.result(writing)
        self.assertEqual(1, service.receiver.attempts)
        self.assertFalse(client.lost)
        stopped = service.stopService()
        threads.run()
        self.network.result(stopped)
        self.failureResultOf(service.complete(), GaveUp)

    def test_a_receiver_refuses_a_disk_that_holds_data_at_the_start(self):
        service = self.receiving(content=DATA)
        with self.logged("error", "holds"):
            service.startService()
            self.network.pump()
        self.failureResultOf(service.complete(), Refused)
        self.nobody_listens("receiver")
        self.assertEqual(DATA, self.disk.content)
        self.nothing_left()

    def test_a_receiver_can_be_stopped_while_its_disk_is_checked(self):
        self.threads = threads = ManualThreads()
        service = self.receiving()
        service.startService()
        stopped = service.stopService()
        self.network.pump()
        self.assertNoResult(stopped)
        self.assertEqual([False], self.closed())
        threads.run()
        self.network.result(stopped)
        self.failureResultOf(service.complete(), GaveUp)
        self.nothing_left()

    def test_a_sender_is_stopped_while_it_tries(self):
        service = self.sending()
        service.startService()
        self.network.advance(3)
        self.assertTrue(service.sender.last_error)
        outcome = service.complete()
        self.network.result(service.stopService())
        self.failureResultOf(outcome, GaveUp)
        self.assertEqual([True], self.closed())
        self.nothing_left()

    def test_a_refused_sender_is_the_outcome(self):
        service = self.sending(patience=Patience())
        service.startService()
        outcome = service.complete()
        with self.logged("error", "nobody listens"):
            self.network.advance(1)
        self.failureResultOf(outcome, Refused)
        self.nothing_left()

    def test_an_object_that_was_used_before_is_the_outcome(self):
        disk = MemoryDisk(DATA)
        used = Sender(disk, Destination(self.network.client_endpoint("x")), runtime=self.runtime())
        used.run().addErrback(lambda failure: failure.trap(Refused))
        self.network.advance(1)
        service = SenderService(disk, used._context.destination, make=lambda *_: used)
        service.startService()
        self.network.pump()
        self.failureResultOf(service.complete(), InUse)
        self.successResultOf(service.stopService())

    def test_a_sender_that_was_given_a_path_goes_on_after_a_crash(self):
        path = os.path.abspath(self.mktemp())
        with open(path, "wb") as file:
            file.write(DATA)
        first, _, copy = self.send_path(path)
        while os.path.exists(path):
            if not self.network.step():
                self.clock.advance(0)
        self.assertIsInstance(first.sender, Sender)
        copy.close()  # with the process, whose time stands still from here on
        self.setUp()
        service, receiver, copy = self.send_path(path)
        self.assertIsInstance(service.sender, Finisher)
        self.network.advance(10)
        self.assertEqual(0, self.successResultOf(service.complete()).data)
        self.successResultOf(receiver.complete())
        copy.close()
        with open(path + "-copy", "rb") as file:
            self.assertEqual(DATA, file.read())
        self.assertFalse(os.path.exists(path))

    def send_path(self, path):
        """A service that sends what is there, and the receiver of that."""
        claims.forget_all()
        copy = FileDisk(path + "-copy", size=SIZE)
        receiver = Receiver(copy, runtime=self.runtime())
        self.network.listen("receiver", receiver.factory())
        there = Destination(self.network.client_endpoint("receiver"))
        make = partial(resume, unlink=True, runtime=self.runtime())
        service = SenderService(path, there, make=make)
        service.startService()
        return service, receiver, copy

    def test_only_a_sender_can_be_given_a_path(self):
        self.assertRaises(TypeError, ServerService, "disk", self.where())
        self.assertRaises(TypeError, ReceiverService, "disk", self.where())

    def test_a_sender_can_be_given_a_uri(self):
        made = []

        def make(disk, destination):
            made.append(destination)
            return Sender(disk, destination, runtime=self.runtime())

        service = SenderService(self.opener(), "nbd://192.0.2.1/web", make=make, reactor=self.clock)
        service.startService()
        (destination,) = made
        self.assertEqual(
            ("web", "nbd://192.0.2.1:10809/web"), (destination.export, destination.uri)
        )


class SharedPortTests(Case):
    def setUp(self):
        super().setUp()
        self.exports = Exports(runtime=self.runtime())
        self.network.listen("shared", self.exports.factory())

    def test_a_service_can_be_one_of_several_on_a_port(self):
        services = [self.serving(self.exports, export=name) for name in "ab"]
        for service in services:
            service.startService()
        self.assertEqual(["a", "a.served", "b", "b.served"], self.exports.names())
        client, other = self.client("shared", "a"), self.client("shared", "b")
        self.network.result(services[0].stopService())
        self.assertEqual((True, False), (client.lost, other.lost))
        self.assertEqual(["b", "b.served"], self.exports.names())
        self.assertRaises(HandshakeRefused, self.client, "shared", "a")
        self.network.result(services[1].stopService())
        self.nothing_left()

    def test_it_may_have_a_port_of_its_own_as_well(self):
        service = self.serving(self.exports, self.where(), export="a")
        service.startService()
        self.client("shared", "a")
        self.client("server", "a")
        self.assertEqual(2, len(service.server.status()["clients"]))
        self.network.result(service.stopService())
        self.nothing_left()

    def test_a_name_that_is_taken_is_raised_at_the_start(self):
        first, second = (self.serving(self.exports, export="a") for _ in range(2))
        first.startService()
        self.assertRaises(ValueError, second.startService)
        self.network.pump()
        self.failureResultOf(second.complete(), ValueError)
        self.assertEqual([False, True], self.closed())
        self.client("shared", "a")
        self.network.result(first.stopService())
        self.nothing_left()
