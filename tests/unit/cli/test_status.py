"""How `blockmig status` shows the answer of a running command."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.status import as_text
from blockmig.units import format_bytes, format_duration


class StatusTextTests(SynchronousTestCase):
    def test_sizes_are_shown_in_binary_units(self):
        for count, text in (
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (2**20 - 1, "1.0 MiB"),
            (2**30, "1 GiB"),
            (2**30 + 1, "1.0 GiB"),
            (2**63 - 1, "8192 PiB"),
        ):
            self.assertEqual(text, format_bytes(count))

    def test_durations_are_shown_in_two_units(self):
        for seconds, text in (
            (0, "0.0 s"),
            (59.99, "59.9 s"),
            (60, "1 min 0 s"),
            (3600, "1 h 0 min"),
            (90_000, "1 d 1 h"),
        ):
            self.assertEqual(text, format_duration(seconds))

    def test_the_status_of_a_server_is_shown_as_text(self):
        counters = {"reads": 5, "bytes_read": 20480, "writes": 6, "bytes_written": 0, "other": 2}
        client = {"address": "127.0.0.1:4711", "connected": 3.2, **counters}
        text = as_text(
            {
                "version": "0.1.0",
                "role": "serve",
                "state": "serving",
                "pid": 7,
                "uptime": 61.5,
                "disk": "/d",
                "size": 2**30,
                "export": "web",
                "read_only": True,
                "listening": ["nbd://127.0.0.1:10809/"],
                "clients": [client, client | {"address": "a UNIX socket"}],
                "totals": {"connections": 7, **counters},
                "migration": {
                    "attempts": 2,
                    "covered": 273_804_165,
                    "rate": 2**21,
                    "expected_end": 381.4,
                    "source": "h:/s",
                },
                "later": {"more": 1},
            }
        )
        self.assertEqual(
            [
                "serve: serving, /d, 1 GiB (1073741824 bytes), read-only, export 'web'",
                "pid 7, up 1 min 1 s, blockmig 0.1.0",
                "listening on nbd://127.0.0.1:10809/",
                "total: 7 connections, 5 reads (20 KiB), 6 writes (0 bytes), 2 other requests",
                "migration: attempt 2, 25.4%, 261.1 MiB of 1 GiB covered, at 2 MiB/s, "
                "expected to end in 6 min 21 s, from h:/s",
                "",
                "client          connected  reads    read  writes  written  other",
                "127.0.0.1:4711      3.2 s      5  20 KiB       6  0 bytes      2",
                "a UNIX socket       3.2 s      5  20 KiB       6  0 bytes      2",
            ],
            text.split("\n"),
        )

    def test_who_a_client_is_by_its_certificate_is_shown(self):
        client = {"address": "127.0.0.1:4711", "tls": "TLSv1.3", "name": "web2\x1b"}
        text = as_text({"tls": "require", "clients": [client, client | {"name": None}]})
        self.assertIn("127.0.0.1:4711 (web2?) ", text)
        self.assertIn("127.0.0.1:4711  ", text)
        self.assertNotIn("TLS: on", text)
        self.assertIn("TLS: on, for clients that ask for it", as_text({"tls": "on"}))

    def allowed(self, **fields):
        return [line for line in as_text(fields).split("\n") if "allowed" in line]

    def test_who_may_connect_is_shown(self):
        nets = ["192.0.2.0/24", "2001:db8::/64"]
        self.assertEqual(
            ["allowed: 192.0.2.0/24, 2001:db8::/64; 17 connections refused"],
            self.allowed(allow=nets, allow_count=2, allow_uid=None, refused=17),
        )
        self.assertEqual(
            ["allowed: nobody", "allowed at UNIX sockets: users 0, 107; 0 connections refused"],
            self.allowed(allow=[], allow_count=0, allow_uid=[0, 107], refused=0),
        )
        many = [f"192.0.2.{number}" for number in range(100)]
        (line,) = self.allowed(allow=many, allow_count=10_000, allow_uid=None)
        self.assertEqual(f"allowed: {', '.join(many[:8])} and 9992 more", line)

    def test_where_everybody_may_connect_nothing_is_shown_of_it(self):
        self.assertEqual([], self.allowed(allow=None, allow_uid=None, refused=0))

    def test_missing_or_strange_fields_do_not_break_the_text(self):
        self.assertIn("no clients", as_text({}))
        strange = dict.fromkeys(
            ("size", "uptime", "listening", "clients", "totals", "migration"), "what"
        )
        self.assertIn("no clients", as_text(strange))
        as_text({"clients": [1, {}], "totals": {}, "migration": {}, "size": None, "uptime": None})

    def test_control_characters_are_not_shown(self):
        text = as_text({"disk": "/\x1b[2J\n", "clients": [{"address": "\x1b\r"}]})
        self.assertNotIn("\x1b", text)
        self.assertNotIn("\r", text)
        self.assertIn("/?[2J?", text)


class MirrorStatusTests(SynchronousTestCase):
    FULL = {  # noqa: RUF012
        "state": "copying",
        "destination": "nbd://h:10809/web",
        "unlink": True,
        "pass": 2,
        "sent": 18 << 30,
        "zeroes": 3 << 30,
        "left": 1 << 30,
        "data_left": 700 << 20,
        "dirty": 300 << 20,
        "rate": 100 << 20,
        "dirty_rate": 5 << 20,
        "converging": False,
        "expected_end": 73.2,
        "expected_pause": 0.0804,
        "attempts": 1,
        "last_error": "the connection was lost",
        "cause": "no\x1b space",
        "max_rate": 200 << 20,
        "max_pause": 0.5,
        "timeout": 60.0,
        "converge": "throttle",
        "then": "relay",
        "throttle": 4 << 20,
        "seconds": 200.3,
        "pause": 0.123,
        "holds": 1,
    }

    def text(self, mirror):
        lines = as_text({"size": 20 << 30, "mirror": mirror}).split("\n")
        return lines[2 : lines.index("no clients")]

    def test_every_field_of_a_mirror_is_shown(self):
        self.assertEqual(
            [
                "mirror: copying, to nbd://h:10809/web, for 3 min 20 s, attempt 1, pass 2",
                "  progress: 1 GiB of 20 GiB left, 700 MiB of it data, sent at 100 MiB/s, "
                "expected to end in 1 min 13 s",
                "  clients: 300 MiB dirty, writing 5 MiB/s, throttled to 4 MiB/s, too fast to be "
                "sent",
                "  this attempt: 18 GiB of data, 3 GiB of zeroes",
                "  holds: 1 so far, the last for 123 ms, the next for about 80 ms, at most 500 ms "
                "allowed",
                "  options: at most 200 MiB/s, converge: throttle, then: relay, the source is "
                "deleted at the end",
                "  last error: the connection was lost",
                "  before that: no? space",
            ],
            self.text(self.FULL),
        )

    def test_unknown_fields_are_left_out(self):
        unknown = dict.fromkeys(("max_rate", "throttle", "pause", "expected_end", "converging"))
        unknown |= dict.fromkeys(("data_left", "expected_pause"))
        none = {"unlink": False, "last_error": "", "cause": ""}
        text = self.text({**self.FULL, **unknown, **none})
        self.assertEqual(
            [
                "mirror: copying, to nbd://h:10809/web, for 3 min 20 s, attempt 1, pass 2",
                "  progress: 1 GiB of 20 GiB left, sent at 100 MiB/s",
                "  clients: 300 MiB dirty, writing 5 MiB/s",
                "  this attempt: 18 GiB of data, 3 GiB of zeroes",
                "  holds: 1 so far, at most 500 ms allowed",
                "  options: converge: throttle, then: relay",
            ],
            text,
        )

    def test_the_pause_that_clients_saw_is_shown(self):
        text = self.text({"holds": 1, "pause": 0.012, "client_pause": 0.14})
        said = "  holds: 1 so far, the last for 12 ms, clients waited 140 ms for the new server"
        self.assertIn(said, text)

    def test_missing_or_strange_fields_are_tolerated(self):
        self.assertEqual(["mirror: ?, to ?"], self.text({}))
        self.assertEqual([], self.text("what"))
        for strange in ("what\x1b[2J", [], {}, None, True):
            text = as_text({"mirror": dict.fromkeys(self.FULL, strange)})
            self.assertNotIn("\x1b", text)


class RelayStatusTests(SynchronousTestCase):
    FULL = {  # noqa: RUF012
        "to": "nbd://h:10809/web",
        "available": True,
        "clients": 2,
        "waiting": 0,
        "bytes_to_server": 3 << 20,
        "bytes_to_clients": 5 << 20,
        "last_error": "refused",
        "pause": 0.1,
        "linger": 60.0,
        "linger_left": None,
    }

    def text(self, relay):
        lines = as_text({"relay": relay}).split("\n")
        return lines[2 : lines.index("no clients")]

    def test_what_passes_is_shown(self):
        self.assertEqual(
            [
                "relay: to nbd://h:10809/web, 2 client(s)",
                "  passed on: 3 MiB to the server, 5 MiB to clients",
                "  address: stays for 1 min 0 s after the last client",
            ],
            self.text(self.FULL),
        )

    def test_a_server_that_does_not_answer_is_shown(self):
        text = self.text({**self.FULL, "available": False, "clients": 0, "waiting": 3})
        said = "relay: to nbd://h:10809/web, which does not answer, 0 client(s), 3 waiting"
        self.assertEqual(said, text[0])
        self.assertEqual("  last error: refused", text[-1])

    def test_how_long_it_lingers_is_shown(self):
        for left, linger, said in (
            (12.3, 60.0, "ends in 12.3 s if nobody comes"),
            (None, "forever", "stays for ever"),
        ):
            text = self.text({**self.FULL, "linger": linger, "linger_left": left})
            self.assertEqual(f"  address: {said}", text[-1])

    def test_missing_or_strange_fields_are_tolerated(self):
        self.assertEqual(["relay: to ?, which does not answer"], self.text({}))
        for strange in ("what\x1b[2J", [], {}, None, True):
            text = as_text({"relay": dict.fromkeys(self.FULL, strange)})
            self.assertNotIn("\x1b", text)
