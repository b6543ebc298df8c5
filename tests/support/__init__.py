"""What the tests with real processes, sockets and peers share."""

from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
