"""What a check finds of a destination that is not, or not yet, a blockmig receiver."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol

from blockmig import Server
from blockmig.client import Destination
from blockmig.migration.check.check import check_migration
from blockmig.migration.identity import ANYBODY
from blockmig.migration.policy import Overrides
from blockmig.nbd import Command, Errno, Export, TransmissionFlag
from blockmig.runtime import Runtime
from blockmig.testing import MemoryDisk, synchronous
from tests.unit.migration.source.case import ALL, HandServer
from tests.unit.support import make_plain

from .case import NAMED, SIZE, URI, CheckCase


class ReadServer(HandServer):
    """One that can also be read."""

    def release(self):
        held, self.held = self.held, []
        for request in held:
            error = self.answer(request)
            if error is None:
                continue
            end = request.offset + request.length
            reading = request.command == Command.READ and not error
            data = [bytes(self.data[request.offset : end])] if reading else []
            self.transport.write(b"".join(self.wire.reply(request, error, data)))


class ForeignTests(CheckCase):
    def serve(self, export=None, content=b"", **more):
        """Have another program's server at the address."""
        self.servers = []

        def build():
            server = ReadServer(export or Export("", SIZE, ALL), **more)
            server.data[: len(content)] = content
            self.servers.append(server)
            return server

        self.build = build
        self.endpoint.build = build

    def check(self, identity=ANYBODY, **more):
        return super().check(identity, **more)

    def plain(self, content):
        """Have one that listens, and lists no side export."""
        self.receive(target=MemoryDisk(content))
        make_plain(self.receiver)
        self.factory = self.receiver.factory()

    def test_a_blank_disk(self):
        self.plain(SIZE)
        self.check()
        self.warns("receiver", "is not a blockmig receiver", "start it again")
        self.says("content", "ok", "holds nothing that was found in", "KiB of it")
        self.says("round-trip", "ok")
        self.assertNotIn("rate", self.results())

    def test_a_disk_that_holds_something(self):
        self.plain(b"o" * SIZE)
        self.check()
        self.fails("content", "holds data", "overwrite=True")
        self.told.clear()
        self.check(overrides=Overrides(overwrite=True))
        self.warns("content", "is overwritten, whatever it holds")

    def test_only_samples_of_a_large_disk_are_read(self):
        self.source = MemoryDisk(64 << 20)
        disk = MemoryDisk(64 << 20)
        self.receive(target=disk)
        make_plain(self.receiver)
        self.factory = self.receiver.factory()
        self.check()
        read = self.item("content").figures["read"]
        self.assertLess(read, 8 << 20)
        taken = sum(call.length for call in disk.calls if call.method == "read")
        self.assertLess(taken, read + 100_000)

    def test_one_that_cannot_be_read(self):
        self.serve(answer=lambda request: Errno.EIO)
        self.check()
        self.says("content", "failed", "cannot be read")

    def test_one_that_cannot_be_read_but_is_to_be_overwritten(self):
        """A migration reads nothing there."""
        self.serve(answer=lambda request: Errno.EIO)
        self.check(overrides=Overrides(overwrite=True))
        self.warns("round-trip", "was not measured", "EIO")

    def test_one_that_falls_silent(self):
        self.serve(answer=lambda request: 0 if request.length < 100 else None)
        self.begin(ANYBODY)
        self.endpoint.advance(9)
        self.assertNoResult(self.checking)
        self.endpoint.advance(1)
        self.reported()
        self.fails("content", "cannot be read", "said nothing for 10 s")

    def test_one_that_is_silent_from_the_beginning(self):
        self.serve(answer=lambda request: None)
        self.begin(ANYBODY)
        self.endpoint.advance(10)
        self.reported()
        self.says("round-trip", "warning", "said nothing for 10 s")
        self.says("content", "failed", "cannot be read")

    def test_nothing_but_reads_is_asked_of_it(self):
        self.serve()
        self.check()
        asked = {command for server in self.servers for command in server.commands()}
        self.assertEqual({Command.READ, Command.DISC}, asked)
        (server,) = self.servers
        self.assertTrue(server.lost.check(ConnectionDone))

    def test_one_that_cannot_check_an_id(self):
        self.plain(SIZE)
        self.check(identity=NAMED)
        self.fails("content", "cannot check the id=…", "plain=True")
        self.told.clear()
        self.check(identity=NAMED, overrides=Overrides(plain=True))
        self.assertTrue(self.report.can_begin)

    def test_one_that_is_read_only(self):
        self.serve(Export("", SIZE, ALL | TransmissionFlag.READ_ONLY))
        self.check()
        self.fails("export", "read-only")

    def test_one_without_FLUSH(self):
        self.serve(Export("", SIZE, ALL & ~TransmissionFlag.SEND_FLUSH))
        self.check()
        self.warns("flush", "FLUSH is not offered")
        self.told.clear()
        self.check(unlink=True)
        self.fails("export", "offers no FLUSH", "unlink=False")

    def test_one_of_another_size(self):
        self.serve(Export("", SIZE + 512, ALL))
        self.check()
        self.fails("export", str(SIZE), str(SIZE + 512))

    def test_one_with_large_blocks(self):
        self.serve(Export("", SIZE, ALL, minimum_block=4096))
        self.source = type(self.source)(bytes(SIZE), self.source.path)
        self.check()
        self.assertEqual("ok" if SIZE % 4096 == 0 else "failed", self.results()["export"])

    def test_an_oldstyle_one(self):
        self.serve(Export("", SIZE, ALL), oldstyle=True)
        self.check()
        self.warns("receiver", "is not a blockmig receiver")

    def test_a_server_of_a_disk_in_use(self):
        server = Server(MemoryDisk(SIZE), runtime=Runtime(self.clock, synchronous))
        self.factory = server.factory()
        self.check()
        self.fails("export", "blockmig serve")
        self.assertNotIn("receiver", self.results())
        server.stop()


class UnreachableTests(CheckCase):
    def test_nobody_listens(self):
        self.endpoint.refuse = ConnectionRefusedError()
        self.check()
        self.fails("destination", "nobody listens on there:10809", "start `blockmig receive`")
        self.says("still", "ok")

    def test_one_that_does_not_answer_the_connection(self):
        self.endpoint.connect = lambda factory: Deferred()
        self.begin()
        self.endpoint.advance(9)
        self.assertNoResult(self.checking)
        self.endpoint.advance(1)
        self.reported()
        self.fails("destination", "no connection within 10 s")

    def test_one_that_is_silent(self):
        factory = Factory.forProtocol(Protocol)
        self.endpoint.build = lambda: factory.buildProtocol(None)
        self.begin(timeout=3)
        self.endpoint.advance(2)
        self.assertNoResult(self.checking)
        self.endpoint.advance(1)
        self.reported()
        self.fails("destination", "within 3 s")

    def test_a_side_export_that_is_silent(self):
        self.endpoint.prepare(lambda _: self.endpoint.prepare(lambda link: link.stall()))
        self.begin()
        self.endpoint.advance(10)
        self.endpoint.connections[-1].resume()
        self.endpoint.pump()
        self.reported()
        self.fails("receiver", "within 10 s")

    def test_one_that_speaks_something_else(self):
        class Web(Protocol):
            def connectionMade(self):
                self.transport.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")

        self.endpoint.build = Web
        self.check()
        self.fails("destination", "does not speak NBD")

    def test_another_name_of_the_export(self):
        self.begin_at("web")
        self.fails("destination", "no export named 'web'")

    def test_a_name_that_is_none(self):
        self.begin_at("w" * 5000)
        self.fails("destination", "an export name has at most 4096 bytes")

    def begin_at(self, export):
        self.checking = check_migration(
            self.source,
            Destination(self.endpoint, export, URI),
            tell=self.told.append,
            runtime=Runtime(self.clock, synchronous),
        )
        self.endpoint.pump()
        self.reported()
