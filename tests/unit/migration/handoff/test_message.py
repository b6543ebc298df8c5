"""The message of the handoff side export: its form, and what is no message."""

from __future__ import annotations

import json
from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from blockmig.migration.handoff.findings import Findings
from blockmig.migration.handoff.message import (
    MESSAGE_SIZE,
    BadMessage,
    HandoffMessage,
    HandoffPhase,
    Writer,
    decode_message,
    fingerprint,
    is_signed,
    signed,
)
from blockmig.migration.records.files import Phase
from blockmig.nbd import HANDOFF_EXPORT
from tests.unit.support import ONE, TWO

THREE = "7d0b2d5c-9f5e-4d57-8c77-000000000003"
SECRET = bytes(range(32))
PAGE = HandoffMessage(
    HandoffPhase.COPIED,
    ONE,
    3,
    5000,
    "a host",
    "/disks/ä",
    True,
    "inode 5, born 6",
    "00000000000000ff",
    "nightly-42",
    THREE,
    "/var/lib/blockmig",
    "0123456789abcdef",
    "ab" * 32,
)
texts = st.text(max_size=30).map(
    lambda text: "".join(letter for letter in text if letter.isprintable())
)
pages = st.builds(
    HandoffMessage,
    st.sampled_from(HandoffPhase),
    st.uuids().map(str) | st.uuids().map(lambda found: fingerprint(str(found))) | st.just(""),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**63 - 1),
    texts,
    texts,
    st.booleans(),
    texts,
    st.integers(0, 2**64 - 1).map("{:x}".format) | st.just(""),
    texts,
    texts,
    texts,
    texts,
    texts,
)


class HandoffMessageTests(SynchronousTestCase):
    def bad(self, data):
        error = self.assertRaises(BadMessage, decode_message, data)
        self.assertNotIn("\n", str(error))
        return str(error)

    def changed(self, **changes):
        found = json.loads(PAGE.encode().rstrip(b"\0"))
        return json.dumps({**found, **changes}).encode()

    def test_a_message_is_4096_bytes_of_padded_JSON(self):
        self.assertEqual((".handoff", 4096), (HANDOFF_EXPORT, MESSAGE_SIZE))
        data = PAGE.encode()
        self.assertEqual(4096, len(data))
        text = data.rstrip(b"\0")
        self.assertTrue(text.endswith(b"}\n"))
        found = json.loads(text)
        self.assertEqual((1, "handoff"), (found["blockmig"], found["export"]))
        names = {field.name for field in fields(HandoffMessage)} - {"findings"}
        self.assertEqual({"blockmig", "export", *names}, set(found))

    def test_findings_are_a_part_of_it_if_there_are_any(self):
        self.assertNotIn(b"findings", PAGE.encode())
        found = Findings(
            "1.2.3", True, "copying", "a host:/disk", "then", 2**63 - 1, 5000, True, "no room"
        )
        message = replace(PAGE, findings=found)
        self.assertEqual(message, decode_message(message.encode()))

    def test_findings_fit_into_the_longest_message(self):
        for letter in "xä\U0001f600":
            text = letter * 5000
            found = Findings(text, True, text, text, text, 2**63 - 1, 2**63 - 1, True, text)
            message = replace(PAGE, findings=found, host=text, disk=text, holder=text)
            data = message.encode()
            self.assertEqual(MESSAGE_SIZE, len(data))
            self.assertEqual(found, decode_message(data).findings)
            self.assertTrue(found.unrecorded.startswith(letter * 20))

    def test_of_findings_what_is_not_known_is_ignored(self):
        found = decode_message(self.changed(findings={"version": "9", "moon": "full"})).findings
        self.assertEqual(Findings("9"), found)

    def test_findings_of_another_form_are_no_message(self):
        for found in (7, [], {}, {"version": 9}, {"version": "9", "told": 1}, "version"):
            self.assertIn("findings", self.bad(self.changed(findings=found)))

    def test_what_is_found_cannot_write_to_a_terminal(self):
        found = {"version": "1\x1b[2J", "unrecorded": "a\nb"}
        found = decode_message(self.changed(findings=found)).findings
        self.assertEqual(("1?[2J", "a?b"), (found.version, found.unrecorded))

    @given(pages)
    def test_any_message_survives_a_round_trip(self, message):
        data = message.encode()
        self.assertEqual(MESSAGE_SIZE, len(data))
        self.assertEqual(message, decode_message(data))

    def test_the_longest_names_are_shortened_to_fit(self):
        for letter, most in (("x", 4096), ("ä", 2048), ("\U0001f600", 1024), ("\udcff", 4096)):
            for host in ("h" * 64, letter * 255):
                disk = "/" + letter * (most - 1)
                message = HandoffMessage(
                    HandoffPhase.RETIRED,
                    ONE,
                    2**63 - 1,
                    2**63 - 1,
                    host,
                    disk,
                    True,
                    "t" * 50,
                    "f" * 16,
                )
                data = message.encode()
                self.assertEqual(MESSAGE_SIZE, len(data))
                found = decode_message(data)
                # What is no character at all is shown as a question mark.
                self.assertTrue(disk.replace("\udcff", "?").endswith(found.disk))
                self.assertTrue(host.replace("\udcff", "?").endswith(found.host))
                same = ("phase", "migration", "attempt", "size", "unlink", "token", "cookie")
                for name in same:
                    self.assertEqual(getattr(message, name), getattr(found, name))
                # No more is cut than must be.
                self.assertGreater(len(found.disk), 100)

    def test_names_that_fit_are_kept_whole(self):
        disk = "/" + "x" * 3000
        message = HandoffMessage(HandoffPhase.COPIED, ONE, 1, 1, "h" * 64, disk)
        self.assertEqual(message, decode_message(message.encode()))

    @given(st.binary(max_size=MESSAGE_SIZE))
    def test_any_bytes_raise_only_BadMessage(self, data):
        self.bad(data)

    @given(st.binary(max_size=40), st.integers(0, 200))
    def test_garbage_within_a_message_raises_only_BadMessage(self, data, position):
        whole = PAGE.encode()
        try:
            found = decode_message(whole[:position] + data + whole[position + len(data) :])
        except BadMessage:
            return
        self.assertIsInstance(found, HandoffMessage)

    def test_other_content_is_no_message(self):
        for data in (
            bytes(MESSAGE_SIZE),
            b"",
            b"[]",
            b"5",
            b"null",
            b"{}",
            b'{"export": "digests"}',
        ):
            self.assertIn("not a hand-off message", self.bad(data))

    def test_deeply_nested_JSON_is_no_message(self):
        """Content from the wire must raise nothing else."""
        for data in (b"[" * MESSAGE_SIZE, b'{"a":' * 800):
            self.assertIn("not a hand-off message", self.bad(data))

    def test_a_torn_message_is_bad(self):
        text = PAGE.encode().rstrip(b"\0").rstrip()
        for length in range(len(text)):
            self.bad(text[:length].ljust(MESSAGE_SIZE, b"\0"))

    def test_a_message_of_another_version_is_bad(self):
        for version in (0, 2, None, "1"):
            self.assertIn("another version", self.bad(self.changed(blockmig=version)))

    def test_unknown_fields_are_ignored(self):
        self.assertEqual(PAGE, decode_message(self.changed(more="x")))

    def test_missing_fields_have_their_defaults(self):
        data = json.dumps({"blockmig": 1, "export": "handoff", "phase": "none"}).encode()
        self.assertEqual(HandoffMessage(HandoffPhase.NONE), decode_message(data))

    def test_fields_of_wrong_types_are_bad(self):
        for name, values in {
            "phase": (None, 5, "", "Copied", [], {}),
            "migration": (None, 5, []),
            "attempt": ("5", None, 1.5, True),
            "size": ("5", None, True),
            "host": (None, 5),
            "disk": (None, {}),
            "unlink": (0, 1, "true", None),
            "token": (None, 5, []),
            "cookie": (None, 5),
        }.items():
            for value in values:
                with self.subTest(name=name, value=value):
                    self.bad(self.changed(**{name: value}))

    def test_a_migration_is_a_UUID_or_a_fingerprint_or_empty(self):
        """Anything else is no message."""
        for migration in (ONE, fingerprint(ONE), ""):
            self.assertEqual(migration, decode_message(self.changed(migration=migration)).migration)
        for migration in (
            "one",
            ONE.upper(),
            ONE[:-1],
            ONE + "0",
            ONE.replace("-", ""),
            f"{ONE}\n",
        ):
            self.assertIn("no UUID", self.bad(self.changed(migration=migration)))
        for cookie in ("xyz", "0x1", "-1", " 1", "0" * 17, "F" * 16, "1\n"):
            self.assertIn("cookie", self.bad(self.changed(cookie=cookie)))

    def test_a_message_from_a_sender_names_its_migration_and_its_cookie(self):
        for migration, cookie, expected in (
            (ONE, "7", True),
            (ONE, "f" * 16, True),
            (ONE, "", False),
            ("", "7", False),
            (fingerprint(ONE), "7", False),
            ("one", "7", False),
        ):
            message = HandoffMessage(HandoffPhase.COPIED, migration, cookie=cookie)
            self.assertIs(expected, message.is_from_sender, message)

    def test_a_fingerprint_does_not_reveal_the_UUID(self):
        """It suffices to recognize a migration, but not to act as its sender."""
        self.assertRegex(fingerprint(ONE), "^[0-9a-f]{64}$")
        self.assertEqual(fingerprint(ONE), fingerprint(str(ONE)))
        self.assertNotEqual(fingerprint(ONE), fingerprint(TWO))
        self.assertEqual("", fingerprint(""))

    def test_a_signed_message_is_that_of_one_who_has_the_secret_on_this_connection(self):
        message = signed(PAGE, SECRET, "nonce", Writer.SENDER)
        self.assertTrue(is_signed(decode_message(message.encode()), SECRET, "nonce", Writer.SENDER))
        self.assertFalse(is_signed(message, SECRET, "another", Writer.SENDER))
        self.assertFalse(is_signed(message, SECRET + b"!", "nonce", Writer.SENDER))
        self.assertFalse(is_signed(PAGE, SECRET, "nonce", Writer.SENDER))
        self.assertFalse(is_signed(message, SECRET, "nonce", Writer.RECEIVER), "no reflection")

    def test_what_a_signed_message_says_cannot_be_changed(self):
        message = signed(PAGE, SECRET, "nonce", Writer.SENDER)
        for changes in (
            {"phase": HandoffPhase.RETIRED},
            {"migration": TWO},
            {"attempt": 4},
            {"size": 5001},
            {"unlink": False},
            {"token": "another"},
            {"cookie": "01"},
            {"id": "another"},
            {"place": TWO},
        ):
            self.assertFalse(
                is_signed(replace(message, **changes), SECRET, "nonce", Writer.SENDER), changes
            )

    def test_names_may_be_shortened_after_signing(self):
        message = signed(replace(PAGE, disk="/" + 5000 * "x"), SECRET, "nonce", Writer.SENDER)
        self.assertTrue(is_signed(decode_message(message.encode()), SECRET, "nonce", Writer.SENDER))

    def test_without_a_secret_nothing_is_signed_and_nothing_needs_to_be(self):
        self.assertEqual(PAGE, signed(PAGE, b"", "nonce", Writer.SENDER))
        self.assertTrue(is_signed(PAGE, b"", "nonce", Writer.SENDER))

    def test_control_characters_are_replaced(self):
        """The text of the other side appears in logs and on terminals."""
        found = decode_message(self.changed(host="a\x1b[2Jb\n", disk="/ä\x00\r"))
        self.assertEqual(("a?[2Jb?", "/ä??"), (found.host, found.disk))

    def test_one_whose_shortest_text_does_not_help_raises_too(self):
        """It went round for ever: half of one letter is none, and the last none is all."""
        message = HandoffMessage(HandoffPhase.COPIED, ONE, disk="d", token="t" * MESSAGE_SIZE)
        self.assertRaises(BadMessage, message.encode)

    def test_a_message_that_cannot_be_shortened_raises(self):
        self.assertRaises(
            BadMessage, HandoffMessage(HandoffPhase.COPIED, ONE, token="t" * MESSAGE_SIZE).encode
        )

    def test_every_record_phase_is_a_handoff_phase(self):
        for phase in Phase:
            self.assertEqual(phase.value, HandoffPhase(phase).value)


class NumberTests(SynchronousTestCase):
    """What no disk, and no file system, has as a number."""

    def decoded(self, **more):
        parsed = json.loads(PAGE.encode().rstrip(b"\0"))
        found = {"version": "1", "told": True, **more.pop("findings", {})}
        text = json.dumps({**parsed, "findings": found, **more}).encode()
        return decode_message(text.ljust(MESSAGE_SIZE, b"\0"))

    def test_numbers_that_are_none_are_no_findings(self):
        for name in ("room", "allocated"):
            for number in (10**400, 1 << 63, -2, -5):
                self.assertRaises(BadMessage, self.decoded, findings={name: number})
        self.assertRaises(BadMessage, self.decoded, findings={"allocated": -1})

    def test_numbers_that_are_none_are_no_message(self):
        for name in ("size", "attempt"):
            for number in (10**400, 1 << 63, -1):
                self.assertRaises(BadMessage, self.decoded, **{name: number})

    def test_all_others_are(self):
        for number in (0, (1 << 63) - 1):
            found = self.decoded(size=number, findings={"room": number, "allocated": number})
            self.assertEqual(number, found.findings.room)
        self.assertEqual(-1, self.decoded(findings={"room": -1}).findings.room)
