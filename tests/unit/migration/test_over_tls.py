"""Migrations over TLS: the order of events, streams that are cut off at every message, and who is
no destination.
"""

from __future__ import annotations

import itertools

from twisted.internet.error import ConnectionDone
from twisted.logger import capturedLogs, formatEvent

from blockmig import GaveUp, Refused, TLSFailure
from blockmig.transport import ClientTLS
from tests.support.tls import Authority, client_tls, server_tls, world
from tests.unit.migration import test_sender_and_receiver as plain


class Case(plain.Case):
    server_tls = world().server
    client_tls = world().client


class OrderTests(Case):
    def test_each_connection_speaks_TLS_and_nothing_is_said_in_plain(self):
        seen = []

        def listen(connection):
            self.endpoint.prepare(listen)  # the next one as well
            for end in (connection.client, connection.server):
                receive = end.receive
                end.receive = lambda piece, receive=receive: (seen.append(piece), receive(piece))

        self.endpoint.prepare(listen)
        self.run_whole()
        said = b"".join(seen)
        self.assertEqual(len(self.endpoint.connections), said.count(b"IHAVEOPT\0\0\0\5"))
        self.assertNotIn(plain.DATA[:100], said)
        self.assertNotIn(b"phase", said)

    run_whole = plain.OrderTests.run_whole

    def test_the_order_is_that_of_the_design(self):
        self.run_whole()
        end = self.events.index("src unlink")
        self.assertEqual([*plain.BEGIN, *plain.COPY], self.events[:12])
        self.assertEqual(["H WRITE", "dst INCOMPLETE copied retired"], self.events[end + 1 :][:2])
        self.assertEqual(plain.END, self.events[end + 5 :][:4])

    def test_no_timer_is_left(self):
        self.run_whole()
        self.assertEqual([], self.sending.getDelayedCalls() + self.clock.getDelayedCalls())

    def test_a_destination_without_a_side_export_is_done_when_it_closes(self):
        self.plain = True
        self.run_whole()


class CutTests(Case):
    """The stream ends without close_notify, as anybody on the way can make it end."""

    def cut_everywhere(self, cut):
        """How many messages a migration has that is not cut."""
        for messages in itertools.count():
            self.setUp()
            self.receive()
            self.send()
            if not self.steps(messages):
                return messages
            self.check_verdict()
            for link in list(self.endpoint.connections):
                cut(link)
            self.check_verdict()
            self.endpoint.pump()
            self.check_verdict()
            self.pass_time(45)
            self.check_done()

    def test_both_ends_lose_what_was_on_its_way(self):
        def cut(link):
            for end in (link.client, link.server):
                end.lose(ConnectionDone())

        for self.unlink in (True, False):
            self.assertGreater(self.cut_everywhere(cut), 30)

    def test_the_receiver_loses_it_first(self):
        def cut(link):
            link.server.lose(ConnectionDone())

        self.assertGreater(self.cut_everywhere(cut), 30)

    def test_the_sender_loses_it_first(self):
        def cut(link):
            link.client.lose(ConnectionDone())

        self.assertGreater(self.cut_everywhere(cut), 30)

    def until(self, words):
        while words not in self.events:
            self.assertTrue(self.steps(1))

    def test_a_DISC_counts_without_close_notify(self):
        """To a destination that has no side export, so that nobody says it again."""
        self.plain = True
        self.receive()
        self.send()
        self.until("M DISC")
        for link in self.endpoint.connections:
            link.client.discard()
            link.server.lose(ConnectionDone())
        self.assertEqual(plain.SIZE, self.successResultOf(self.arrived).bytes)

    def test_a_stream_that_ends_without_DISC_completes_nothing(self):
        self.plain = True
        self.receive()
        self.send()
        self.until("src unlink")
        for link in self.endpoint.connections:
            link.server.lose(ConnectionDone())
        self.assertNoResult(self.arrived)
        self.check_verdict()


class NoDestinationTests(Case):
    def refused(self):
        """Why; nothing was done at either end, and no other attempt was made."""
        self.receive()
        self.send()
        self.endpoint.pump()
        self.pass_time(5)
        self.assertEqual(1, len(self.endpoint.connections))
        self.assertEqual([], self.events)
        self.assertNoResult(self.arrived)
        return str(self.failureResultOf(self.outcome, Refused).value)

    def test_one_that_does_not_start_TLS(self):
        self.server_tls = None
        self.assertIn("does not start TLS (ERR_POLICY: TLS is not offered here)", self.refused())

    def test_one_that_requires_TLS_of_a_sender_without(self):
        self.client_tls = None
        self.assertIn("the destination requires TLS", self.refused())

    def test_one_whose_CA_is_not_known(self):
        self.client_tls = client_tls(Authority("x"), world().authority.signed("the sender"))
        self.assertIn("certificate cannot be verified", self.refused())

    def test_one_whose_certificate_has_expired(self):
        self.server_tls = server_tls(world().authority.expired(), world().authority)
        self.assertIn("certificate cannot be verified", self.refused())

    def test_one_with_another_name(self):
        self.server_tls = server_tls(world().authority.signed("elsewhere"), world().authority)
        self.assertIn("certificate cannot be verified", self.refused())

    def test_one_that_does_not_know_our_CA(self):
        other = Authority("another").signed("the sender")
        self.client_tls = client_tls(world().authority, other)
        self.assertIn("TLS with the destination failed: the other end", self.refused())

    def test_one_that_wants_a_certificate_that_we_have_not(self):
        self.client_tls = client_tls(world().authority)
        self.assertIn("wants a certificate, and we have shown none", self.refused())

    def test_certificates_of_ours_that_cannot_be_used(self):
        def creator():
            raise TLSFailure("client-key.pem can be read by others: chmod 600")

        self.client_tls = ClientTLS(creator)
        self.assertIn("client-key.pem can be read by others", self.refused())

    def test_one_that_lets_in_others_only_is_tried_again(self):
        """The list may change, and nothing says that it is the list."""
        self.server_tls = server_tls(
            world().authority.signed(), world().authority, refusal=lambda one: "not on the list"
        )
        self.receive()
        self.send()
        self.endpoint.pump()
        self.pass_time(5)
        self.assertGreater(len(self.endpoint.connections), 1)
        self.assertIn("when TLS stood", self.sender.last_error)
        self.assertEqual([], self.events)
        self.sender.stop()
        self.endpoint.pump()
        self.failureResultOf(self.outcome, GaveUp)


class LaterTests(Case):
    def test_what_was_accepted_before_is_tried_for_until_it_is_so_again(self):
        """Somebody has put other certificates there; and is told once a minute."""
        self.receive()
        self.send()
        while "dst write" not in self.events:
            self.assertTrue(self.steps(1))
        for link in self.endpoint.connections:
            link.cut()
        good = self.receiver.owner.settings.tls
        bad = server_tls(world().authority.expired(), world().authority)
        object.__setattr__(self.receiver.owner.settings, "tls", bad)
        with capturedLogs() as events:
            self.pass_time(70)
        said = [line for event in events if "certificate cannot be" in (line := formatEvent(event))]
        self.assertIn(len([one for one in said if "trying again" in one]), (1, 2))
        self.assertNoResult(self.outcome)
        self.check_verdict()
        object.__setattr__(self.receiver.owner.settings, "tls", good)
        self.pass_time(5)
        self.check_done()
