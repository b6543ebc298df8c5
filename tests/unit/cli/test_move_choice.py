"""By which way a disk is moved, and what comes after one that leads nowhere."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import move_choice
from blockmig.cli.commands import parse
from blockmig.cli.move_choice import MoveChoice
from blockmig.cli.progress import NoDisplay
from blockmig.cli.way import Data, NoWay
from blockmig.errors import GaveUp, MigrationError, Refused, Summary, Unconfirmed
from blockmig.runtime import Runtime
from blockmig.testing import synchronous

SUMMARY = Summary(5000, 5000, 0, 1.0, 1)
NO_WAY = NoWay("web2: it cannot be reached", "open it")


class Move:
    """A move that ends as the test says."""

    def __init__(self, options, runtime, display, kind):
        self.kind = kind
        self.end = Deferred()
        self.no_way = None
        self.stopped = []
        self.stop = self.stopped.append

    async def run(self):
        return await self.end


class ChoiceTests(SynchronousTestCase):
    def setUp(self):
        self.moves = []
        self.patch(move_choice, "MoveOperation", self.made)

    def made(self, *arguments):
        self.moves.append(Move(*arguments))
        return self.moves[-1]

    def begin(self, *more):
        _, options = parse(["move", "x", "web2:/x", *more])
        self.choice = MoveChoice(options, Runtime(Clock(), synchronous), NoDisplay())
        self.result = Deferred.fromCoroutine(self.choice.run())

    @property
    def kinds(self):
        return [one.kind for one in self.moves]

    def test_one_way_is_the_only_one(self):
        for data, kind in (((), Data.SSH), (("--data", "tls"), Data.TLS)):
            self.moves = []
            self.begin(*data)
            self.moves[0].end.errback(NO_WAY)
            self.failureResultOf(self.result, NoWay)
            self.assertEqual([kind], self.kinds)

    def test_ssh_comes_after_TLS_that_leads_nowhere(self):
        self.begin("--data", "auto")
        self.assertEqual([Data.TLS], self.kinds)
        self.moves[0].end.errback(NO_WAY)
        self.assertEqual([Data.TLS, Data.SSH], self.kinds)
        self.moves[1].end.callback(SUMMARY)
        self.assertEqual(SUMMARY, self.successResultOf(self.result))

    def test_nothing_comes_after_one_that_leads_there(self):
        for end in (SUMMARY, Refused("web2: holds data"), GaveUp("stopped")):
            self.moves = []
            self.begin("--data", "auto")
            if end is SUMMARY:
                self.moves[0].end.callback(end)
                self.successResultOf(self.result)
            else:
                self.moves[0].end.errback(end)
                self.failureResultOf(self.result, MigrationError)
            self.assertEqual([Data.TLS], self.kinds)

    def test_a_finisher_that_did_not_get_there_goes_by_the_next_way(self):
        self.begin("--data", "auto")
        self.moves[0].no_way = NO_WAY
        self.moves[0].end.errback(Unconfirmed("the source is retired"))
        self.assertEqual([Data.TLS, Data.SSH], self.kinds)

    def test_nothing_is_begun_after_a_stop(self):
        self.begin("--data", "auto")
        self.choice.stop("stopped by SIGINT")
        self.moves[0].no_way = NO_WAY
        self.moves[0].end.errback(GaveUp("stopped by SIGINT"))
        self.failureResultOf(self.result, GaveUp)
        self.assertEqual([Data.TLS], self.kinds)

    def test_a_stop_is_for_the_one_that_goes_on(self):
        self.begin("--data", "auto")
        self.moves[0].end.errback(NO_WAY)
        self.choice.stop("stopped by SIGINT")
        self.assertEqual([[], ["stopped by SIGINT"]], [one.stopped for one in self.moves])
