"""A sender whose destination is no receiver of blockmig's: its content is checked first."""

from __future__ import annotations

import random

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import GaveUp, Refused
from blockmig.migration.source.foreign import DestinationNotEmpty, check_empty
from blockmig.nbd import Command, Errno, Export, ServerHandshake
from blockmig.storage import sample_ranges
from blockmig.testing import UnlinkableMemoryDisk
from tests.unit.migration.source.case import (
    ALL,
    DATA,
    DISC,
    FLUSH,
    SIZE,
    WRITE,
    HandServer,
    SenderCase,
)

READ = Command.READ
LARGE = 300 << 20


class CheckTests(SynchronousTestCase):
    """The check itself, on disks so large that only places are sampled."""

    def setUp(self):
        self.there = {}
        self.here = {}
        self.asked = []

    def read(self, offset, length):
        self.asked.append((offset, length))
        return succeed(self.there.get(offset, b"").ljust(length, b"\0"))

    def read_own(self, offset, length):
        return succeed(self.here.get(offset, b"").ljust(length, b"\0"))

    def check(self, *arguments, size=LARGE, longest=2 << 20, **keywords):
        checking = check_empty(size, longest, self.read, *arguments, **keywords)
        return Deferred.fromCoroutine(checking)

    def refused(self, *arguments, **keywords):
        return str(
            self.failureResultOf(self.check(*arguments, **keywords), DestinationNotEmpty).value
        )

    def test_a_blank_destination_is_read_at_every_sampled_place(self):
        self.successResultOf(self.check())
        self.assertEqual(sample_ranges(LARGE), self.asked)

    def test_no_read_is_longer_than_the_server_allows(self):
        self.successResultOf(self.check(longest=65536))
        self.assertEqual(65536, max(length for _, length in self.asked))
        self.assertEqual(
            sum(length for _, length in sample_ranges(LARGE)),
            sum(length for _, length in self.asked),
        )

    def test_one_byte_at_any_sampled_place_is_data(self):
        for offset, _ in sample_ranges(LARGE):
            self.there = {offset: b"x"}
            self.assertIn("data", self.refused())

    def test_known_contents_are_named_in_the_refusal(self):
        self.there = {0: bytes(1024 + 56) + b"\x53\xef"}
        self.assertIn("an ext2 file system", self.refused())

    def test_our_own_copy_is_zero_or_equal_to_the_source(self):
        places = [offset for offset, _ in sample_ranges(LARGE)]
        self.here = dict.fromkeys(places, b"ours")
        self.there = dict.fromkeys(places[:20], b"ours")
        self.successResultOf(self.check(self.read_own))

    def test_any_difference_means_that_the_copy_is_not_ours(self):
        places = [offset for offset, _ in sample_ranges(LARGE)]
        self.here = dict.fromkeys(places, b"ours")
        for offset in places:
            self.there = {places[0]: b"ours", offset: b"theirs"}
            self.assertIn("not a part of this disk", self.refused(self.read_own))

    def test_a_partly_written_place_counts_as_ours(self):
        """The connection was lost in the middle of the place."""
        self.here = {0: b"ours" * (1 << 18)}
        for length in (512, 65536, (1 << 20) - 512):
            self.there = {0: self.here[0][:length]}
            self.successResultOf(self.check(self.read_own))
        self.there = {0: self.here[0][:65536] + b"theirs"}
        self.assertIn("not a part", self.refused(self.read_own))

    def test_places_that_clients_changed_may_differ(self):
        places = [offset for offset, _ in sample_ranges(LARGE)]
        self.there = {places[5]: b"older"}
        self.here = {places[5]: b"newer"}

        def changed(offset, length):
            return places[5] <= offset < places[6]

        self.successResultOf(self.check(self.read_own, changed=changed))
        self.there[places[6]] = b"theirs"
        self.assertIn("not a part", self.refused(self.read_own, changed=changed))

    def test_client_changes_do_not_excuse_data_that_was_never_ours(self):
        self.there = {0: b"theirs"}
        self.assertIn("data", self.refused(changed=lambda offset, length: True))


class Server(HandServer):
    """A server that can be read."""

    content = bytes(SIZE)

    def __init__(self, export, **keywords):
        super().__init__(export, **keywords)
        self.data = bytearray(self.content)

    def release(self):
        held, self.held = self.held, []
        for request in held:
            error = self.answer(request)
            if request.command == Command.WRITE_ZEROES:
                self.data[request.offset : request.offset + request.length] = bytes(request.length)
            data = []
            if request.command == READ and not error:
                data = [bytes(self.data[request.offset : request.offset + request.length])]
            if error is not None:
                self.transport.write(b"".join(self.wire.reply(request, error, data)))


class SenderTests(SenderCase):
    content = bytes(SIZE)

    def build(self):
        server = Server(self.export, **self.keywords)
        server.data[:] = self.content
        self.servers.append(server)
        return server

    def send(self, **keywords):
        super().send(**{"overwrite": False, "destination": "nbd://there/", **keywords})

    def refused(self, *words, **keywords):
        self.send(unlink=True, retry=True, **keywords)
        why = self.failure(Refused)
        for word in words:
            self.assertIn(word, why)
        self.assertFalse(self.disk.unlinked)
        for server in self.servers:
            self.assertEqual({READ}, set(server.commands()) - {DISC}, "nothing was touched")
        self.assertFalse(self.sender.when_accepted.called)

    def test_a_blank_destination_is_read_first_and_then_written(self):
        self.send(unlink=True)
        self.summary()
        self.assertEqual(DATA, bytes(self.servers[0].data))
        commands = self.servers[0].commands()
        self.assertLess(max(i for i, c in enumerate(commands) if c == READ), commands.index(WRITE))

    def test_a_destination_with_data_is_refused(self):
        self.content = bytes(SIZE - 1) + b"x"
        self.refused("nbd://there/", "data", "overwrite=True")

    def test_a_destination_that_cannot_be_read_is_refused(self):
        self.keywords = {"answer": lambda r: Errno.EIO if r.command == READ else 0}
        self.refused("cannot be read", "EIO", "overwrite=True")

    def test_a_destination_is_overwritten_when_asked_for(self):
        for content, answer in (
            (b"x" * SIZE, lambda request: 0),
            (bytes(SIZE), lambda r: Errno.EIO if r.command == READ else 0),
        ):
            self.setUp()
            self.content, self.keywords = content, {"answer": answer}
            self.send(overwrite=True, unlink=True)
            self.summary()
            self.assertEqual(DATA, bytes(self.servers[0].data))
            self.assertNotIn(READ, self.servers[0].commands())

    def test_our_own_unfinished_copy_is_continued(self):
        """In the same process; in a later one the record says so."""
        self.keywords = {"answer": lambda r: None if r.command == FLUSH else 0}
        self.send()
        self.endpoint.connections[0].cut()
        self.endpoint.pump()
        self.content, self.keywords = self.servers[0].data, {}
        self.pass_time()
        self.summary()
        self.assertEqual(2, len(self.servers))

    def test_another_disk_at_the_address_is_not_overwritten(self):
        """The server of the first attempt has ended, and another has its address."""
        self.keywords = {"answer": lambda r: None if r.command == FLUSH else 0}
        self.send()
        self.endpoint.connections[0].cut()
        self.endpoint.pump()
        self.content, self.keywords = random.Random(9).randbytes(SIZE), {}
        for _ in range(3):
            self.pass_time()
        self.assertNoResult(self.outcome)
        self.assertIn("not a part of this disk", self.sender.last_error)
        for server in self.servers[1:]:
            self.assertEqual({READ}, set(server.commands()) - {DISC})
            self.assertEqual(self.content, bytes(server.data))
        self.sender.stop()
        self.failure(GaveUp)

    def test_a_large_destination_is_read_at_the_sampled_places_only(self):
        self.disk = UnlinkableMemoryDisk(bytes(16 << 20))
        self.export = Export("", 16 << 20, ALL)
        self.content = bytes(16 << 20)
        self.send()
        self.summary()
        asked = [(r.offset, r.length) for r in self.servers[0].requests if r.command == READ]
        self.assertEqual(sample_ranges(16 << 20), asked)


class ServedTests(SenderCase):
    """A server that lists NAME.served gives its disk to clients."""

    names: tuple[str, ...] = ("", ".served")

    def build(self):
        names = self.names

        class Served(HandServer):
            def connectionMade(self):
                super().connectionMade()
                self.transport.discard()
                self.handshake = ServerHandshake(lambda name: self.export, lambda: names)
                self.transport.write(self.handshake.data_to_send())

        server = Served(self.export)
        self.servers.append(server)
        return server

    def test_a_served_disk_is_refused_even_with_overwrite(self):
        for keywords in ({}, {"unlink": True}, {"overwrite": True}):
            self.setUp()
            self.send(**{"overwrite": False, **keywords})
            self.assertIn("blockmig serve", self.failure(Refused))
            self.assertFalse(self.disk.unlinked)
            self.assertEqual([], self.servers[0].commands())

    def test_a_notice_of_another_export_does_not_matter(self):
        self.names = ("", "other.served", "served")
        self.send()
        self.summary()

    def test_a_served_disk_is_waited_for_with_retry(self):
        """The receiver may not be started yet while yesterday's server still runs."""
        self.send(retry=True)
        self.assertNoResult(self.outcome)
        self.assertIn("blockmig serve", self.sender.last_error)
        self.names = ("",)
        self.pass_time()
        self.summary()
