"""The statistics of the benchmarks: medians, ratios, and how goals are judged."""

from __future__ import annotations

import json

from benchmarks.results import Comparison, Goal, Table, best_peer, from_json, merged, to_json
from twisted.trial.unittest import SynchronousTestCase

SAMPLES = {"ours": [3.0, 1.0, 2.0], "one": [4.0, 4.0, 4.0], "other": [9.0, 8.0, 1.0]}
PEERS = ("one", "other")


def compared(*goals: Goal, more: bool = False) -> Comparison:
    return Comparison("it", "s", "ours", SAMPLES, PEERS, goals, more)


def table(case: str, title: str = "") -> Table:
    return Table(case, title, "", [compared(best_peer("ours", PEERS, 0.5))], facts={"load": "0"})


class ComparisonTests(SynchronousTestCase):
    def test_a_figure_is_the_median_of_its_rounds(self):
        self.assertEqual(2.0, compared().median("ours"))

    def test_the_spread_is_from_the_least_to_the_most(self):
        self.assertEqual((1.0, 9.0), compared().spread("other"))

    def test_the_best_peer_is_the_one_with_the_least_median(self):
        self.assertEqual(0.5, compared().ratio)

    def test_or_with_the_highest_where_more_is_better(self):
        self.assertEqual(0.25, compared(more=True).ratio)

    def test_a_peer_that_was_not_measured_does_not_count(self):
        found = Comparison("it", "s", "ours", {**SAMPLES, "other": []}, PEERS, more=True)
        self.assertEqual(0.5, found.ratio)

    def test_there_is_no_ratio_without_peers(self):
        self.assertIsNone(Comparison("it", "s", "ours", SAMPLES).ratio)


class VerdictTests(SynchronousTestCase):
    def judged(self, goal: Goal, more: bool = False):
        (verdict,) = compared(goal, more=more).verdicts()
        return verdict

    def test_a_goal_is_met_where_the_figure_is_at_most_its_part_of_the_best_peers(self):
        verdict = self.judged(best_peer("ours", PEERS, 0.5))
        self.assertEqual((2.0, 0.5, True), (verdict.bound, verdict.ratio, verdict.met))

    def test_and_missed_where_it_is_more(self):
        self.assertFalse(self.judged(best_peer("ours", PEERS, 0.49)).met)

    def test_where_more_is_better_it_is_at_least_that(self):
        self.assertTrue(self.judged(best_peer("ours", PEERS, 0.25, more=True), more=True).met)
        self.assertFalse(self.judged(best_peer("ours", PEERS, 0.26, more=True), more=True).met)

    def test_a_number_is_a_bound_by_itself(self):
        verdict = self.judged(Goal("≤ 4 s", "ours", plus=4.0))
        self.assertEqual((4.0, 0.5, True), (verdict.bound, verdict.ratio, verdict.met))

    def test_a_number_is_added_to_the_figure_of_who_is_the_measure(self):
        self.assertTrue(self.judged(Goal("≤ one + 4 s", "other", ("one",), plus=4.0)).met)
        self.assertFalse(self.judged(Goal("≤ one + 3 s", "other", ("one",), plus=3.0)).met)

    def test_a_goal_beside_somebody_who_was_not_measured_is_not_judged(self):
        self.assertEqual([], compared(Goal("≤ nobody", "ours", ("nobody",))).verdicts())


class FileTests(SynchronousTestCase):
    def test_what_is_read_is_what_was_written(self):
        tables = [table("disk", "one"), table("tls", "two")]
        self.assertEqual(tables, from_json(json.loads(json.dumps(to_json(tables)))))

    def test_a_case_that_is_run_again_takes_the_place_of_what_it_found_before(self):
        old = [table("disk", "old"), table("disk", "old too"), table("tls", "kept")]
        found = merged(old, [table("disk", "new")], ["tls", "disk"])
        self.assertEqual(["kept", "new"], [one.title for one in found])

    def test_what_a_case_found_that_is_no_more_is_left_out(self):
        self.assertEqual([], merged([table("gone")], [], ["disk"]))
