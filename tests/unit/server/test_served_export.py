"""The list of exports says that the disk of the server is in use."""

from __future__ import annotations

import json

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import SERVED_EXPORT, Command, Errno, served_export_name
from blockmig.server import Server
from blockmig.testing import MemoryDisk, synchronous
from tests.support.made import made
from tests.unit.support import ADDRESS, Client

SIZE = 5000


class NoticeTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        self.disk = MemoryDisk(b"d" * SIZE)

    def serve(self, export="web", **keywords):
        self.server = made(
            Server, self.disk, export, reactor=self.clock, in_thread=synchronous, **keywords
        )
        return self.server.factory().buildProtocol(ADDRESS)

    def test_the_notice_is_listed_beside_the_export(self):
        for export in ("", "web"):
            connection = self.serve(export)
            self.assertEqual([export, export + ".served"], connection.settings.names())

    def test_a_name_that_leaves_no_room_has_no_notice(self):
        name = "n" * 4090
        self.assertIsNone(served_export_name(name))
        self.assertEqual([name], self.serve(name).settings.names())
        self.assertEqual("n" * 4089 + SERVED_EXPORT, served_export_name("n" * 4089))

    def test_an_export_with_the_name_of_a_notice_is_served_as_usual(self):
        connection = self.serve(".served")
        self.assertEqual([".served", ".served.served"], connection.settings.names())
        client = Client(self.clock, connection, ".served")
        self.assertEqual(SIZE, client.negotiated.export.size)

    def test_the_notice_says_that_the_disk_is_no_destination(self):
        client = Client(self.clock, self.serve(), "web.served")
        export = client.negotiated.export
        self.assertEqual((4096, True), (export.size, export.read_only))
        error, data = client.ask(Command.READ, 0, 4096)
        self.assertEqual((0, 4096), (error, len(data)))
        message = json.loads(data.rstrip(b"\0"))
        self.assertEqual(("served", SIZE), (message["export"], message["size"]))
        self.assertIn("no destination", message["says"])
        self.assertEqual((0, data[8:17]), client.ask(Command.READ, 8, 9))
        self.assertEqual([], self.disk.calls)

    def test_the_notice_is_read_only(self):
        client = Client(self.clock, self.serve(), "web.served")
        for command, payload in (
            (Command.WRITE, b"x"),
            (Command.WRITE_ZEROES, b""),
            (Command.TRIM, b""),
        ):
            self.assertEqual(Errno.EPERM, client.ask(command, 0, 1, payload=payload)[0])
        client.disconnect()
        self.clock.advance(0)
        self.assertTrue(client.transport.gone)

    def test_who_reads_it_all_the_time_gives_way_to_a_client_that_has_just_come(self):
        self.serve()
        readers = []

        def another():
            self.clock.advance(0.01)
            connection = self.server.factory().buildProtocol(ADDRESS)
            readers.append(Client(self.clock, connection, "web.served"))
            for reader in readers:
                if reader.transport.listens:
                    self.assertEqual(0, reader.ask(Command.READ, 0, 9)[0])

        for _ in range(150):
            another()
        client = Client(self.clock, self.server.factory().buildProtocol(ADDRESS), "web")
        for _ in range(100):
            another()
        self.assertEqual(0, client.ask(Command.READ, 0, 9)[0])
