"""The commands: the table that `--help` is printed from, and that a command is found by.

Each has a module with its L{Options<blockmig.cli.usage.Options>} and what it does. The rule: a
module is imported when its command is given, and whatever takes long to import (Twisted, the
reactor, the ends of a migration) only once its options were found to make sense.
"""

from __future__ import annotations

from collections.abc import Sequence
from getopt import GetoptError, getopt
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol, cast

from .usage import STANDARD_OPTIONS, Options, UsageError, display, usage_text


class CommandModule(Protocol):
    """What the module of a command has.

    @ivar Options: what may be given.
    """

    Options: type[Options]

    def run(self, options: Any) -> int:
        """Do it, and give the exit status."""


class Command(NamedTuple):
    """A row of the table.

    @ivar module: the name of its module.
    @ivar help: what it is for, in one line.
    """

    name: str
    module: str
    help: str

    def load(self) -> CommandModule:
        """Import its module."""
        return cast(CommandModule, import_module(f".{self.module}", __package__))


COMMANDS: Final = (
    Command("receive", "receive", "Accept one migration into a disk."),
    Command("send", "send", "Send a disk to a receiver, or to any NBD server."),
    Command("serve", "serve", "Give a disk to NBD clients."),
    Command("mirror", "mirror", "Have a running serve mirror its disk to a receiver."),
    Command("break", "break_", "Abandon the mirror of a running serve."),
    Command("rate", "rate", "Change how fast a running serve mirrors its disk."),
    Command("status", "status", "Tell what a running serve or receive is doing."),
    Command("inspect", "inspect", "Tell which copy is the canonical one."),
    Command("accept", "accept", "Declare a received disk the canonical copy."),
)


def parse(given: Sequence[str]) -> tuple[Command, Options]:
    """The command that was given to `blockmig`, and its options.

    @raise UsageError: what was given makes no sense.
    @raise SystemExit: it asked for something to be displayed.
    """
    try:
        given_options, rest = getopt(given, "", [flag.getopt_name for flag in STANDARD_OPTIONS])
    except GetoptError as error:
        raise UsageError(str(error)) from None
    for name, _ in given_options:
        display(name, _help)
    if not rest:
        *names, last = (command.name for command in COMMANDS)
        raise UsageError(f"which command? {', '.join(names)} or {last} (--help says more)")
    for command in COMMANDS:
        if command.name == rest[0]:
            options = command.load().Options()
            options.parseOptions(rest[1:])
            return command, options
    raise UsageError(f"Unknown command: {rest[0]}")


def _help() -> str:
    purposes = [(command.name, command.help) for command in COMMANDS]
    longdesc = "Move the disks of running machines between hosts over NBD."
    return "Usage: blockmig COMMAND [options]\n" + usage_text(STANDARD_OPTIONS, longdesc, purposes)
