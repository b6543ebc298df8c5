"""Several exports on one port: whose a connection is, and when."""

from __future__ import annotations

import struct

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import (
    AllowList,
    Destination,
    Exports,
    Mirror,
    Overrides,
    Patience,
    Receiver,
    Sender,
)
from blockmig.errors import GaveUp
from blockmig.nbd import Command, Errno, HandshakeRefused
from blockmig.runtime import Runtime
from blockmig.server import LatencyMonitor, RefusedConnection, Relay, Server
from blockmig.testing import (
    ManualThreads,
    MemoryDisk,
    MemoryNetwork,
    connect_client,
    synchronous,
)
from tests.unit.served import FIXED, go, meta, option, pattern, text
from tests.unit.support import ADDRESS, HandTransport, option_replies, request_bytes

SIZE = 8192
INFO, LIST, EXPORT_NAME, STRUCTURED, SET_CONTEXT = 6, 3, 1, 8, 10
ACK, SERVER, CONTEXT = 1, 2, 4
POLICY, UNKNOWN = 2**31 + 2, 2**31 + 6


class Talk:
    """A client's side of a handshake, option by option."""

    def __init__(self, case, exports):
        self.transport = HandTransport(case.clock)
        self.connection = exports.factory().buildProtocol(ADDRESS)
        self.transport.connect(self.connection)
        self.greeting = self.received()
        self.connection.dataReceived(FIXED)

    def received(self):
        data = b""
        while self.transport.has_more:
            data += self.transport.take()
            self.transport.go_on()
        return data

    def ask(self, *options):
        """The replies: their kind and content."""
        self.connection.dataReceived(b"".join(options))
        return [(kind, data) for _, kind, data in option_replies(self.received())]

    def kinds(self, *options):
        return [kind for kind, _ in self.ask(*options)]


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.runtime = Runtime(self.clock, synchronous)
        self.disks = {}
        self.make()

    def make(self, **keywords):
        self.exports = Exports(runtime=self.runtime, **keywords)
        self.port = self.network.listen(f"port{id(self.exports)}", self.exports.factory())
        self.there = self.network.client_endpoint(f"port{id(self.exports)}")

    def serve(self, name, seed=1, threads=synchronous, **keywords):
        """A server of a disk in memory, added."""
        server = Server(
            MemoryDisk(pattern(SIZE, seed)),
            name,
            latency=LatencyMonitor(lambda: 0.0),
            runtime=Runtime(self.clock, threads),
            **keywords,
        )
        self.exports.add(server)
        return server

    def receive(self, name, threads=synchronous, **keywords):
        disk = MemoryDisk(bytes(SIZE))
        runtime = Runtime(self.clock, threads)
        receiver = Receiver(disk, export=name, runtime=runtime, **keywords)
        self.disks[receiver] = disk
        self.exports.add(receiver)
        return receiver

    def client(self, name):
        return self.network.result(connect_client(self.there, name))

    def talk(self):
        return Talk(self, self.exports)

    def listed(self):
        *names, end = self.talk().ask(option(LIST))
        self.assertEqual((ACK, b""), end)
        self.assertEqual({SERVER}, {kind for kind, _ in names})
        return [data[4:].decode() for _, data in names]

    def gone(self, client):
        self.network.pump()
        return client.lost


class AllowListTests(Case):
    def guarded(self):
        self.allow = AllowList()
        factory = self.allow.guard(self.exports.factory(), self.clock.seconds)
        self.port = self.network.listen("guarded", factory)
        self.there = self.network.client_endpoint("guarded")

    def test_who_is_not_on_the_list_reaches_no_export(self):
        self.serve("web")
        self.guarded()
        self.allow.replace([])
        connecting = connect_client(self.there, "web")
        self.network.pump()
        self.failureResultOf(connecting)
        self.assertEqual(0, self.exports.connections)

    def test_who_is_taken_off_the_list_is_closed_whichever_export_is_used(self):
        self.serve("web")
        self.receive("new")
        self.guarded()
        clients = [self.client("web"), self.client("new")]
        self.assertEqual(2, self.allow.replace([]))
        self.assertEqual([True, True], [self.gone(client) for client in clients])
        self.assertEqual(0, self.exports.connections)


class NamesTests(Case):
    def test_names_that_are_not_listed_are_offered_once_as_well(self):
        """Whichever was there first."""
        for name in ("a.scratch", "a.handoff"):
            self.make()
            server = self.serve(name)
            self.assertRaises(ValueError, self.receive, "a")
            self.exports.remove(server)
            receiver = self.receive("a")
            self.assertRaises(ValueError, self.exports.add, server)
            self.exports.remove(receiver)
            self.exports.add(server)

    def test_each_export_is_found_by_its_name(self):
        first, second = self.serve("a", 1), self.serve("b", 2)
        a, b = self.client("a"), self.client("b")
        self.assertEqual(pattern(SIZE, 1), self.network.result(a.read(0, SIZE)))
        self.network.result(b.write(5, b"changed"))
        self.assertEqual(b"changed", second.disk.content[5:12])
        self.assertEqual(pattern(SIZE, 1), first.disk.content)

    def test_all_names_are_listed(self):
        self.serve("a")
        self.receive("b")
        self.serve("")
        self.assertEqual(["a", "a.served", "b", "b.handoff", "", ".served"], self.listed())
        self.assertEqual(self.listed(), self.exports.names())

    def test_side_exports_are_found_as_well(self):
        self.serve("a")
        self.receive("b")
        self.assertEqual(4096, self.client("a.served").export.size)
        self.assertEqual(4096, self.client("b.handoff").export.size)

    def test_a_name_that_is_not_offered_is_unknown(self):
        self.serve("a")
        talk = self.talk()
        self.assertEqual([UNKNOWN], talk.kinds(go(b"")))
        self.assertEqual([UNKNOWN], talk.kinds(go(b"A")))
        self.assertRaises(HandshakeRefused, self.client, "b")

    def test_the_default_export_may_be_one_of_them(self):
        self.serve("a", 1)
        self.serve("", 2)
        self.assertEqual(pattern(10, 2), self.network.result(self.client("").read(0, 10)))

    def test_without_any_export_nothing_is_listed(self):
        self.assertEqual([(ACK, b"")], self.talk().ask(option(LIST)))

    def test_two_exports_of_one_name_are_refused(self):
        server = self.serve("a")
        error = self.assertRaises(ValueError, self.receive, "a")
        self.assertIn("'a' is offered already", str(error))
        self.assertRaises(ValueError, self.exports.add, server)
        self.assertEqual(["a", "a.served"], self.exports.names())

    def test_the_name_of_a_side_export_counts_as_well(self):
        self.serve("a.served")
        error = self.assertRaises(ValueError, self.serve, "a")
        self.assertIn("'a.served' is offered already", str(error))

    def test_the_old_handshake_needs_a_port_of_its_own(self):
        self.assertRaises(ValueError, self.serve, "a", oldstyle=True)
        self.assertRaises(ValueError, self.receive, "a", oldstyle=True)

    def test_only_servers_and_receivers_can_be_added(self):
        for other in (object(), MemoryDisk(b"x"), self.exports):
            self.assertRaises(TypeError, self.exports.add, other)


class AddTests(Case):
    def test_what_is_refused_has_not_begun(self):
        self.serve("web")
        receiver = Receiver(
            MemoryDisk(bytes(SIZE)), export="web", give_up_after=30, runtime=self.runtime
        )
        timers = self.clock.getDelayedCalls()
        self.assertRaises(ValueError, self.exports.add, receiver)
        self.assertEqual(timers, self.clock.getDelayedCalls())
        self.clock.advance(60)
        self.assertNoResult(receiver.complete())

    def test_what_is_added_and_removed_again_leaves_nothing(self):
        server = self.serve("web")
        self.exports.remove(server)
        before = len(server._life._outcome._waiting)
        for _ in range(10):
            self.exports.add(server)
            self.exports.remove(server)
        self.assertEqual(before, len(server._life._outcome._waiting))
        self.exports.add(server)
        server.stop()
        self.assertEqual([], self.exports.names())


class EndTests(Case):
    def test_a_server_that_is_stopping_is_not_offered_any_more(self):
        threads = ManualThreads()
        server = self.serve("a", threads=threads)
        self.serve("b")
        client, other = self.client("a"), self.client("b")
        talk = self.talk()
        flushing = client.flush()
        self.network.pump()
        server.stop()
        self.assertEqual("stopping", server.state)
        self.assertEqual(["b", "b.served"], self.listed())
        self.assertEqual([UNKNOWN], talk.kinds(go(b"a")))
        threads.run()
        self.network.result(flushing)
        self.assertTrue(self.gone(client))
        threads.run()
        self.assertEqual("stopped", server.state)
        self.assertFalse(self.gone(other))
        self.network.result(other.write(0, b"goes on"))

    def test_after_an_end_the_name_is_free(self):
        server = self.serve("a", 1)
        server.stop()
        self.network.pump()
        self.serve("a", 2)
        self.assertEqual(["a", "a.served"], self.listed())
        self.assertEqual(pattern(10, 2), self.network.result(self.client("a").read(0, 10)))

    def test_what_was_removed_can_be_added_again(self):
        server = self.serve("a")
        self.exports.remove(server)
        self.exports.add(server)
        self.assertEqual(["a", "a.served"], self.listed())
        server.stop()
        self.network.pump()
        self.assertEqual([], self.exports.names())

    def test_what_has_ended_is_forgotten(self):
        server, receiver = self.serve("a"), self.receive("b")
        outcome = receiver.complete()
        server.stop()
        receiver.stop()
        self.network.pump()
        self.failureResultOf(outcome, GaveUp)
        self.assertEqual({}, self.exports._parts)

    def test_what_has_ended_cannot_be_added(self):
        server = self.serve("a")
        server.stop()
        self.network.pump()
        self.assertRaises(ValueError, self.exports.add, server)

    def test_a_removed_one_keeps_its_clients(self):
        server, _ = self.serve("a"), self.serve("b")
        client, other = self.client("a"), self.client("b")
        self.exports.remove(server)
        self.exports.remove(server)
        self.assertEqual(["b", "b.served"], self.listed())
        self.assertRaises(HandshakeRefused, self.client, "a")
        for one in (client, other):
            self.network.result(one.write(0, b"goes on"))
        server.stop()
        self.assertEqual((True, False), (self.gone(client), self.gone(other)))

    def test_a_migration_that_is_complete_leaves_the_others_alone(self):
        self.serve("a")
        receiver = self.receive("b")
        outcome = receiver.complete()
        other = self.client("a")
        sender = Sender(
            MemoryDisk(pattern(SIZE, 3)), Destination(self.there, "b"), runtime=self.runtime
        )
        sent = sender.run()
        self.network.advance(10)
        self.assertEqual(SIZE, self.successResultOf(outcome).bytes)
        self.assertEqual(SIZE, self.successResultOf(sent).bytes)
        self.assertEqual(["a", "a.served"], self.listed())
        self.network.result(other.write(0, b"goes on"))

    def test_a_receiver_that_is_stopped_leaves_the_others_alone(self):
        self.serve("a")
        receiver = self.receive("b")
        outcome = receiver.complete()
        reader, other = self.client("b"), self.client("a")
        receiver.stop()
        self.assertEqual((True, False), (self.gone(reader), self.gone(other)))
        self.failureResultOf(outcome, GaveUp)
        self.assertEqual(["a", "a.served"], self.listed())

    def test_stop_closes_what_has_chosen_no_export(self):
        self.serve("a")
        client = self.client("a")
        talk = self.talk()
        stopped = self.exports.stop()
        self.assertNoResult(stopped)
        self.clock.advance(0)
        self.successResultOf(stopped)
        self.assertTrue(talk.transport.gone)
        self.assertFalse(self.gone(client))
        self.network.result(client.write(0, b"goes on"))
        self.assertIsInstance(self.exports.factory().buildProtocol(ADDRESS), RefusedConnection)
        self.successResultOf(self.exports.stop())
        self.assertEqual(1, self.exports.connections)

    def test_nothing_is_left_when_all_have_ended(self):
        server = self.serve("a")
        self.talk()
        self.client("a")
        self.exports.stop()
        server.stop()
        self.network.pump()
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertEqual(0, self.exports.connections)


class OwnerTests(Case):
    def test_a_connection_counts_with_the_server_that_it_has_chosen(self):
        a, b = self.serve("a"), self.serve("b")
        self.network.result(self.client("a").read(0, 10))
        self.talk()
        self.assertEqual(2, self.exports.connections)
        (client,) = a.status()["clients"]
        self.assertEqual(("a", 10), (client["export"], client["bytes_read"]))
        self.assertEqual([], b.status()["clients"])

    def test_a_lost_connection_is_not_counted_any_more(self):
        a = self.serve("a")
        client, talk = self.client("a"), self.talk()
        client.abort()
        talk.transport.lose(OSError())
        self.network.pump()
        self.assertEqual((0, []), (self.exports.connections, a.status()["clients"]))

    def test_a_request_uses_the_threads_of_its_own_server(self):
        threads = ManualThreads()
        self.serve("a", threads=threads)
        self.serve("b")
        self.network.result(self.client("b").flush())
        self.assertEqual([], threads.names())
        flushing = self.client("a").flush()
        self.network.pump()
        self.assertNoResult(flushing)
        threads.run()
        self.network.result(flushing)

    def test_a_receiver_waits_for_the_threads_that_work_for_its_connections(self):
        threads = ManualThreads()
        receiver = self.receive("b", threads, overrides=Overrides(overwrite=True))
        outcome = receiver.complete()
        zeroing = self.client("b").zero(0, SIZE, fua=True)
        self.network.pump()
        self.assertEqual(1, len(threads.waiting))
        receiver.stop()
        self.network.pump()
        self.assertNoResult(outcome)
        threads.run()
        self.failureResultOf(outcome, GaveUp)
        self.failureResultOf(zeroing)

    def test_a_connection_has_so_long_to_choose_an_export(self):
        self.make(handshake_timeout=7)
        self.serve("a", handshake_timeout=1)
        talk, client = self.talk(), self.client("a")
        self.network.advance(6.9)
        self.assertFalse(talk.transport.gone)
        self.network.advance(0.2)
        self.assertTrue(talk.transport.gone)
        self.network.advance(100)
        self.assertFalse(self.gone(client))

    def test_a_silent_client_has_the_time_that_its_own_server_gives(self):
        self.serve("a", request_timeout=5)
        self.serve("b", request_timeout=50)
        talks = self.talk(), self.talk()
        for talk, name in zip(talks, (b"a", b"b"), strict=True):
            talk.ask(go(name))
            talk.connection.dataReceived(request_bytes(Command.WRITE, 0, 100) + b"half")
        self.network.advance(10)
        self.assertEqual([True, False], [talk.transport.gone for talk in talks])
        self.network.advance(50)
        self.assertTrue(talks[1].transport.gone)

    def test_a_client_that_comes_during_a_hold_is_held(self):
        server, _ = self.serve("a"), self.serve("b")
        self.network.result(server.hold())
        a, b = self.client("a"), self.client("b")
        writing = a.write(0, b"later")
        self.network.result(b.write(0, b"now"))
        self.assertNoResult(writing)
        server.release()
        self.network.result(writing)

    def test_requests_right_behind_the_choice_are_answered(self):
        self.serve("a")
        talk = self.talk()
        talk.connection.dataReceived(go(b"a") + request_bytes(Command.READ, 0, 10, cookie=7))
        data = talk.received()
        self.assertTrue(data.endswith(struct.pack("!IIQ", 0x67446698, 0, 7) + pattern(10)))

    def test_allocation_is_offered_where_it_can_be_reported(self):
        self.serve("a")
        self.receive("b")
        talk = self.talk()
        self.assertEqual([ACK], talk.kinds(option(STRUCTURED)))
        for name, kinds in ((b"a", [CONTEXT, ACK]), (b"b", [ACK]), (b"b.handoff", [ACK])):
            query = option(SET_CONTEXT, meta(name, b"base:allocation"))
            self.assertEqual(kinds, talk.kinds(query), name)

    def test_a_receiver_answers_structured_replies_where_these_were_negotiated(self):
        self.receive("b")
        talk = self.talk()
        talk.ask(option(STRUCTURED), go(b"b"))
        self.assertTrue(talk.connection.negotiated.structured)
        talk.connection.dataReceived(request_bytes(Command.READ, 0, 10, cookie=7))
        chunk = struct.pack("!IHHQI", 0x668E33EF, 1, 1, 7, 18)
        self.assertEqual(chunk + bytes(8) + bytes(10), talk.received())


class LimitTests(Case):
    def test_a_connection_above_the_limit_is_closed_without_a_greeting(self):
        self.make(max_connections=2)
        self.serve("a")
        self.serve("b")
        client, other = self.client("a"), self.client("b")
        for one in (client, other):
            self.network.result(one.read(0, 1))
        self.assertIsInstance(self.exports.factory().buildProtocol(ADDRESS), RefusedConnection)
        client.abort()
        self.network.pump()
        self.network.result(self.client("b").write(0, b"x"))

    def test_a_connection_that_has_done_nothing_gives_way_at_the_limit(self):
        self.make(max_connections=2)
        self.serve("a")
        client = self.client("a")
        self.network.result(client.read(0, 1))
        idle = self.talk()
        self.assertEqual(ACK, idle.kinds(go(b"a"))[-1])
        other = self.talk()
        self.clock.advance(0)
        self.assertEqual((True, False), (idle.transport.gone, other.transport.gone))
        self.network.result(client.read(0, 1))

    def test_connections_that_have_done_nothing_are_bounded_whatever_they_have_chosen(self):
        self.serve("a")
        self.receive("b")
        idle = []
        for number in range(300):
            self.clock.advance(0.01)
            idle.append(self.talk())
            if number % 3:
                idle[-1].ask(go(b"ab"[number % 2 : number % 2 + 1]))
        self.clock.advance(0)
        self.assertEqual([True] * 172 + [False] * 128, [one.transport.gone for one in idle])
        self.assertEqual(128, self.exports.connections)

    def test_a_server_that_is_full_of_those_who_ask_nothing_says_nothing(self):
        self.serve("a", max_connections=1)
        idle, talk = self.talk(), self.talk()
        self.assertEqual(ACK, idle.kinds(go(b"a"))[-1])
        self.assertEqual(ACK, talk.kinds(go(b"a"))[-1])
        self.clock.advance(0)
        self.assertEqual((True, False), (idle.transport.gone, talk.transport.gone))

    def test_a_client_of_the_side_export_has_asked_nothing_of_the_disk(self):
        self.serve("a", max_connections=1)
        other = self.client("a.served")
        self.network.result(other.read(0, 10))
        self.assertEqual(ACK, self.talk().kinds(go(b"a"))[-1])
        self.clock.advance(0)
        self.gone(other)

    def test_a_server_that_is_full_says_so_and_another_may_be_chosen(self):
        self.serve("a", 1, max_connections=1)
        self.serve("b", 2)
        first = self.client("a")
        self.network.result(first.read(0, 1))
        talk = self.talk()
        ((kind, words),) = talk.ask(go(b"a"))
        self.assertEqual((POLICY, b"1 clients are connected already"), (kind, words))
        self.assertEqual(ACK, talk.kinds(go(b"b"))[-1])
        first.abort()
        self.network.pump()
        self.network.result(self.client("a").read(0, 10))

    def test_a_server_that_is_full_can_still_be_asked_for_its_size(self):
        self.serve("a", max_connections=1)
        self.client("a")
        self.assertEqual(ACK, self.talk().kinds(option(INFO, text(b"a") + b"\0\0"))[-1])

    def test_a_client_that_cannot_be_told_is_closed(self):
        self.serve("a", max_connections=1)
        self.network.result(self.client("a").read(0, 1))
        talk = self.talk()
        self.assertEqual([], talk.ask(option(EXPORT_NAME, b"a")))
        self.clock.advance(0)
        self.assertTrue(talk.transport.gone)

    def test_connections_that_have_chosen_nothing_use_up_no_server(self):
        self.serve("a", max_connections=1)
        for _ in range(3):
            self.talk()
        self.network.result(self.client("a").read(0, 10))


class MovedDiskTests(Case):
    """A server whose disk is moved while it is offered beside others."""

    def other_host(self):
        there = MemoryDisk(pattern(SIZE, 9))
        server = Server(there, "far", latency=LatencyMonitor(lambda: 0.0), runtime=self.runtime)
        self.network.listen("far", server.factory())
        return server, Destination(self.network.client_endpoint("far"), "far")

    def test_clients_are_relayed_also_those_that_come_later(self):
        server, _ = self.serve("a"), self.serve("b")
        ended = server.complete()
        early, other = self.client("a"), self.client("b")
        far, destination = self.other_host()
        server.relay(Relay(destination, runtime=self.runtime))
        self.network.advance(1)
        late = self.client("a")
        self.network.advance(1)
        for client in (early, late):
            self.assertEqual(pattern(10, 9), self.network.result(client.read(0, 10)))
        self.network.result(late.write(0, b"there"))
        self.assertEqual(b"there", far.disk.content[:5])
        self.network.result(other.write(0, b"here"))
        self.assertEqual("relaying", server.state)
        self.assertIn("a", self.listed())
        for client in (early, late):
            client.disconnect()
        self.network.advance(1)
        self.successResultOf(ended)
        self.assertEqual(["b", "b.served"], self.listed())
        self.assertFalse(self.gone(other))

    def mirror(self, **keywords):
        """A mirror of a, which has a client, to a receiver that is offered beside others too."""
        self.server = self.serve("a")
        self.ended = self.server.complete()
        self.here, here = self.exports, self.there
        self.early = self.client("a")
        self.network.result(self.early.write(100, b"written"))
        self.make()
        self.serve("elsewhere")
        receiver = self.receive("a")
        self.target = self.disks[receiver]
        receiver.complete().addCallback(lambda _: self.serve("a", 5))
        mirror = Mirror(
            self.server,
            Destination(self.there, "a"),
            overrides=Overrides(overwrite=True),
            patience=Patience(reply_timeout=60.0, retry_policy=lambda failures: 0.5),
            runtime=self.runtime,
            **keywords,
        )
        self.network.result(mirror.start())
        return mirror, here

    def test_a_mirror_moves_a_disk_from_one_to_another(self):
        mirror, _ = self.mirror()
        done = mirror.complete()
        self.network.advance(10)
        self.successResultOf(done)
        self.successResultOf(self.ended)
        self.assertTrue(self.gone(self.early))
        self.assertEqual(b"written", self.target.content[100:107])
        self.assertEqual([], self.here.names())
        self.assertEqual(["elsewhere", "elsewhere.served", "a", "a.served"], self.exports.names())

    def test_its_clients_are_relayed_to_the_new_server_of_the_same_name(self):
        mirror, _ = self.mirror(successor=Destination(self.network.client_endpoint("far"), "a"))
        self.network.listen("far", self.exports.factory())
        done = mirror.complete()
        self.network.advance(10)
        self.successResultOf(done)
        self.assertEqual(pattern(10, 5), self.network.result(self.early.read(0, 10)))
        self.assertFalse(self.gone(self.early))

    def test_a_cut_connection_is_made_again(self):
        receiver = self.receive("b")
        outcome = receiver.complete()
        self.network.prepare(lambda connection: None)  # to the side export
        self.network.prepare(lambda connection: connection.cut_after(bytes=3000))
        sender = Sender(
            MemoryDisk(pattern(SIZE, 3)),
            Destination(self.there, "b"),
            patience=Patience(retry_policy=lambda failures: 0.1),
            runtime=self.runtime,
        )
        sent = sender.run()
        self.network.advance(30)
        self.assertEqual(2, self.successResultOf(sent).attempts)
        self.assertEqual(SIZE, self.successResultOf(outcome).bytes)
        self.assertEqual(pattern(SIZE, 3), self.disks[receiver].content)


class ErrorTests(Case):
    def test_an_error_of_one_disk_is_counted_there_only(self):
        a, b = self.serve("a"), self.serve("b")
        a.disk.fail("write", OSError(5, "broken"))
        failing = self.client("a").write(0, b"x")
        self.network.pump()
        self.assertEqual(Errno.EIO, self.failureResultOf(failing, OSError).value.errno)
        self.assertEqual((1, 0), (a.status()["errors"], b.status()["errors"]))

    def test_garbage_ends_its_own_connection_only(self):
        self.serve("a")
        client, talk = self.client("a"), self.talk()
        talk.connection.dataReceived(b"garbage" * 10)
        self.clock.advance(0)
        self.assertTrue(talk.transport.gone)
        self.network.result(client.write(0, b"x"))
        self.assertEqual(1, self.exports.connections)
