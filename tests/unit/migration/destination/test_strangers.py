"""Whose migration a receiver takes: ids, secrets, and who makes way for whom."""

from __future__ import annotations

from blockmig.errors import GaveUp, Summary
from blockmig.migration.handoff.message import HandoffPhase, Writer, is_signed
from blockmig.migration.identity import Identity
from blockmig.migration.records.files import Phase
from blockmig.nbd import Command, Errno
from tests.unit.migration.destination.case import DATA, SIZE, ReceiverCase
from tests.unit.support import ONE, TWO, request_bytes

FLUSH, DISC, WRITE, READ = Command.FLUSH, Command.DISC, Command.WRITE, Command.READ
ZEROES = Command.WRITE_ZEROES
EPERM, EINVAL = Errno.EPERM, Errno.EINVAL
SECRET = bytes(range(32))


class IdTests(ReceiverCase):
    def setUp(self):
        super().setUp()
        self.make(identity=Identity("nightly"))

    def test_only_the_migration_of_that_id_is_accepted(self):
        handoff = self.handoff()
        for id in ("", "weekly", "Nightly", "nightly2"):
            self.assertEqual(EPERM, handoff.notify("copying", id=id))
        self.assertEqual(0, handoff.notify("copying", id="nightly"))
        client = self.client(7)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        self.assertEqual("nightly", self.record().id)
        self.assertEqual(EPERM, handoff.notify("copied", id="weekly"))
        self.assertEqual(0, handoff.notify("copied", id="nightly"))
        self.assertEqual(EPERM, handoff.notify("retired", id="weekly"))
        self.assertEqual(0, handoff.notify("retired", id="nightly"))
        client.disconnect()
        handoff.disconnect()
        self.clock.advance(0)
        self.assertIsInstance(self.successResultOf(self.outcome), Summary)

    def test_who_says_nothing_of_himself_is_refused(self):
        client = self.client()
        for command in (WRITE, ZEROES):
            payload = b"x" if command == WRITE else b""
            self.assertEqual(EPERM, client.ask(command, 0, 1, payload=payload)[0])
        self.assertEqual(0, client.ask(FLUSH)[0])
        self.assertEqual(0, client.ask(READ, 0, 1)[0])
        client.disconnect()
        self.waits()
        self.assertEqual(([], [], 0), (self.names(), self.changes(), self.receiver.attempts))
        self.receiver.stop()
        self.ends_with(GaveUp, 4, "nothing was received")

    def test_a_refused_claim_makes_nobody_known(self):
        self.assertEqual(EPERM, self.handoff().notify("copying", id="weekly"))
        self.assertEqual(EPERM, self.client(7).ask(WRITE, 0, 1, payload=b"x")[0])
        self.assertEqual([], self.names())

    def test_no_page_shows_the_id(self):
        handoff = self.handoff()
        for phase in ("copying", "copying"):
            handoff.notify(phase, id="nightly")
            self.assertNotIn(b"nightly", handoff.read_message().encode())
        self.client(7).write(0, DATA)
        for reader in (handoff, self.handoff()):
            message = reader.read_message()
            self.assertEqual(HandoffPhase.COPYING, message.phase)
            self.assertNotIn(b"nightly", message.encode())
            self.assertIn("there:/source", message.holder)


class SecretTests(ReceiverCase):
    def setUp(self):
        super().setUp()
        self.make(identity=Identity("nightly", SECRET))

    def test_messages_are_proved_by_the_secret(self):
        handoff = self.handoff()
        self.assertEqual(EPERM, handoff.notify("copying", id="nightly"))
        wrong = SECRET[:-1] + b"x"
        self.assertEqual(EPERM, handoff.notify("copying", id="nightly", secret=wrong))
        self.assertEqual(0, handoff.notify("copying", id="nightly", secret=SECRET))
        client = self.client(7)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        for phase in ("copied", "retired"):
            self.assertEqual(EPERM, handoff.notify(phase, id="nightly"))
            self.assertEqual(0, handoff.notify(phase, id="nightly", secret=SECRET))

    def test_a_proof_counts_on_its_own_connection_only(self):
        one, two = self.handoff(), self.handoff()
        message = one.message("copying", id="nightly", secret=SECRET)
        two.write(0, message)
        self.assertEqual([EPERM], two.errors())
        one.write(0, message)
        self.assertEqual([0], one.errors())

    def test_the_receiver_proves_it_too_to_whom_it_has_believed(self):
        handoff = self.handoff()
        message = handoff.read_message()
        self.assertEqual(("", ""), (message.proof, message.cookie))
        handoff.notify("copying", id="nightly", secret=SECRET)
        message = handoff.read_message()
        self.assertEqual(f"{7:016x}", message.cookie)
        self.assertTrue(is_signed(message, SECRET, message.nonce, Writer.RECEIVER))
        self.assertEqual("", self.handoff().read_message().proof)

    def test_a_secret_alone_will_do(self):
        self.make(identity=Identity(secret=SECRET))
        self.assertEqual(EPERM, self.handoff().notify("copying"))
        self.assertEqual(0, self.handoff().notify("copying", secret=SECRET))
        self.assertEqual(EPERM, self.client().ask(WRITE, 0, 1, payload=b"x")[0])

    def test_without_a_secret_the_page_asks_for_nothing(self):
        self.make()
        handoff = self.handoff()
        handoff.notify("copying")
        message = handoff.read_message()
        self.assertEqual(("", "", ""), (message.nonce, message.proof, message.cookie))


class ReplacementTests(ReceiverCase):
    """An attempt that nobody claimed makes way for one that was claimed."""

    def foreign_attempt(self, data=DATA):
        client = self.client()
        client.write(0, data)
        self.assertEqual([0], client.errors())
        return client

    def replaced(self, seconds=0.1):
        for _ in range(round(seconds / 0.01)):
            self.clock.advance(0.01)

    def test_a_claimed_attempt_replaces_it(self):
        stranger = self.foreign_attempt()
        client, _ = self.claimed()
        client.write(0, DATA)
        self.assertEqual([], client.errors())
        self.replaced()
        self.assertTrue(stranger.transport.gone)
        self.assertEqual([0], client.errors())
        record = self.record()
        self.assertEqual(
            (ONE, True, Phase.COPYING), (record.migration, record.identified, record.phase)
        )
        self.assertEqual(2, self.receiver.attempts)
        client.send(FLUSH)
        self.assertEqual([0], client.errors())
        self.assertEqual(0, self.handoff().notify("copied"))

    def test_several_changes_wait_for_it_and_all_are_made(self):
        self.foreign_attempt()
        client, _ = self.claimed()
        for offset in range(0, SIZE, 500):
            client.write(offset, DATA[offset : offset + 500])
        self.replaced()
        self.assertEqual([0] * 10, client.errors())
        client.send(FLUSH)
        self.assertEqual([0], client.errors())
        self.assertEqual(0, self.handoff().notify("copied"), "all of it is covered")

    def test_also_when_its_copy_is_whole_and_recorded(self):
        stranger = self.foreign()
        self.assertEqual(Phase.COPIED, self.record().phase)
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        self.replaced()
        self.assertEqual([0], client.errors())
        self.assertTrue(stranger.transport.gone)
        self.assertEqual((ONE, Phase.COPYING), (self.record().migration, self.record().phase))

    def test_a_disconnect_that_has_arrived_counts(self):
        stranger = self.foreign()
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        stranger.give(request_bytes(DISC, 0, 0, 0, 9))
        self.replaced()
        self.assertEqual(([], True), (client.errors(), client.transport.gone))
        self.assertEqual(DATA, self.disk.content)
        self.replaced(6)  # conversations may ask for the result for a while
        self.assertIsInstance(self.successResultOf(self.outcome), Summary)

    def test_what_goes_on_arriving_delays_it_by_a_second_at_most(self):
        stranger = self.foreign_attempt()
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        for _ in range(90):
            stranger.give(request_bytes(READ, 0, 1, 0, 9))
            self.clock.advance(0.01)
        self.assertEqual(([], True), (client.errors(), stranger.transport.listens))
        for _ in range(20):
            stranger.give(request_bytes(READ, 0, 1, 0, 9))
            self.clock.advance(0.01)
        self.assertEqual([0], client.errors())
        self.assertTrue(stranger.transport.gone)

    def test_a_claimed_attempt_is_replaced_by_nobody(self):
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        self.assertEqual(EPERM, self.handoff().notify("copying", TWO, 9))
        self.assertEqual(EPERM, self.client(9).ask(WRITE, 0, 1, payload=b"x")[0])
        self.replaced(2)
        self.assertTrue(client.transport.listens)
        self.assertEqual([0], client.errors())

    def test_one_that_was_claimed_before_both_began_comes_too_late(self):
        one, _ = self.claimed(ONE, 7)
        two, _ = self.claimed(TWO, 9)
        one.write(0, DATA[:10])
        self.assertEqual(EPERM, two.ask(WRITE, 0, 1, payload=b"x")[0])
        self.replaced(2)
        self.assertEqual(([0], ONE), (one.errors(), self.record().migration))

    def test_a_stop_meanwhile_answers_whoever_waits(self):
        self.foreign_attempt()
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        self.receiver.stop()
        self.clock.advance(0)
        self.replaced(2)
        self.ends_with(GaveUp, 4)
        self.assertEqual([], self.clock.getDelayedCalls())

    def test_a_disk_that_fails_meanwhile_answers_whoever_waits(self):
        stranger = self.foreign_attempt()
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        self.disk.fail("write", OSError(28, "full"), times=None)
        stranger.write(0, DATA[:1])
        self.replaced(0.05)
        self.assertEqual([Errno.ENOSPC], client.errors())


class TakenTests(ReceiverCase):
    """A sender that has said who it is has begun: nobody comes between its attempts."""

    def test_who_says_nothing_of_himself_begins_no_attempt_between(self):
        self.begun()[0].lose()
        self.clock.advance(0)
        stranger = self.client()
        self.assertEqual(EPERM, stranger.ask(ZEROES, 0, SIZE)[0])
        stranger.disconnect()
        self.waits()
        self.begun(cookie=9)

    def test_nor_while_one_is_replaced(self):
        first = self.client()
        first.write(0, DATA[:10])
        client, _ = self.claimed()
        client.write(0, DATA[:10])
        second = self.client()
        second.write(0, DATA[:10])
        for _ in range(10):
            self.clock.advance(0.01)
        third = self.client()
        self.assertEqual(EPERM, third.ask(WRITE, 0, 1, payload=b"x")[0])
        self.assertEqual(([0], [EPERM]), (client.errors(), second.errors()))


class RefusalTests(ReceiverCase):
    def test_an_id_that_can_be_none_is_refused(self):
        for id in ("a; rm -rf $HOME", "x" * 65, "a b"):
            self.assertEqual(EPERM, self.handoff().notify("copying", id=id))

    def test_an_identified_whole_copy_yields_only_to_its_own_migration(self):
        self.copied()[0].lose()
        self.clock.advance(0)
        self.assertEqual(EPERM, self.handoff().notify("copying", TWO, 9))
        self.assertEqual(EPERM, self.client(9).ask(WRITE, 0, 1, payload=b"x")[0])
        self.assertEqual(Phase.COPIED, self.record().phase)
        self.begun(ONE, 11)
        self.assertEqual(Phase.COPYING, self.record().phase)

    def test_a_page_says_whose_copy_it_is(self):
        self.copied()
        holder = self.handoff().read_message().holder
        self.assertIn("there:/source (192.0.2.7:4711), since 20", holder)

    def test_a_place_has_a_UUID_that_its_records_keep(self):
        place = self.handoff().read_message().place
        self.assertEqual(place, self.handoff().read_message().place)
        self.copied()
        self.assertEqual(place, self.record().place)
        self.make()
        self.assertEqual(place, self.handoff().read_message().place)

    def test_two_places_have_two(self):
        places = set()
        for _ in range(3):
            self.setUp()
            places.add(self.handoff().read_message().place)
        self.assertEqual(3, len(places))
