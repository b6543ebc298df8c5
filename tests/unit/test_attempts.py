"""The receiver's record and its side export, driven by clients on the test's own hands (R2, R6)."""

from __future__ import annotations

import errno
import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.errors import ExitStatus, GaveUp, LocalFailure, Refused, Unconfirmed
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.handoff.message import PAGE_SIZE, Stage, fingerprint
from blockmig.migration.records.files import Kind, Phase, Record, Records, Side
from blockmig.nbd import Command, CommandFlag, Errno
from tests.support.made import made

from .support import (
    ADDRESS,
    ONE,
    TWO,
    Client,
    RecordedDisk,
    SideClient,
    Story,
    Threads,
    in_thread,
    request_bytes,
)

WRITE, READ, FLUSH, DISC = Command.WRITE, Command.READ, Command.FLUSH, Command.DISC
TRIM, ZEROES = Command.TRIM, Command.WRITE_ZEROES
SIZE = 5000
DATA = bytes(range(250)) * 20
EPERM, EINVAL, EIO = Errno.EPERM, Errno.EINVAL, Errno.EIO


class Case(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        self.directory = directory
        self.disk = RecordedDisk(b"o" * SIZE, directory + "/disk")
        self.records = Records(self.disk.path)
        self.system = Story()
        self.make()

    def make(self, thread=in_thread, **keywords):
        keywords = {"system": self.system, **keywords}
        keywords.setdefault("overwrite", True)
        self.receiver = made(Receiver, self.disk, reactor=self.clock, in_thread=thread, **keywords)
        self.outcome = self.receiver.complete()

    def threads(self):
        threads = Threads()
        self.make(threads)
        return threads

    def client(self, cookie=100):
        connection = self.receiver.factory().buildProtocol(ADDRESS)
        client = Client(self.clock, connection, cookie=cookie)
        client.settle = self.settle
        return client

    def side(self):
        client = SideClient(self.clock, self.receiver.factory().buildProtocol(ADDRESS))
        client.settle = self.settle
        return client

    def settle(self):
        """Nothing, where threads are done at once or when the test says so."""

    def record(self):
        return self.records.read(Kind.INCOMPLETE)

    def names(self):
        return sorted(os.listdir(self.directory))

    def changes(self):
        """What was done to the disk's content."""
        return [name for name in self.disk.names() if name in ("write", "zero", "trim")]

    def waits(self):
        self.clock.advance(0)
        self.assertNoResult(self.outcome)

    def ends_with(self, kind, status, *words):
        self.clock.advance(0)
        error = self.failureResultOf(self.outcome, kind).value
        self.assertEqual(status, error.status)
        for word in words:
            self.assertIn(word, str(error))
        self.assertNotIn("\n", str(error))

    def claimed(self, migration=ONE, cookie=7):
        """A sender of ours that said so, and its side export."""
        side = self.side()
        self.assertEqual(0, side.told("copying", migration, cookie))
        return self.client(cookie), side

    def copied(self, migration=ONE, cookie=7):
        client, side = self.claimed(migration, cookie)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        self.assertEqual(0, side.told("copied", migration, cookie))
        self.assertEqual(Phase.COPIED, self.record().phase)
        return client, side

    def retired(self):
        client, side = self.copied()
        self.assertEqual(0, side.told("retired"))
        return client, side

    def foreign(self):
        """A whole copy by a sender that says nothing of itself."""
        client = self.client()
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        return client

    def stand(self, phase, **changes):
        """A record that an earlier receiver left."""
        source = Side("there", "/source")
        fields = {"identified": True, **changes}
        record = Record(ONE, Phase(phase), 2, SIZE, source, Side(), "then", **fields)
        self.records.write(Kind.INCOMPLETE, record)
        self.make()


class ClaimTests(Case):
    def test_on_record_before_it_is_acknowledged(self):
        threads = self.threads()
        side = self.side()
        self.assertEqual(Stage.NONE, side.page().phase)
        side.tell("copying", unlink=True)
        self.assertEqual(([], []), (side.errors(), self.names()))
        threads.run()
        self.assertEqual([0], side.errors())
        found = self.record()
        self.assertEqual(
            (ONE, Phase.COPYING, 1, SIZE, True, True, True, ""),
            (
                found.migration,
                found.phase,
                found.attempt,
                found.size,
                found.identified,
                found.unlink,
                found.side_export,
                found.retired,
            ),
        )
        self.assertEqual(Side("there", "/source"), found.source)
        self.assertEqual(self.disk.path, found.destination.disk)
        self.assertEqual(0, self.receiver.attempts)

    def test_page(self):
        _, side = self.claimed()
        page = side.page()
        self.assertEqual(
            (Stage.COPYING, fingerprint(ONE), 1, SIZE, self.disk.path, ""),
            (page.phase, page.migration, page.attempt, page.size, page.disk, page.cookie),
        )
        self.assertEqual(os.uname().nodename, page.host)

    def test_prepared_once_and_behind_the_record(self):
        seen = []
        self.disk.prepare = lambda: seen.append(self.names())
        self.claimed()
        self.assertEqual([["disk.INCOMPLETE"]], seen)
        self.claimed()
        self.client().write(0, DATA)
        self.assertEqual(1, len(seen))

    def test_bound_by_the_first_cookie(self):
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        self.assertEqual([0], client.errors())
        self.assertEqual((ONE, 1, True), self.what())
        self.assertEqual(1, self.receiver.attempts)

    def what(self):
        record = self.record()
        return record.migration, record.attempt, record.identified

    def test_bound_by_the_first_request_of_any_kind(self):
        client, _ = self.claimed()
        self.assertEqual(0, client.ask(READ, 0, 1)[0])
        client.write(0, DATA[:10])
        self.assertEqual(ONE, self.record().migration)

    def test_no_other_cookie_binds(self):
        for cookie in (6, 8, 0, 7 << 32, 2**64 - 1):
            self.setUp()
            self.claimed()[0].lose()
            client = self.client(cookie)
            client.ask(READ, 0, 1)
            client.write(0, DATA[:10])
            self.assertEqual([0], client.errors())
            self.assertFalse(self.record().identified, cookie)

    def test_claimed_again(self):
        client, side = self.claimed()
        client.write(0, DATA)
        self.assertEqual(EPERM, side.told("copying"), "an attempt goes on")
        client.lose()
        self.clock.advance(0)
        began = self.record().began
        second, _ = self.claimed(cookie=9)
        second.write(0, DATA)
        self.assertEqual(((ONE, 2, True), began), (self.what(), self.record().began))
        self.assertEqual(2, self.receiver.attempts)

    def test_a_claim_ends_the_attempt_that_its_sender_has_lost(self):
        """Which may be half open here; another's claim does not."""
        client, _ = self.claimed()
        client.write(0, DATA)
        for migration, error in ((TWO, EPERM), ("", EINVAL), (fingerprint(ONE), EINVAL)):
            self.assertEqual(error, self.side().told("copying", migration))
            self.assertFalse(client.transport.gone)
        self.assertEqual(EPERM, self.side().told("copying", cookie=9), "not before it is gone")
        self.clock.advance(0)
        self.assertTrue(client.transport.lost)
        self.assertEqual(0, self.side().told("copying", cookie=9))

    def test_nor_does_a_claim_end_a_foreign_attempt(self):
        client = self.client()
        client.write(0, DATA[:5])
        self.assertEqual(EPERM, self.side().told("copying", self.record().migration))
        self.assertFalse(client.transport.gone)

    def test_claimed_by_another(self):
        self.claimed()
        client, _ = self.claimed(TWO, 9)
        client.write(0, DATA)
        self.assertEqual((TWO, 1, True), self.what())
        # The first one's connection is a stranger's now.
        self.assertEqual(EPERM, self.client(7).ask(ZEROES, 0, 5)[0])

    def test_bad_messages(self):
        side = self.side()
        for more in (
            {"size": SIZE + 1},
            {"migration": ""},
            {"migration": "one"},
            {"migration": fingerprint(ONE)},
        ):
            self.assertEqual(EINVAL, side.told("copying", **more))
        for phase, error in (
            ("none", EINVAL),
            ("complete", EINVAL),
            ("copied", EPERM),
            ("retired", EPERM),
        ):
            self.assertEqual(error, side.told(phase))
        for data in (bytes(4096), b"[" * 4096, b"\xff" * 4096):
            side.write(0, data)
            self.assertEqual([EINVAL], side.errors())
        for cookie in (b'"cookie": ""', b'"cookie": "xyz"'):
            page = b'{"blockmig": 1, "export": "handoff", "phase": "copied", "migration": "%s", %s}'
            side.write(0, (page % (ONE.encode(), cookie)).ljust(4096, b"\0"))
            self.assertEqual([EINVAL], side.errors())
        self.assertEqual([], self.names())
        self.assertFalse(self.receiver.touched)

    def test_only_whole_messages(self):
        side = self.side()
        for offset, length in ((0, 4095), (1, 4095), (0, 1), (4095, 1)):
            side.write(offset, b"x" * length)
            self.assertEqual([EINVAL], side.errors())
        for command in (TRIM, ZEROES):
            self.assertNotEqual(0, side.ask(command, 0, 4096)[0])
        self.assertEqual(Stage.NONE, side.page().phase)
        self.assertEqual(4096, len(side.ask(READ, 0, 4096)[1]))
        self.assertEqual(b"{", side.ask(READ, 0, 1)[1])
        self.assertEqual(bytes(96), side.ask(READ, 4000, 96)[1])

    def test_messages_of_two_are_not_mixed_up(self):
        one, two = self.side(), self.side()
        one.give(request_bytes(WRITE, 0, PAGE_SIZE, 0, 55) + b"{" * 2000)
        self.assertEqual(EPERM, two.told("copied"))
        one.give(bytes(2096))
        self.assertEqual(int(EINVAL).to_bytes(4, "big"), one.received()[4:8])

    def test_what_comes_late_of_an_earlier_claim_is_void(self):
        one, two = self.side(), self.side()
        one.give(request_bytes(WRITE, 0, PAGE_SIZE, 0, 55) + b"{" * 2000)
        self.assertEqual(0, two.told("copying"))
        self.clock.advance(0)
        self.assertTrue(one.transport.lost)
        self.assertFalse(two.transport.gone)

    def test_listed(self):
        factory = self.receiver.factory()
        self.assertEqual(["", ".handoff"], factory._settings.names())


class UnboundTests(Case):
    """Whoever says nothing of itself is put on record before it changes a byte."""

    def test_before_the_first_byte(self):
        for requests in (
            request_bytes(WRITE, 0, 10) + DATA[:10] + request_bytes(WRITE, 10, 10) + DATA[:10],
            request_bytes(ZEROES, 0, 10),
            request_bytes(TRIM, 0, 10),
            request_bytes(WRITE, 0, 10, CommandFlag.FUA) + DATA[:10],
        ):
            self.setUp()
            threads = self.threads()
            client = self.client()
            client.give(requests)
            client.give(request_bytes(FLUSH, cookie=9))
            self.assertEqual((1, []), (len(threads.waiting), self.changes()))
            self.assertEqual(([], b""), (self.names(), client.received()))
            threads.run(1)
            self.assertEqual(["disk.INCOMPLETE"], self.names())
            self.assertFalse(self.record().identified)
            threads.run()
            self.assertNotEqual([], self.changes())
            self.assertEqual("prepare", self.disk.names()[0])

    def test_the_record(self):
        self.foreign()
        found = self.record()
        self.assertEqual(
            (Phase.COPIED, 1, False, False, Side(address="192.0.2.7:4711")),
            (found.phase, found.attempt, found.identified, found.side_export, found.source),
        )
        self.assertEqual("", self.side().page().migration, "nobody can claim to be of it")

    def test_goes_on(self):
        client = self.client()
        client.write(0, DATA[:10])
        client.lose()
        first = self.record()
        second = self.client()
        second.write(0, DATA[:10])
        found = self.record()
        self.assertEqual((first.migration, 2, first.began), self.of(found))

    def of(self, record):
        return record.migration, record.attempt, record.began

    def test_in_place_of_a_claim(self):
        self.claimed()
        client = self.client()
        client.write(0, DATA[:10])
        self.assertEqual([0], client.errors())
        found = self.record()
        self.assertNotEqual(ONE, found.migration)
        self.assertEqual((1, False), (found.attempt, found.identified))

    def test_client_gone_before_the_record_is_there(self):
        threads = self.threads()
        client = self.client()
        client.write(0, DATA)
        client.lose()
        second = self.client()
        second.write(0, DATA[:5])
        self.assertEqual([EPERM], second.errors(), "the first still has the attempt")
        threads.run()
        self.assertEqual([], self.changes())
        second.write(0, DATA[:5])
        threads.run()
        self.assertEqual([0], second.errors())
        self.assertEqual(2, self.record().attempt)

    def test_readers_leave_no_trace(self):
        client = self.client()
        client.ask(READ, 0, 100)
        client.ask(FLUSH)
        self.side().page()
        client.disconnect()
        self.assertEqual([], self.names())
        self.assertNotIn("prepare", self.disk.names())


class FallBackTests(Case):
    def test_before_a_change_of_a_whole_copy(self):
        for request in (
            request_bytes(WRITE, 5, 10) + DATA[:10],
            request_bytes(ZEROES, 5, 10),
            request_bytes(TRIM, 5, 10),
        ):
            self.setUp()
            threads = self.threads()
            client = self.client()
            client.write(0, DATA)
            client.send(FLUSH)
            threads.run()
            self.assertEqual(([0, 0], Phase.COPIED), (client.errors(), self.record().phase))
            self.disk.calls.clear()
            client.give(request)
            self.assertEqual((1, [], Phase.COPIED), self.stands(threads))
            threads.run(1)
            self.assertEqual(Phase.COPYING, self.record().phase)
            self.assertEqual(1, len(self.changes()))
            # Once is enough.
            client.write(0, DATA)
            self.assertEqual(2, len(self.changes()))
            client.send(FLUSH)
            threads.run()
            self.assertEqual(Phase.COPIED, self.record().phase)

    def stands(self, threads):
        return len(threads.waiting), self.changes(), self.record().phase

    def test_a_change_while_copied_is_being_put_down(self):
        threads = self.threads()
        client, side = self.client(), self.side()
        client.write(0, DATA)
        client.send(FLUSH)
        threads.run(1)  # the first record
        threads.run(1)  # the flush
        self.assertEqual(["_write"], threads.names())
        client.write(0, DATA[:10])
        self.disk.calls.clear()
        threads.run(1)
        self.assertEqual((Phase.COPIED, []), (self.record().phase, self.changes()))
        threads.run(1)
        self.assertEqual((Phase.COPYING, ["write"]), (self.record().phase, self.changes()))
        self.assertEqual(EPERM, side.told("copied"))

    def test_asked_while_it_falls_back(self):
        """The change is admitted only behind the record: what is told until then comes late."""
        for words in ("copied", "retired"):
            self.setUp()
            threads = self.threads()
            side = self.side()
            side.tell("copying")
            threads.run()
            client = self.client(7)
            client.write(0, DATA)
            client.send(FLUSH)
            threads.run()
            side.tell("copied")
            threads.run()
            self.assertEqual(([0, 0], [0, 0]), (client.errors(), side.errors()))
            self.disk.calls.clear()
            client.write(0, DATA[:10])
            self.assertEqual((1, [], Phase.COPIED), self.stands(threads))
            side.tell(words)
            self.assertEqual([EPERM], side.errors())
            threads.run()
            self.assertEqual((0, ["write"], Phase.COPYING), self.stands(threads))
            self.assertEqual("", self.record().retired)
            self.assertEqual([0], client.errors())

    def test_a_change_that_began_before_the_flush(self):
        """Whatever is under way in a thread while the flush is, is not durable behind it."""
        threads = self.threads()
        client = self.client()
        client.write(0, DATA)
        threads.run()
        client.give(request_bytes(ZEROES, 0, 10, CommandFlag.FUA, 77))
        client.send(FLUSH)
        self.assertEqual(["_change", "flush"], threads.names())
        threads.waiting.rotate(1)
        threads.run(1)  # the flush
        while "_write" in threads.names():
            threads.waiting.rotate(1)
            threads.run(1)
        self.assertEqual(["_change"], threads.names())
        self.assertEqual(Phase.COPYING, self.record().phase)

    def test_a_whole_copy_of_ours_is_nobody_elses_to_change(self):
        client, side = self.copied()
        client.lose()
        self.clock.advance(0)
        self.disk.calls.clear()
        stranger = self.client()
        for command in (WRITE, ZEROES, TRIM):
            payload = b"evil" if command == WRITE else b""
            self.assertEqual(EPERM, stranger.ask(command, 0, 4, payload=payload)[0])
        self.assertEqual(EPERM, side.told("copying", TWO))
        # Not its sender's either, before it has said that it begins again.
        self.assertEqual(EPERM, self.client(7).ask(ZEROES, 0, 4)[0])
        self.assertEqual(([], Phase.COPIED), (self.changes(), self.record().phase))
        self.assertEqual(0, side.told("copied"), "it is as it was")
        again, _ = self.claimed(cookie=9)
        self.assertEqual(Phase.COPYING, self.record().phase)
        again.write(0, DATA)
        self.assertEqual([0], again.errors())

    def test_a_whole_copy_of_a_foreign_sender_may_be_begun_again(self):
        self.foreign().lose()
        self.clock.advance(0)
        self.disk.calls.clear()
        client = self.client()
        client.write(0, DATA)
        self.assertEqual(([0], Phase.COPYING), (client.errors(), self.record().phase))
        client.lose()
        self.clock.advance(0)
        self.foreign().lose()
        self.clock.advance(0)
        self.claimed(TWO)
        self.assertEqual(TWO, self.record().migration)

    def test_claimed_again_falls_back_before_the_acknowledgement(self):
        threads = self.threads()
        side = self.side()
        side.tell("copying")
        client = self.client(7)
        threads.run()
        client.write(0, DATA)
        client.send(FLUSH)
        threads.run()
        side.tell("copied")
        threads.run()
        client.lose()
        self.assertEqual(([0, 0], Phase.COPIED), (side.errors(), self.record().phase))
        side.tell("copying", cookie=9)
        self.assertEqual(([], EPERM), (side.errors(), self.side().told("copied")))
        threads.run()
        self.assertEqual(([0], Phase.COPYING), (side.errors(), self.record().phase))


class ConfirmTests(Case):
    def test_only_when_copied_and_of_that_migration(self):
        client, side = self.claimed()
        self.assertEqual(EPERM, side.told("copied"))
        client.write(0, DATA[:4000])
        client.send(FLUSH)
        self.assertEqual(EPERM, side.told("copied"), "not all of it")
        client.write(4000, DATA[4000:])
        self.assertEqual(EPERM, side.told("copied"), "not durable")
        self.assertEqual(Phase.COPYING, self.record().phase)
        client.send(FLUSH)
        self.assertEqual([0] * 4, client.errors())
        for migration in (TWO, ONE[:-1] + "3"):
            self.assertEqual(EPERM, side.told("copied", migration))
        for migration in ("", "one", ONE.upper(), fingerprint(ONE)):
            self.assertEqual(EINVAL, side.told("copied", migration))
        self.assertEqual(0, side.told("copied"))
        client.write(0, DATA[:1])
        self.assertEqual(EPERM, side.told("copied"), "changed since")

    def test_nobody_confirms_a_foreign_senders(self):
        self.foreign()
        side = self.side()
        for migration, error in (("", EINVAL), (self.record().migration, EPERM)):
            self.assertEqual(error, side.told("copied", migration))
            self.assertEqual(error, side.told("retired", migration))

    def test_not_before_it_is_on_record(self):
        threads = self.threads()
        side = self.side()
        side.tell("copying")
        threads.run()
        client = self.client(7)
        client.write(0, DATA)
        client.send(FLUSH)
        side.errors()
        self.assertEqual(["flush"], threads.names())
        self.assertEqual(EPERM, side.told("copied"))
        self.assertEqual([0], client.errors(), "the flush is not answered yet")
        threads.run()
        self.assertEqual([0], client.errors())
        side.tell("copied")
        self.assertEqual(["_write"], threads.names())
        self.assertEqual(([], Phase.COPYING), (side.errors(), self.record().phase))
        self.assertEqual(EPERM, self.side().told("retired"), "nothing follows from it yet")
        threads.run()
        self.assertEqual(([0], Phase.COPIED), (side.errors(), self.record().phase))

    def test_not_before_it_is_on_record_of_a_foreign_sender(self):
        """One that cannot say `copied` has its flush answered behind the record."""
        threads = self.threads()
        client = self.client()
        client.write(0, DATA)
        client.send(FLUSH)
        threads.run(2)
        self.assertEqual((["_write"], [0]), (threads.names(), client.errors()))
        self.assertEqual(Phase.COPYING, self.record().phase)
        threads.run()
        self.assertEqual(([0], Phase.COPIED), (client.errors(), self.record().phase))

    def written(self):
        """All of it is here, and nothing of it is durable."""
        client, side = self.claimed()
        client.write(0, DATA)
        self.assertEqual([0], client.errors())
        return client, side

    def flushed(self):
        """What a mirror does after each pass; it has not said that this was all."""
        client, side = self.written()
        self.assertEqual(0, client.ask(FLUSH)[0])
        return client, side

    def written_by_threads(self):
        """All of it is here, and the flush asked for."""
        threads = self.threads()
        side = self.side()
        side.tell("copying")
        threads.run()
        client = self.client(7)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0], side.errors())
        return threads, client, side

    def flushed_by_threads(self):
        threads, client, side = self.written_by_threads()
        threads.run()
        self.assertEqual([0, 0], client.errors())
        return threads, client, side

    def check_not_copied(self):
        self.assertEqual(Phase.COPYING, self.record().phase)
        self.assertNotIn("INCOMPLETE copied", self.words)
        page = self.side().page()
        self.assertEqual((Stage.COPYING, "copying"), (page.phase, self.state()))

    def state(self):
        return self.receiver.status()["state"]

    def watch(self):
        """What was ever on record, from now on."""
        self.words = []
        self.system.tell = self.words.append

    def test_a_flush_puts_nothing_on_record(self):
        """Whoever has claimed the migration may go on: its disk is in use."""
        self.watch()
        client, side = self.flushed()
        self.check_not_copied()
        for _ in range(3):
            self.assertEqual(0, client.ask(ZEROES, 5, 10)[0])
            self.assertEqual(0, client.ask(FLUSH)[0])
        self.check_not_copied()
        self.assertEqual(["INCOMPLETE copying"], self.words, "and has nothing to take back")
        self.assertEqual(0, side.told("copied"))
        self.assertEqual(["INCOMPLETE copying", "INCOMPLETE copied"], self.words)
        self.assertEqual((Phase.COPIED, "copied"), (self.record().phase, self.state()))

    def test_nothing_follows_from_a_flush(self):
        """No retiring, no end, no leave to be silent."""
        _, side = self.flushed()
        self.assertEqual(EPERM, side.told("retired"))
        self.receiver.stop("enough")
        self.ends_with(GaveUp, 4, "is not canonical")
        self.assertEqual(Phase.COPYING, self.record().phase)

    def test_stopped_behind_copied(self):
        _, side = self.flushed()
        self.assertEqual(0, side.told("copied"))
        self.receiver.stop("enough")
        self.ends_with(Unconfirmed, 5, "look at there:/source")

    def test_stopped_while_copied_is_being_put_down(self):
        """What is on record in the end says more than what was told: that is the safe side."""
        threads, _, side = self.flushed_by_threads()
        side.tell("copied")
        self.assertEqual("copying", self.state())
        self.receiver.stop("enough")
        self.waits()
        self.assertEqual([], side.errors())
        threads.run()
        self.ends_with(GaveUp, 4)
        self.assertEqual(Phase.COPIED, self.record().phase)

    def test_copied_without_a_flush(self):
        self.watch()
        _, side = self.written()
        self.assertEqual(EPERM, side.told("copied"))
        self.check_not_copied()

    def test_copied_with_a_flush_of_less(self):
        self.watch()
        client, side = self.claimed()
        client.write(0, DATA[:4000])
        client.send(FLUSH)
        client.write(4000, DATA[4000:])
        self.assertEqual([0, 0, 0], client.errors())
        self.assertEqual(EPERM, side.told("copied"))
        self.check_not_copied()

    def test_copied_with_a_change_behind_the_flush(self):
        for command in (WRITE, ZEROES, TRIM):
            self.setUp()
            self.watch()
            client, side = self.flushed()
            payload = b"new" if command == WRITE else b""
            self.assertEqual(0, client.ask(command, 7, 3, payload=payload)[0])
            self.assertEqual(EPERM, side.told("copied"), command)
            self.check_not_copied()
            # Until it is flushed as well.
            self.assertEqual(0, client.ask(FLUSH)[0])
            self.check_not_copied()
            self.assertEqual(0, side.told("copied"))

    def test_copied_with_a_change_under_way(self):
        """Admitted behind the flush, and not done: nobody knows what is durable."""
        threads, client, side = self.flushed_by_threads()
        client.send(ZEROES, 0, 10, CommandFlag.FUA)
        self.assertEqual(["_change"], threads.names())
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))
        threads.run()
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))

    def test_copied_with_half_a_write_behind_the_flush(self):
        client, side = self.flushed()
        client.give(request_bytes(WRITE, 0, 100, cookie=999) + b"half")
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))

    def test_copied_and_changed_while_that_is_put_down(self):
        threads, client, side = self.flushed_by_threads()
        side.tell("copied")
        client.write(0, DATA[:10])
        threads.run()
        self.assertEqual(Phase.COPYING, self.record().phase)
        self.assertEqual([EPERM], side.errors(), "it is not what stands there")
        self.assertEqual(EPERM, side.told("retired"))

    def test_told_twice(self):
        self.watch()
        _, side = self.flushed()
        self.assertEqual([0, 0], [side.told("copied"), side.told("copied")])
        self.assertEqual(["INCOMPLETE copying", "INCOMPLETE copied"], self.words)

    def test_told_twice_at_once(self):
        threads, _, side = self.flushed_by_threads()
        other = self.side()
        side.tell("copied")
        other.tell("copied")
        self.assertEqual(([], []), (side.errors(), other.errors()))
        threads.run()
        self.assertEqual(([0], [0]), (side.errors(), other.errors()))
        self.assertEqual(Phase.COPIED, self.record().phase)

    def test_told_by_another_connection(self):
        """The sender's own to the side export may have been lost; what counts is who flushed."""
        _, side = self.flushed()
        side.lose()
        self.clock.advance(0)
        other = self.side()
        self.assertEqual(EPERM, other.told("copied", TWO))
        self.assertEqual(Phase.COPYING, self.record().phase)
        self.assertEqual((0, Phase.COPIED), (other.told("copied"), self.record().phase))

    def test_not_once_the_attempt_is_gone(self):
        """Whatever it had flushed: another may have begun, and its coverage is forgotten."""
        client, side = self.flushed()
        client.lose()
        self.clock.advance(0)
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))
        second, side = self.claimed(cookie=9)
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))
        self.assertEqual(0, second.ask(FLUSH)[0])
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))
        second.write(0, DATA[:10])
        second.send(FLUSH)
        self.assertEqual([0, 0], second.errors())
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))

    def test_a_flush_that_comes_back_late(self):
        """It was asked for when all was there; what came meanwhile is not durable."""
        threads, client, side = self.written_by_threads()
        self.assertEqual(["flush"], threads.names())
        client.write(5, b"late")
        threads.run()
        side.errors()
        self.assertEqual([0, 0, 0], sorted(client.errors()))
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))

    def test_a_change_while_the_flush_waits_for_what_is_on_its_way(self):
        """Its reply waits for the writing behind, and what is changed meanwhile is not durable."""
        threads = self.threads()
        side = self.side()
        side.tell("copying")
        threads.run()
        client = self.client(7)
        client.write(0, DATA)
        for offset in range(0, SIZE, 2):
            client.write(offset, DATA[offset : offset + 1])
        self.assertEqual(["work"], threads.names())
        client.send(FLUSH)
        threads.waiting.rotate(1)
        self.assertEqual(["flush", "work"], threads.names())
        threads.run(1)
        self.assertEqual({0}, set(client.errors()))
        client.write(5, b"late")
        threads.run()
        self.assertEqual([0, 0], client.errors())
        side.errors()
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))

    def test_the_late_flush_of_an_attempt_that_is_gone(self):
        threads, client, side = self.written_by_threads()
        client.lose()
        self.clock.advance(0)
        self.assertEqual(["flush"], threads.names())
        threads.run()
        self.clock.advance(0)
        side.errors()
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))

    def test_a_flush_from_before_does_not_count_for_the_next_attempt(self):
        threads, client, side = self.written_by_threads()
        client.lose()
        side.errors()
        side.tell("copying", cookie=9)
        self.assertEqual([EPERM], side.errors(), "something of it is under way")
        threads.run()
        self.clock.advance(0)
        side.tell("copying", cookie=9)
        threads.run()
        self.assertEqual([0], side.errors())
        second = self.client(9)
        second.write(0, DATA)
        self.assertEqual([0], second.errors())
        self.assertEqual(
            (EPERM, Phase.COPYING), (side.told("copied", cookie=9), self.record().phase)
        )

    def test_not_by_who_has_not_claimed_it(self):
        """The attempt is a stranger's, although the record was somebody's before."""
        self.claimed()[0].lose()
        self.clock.advance(0)
        stranger = self.client(100)
        stranger.write(0, DATA)
        self.assertEqual([0], stranger.errors())
        self.assertEqual(EPERM, self.side().told("copied"))
        self.assertEqual(0, stranger.ask(FLUSH)[0])
        self.assertEqual(EPERM, self.side().told("copied"))

    def test_a_strays_flush_does_not_make_it_copied(self):
        client, side = self.claimed()
        client.write(0, DATA)
        stray = self.client()
        self.assertEqual(0, stray.ask(FLUSH)[0])
        self.assertEqual((EPERM, Phase.COPYING), (side.told("copied"), self.record().phase))

    def test_a_flush_that_fails_does_not(self):
        client, side = self.claimed()
        client.write(0, DATA)
        self.disk.fail["flush"] = OSError(errno.EIO, "broken")
        client.send(FLUSH)
        self.assertEqual([0, EIO], client.errors())
        self.assertEqual(EIO, side.told("copied"))
        self.assertEqual(Phase.COPYING, self.record().phase)

    def test_by_a_receiver_that_was_started_again(self):
        self.stand("copied")
        self.assertEqual(0, self.side().told("copied"))
        self.assertEqual(EPERM, self.side().told("copied", TWO))
        self.stand("copying")
        self.assertEqual(EPERM, self.side().told("copied"))
        self.stand("copied", identified=False)
        self.assertEqual(EPERM, self.side().told("copied"))


class RetiredTests(Case):
    def test_on_record_before_it_is_acknowledged(self):
        threads = self.threads()
        side = self.side()
        side.tell("copying")
        threads.run()
        client = self.client(7)
        client.write(0, DATA)
        client.send(FLUSH)
        threads.run()
        self.assertEqual(([0], [0, 0]), (side.errors(), client.errors()))
        side.tell("copied")
        threads.run()
        self.assertEqual([0], side.errors())
        side.tell("retired")
        self.assertEqual(([], ""), (side.errors(), self.record().retired))
        # From this instant on nothing is changed any more, on record or not yet.
        self.assertEqual(EPERM, client.ask(ZEROES, 0, 4)[0])
        threads.run()
        self.assertEqual([0], side.errors())
        self.assertRegex(self.record().retired, "Z$")
        self.assertEqual(Stage.RETIRED, side.page().phase)

    def test_refused(self):
        client, side = self.claimed()
        self.assertEqual(EPERM, side.told("retired"))
        client.write(0, DATA)
        self.assertEqual(EPERM, side.told("retired"))
        client.send(FLUSH)
        self.assertEqual(EPERM, side.told("retired"), "nobody has said that this is all")
        self.assertEqual(0, side.told("copied"))
        self.assertEqual(EPERM, side.told("retired", TWO))
        self.assertEqual("", self.record().retired)
        client.write(0, DATA[:5])
        self.assertEqual(EPERM, side.told("retired"))

    def test_twice(self):
        _, side = self.retired()
        first = self.record()
        self.clock.advance(5)
        self.assertEqual(0, side.told("retired", cookie=9))
        self.assertEqual(first, self.record())

    def test_the_second_waits_for_the_first(self):
        self.stand("copied")
        threads = self.threads()
        one, two = self.side(), self.side()
        one.tell("retired")
        two.tell("retired")
        self.assertEqual(([], []), (one.errors(), two.errors()))
        threads.run()
        self.assertEqual(([0], [0]), (one.errors(), two.errors()))

    def test_nothing_changes_it_any_more(self):
        client, side = self.retired()
        self.disk.calls.clear()
        for other in (client, self.client(7), self.client()):
            for command in (WRITE, ZEROES, TRIM):
                payload = b"evil" if command == WRITE else b""
                self.assertEqual(EPERM, other.ask(command, 0, 4, payload=payload)[0])
        client.lose()
        self.clock.advance(0)
        for other in (self.client(7), self.client()):
            self.assertEqual(EPERM, other.ask(ZEROES, 0, 4)[0])
        for migration in (ONE, TWO):
            self.assertEqual(EPERM, side.told("copying", migration))
        self.assertEqual([], self.changes())
        self.assertEqual(0, side.told("copied"))

    def test_nor_behind_a_restart(self):
        self.stand("copied", retired="then")
        side = self.side()
        self.assertEqual(Stage.RETIRED, side.page().phase)
        self.assertEqual(EPERM, self.client().ask(ZEROES, 0, 4)[0])
        self.assertEqual(EPERM, side.told("copying"))
        self.assertEqual([], self.changes())
        self.assertEqual("then", self.record().retired)

    def check_complete(self):
        self.clock.advance(0)
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)
        self.assertEqual([], self.names())

    def test_the_disconnect_in_good_order(self):
        client, side = self.retired()
        client.disconnect()
        side.disconnect()
        self.check_complete()

    def test_a_disconnect_while_waiting(self):
        """The finisher's: it needs the record to say `retired`, and the cookie that it gave."""
        self.stand("copied")
        self.client(7).disconnect()
        self.waits()
        side = self.side()
        self.assertEqual(0, side.told("retired", cookie=7))
        for cookie in (0, 6, 8):
            stranger = self.client(cookie)
            stranger.disconnect()
            self.waits()
            self.assertTrue(stranger.transport.lost)
        reader = self.client(6)
        reader.ask(READ, 0, 1)
        reader.disconnect()
        self.waits()
        self.assertEqual(["disk.INCOMPLETE"], self.names())
        finisher = self.client(7)
        finisher.disconnect()
        side.disconnect()
        self.check_complete()
        self.assertEqual("flush", self.disk.names()[-1])
        self.assertTrue(finisher.transport.lost)

    def test_copied_is_not_enough(self):
        client, side = self.copied()
        client.lose()
        self.clock.advance(0)
        self.assertEqual(0, side.told("copied"))
        self.client(7).disconnect()
        self.waits()
        self.assertEqual(["disk.INCOMPLETE"], self.names())

    def test_the_last_cookie_counts(self):
        client, side = self.retired()
        client.lose()
        self.clock.advance(0)
        self.assertEqual(0, side.told("retired", cookie=9))
        self.client(7).disconnect()
        self.waits()
        self.client(9).disconnect()
        side.disconnect()
        self.check_complete()

    def test_another_may_finish_while_the_attempts_connection_is_there(self):
        """One that hangs half open must not keep the finisher out."""
        _, side = self.retired()
        self.assertEqual(0, side.told("retired", cookie=9))
        self.client(9).disconnect()
        side.disconnect()
        self.check_complete()

    def test_told_by_the_sender_of_a_migration_that_was_complete(self):
        """Its receiver died behind the end, and was started again: it has no record any more."""
        self.check_was_complete(True)

    def check_was_complete(self, expected, token=None, **more):
        self.make()
        side = self.side()
        token = self.disk.identity() if token is None else token
        error = side.told("retired", token=token, **more)
        self.assertEqual(0 if expected else EPERM, error)
        self.assertEqual([], self.names())
        self.client(7).disconnect()
        if expected:
            self.assertEqual(Stage.COMPLETE, side.page().phase)
            side.disconnect()
            self.check_complete()
            self.assertEqual([], self.changes())
        else:
            self.waits()

    def test_but_of_no_other(self):
        self.check_was_complete(False, token="")
        self.check_was_complete(False, token=self.disk.path)
        self.check_was_complete(False, token="inode 5, born 7")
        self.check_was_complete(False, size=SIZE + 1)
        self.disk.identity = lambda: ""
        self.check_was_complete(False)

    def test_nor_once_another_migration_began(self):
        self.claimed(TWO)
        self.assertEqual(EPERM, self.side().told("retired", token=self.disk.identity()))
        self.claimed(ONE, 9)
        self.assertEqual(EPERM, self.side().told("retired", token=self.disk.identity()))

    def test_told_while_another_attempt_is_over(self):
        client, side = self.copied()
        client.disconnect()
        side.disconnect()
        self.check_complete()


class TokenTests(Case):
    """What the disk is known by is for the sender alone, and not before its source is retired."""

    def tokens(self, *sides):
        return [side.page().token for side in sides]

    def test_handed_out(self):
        client, side = self.copied()
        other = self.side()
        self.assertEqual(0, side.told("copied"))
        self.assertEqual(["", ""], self.tokens(side, other))
        self.assertEqual(0, side.told("retired"))
        self.assertEqual(["inode 5, born 6", ""], self.tokens(side, other))
        client.disconnect()
        self.assertEqual(["inode 5, born 6", ""], self.tokens(side, other))

    def test_not_to_one_that_was_refused(self):
        self.copied()
        other = self.side()
        for migration, error in ((TWO, EPERM), (fingerprint(ONE), EINVAL)):
            self.assertEqual(error, other.told("retired", migration))
            self.assertEqual([""], self.tokens(other))

    def test_nothing_to_speak_with_is_shown(self):
        """No page has the UUID; what it has instead is no message."""
        self.retired()
        page = self.side().page()
        self.assertNotIn(ONE, page.encode().decode())
        self.assertFalse(page.is_message)
        stranger = self.side()
        for phase in ("copying", "copied", "retired"):
            self.assertEqual(EINVAL, stranger.told(phase, page.migration))

    def test_not_while_something_else_is_being_put_down(self):
        """A receiver that was started anew is untouched until somebody begins."""
        threads = self.threads()
        one = self.side()
        one.tell("copying", TWO)
        self.assertEqual(["_write"], threads.names())
        self.assertEqual(EPERM, self.side().told("retired", token=self.disk.identity()))
        threads.run()
        self.assertEqual([0], one.errors())
        self.assertEqual((TWO, ""), (self.record().migration, self.record().retired))


class EndTests(Case):
    def test_order(self):
        events = []
        self.system.tell = events.append
        self.disk._called = lambda name, *_: events.append(name)
        client, side = self.retired()
        client.disconnect()
        self.assertEqual(
            [
                "INCOMPLETE copying",
                "prepare",
                "write",
                "flush",
                "INCOMPLETE copied",
                "INCOMPLETE copied retired",
                "flush",
                "INCOMPLETE removed",
            ],
            events,
        )
        self.assertEqual(Stage.COMPLETE, side.page().phase)

    def test_reading_the_page_waits_for_the_end(self):
        self.stand("copied")
        threads = self.threads()
        side = self.side()
        side.tell("retired")
        threads.run()
        self.assertEqual([0], side.errors())
        client = self.client(7)
        client.disconnect()
        side.send(READ, 0, PAGE_SIZE)
        self.assertEqual([], side.replies())
        self.assertEqual(["finish"], threads.names())
        self.assertNotEqual([], self.names())
        threads.run()
        ((_, error, data),) = side.replies()
        self.assertEqual(0, error)
        self.assertIn(b'"complete"', data)
        self.assertEqual([], self.names())
        self.assertIn(fingerprint(ONE).encode(), data)

    def test_reading_the_page_while_the_end_fails(self):
        self.stand("copied", retired="then")
        threads = self.threads()
        side = self.side()
        side.tell("retired")
        threads.run()
        side.errors()
        self.disk.fail["flush"] = OSError(errno.EIO, "broken")
        self.client(7).disconnect()
        side.send(READ, 0, PAGE_SIZE)
        threads.run()
        ((_, error, data),) = side.replies()
        self.assertEqual(0, error)
        self.assertIn(b'"retired"', data)

    def test_the_side_lingers(self):
        client, side = self.retired()
        silent, stranger = self.side(), self.client()
        client.disconnect()
        self.assertTrue(client.transport.lost)
        self.assertTrue(stranger.transport.lost)
        self.waits()
        self.assertEqual(Stage.COMPLETE, side.page().phase)
        self.assertIsNone(self.receiver.factory().buildProtocol(ADDRESS))
        side.disconnect()
        self.waits()
        self.assertFalse(silent.transport.gone)
        silent.disconnect()
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_for_a_few_seconds_at_most(self):
        client, side = self.retired()
        client.disconnect()
        self.clock.advance(4.9)
        self.waits()
        self.clock.advance(0.2)
        self.clock.advance(0)
        self.assertTrue(side.transport.lost)
        self.successResultOf(self.outcome)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_not_where_it_failed(self):
        _, side = self.copied()
        self.receiver.stop()
        self.ends_with(Unconfirmed, 5)
        self.assertTrue(side.transport.lost)

    def test_the_side_may_be_silent_while_the_copy_goes_on(self):
        """Its sender has nothing to say for hours; another's has no such leave."""
        client, side = self.claimed()
        other = self.side()
        for _ in range(20):
            self.clock.advance(10)
            client.write(0, DATA[:1])
        self.assertTrue(other.transport.lost)
        self.assertFalse(side.transport.gone)

    def test_told_behind_the_end(self):
        client, side = self.retired()
        client.disconnect()
        for phase in ("copying", "copied", "retired"):
            self.assertEqual(Errno.ESHUTDOWN, side.told(phase))
        self.assertEqual([], self.names())


class FailureTests(Case):
    broken = OSError(errno.ENOSPC, "No space left on device")

    def setUp(self):
        super().setUp()
        threads = self.threads()
        self.settle = threads.run

    def fails(self, seconds=6):
        for _ in range(10 * seconds):
            self.settle()
            self.clock.advance(0.1)
        self.ends_with(LocalFailure, ExitStatus.FAILED, "No space left on device")

    def test_a_claim(self):
        side = self.side()
        self.system.fail["INCOMPLETE copying"] = self.broken
        self.assertEqual(Errno.ENOSPC, side.told("copying"))
        self.assertEqual(Errno.ENOSPC, side.told("copying"))
        self.assertEqual(Errno.ENOSPC, self.client().ask(ZEROES, 0, 5)[0])
        self.assertEqual([], self.changes())
        self.fails()

    def test_not_touched_by_a_record_that_could_not_be_written(self):
        self.system.fail["INCOMPLETE copying"] = self.broken
        self.assertEqual(Errno.ENOSPC, self.side().told("copying"))
        self.assertEqual((False, []), (self.receiver.touched, self.names()))
        self.fails()

    def test_settling(self):
        """What is seen may be undone by a power failure: it is not gone on from."""
        syncs = []

        def fsync(descriptor):
            syncs.append(descriptor)
            if len(syncs) == 3:
                raise self.broken

        self.system.fsync = fsync
        self.assertEqual(Errno.ENOSPC, self.side().told("copying"))
        self.assertNotIn("prepare", self.disk.names())
        self.fails()

    def test_the_first_change(self):
        client = self.client()
        self.system.fail["INCOMPLETE copying"] = self.broken
        client.write(0, DATA)
        self.assertEqual([Errno.ENOSPC], client.errors())
        self.assertEqual([], self.changes())
        client.lose()
        self.fails(1)

    def test_preparing(self):
        self.disk.fail["prepare"] = self.broken
        client = self.client()
        client.write(0, DATA)
        self.assertEqual([Errno.ENOSPC], client.errors())
        self.assertEqual(([], ["disk.INCOMPLETE"]), (self.changes(), self.names()))
        self.fails()

    def test_copied(self):
        client, side = self.claimed()
        self.system.fail["INCOMPLETE copied"] = self.broken
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors(), "nothing was to be put down")
        self.assertEqual(Errno.ENOSPC, side.told("copied"))
        self.assertEqual(Errno.ENOSPC, side.told("copied"))
        self.assertEqual(Errno.ENOSPC, side.told("retired"))
        self.assertEqual(Errno.ENOSPC, client.ask(ZEROES, 0, 5)[0])
        self.assertEqual(Phase.COPYING, self.record().phase)
        client.disconnect()
        self.fails()
        self.assertEqual(["disk.INCOMPLETE"], self.names())

    def test_copied_by_a_foreign_sender(self):
        client = self.client()
        self.system.fail["INCOMPLETE copied"] = self.broken
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, Errno.ENOSPC], client.errors())
        self.assertEqual(Errno.ENOSPC, self.side().told("copied"))
        self.assertEqual(Phase.COPYING, self.record().phase)
        client.disconnect()
        self.fails()
        self.assertEqual(["disk.INCOMPLETE"], self.names())

    def test_falling_back(self):
        client, side = self.copied()
        self.disk.calls.clear()
        self.system.fail["INCOMPLETE copying"] = self.broken
        client.write(0, DATA)
        self.assertEqual([Errno.ENOSPC], client.errors())
        self.assertEqual(([], Phase.COPIED), (self.changes(), self.record().phase))
        self.assertNotEqual(0, side.told("retired"))
        self.fails()

    def test_retired(self):
        _, side = self.copied()
        self.system.fail["INCOMPLETE copied retired"] = self.broken
        self.assertEqual(Errno.ENOSPC, side.told("retired"))
        self.assertEqual("", self.record().retired)
        self.fails()

    def test_removing(self):
        client, side = self.retired()
        self.system.fail["INCOMPLETE removed"] = self.broken
        client.disconnect()
        self.assertEqual(Stage.RETIRED, side.page().phase, "not complete")
        self.fails()
        self.assertTrue(self.record().retired)

    def test_the_sender_has_a_little_time_to_hear_of_it(self):
        """Long enough to be told, and no longer: nobody waits for a client that is not there."""
        self.system.fail["INCOMPLETE copying"] = self.broken
        self.side().tell("copying")
        self.settle()
        self.clock.advance(0.4)
        self.waits()
        self.fails(1)


class StopTests(Case):
    def test_table(self):
        for prepare, kind, status, words in (
            (lambda: None, GaveUp, 4, "nothing was received"),
            (self.claimed, GaveUp, 4, "is not canonical"),
            (lambda: self.client().write(0, DATA), GaveUp, 4, "is not canonical"),
            (self.copied, Unconfirmed, 5, "look at there:/source"),
            (self.foreign, Unconfirmed, 5, "look at 192.0.2.7:4711"),
            (self.retired, Unconfirmed, 5, "memory is the canonical copy"),
            (lambda: self.stand("copying"), GaveUp, 4, "is not canonical"),
            (lambda: self.stand("copied"), Unconfirmed, 5, "only if the source was retired"),
            (lambda: self.stand("copied", retired="x"), Unconfirmed, 5, "the canonical copy"),
        ):
            for ask in ("stop", "give up"):
                self.setUp()
                if ask == "give up":
                    self.make(give_up_after=30)
                prepare()
                before = self.names()
                if ask == "stop" or "stand" in prepare.__code__.co_names:
                    self.receiver.stop("enough")
                else:
                    self.clock.pump([1] * 100)
                self.ends_with(kind, status, words)
                self.assertEqual(before, self.names(), "what is on record stays")

    def test_changed_after_it_was_copied(self):
        client, _ = self.copied()
        client.write(0, DATA[:1])
        self.receiver.stop()
        self.ends_with(GaveUp, 4, "is not canonical")

    def test_too_late(self):
        self.stand("copied", retired="then")
        threads = self.threads()
        side = self.side()
        side.tell("retired")
        threads.run()
        self.client(7).disconnect()
        self.receiver.stop()
        self.waits()
        threads.run()
        side.disconnect()
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)

    def test_while_a_record_is_written(self):
        """No outcome before the thread is done; and what it wrote stands."""
        threads = self.threads()
        self.side().tell("copying")
        self.receiver.stop()
        self.waits()
        threads.run()
        self.ends_with(GaveUp, 4, "is not canonical")
        self.assertEqual(["disk.INCOMPLETE"], self.names())


class BeginTests(Case):
    def test_refused(self):
        record = Record(ONE, Phase.COPIED, 1, SIZE, Side(), Side("z"), "", retired="then")
        for kind in (Kind.MIGRATED, Kind.MIGRATING):
            self.records.write(kind, record)
            self.assertRaises(Refused, self.make)
            self.make(again=True)
            self.assertEqual([f"disk.{kind}"], self.names(), "nothing is done before it must be")
            self.claimed()
            self.assertEqual(["disk.INCOMPLETE"], self.names())
            self.records.remove(Kind.INCOMPLETE)

    def test_again_disregards_what_was_copied(self):
        self.stand("copied", retired="then")
        self.make(again=True)
        self.assertEqual(Stage.NONE, self.side().page().phase)
        self.claimed(TWO)
        self.assertEqual((TWO, ""), (self.record().migration, self.record().retired))

    def test_accepted_is_true_no_more(self):
        record = Record(ONE, Phase.COPIED, 1, SIZE, Side(), Side(), "", by="me")
        self.records.write(Kind.ACCEPTED, record)
        self.assertRaises(Refused, self.make)
        self.make(again=True)
        events = []
        self.system.tell = events.append
        self.client().write(0, DATA)
        self.assertEqual(["INCOMPLETE copying", "ACCEPTED removed"], events)

    def test_again_goes_on_with_what_it_has_begun(self):
        self.make(again=True)
        self.copied()
        self.assertTrue(self.record().again)
        self.make(again=True)
        self.assertEqual(Stage.COPIED, self.side().page().phase)
        self.assertEqual(0, self.side().told("copied"))
        self.make(again=True)
        self.foreign_after_claim()
        self.assertTrue(self.record().again)

    def foreign_after_claim(self):
        """The record of a sender that says nothing of itself has it as well."""
        self.records.remove(Kind.INCOMPLETE)
        self.make(again=True)
        self.client().write(0, DATA)
        self.assertFalse(self.record().identified)

    def test_settled_with_the_first_record(self):
        """What an earlier process did must be durable before somebody relies on it."""
        synced = []
        self.system.fsync = synced.append
        self.claimed()
        self.assertEqual(3, len(synced), "the record, its name, and what was there before")
        self.claimed()
        self.assertEqual(5, len(synced))

    def test_touched(self):
        self.assertFalse(self.receiver.touched)
        self.claimed()
        self.assertTrue(self.receiver.touched)

    def test_the_name_leaves_room_for_the_side_exports(self):
        self.make(export="ä" * 2044)
        self.assertRaises(ValueError, self.make, export="ä" * 2044 + "x")
