"""What the tests of `mirror`, `break` and `rate` share: a server that answers as they say."""

from __future__ import annotations

import io
import sys

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli.commands import parse


def parsed(*arguments):
    _, options = parse(arguments)
    return options


class Server:
    """Answers each request as the test says: with a value, an error or a Deferred."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = []

    def __call__(self, path, method, resource, body=None, timeout=10.0):
        self.asked.append((path, method, resource, body, timeout))
        answer = self.answers[resource.strip("/").replace("/", "_")]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def count(self, resource):
        return sum(1 for asked in self.asked if asked[2] == resource)


class Case(SynchronousTestCase):
    def setUp(self):
        for stream in ("stdout", "stderr"):
            self.patch(sys, stream, io.StringIO())
        self.events = []
        globalLogPublisher.addObserver(self.events.append)
        self.addCleanup(globalLogPublisher.removeObserver, self.events.append)

    def named(self, name):
        return [event for event in self.events if event.get("event") == name]

    def assert_error(self, status, *words):
        (event,) = self.named("error")
        self.assertEqual(status, event["status"])
        for word in words:
            self.assertIn(word, event["why"])
        self.assertNotIn("\n", event["why"])
        self.assertNotIn("\x1b", event["why"])
