"""How a mirror is requested, and what the answer means."""

from __future__ import annotations

import json
import os

from blockmig.cli import tls
from blockmig.cli.mirror_request import request_mirror as run_mirror
from blockmig.control import ControlError, ControlLost, ControlRefused
from tests.unit.cli.mirror_commands import Case, Server, parsed

BEGUN = {"destination": "nbd://h:10809/", "attempt": 1}


class RequestTests(Case):
    def asked(self, *arguments):
        server = Server(mirror=BEGUN)
        self.assertEqual(0, run_mirror(parsed("mirror", "--control", "/c", *arguments), server))
        ((path, method, resource, body, timeout),) = server.asked
        self.assertEqual(("/c", "POST", "/mirror", 180), (path, method, resource, timeout))
        return body

    def test_the_request_has_every_default(self):
        self.assertEqual(
            {
                "uri": "nbd://h:10809/x",
                "unlink": False,
                "again": False,
                "overwrite": False,
                "plain": False,
                "id": "",
                "secret": "",
                "max_rate": None,
                "max_pause": 0.5,
                "timeout": 60.0,
                "converge": "wait",
                "then": "exit",
                "relay_to": None,
                "linger": None,
            },
            self.asked("nbd://h/x"),
        )
        (event,) = self.named("mirroring")
        self.assertEqual("nbd://h:10809/", event["destination"])

    def secret(self):
        path = self.mktemp()
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(b"sixteen bytes at least\n")
        return path

    def test_the_request_has_every_option(self):
        options = [
            "--unlink",
            "--again",
            "--overwrite",
            "--max-rate",
            "1M",
            "--max-pause",
            "20",
            "--timeout",
            "7.5",
            "--id",
            "nightly",
            "--secret",
            self.secret(),
            "--plain",
        ]
        options += ["--converge", "throttle", "--then", "relay", "--relay-to", "nbd://[::1]:7/y"]
        options += ["--linger", "forever"]
        body = self.asked("nbd+unix:///x?socket=/s", *options)
        self.assertEqual(
            {
                "uri": "nbd+unix:///x?socket=/s",
                "unlink": True,
                "again": True,
                "overwrite": True,
                "plain": True,
                "id": "nightly",
                "secret": b"sixteen bytes at least".hex(),
                "max_rate": 1 << 20,
                "max_pause": 0.02,
                "timeout": 7.5,
                "converge": "throttle",
                "then": "relay",
                "relay_to": "nbd://[::1]:7/y",
                "linger": "forever",
            },
            body,
        )
        self.assertEqual(body, json.loads(json.dumps(body)))

    def test_relative_socket_paths_are_sent_as_absolute_ones(self):
        """The server has a current directory of its own."""
        self.patch(tls.os, "getcwd", lambda: "/here")
        options = ["--then", "relay", "--relay-to", "nbd+unix:///?socket=../t"]
        body = self.asked("nbd+unix:///x?socket=s", *options)
        self.assertEqual("nbd+unix:///x?socket=/here/s", body["uri"])
        self.assertEqual("nbd+unix:///?socket=/t", body["relay_to"])


class NoWaitTests(Case):
    def run_mirror(self, answer):
        return run_mirror(parsed("mirror", "--control", "/c d", "nbd://h/"), Server(mirror=answer))

    def test_a_refusal_exits_with_status_1(self):
        self.assertEqual(1, self.run_mirror(ControlRefused("the export\n\x1b is too small", 409)))
        self.assert_error(1, "the export?? is too small")

    def test_a_server_that_is_not_there_exits_with_status_1(self):
        self.assertEqual(1, self.run_mirror(ControlError("there is no control socket at /c")))
        self.assert_error(1, "there is no control socket at /c")

    def test_a_missing_answer_exits_with_status_5(self):
        """The mirror may have begun, so this is no refusal."""
        self.assertEqual(5, self.run_mirror(ControlLost("no answer on /c within 180 s")))
        self.assert_error(
            5, "no answer", "`blockmig status --control '/c d'`", "`blockmig inspect DISK`"
        )

    def test_an_interrupt_exits_with_status_4_and_the_mirror_continues(self):
        def interrupted(*_):
            raise KeyboardInterrupt

        options = parsed("mirror", "--control", "/c d", "nbd://h/")
        self.assertEqual(4, run_mirror(options, interrupted))
        self.assert_error(4, "the mirror goes on", "`blockmig break --control '/c d'`")

    def test_a_strange_answer_still_counts_as_begun(self):
        self.assertEqual(0, self.run_mirror(["what"]))
        self.assertEqual(1, len(self.named("mirroring")))
