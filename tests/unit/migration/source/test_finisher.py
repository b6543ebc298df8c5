"""Finishing a migration whose source is retired (R6), with a real receiver and scripted peers."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import weakref
from dataclasses import replace

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectingCancelledError, ConnectionRefusedError
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.logger import LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import Destination
from blockmig.errors import ExitStatus, InUse, Summary, Unconfirmed
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.handoff.message import (
    MESSAGE_SIZE,
    HandoffMessage,
    HandoffPhase,
    decode_message,
    fingerprint,
)
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.records.permitted import SourceState
from blockmig.migration.source.finisher import Finisher
from blockmig.migration.source.record import SourceRecord
from blockmig.nbd import (
    Command,
    EndOfPayload,
    Export,
    Negotiated,
    Payload,
    Request,
    ServerHandshake,
    ServerTransmission,
    TransmissionFlag,
)
from blockmig.runtime import Runtime
from blockmig.testing import ManualThreads, synchronous
from tests.support.made import made
from tests.unit.support import ADDRESS, ONE, TWO, MemoryEndpoint, RecordedDisk, Story

SIZE = 5000
URI = "nbd://there/"
RECORD = Record(
    migration=ONE,
    phase=Phase.COPIED,
    attempt=3,
    size=SIZE,
    source=Location("here", "/disk"),
    destination=Location("there", "/copy", URI),
    began="then",
    unlink=True,
    side_export=True,
)
NONE, COPYING, COPIED = HandoffPhase.NONE, HandoffPhase.COPYING, HandoffPhase.COPIED
RETIRED, COMPLETE = HandoffPhase.RETIRED, HandoffPhase.COMPLETE


def page(stage, migration="", token=""):
    """The message of a receiver at the place where the disk went."""
    where = {"host": "there", "disk": "/copy"}
    return HandoffMessage(stage, fingerprint(migration), token=token, **where)


class Peer(Protocol):
    """A scripted server: what its messages say, and what messages are answered with."""

    def __init__(self, script):
        self.script = script

    def connectionMade(self):
        self.script.connections.append(self)
        self.wire = ServerTransmission()
        self.handshake = ServerHandshake(self.lookup, lambda: self.script.names)
        self.transport.write(self.handshake.data_to_send())
        self.payload = b""

    def lookup(self, name):
        if name.endswith(".handoff"):
            if self.script.refuse:
                return None
            return Export(name, self.script.page_size, TransmissionFlag.HAS_FLAGS)
        return Export(name, SIZE, TransmissionFlag.HAS_FLAGS)

    def dataReceived(self, data):
        if self.handshake is not None:
            self.handshake.receive_data(data)
            self.transport.write(self.handshake.data_to_send())
            event = self.handshake.next_event()
            if not isinstance(event, Negotiated):
                return
            self.side = event.export.name.endswith(".handoff")
            data = self.handshake.trailing_data()
            self.handshake = None
        self.wire.receive_data(data)
        while (event := self.wire.next_event()) is not None:
            if isinstance(event, Request):
                self.request(event)
            elif isinstance(event, Payload):
                self.payload += bytes(event.data)
            elif isinstance(event, EndOfPayload):
                said, self.payload = decode_message(self.payload), b""
                self.script.events.append(f"told {said.phase} {said.migration}")
                self.script.cookies.append(said.cookie)
                self.script.tokens.append(said.token)
                self.reply(event.message, self.script.answer)

    def request(self, request):
        where = "H" if self.side else "M"
        if request.command == Command.DISC:
            self.script.events.append(f"{where} DISC")
            if not self.side:
                self.script.cookies.append(f"{request.cookie:016x}")
            self.transport.loseConnection()
        elif request.command == Command.READ:
            self.script.events.append(f"{where} READ")
            pages = self.script.pages
            shown = pages.pop(0) if len(pages) > 1 else pages[0]
            data = shown.encode() if isinstance(shown, HandoffMessage) else shown
            self.reply(request, 0, [data])

    def reply(self, request, error, payload=()):
        if error is not None:
            self.transport.write(b"".join(map(bytes, self.wire.reply(request, error, payload))))


class Script:
    """The script of a peer."""

    def __init__(self):
        self.names = ["", ".handoff"]
        self.pages = [page(COPIED, ONE), page(RETIRED, ONE, "key"), page(COMPLETE, ONE)]
        self.page_size = MESSAGE_SIZE
        self.answer = 0
        self.refuse = False
        self.events = []
        self.cookies = []
        self.tokens = []
        self.connections = []


class Case(SynchronousTestCase):
    def setUp(self):
        self.place = RECORD.destination
        self.clock = Clock()
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.system = Story()
        self.records = Records(self.directory + "/disk", self.system)
        self.script = Script()
        self.endpoint = MemoryEndpoint(self.clock, lambda: Peer(self.script))

    def source(self, told=False, **changes):
        changes = {"destination": self.place, **changes}
        record = RECORD.but(told="then" if told else "", **changes)
        record = self.records.write(Kind.MIGRATING, record)
        if not record.unlink:
            record = self.records.write(Kind.MIGRATED, record.but(retired="x"))
        return SourceRecord.finishing(self.records, SourceState(record, True))

    def finish(self, told=False, record=None, **keywords):
        self.finisher = made(
            Finisher,
            self.source(told, **(record or {})),
            Destination(self.endpoint, uri=URI),
            reactor=self.clock,
            in_thread=synchronous,
            **keywords,
        )
        self.outcome = self.finisher.run()
        self.endpoint.pump()

    def pass_time(self, seconds):
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.endpoint.pump()

    def done(self, seen=None):
        summary = self.successResultOf(self.outcome)
        self.assertEqual((SIZE, 0, 3), (summary.bytes, summary.data, summary.attempts))
        self.assertEqual(["disk.MIGRATED"], sorted(os.listdir(self.directory)))
        if seen is not None:
            self.assertEqual(seen, bool(self.records.read(Kind.MIGRATED).confirmed))
        self.assertEqual([], self.clock.getDelayedCalls())

    def unconfirmed(self, *words):
        error = self.failureResultOf(self.outcome, Unconfirmed).value
        self.assertEqual(ExitStatus.UNCONFIRMED, error.status)
        for word in (*words, f"{self.place}", "run the same command again"):
            self.assertIn(word, str(error))
        self.assertNotIn("\n", str(error))
        self.assertEqual(["disk.MIGRATING"], os.listdir(self.directory))
        self.assertEqual([], self.clock.getDelayedCalls())

    def tries_on(self):
        self.pass_time(20)
        self.assertNoResult(self.outcome)
        self.assertEqual(["disk.MIGRATING"], os.listdir(self.directory))


class ReceiverTests(Case):
    """With a real receiver."""

    def receive(self, phase="copied", **changes):
        disk = RecordedDisk(b"x" * SIZE, self.directory + "-d")
        self.place = Location(os.uname().nodename, disk.path, URI)
        self.target = Records(disk.path)
        record = RECORD.but(phase=Phase(phase), **changes)
        self.target.write(Kind.INCOMPLETE, record)
        self.receiver = Receiver(disk, runtime=Runtime(self.clock, synchronous))
        self.arrived = self.receiver.complete()
        self.endpoint.build = lambda: self.receiver.factory().buildProtocol(ADDRESS)

    def test_the_migration_is_finished_on_both_sides(self):
        for told in (False, True):
            for changes in ({}, {"retired": "then"}):
                self.setUp()
                self.receive(**changes)
                self.finish(told)
                self.done(seen=True)
                self.assertEqual(SIZE, self.successResultOf(self.arrived).bytes)
                self.assertIsNone(self.target.read(Kind.INCOMPLETE))

    def test_a_kept_source_ends_with_a_confirmed_MIGRATED(self):
        self.receive()
        self.finish(record={"unlink": False})
        self.assertIsInstance(self.successResultOf(self.outcome), Summary)
        self.successResultOf(self.arrived)
        self.assertEqual(["disk.MIGRATED"], os.listdir(self.directory))
        self.assertTrue(self.records.read(Kind.MIGRATED).confirmed)

    def test_a_receiver_of_another_migration_is_not_finished(self):
        self.receive(migration=TWO)
        self.finish()
        self.unconfirmed("does not know this migration", "'copied'")
        self.assertNoResult(self.arrived)
        self.assertEqual(TWO, self.target.read(Kind.INCOMPLETE).migration)

    def test_a_copy_that_is_not_whole_is_not_finished(self):
        self.receive("copying")
        self.finish()
        self.unconfirmed("'copying'")
        self.assertNoResult(self.arrived)

    def test_a_cut_at_every_message_is_recovered(self):
        budget = 0
        while True:
            self.setUp()
            self.receive()
            for _ in range(2):
                self.endpoint.cut_next(pieces=budget)
            self.finish()
            self.pass_time(40)
            self.done()
            self.successResultOf(self.arrived)
            delivered = [link.pieces for link in self.endpoint.connections[:2]]
            if max(delivered) < budget:
                break
            budget += 1
        self.assertGreater(budget, 8)

    def test_a_receiver_restarted_after_the_end_learns_that_it_is_complete(self):
        """It learns so only from this very sender."""
        here = os.uname().nodename
        for told, host, token, exact in (
            (True, here, "inode 5, born 6", True),
            (True, here, "inode 5, born 7", False),
            (True, here, "", False),
            (True, "elsewhere", "inode 5, born 6", False),
            (False, here, "", False),
        ):
            self.setUp()
            disk = RecordedDisk(b"x" * SIZE, self.directory + "-d")
            self.receiver = Receiver(disk, runtime=Runtime(self.clock, synchronous))
            self.arrived = self.receiver.complete()
            self.endpoint.build = lambda: self.receiver.factory().buildProtocol(ADDRESS)
            self.finish(told, {"destination": Location(host, disk.path, URI), "token": token})
            if told:
                self.done(seen=exact)
            else:
                self.failureResultOf(self.outcome, Unconfirmed)
            self.assertEqual(exact, self.arrived.called)
            self.assertEqual(b"x" * SIZE, disk.content)


class AssumedTests(Case):
    def test_an_end_that_was_seen_in_another_way_is_recorded_without_asking(self):
        for told in (False, True):
            self.finisher = made(
                Finisher,
                self.source(told),
                Destination(self.endpoint, uri=URI),
                reactor=self.clock,
                in_thread=synchronous,
            )
            self.finisher.assume_complete()
            self.outcome = self.finisher.run()
            self.done(seen=True)
            self.assertEqual([], self.script.connections)


class OrderTests(Case):
    def test_retired_is_announced_before_the_disconnect_and_checked_after_it(self):
        self.system.note = self.script.events.append
        self.finish()
        self.assertEqual(
            [
                "MIGRATING copied",
                "H READ",
                f"told retired {ONE}",
                "H READ",
                "MIGRATING copied told",
                "M DISC",
                "H READ",
                "H DISC",
                "MIGRATED copied retired told confirmed",
                "MIGRATING removed",
            ],
            self.script.events,
        )
        self.done()

    def test_the_disconnect_has_the_announced_cookie(self):
        self.finish()
        told, disconnected = self.script.cookies
        self.assertEqual(told, disconnected)
        self.assertNotEqual(told, "0" * 16)

    def test_an_acknowledgement_is_recorded_only_once(self):
        self.system.note = self.script.events.append
        self.script.pages = [page(COPIED, ONE), page(COMPLETE, ONE)]
        self.finish(told=True)
        self.assertEqual(1, self.script.events.count("MIGRATING copied told"))
        self.assertIn(f"told retired {ONE}", self.script.events)
        self.done()

    def test_each_try_has_a_new_cookie(self):
        self.script.answer = 5
        self.script.pages = [page(COPIED, ONE)]
        self.finish()
        self.pass_time(5)
        self.assertEqual(len(self.script.cookies), len(set(self.script.cookies)))
        self.assertGreater(len(self.script.cookies), 2)


class PeerTests(Case):
    """What the destination shows, and whether it has acknowledged that it is canonical."""

    def test_a_receiver_that_is_complete_needs_nothing_more(self):
        for told in (False, True):
            self.setUp()
            self.script.pages = [page(COMPLETE, ONE)]
            self.finish(told)
            self.done(seen=True)
            self.assertEqual(["H READ", "H DISC"], self.script.events)

    def test_any_other_stage_or_migration_is_not_finished(self):
        for found, words in (
            (page(NONE), "'none'"),
            (page(COPYING, ONE), "'copying'"),
            (page(COPYING, TWO), "'copying'"),
            (page(COPIED, TWO), "'copied'"),
            (page(COPIED), "'copied'"),
            (page(RETIRED, TWO), "'retired'"),
            (page(COMPLETE, TWO), "'complete'"),
        ):
            for told in (False, True):
                self.setUp()
                self.script.pages = [found]
                self.finish(told)
                if told:
                    self.done()
                else:
                    self.unconfirmed("does not know this migration", words, "is there:/copy")
                self.assertNotIn("M DISC", self.script.events)
                self.assertFalse([e for e in self.script.events if e.startswith("told")])

    def test_a_plain_server_is_done_only_if_the_receiver_had_acknowledged(self):
        for told in (False, True):
            self.setUp()
            self.script.names = [""]
            self.finish(told)
            if told:
                self.done(seen=False)
            else:
                self.unconfirmed("there is no blockmig receiver")
            self.assertNotIn("M DISC", self.script.events)

    def test_a_destination_without_a_side_export_needs_no_announcement(self):
        self.finish(record={"side_export": False})
        self.done(seen=False)
        self.assertEqual([], self.script.connections)

    def test_a_refused_announcement_is_repeated(self):
        """The receiver may be about to change its answer."""
        self.script.answer = 1
        self.script.pages = [page(COPIED, ONE)]
        self.finish()
        self.tries_on()
        self.script.answer = 0
        self.script.pages = [page(COPIED, ONE), page(COMPLETE, ONE)]
        self.pass_time(6)
        self.done(seen=True)

    def test_an_incomplete_receiver_after_the_disconnect_is_asked_again(self):
        self.script.pages = [page(COPIED, ONE), page(RETIRED, ONE)]
        self.finish()
        self.tries_on()
        self.script.pages = [page(COMPLETE, ONE)]
        self.pass_time(6)
        self.done()

    def test_a_malformed_handoff_message_is_asked_for_again(self):
        for data in (bytes(MESSAGE_SIZE), b"[" * MESSAGE_SIZE):
            self.setUp()
            self.script.pages = [data]
            self.finish()
            self.tries_on()

    def test_a_side_export_of_another_size_is_tried_again(self):
        self.script.page_size = 512
        self.finish()
        self.tries_on()
        self.assertEqual([], self.script.events)

    def test_a_side_export_that_is_refused_is_tried_again(self):
        """The receiver of a listed side export may just be going away."""
        self.script.refuse = True
        self.finish()
        self.tries_on()
        self.script.refuse = False
        self.pass_time(6)
        self.done()

    def test_a_silent_peer_is_tried_again_after_a_minute(self):
        self.script.answer = None
        self.script.pages = [page(COPIED, ONE)]
        self.finish()
        self.pass_time(59)
        self.assertEqual(2, len(self.script.connections))
        self.pass_time(3)
        self.assertGreater(len(self.script.connections), 2)
        self.assertNoResult(self.outcome)

    def test_a_peer_that_does_not_speak_NBD_is_tried_again(self):
        class Web(Protocol):
            def connectionMade(self):
                self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        self.endpoint.build = Web
        self.finish()
        self.tries_on()

    def test_the_same_reason_is_told_once_a_minute(self):
        logged = []
        globalLogPublisher.addObserver(logged.append)
        self.addCleanup(globalLogPublisher.removeObserver, logged.append)
        self.endpoint.refuse = ConnectionRefusedError()
        self.finish()
        self.pass_time(130)

        def said(level):
            return [
                event
                for event in logged
                if event.get("event") == "restart" and event["log_level"] == level
            ]

        self.assertEqual(3, len(said(LogLevel.warn)))
        self.assertGreater(len(said(LogLevel.debug)), 10)
        self.assertIn("nobody listens on there:10809", said(LogLevel.warn)[0]["why"])
        # Another reason is told at once.
        self.endpoint.refuse = None
        self.script.refuse = True
        self.pass_time(10)
        self.assertEqual(4, len(said(LogLevel.warn)))

    def test_another_place_at_the_same_address_is_not_finished(self):
        """Whatever the other place says, the disk did not go there."""
        for where in ({"host": "elsewhere"}, {"disk": "/other"}):
            for stage in (COPIED, RETIRED, COMPLETE):
                self.setUp()
                self.script.pages = [replace(page(stage, ONE), **where)]
                self.finish()
                self.unconfirmed("does not know this migration")
                self.assertEqual([], self.script.cookies)

    def test_an_unknown_place_does_not_matter(self):
        self.script.pages = [replace(page(COMPLETE, ONE), disk="/other")]
        self.finish(record={"destination": Location(address=URI)})
        self.done()

    def test_the_token_is_recorded_with_the_acknowledgement(self):
        """The token is for a receiver that is restarted on the same disk."""
        self.system.fail["MIGRATING removed"] = OSError(errno.EIO, "broken")
        self.finish()
        self.successResultOf(self.outcome)
        self.assertEqual("key", self.records.read(Kind.MIGRATING).token)

    def test_a_restarted_receiver_gets_the_token(self):
        self.script.pages = [page(NONE), page(COMPLETE, ONE)]
        self.finish(told=True, record={"token": "key"})
        self.done(seen=True)
        self.assertIn(f"told retired {ONE}", self.script.events)
        self.assertEqual(["key"], self.script.tokens)


class PatienceTests(Case):
    def setUp(self):
        super().setUp()
        self.endpoint.refuse = ConnectionRefusedError()

    def test_an_unacknowledged_retirement_is_tried_for_ever(self):
        self.finish()
        self.pass_time(400)
        self.assertNoResult(self.outcome)
        self.endpoint.refuse = None
        self.pass_time(6)
        self.done()

    def test_tries_have_growing_intervals(self):
        tries = []
        connect = self.endpoint.connect
        self.endpoint.connect = lambda factory: (
            tries.append(self.clock.seconds()) or connect(factory)
        )
        self.finish()
        self.pass_time(30)
        gaps = [round(b - a, 1) for a, b in itertools.pairwise(tries)]
        for expected, gap in zip((0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5), gaps, strict=False):
            self.assertTrue(expected <= gap <= expected + 0.1, gaps)

    def test_an_acknowledged_retirement_is_tried_for_thirty_seconds(self):
        self.finish(told=True)
        self.pass_time(29)
        self.assertNoResult(self.outcome)
        self.pass_time(7)
        self.done(seen=False)

    def test_an_unacknowledged_retirement_is_given_up_in_time(self):
        self.finish(give_up_after=10)
        self.pass_time(9)
        self.assertNoResult(self.outcome)
        self.pass_time(7)
        self.unconfirmed("gave up after 10 seconds")

    def test_an_acknowledged_retirement_ends_early_with_a_short_limit(self):
        self.finish(told=True, give_up_after=3)
        self.pass_time(2)
        self.assertNoResult(self.outcome)
        self.pass_time(3)
        self.done(seen=False)

    def test_an_acknowledged_retirement_ignores_a_longer_limit(self):
        self.finish(told=True, give_up_after=1000)
        self.pass_time(36)
        self.done(seen=False)


class StopTests(Case):
    def test_a_finisher_that_waits_can_be_stopped(self):
        self.endpoint.refuse = ConnectionRefusedError()
        self.finish()
        self.finisher.stop("enough")
        self.unconfirmed("enough")

    def test_a_finisher_that_connects_can_be_stopped(self):
        """An endpoint may report its cancellation in its own way."""

        def cancelled(connecting):
            connecting.errback(ConnectingCancelledError(ADDRESS))

        for connecting in (Deferred(), Deferred(cancelled)):
            self.setUp()
            self.endpoint.connect = lambda factory, connecting=connecting: connecting
            self.finish()
            self.finisher.stop("enough")
            self.unconfirmed("enough")

    def test_a_finisher_can_be_stopped_after_any_message(self):
        """Every connection ends, and no timer is left."""
        for messages in range(30):
            self.setUp()
            self.finisher = Finisher(
                self.source(),
                Destination(self.endpoint, uri=URI),
                runtime=Runtime(self.clock, synchronous),
            )
            self.outcome = self.finisher.run()
            for _ in range(messages):
                if not self.endpoint.step():
                    self.clock.advance(0)
            if self.outcome.called:
                self.done()
                self.assertGreater(messages, 10)
                return
            self.finisher.stop("enough")
            self.endpoint.pump()
            self.unconfirmed("enough")
            self.assertTrue(all(link.client.gone for link in self.endpoint.connections))
        self.fail("it has no end")


class LifeTests(Case):
    """It is started, stopped and asked how it ended as a sender is."""

    def make(self, threads=synchronous):
        self.finisher = Finisher(
            self.source(), Destination(self.endpoint, uri=URI), runtime=Runtime(self.clock, threads)
        )

    def run_it(self):
        self.outcome = self.finisher.run()
        self.endpoint.pump()

    def test_one_that_was_stopped_before_it_was_run_never_begins(self):
        self.make()
        self.finisher.stop("enough")
        self.finisher.stop("again")
        self.run_it()
        self.unconfirmed("enough; the source is retired")
        self.assertEqual([], self.script.connections)

    def test_a_second_stop_changes_nothing(self):
        self.endpoint.refuse = ConnectionRefusedError()
        self.make()
        self.run_it()
        self.finisher.stop("enough")
        self.finisher.stop("again")
        self.unconfirmed("enough")

    def test_a_stop_after_the_end_changes_nothing(self):
        self.make()
        self.run_it()
        self.done()
        self.finisher.stop("late")
        self.assertEqual(SIZE, self.successResultOf(self.finisher.complete()).bytes)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_to_cancel_the_run_is_to_stop_it(self):
        self.endpoint.refuse = ConnectionRefusedError()
        self.make()
        self.run_it()
        self.outcome.cancel()
        self.unconfirmed("cancelled; the source is retired")

    def test_a_second_run_fails_and_leaves_the_first_alone(self):
        self.make()
        outcome = self.finisher.run()
        for _ in range(2):
            error = self.failureResultOf(self.finisher.run(), InUse).value
            self.assertIn("the migration of /disk was started before", str(error))
            self.endpoint.pump()
        self.outcome = outcome
        self.done()
        self.assertEqual(1, self.script.events.count("M DISC"))

    def test_how_it_ended_may_be_asked_at_any_time(self):
        self.make()
        before, called_off = self.finisher.complete(), self.finisher.complete()
        called_off.cancel()
        self.failureResultOf(called_off, CancelledError)
        self.run_it()
        self.done()
        for outcome in (before, self.finisher.complete()):
            self.assertEqual(SIZE, self.successResultOf(outcome).bytes)

    def test_it_ends_only_when_no_thread_works_for_it(self):
        """Otherwise a thread could write records that somebody has read already."""
        threads = ManualThreads()
        self.make(threads)
        self.run_it()
        self.assertEqual(["sync"], threads.names())
        self.finisher.stop("enough")
        self.outcome.cancel()
        self.assertNoResult(self.outcome)
        threads.run()
        self.unconfirmed("enough")

    def test_a_stop_while_an_acknowledgement_is_recorded_waits_for_that(self):
        threads = ManualThreads()
        self.make(threads)
        self.run_it()
        threads.run()
        self.endpoint.pump()
        self.assertEqual(["acknowledged"], threads.names())
        self.finisher.stop("enough")
        self.endpoint.pump()
        self.assertNoResult(self.outcome)
        threads.run()
        self.unconfirmed("enough")
        self.assertTrue(self.records.read(Kind.MIGRATING).told)

    def test_a_stop_while_the_end_is_recorded_comes_too_late(self):
        threads = ManualThreads()
        self.make(threads)
        self.run_it()
        while threads.names() != ["complete"]:
            threads.run()
            self.endpoint.pump()
        self.finisher.stop("late")
        self.assertNoResult(self.outcome)
        threads.run()
        self.done()

    def test_one_that_nobody_has_leaves_nothing_behind(self):
        """Nor does Python have anything to say of its coroutines."""
        for messages in range(0, 16, 3):
            self.setUp()
            self.make()
            self.outcome = self.finisher.run()
            for _ in range(messages):
                if not self.endpoint.step():
                    self.clock.advance(0)
            reference = weakref.ref(self.finisher)
            del self.finisher, self.outcome, self.clock, self.endpoint, self.script
            gc.collect()
            self.assertIsNone(reference())
        self.assertEqual([], self.flushLoggedErrors())


class SyncFirstTests(Case):
    """What another run left may not be durable yet; until it is, nothing is announced."""

    def test_records_are_synced_before_anything_is_announced(self):
        order = self.script.events
        self.system.fsync = lambda descriptor: order.append("fsync")
        self.finish()
        self.assertLess(order.index("fsync"), order.index("H READ"))

    def test_records_that_cannot_be_synced_leave_the_end_unconfirmed(self):
        def broken(descriptor):
            raise OSError(errno.EIO, "broken")

        source = self.source()
        self.system.fsync = broken
        self.finisher = Finisher(
            source, Destination(self.endpoint, uri=URI), runtime=Runtime(self.clock, synchronous)
        )
        self.outcome = self.finisher.run()
        self.endpoint.pump()
        self.unconfirmed("broken")
        self.assertEqual([], self.script.events)


class RecordFailureTests(Case):
    def test_a_record_that_cannot_be_removed_still_completes(self):
        """Another finisher would find out that it is complete."""
        self.system.fail["MIGRATING removed"] = OSError(errno.EIO, "broken")
        self.finish()
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)
        names = ["disk.MIGRATED", "disk.MIGRATING"]
        self.assertEqual(names, sorted(os.listdir(self.directory)))

    def test_a_failure_to_record_the_acknowledgement_still_completes(self):
        """The destination was notified anyway, and will be again; a full disk is no reason to leave
        both sides unfinished.
        """
        source = self.source()
        self.system.fail["MIGRATING copied told"] = OSError(errno.ENOSPC, "full")
        self.finisher = Finisher(
            source, Destination(self.endpoint, uri=URI), runtime=Runtime(self.clock, synchronous)
        )
        self.outcome = self.finisher.run()
        self.endpoint.pump()
        self.assertIn("M DISC", self.script.events)
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)
