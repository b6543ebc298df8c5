"""The receiver's record and its handoff export, driven by hand (R2, R6)."""

from __future__ import annotations

import errno
import os

from blockmig.errors import ExitStatus, GaveUp, LocalFailure, Refused, Unconfirmed
from blockmig.migration.handoff.message import MESSAGE_SIZE, HandoffPhase, fingerprint
from blockmig.migration.records.files import Kind, Location, Phase, Record
from blockmig.nbd import Command, CommandFlag, Errno
from tests.unit.migration.destination.case import DATA, SIZE, ReceiverCase
from tests.unit.support import (
    ADDRESS,
    ONE,
    TWO,
    request_bytes,
)

WRITE, READ, FLUSH, DISC = Command.WRITE, Command.READ, Command.FLUSH, Command.DISC
TRIM, ZEROES = Command.TRIM, Command.WRITE_ZEROES
EPERM, EINVAL, EIO = Errno.EPERM, Errno.EINVAL, Errno.EIO


class ClaimTests(ReceiverCase):
    def test_on_record_before_it_is_acknowledged(self):
        threads = self.threads()
        handoff = self.handoff()
        self.assertEqual(HandoffPhase.NONE, handoff.page().phase)
        handoff.send_message("copying", unlink=True)
        self.assertEqual(([], []), (handoff.errors(), self.names()))
        threads.run()
        self.assertEqual([0], handoff.errors())
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
        self.assertEqual(Location("there", "/source"), found.source)
        self.assertEqual(self.disk.path, found.destination.disk)
        self.assertEqual(0, self.receiver.attempts)

    def test_page(self):
        _, handoff = self.claimed()
        message = handoff.page()
        self.assertEqual(
            (HandoffPhase.COPYING, fingerprint(ONE), 1, SIZE, self.disk.path, ""),
            (
                message.phase,
                message.migration,
                message.attempt,
                message.size,
                message.disk,
                message.cookie,
            ),
        )
        self.assertEqual(os.uname().nodename, message.host)

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
        client, handoff = self.claimed()
        client.write(0, DATA)
        self.assertEqual(EPERM, handoff.notify("copying"), "an attempt goes on")
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
            self.assertEqual(error, self.handoff().notify("copying", migration))
            self.assertTrue(client.transport.listens)
        self.assertEqual(EPERM, self.handoff().notify("copying", cookie=9), "not before it is gone")
        self.clock.advance(0)
        self.assertTrue(client.transport.gone)
        self.assertEqual(0, self.handoff().notify("copying", cookie=9))

    def test_nor_does_a_claim_end_a_foreign_attempt(self):
        client = self.client()
        client.write(0, DATA[:5])
        self.assertEqual(EPERM, self.handoff().notify("copying", self.record().migration))
        self.assertTrue(client.transport.listens)

    def test_claimed_by_another(self):
        self.claimed()
        client, _ = self.claimed(TWO, 9)
        client.write(0, DATA)
        self.assertEqual((TWO, 1, True), self.what())
        # The first one's connection is a stranger's now.
        self.assertEqual(EPERM, self.client(7).ask(ZEROES, 0, 5)[0])

    def test_bad_messages(self):
        handoff = self.handoff()
        for more in (
            {"size": SIZE + 1},
            {"migration": ""},
            {"migration": "one"},
            {"migration": fingerprint(ONE)},
        ):
            self.assertEqual(EINVAL, handoff.notify("copying", **more))
        for phase, error in (
            ("none", EINVAL),
            ("complete", EINVAL),
            ("copied", EPERM),
            ("retired", EPERM),
        ):
            self.assertEqual(error, handoff.notify(phase))
        for data in (bytes(4096), b"[" * 4096, b"\xff" * 4096):
            handoff.write(0, data)
            self.assertEqual([EINVAL], handoff.errors())
        for cookie in (b'"cookie": ""', b'"cookie": "xyz"'):
            page = b'{"blockmig": 1, "export": "handoff", "phase": "copied", "migration": "%s", %s}'
            handoff.write(0, (page % (ONE.encode(), cookie)).ljust(4096, b"\0"))
            self.assertEqual([EINVAL], handoff.errors())
        self.assertEqual([], self.names())
        self.assertFalse(self.receiver.touched)

    def test_only_whole_messages(self):
        handoff = self.handoff()
        for offset, length in ((0, 4095), (1, 4095), (0, 1), (4095, 1)):
            handoff.write(offset, b"x" * length)
            self.assertEqual([EINVAL], handoff.errors())
        for command in (TRIM, ZEROES):
            self.assertNotEqual(0, handoff.ask(command, 0, 4096)[0])
        self.assertEqual(HandoffPhase.NONE, handoff.page().phase)
        self.assertEqual(4096, len(handoff.ask(READ, 0, 4096)[1]))
        self.assertEqual(b"{", handoff.ask(READ, 0, 1)[1])
        self.assertEqual(bytes(96), handoff.ask(READ, 4000, 96)[1])

    def test_messages_of_two_are_not_mixed_up(self):
        one, two = self.handoff(), self.handoff()
        one.give(request_bytes(WRITE, 0, MESSAGE_SIZE, 0, 55) + b"{" * 2000)
        self.assertEqual(EPERM, two.notify("copied"))
        one.give(bytes(2096))
        self.assertEqual(int(EINVAL).to_bytes(4, "big"), one.received()[4:8])

    def test_what_comes_late_of_an_earlier_claim_is_void(self):
        one, two = self.handoff(), self.handoff()
        one.give(request_bytes(WRITE, 0, MESSAGE_SIZE, 0, 55) + b"{" * 2000)
        self.assertEqual(0, two.notify("copying"))
        self.clock.advance(0)
        self.assertTrue(one.transport.gone)
        self.assertTrue(two.transport.listens)

    def test_listed(self):
        factory = self.receiver.factory()
        self.assertEqual(["", ".handoff"], factory._settings.names())


class UnboundTests(ReceiverCase):
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
            (Phase.COPIED, 1, False, False, Location(address="192.0.2.7:4711")),
            (found.phase, found.attempt, found.identified, found.side_export, found.source),
        )
        self.assertEqual("", self.handoff().page().migration, "nobody can claim to be of it")

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
        self.handoff().page()
        client.disconnect()
        self.assertEqual([], self.names())
        self.assertNotIn("prepare", self.disk.names())


class FallBackTests(ReceiverCase):
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
        client, handoff = self.client(), self.handoff()
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
        self.assertEqual(EPERM, handoff.notify("copied"))

    def test_asked_while_it_falls_back(self):
        """The change is admitted only behind the record: what is told until then comes late."""
        for words in ("copied", "retired"):
            self.setUp()
            threads = self.threads()
            handoff = self.handoff()
            handoff.send_message("copying")
            threads.run()
            client = self.client(7)
            client.write(0, DATA)
            client.send(FLUSH)
            threads.run()
            handoff.send_message("copied")
            threads.run()
            self.assertEqual(([0, 0], [0, 0]), (client.errors(), handoff.errors()))
            self.disk.calls.clear()
            client.write(0, DATA[:10])
            self.assertEqual((1, [], Phase.COPIED), self.stands(threads))
            handoff.send_message(words)
            self.assertEqual([EPERM], handoff.errors())
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
        threads.rotate(1)
        threads.run(1)  # the flush
        while "_write" in threads.names():
            threads.rotate(1)
            threads.run(1)
        self.assertEqual(["_change"], threads.names())
        self.assertEqual(Phase.COPYING, self.record().phase)

    def test_a_whole_copy_of_ours_is_nobody_elses_to_change(self):
        client, handoff = self.copied()
        client.lose()
        self.clock.advance(0)
        self.disk.calls.clear()
        stranger = self.client()
        for command in (WRITE, ZEROES, TRIM):
            payload = b"evil" if command == WRITE else b""
            self.assertEqual(EPERM, stranger.ask(command, 0, 4, payload=payload)[0])
        self.assertEqual(EPERM, handoff.notify("copying", TWO))
        # Not its sender's either, before it has said that it begins again.
        self.assertEqual(EPERM, self.client(7).ask(ZEROES, 0, 4)[0])
        self.assertEqual(([], Phase.COPIED), (self.changes(), self.record().phase))
        self.assertEqual(0, handoff.notify("copied"), "it is as it was")
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
        handoff = self.handoff()
        handoff.send_message("copying")
        client = self.client(7)
        threads.run()
        client.write(0, DATA)
        client.send(FLUSH)
        threads.run()
        handoff.send_message("copied")
        threads.run()
        client.lose()
        self.assertEqual(([0, 0], Phase.COPIED), (handoff.errors(), self.record().phase))
        handoff.send_message("copying", cookie=9)
        self.assertEqual(([], EPERM), (handoff.errors(), self.handoff().notify("copied")))
        threads.run()
        self.assertEqual(([0], Phase.COPYING), (handoff.errors(), self.record().phase))


class ConfirmTests(ReceiverCase):
    def test_only_when_copied_and_of_that_migration(self):
        client, handoff = self.claimed()
        self.assertEqual(EPERM, handoff.notify("copied"))
        client.write(0, DATA[:4000])
        client.send(FLUSH)
        self.assertEqual(EPERM, handoff.notify("copied"), "not all of it")
        client.write(4000, DATA[4000:])
        self.assertEqual(EPERM, handoff.notify("copied"), "not durable")
        self.assertEqual(Phase.COPYING, self.record().phase)
        client.send(FLUSH)
        self.assertEqual([0] * 4, client.errors())
        for migration in (TWO, ONE[:-1] + "3"):
            self.assertEqual(EPERM, handoff.notify("copied", migration))
        for migration in ("", "one", ONE.upper(), fingerprint(ONE)):
            self.assertEqual(EINVAL, handoff.notify("copied", migration))
        self.assertEqual(0, handoff.notify("copied"))
        client.write(0, DATA[:1])
        self.assertEqual(EPERM, handoff.notify("copied"), "changed since")

    def test_nobody_confirms_a_foreign_senders(self):
        self.foreign()
        handoff = self.handoff()
        for migration, error in (("", EINVAL), (self.record().migration, EPERM)):
            self.assertEqual(error, handoff.notify("copied", migration))
            self.assertEqual(error, handoff.notify("retired", migration))

    def test_not_before_it_is_on_record(self):
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("copying")
        threads.run()
        client = self.client(7)
        client.write(0, DATA)
        client.send(FLUSH)
        handoff.errors()
        self.assertEqual(["flush"], threads.names())
        self.assertEqual(EPERM, handoff.notify("copied"))
        self.assertEqual([0], client.errors(), "the flush is not answered yet")
        threads.run()
        self.assertEqual([0], client.errors())
        handoff.send_message("copied")
        self.assertEqual(["_write"], threads.names())
        self.assertEqual(([], Phase.COPYING), (handoff.errors(), self.record().phase))
        self.assertEqual(EPERM, self.handoff().notify("retired"), "nothing follows from it yet")
        threads.run()
        self.assertEqual(([0], Phase.COPIED), (handoff.errors(), self.record().phase))

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
        client, handoff = self.claimed()
        client.write(0, DATA)
        self.assertEqual([0], client.errors())
        return client, handoff

    def flushed(self):
        """What a mirror does after each pass; it has not said that this was all."""
        client, handoff = self.written()
        self.assertEqual(0, client.ask(FLUSH)[0])
        return client, handoff

    def written_by_threads(self):
        """All of it is here, and the flush asked for."""
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("copying")
        threads.run()
        client = self.client(7)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0], handoff.errors())
        return threads, client, handoff

    def flushed_by_threads(self):
        threads, client, handoff = self.written_by_threads()
        threads.run()
        self.assertEqual([0, 0], client.errors())
        return threads, client, handoff

    def check_not_copied(self):
        self.assertEqual(Phase.COPYING, self.record().phase)
        self.assertNotIn("INCOMPLETE copied", self.words)
        message = self.handoff().page()
        self.assertEqual((HandoffPhase.COPYING, "copying"), (message.phase, self.state()))

    def state(self):
        return self.receiver.status()["state"]

    def watch(self):
        """What was ever on record, from now on."""
        self.words = []
        self.system.tell = self.words.append

    def test_a_flush_puts_nothing_on_record(self):
        """Whoever has claimed the migration may go on: its disk is in use."""
        self.watch()
        client, handoff = self.flushed()
        self.check_not_copied()
        for _ in range(3):
            self.assertEqual(0, client.ask(ZEROES, 5, 10)[0])
            self.assertEqual(0, client.ask(FLUSH)[0])
        self.check_not_copied()
        self.assertEqual(["INCOMPLETE copying"], self.words, "and has nothing to take back")
        self.assertEqual(0, handoff.notify("copied"))
        self.assertEqual(["INCOMPLETE copying", "INCOMPLETE copied"], self.words)
        self.assertEqual((Phase.COPIED, "copied"), (self.record().phase, self.state()))

    def test_nothing_follows_from_a_flush(self):
        """No retiring, no end, no leave to be silent."""
        _, handoff = self.flushed()
        self.assertEqual(EPERM, handoff.notify("retired"))
        self.receiver.stop("enough")
        self.ends_with(GaveUp, 4, "is not canonical")
        self.assertEqual(Phase.COPYING, self.record().phase)

    def test_stopped_behind_copied(self):
        _, handoff = self.flushed()
        self.assertEqual(0, handoff.notify("copied"))
        self.receiver.stop("enough")
        self.ends_with(Unconfirmed, 5, "look at there:/source")

    def test_stopped_while_copied_is_being_put_down(self):
        """What is on record in the end says more than what was told: that is the safe handoff."""
        threads, _, handoff = self.flushed_by_threads()
        handoff.send_message("copied")
        self.assertEqual("copying", self.state())
        self.receiver.stop("enough")
        self.waits()
        self.assertEqual([], handoff.errors())
        threads.run()
        self.ends_with(GaveUp, 4)
        self.assertEqual(Phase.COPIED, self.record().phase)

    def test_copied_without_a_flush(self):
        self.watch()
        _, handoff = self.written()
        self.assertEqual(EPERM, handoff.notify("copied"))
        self.check_not_copied()

    def test_copied_with_a_flush_of_less(self):
        self.watch()
        client, handoff = self.claimed()
        client.write(0, DATA[:4000])
        client.send(FLUSH)
        client.write(4000, DATA[4000:])
        self.assertEqual([0, 0, 0], client.errors())
        self.assertEqual(EPERM, handoff.notify("copied"))
        self.check_not_copied()

    def test_copied_with_a_change_behind_the_flush(self):
        for command in (WRITE, ZEROES, TRIM):
            self.setUp()
            self.watch()
            client, handoff = self.flushed()
            payload = b"new" if command == WRITE else b""
            self.assertEqual(0, client.ask(command, 7, 3, payload=payload)[0])
            self.assertEqual(EPERM, handoff.notify("copied"), command)
            self.check_not_copied()
            # Until it is flushed as well.
            self.assertEqual(0, client.ask(FLUSH)[0])
            self.check_not_copied()
            self.assertEqual(0, handoff.notify("copied"))

    def test_copied_with_a_change_under_way(self):
        """Admitted behind the flush, and not done: nobody knows what is durable."""
        threads, client, handoff = self.flushed_by_threads()
        client.send(ZEROES, 0, 10, CommandFlag.FUA)
        self.assertEqual(["_change"], threads.names())
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))
        threads.run()
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_copied_with_half_a_write_behind_the_flush(self):
        client, handoff = self.flushed()
        client.give(request_bytes(WRITE, 0, 100, cookie=999) + b"half")
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_copied_and_changed_while_that_is_put_down(self):
        threads, client, handoff = self.flushed_by_threads()
        handoff.send_message("copied")
        client.write(0, DATA[:10])
        threads.run()
        self.assertEqual(Phase.COPYING, self.record().phase)
        self.assertEqual([EPERM], handoff.errors(), "it is not what stands there")
        self.assertEqual(EPERM, handoff.notify("retired"))

    def test_told_twice(self):
        self.watch()
        _, handoff = self.flushed()
        self.assertEqual([0, 0], [handoff.notify("copied"), handoff.notify("copied")])
        self.assertEqual(["INCOMPLETE copying", "INCOMPLETE copied"], self.words)

    def test_told_twice_at_once(self):
        threads, _, handoff = self.flushed_by_threads()
        other = self.handoff()
        handoff.send_message("copied")
        other.send_message("copied")
        self.assertEqual(([], []), (handoff.errors(), other.errors()))
        threads.run()
        self.assertEqual(([0], [0]), (handoff.errors(), other.errors()))
        self.assertEqual(Phase.COPIED, self.record().phase)

    def test_told_by_another_connection(self):
        """The sender's own to the handoff export may have been lost; what counts is who flushed."""
        _, handoff = self.flushed()
        handoff.lose()
        self.clock.advance(0)
        other = self.handoff()
        self.assertEqual(EPERM, other.notify("copied", TWO))
        self.assertEqual(Phase.COPYING, self.record().phase)
        self.assertEqual((0, Phase.COPIED), (other.notify("copied"), self.record().phase))

    def test_not_once_the_attempt_is_gone(self):
        """Whatever it had flushed: another may have begun, and its coverage is forgotten."""
        client, handoff = self.flushed()
        client.lose()
        self.clock.advance(0)
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))
        second, handoff = self.claimed(cookie=9)
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))
        self.assertEqual(0, second.ask(FLUSH)[0])
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))
        second.write(0, DATA[:10])
        second.send(FLUSH)
        self.assertEqual([0, 0], second.errors())
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_a_flush_that_comes_back_late(self):
        """It was asked for when all was there; what came meanwhile is not durable."""
        threads, client, handoff = self.written_by_threads()
        self.assertEqual(["flush"], threads.names())
        client.write(5, b"late")
        threads.run()
        handoff.errors()
        self.assertEqual([0, 0, 0], sorted(client.errors()))
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_a_change_while_the_flush_waits_for_what_is_on_its_way(self):
        """Its reply waits for the writing behind, and what is changed meanwhile is not durable."""
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("copying")
        threads.run()
        client = self.client(7)
        client.write(0, DATA)
        for offset in range(0, SIZE, 2):
            client.write(offset, DATA[offset : offset + 1])
        self.assertEqual(["work"], threads.names())
        client.send(FLUSH)
        threads.rotate(1)
        self.assertEqual(["flush", "work"], threads.names())
        threads.run(1)
        self.assertEqual({0}, set(client.errors()))
        client.write(5, b"late")
        threads.run()
        self.assertEqual([0, 0], client.errors())
        handoff.errors()
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_the_late_flush_of_an_attempt_that_is_gone(self):
        threads, client, handoff = self.written_by_threads()
        client.lose()
        self.clock.advance(0)
        self.assertEqual(["flush"], threads.names())
        threads.run()
        self.clock.advance(0)
        handoff.errors()
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_a_flush_from_before_does_not_count_for_the_next_attempt(self):
        threads, client, handoff = self.written_by_threads()
        client.lose()
        handoff.errors()
        handoff.send_message("copying", cookie=9)
        self.assertEqual([EPERM], handoff.errors(), "something of it is under way")
        threads.run()
        self.clock.advance(0)
        handoff.send_message("copying", cookie=9)
        threads.run()
        self.assertEqual([0], handoff.errors())
        second = self.client(9)
        second.write(0, DATA)
        self.assertEqual([0], second.errors())
        self.assertEqual(
            (EPERM, Phase.COPYING), (handoff.notify("copied", cookie=9), self.record().phase)
        )

    def test_not_by_who_has_not_claimed_it(self):
        """The attempt is a stranger's, although the record was somebody's before."""
        self.claimed()[0].lose()
        self.clock.advance(0)
        stranger = self.client(100)
        stranger.write(0, DATA)
        self.assertEqual([0], stranger.errors())
        self.assertEqual(EPERM, self.handoff().notify("copied"))
        self.assertEqual(0, stranger.ask(FLUSH)[0])
        self.assertEqual(EPERM, self.handoff().notify("copied"))

    def test_a_strays_flush_does_not_make_it_copied(self):
        client, handoff = self.claimed()
        client.write(0, DATA)
        stray = self.client()
        self.assertEqual(0, stray.ask(FLUSH)[0])
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_a_flush_that_fails_does_not(self):
        client, handoff = self.claimed()
        client.write(0, DATA)
        self.disk.fail("flush", OSError(errno.EIO, "broken"), times=None)
        client.send(FLUSH)
        self.assertEqual([0, EIO], client.errors())
        self.assertEqual(EIO, handoff.notify("copied"))
        self.assertEqual(Phase.COPYING, self.record().phase)

    def test_by_a_receiver_that_was_started_again(self):
        self.stand("copied")
        self.assertEqual(0, self.handoff().notify("copied"))
        self.assertEqual(EPERM, self.handoff().notify("copied", TWO))
        self.stand("copying")
        self.assertEqual(EPERM, self.handoff().notify("copied"))
        self.stand("copied", identified=False)
        self.assertEqual(EPERM, self.handoff().notify("copied"))


class RetiredTests(ReceiverCase):
    def test_on_record_before_it_is_acknowledged(self):
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("copying")
        threads.run()
        client = self.client(7)
        client.write(0, DATA)
        client.send(FLUSH)
        threads.run()
        self.assertEqual(([0], [0, 0]), (handoff.errors(), client.errors()))
        handoff.send_message("copied")
        threads.run()
        self.assertEqual([0], handoff.errors())
        handoff.send_message("retired")
        self.assertEqual(([], ""), (handoff.errors(), self.record().retired))
        # From this instant on nothing is changed any more, on record or not yet.
        self.assertEqual(EPERM, client.ask(ZEROES, 0, 4)[0])
        threads.run()
        self.assertEqual([0], handoff.errors())
        self.assertRegex(self.record().retired, "Z$")
        self.assertEqual(HandoffPhase.RETIRED, handoff.page().phase)

    def test_refused(self):
        client, handoff = self.claimed()
        self.assertEqual(EPERM, handoff.notify("retired"))
        client.write(0, DATA)
        self.assertEqual(EPERM, handoff.notify("retired"))
        client.send(FLUSH)
        self.assertEqual(EPERM, handoff.notify("retired"), "nobody has said that this is all")
        self.assertEqual(0, handoff.notify("copied"))
        self.assertEqual(EPERM, handoff.notify("retired", TWO))
        self.assertEqual("", self.record().retired)
        client.write(0, DATA[:5])
        self.assertEqual(EPERM, handoff.notify("retired"))

    def test_twice(self):
        _, handoff = self.retired()
        first = self.record()
        self.clock.advance(5)
        self.assertEqual(0, handoff.notify("retired", cookie=9))
        self.assertEqual(first, self.record())

    def test_the_second_waits_for_the_first(self):
        self.stand("copied")
        threads = self.threads()
        one, two = self.handoff(), self.handoff()
        one.send_message("retired")
        two.send_message("retired")
        self.assertEqual(([], []), (one.errors(), two.errors()))
        threads.run()
        self.assertEqual(([0], [0]), (one.errors(), two.errors()))

    def test_nothing_changes_it_any_more(self):
        client, handoff = self.retired()
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
            self.assertEqual(EPERM, handoff.notify("copying", migration))
        self.assertEqual([], self.changes())
        self.assertEqual(0, handoff.notify("copied"))

    def test_nor_behind_a_restart(self):
        self.stand("copied", retired="then")
        handoff = self.handoff()
        self.assertEqual(HandoffPhase.RETIRED, handoff.page().phase)
        self.assertEqual(EPERM, self.client().ask(ZEROES, 0, 4)[0])
        self.assertEqual(EPERM, handoff.notify("copying"))
        self.assertEqual([], self.changes())
        self.assertEqual("then", self.record().retired)

    def check_complete(self):
        self.clock.advance(0)
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)
        self.assertEqual([], self.names())

    def test_the_disconnect_in_good_order(self):
        client, handoff = self.retired()
        client.disconnect()
        handoff.disconnect()
        self.check_complete()

    def test_a_disconnect_while_waiting(self):
        """The finisher's: it needs the record to say `retired`, and the cookie that it gave."""
        self.stand("copied")
        self.client(7).disconnect()
        self.waits()
        handoff = self.handoff()
        self.assertEqual(0, handoff.notify("retired", cookie=7))
        for cookie in (0, 6, 8):
            stranger = self.client(cookie)
            stranger.disconnect()
            self.waits()
            self.assertTrue(stranger.transport.gone)
        reader = self.client(6)
        reader.ask(READ, 0, 1)
        reader.disconnect()
        self.waits()
        self.assertEqual(["disk.INCOMPLETE"], self.names())
        finisher = self.client(7)
        finisher.disconnect()
        handoff.disconnect()
        self.check_complete()
        self.assertEqual("flush", self.disk.names()[-1])
        self.assertTrue(finisher.transport.gone)

    def test_copied_is_not_enough(self):
        client, handoff = self.copied()
        client.lose()
        self.clock.advance(0)
        self.assertEqual(0, handoff.notify("copied"))
        self.client(7).disconnect()
        self.waits()
        self.assertEqual(["disk.INCOMPLETE"], self.names())

    def test_the_last_cookie_counts(self):
        client, handoff = self.retired()
        client.lose()
        self.clock.advance(0)
        self.assertEqual(0, handoff.notify("retired", cookie=9))
        self.client(7).disconnect()
        self.waits()
        self.client(9).disconnect()
        handoff.disconnect()
        self.check_complete()

    def test_another_may_finish_while_the_attempts_connection_is_there(self):
        """One that hangs half open must not keep the finisher out."""
        _, handoff = self.retired()
        self.assertEqual(0, handoff.notify("retired", cookie=9))
        self.client(9).disconnect()
        handoff.disconnect()
        self.check_complete()

    def test_told_by_the_sender_of_a_migration_that_was_complete(self):
        """Its receiver died behind the end, and was started again: it has no record any more."""
        self.check_was_complete(True)

    def check_was_complete(self, expected, token=None, **more):
        self.make()
        handoff = self.handoff()
        token = self.disk.identity() if token is None else token
        error = handoff.notify("retired", token=token, **more)
        self.assertEqual(0 if expected else EPERM, error)
        self.assertEqual([], self.names())
        self.client(7).disconnect()
        if expected:
            self.assertEqual(HandoffPhase.COMPLETE, handoff.page().phase)
            handoff.disconnect()
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
        self.assertEqual(EPERM, self.handoff().notify("retired", token=self.disk.identity()))
        self.claimed(ONE, 9)
        self.assertEqual(EPERM, self.handoff().notify("retired", token=self.disk.identity()))

    def test_told_while_another_attempt_is_over(self):
        client, handoff = self.copied()
        client.disconnect()
        handoff.disconnect()
        self.check_complete()


class TokenTests(ReceiverCase):
    """What the disk is known by is for the sender alone, and not before its source is retired."""

    def tokens(self, *sides):
        return [handoff.page().token for handoff in sides]

    def test_handed_out(self):
        client, handoff = self.copied()
        other = self.handoff()
        self.assertEqual(0, handoff.notify("copied"))
        self.assertEqual(["", ""], self.tokens(handoff, other))
        self.assertEqual(0, handoff.notify("retired"))
        self.assertEqual(["inode 5, born 6", ""], self.tokens(handoff, other))
        client.disconnect()
        self.assertEqual(["inode 5, born 6", ""], self.tokens(handoff, other))

    def test_not_to_one_that_was_refused(self):
        self.copied()
        other = self.handoff()
        for migration, error in ((TWO, EPERM), (fingerprint(ONE), EINVAL)):
            self.assertEqual(error, other.notify("retired", migration))
            self.assertEqual([""], self.tokens(other))

    def test_nothing_to_speak_with_is_shown(self):
        """No page has the UUID; what it has instead is no message."""
        self.retired()
        message = self.handoff().page()
        self.assertNotIn(ONE, message.encode().decode())
        self.assertFalse(message.is_from_sender)
        stranger = self.handoff()
        for phase in ("copying", "copied", "retired"):
            self.assertEqual(EINVAL, stranger.notify(phase, message.migration))

    def test_not_while_something_else_is_being_put_down(self):
        """A receiver that was started anew is untouched until somebody begins."""
        threads = self.threads()
        one = self.handoff()
        one.send_message("copying", TWO)
        self.assertEqual(["_write"], threads.names())
        self.assertEqual(EPERM, self.handoff().notify("retired", token=self.disk.identity()))
        threads.run()
        self.assertEqual([0], one.errors())
        self.assertEqual((TWO, ""), (self.record().migration, self.record().retired))


class EndTests(ReceiverCase):
    def test_order(self):
        events = []
        self.system.tell = events.append
        self.disk.observe(lambda call: events.append(call.method))
        client, handoff = self.retired()
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
        self.assertEqual(HandoffPhase.COMPLETE, handoff.page().phase)

    def test_reading_the_page_waits_for_the_end(self):
        self.stand("copied")
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("retired")
        threads.run()
        self.assertEqual([0], handoff.errors())
        client = self.client(7)
        client.disconnect()
        handoff.send(READ, 0, MESSAGE_SIZE)
        self.assertEqual([], handoff.replies())
        self.assertEqual(["finish"], threads.names())
        self.assertNotEqual([], self.names())
        threads.run()
        ((_, error, data),) = handoff.replies()
        self.assertEqual(0, error)
        self.assertIn(b'"complete"', data)
        self.assertEqual([], self.names())
        self.assertIn(fingerprint(ONE).encode(), data)

    def test_reading_the_page_while_the_end_fails(self):
        self.stand("copied", retired="then")
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("retired")
        threads.run()
        handoff.errors()
        self.disk.fail("flush", OSError(errno.EIO, "broken"), times=None)
        self.client(7).disconnect()
        handoff.send(READ, 0, MESSAGE_SIZE)
        threads.run()
        ((_, error, data),) = handoff.replies()
        self.assertEqual(0, error)
        self.assertIn(b'"retired"', data)

    def test_the_side_lingers(self):
        client, handoff = self.retired()
        silent, stranger = self.handoff(), self.client()
        client.disconnect()
        self.assertTrue(client.transport.gone)
        self.assertTrue(stranger.transport.gone)
        self.waits()
        self.assertEqual(HandoffPhase.COMPLETE, handoff.page().phase)
        self.assertIsNone(self.receiver.factory().buildProtocol(ADDRESS))
        handoff.disconnect()
        self.waits()
        self.assertTrue(silent.transport.listens)
        silent.disconnect()
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_for_a_few_seconds_at_most(self):
        client, handoff = self.retired()
        client.disconnect()
        self.clock.advance(4.9)
        self.waits()
        self.clock.advance(0.2)
        self.clock.advance(0)
        self.assertTrue(handoff.transport.gone)
        self.successResultOf(self.outcome)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_not_where_it_failed(self):
        _, handoff = self.copied()
        self.receiver.stop()
        self.ends_with(Unconfirmed, 5)
        self.assertTrue(handoff.transport.gone)

    def test_the_side_may_be_silent_while_the_copy_goes_on(self):
        """Its sender has nothing to say for hours; another's has no such leave."""
        client, handoff = self.claimed()
        other = self.handoff()
        for _ in range(20):
            self.clock.advance(10)
            client.write(0, DATA[:1])
        self.assertTrue(other.transport.gone)
        self.assertTrue(handoff.transport.listens)

    def test_told_behind_the_end(self):
        client, handoff = self.retired()
        client.disconnect()
        for phase in ("copying", "copied", "retired"):
            self.assertEqual(Errno.ESHUTDOWN, handoff.notify(phase))
        self.assertEqual([], self.names())


class FailureTests(ReceiverCase):
    broken = OSError(errno.ENOSPC, "No space left on device")

    def setUp(self):
        super().setUp()
        threads = self.threads()
        self.drain = threads.run

    def fails(self, seconds=6):
        for _ in range(10 * seconds):
            self.drain()
            self.clock.advance(0.1)
        self.ends_with(LocalFailure, ExitStatus.FAILED, "No space left on device")

    def test_a_claim(self):
        handoff = self.handoff()
        self.system.fail["INCOMPLETE copying"] = self.broken
        self.assertEqual(Errno.ENOSPC, handoff.notify("copying"))
        self.assertEqual(Errno.ENOSPC, handoff.notify("copying"))
        self.assertEqual(Errno.ENOSPC, self.client().ask(ZEROES, 0, 5)[0])
        self.assertEqual([], self.changes())
        self.fails()

    def test_not_touched_by_a_record_that_could_not_be_written(self):
        self.system.fail["INCOMPLETE copying"] = self.broken
        self.assertEqual(Errno.ENOSPC, self.handoff().notify("copying"))
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
        self.assertEqual(Errno.ENOSPC, self.handoff().notify("copying"))
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
        self.disk.fail("prepare", self.broken, times=None)
        client = self.client()
        client.write(0, DATA)
        self.assertEqual([Errno.ENOSPC], client.errors())
        self.assertEqual(([], ["disk.INCOMPLETE"]), (self.changes(), self.names()))
        self.fails()

    def test_copied(self):
        client, handoff = self.claimed()
        self.system.fail["INCOMPLETE copied"] = self.broken
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors(), "nothing was to be put down")
        self.assertEqual(Errno.ENOSPC, handoff.notify("copied"))
        self.assertEqual(Errno.ENOSPC, handoff.notify("copied"))
        self.assertEqual(Errno.ENOSPC, handoff.notify("retired"))
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
        self.assertEqual(Errno.ENOSPC, self.handoff().notify("copied"))
        self.assertEqual(Phase.COPYING, self.record().phase)
        client.disconnect()
        self.fails()
        self.assertEqual(["disk.INCOMPLETE"], self.names())

    def test_falling_back(self):
        client, handoff = self.copied()
        self.disk.calls.clear()
        self.system.fail["INCOMPLETE copying"] = self.broken
        client.write(0, DATA)
        self.assertEqual([Errno.ENOSPC], client.errors())
        self.assertEqual(([], Phase.COPIED), (self.changes(), self.record().phase))
        self.assertNotEqual(0, handoff.notify("retired"))
        self.fails()

    def test_retired(self):
        _, handoff = self.copied()
        self.system.fail["INCOMPLETE copied retired"] = self.broken
        self.assertEqual(Errno.ENOSPC, handoff.notify("retired"))
        self.assertEqual("", self.record().retired)
        self.fails()

    def test_removing(self):
        client, handoff = self.retired()
        self.system.fail["INCOMPLETE removed"] = self.broken
        client.disconnect()
        self.assertEqual(HandoffPhase.RETIRED, handoff.page().phase, "not complete")
        self.fails()
        self.assertTrue(self.record().retired)

    def test_the_sender_has_a_little_time_to_hear_of_it(self):
        """Long enough to be told, and no longer: nobody waits for a client that is not there."""
        self.system.fail["INCOMPLETE copying"] = self.broken
        self.handoff().send_message("copying")
        self.drain()
        self.clock.advance(0.4)
        self.waits()
        self.fails(1)


class StopTests(ReceiverCase):
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
        handoff = self.handoff()
        handoff.send_message("retired")
        threads.run()
        self.client(7).disconnect()
        self.receiver.stop()
        self.waits()
        threads.run()
        handoff.disconnect()
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)

    def test_while_a_record_is_written(self):
        """No outcome before the thread is done; and what it wrote stands."""
        threads = self.threads()
        self.handoff().send_message("copying")
        self.receiver.stop()
        self.waits()
        threads.run()
        self.ends_with(GaveUp, 4, "is not canonical")
        self.assertEqual(["disk.INCOMPLETE"], self.names())


class BeginTests(ReceiverCase):
    def test_refused(self):
        record = Record(ONE, Phase.COPIED, 1, SIZE, Location(), Location("z"), "", retired="then")
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
        self.assertEqual(HandoffPhase.NONE, self.handoff().page().phase)
        self.claimed(TWO)
        self.assertEqual((TWO, ""), (self.record().migration, self.record().retired))

    def test_accepted_is_true_no_more(self):
        record = Record(ONE, Phase.COPIED, 1, SIZE, Location(), Location(), "", by="me")
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
        self.assertEqual(HandoffPhase.COPIED, self.handoff().page().phase)
        self.assertEqual(0, self.handoff().notify("copied"))
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
