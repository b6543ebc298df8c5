"""The picture of the benchmarks, and the tables."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks.document import BEGIN, END, replaced, section
from benchmarks.picture import LEFT, RIGHT, across, svg
from benchmarks.results import Comparison, Goal, Table, best_peer
from benchmarks.tables import markdown
from twisted.trial.unittest import SynchronousTestCase

PEERS = ("nbd<copy>", "qemu & co")
SVG = "{http://www.w3.org/2000/svg}"
FACTS = dict.fromkeys(
    [
        "machine",
        "kernel",
        "python",
        "twisted",
        "qemu",
        "nbdcopy",
        "nbdkit",
        "nbd-server",
        "fio",
        "rounds",
        "commit",
        "at",
        "load",
    ],
    "1",
)


def comparison(name: str, ours: float, factor: float = 0.7, more: bool = False) -> Comparison:
    samples = {"blockmig": [ours, ours * 2, ours / 2], PEERS[0]: [1.0] * 3, PEERS[1]: [2.0] * 3}
    goals = (best_peer("blockmig", PEERS, factor, more),)
    return Comparison(name, "s", "blockmig", samples, PEERS, goals, more)


def table(*comparisons: Comparison) -> Table:
    return Table("tmpfs", "Title <here>", "Note.", list(comparisons), facts=FACTS)


class PictureTests(SynchronousTestCase):
    def words(self, *tables: Table) -> list[str]:
        root = ElementTree.fromstring(svg(list(tables)))
        return [each.text or "" for each in root.iter(f"{SVG}text")]

    def places(self, one: Comparison) -> list[float]:
        """Where the dots of the lanes are; those of the legend come first."""
        root = ElementTree.fromstring(svg([table(one)]))
        dots = [float(each.get("cx", "")) for each in root.iter(f"{SVG}circle")]
        return dots[len(one.samples) :]

    def test_it_is_xml_with_every_comparison_of_every_table(self):
        one, two = table(comparison("a", 1), comparison("b <c>", 2)), table(comparison("d", 3))
        self.assertLessEqual({"a, s", "b <c>, s", "d, s"}, set(self.words(one, two)))

    def test_it_names_every_competitor(self):
        self.assertLessEqual({"blockmig", *PEERS}, set(self.words(table(comparison("a", 1)))))

    def test_it_says_whether_a_goal_was_met(self):
        words = self.words(table(comparison("a", 0.5), comparison("b", 0.9)))
        self.assertIn("≤ 0.70 × best peer: 0.50, met", words)
        self.assertIn("≤ 0.70 × best peer: 0.90, missed", words)

    def test_everybody_has_a_dot_at_the_median(self):
        found = self.places(comparison("a", 0.5))
        expected = [across(0.5), across(1.0), across(2.0)]
        self.assertEqual([round(x, 1) for x in expected], found)

    def test_of_rates_the_higher_is_further_left(self):
        found = self.places(comparison("a", 4.0, more=True))
        expected = [across(0.5), across(2.0), across(1.0)]
        self.assertEqual([round(x, 1) for x in expected], found)

    def test_what_is_off_the_scale_is_at_its_edge(self):
        self.assertEqual((LEFT, RIGHT), (across(0.0001), across(1e9)))

    def test_what_was_not_measured_of_somebody_has_no_dot(self):
        one = comparison("a", 1)
        one.samples[PEERS[0]] = []
        self.assertEqual(2, len(self.places(one)))

    def test_a_table_that_is_not_to_be_in_it_is_not(self):
        one = table(comparison("a", 1))
        one.pictured = False
        self.assertNotIn("a, s", self.words(one))


class TableTests(SynchronousTestCase):
    def test_a_row_has_the_medians_the_ratio_and_the_goal(self):
        text = markdown(table(comparison("a", 0.5)))
        row = "| a | **0.500** | 1.00 | 2.00 | 0.50 | ≤ 0.70 × best peer, met |"
        self.assertIn(row, text.splitlines())

    def test_ours_is_the_first_column(self):
        one = comparison("a", 0.5)
        one.samples = dict(reversed(one.samples.items()))
        self.assertIn("| | blockmig | qemu & co | nbd<copy> |", markdown(table(one)))

    def test_a_goal_beside_somebody_else_comes_with_its_ratio(self):
        one = comparison("a", 0.5)
        one.goals = (Goal("≤ 0.20 × q", "blockmig", (PEERS[1],), 0.2),)
        self.assertIn("≤ 0.20 × q: 0.25, **missed** |", markdown(table(one)))

    def test_a_number_comes_with_the_figure(self):
        one = comparison("a", 0.5)
        one.goals = (Goal("≤ 1 s", "blockmig", plus=1.0),)
        self.assertIn("≤ 1 s: 0.500, met |", markdown(table(one)))

    def test_it_says_of_which_commit_it_is_and_how_busy_the_machine_was(self):
        one = table(comparison("a", 1))
        one.facts = {**FACTS, "commit": "abc, dirty", "load": "0.25"}
        text = markdown(one)
        self.assertIn("commit abc, dirty", text)
        self.assertIn("load before: 0.25", text)


class DocumentTests(SynchronousTestCase):
    def test_only_what_is_between_the_markers_is_replaced(self):
        text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
        self.assertEqual(f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n", replaced(text, "new"))

    def test_a_document_without_markers_is_refused(self):
        self.assertRaises(SystemExit, replaced, "text", "new")

    def test_the_section_shows_the_picture_and_how_to_make_each_table(self):
        text = section([table(comparison("a", 1))], "it.svg")
        self.assertIn("](it.svg)", text)
        self.assertIn("`make bench ONLY=tmpfs`", text)

    def test_and_how_long_that_takes(self):
        one = table(comparison("a", 1))
        one.facts = {**FACTS, "took": "7 s"}
        self.assertIn("`make bench ONLY=tmpfs`, 7 s: ", section([one], "it.svg"))
