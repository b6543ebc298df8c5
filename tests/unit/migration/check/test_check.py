"""A check of a migration whose two ends are blockmig's: what is found, and that nothing follows."""

from __future__ import annotations

import os
from dataclasses import replace

from twisted.internet.defer import CancelledError

from blockmig import Exports, Server, claims
from blockmig.client import Destination
from blockmig.errors import InUse, Summary
from blockmig.migration.check import rehearsal
from blockmig.migration.destination import checks, handoff_export, scratch
from blockmig.migration.destination.disk import DestinationDisk
from blockmig.migration.handoff.message import BadMessage, decode_message
from blockmig.migration.identity import ANYBODY, Identity
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records
from blockmig.migration.source.sender import Sender
from blockmig.nbd import Command, Errno
from blockmig.runtime import Runtime
from blockmig.storage import Room
from blockmig.testing import ManualThreads, MemoryDisk, synchronous
from tests.unit.support import ONE, Client, HandoffClient, RecordedDisk

from .case import DATA, NAMED, SECRET, SIZE, URI, CheckCase, Source

MIB = 1 << 20

ALL = [
    "records",
    "source",
    "in-use",
    "format",
    "permitted",
    "destination",
    "export",
    "flush",
    "round-trip",
    "admission",
    "receiver",
    "state",
    "records-there",
    "clock",
    "rate",
    "room",
    "still",
]


class GoodPairTests(CheckCase):
    def test_everything_is_looked_at(self):
        report = self.check()
        self.assertEqual(ALL, [item.name for item in report.items])
        self.assertEqual({"ok"}, set(self.results().values()))
        self.assertTrue(report.can_begin)
        self.assertEqual("the migration can begin", report.conclusion)

    def test_nothing_is_changed_at_either_end(self):
        self.check(unlink=True)
        self.nothing_is_changed()
        self.assertFalse(self.receiver.touched)
        self.assertEqual(0, self.receiver.attempts)
        self.assertEqual(b"o" * SIZE, self.target.content)

    def test_the_migration_can_begin_directly_afterwards(self):
        self.check()
        sender = Sender(
            self.source,
            Destination(self.endpoint, uri=URI),
            identity=NAMED,
            runtime=Runtime(self.clock, synchronous),
        )
        outcome = sender.run()
        self.endpoint.pump()
        self.clock.advance(1)
        self.endpoint.pump()
        self.assertIsInstance(self.successResultOf(outcome), Summary)
        self.assertEqual(DATA, self.target.content)

    def test_a_check_can_be_repeated(self):
        self.assertEqual(self.check().items, (self.told.clear(), self.check())[1].items)

    def test_the_figures_are_for_programs(self):
        self.check()
        self.assertEqual({"size": SIZE, "data": SIZE}, self.item("source").figures)
        figures = self.item("export").figures
        self.assertEqual(
            (SIZE, False, True), (figures["size"], figures["read_only"], figures["flush"])
        )
        found = self.report.as_json()
        self.assertTrue(found["can_begin"])
        self.assertEqual(ALL, [item["name"] for item in found["checks"]])
        self.assertEqual("ok", found["checks"][0]["result"])

    def test_a_secret_is_proved_both_ways(self):
        self.receive(Identity(secret=SECRET))
        self.check(Identity(secret=SECRET))
        self.assertEqual({"ok"}, set(self.results().values()))

    def test_the_migration_is_not_given_away(self):
        """It has no UUID yet that it could keep; but a migration that was stopped has one."""
        record = Record(
            ONE,
            Phase.COPYING,
            1,
            SIZE,
            Location("here", self.source.path),
            Location(address=URI),
            "then",
            identified=True,
            id="web-7",
            identity=self.source.identity(),
        )
        Records(self.source.path).write(Kind.MIGRATING, record)
        written = []
        take = checks.Checks.answered

        def answered(self, connection, message):
            written.append(message)
            return take(self, connection, message)

        self.patch(checks.Checks, "answered", answered)
        self.check()
        self.assertEqual([False], [message.migration == ONE for message in written])
        self.assertEqual("web-7", written[0].id)


class SharedPortTests(CheckCase):
    def test_a_receiver_that_shares_its_port_lends_its_scratch_export_as_well(self):
        exports = Exports(runtime=Runtime(self.clock, synchronous))
        exports.add(self.receiver)
        self.factory = exports.factory()
        self.check()
        self.assertEqual({"ok"}, set(self.results().values()))
        self.told.clear()
        self.patch(scratch.ScratchExport, "refusal", lambda export: "no time")
        self.check()
        self.warns("rate", "no time")


class WhoTests(CheckCase):
    def test_another_id(self):
        self.check(Identity("web-8"))
        self.fails("receiver", "another migration", "id=…")

    def test_no_id(self):
        self.check(ANYBODY)
        self.fails("receiver", "another migration", "id=…")

    def test_another_secret(self):
        self.receive(Identity(secret=SECRET))
        self.check(Identity(secret=bytes(32)))
        self.fails("receiver", "another migration")

    def test_no_secret(self):
        self.receive(Identity(secret=SECRET))
        self.check(ANYBODY)
        self.fails("receiver", "another migration")

    def test_a_receiver_that_has_no_secret_where_one_is_given(self):
        self.check(Identity("web-7", SECRET))
        self.fails("receiver", "does not prove", "secret=…")

    def test_where_nobody_can_prove_anything_what_is_not_told_is_said(self):
        self.receive(ANYBODY)
        self.check(ANYBODY)
        self.warns("not-told", "room", "records", "clock", "rate", "id=…", "secret=…")
        self.assertEqual(set(ALL[:11]) | {"not-told", "still"}, set(self.results()))

    def test_what_an_older_receiver_does_not_tell_is_said(self):
        def decode(data):
            message = decode_message(data)
            if message.phase == "checking":
                raise BadMessage("'checking' is not a valid HandoffPhase")
            return message

        self.patch(handoff_export, "decode_message", decode)
        self.check()
        self.warns("receiver", "answers no check", "room", "rate", "the same id=… and secret=…")
        self.assertNotIn("room", self.results())


class ReceiverTests(CheckCase):
    def test_another_size(self):
        target = RecordedDisk(b"o" * 9999, self.target.path)
        self.receive(NAMED, target)
        self.check()
        self.fails("export", f"{SIZE} bytes", "9999")

    def room(self, free, allocated=0):
        self.patch(DestinationDisk, "room", lambda disk: Room(free, allocated))
        self.check()

    def test_no_room_for_the_data(self):
        self.full_of_data()
        self.room(SIZE - 1001, 1000)
        self.fails("room", "of data do not fit")
        self.assertEqual(
            {"free": SIZE - 1001, "allocated": 1000, "needed": SIZE}, self.item("room").figures
        )

    def full_of_data(self):
        self.source = Source(b"x" * SIZE, self.source.path)

    def test_what_is_taken_for_data_may_be_zeroes_which_need_no_room(self):
        self.room(100_000)
        self.warns("room", "perhaps not all of the data fits", "zeroes")
        self.assertEqual(SIZE, self.item("source").figures["data"])

    def test_data_that_was_not_met_may_be_none(self):
        self.full_of_data()
        self.patch(scratch.ScratchExport, "refusal", lambda export: "no time")
        self.room(SIZE - 1)
        self.warns("room", "perhaps not all of the data fits")

    def test_where_all_of_it_must_fit_nothing_else_matters(self):
        self.patch(DestinationDisk, "takes_only_what_fits", True)
        self.room(SIZE - 1)
        self.fails("room", "not all of the", "no_space_check=True")

    def test_numbers_that_are_none(self):
        self.patch(DestinationDisk, "room", lambda disk: Room(-7, 10**400))
        self.check()
        self.fails("receiver", "is not understood")

    def test_what_the_disk_has_already_counts(self):
        self.room(SIZE - 1000, 1000)
        self.says("room", "ok", "all of the disk fits")

    def test_room_for_the_data_only(self):
        self.source.make_hole(5000, 300_000)
        self.room(SIZE - 1)
        self.warns("room", "the data fits, but not all of")

    def test_a_disk_that_is_no_file(self):
        self.check()
        self.says("room", "ok", "is no file")

    def test_a_directory_where_no_record_can_be_made(self):
        os.rename(self.directories[1], self.directories[1] + "-gone")
        self.check()
        self.fails("records-there", "no such directory")

    def clock_there(self, time):
        self.patch(checks, "timestamp", lambda: time)
        self.check()

    def test_clocks_that_differ_are_worth_a_word(self):
        self.clock_there("2001-01-01T00:00:00Z")
        self.warns("clock", "behind", "only the times in logs and records depend on it")
        self.assertLess(self.item("clock").figures["seconds"], -86400)

    def test_a_clock_that_is_ahead(self):
        self.clock_there("2201-01-01T00:00:00Z")
        self.warns("clock", "ahead of")

    def test_a_time_that_is_none(self):
        for time in ("", "noon", "2001-01-01"):
            self.told.clear()
            self.clock_there(time)
            self.warns("clock", "not understood")

    def test_a_disk_that_has_failed_there(self):
        client = Client(self.clock, self.build(), cookie=7)
        handoff = HandoffClient(self.clock, self.build())
        more = {"id": "web-7", "size": SIZE}
        self.assertEqual(0, handoff.notify("copying", ONE, 7, **more))
        self.target.fail("write", OSError(5, "broken"))
        client.write(0, b"x")
        self.assertEqual([Errno.EIO], client.errors())
        self.begin()
        self.endpoint.pump()
        self.report = self.successResultOf(self.checking)
        self.says("state", "failed", "has failed")

    def test_a_whole_copy_of_another_migration(self):
        self.receiver.stop()
        self.endpoint.pump()
        record = Record(
            ONE,
            Phase.COPIED,
            1,
            SIZE,
            Location("elsewhere", "/other"),
            Location(),
            "then",
            identified=True,
            id="web-7",
        )
        Records(self.target.path).write(Kind.INCOMPLETE, record)
        self.receive(NAMED)
        self.check()
        self.fails("admission", "a whole copy of another migration", "elsewhere:/other")


class BusyTests(CheckCase):
    def attempt(self):
        """An attempt by somebody else who may."""
        handoff = HandoffClient(self.clock, self.build())
        self.assertEqual(
            0, handoff.notify("copying", ONE, 7, id="web-7", size=SIZE, host="other", disk="/d")
        )
        client = Client(self.clock, self.build(), cookie=7)
        client.write(0, DATA[:1000])
        self.assertEqual([0], client.errors())
        return client, handoff

    def reported(self):
        """The other attempt's connections have their timers."""
        self.report = self.successResultOf(self.checking)
        return self.report

    def test_an_attempt_that_goes_on_is_said(self):
        self.attempt()
        self.check()
        self.fails("state", "other:/d")
        self.assertNotIn("rate", self.results())

    def test_it_is_neither_stopped_nor_slowed(self):
        client, handoff = self.attempt()
        before = len(self.endpoint.connections)
        self.check()
        self.assertEqual(1, self.receiver.attempts)
        client.write(1000, DATA[1000:])
        client.send(Command.FLUSH)
        self.assertEqual([0, 0], client.errors())
        for phase in ("copied", "retired"):
            more = {"id": "web-7", "size": SIZE, "host": "other", "disk": "/d"}
            self.assertEqual(0, handoff.notify(phase, ONE, 7, **more))
        self.assertEqual(DATA, self.target.content)
        # The disk, and the side export: it has not even asked for the scratch export.
        self.assertEqual(2, len(self.endpoint.connections) - before)

    def test_a_rehearsal_ends_where_an_attempt_begins(self):
        self.begin()
        for _ in range(1000):
            self.endpoint.step()
            self.clock.advance(0)
            if any(connection.bytes > 100_000 for connection in self.endpoint.connections):
                break
        client, _ = self.attempt()
        self.endpoint.pump()
        self.reported()
        self.assertEqual("ok", self.results()["rate"])
        client.write(1000, DATA[1000:])
        self.assertEqual([0], client.errors())
        self.assertEqual(DATA, self.target.content)


class RateTests(CheckCase):
    def slowly(self, seconds=0.01):
        """Let the network deliver one piece after another, each of which takes so long."""
        for _ in range(10_000):
            if self.checking.called:
                return self.clock.seconds()
            if not self.endpoint.step():
                self.clock.advance(0)
            else:
                self.clock.advance(seconds)
        self.fail("it has no end")

    def test_it_takes_two_seconds(self):
        self.begin()
        self.assertLess(self.slowly(), 5.0)
        self.reported()
        self.says("rate", "ok", "MB/s", "of data would take")
        self.nothing_is_changed()

    def until_sending(self):
        """Let it come to the middle of the rehearsal."""
        self.begin()
        for _ in range(10_000):
            if self.endpoint.connections and self.endpoint.connections[-1].bytes > 400_000:
                return self.endpoint.connections[-1]
            if not self.endpoint.step():
                self.clock.advance(0)
        self.fail("nothing is sent")

    def test_a_wire_that_stands_still_is_not_waited_for(self):
        wire = self.until_sending()
        wire.stall()
        self.endpoint.advance(1.9)
        self.assertNoResult(self.checking)
        self.endpoint.advance(0.2)
        wire.resume()
        self.endpoint.pump()
        self.reported()
        self.says("rate", "ok", "in 2.0 s")

    def test_no_more_is_sent_than_some_bytes(self):
        self.check()
        whole = self.item("rate").figures["sent"]
        self.told.clear()
        self.patch(rehearsal, "MOST", whole // 3)
        self.check()
        self.assertLess(self.item("rate").figures["sent"], whole // 2)

    def test_what_the_data_would_take_is_told_by_how_far_it_got(self):
        """Zeroes that are no hole are read, and not sent: that must not look like a slow wire."""
        self.source = Source(b"x" * MIB + bytes(7 * MIB), self.source.path)
        self.source.make_hole(8 * MIB, 0)
        self.receive(NAMED, RecordedDisk(8 * MIB, self.target.path))
        self.begin()
        self.slowly(0.02)
        self.reported()
        figures = self.item("rate").figures
        self.assertGreater(figures["seconds"], 0.2)
        # What is sent of it at that rate, in that time.
        self.assertLess(figures["rate"] * figures["seconds"], 2 * MIB)

    def test_the_limit_of_the_rate_is_kept(self):
        self.begin(max_rate=50_000)
        while not self.checking.called:
            self.endpoint.pump()
            self.clock.advance(0.01)
        self.reported()
        self.assertLess(self.item("rate").figures["rate"], 100_000)

    def large(self, size=8 * MIB):
        self.source = Source(os.urandom(size), self.source.path)
        self.source.make_hole(size, 0)
        self.receive(NAMED, RecordedDisk(size, self.target.path))

    def lengths(self):
        """Of the requests to the scratch export."""
        lengths, admit = [], scratch.ScratchExport.admit

        def noted(export, connection, request):
            lengths.append(request.length)
            return admit(export, connection, request)

        self.patch(scratch.ScratchExport, "admit", noted)
        return lengths

    def test_a_slow_wire_is_measured_as_well(self):
        """A request of the usual length would take longer than the rehearsal."""
        self.large()
        lengths = self.lengths()
        self.begin()
        self.slowly(0.05)
        self.reported()
        self.assertEqual("ok", self.results()["rate"])
        self.assertEqual({rehearsal.SHORT}, set(lengths))
        figures = self.item("rate").figures
        self.assertLess(figures["rate"], 4 * MIB)
        self.assertAlmostEqual(8 * MIB / figures["rate"], figures["seconds"], 0)

    def test_on_a_quick_one_the_requests_are_those_of_a_migration(self):
        self.large()
        lengths = self.lengths()
        self.check()
        self.says("rate", "ok")
        self.assertEqual(rehearsal.SHORT, lengths[0])
        self.assertEqual(MIB, max(lengths))  # of a disk without a descriptor
        # The pass that was cut was sent to its end, and only once.
        self.assertEqual(16 * 8 * MIB, sum(lengths))

    def test_one_on_which_nothing_gets_there_is_said_to_be_so(self):
        self.large()
        self.begin()
        while not any(link.bytes > 40_000 for link in self.endpoint.connections):
            if not self.endpoint.step():
                self.clock.advance(0)
        self.endpoint.connections[-1].stall()
        self.clock.advance(2)
        self.endpoint.connections[-1].resume()
        self.endpoint.pump()
        self.reported()
        self.warns("rate", "was not measured", "not even 64 KiB of data got there")

    def test_a_scratch_export_that_is_not_to_be_had(self):
        self.patch(scratch.ScratchExport, "refusal", lambda export: "no time")
        self.check()
        self.warns("rate", "was not measured", "no time")

    def test_a_source_that_cannot_be_read(self):
        self.source.fail("read", OSError(5, "broken"))
        self.check(raw_anyway=True)
        self.fails("rate", "memory", "cannot be read", "broken")

    def test_nothing_is_written_to_a_disk_of_that_name(self):
        disk = MemoryDisk(SIZE)
        other = Server(disk, export=".scratch", runtime=Runtime(self.clock, synchronous))
        self.patch(
            self.factory,
            "settings",
            replace(self.factory.settings, lookup=self.lookup(other), refusal=lambda name: ""),
        )
        self.check()
        self.warns("rate", "no export that stores nothing")
        self.assertEqual(bytes(SIZE), disk.content)
        other.stop()

    def lookup(self, other):
        """Names as before, but for one that is another server's."""
        before, beside = self.factory.settings.lookup, other.factory().settings.lookup
        return lambda name: beside(name) if name == ".scratch" else before(name)

    def test_a_disk_without_data(self):
        self.source = type(self.source)(bytes(SIZE), self.source.path)
        self.check()
        self.warns("rate", "no data was met")

    def test_a_scratch_export_that_answers_with_an_error(self):
        self.patch(scratch.ScratchExport, "admit", lambda *_: Errno.EPERM)
        self.check()
        self.warns("rate", "was not measured", "EPERM")

    def test_a_scratch_export_that_is_silent(self):
        def prepare(connection):
            self.endpoint.prepare(second)

        def second(connection):
            self.endpoint.prepare(lambda connection: connection.stall())

        self.endpoint.prepare(prepare)
        self.begin()
        self.endpoint.advance(9)
        self.assertNoResult(self.checking)
        self.endpoint.advance(2)
        self.endpoint.connections[-1].resume()
        self.endpoint.pump()
        self.reported()
        self.warns("rate", "was not measured", "no NBD handshake")


class EndTests(CheckCase):
    def test_a_time_that_is_none_is_refused_in_the_call(self):
        for timeout in (None, -1, 0, float("nan"), float("inf"), "10"):
            self.assertRaises(ValueError, self.begin, timeout=timeout)
        self.assertEqual([], self.flushLoggedErrors())
        self.assertEqual([], self.endpoint.connections)

    def test_all_of_it_takes_a_minute_at_most(self):
        self.endpoint.prepare(lambda link: link.stall())
        self.begin(timeout=500)
        self.endpoint.advance(59)
        self.assertNoResult(self.checking)
        self.endpoint.advance(1)
        self.endpoint.connections[-1].resume()
        self.endpoint.pump()
        self.reported()
        self.says("time", "failed", "longer than 60 s")
        self.assertFalse(self.report.can_begin)

    def cancelled(self):
        self.checking.cancel()
        self.endpoint.pump()
        self.failureResultOf(self.checking, CancelledError)
        self.assertEqual([], self.clock.getDelayedCalls())
        self.assertFalse(any(link.is_open for link in self.endpoint.connections))
        self.nothing_is_changed()

    def test_it_can_be_cancelled_at_any_time(self):
        for steps in range(0, 60, 3):
            self.begin()
            for _ in range(steps):
                if not self.endpoint.step():
                    self.clock.advance(0)
            if self.checking.called:
                break
            self.cancelled()
            self.told.clear()
        self.assertGreater(steps, 10)

    def test_it_ends_when_no_thread_is_at_work(self):
        threads = ManualThreads()
        self.begin(thread=threads)
        self.checking.cancel()
        self.assertNoResult(self.checking)
        threads.run()
        self.failureResultOf(self.checking, CancelledError)

    def test_nobody_else_uses_the_disk_meanwhile(self):
        self.begin()
        more = {"identity": NAMED, "runtime": Runtime(self.clock, synchronous)}
        there = Destination(self.endpoint, uri=URI)
        self.assertRaises(InUse, Sender, self.source, there, **more)
        self.endpoint.pump()
        self.reported()
        Sender(self.source, there, **more).stop()

    def test_a_disk_that_is_used_is_not_checked_but_the_destination_is(self):
        other = Sender(
            self.source,
            Destination(self.endpoint, uri=URI),
            runtime=Runtime(self.clock, synchronous),
        )
        self.check()
        self.fails("source", "is used by a Sender")
        self.says("destination", "ok")
        self.says("state", "ok")
        other.stop()
        claims.forget_all()
