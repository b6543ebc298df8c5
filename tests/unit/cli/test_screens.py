"""What a person sees is what the files of tests/screens show (C{python -m tests.screens})."""

from __future__ import annotations

import os
import re
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from blockmig.cli import progress
from blockmig.cli.screen import Shown, line, sentence
from tests.screens.made import FOLDER, WIDTHS, screens


class FilesTests(SynchronousTestCase):
    def test_the_screens_are_those_of_the_files(self):
        made = screens()
        kept = {path.name: path.read_text() for path in FOLDER.glob("*.txt")}
        self.assertEqual(sorted(kept), sorted(made))
        for name, text in made.items():
            self.assertEqual(kept[name], text, f"{name}: python -m tests.screens writes it anew")

    def test_no_line_is_wider_than_the_terminal(self):
        made = screens()
        for columns in WIDTHS:
            for row in made[f"send-{columns}.txt"].splitlines():
                text = re.sub(r"<return>|<newline>|\^\[K", "", row)
                self.assertLess(len(text), columns, text)


class LineTests(SynchronousTestCase):
    shown = Shown("copying", 9 << 30, 20 << 30, 2, 100 << 20, 112.6)

    def test_the_least_important_goes_first(self):
        texts = [line(self.shown, columns) for columns in range(100, 1, -1)]
        for what in ("[", "9 GiB", "attempt", "MiB/s", "left", "45.0%"):
            self.assertIn(what, texts[0])
        order = ["9 GiB", "attempt 2", "MiB/s", "left", "45.0%"]
        last = [max(n for n, text in enumerate(texts) if what in text) for what in order]
        self.assertEqual(sorted(last), last)
        self.assertTrue(all(len(text) < 101 - n for n, text in enumerate(texts, 1) if text))

    def test_it_is_not_done_before_the_end(self):
        for done, expected in (
            (0, " 0.0%"),
            (19_999, "99.9%"),
            (20_000, "100.0%"),
            (99_999, "100"),
        ):
            self.assertIn(expected, line(Shown("copying", done, 20_000, 1), 80))

    def test_what_is_not_known_is_not_shown(self):
        self.assertEqual(
            "connecting: 0.0%, 0 bytes of 5 bytes", sentence(Shown("connecting", 0, 5, 0))
        )


class TerminalTests(SynchronousTestCase):
    def columns(self, size, environment):
        answer = {"side_effect": size} if isinstance(size, OSError) else {"return_value": size}
        with mock.patch("os.get_terminal_size", **answer), mock.patch.dict(os.environ, environment):
            return progress.terminal_columns()

    def test_the_width_is_the_terminals_or_the_usual(self):
        none, nothing = OSError(25, "not a terminal"), os.terminal_size((0, 0))
        for size, environment, expected in (
            (os.terminal_size((132, 40)), {"COLUMNS": "60"}, 132),
            (none, {"COLUMNS": "60"}, 60),
            (nothing, {"COLUMNS": "0"}, 80),
            (none, {"COLUMNS": "wide"}, 80),
        ):
            self.assertEqual(expected, self.columns(size, environment))
