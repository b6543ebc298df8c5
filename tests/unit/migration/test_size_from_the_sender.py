"""A sender and a receiver that has no size yet."""

from __future__ import annotations

import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Destination, Exports, Overrides, Receiver, Runtime, Sender, Server, resume
from blockmig.errors import GaveUp, Refused, Unconfirmed
from blockmig.migration.handoff.handshake import handshake_for, is_in_use, is_receiver
from blockmig.migration.records.files import Kind, Location, Phase, Record, Records, this_host
from blockmig.nbd import Export, ServerHandshake, TransmissionFlag
from blockmig.storage import FileDisk
from blockmig.testing import MemoryDisk, MemoryNetwork, synchronous
from tests.unit.migration.destination.test_size_from_the_sender import Calls
from tests.unit.support import ONE, RecordedDisk

DATA = bytes(range(250)) * 400


class SizeTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.network = MemoryNetwork(self.clock)
        self.directory = os.path.abspath(self.mktemp())
        os.mkdir(self.directory)
        self.path = self.directory + "/copy"
        self.source = RecordedDisk(DATA, self.directory + "/source")
        self.system = Calls()
        self.runtime = Runtime(self.clock, synchronous, self.system)

    def receive(self, export="", **overrides):
        disk = FileDisk(self.path, sized_later=True, system=self.system)
        self.addCleanup(disk.close)
        self.receiver = Receiver(
            disk, export=export, overrides=Overrides(**overrides), runtime=self.runtime
        )
        self.received = self.receiver.complete()
        return self.receiver

    def send(self, export="", **keywords):
        endpoint = self.network.client_endpoint("there")
        self.sender = Sender(
            self.source,
            Destination(endpoint, export, "nbd://there/"),
            runtime=self.runtime,
            **keywords,
        )
        sent = self.sender.run()
        self.network.pump()
        return sent

    def content(self):
        with open(self.path, "rb") as file:
            return file.read()

    def test_the_sender_says_how_large_it_is(self):
        self.network.listen("there", self.receive().factory())
        self.assertEqual(len(DATA), self.network.result(self.send()).bytes)
        self.assertEqual(len(DATA), self.network.result(self.received).bytes)
        self.assertEqual(DATA, self.content())

    def test_one_of_many_exports_may_be_without_a_size(self):
        exports = Exports(runtime=self.runtime)
        exports.add(self.receive("web"))
        self.network.listen("there", exports.factory())
        self.assertEqual(["web", "web.handoff"], exports.names())
        self.assertEqual(len(DATA), self.network.result(self.send("web")).bytes)
        self.network.result(self.received)
        self.assertEqual(DATA, self.content())

    def test_no_other_export_has_the_name_of_a_size(self):
        """Whoever asks for it must come to the receiver, whichever was there first."""
        name = f"web.sized-{len(DATA)}"
        live = Server(MemoryDisk(DATA), export=name, runtime=self.runtime)
        exports = Exports(runtime=self.runtime)
        exports.add(live)
        self.assertRaises(ValueError, exports.add, self.receive("web"))
        other = Exports(runtime=self.runtime)
        other.add(self.receiver)
        self.assertRaises(ValueError, other.add, live)
        self.receiver.stop()
        self.network.pump()
        self.failureResultOf(self.received, GaveUp)
        live.stop()

    def test_a_disk_in_use_that_has_such_a_name_is_left_alone(self):
        """Another program may offer it so."""
        exports = {
            "web": Export("web", 0, TransmissionFlag.HAS_FLAGS),
            f"web.sized-{len(DATA)}": Export(
                f"web.sized-{len(DATA)}", len(DATA), TransmissionFlag.HAS_FLAGS
            ),
        }
        server = ServerHandshake(
            exports.get,
            lambda: ["web", "web.handoff", *exports, f"web.sized-{len(DATA)}.served"],
            refusal=lambda name: "not now" if name == "web" else "",
        )
        client = handshake_for("web", len(DATA))
        while (negotiated := client.next_event()) is None:
            client.receive_data(server.data_to_send())
            server.receive_data(client.data_to_send())
        self.assertTrue(is_receiver(negotiated, "web"))
        self.assertTrue(is_in_use(negotiated, "web"))

    def test_who_finishes_meets_a_receiver_without_a_size(self):
        """It knows nothing of the migration, and says so at once."""
        path = self.directory + "/gone"
        record = Record(
            migration=ONE,
            phase=Phase.COPIED,
            attempt=1,
            size=len(DATA),
            source=Location(this_host(), path),
            destination=Location("there", "/copy", "nbd://there/"),
            began="then",
            unlink=True,
            side_export=True,
        )
        Records(path).write(Kind.MIGRATING, record)
        self.network.listen("there", self.receive().factory())
        finisher = resume(
            path,
            Destination(self.network.client_endpoint("there"), uri="nbd://there/"),
            unlink=True,
            runtime=self.runtime,
        )
        ended = finisher.run()
        self.network.pump()
        error = self.failureResultOf(ended, Unconfirmed).value
        self.assertIn("does not know this migration", str(error))

    def test_a_disk_that_does_not_fit_is_refused_in_words(self):
        self.system.free = 1000
        self.network.listen("there", self.receive().factory())
        error = self.failureResultOf(self.send(), Refused).value
        self.assertIn(f"{self.path}: its file system has no room for it", str(error))
        self.assertIn("nothing was touched", str(error))
        self.assertEqual(b"", self.content())
        self.assertIsNone(Records(self.source.path).read(Kind.MIGRATING))
        self.assertNoResult(self.received)

    def test_one_that_does_not_fit_any_more_is_tried_again(self):
        """A receiver has acknowledged the migration: somebody may make room."""
        port = self.network.listen("there", self.receive().factory())
        sent = self.send(max_rate=20000)
        self.network.advance(1)
        self.assertEqual(1, self.sender.progress.attempt)
        self.receiver.stop()
        self.network.pump()
        self.failureResultOf(self.received, GaveUp)
        port.stopListening()
        self.receiver._migration.disk.disk.close()
        os.truncate(self.path, 0)
        self.system.free = 1000
        port = self.network.listen("there", self.receive().factory())
        self.network.advance(30)
        self.assertNoResult(sent)
        self.assertIn("no room", self.sender.last_error)
        self.system.free = 1 << 30
        self.network.advance(60)
        self.assertEqual(len(DATA), self.network.result(sent).bytes)
        self.assertEqual(DATA, self.content())
