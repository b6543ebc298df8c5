"""The requests in flight on a connection, and their replies."""

from __future__ import annotations

import struct

from twisted.trial.unittest import SynchronousTestCase

from blockmig.client import (
    PendingRequests,
    RequestFailed,
)
from blockmig.nbd import (
    ClientTransmission,
    Command,
    Errno,
    RemoteProtocolError,
)


def reply(cookie, error=0, data=b""):
    return struct.pack("!IIQ", 0x67446698, error, cookie) + data


class RequestsTests(SynchronousTestCase):
    def setUp(self):
        self.requests = PendingRequests(ClientTransmission())
        self.answers = []

    def make(self, command, length=0):
        def answered(error, data):
            self.answers.append((request.cookie, error, data))

        request, _ = self.requests.make(command, 0, length, answered)
        return request.cookie

    def test_each_request_gets_its_own_reply(self):
        first, second, third = (
            self.make(Command.READ, 3),
            self.make(Command.FLUSH),
            self.make(Command.READ, 2),
        )
        self.assertEqual(3, self.requests.in_flight)
        stream = reply(third, 0, b"de") + reply(second, Errno.EIO) + reply(first, 0, b"abc")
        for position in range(len(stream)):
            self.requests.received(stream[position : position + 1])
        self.assertEqual([(third, 0, b"de"), (second, 5, b""), (first, 0, b"abc")], self.answers)
        self.assertEqual(0, self.requests.in_flight)

    def test_a_failed_READ_has_no_payload(self):
        first, second = self.make(Command.READ, 3), self.make(Command.READ, 3)
        self.requests.received(reply(first, Errno.EIO) + reply(second, 0, b"abc"))
        self.assertEqual([(first, 5, b""), (second, 0, b"abc")], self.answers)

    def test_a_Deferred_fires_with_the_payload_or_the_error(self):
        header, waiting = self.requests.ask(Command.READ, 5, 3)
        cookie = struct.unpack_from("!Q", header, 8)[0]
        self.requests.received(reply(cookie, 0, b"abc"))
        self.assertEqual(b"abc", self.successResultOf(waiting))
        header, waiting = self.requests.ask(Command.TRIM, 5, 3)
        cookie = struct.unpack_from("!Q", header, 8)[0]
        self.requests.received(reply(cookie, Errno.EPERM))
        error = self.failureResultOf(waiting, RequestFailed).value
        self.assertEqual((1, Command.TRIM), (error.error, error.request.command))
        self.assertEqual("the destination answered TRIM with EPERM", str(error))

    def test_a_reply_that_nobody_asked_for_is_a_protocol_error(self):
        self.make(Command.FLUSH)
        self.assertRaises(RemoteProtocolError, self.requests.received, reply(77))
        self.assertEqual([], self.answers)
