"""Who only checks: who is told what, and that nothing follows from it."""

from __future__ import annotations

import gc
import os
import weakref

from twisted.logger import capturedLogs

from blockmig import FileDisk, __version__
from blockmig.errors import GaveUp, Summary
from blockmig.migration.destination import scratch
from blockmig.migration.handoff.message import HandoffPhase
from blockmig.migration.identity import Identity
from blockmig.migration.records.files import Kind
from blockmig.nbd import SCRATCH_SIZE, Command, CommandFlag, Errno, HandshakeRefused, OptionReply
from blockmig.testing import ManualThreads
from tests.unit.support import ADDRESS, ONE, TWO, Client

from .case import DATA, DISC, FLUSH, SIZE, ReceiverCase

SECRET = bytes(range(32))
NAMED = Identity(id="web-7")


class CheckCase(ReceiverCase):
    def setUp(self):
        super().setUp()
        self.wait_for(NAMED)

    def wait_for(self, identity, thread=None):
        more = {} if thread is None else {"thread": thread}
        self.make(identity=identity, **more)

    def checks(self, cookie=9, *, id="web-7", **more):
        """Check over a connection of its own: the answer, and what is read then."""
        handoff = self.handoff()
        error = handoff.notify("checking", TWO, cookie, id=id, **more)
        return error, handoff.read_message(), handoff

    def found(self, *arguments, **more):
        error, message, _ = self.checks(*arguments, **more)
        self.assertEqual(0, error)
        return message.findings

    def claimed(self, migration=ONE, cookie=7):
        handoff = self.handoff()
        self.assertEqual(0, handoff.notify("copying", migration, cookie, id="web-7"))
        return self.client(cookie), handoff


class WhoIsToldTests(CheckCase):
    def test_who_has_the_id_is_told_everything(self):
        found = self.found()
        self.assertTrue(found.told)
        self.assertEqual(
            (__version__, "waiting", ""), (found.version, found.state, found.receiving)
        )
        self.assertRegex(found.time, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        self.assertEqual("", found.unrecorded)

    def test_who_has_another_id_is_told_nothing_but_that(self):
        for id in ("", "web-8"):
            with capturedLogs() as events:
                error, message, _ = self.checks(id=id)
            self.assertEqual(Errno.EPERM, error)
            self.assertTrue(message.another)
            self.assertIsNone(message.findings)
            (refused,) = [event for event in events if event.get("event") == "refused"]
            self.assertEqual("'checking'", refused["phase"])

    def test_who_has_the_secret_is_told_and_is_proved_to(self):
        self.wait_for(Identity(secret=SECRET))
        error, message, _ = self.checks(9, secret=SECRET)
        self.assertEqual(0, error)
        self.assertTrue(message.findings.told)
        self.assertEqual("0000000000000009", message.cookie)
        self.assertTrue(message.proof)

    def test_who_has_another_secret_is_told_nothing(self):
        self.wait_for(Identity(secret=SECRET))
        for secret in (b"", bytes(32)):
            error, message, _ = self.checks(secret=secret)
            self.assertEqual(Errno.EPERM, error)
            self.assertIsNone(message.findings)

    def test_where_nobody_can_prove_anything_only_the_version_is_told(self):
        self.wait_for(Identity())
        found = self.found()
        self.assertEqual((__version__, False), (found.version, found.told))
        self.assertEqual(
            ("", "", "", -1, 0),
            (found.state, found.receiving, found.time, found.room, found.allocated),
        )

    def test_another_connection_reads_nothing_of_it(self):
        self.checks()
        self.assertIsNone(self.handoff().read_message().findings)

    def test_it_is_told_until_something_else_is_said(self):
        _, message, handoff = self.checks()
        self.assertEqual(message.findings, handoff.read_message().findings)
        self.assertEqual(0, handoff.notify("copying", ONE, 7, id="web-7"))
        self.assertIsNone(handoff.read_message().findings)


class WhatIsToldTests(CheckCase):
    def test_a_directory_in_which_no_record_can_be_made(self):
        os.rename(self.directory, self.directory + "-gone")
        self.assertIn("no such directory", self.found().unrecorded)

    def test_the_room_for_a_file(self):
        path = self.directory + "/file"
        with open(path, "wb") as file:
            file.write(bytes(8192))
        self.disk = FileDisk(path, writable=True)
        self.addCleanup(self.disk.close)
        self.wait_for(NAMED)
        there = os.statvfs(path)
        found = self.found()
        self.assertEqual(os.stat(path).st_blocks * 512, found.allocated)
        # Others use the file system, too.
        self.assertLess(abs(found.room - there.f_bfree * there.f_frsize), 1 << 30)

    def test_nobody_knows_of_the_room_for_another_disk(self):
        self.assertEqual((-1, 0), (self.found().room, self.found().allocated))

    def test_whose_attempt_goes_on(self):
        self.begun()
        found = self.found()
        self.assertEqual("copying", found.state)
        self.assertIn("there:/source", found.receiving)

    def test_that_the_source_was_retired(self):
        client, handoff = self.claimed()
        client.write(0, DATA)
        client.send(FLUSH)
        for phase in ("copied", "retired"):
            self.assertEqual(0, handoff.notify(phase, ONE, 7, id="web-7"))
        self.assertEqual("retired", self.found().state)

    def test_that_the_disk_has_failed(self):
        client, _ = self.begun()
        self.disk.fail("write", OSError(5, "broken"))
        client.write(1, DATA[:1])
        self.assertEqual("failed", self.found().state)


class NothingFollowsTests(CheckCase):
    def test_nothing_is_recorded_or_changed(self):
        before = os.stat(self.directory).st_mtime_ns
        self.checks()
        self.assertEqual([], self.names())
        self.assertEqual([], self.changes())
        self.assertFalse(self.receiver.touched)
        self.assertEqual(before, os.stat(self.directory).st_mtime_ns)

    def test_it_is_no_claim(self):
        self.checks(cookie=7)
        client = self.client(7)
        client.write(0, DATA[:1])
        self.assertEqual([Errno.EPERM], client.errors())

    def test_a_connection_that_only_checks_is_not_kept_before_others(self):
        _, _, handoff = self.checks()
        self.assertFalse(self.receiver.owner.is_proved(handoff.connection))

    def test_a_check_neither_ends_an_attempt_nor_its_conversation(self):
        client, handoff = self.begun()
        self.checks(cookie=7)
        client.write(0, DATA)
        client.send(FLUSH)
        self.assertEqual([0, 0], client.errors())
        for phase in ("copied", "retired"):
            self.assertEqual(0, handoff.notify(phase, ONE, 7, id="web-7"))
        client.send(DISC)
        self.assertEqual(HandoffPhase.COMPLETE, handoff.read_message().phase)
        handoff.lose()
        self.clock.advance(6)
        self.assertIsInstance(self.successResultOf(self.outcome), Summary)

    def test_a_claim_that_was_late_is_void_on_a_connection_that_has_checked(self):
        _, _, early = self.checks()
        self.begun()
        error = early.notify("copying", ONE, 8, id="web-7")
        self.assertEqual(Errno.EPERM, error)


class LookTests(CheckCase):
    """A look may take for ever: nobody waits for it but who has asked, and is still there."""

    def setUp(self):
        super().setUp()
        self.threads = ManualThreads()
        self.wait_for(NAMED, self.threads)

    def asking(self, count=1):
        clients = [self.handoff() for _ in range(count)]
        for number, client in enumerate(clients):
            client.send_message("checking", TWO, number + 1, id="web-7")
        return clients

    def test_there_is_one_for_all_who_ask_meanwhile(self):
        clients = self.asking(3)
        self.assertEqual(["_look"], self.threads.names())
        self.assertEqual(1, self.threads.run())
        self.assertEqual([[0], [0], [0]], [client.errors() for client in clients])
        for client in clients:
            self.assertTrue(client.read_message().findings.told)

    def test_who_asks_just_after_that_is_told_the_same(self):
        self.asking()
        self.threads.run()
        self.clock.advance(0.9)
        (client,) = self.asking()
        self.assertEqual([0], client.errors())
        self.clock.advance(0.2)
        (client,) = self.asking()
        self.assertEqual([], client.errors())
        self.assertEqual(["_look"], self.threads.names())

    def test_a_connection_asks_a_few_times(self):
        client = self.handoff()
        for _ in range(17):
            client.send_message("checking", TWO, 1, id="web-7")
        self.threads.run()
        self.assertEqual([0] * 16 + [Errno.EPERM], sorted(client.errors()))

    def test_nothing_is_kept_for_a_connection_that_is_gone(self):
        (client,) = self.asking()
        for _ in range(5):
            client.send_message("checking", TWO, 1, id="web-7")
        connection = weakref.ref(client.connection)
        client.lose()
        self.clock.advance(0)
        del client
        gc.collect()
        self.assertIsNone(connection())
        (honest,) = self.asking()
        self.assertEqual(1, self.threads.run())
        self.assertEqual([0], honest.errors())

    def test_it_does_not_delay_the_end_of_the_receiver(self):
        clients = self.asking(2)
        clients[0].lose()
        self.receiver.stop()
        self.clock.advance(0)
        self.failureResultOf(self.outcome, GaveUp)
        self.threads.run()
        self.assertEqual([], self.flushLoggedErrors())

    def test_it_does_not_delay_the_end_of_the_migration(self):
        client, handoff = self.handed_over()
        (checking,) = self.asking()
        client.send(DISC)
        # All but the look, which hangs.
        self.threads.rotate(-1)
        while self.threads.names() != ["_look"]:
            self.threads.run(1)
        self.assertEqual([Errno.ESHUTDOWN], checking.errors())
        handoff.lose()
        self.clock.advance(6)
        self.assertIsInstance(self.successResultOf(self.outcome), Summary)
        self.threads.run()
        self.assertEqual([], self.flushLoggedErrors())

    def handed_over(self):
        """A sender that has only the disconnect left to send."""
        handoff = self.handoff()
        handoff.send_message("copying", ONE, 7, id="web-7")
        self.threads.run()
        client = self.client(7)
        client.write(0, DATA)
        self.threads.run()
        client.send(FLUSH)
        self.threads.run()
        self.assertEqual([0, 0], client.errors())
        for phase in ("copied", "retired"):
            handoff.send_message(phase, ONE, 7, id="web-7")
            self.threads.run()
        self.assertEqual([0, 0, 0], handoff.errors())
        return client, handoff

    def test_who_asks_after_the_end_is_told_so_at_once(self):
        client, handoff = self.handed_over()
        early = self.handoff()
        client.send(DISC)
        self.threads.run()
        early.send_message("checking", TWO, 1, id="web-7")
        self.assertEqual([Errno.ESHUTDOWN], early.errors())
        for each in (early, handoff):
            each.lose()
        self.clock.advance(6)
        self.assertIsInstance(self.successResultOf(self.outcome), Summary)


class ReplayTests(CheckCase):
    def test_the_proof_of_a_check_is_none_of_a_claim(self):
        self.wait_for(Identity(secret=SECRET))
        handoff = self.handoff()
        check = handoff.message("checking", TWO, 9, secret=SECRET)
        self.assertIn(b'"checking"', check)
        for phase in ("copying", "copied", "retired"):
            handoff.write(
                0, check.replace(b'"checking"', f'"{phase}"'.encode()).ljust(4096, b"\0")[:4096]
            )
            self.assertEqual([Errno.EPERM], handoff.errors(), phase)
        handoff.write(0, check)
        self.assertEqual([0], handoff.errors())

    def test_the_proof_of_a_check_is_of_its_connection(self):
        self.wait_for(Identity(secret=SECRET))
        check = self.handoff().message("checking", TWO, 9, secret=SECRET)
        other = self.handoff()
        other.write(0, check)
        self.assertEqual([Errno.EPERM], other.errors())

    def test_the_proof_of_a_claim_is_none_of_a_check(self):
        self.wait_for(Identity(secret=SECRET))
        handoff = self.handoff()
        claim = handoff.message("copying", TWO, 9, secret=SECRET)
        handoff.write(0, claim.replace(b'"copying"', b'"checking"')[:4096])
        self.assertEqual([Errno.EPERM], handoff.errors())
        self.assertIsNone(handoff.read_message().findings)


class ScratchTests(CheckCase):
    def scratch(self, cookie=9):
        connection = self.receiver.factory().buildProtocol(ADDRESS)
        return Client(self.clock, connection, ".scratch", cookie=cookie)

    def refused(self):
        """What is said to who is not offered it."""
        error = self.assertRaises(HandshakeRefused, self.scratch)
        self.assertEqual(OptionReply.ERR_POLICY, error.reply)
        return str(error)

    def test_what_is_written_is_thrown_away(self):
        self.checks()
        client = self.scratch()
        self.assertEqual(SCRATCH_SIZE, client.negotiated.export.size)
        for offset in (0, 1 << 20, SCRATCH_SIZE - 5):
            client.write(offset, b"x" * 5)
        client.send(Command.WRITE_ZEROES, 1 << 40, 1 << 30)
        client.send(Command.WRITE_ZEROES, 0, 4096)
        self.assertEqual([0] * 5, client.errors())
        self.assertEqual([], self.changes())
        self.assertEqual([], self.names())

    def test_it_is_durable_at_once(self):
        """FUA may come with any request."""
        self.checks()
        client = self.scratch()
        client.write(0, b"x" * 5, flags=CommandFlag.FUA)
        client.send(Command.WRITE_ZEROES, 0, 4096, CommandFlag.FUA)
        self.assertEqual([0] * 2, client.errors())
        self.assertEqual([], self.changes())

    def test_nothing_but_a_write_is_carried_out(self):
        self.checks()
        client = self.scratch()
        for command in (Command.READ, Command.TRIM, Command.CACHE):
            client.send(command, 0, 4096)
        client.send(FLUSH)
        self.assertEqual([Errno.EINVAL] * 4, client.errors())

    def test_it_is_not_listed(self):
        self.checks()
        self.assertEqual(["", ".handoff"], self.receiver.factory().settings.names())

    def test_it_is_offered_to_nobody_unless_a_check_stands(self):
        self.assertIn("only whose check was accepted", self.refused())
        _, _, handoff = self.checks()
        handoff.lose()
        self.assertIn("only whose check was accepted", self.refused())

    def test_a_check_stands_until_something_else_is_said(self):
        _, _, handoff = self.checks()
        self.assertEqual(0, handoff.notify("copying", ONE, 7, id="web-7"))
        self.assertIn("only whose check was accepted", self.refused())

    def test_it_is_not_offered_where_nobody_can_prove_anything(self):
        self.wait_for(Identity())
        self.checks()
        self.refused()

    def test_a_connection_that_no_check_names_is_hung_up_on(self):
        self.checks(cookie=9)
        stranger = self.scratch(cookie=8)
        stranger.write(0, b"x")
        self.clock.advance(0)
        self.assertTrue(stranger.transport.gone)
        named = self.scratch(cookie=9)
        named.write(0, b"x")
        self.assertEqual([0], named.errors())

    def test_there_is_one_at_a_time(self):
        words = self.refused()
        self.checks(cookie=9)
        first = self.scratch(9)
        first.write(0, b"x")
        self.checks(cookie=10)
        self.assertEqual(words, self.refused())
        first.lose()
        second = self.scratch(10)
        second.write(0, b"x")
        self.assertEqual([0], second.errors())

    def test_two_connections_that_one_check_names(self):
        self.checks(cookie=9)
        first, second = self.scratch(9), self.scratch(9)
        first.write(0, b"x")
        second.write(0, b"x")
        self.clock.advance(0)
        self.assertEqual([0], first.errors())
        self.assertTrue(second.transport.gone)

    def test_a_check_lends_it_once(self):
        self.checks(cookie=9)
        first = self.scratch(9)
        first.write(0, b"x")
        first.lose()
        self.refused()

    def test_it_ends_by_itself(self):
        self.checks()
        client = self.scratch()
        for _ in range(4):
            client.write(0, b"x")
            self.clock.advance(1)
        self.assertFalse(client.transport.gone)
        self.clock.advance(1)
        self.clock.advance(0)
        self.assertTrue(client.transport.gone)

    def test_no_more_is_taken_than_it_has_bytes(self):
        self.patch(scratch, "MOST", 10_000)
        self.checks()
        client = self.scratch()
        client.write(0, bytes(6000))
        self.assertEqual([0], client.errors())
        client.write(0, bytes(4001))
        self.clock.advance(0)
        self.assertTrue(client.transport.gone)

    def test_a_flood_takes_no_memory(self):
        """What is read is thrown away before more is read."""
        self.checks()
        client = self.scratch()
        session = client.connection._phase
        client.give(client.wire.request(Command.WRITE, 0, 1 << 20)[1])
        for _ in range(16):
            client.give(bytes(1 << 16))
            self.assertLess(session._wire.buffered, 1 << 17)
            self.assertEqual([], session._write._pieces if session._write else [])
        self.assertEqual([0], client.errors())

    def test_it_is_not_offered_while_an_attempt_goes_on(self):
        words = self.refused()
        self.begun()
        self.assertEqual(words, self.refused())
        self.checks()
        self.assertEqual(words, self.refused())

    def test_who_uses_it_when_an_attempt_begins_is_hung_up_on(self):
        self.checks()
        client = self.scratch()
        client.write(0, b"x")
        self.assertEqual([0], client.errors())
        self.begun()
        self.clock.advance(0)
        self.assertTrue(client.transport.gone)

    def test_records_are_as_before(self):
        self.checks()
        self.scratch().write(0, b"x")
        self.assertIsNone(self.records.read(Kind.INCOMPLETE))
        self.assertEqual(SIZE, self.disk.size)
