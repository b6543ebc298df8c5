"""Listening where somebody else still listens (endpoints.py)."""

from __future__ import annotations

import errno
from itertools import pairwise

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from blockmig.testing import MemoryNetwork
from blockmig.transport import CannotListen, listen


@implementer(IStreamServerEndpoint)
class Busy:
    """In use for so many tries."""

    def __init__(self, clock, error, times):
        self.clock = clock
        self.error = error
        self.times = times
        self.tries = []

    def listen(self, factory):
        self.tries.append(round(self.clock.seconds(), 3))
        if len(self.tries) <= self.times:
            raise CannotListenError("here", 1, self.error)
        return MemoryNetwork(self.clock).server_endpoint("here").listen(factory)


class BusyTests(SynchronousTestCase):
    def setUp(self):
        self.clock = Clock()

    def listen(self, endpoint, **keywords):
        listening = listen(self.clock, endpoint, Factory(), "here", **keywords)
        listening = Deferred.fromCoroutine(listening)
        for _ in range(1500):
            self.clock.advance(0.001)
        return listening

    def errors(self):
        """What Twisted reports of a TCP port, and of a UNIX socket, that somebody has."""
        return [OSError(errno.EADDRINUSE, "in use"), OSError("Cannot acquire lock")]

    def test_it_is_fatal_at_once(self):
        for error in self.errors():
            endpoint = Busy(self.clock, error, 1)
            self.failureResultOf(self.listen(endpoint), CannotListen)
            self.assertEqual(1, len(endpoint.tries))

    def test_its_user_may_be_waited_for(self):
        for error in self.errors():
            endpoint = Busy(self.clock, error, 3)
            self.successResultOf(self.listen(endpoint, busy_for=1.0))
            gaps = [b - a for a, b in pairwise(endpoint.tries)]
            self.assertEqual(3, len(gaps))
            self.assertTrue(all(0.0099 < gap < 0.013 for gap in gaps), gaps)

    def test_it_is_not_waited_for_longer_than_that(self):
        for error in self.errors():
            endpoint = Busy(self.clock, error, 10**9)
            self.failureResultOf(self.listen(endpoint, busy_for=1.0), CannotListen)
            lasted = endpoint.tries[-1] - endpoint.tries[0]
            self.assertTrue(0.98 < lasted < 1.02, lasted)

    def test_other_failures_are_fatal_all_the_same(self):
        endpoint = Busy(self.clock, OSError(errno.EACCES, "no"), 1)
        self.failureResultOf(self.listen(endpoint, busy_for=1.0), CannotListen)
        self.assertEqual(1, len(endpoint.tries))
