"""A client that asks for another export where the server's policy refuses the first."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import (
    MAXIMUM_NAME,
    ClientHandshake,
    Export,
    HandshakeRefused,
    LocalProtocolError,
    OptionReply,
    ServerHandshake,
    TransmissionFlag,
    size_in_name,
    sized_export_name,
)

FLAGS = TransmissionFlag.HAS_FLAGS
UNSIZED = Export("disk", 0, FLAGS)
SIZED = Export("disk.sized-77", 77, FLAGS)


def negotiated(exports, refusals, names=("disk.handoff",), **wanted):
    client = ClientHandshake("disk", ["disk.handoff"], **wanted)
    server = ServerHandshake(
        {export.name: export for export in exports}.get,
        lambda: names,
        refusal=lambda name: refusals.get(name, ""),
    )
    while True:
        client.receive_data(server.data_to_send())
        if (event := client.next_event()) is not None:
            return event
        server.receive_data(client.data_to_send())


class InsteadTests(SynchronousTestCase):
    def refused(self, *arguments, **wanted):
        error = self.assertRaises(HandshakeRefused, negotiated, *arguments, **wanted)
        return error.reply, error.explanation

    def test_the_other_export_is_negotiated(self):
        event = negotiated([UNSIZED, SIZED], {"disk": "not yet"}, instead=SIZED.name)
        self.assertEqual((SIZED.name, 77), (event.export.name, event.export.size))

    def test_the_first_is_where_nothing_refuses_it(self):
        event = negotiated([Export("disk", 5, FLAGS), SIZED], {}, instead=SIZED.name)
        self.assertEqual(("disk", 5), (event.export.name, event.export.size))

    def test_without_another_the_refusal_is_the_end(self):
        self.assertEqual(
            (OptionReply.ERR_POLICY, "not yet"), self.refused([UNSIZED], {"disk": "not yet"})
        )

    def test_a_server_that_does_not_know_the_other_has_refused_the_first(self):
        self.assertEqual(
            (OptionReply.ERR_POLICY, "not yet"),
            self.refused([UNSIZED], {"disk": "not yet"}, instead=SIZED.name),
        )

    def test_a_refusal_of_the_other_is_told(self):
        refusals = {"disk": "not yet", SIZED.name: "too many"}
        self.assertEqual(
            (OptionReply.ERR_POLICY, "too many"),
            self.refused([UNSIZED, SIZED], refusals, instead=SIZED.name),
        )

    def test_a_server_of_another_kind_is_asked_once(self):
        """It may hang up after its refusal, and then that would not be known."""
        refusals = {"disk": "not yet"}
        self.assertEqual(
            (OptionReply.ERR_POLICY, "not yet"),
            self.refused([UNSIZED, SIZED], refusals, ("disk",), instead=SIZED.name),
        )

    def test_an_unknown_export_is_no_matter_of_policy(self):
        reply, _ = self.refused([SIZED], {}, instead=SIZED.name)
        self.assertEqual(OptionReply.ERR_UNKNOWN, reply)

    def test_a_name_that_is_too_long(self):
        longest = "x" * MAXIMUM_NAME
        ClientHandshake("", instead=longest)
        self.assertRaises(LocalProtocolError, ClientHandshake, "", instead=longest + "x")


class NameTests(SynchronousTestCase):
    def test_a_name_says_a_size_and_is_read_again(self):
        for export in ("", "disk", "a.sized-5", "ä"):
            for size in (1, 5000, (1 << 63) - 1):
                name = sized_export_name(export, size)
                self.assertEqual(size, size_in_name(name, export))

    def test_other_names_say_none(self):
        for name in (
            *("", "disk", "disk.handoff", "disk.sized-", "disk.sized-0", "disk.sized-07"),
            *(
                "disk.sized-7 ",
                "disk.sized-+7",
                "disk.sized-\u0667",
                "disk.sized-1_0",
                "other.sized-7",
            ),
            *(f"disk.sized-{1 << 63}", "disk.sized-" + "9" * 5000, "disk.sized-7\n"),
        ):
            self.assertEqual(0, size_in_name(name, "disk"), name[:40])

    def test_a_name_that_would_be_too_long_is_none(self):
        self.assertIsNone(sized_export_name("x" * MAXIMUM_NAME, 1))
