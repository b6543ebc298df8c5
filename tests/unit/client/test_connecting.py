"""Why a server could not be reached (client/connecting.py)."""

from __future__ import annotations

import errno
import socket

from twisted.internet import error as errors
from twisted.trial.unittest import SynchronousTestCase

from blockmig.client.connecting import describe_failed_connect

HOST, SOCKET = "nbd://192.0.2.7:10810/web", "nbd+unix:///?socket=/run/s"


class DescribeTests(SynchronousTestCase):
    def test_the_words_say_what_to_look_at(self):
        refused = errors.ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        for error, uri, expected in (
            (
                refused,
                HOST,
                "nobody listens on 192.0.2.7:10810 (connection refused): start `blockmig "
                "receive` there first, or is the port wrong?",
            ),
            (refused, "nbd://[::1]:7", "nobody listens on [::1]:7 (connection refused): start"),
            (refused, SOCKET, "nobody listens on the socket /run/s (connection refused): start"),
            (
                errors.ConnectError(errno.ENOENT),
                SOCKET,
                "there is no socket /run/s (No such file or directory): start",
            ),
            (errors.ConnectError(errno.EACCES), SOCKET, "/run/s: Permission denied"),
            (
                errors.DNSLookupError("no results for hostname lookup: h.example"),
                "nbd://h.example",
                "the name 'h.example' cannot be looked up (DNS)",
            ),
            (errors.TimeoutError(), HOST, "192.0.2.7:10810 does not answer"),
            (errors.TCPTimedOutError(errno.ETIMEDOUT), HOST, "192.0.2.7:10810 does not answer"),
            (errors.NoRouteError(errno.EHOSTUNREACH), HOST, "192.0.2.7:10810: No route to host"),
            (
                errors.ConnectError(errno.EINVAL),
                "nbd://[fe80::1]:7",
                "fe80::1 is a link-local address: say through which interface, as in "
                "nbd://[fe80::1%25eth0]:7/",
            ),
            (
                errors.ConnectError(errno.EINVAL),
                "nbd://[fe80::1%25eth0]:7",
                "[fe80::1%eth0]:7: Invalid argument",
            ),
            (
                socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
                "nbd://[fe80::1%25nope]",
                "[fe80::1%nope]:10809: Name or service not known",
            ),
            (RuntimeError("an endpoint of yours."), "", "an endpoint of yours"),
            (RuntimeError("an endpoint of yours."), HOST, "192.0.2.7:10810: an endpoint of yours"),
        ):
            said = describe_failed_connect(error, uri)
            self.assertTrue(said.startswith(expected), said)
            self.assertNotIn("\n", said)
