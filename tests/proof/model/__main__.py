"""C{python -m tests.proof.model} prints both tables."""

import sys

from tests.proof.model.reports import report

sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
report()
