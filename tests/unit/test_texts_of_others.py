"""What others have chosen, on its way to people (units.py, and where it is used)."""

from __future__ import annotations

import io
import json
import os
import struct
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import Logger, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig import Receiver, Server
from blockmig.cli import usage
from blockmig.cli.commands import parse
from blockmig.cli.inspect import run as inspect
from blockmig.cli.logs import LineObserver, make_printable
from blockmig.cli.status import as_text
from blockmig.cli.systemd import Notifier
from blockmig.migration.handoff.message import HandoffMessage, HandoffPhase, decode_message
from blockmig.migration.records.files import Kind, Location, Phase, Record
from blockmig.nbd import ClientHandshake, HandshakeRefused, RemoteProtocolError, ServerHandshake
from blockmig.runtime import Runtime
from blockmig.testing import MemoryDisk, synchronous
from blockmig.units import LONGEST_TEXT, printable, shortened

NASTY = "\x1b]0;x\x07\n\u202e\x9b31m\r\u2028" + "x" * 10_000
"""It sets a terminal's title, forges a line, turns the direction of writing, and is long."""


class PrintableTests(SynchronousTestCase):
    @given(st.text())
    def test_everything_becomes_one_printable_line(self, text):
        self.assertTrue(printable(text).isprintable())

    @given(st.text(), st.integers(10, 50))
    def test_it_is_never_longer_than_was_said(self, text, longest):
        self.assertLessEqual(len(printable(text * 9, 10 * longest)), 10 * longest)

    def test_what_can_be_printed_stays(self):
        for text in ("", "/srv/ä/web 1.img", "日本", "x" * LONGEST_TEXT):
            self.assertEqual(text, printable(text))

    def test_what_cannot_is_a_question_mark(self):
        self.assertEqual("a?b??c", printable("a\udcffb\n\u202ec"))

    def test_of_a_long_text_beginning_and_end_are_shown(self):
        self.assertEqual("aaaa … bbb", shortened("a" * 500 + "b" * 500, 11)[:7] + "bbb")
        self.assertTrue(printable("/begin" + "\n" * 9000 + "end.img").endswith("end.img"))


class WaysOutTests(SynchronousTestCase):
    """All that a command writes: log lines of both kinds, output, complaints."""

    def harmless(self, text, lines=1):
        self.assertTrue(all(line.isprintable() for line in text.rstrip("\n").split("\n")), text)
        self.assertEqual(lines, len(text.rstrip("\n").split("\n")))
        self.assertLess(len(text), 6 * LONGEST_TEXT)

    def line(self, as_json, log):
        lines = []
        log(Logger("blockmig.test", observer=LineObserver(lines.append, as_json, 0)))
        (line,) = lines
        return line

    def test_a_log_line_as_text(self):
        line = self.line(False, lambda log: log.warn("{peer}: {why}", peer=NASTY, why=NASTY))
        self.harmless(line)

    def test_a_log_line_as_JSON_loses_nothing_but_length(self):
        uri = "nbd://there/" + "%C3%BC" * 2048  # the longest name of an export, which scripts need
        line = self.line(True, lambda log: log.warn("{why}", why=NASTY * 2, uri=uri))
        self.assertTrue(line.isprintable())
        event = json.loads(line)
        self.assertEqual(uri, event["uri"])
        self.assertIn(len(event["why"]), range(16_000, 16_385))
        self.assertEqual(NASTY[:20], event["why"][:20])

    def test_letters_beyond_the_first_plane_stay_in_JSON(self):
        text = "\U0001f600\U000e0001\udcff"
        line = self.line(True, lambda log: log.warn("{why}", why=text))
        self.assertEqual(text, json.loads(line)["why"])

    def test_a_traceback(self):
        def fail(log):
            log.failure("oh {why}", Failure(ValueError(NASTY)), why=NASTY)

        text = self.line(False, fail)
        first, *others = text.split("\n")
        self.assertTrue(all(line.isprintable() for line in (first, *others)))
        self.assertTrue(all(line.startswith("  ") for line in others), "they could be events")
        self.harmless(self.line(True, fail))

    def test_a_complaint(self):
        with redirect_stderr(io.StringIO()) as stream:
            usage.complain(NASTY)
        self.harmless(stream.getvalue())

    def test_output_of_several_lines(self):
        with redirect_stdout(io.StringIO()) as stream:
            usage.show("one \x1b[31m\ntwo\u202e")
        self.harmless(stream.getvalue(), lines=2)

    def test_an_event_under_twistd(self):
        events = []
        observers = (make_printable, events.append)
        log = Logger("blockmig.test", observer=lambda event: [see(event) for see in observers])
        log.warn("{peer}", peer=NASTY, size=5, none=None)
        self.harmless(events[0]["peer"])
        self.assertEqual((5, None), (events[0]["size"], events[0]["none"]))

    def test_events_of_others_are_left_alone(self):
        event = {"log_namespace": "somebody", "text": NASTY}
        make_printable(event)
        self.assertEqual(NASTY, event["text"])

    def test_the_status_for_the_service_manager(self):
        sent = []
        self.patch(
            __import__("blockmig.cli.systemd", fromlist=["notify"]),
            "notify",
            lambda text, environment: sent.append(text),
        )
        Notifier({}).status(NASTY)
        self.harmless(sent[0])

    def test_a_status(self):
        """Whatever process answers on the control socket."""
        runtime = Runtime(Clock(), synchronous)
        for status in (
            Receiver(MemoryDisk(bytes(4096)), export=NASTY[:3000], runtime=runtime).status(),
            Server(MemoryDisk(bytes(4096)), export=NASTY[:3000], runtime=runtime).status(),
        ):
            status |= {"listening": [NASTY], "last_error": NASTY, "state": NASTY, "disk": NASTY}
            status["clients"] = [{"address": NASTY, "export": NASTY, "connected": 1.0}]
            text = as_text(status)
            self.assertTrue(all(line.isprintable() for line in text.split("\n")), text)

    def test_a_usage_error(self):
        for arguments in (
            ("send", NASTY, "nbd://h"),
            ("send", "x", NASTY),
            ("send", "x", "nbd://" + NASTY),
            ("serve", "x", "--listen", NASTY),
            ("serve", "x", "--max-connections", NASTY),
            (NASTY,),
            ("serve", "--" + NASTY),
        ):
            with redirect_stderr(io.StringIO()) as stream:
                try:
                    parse(arguments)
                except usage.UsageError as error:
                    usage.complain(error)
            self.assertTrue(stream.getvalue().rstrip("\n").isprintable() or not stream.getvalue())


class WaysInTests(SynchronousTestCase):
    """Where others' texts come in: what is said of them is a printable line."""

    def said(self, error):
        self.assertTrue(printable(error) == str(error), repr(str(error))[:200])
        self.assertLess(len(str(error)), 1000)

    def test_the_reason_of_a_server(self):
        client = ClientHandshake("x")
        client.receive_data(b"NBDMAGICIHAVEOPT\0\3")
        text = NASTY.encode()
        answer = struct.pack("!QIII", 0x3E889045565A9, 7, 2**31 + 2, len(text)) + text
        self.said(self.assertRaises(HandshakeRefused, client.receive_data, answer))

    def test_the_name_of_an_export(self):
        server = ServerHandshake({}.get)
        name = NASTY.encode()[:3000]
        option = b"IHAVEOPT" + struct.pack("!II", 1, len(name)) + name
        self.said(
            self.assertRaises(
                RemoteProtocolError, server.receive_data, struct.pack("!I", 3) + option
            )
        )

    def test_a_message_of_a_sender(self):
        content = {"blockmig": 1, "export": "handoff", "phase": "none", "disk": NASTY[:3000]}
        message = decode_message(json.dumps(content).encode())
        self.assertTrue(message.disk.isprintable())

    def test_a_message_that_is_none(self):
        good = json.loads(HandoffMessage(HandoffPhase.NONE).encode().rstrip(b"\0"))
        for name, value in (("phase", NASTY), ("blockmig", NASTY), ("migration", NASTY)):
            text = json.dumps({**good, name: value}).encode()
            try:
                decode_message(text)
            except ValueError as error:
                self.assertTrue(printable(error).isprintable())
            else:
                raise AssertionError(name)

    def test_the_fields_of_a_record(self):
        folder = self.mktemp()
        os.mkdir(folder)
        disk = os.path.join(folder, "disk")
        text = NASTY[:5000]  # of all that is in a record, 64 KiB are read
        here = Location(text, text, text, text)
        record = Record(text, Phase.COPIED, 1, 5, here, here, text, id=text)
        for kind in (Kind.MIGRATED, Kind.INCOMPLETE, Kind.MIGRATING, Kind.RECEIVED):
            for content in (record.encode(kind), record.encode(kind)[:20_000]):
                with open(f"{disk}.{kind.value}", "wb") as file:
                    file.write(content)
                lines = self.inspected(disk)
                words = [line.partition(" ")[0] for line in lines[1:]]
                self.assertIn(words, (["why:", "do:"], ["why:", "do:", "note:"]))
                self.assertEqual(1, len(self.inspected(folder)))
            os.unlink(f"{disk}.{kind.value}")

    def inspected(self, path):
        _, options = parse(("inspect", path))
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            inspect(options)
        lines = (out.getvalue() + err.getvalue()).removesuffix("\n").split("\n")
        for line in lines:
            self.assertTrue(line.isprintable(), line)
            self.assertLessEqual(len(line), LONGEST_TEXT)
        return lines

    def test_the_name_of_a_file(self):
        folder = self.mktemp()
        os.mkdir(folder)
        name = "\x1b]0;x\x07\n\u202e\udcff"
        for kind in (Kind.MIGRATED, Kind.INCOMPLETE):
            with open(os.path.join(folder, f"{name}.{kind.value}"), "wb") as file:
                file.write(b"{}")
        self.inspected(folder)
        self.inspected(os.path.join(folder, name))

    def test_what_clients_say_is_logged_in_lines_of_its_length(self):
        lines = []
        observer = LineObserver(lines.append, False, 1)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        Logger("blockmig.server").info("{peer}: {error}", peer="p", error=NASTY)
        self.assertTrue(all(line.isprintable() for line in lines))
        self.assertEqual(1, len(lines), SimpleNamespace(lines=lines))
