"""`python -m blockmig`."""

from .cli.main import main

main()
