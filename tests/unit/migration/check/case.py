"""Both ends of a migration that is only checked."""

from __future__ import annotations

import os

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig import claims
from blockmig.client import Destination
from blockmig.interfaces import Extent
from blockmig.migration.check.check import check_migration
from blockmig.migration.destination.receiver import Receiver
from blockmig.migration.identity import ANYBODY, Identity
from blockmig.migration.policy import Overrides
from blockmig.runtime import Runtime
from blockmig.testing import Call, synchronous
from tests.unit.support import ADDRESS, MemoryEndpoint, RecordedDisk, WatchedDisk

DATA = b"x" * 5000 + bytes(300_000)
SIZE = len(DATA)
URI = "nbd://there/"
SECRET = bytes(range(32))
NAMED = Identity("web-7")


class Source(WatchedDisk):
    """One with a hole."""

    hole = (SIZE, 0)

    def make_hole(self, offset, length):
        self.hole = (offset, length)

    def extents(self, offset):
        self._called(Call("extents", offset))
        start, length = self.hole
        for at, count, hole in ((0, start, False), (start, length, True)):
            if count and at >= offset:
                yield Extent(at, count, hole)


class CheckCase(SynchronousTestCase):
    def setUp(self):
        claims.forget_all()
        self.clock = Clock()
        base = os.path.abspath(self.mktemp())
        self.source = Source(DATA, base + "-s/disk")
        self.target = RecordedDisk(b"o" * SIZE, base + "-d/disk")
        self.directories = [os.path.dirname(disk.path) for disk in (self.source, self.target)]
        for directory in self.directories:
            os.mkdir(directory)
        self.endpoint = MemoryEndpoint(self.clock, self.build)
        self.told = []
        self.receive(NAMED)

    def build(self):
        return self.factory.buildProtocol(ADDRESS)

    def receive(self, identity=ANYBODY, target=None):
        """Have a receiver at the address, instead of what was there."""
        claims.forget_all()
        self.receiver = Receiver(
            target or self.target,
            overrides=Overrides(overwrite=True),
            identity=identity,
            runtime=Runtime(self.clock, synchronous),
        )
        self.arrived = self.receiver.complete()
        self.arrived.addErrback(lambda _: None)
        self.factory = self.receiver.factory()

    def begin(self, identity=NAMED, *, disk=None, thread=synchronous, **more):
        """Begin a check, and let nothing happen yet."""
        self.checking = check_migration(
            self.source if disk is None else disk,
            Destination(self.endpoint, uri=URI),
            identity=identity,
            tell=self.told.append,
            runtime=Runtime(self.clock, thread),
            **more,
        )

    def check(self, *arguments, **more):
        """Check; what is reported."""
        self.begin(*arguments, **more)
        self.endpoint.pump()
        return self.reported()

    def reported(self):
        self.report = report = self.successResultOf(self.checking)
        self.endpoint.pump()
        self.assertEqual(self.told, list(report.items))
        for item in report.items:
            self.assertNotIn("\n", item.message)
        self.assertEqual([], self.clock.getDelayedCalls())
        return report

    def item(self, name):
        (found,) = [item for item in self.report.items if item.name == name]
        return found

    def results(self):
        return {item.name: item.result.value for item in self.report.items}

    def fails(self, name, *words, figures=None):
        """That alone is in the way."""
        failed = [item.name for item in self.report.items if item.result == "failed"]
        self.assertEqual([name], failed)
        self.says(name, "failed", *words)
        self.assertFalse(self.report.can_begin)
        self.assertIn("the migration cannot begin: 1 of", self.report.conclusion)

    def warns(self, name, *words):
        """That is worth a word, and nothing is in the way."""
        self.says(name, "warning", *words)
        self.assertTrue(self.report.can_begin)
        self.assertIn("the migration can begin (", self.report.conclusion)

    def says(self, name, result, *words):
        item = self.item(name)
        self.assertEqual(result, item.result, item)
        for word in words:
            self.assertIn(word, item.message)

    def nothing_is_changed(self):
        changes = {"write", "zero", "trim", "unlink", "prepare", "flush", "rescue"}
        for disk in (self.source, self.target):
            self.assertEqual(set(), changes & set(disk.names()), disk.name)
        for directory in self.directories:
            self.assertEqual([], os.listdir(directory))
