"""A receiver's record and its handoff export, driven by hand (R2, R6): migration.py,
message_handler.py, handoff_export.py, record.py and others of destination.
"""

from __future__ import annotations

import errno
import os

from blockmig.errors import AlreadyDone, ExitStatus, GaveUp, LocalFailure, Refused, Unconfirmed
from blockmig.migration.destination import receiver
from blockmig.migration.destination.claims import MOST, MOST_ORPHANS
from blockmig.migration.handoff.message import MESSAGE_SIZE, HandoffPhase, fingerprint
from blockmig.migration.records.files import Kind, Location, Phase, Record
from blockmig.migration.records.permitted import destination_record
from blockmig.nbd import Command, CommandFlag, Errno, Request
from blockmig.server import RefusedConnection
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
    def test_a_claim_costs_nothing(self):
        threads = self.threads()
        handoff = self.handoff()
        self.assertEqual(0, handoff.notify("copying"))
        self.assertEqual(([], [], []), (threads.names(), self.names(), self.disk.calls))
        self.assertEqual(HandoffPhase.NONE, handoff.read_message().phase)
        self.assertFalse(self.receiver.touched)

    def test_a_claim_is_recorded_before_its_first_change_is_made(self):
        threads = self.threads()
        handoff = self.handoff()
        self.assertEqual(HandoffPhase.NONE, handoff.read_message().phase)
        self.assertEqual(0, handoff.notify("copying", unlink=True))
        client = self.client(7)
        client.write(0, DATA[:10])
        self.assertEqual(([], [], []), (client.errors(), self.names(), self.changes()))
        threads.run()
        self.assertEqual([0], client.errors())
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
        self.assertEqual(Location("there", "/source", "192.0.2.7:4711"), found.source)
        self.assertEqual(self.disk.path, found.destination.disk)
        self.assertEqual(1, self.receiver.attempts)

    def test_it_is_recorded_that_the_source_had_been_retired_before(self):
        for again in (True, False):
            handoff = self.handoff()
            self.assertEqual(0, handoff.notify("copying", ONE, 7, sent_again=again))
            client = self.client(7)
            client.write(0, DATA)
            client.send(FLUSH)
            self.assertEqual(again, self.record().sent_again)
            self.assertEqual(0, handoff.notify("copied", ONE, 7, sent_again=again))
            self.assertEqual(again, self.record().sent_again)
            error = self.receiver._migration.report.unfinished("enough")
            self.assertEqual(again, "was retired anew: look at" in str(error))
            self.setUp()

    def test_a_small_change_that_fails_is_over_like_others(self):
        """What is being changed is counted, and a copy is whole only where nothing is."""
        client, _ = self.begun()
        self.disk.fail("write", OSError(errno.ENOSPC, "full"))
        client.write(1, DATA[:1])
        self.assertEqual([errno.ENOSPC], client.errors())
        self.assertEqual(0, self.receiver._migration.attempt.changing)

    def test_once_the_disconnect_is_accepted_the_machine_is_asked_again(self):
        threads = self.threads()
        client = self.client()
        client.write(0, DATA)
        threads.run()
        self.assertEqual([0], client.errors())
        migration = self.receiver._migration
        self.assertTrue(migration.may_go_on(client.connection))
        client.disconnect()
        self.assertFalse(migration.may_go_on(client.connection))
        attempt = migration.attempt
        before = attempt.data
        migration.batch_covered([Request(0, WRITE, 0, 0, 1)])
        self.assertEqual(before, attempt.data)

    def test_a_claim_outlives_its_connection(self):
        """The conversation may be lost before the first change has arrived."""
        _, handoff = self.claimed()
        handoff.lose()
        self.clock.advance(0)
        self.client(7).write(0, DATA)
        self.assertEqual((ONE, 1, True), self.what())

    def test_of_the_claims_whose_connections_are_gone_only_some_are_kept(self):
        for cookie in range(MOST_ORPHANS + 1):
            self.claimed(TWO, cookie)[1].lose()
            self.clock.advance(0)
        self.client(0).write(0, DATA)
        self.assertFalse(self.record().identified)

    def test_a_connection_has_the_last_of_its_claims_and_makes_only_a_few(self):
        handoff = self.handoff()
        for cookie in range(MOST):
            self.assertEqual(0, handoff.notify("copying", TWO, cookie))
        self.assertEqual(EPERM, handoff.notify("copying", TWO, 99))
        self.client(MOST - 1).write(0, DATA)
        self.assertEqual(TWO, self.record().migration)

    def test_claims_of_others_do_not_touch_the_claim_of_a_sender(self):
        """Nor does any stand in its way, whatever number of them is made."""
        client, handoff = self.claimed()
        for number in range(20):
            other = self.handoff()
            self.assertEqual(0, other.notify("copying", TWO, 1000 + number))
        self.clock.advance(0)
        self.assertTrue(handoff.transport.listens)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        self.assertEqual(EPERM, self.handoff().notify("copying", TWO, 5))
        self.assertEqual(0, handoff.notify("copied"))
        self.assertEqual((ONE, 1, True), self.what())

    def test_the_handoff_message_shows_whose_attempt_goes_on(self):
        _, handoff = self.begun()
        message = handoff.read_message()
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

    def test_the_disk_is_prepared_once_and_after_the_record(self):
        seen = []
        self.disk.prepare = lambda: seen.append(self.names())
        self.begun()[0].lose()
        self.clock.advance(0)
        self.assertEqual([["disk.INCOMPLETE"]], seen)
        self.begun(cookie=9)
        self.client().write(0, DATA)
        self.assertEqual(1, len(seen))

    def test_the_first_cookie_binds_a_connection_to_the_claim(self):
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        self.assertEqual([0], client.errors())
        self.assertEqual((ONE, 1, True), self.what())
        self.assertEqual(1, self.receiver.attempts)

    def what(self):
        record = self.record()
        return record.migration, record.attempt, record.identified

    def test_a_first_request_of_any_kind_binds_a_connection(self):
        client, _ = self.claimed()
        self.assertEqual(0, client.ask(READ, 0, 1)[0])
        client.write(0, DATA[:10])
        self.assertEqual(ONE, self.record().migration)

    def test_any_other_cookie_is_a_foreign_connection(self):
        for cookie in (6, 8, 0, 7 << 32, 2**64 - 1):
            self.setUp()
            self.claimed()[0].lose()
            client = self.client(cookie)
            client.ask(READ, 0, 1)
            client.write(0, DATA[:10])
            self.assertEqual([0], client.errors())
            self.assertFalse(self.record().identified, cookie)

    def test_the_same_migration_can_be_claimed_again_after_its_connection_is_lost(self):
        client, _ = self.claimed()
        client.write(0, DATA)
        client.lose()
        self.clock.advance(0)
        began = self.record().began
        second, _ = self.claimed(cookie=9)
        second.write(0, DATA)
        self.assertEqual(((ONE, 2, True), began), (self.what(), self.record().began))
        self.assertEqual(2, self.receiver.attempts)

    def test_a_claim_ends_the_lost_attempt_of_its_own_sender(self):
        """The lost attempt may be half open here. A claim of another migration does not end it."""
        client, _ = self.claimed()
        client.write(0, DATA)
        for migration, error in ((TWO, EPERM), ("", EINVAL), (fingerprint(ONE), EINVAL)):
            self.assertEqual(error, self.handoff().notify("copying", migration))
            self.assertTrue(client.transport.listens)
        handoff = self.handoff()
        handoff.send_message("copying", cookie=9)
        self.assertEqual([], handoff.errors(), "not before it is gone")
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertTrue(client.transport.gone)
        self.assertEqual([0], handoff.errors())
        client = self.client(9)
        client.write(0, DATA)
        self.assertEqual([0], client.errors())

    def test_a_claim_alone_does_not_end_a_foreign_attempt(self):
        client = self.client()
        client.write(0, DATA[:5])
        self.assertEqual(0, self.handoff().notify("copying"))
        self.clock.advance(10)
        self.assertTrue(client.transport.listens)

    def test_another_migration_may_claim_an_unfinished_copy(self):
        self.begun()[0].lose()
        self.clock.advance(0)
        client, _ = self.claimed(TWO, 9)
        client.write(0, DATA)
        self.assertEqual((TWO, 1, True), self.what())
        # The first one's connection is a stranger's now.
        self.assertEqual(EPERM, self.client(7).ask(ZEROES, 0, 5)[0])

    def test_bad_messages_are_refused_and_change_nothing(self):
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

    def test_only_whole_messages_are_accepted(self):
        handoff = self.handoff()
        for offset, length in ((0, 4095), (1, 4095), (0, 1), (4095, 1)):
            handoff.write(offset, b"x" * length)
            self.assertEqual([EINVAL], handoff.errors())
        for command in (TRIM, ZEROES):
            self.assertNotEqual(0, handoff.ask(command, 0, 4096)[0])
        self.assertEqual(HandoffPhase.NONE, handoff.read_message().phase)
        self.assertEqual(4096, len(handoff.ask(READ, 0, 4096)[1]))
        self.assertEqual(b"{", handoff.ask(READ, 0, 1)[1])
        self.assertEqual(bytes(96), handoff.ask(READ, 4000, 96)[1])

    def test_messages_of_two_connections_are_not_mixed_up(self):
        one, two = self.handoff(), self.handoff()
        one.give(request_bytes(WRITE, 0, MESSAGE_SIZE, 0, 55) + b"{" * 2000)
        self.assertEqual(EPERM, two.notify("copied"))
        one.give(bytes(2096))
        self.assertEqual(int(EINVAL).to_bytes(4, "big"), one.received()[4:8])

    def test_a_claim_that_arrives_late_is_void(self):
        """Its sender has claimed the migration again meanwhile, in another conversation."""
        one, two = self.handoff(), self.handoff()
        message = one.message("copying", ONE, 5)
        one.give(request_bytes(WRITE, 0, MESSAGE_SIZE, 0, 55) + message[:2000])
        self.assertEqual(0, two.notify("copying"))
        client = self.client(7)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual(0, two.notify("copied"))
        one.give(message[2000:])
        self.assertEqual(int(EPERM).to_bytes(4, "big"), one.received()[4:8])
        self.assertEqual(Phase.COPIED, self.record().phase)

    def test_a_claim_closes_the_earlier_conversations_of_its_migration(self):
        one, two, other = self.handoff(), self.handoff(), self.handoff()
        self.assertEqual(0, one.notify("copying", cookie=5))
        self.assertEqual(0, other.notify("copying", TWO, 6))
        self.assertEqual(0, two.notify("copying"))
        self.clock.advance(0)
        self.assertTrue(one.transport.gone)
        self.assertTrue(two.transport.listens)
        self.assertTrue(other.transport.listens)

    def test_what_is_said_of_an_earlier_attempt_is_void(self):
        client, _ = self.claimed(cookie=5)
        client.write(0, DATA)
        client.lose()
        self.clock.advance(0)
        late = self.handoff()
        client, handoff = self.claimed()
        client.write(0, DATA)
        client.send(FLUSH)
        for conversation in (late, handoff):
            self.assertEqual(EPERM, conversation.notify("copied", cookie=5))
        self.assertEqual(0, handoff.notify("copied"))

    def test_the_handoff_export_is_listed(self):
        factory = self.receiver.factory()
        self.assertEqual(["", ".handoff"], factory.settings.names())


class ForeignSenderTests(ReceiverCase):
    """A sender that does not identify itself is recorded before it changes a byte."""

    def test_a_foreign_sender_is_recorded_before_the_first_change(self):
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

    def test_the_record_of_a_foreign_sender_has_its_address(self):
        self.foreign()
        found = self.record()
        self.assertEqual(
            (Phase.COPIED, 1, False, False, Location(address="192.0.2.7:4711")),
            (found.phase, found.attempt, found.identified, found.side_export, found.source),
        )
        self.assertEqual(
            "", self.handoff().read_message().migration, "nobody can claim to be of it"
        )

    def test_a_second_foreign_attempt_continues_the_migration(self):
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

    def test_a_foreign_attempt_replaces_an_unfinished_claim(self):
        self.claimed()
        client = self.client()
        client.write(0, DATA[:10])
        self.assertEqual([0], client.errors())
        found = self.record()
        self.assertNotEqual(ONE, found.migration)
        self.assertEqual((1, False), (found.attempt, found.identified))

    def test_a_client_lost_before_its_record_was_written_changes_nothing(self):
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

    def test_readers_leave_no_record(self):
        client = self.client()
        client.ask(READ, 0, 100)
        client.ask(FLUSH)
        self.handoff().read_message()
        client.disconnect()
        self.assertEqual([], self.names())
        self.assertNotIn("prepare", self.disk.names())


class FallBackTests(ReceiverCase):
    def test_a_whole_copy_is_recorded_as_copying_before_it_is_changed(self):
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

    def test_a_change_while_copied_is_recorded_waits_for_copying(self):
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

    def test_copied_and_retired_are_refused_while_the_record_returns_to_copying(self):
        """The change is admitted only after the record; messages until then are too late."""
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

    def test_a_change_under_way_during_the_flush_is_not_durable(self):
        """What a thread changes during the flush is not durable after it."""
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

    def test_a_stranger_cannot_change_a_whole_copy_of_our_own_sender(self):
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

    def test_a_whole_copy_of_a_foreign_sender_may_be_overwritten(self):
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
        self.begun(TWO)
        self.assertEqual(TWO, self.record().migration)

    def test_a_new_claim_is_recorded_as_copying_before_it_is_acknowledged(self):
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("copying")
        client = self.client(7)
        client.write(0, DATA)
        threads.run()
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
    def test_copied_is_acknowledged_only_for_a_whole_copy_of_that_migration(self):
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

    def test_nobody_can_confirm_the_copy_of_a_foreign_sender(self):
        self.foreign()
        handoff = self.handoff()
        for migration, error in (("", EINVAL), (self.record().migration, EPERM)):
            self.assertEqual(error, handoff.notify("copied", migration))
            self.assertEqual(error, handoff.notify("retired", migration))

    def test_copied_is_acknowledged_after_it_is_recorded(self):
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("copying")
        client = self.client(7)
        client.write(0, DATA)
        threads.run()
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

    def test_the_flush_of_a_foreign_sender_is_answered_after_copied_is_recorded(self):
        """A sender that cannot announce `copied` gets its flush reply after the record."""
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
        """What a mirror does after each pass; it has not announced `copied`."""
        client, handoff = self.written()
        self.assertEqual(0, client.ask(FLUSH)[0])
        return client, handoff

    def written_by_threads(self):
        """All of it is here, and the flush asked for."""
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("copying")
        client = self.client(7)
        client.write(0, DATA)
        threads.run()
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
        message = self.handoff().read_message()
        self.assertEqual((HandoffPhase.COPYING, "copying"), (message.phase, self.state()))

    def state(self):
        return self.receiver.status()["state"]

    def watch(self):
        """Every record that is written from now on."""
        self.words = []
        self.system.note = self.words.append

    def test_a_flush_of_a_claimed_migration_records_nothing(self):
        """The disk of a claimed migration is in use, so the sender may continue after a flush."""
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

    def test_a_flush_without_copied_allows_no_retirement(self):
        """A flush alone allows neither retiring nor completion nor silence."""
        _, handoff = self.flushed()
        self.assertEqual(EPERM, handoff.notify("retired"))
        self.receiver.stop("enough")
        self.ends_with(GaveUp, 4, "is not canonical")
        self.assertEqual(Phase.COPYING, self.record().phase)

    def test_a_stop_after_copied_is_unconfirmed(self):
        _, handoff = self.flushed()
        self.assertEqual(0, handoff.notify("copied"))
        self.receiver.stop("enough")
        self.ends_with(Unconfirmed, 5, "look at there:/source")

    def test_a_stop_while_copied_is_recorded_gives_up(self):
        """The record then promises more than was announced; that is the safe direction."""
        threads, _, handoff = self.flushed_by_threads()
        handoff.send_message("copied")
        self.assertEqual("copying", self.state())
        self.receiver.stop("enough")
        self.waits()
        self.assertEqual([], handoff.errors())
        threads.run()
        self.ends_with(GaveUp, 4)
        self.assertEqual(Phase.COPIED, self.record().phase)

    def test_copied_without_a_flush_is_refused(self):
        self.watch()
        _, handoff = self.written()
        self.assertEqual(EPERM, handoff.notify("copied"))
        self.check_not_copied()

    def test_copied_after_a_flush_of_an_incomplete_copy_is_refused(self):
        self.watch()
        client, handoff = self.claimed()
        client.write(0, DATA[:4000])
        client.send(FLUSH)
        client.write(4000, DATA[4000:])
        self.assertEqual([0, 0, 0], client.errors())
        self.assertEqual(EPERM, handoff.notify("copied"))
        self.check_not_copied()

    def test_copied_with_a_change_after_the_flush_is_refused(self):
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

    def test_copied_with_a_change_under_way_is_refused(self):
        """The change was admitted after the flush and is not done: nobody knows what is durable."""
        threads, client, handoff = self.flushed_by_threads()
        client.send(ZEROES, 0, 10, CommandFlag.FUA)
        self.assertEqual(["_change"], threads.names())
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))
        threads.run()
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_copied_with_half_a_write_after_the_flush_is_refused(self):
        client, handoff = self.flushed()
        client.give(request_bytes(WRITE, 0, 100, cookie=999) + b"half")
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_copied_with_a_change_while_it_is_recorded_is_void(self):
        threads, client, handoff = self.flushed_by_threads()
        handoff.send_message("copied")
        client.write(0, DATA[:10])
        threads.run()
        self.assertEqual(Phase.COPYING, self.record().phase)
        self.assertEqual([EPERM], handoff.errors(), "it is not what stands there")
        self.assertEqual(EPERM, handoff.notify("retired"))

    def test_copied_may_be_announced_twice_and_is_recorded_once(self):
        self.watch()
        _, handoff = self.flushed()
        self.assertEqual([0, 0], [handoff.notify("copied"), handoff.notify("copied")])
        self.assertEqual(["INCOMPLETE copying", "INCOMPLETE copied"], self.words)

    def test_copied_may_be_announced_by_two_connections_at_once(self):
        threads, _, handoff = self.flushed_by_threads()
        other = self.handoff()
        handoff.send_message("copied")
        other.send_message("copied")
        self.assertEqual(([], []), (handoff.errors(), other.errors()))
        threads.run()
        self.assertEqual(([0], [0]), (handoff.errors(), other.errors()))
        self.assertEqual(Phase.COPIED, self.record().phase)

    def test_copied_may_be_announced_by_another_connection(self):
        """The sender may have lost its own handoff connection; what counts is who flushed."""
        _, handoff = self.flushed()
        handoff.lose()
        self.clock.advance(0)
        other = self.handoff()
        self.assertEqual(EPERM, other.notify("copied", TWO))
        self.assertEqual(Phase.COPYING, self.record().phase)
        self.assertEqual((0, Phase.COPIED), (other.notify("copied"), self.record().phase))

    def test_copied_is_refused_once_the_attempt_is_gone(self):
        """Another attempt may have begun, and the coverage is forgotten."""
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

    def test_copied_is_refused_after_a_flush_that_a_write_overtook(self):
        """The flush was requested when the copy was whole; later writes are not durable."""
        threads, client, handoff = self.written_by_threads()
        self.assertEqual(["flush"], threads.names())
        client.write(5, b"late")
        threads.run()
        handoff.errors()
        self.assertEqual([0, 0, 0], sorted(client.errors()))
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_a_change_while_the_flush_waits_for_write_behind_is_not_durable(self):
        """The reply waits for write-behind, and what is changed meanwhile is not durable."""
        threads = self.threads()
        handoff = self.handoff()
        handoff.send_message("copying")
        threads.run()
        client = self.client(7)
        client.write(0, DATA)
        threads.run()
        for offset in reversed(range(0, SIZE, 2)):  # as they come, they are many ranges
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

    def test_the_late_flush_of_an_attempt_that_is_gone_does_not_count(self):
        threads, client, handoff = self.written_by_threads()
        client.lose()
        self.clock.advance(0)
        self.assertEqual(["flush"], threads.names())
        threads.run()
        self.clock.advance(0)
        handoff.errors()
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_an_earlier_flush_does_not_count_for_the_next_attempt(self):
        threads, client, handoff = self.written_by_threads()
        client.lose()
        handoff.errors()
        handoff.send_message("copying", cookie=9)
        self.assertEqual([], handoff.errors(), "something of it is under way")
        threads.run()
        self.clock.advance(0)
        self.clock.advance(0)
        self.assertEqual([0], handoff.errors())
        second = self.client(9)
        second.write(0, DATA)
        threads.run()
        self.assertEqual([0], second.errors())
        self.assertEqual(
            (EPERM, Phase.COPYING), (handoff.notify("copied", cookie=9), self.record().phase)
        )

    def test_copied_is_refused_for_the_attempt_of_a_stranger(self):
        """The attempt is a stranger's, although the record was claimed before."""
        self.claimed()[0].lose()
        self.clock.advance(0)
        stranger = self.client(100)
        stranger.write(0, DATA)
        self.assertEqual([0], stranger.errors())
        self.assertEqual(EPERM, self.handoff().notify("copied"))
        self.assertEqual(0, stranger.ask(FLUSH)[0])
        self.assertEqual(EPERM, self.handoff().notify("copied"))

    def test_a_flush_of_a_stray_does_not_allow_copied(self):
        client, handoff = self.claimed()
        client.write(0, DATA)
        stray = self.client()
        self.assertEqual(0, stray.ask(FLUSH)[0])
        self.assertEqual((EPERM, Phase.COPYING), (handoff.notify("copied"), self.record().phase))

    def test_a_failed_flush_does_not_allow_copied(self):
        client, handoff = self.claimed()
        client.write(0, DATA)
        self.disk.fail("flush", OSError(errno.EIO, "broken"), times=None)
        client.send(FLUSH)
        self.assertEqual([0, EIO], client.errors())
        self.assertEqual(EIO, handoff.notify("copied"))
        self.assertEqual(Phase.COPYING, self.record().phase)

    def test_a_restarted_receiver_acknowledges_copied_as_recorded(self):
        self.stand("copied")
        self.assertEqual(0, self.handoff().notify("copied"))
        self.assertEqual(EPERM, self.handoff().notify("copied", TWO))
        self.stand("copying")
        self.assertEqual(EPERM, self.handoff().notify("copied"))
        self.stand("copied", identified=False)
        self.assertEqual(EPERM, self.handoff().notify("copied"))


class RetiredTests(ReceiverCase):
    def test_retired_is_recorded_before_it_is_acknowledged(self):
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
        self.assertEqual(HandoffPhase.RETIRED, handoff.read_message().phase)

    def test_retired_is_refused_before_copied(self):
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

    def test_retired_may_be_announced_twice_and_is_recorded_once(self):
        _, handoff = self.retired()
        first = self.record()
        self.clock.advance(5)
        self.assertEqual(0, handoff.notify("retired", cookie=9))
        self.assertEqual(first, self.record())

    def test_the_second_announcement_waits_for_the_record_of_the_first(self):
        self.stand("copied")
        threads = self.threads()
        one, two = self.handoff(), self.handoff()
        one.send_message("retired")
        two.send_message("retired")
        self.assertEqual(([], []), (one.errors(), two.errors()))
        threads.run()
        self.assertEqual(([0], [0]), (one.errors(), two.errors()))

    def test_a_retired_copy_cannot_be_changed(self):
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

    def test_a_retired_copy_cannot_be_changed_after_a_restart(self):
        self.stand("copied", retired="then")
        handoff = self.handoff()
        self.assertEqual(HandoffPhase.RETIRED, handoff.read_message().phase)
        self.assertEqual(EPERM, self.client().ask(ZEROES, 0, 4)[0])
        self.assertEqual(EPERM, handoff.notify("copying"))
        self.assertEqual([], self.changes())
        self.assertEqual("then", self.record().retired)

    def check_complete(self):
        self.clock.advance(0)
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)
        self.assertEqual(["disk.RECEIVED"], self.names())

    def test_a_disconnect_after_retired_completes_the_migration(self):
        client, handoff = self.retired()
        client.disconnect()
        handoff.disconnect()
        self.check_complete()

    def test_a_disconnect_of_a_finisher_needs_the_announced_cookie(self):
        """The record must say `retired`, and the cookie must be the announced one."""
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

    def test_a_disconnect_after_copied_from_a_new_connection_completes_nothing(self):
        client, handoff = self.copied()
        client.lose()
        self.clock.advance(0)
        self.assertEqual(0, handoff.notify("copied"))
        self.client(7).disconnect()
        self.waits()
        self.assertEqual(["disk.INCOMPLETE"], self.names())

    def test_the_last_announced_cookie_counts(self):
        client, handoff = self.retired()
        client.lose()
        self.clock.advance(0)
        self.assertEqual(0, handoff.notify("retired", cookie=9))
        self.client(7).disconnect()
        self.waits()
        self.client(9).disconnect()
        handoff.disconnect()
        self.check_complete()

    def test_a_finisher_may_disconnect_while_the_old_connection_lasts(self):
        """A connection that hangs half open must not keep the finisher out."""
        _, handoff = self.retired()
        self.assertEqual(0, handoff.notify("retired", cookie=9))
        self.client(9).disconnect()
        handoff.disconnect()
        self.check_complete()

    def test_a_restarted_receiver_knows_a_complete_migration_by_its_token(self):
        """The receiver died after the end and was restarted: it has no record any more."""
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
            self.assertEqual(HandoffPhase.COMPLETE, handoff.read_message().phase)
            handoff.disconnect()
            self.check_complete()
            self.assertEqual([], self.changes())
        else:
            self.waits()

    def test_a_restarted_receiver_does_not_know_another_migration(self):
        self.check_was_complete(False, token="")
        self.check_was_complete(False, token=self.disk.path)
        self.check_was_complete(False, token="inode 5, born 7")
        self.check_was_complete(False, size=SIZE + 1)
        self.disk.identity = lambda: ""
        self.check_was_complete(False)

    def test_a_token_does_not_count_once_another_migration_began(self):
        self.begun(TWO)[0].lose()
        self.clock.advance(0)
        self.assertEqual(EPERM, self.handoff().notify("retired", token=self.disk.identity()))
        self.begun(ONE, 9)
        self.assertEqual(EPERM, self.handoff().notify("retired", token=self.disk.identity()))

    def test_a_claim_alone_does_not_keep_the_token_from_counting(self):
        client, _ = self.claimed(TWO)
        self.assertEqual(0, self.handoff().notify("retired", token=self.disk.identity()))
        self.assertEqual(EPERM, client.ask(WRITE, 0, 1, payload=b"x")[0])

    def test_a_disconnect_after_copied_completes_its_own_attempt(self):
        client, handoff = self.copied()
        client.disconnect()
        handoff.disconnect()
        self.check_complete()


class TokenTests(ReceiverCase):
    """The token of the disk is for the sender alone, and only after its source is retired."""

    def tokens(self, *sides):
        return [handoff.read_message().token for handoff in sides]

    def test_the_token_is_given_to_the_connection_that_announced_retired(self):
        client, handoff = self.copied()
        other = self.handoff()
        self.assertEqual(0, handoff.notify("copied"))
        self.assertEqual(["", ""], self.tokens(handoff, other))
        self.assertEqual(0, handoff.notify("retired"))
        self.assertEqual(["inode 5, born 6", ""], self.tokens(handoff, other))
        client.disconnect()
        self.assertEqual(["inode 5, born 6", ""], self.tokens(handoff, other))

    def test_the_token_is_not_given_to_a_refused_connection(self):
        self.copied()
        other = self.handoff()
        for migration, error in ((TWO, EPERM), (fingerprint(ONE), EINVAL)):
            self.assertEqual(error, other.notify("retired", migration))
            self.assertEqual([""], self.tokens(other))

    def test_no_message_shows_the_UUID_of_the_migration(self):
        """The fingerprint that a message shows instead does not identify a sender."""
        self.retired()
        message = self.handoff().read_message()
        self.assertNotIn(ONE, message.encode().decode())
        self.assertFalse(message.is_from_sender)
        stranger = self.handoff()
        for phase in ("copying", "copied", "retired"):
            self.assertEqual(EINVAL, stranger.notify(phase, message.migration))

    def test_retired_is_refused_while_another_claim_is_recorded(self):
        """A restarted receiver is untouched until somebody begins."""
        threads = self.threads()
        client, _ = self.claimed(TWO)
        client.write(0, DATA)
        self.assertEqual(["_write"], threads.names())
        self.assertEqual(EPERM, self.handoff().notify("retired", token=self.disk.identity()))
        threads.run()
        self.assertEqual([0], client.errors())
        self.assertEqual((TWO, ""), (self.record().migration, self.record().retired))


class EndTests(ReceiverCase):
    def test_the_end_comes_in_the_order_of_the_design(self):
        events = []
        self.system.note = events.append
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
                "RECEIVED copied retired confirmed",
                "INCOMPLETE removed",
            ],
            events,
        )
        self.assertEqual(HandoffPhase.COMPLETE, handoff.read_message().phase)

    def test_reading_the_message_waits_for_the_end(self):
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
        self.assertEqual(["disk.RECEIVED"], self.names())
        self.assertIn(fingerprint(ONE).encode(), data)

    def test_reading_the_message_while_the_end_fails_says_retired(self):
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

    def test_a_message_that_follows_a_read_of_the_end_is_answered(self):
        """It is taken from the connection in the middle of what ends the migration."""
        for broken, answer in ((False, Errno.ESHUTDOWN), (True, EIO)):
            self.setUp()
            self.stand("copied", retired="then")
            threads = self.threads()
            handoff = self.handoff()
            handoff.send_message("retired")
            threads.run()
            handoff.errors()
            if broken:
                self.disk.fail("flush", OSError(errno.EIO, "broken"), times=None)
            self.client(7).disconnect()
            handoff.send(READ, 0, MESSAGE_SIZE)
            handoff.send_message("copied")
            threads.run()
            self.assertEqual([0, answer], handoff.errors())

    def test_the_handoff_export_stays_open_after_the_end(self):
        client, handoff = self.retired()
        silent, stranger = self.handoff(), self.client()
        client.disconnect()
        self.assertTrue(client.transport.gone)
        self.assertTrue(stranger.transport.gone)
        self.waits()
        self.assertEqual(HandoffPhase.COMPLETE, handoff.read_message().phase)
        self.assertIsInstance(self.receiver.factory().buildProtocol(ADDRESS), RefusedConnection)
        handoff.disconnect()
        self.waits()
        self.assertTrue(silent.transport.listens)
        silent.disconnect()
        self.assertEqual(SIZE, self.successResultOf(self.outcome).bytes)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_the_handoff_export_stays_open_for_five_seconds_at_most(self):
        client, handoff = self.retired()
        client.disconnect()
        self.clock.advance(4.9)
        self.waits()
        self.clock.advance(0.2)
        self.clock.advance(0)
        self.assertTrue(handoff.transport.gone)
        self.successResultOf(self.outcome)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_the_handoff_export_closes_at_once_after_a_failure(self):
        _, handoff = self.copied()
        self.receiver.stop()
        self.ends_with(Unconfirmed, 5)
        self.assertTrue(handoff.transport.gone)

    def test_the_handoff_connection_of_the_sender_may_be_silent(self):
        """The sender has nothing to send there for hours; other connections time out."""
        client, handoff = self.claimed()
        other = self.handoff()
        for number in range(20):
            self.clock.advance(10)
            client.write(number, DATA[:1])
        self.assertTrue(other.transport.gone)
        self.assertTrue(handoff.transport.listens)

    def test_messages_after_the_end_are_refused(self):
        client, handoff = self.retired()
        client.disconnect()
        for phase in ("copying", "copied", "retired"):
            self.assertEqual(Errno.ESHUTDOWN, handoff.notify(phase))
        self.assertEqual(["disk.RECEIVED"], self.names())


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

    def test_a_claim_that_cannot_be_recorded_fails_the_receiver(self):
        client, handoff = self.claimed()
        self.system.fail["INCOMPLETE copying"] = self.broken
        self.assertEqual(Errno.ENOSPC, client.ask(ZEROES, 0, 5)[0])
        self.assertEqual(Errno.ENOSPC, handoff.notify("copying"))
        self.assertEqual(Errno.ENOSPC, self.client().ask(ZEROES, 0, 5)[0])
        self.assertEqual([], self.changes())
        self.fails()

    def test_a_record_that_could_not_be_written_leaves_the_disk_untouched(self):
        self.system.fail["INCOMPLETE copying"] = self.broken
        self.assertEqual(Errno.ENOSPC, self.claimed()[0].ask(ZEROES, 0, 5)[0])
        self.assertEqual((False, []), (self.receiver.touched, self.names()))
        self.fails()

    def test_a_directory_that_cannot_be_synced_fails_the_claim(self):
        """A power failure may undo what the directory shows, so it must be synced first."""
        syncs = []

        def fsync(descriptor):
            syncs.append(descriptor)
            if len(syncs) == 3:
                raise self.broken

        self.system.fsync = fsync
        self.assertEqual(Errno.ENOSPC, self.claimed()[0].ask(ZEROES, 0, 5)[0])
        self.assertNotIn("prepare", self.disk.names())
        self.fails()

    def test_a_first_change_that_cannot_be_recorded_fails_the_receiver(self):
        client = self.client()
        self.system.fail["INCOMPLETE copying"] = self.broken
        client.write(0, DATA)
        self.assertEqual([Errno.ENOSPC], client.errors())
        self.assertEqual([], self.changes())
        client.lose()
        self.fails(1)

    def test_a_disk_that_cannot_be_prepared_fails_the_receiver(self):
        self.disk.fail("prepare", self.broken, times=None)
        client = self.client()
        client.write(0, DATA)
        self.assertEqual([Errno.ENOSPC], client.errors())
        self.assertEqual(([], ["disk.INCOMPLETE"]), (self.changes(), self.names()))
        self.fails()

    def test_a_copied_that_cannot_be_recorded_fails_the_receiver(self):
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

    def test_a_foreign_copied_that_cannot_be_recorded_fails_the_receiver(self):
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

    def test_a_return_to_copying_that_cannot_be_recorded_fails_the_receiver(self):
        client, handoff = self.copied()
        self.disk.calls.clear()
        self.system.fail["INCOMPLETE copying"] = self.broken
        client.write(0, DATA)
        self.assertEqual([Errno.ENOSPC], client.errors())
        self.assertEqual(([], Phase.COPIED), (self.changes(), self.record().phase))
        self.assertNotEqual(0, handoff.notify("retired"))
        self.fails()

    def test_a_retired_that_cannot_be_recorded_fails_the_receiver(self):
        _, handoff = self.copied()
        self.system.fail["INCOMPLETE copied retired"] = self.broken
        self.assertEqual(Errno.ENOSPC, handoff.notify("retired"))
        self.assertEqual("", self.record().retired)
        self.fails()

    def test_a_record_that_cannot_be_removed_fails_the_receiver(self):
        client, handoff = self.retired()
        self.system.fail["INCOMPLETE removed"] = self.broken
        client.disconnect()
        self.assertEqual(HandoffPhase.RETIRED, handoff.read_message().phase, "not complete")
        self.fails()
        self.assertTrue(self.record().retired)

    def test_the_sender_has_a_moment_to_hear_of_the_failure(self):
        """No longer, since nobody waits for a client that is not there."""
        self.system.fail["INCOMPLETE copying"] = self.broken
        self.claimed()[0].lose()
        self.client().write(0, DATA)
        self.drain()
        self.clock.advance(0.4)
        self.waits()
        self.fails()


class StopTests(ReceiverCase):
    def listen(self):
        self.receiver.factory()

    def test_a_stop_ends_as_the_table_says_and_keeps_the_record(self):
        for prepare, kind, status, words in (
            (self.listen, GaveUp, 4, "nothing was received"),
            (self.claimed, GaveUp, 4, "nothing was received"),
            (self.begun, GaveUp, 4, "is not canonical"),
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

    def test_a_stop_after_a_change_of_a_whole_copy_gives_up(self):
        client, _ = self.copied()
        client.write(0, DATA[:1])
        self.receiver.stop()
        self.ends_with(GaveUp, 4, "is not canonical")

    def test_a_stop_after_the_disconnect_is_too_late(self):
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

    def test_a_stop_waits_for_a_record_that_is_being_written(self):
        """There is no outcome before the thread ends, and what it wrote stays."""
        threads = self.threads()
        self.claimed()[0].write(0, DATA)
        self.receiver.stop()
        self.waits()
        threads.run()
        self.ends_with(GaveUp, 4, "is not canonical")
        self.assertEqual(["disk.INCOMPLETE"], self.names())


class BeginTests(ReceiverCase):
    def make_with_id(self, id="new"):
        """A receiver that may overwrite, and was given an id."""
        self.patch(
            receiver,
            "destination_record",
            lambda disk, records, overwrite, _: destination_record(disk, records, overwrite, id),
        )
        self.make(overwrite=True)

    def test_a_new_migration_removes_what_is_finished_before_its_first_byte(self):
        record = Record(ONE, Phase.COPIED, 1, SIZE, Location(), Location("z"), "", retired="then")
        for kind in (Kind.MIGRATED, Kind.RECEIVED, Kind.ACCEPTED):
            self.records.write(kind, record.but(id="old", ids=("older",)))
            self.assertRaises(Refused, self.make_with_id, "")
            self.make_with_id()
            self.assertEqual([f"disk.{kind}"], self.names(), "nothing is done before it must be")
            events = []
            self.system.note = events.append
            self.disk.observe(lambda call, events=events: events.append(call.method))
            client = self.client()
            client.write(0, DATA[:100])
            made = [event for event in events if event in ("prepare", "write") or " " in event]
            self.assertEqual(
                ["INCOMPLETE copying", f"{kind} removed", "prepare", "write"], made[:4]
            )
            found = self.record()
            self.assertEqual((ONE, ("older", "old")), (found.follows, found.ids))
            client.disconnect()
            self.clock.advance(0)
            self.begun(TWO)
            found = self.record()
            self.assertEqual((TWO, ONE), (found.migration, found.follows))
            self.assertEqual(("older", "old"), found.ids)
            self.records.remove(Kind.INCOMPLETE)
            self.system.note = lambda words: None

    def test_RECEIVED_names_what_it_follows(self):
        record = Record(ONE, Phase.COPIED, 1, SIZE, Location(), Location("z"), "", retired="then")
        self.records.write(Kind.MIGRATED, record.but(id="old"))
        self.make_with_id()
        client = self.client()
        client.write(0, DATA)
        client.disconnect()
        self.successResultOf(self.outcome)
        self.assertEqual(["disk.RECEIVED"], self.names())
        found = self.records.read(Kind.RECEIVED)
        self.assertEqual((ONE, ("old",), Phase.COPIED), (found.follows, found.ids, found.phase))
        self.assertEqual((False, True), (found.identified, bool(found.confirmed)))
        self.assertEqual(self.disk.identity(), found.identity)
        self.assertRaises(AlreadyDone, self.make_with_id, "")
        self.assertRaises(AlreadyDone, self.make)
        self.assertRaises(Refused, self.make_with_id, "old")

    def test_overwrite_never_passes_over_a_whole_copy(self):
        self.stand("copied", retired="then")
        self.make(overwrite=True)
        self.assertEqual(HandoffPhase.RETIRED, self.handoff().read_message().phase)
        self.assertNotEqual(0, self.handoff().notify("copying", TWO))
        self.assertEqual(ONE, self.record().migration)

    def test_the_directory_is_synced_with_the_first_record(self):
        """What an earlier process did must be durable before anybody relies on it."""
        synced = []
        self.system.fsync = synced.append
        self.begun()[0].lose()
        self.clock.advance(0)
        self.assertEqual(3, len(synced), "the record, its name, and what was there before")
        self.begun(cookie=9)
        self.assertEqual(5, len(synced))

    def test_the_receiver_is_touched_by_the_first_change(self):
        self.claimed()
        self.assertFalse(self.receiver.touched)
        self.begun(cookie=9)
        self.assertTrue(self.receiver.touched)

    def test_an_export_name_leaves_room_for_the_side_exports(self):
        self.make(export="ä" * 2035)
        self.assertRaises(ValueError, self.make, export="ä" * 2035 + "x")
