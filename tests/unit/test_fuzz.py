"""The fuzzing by itself: the corpora, the judges, and what is done with what is found."""

from __future__ import annotations

import contextlib
import gc
import io
import itertools
import json
import random
import tracemalloc
from pathlib import Path
from unittest import mock

from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from blockmig.nbd import Errno, ServerTransmission
from tests.fuzz import corpora
from tests.fuzz.__main__ import report
from tests.fuzz.one import Feeding, feed_blindly, mutated
from tests.fuzz.target import Broken, nothing_logged_as_bug, pieces
from tests.fuzz.targets import TARGETS
from tests.fuzz.whole import CONNECT_ACT, DATA_ACT, PLAIN_START, Wire, act, acts
from tests.unit.support import request_bytes

MIB = 1 << 20


class CorpusTests(SynchronousTestCase):
    def test_every_target_begins_with_something(self):
        for target in TARGETS.values():
            self.assertGreater(len(corpora.seeds_of(target)), 1, target.name)

    def test_no_input_of_a_corpus_finds_anything(self):
        for target in TARGETS.values():
            for data in corpora.seeds_of(target):
                with self.subTest(target=target.name, data=data):
                    target.run(data)

    def test_the_corpora_are_small(self):
        sizes = [path.stat().st_size for path in corpora.DIRECTORY.iterdir()]
        self.assertLess(sum(sizes), 200_000)

    def test_every_corpus_has_a_target(self):
        used = {name for target in TARGETS.values() for name in target.seeds}
        self.assertEqual(used, {path.stem for path in corpora.DIRECTORY.iterdir()})

    def test_any_input_is_read_as_it_was_written(self):
        inputs = [b"", b"'\"\n\\", bytes(3), bytes(300), b"x" + bytes(8) + b"y", b"\xff"]
        directory = Path(self.mktemp())
        directory.mkdir()
        with mock.patch.object(corpora, "DIRECTORY", directory):
            corpora.write_corpus("name", [("here", data) for data in [*inputs, inputs[0]]])
            self.assertEqual(inputs, corpora.read_corpus("name"))
            self.assertEqual([], corpora.read_corpus("another"))


class MemoryTests(SynchronousTestCase):
    def growth(self, run, inputs):
        """The bytes that are kept of a round of inputs at least: what is kept but once fills in
        some rounds, what is kept of each input shows in all."""
        kept = []
        tracemalloc.start()
        try:
            for _ in range(5):
                for data in inputs:
                    run(data)
                gc.collect()
                kept.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        return min(later - earlier for earlier, later in itertools.pairwise(kept))

    def test_no_target_takes_more_memory_the_longer_it_runs(self):
        for target in TARGETS.values():
            choose = random.Random(1)
            inputs = corpora.seeds_of(target)
            inputs = inputs[:3] + [mutated(choose, inputs, target.longest) for _ in range(5)]
            self.assertLess(self.growth(target.run, inputs), 4000, target.name)

    def test_one_that_keeps_a_little_of_each_input_is_noticed(self):
        kept = []
        self.assertGreater(self.growth(lambda data: kept.append(bytes(1000)), [b"x"] * 8), 4000)


class JudgeTests(SynchronousTestCase):
    """What a target is there to find is found, where the product is made to do it."""

    def finds(self, name, data, words):
        error = self.assertRaises(Broken, TARGETS[name].run, data)
        self.assertIn(words, str(error))

    def test_a_server_that_writes_what_it_refuses(self):
        data = b"\x12" + request_bytes(1, 0, 4, cookie=7) + b"evil"
        TARGETS["server"].run(data)
        with mock.patch("blockmig.server.executor.check_request", return_value=Errno.OK):
            self.finds("server", data, "a read-only disk is written")

    def test_a_server_that_does_not_answer(self):
        data = b"\x10" + request_bytes(3, cookie=7)
        TARGETS["server"].run(data)
        with mock.patch.object(ServerTransmission, "reply", return_value=[]):
            self.finds("server", data, "neither answered nor refused")

    def test_a_server_that_lets_a_client_shake_hands_for_ever(self):
        TARGETS["server"].run(b"\0\0\0\0\3")
        expired = "blockmig.server.connection.ServerConnection._handshake_took_too_long"
        with mock.patch(expired):
            self.finds("server", b"\0\0\0\0\3", "nobody may shake hands for ever")

    def test_a_receiver_that_nonsense_completes(self):
        data = PLAIN_START + request_bytes(1, 0, 4) + b"evil" + request_bytes(2)
        data = b"\0" + act(CONNECT_ACT) + act(DATA_ACT, data)
        TARGETS["receiver"].run(data)
        whole = mock.PropertyMock(return_value=True)
        with mock.patch("blockmig.storage.coverage.Coverage.complete", whole):
            self.finds("receiver", data, "complete by nonsense")

    def test_a_receiver_that_is_complete_before_the_source_is_retired(self):
        """A forged disconnect has that effect, and is the only thing that may."""
        found = []
        with mock.patch.object(Wire, "_count", return_value=0):
            for data in corpora.read_corpus("sender-and-receiver"):
                try:
                    TARGETS["sender-and-receiver"].run(data)
                except Broken as error:
                    found.append(str(error))
        self.assertIn("both copies are canonical (R1)", found)

    def test_a_control_socket_that_answers_with_a_bug(self):
        request = b"GET /status HTTP/1.1\r\n\r\n"
        TARGETS["control"].run(request)
        with mock.patch("blockmig.cli.mirror_manager.MirrorManager.status", return_value={1j}):
            self.finds("control", request, "a bug")
        self.flushLoggedErrors(TypeError)

    def test_a_log_message_with_a_traceback(self):
        def buggy():
            with nothing_logged_as_bug():
                Logger().failure("oh", Failure(ZeroDivisionError()))

        self.assertIn("oh", str(self.assertRaises(Broken, buggy)))
        self.flushLoggedErrors(ZeroDivisionError)


class FeedingTests(SynchronousTestCase):
    def setUp(self):
        self.place = Path(self.mktemp())
        self.printed = io.StringIO()

    def feed(self, run, *inputs):
        feeding = Feeding("name", run, self.place, 10.0)
        with contextlib.redirect_stdout(self.printed):
            for data in inputs:
                feeding.feed(data)
        feeding.write_figures()
        return json.loads((self.place / "name.json").read_text())

    def found(self):
        return sorted((self.place / "findings").iterdir())

    def test_what_is_found_is_kept_and_printed_with_its_input(self):
        figures = self.feed(lambda data: data.decode(), b"good", b"\xff")
        self.assertEqual((2, 1), (figures["inputs"], figures["found"]))
        (path,) = self.found()
        self.assertEqual(b"\xff", path.read_bytes())
        self.assertTrue(path.name.startswith("name-"))
        for words in ("UnicodeDecodeError", r"input: b'\xff'", str(path)):
            self.assertIn(words, self.printed.getvalue())

    def test_the_same_is_kept_once(self):
        self.feed(lambda data: data.decode(), b"\xff", b"\xfe")
        self.assertEqual(b"\xff", self.found()[0].read_bytes())
        self.assertEqual(1, len(self.found()))

    def test_an_input_that_takes_too_long_is_found(self):
        with mock.patch("time.process_time", iter((0.0, 60.0)).__next__):
            self.assertEqual(1, self.feed(lambda data: None, b"")["found"])
        self.assertIn("TimeoutError", self.printed.getvalue())

    def test_the_memory_is_measured(self):
        self.assertGreater(self.feed(lambda data: None, b"")["late"], MIB)


class ReportTests(SynchronousTestCase):
    """What `python -m tests.fuzz` prints of one target."""

    def report(self, status=0, log="", **figures):
        place = Path(self.mktemp())
        place.mkdir()
        (place / "name.log").write_text(log)
        if figures:
            figures = {"inputs": 5, "seconds": 1, "early": MIB, "late": 2 * MIB, **figures}
            (place / "name.json").write_text(json.dumps({"engine": "blind", **figures}))
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            wrong = report("name", status, place)
        return wrong, printed.getvalue()

    def test_where_nothing_was_found_it_is_one_line(self):
        wrong, printed = self.report(found=0, log="#5 DONE cov: 7 ft: 8 corp: 9/1Kb")
        self.assertFalse(wrong)
        self.assertIn("5 inputs in 1 s (blind), 7 edges, 9 kept, 1 MiB then 2 MiB", printed)
        self.assertEqual(1, printed.count("\n"))

    def test_what_was_found_is_printed_whole(self):
        log = "#1\nFOUND by name: x\nTraceback\ninput: b'y'\n#2 INITED\n"
        wrong, printed = self.report(found=1, log=log)
        self.assertTrue(wrong)
        self.assertIn("FOUND by name: x\nTraceback\ninput: b'y'\n", printed)
        self.assertNotIn("INITED", printed)

    def test_a_process_that_died_is_wrong(self):
        wrong, printed = self.report(-9, found=0, log="oh")
        self.assertTrue(wrong)
        self.assertIn("exit status -9", printed)
        self.assertIn("oh", printed)

    def test_one_that_fed_nothing_is_wrong(self):
        self.assertEqual((True, True), (self.report()[0], self.report(1)[0]))


class BlindTests(SynchronousTestCase):
    def fed(self, seed=1, most=200, longest=40):
        inputs = []
        feed_blindly(inputs.append, [b"abc", b"0123456789"], longest=longest, seed=seed, most=most)
        return inputs

    def test_the_inputs_of_the_corpus_come_first(self):
        self.assertEqual([b"abc", b"0123456789"], self.fed()[:2])

    def test_the_same_seed_gives_the_same_inputs(self):
        self.assertEqual(self.fed(), self.fed())
        self.assertNotEqual(self.fed(), self.fed(seed=2))

    def test_most_of_them_are_new(self):
        inputs = self.fed()
        self.assertEqual(200, len(inputs))
        self.assertGreater(len(set(inputs)), 100)

    def test_none_is_longer_than_is_worth_it(self):
        self.assertEqual(12, max(map(len, self.fed(longest=12))))

    def test_the_time_ends_it(self):
        inputs = []
        feed_blindly(inputs.append, [], longest=4, seed=1, seconds=0.05)
        self.assertGreater(len(inputs), 0)


class PartTests(SynchronousTestCase):
    def test_pieces_are_the_whole_and_the_same_each_time(self):
        data = random.Random(1).randbytes(5000)
        self.assertEqual(data, b"".join(pieces(data)))
        self.assertEqual(list(pieces(data)), list(pieces(data)))

    def test_acts_are_read_as_they_were_written(self):
        what = [(CONNECT_ACT, b""), (DATA_ACT, bytes(300))]
        self.assertEqual(what, list(acts(b"".join(act(*one) for one in what))))
