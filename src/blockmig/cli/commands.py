"""The commands: the table that `--help` is printed from, and that a command is looked up in.

Each has a module with its L{Options<blockmig.cli.usage.Options>} and its C{run}. The rule: a module
is imported when its command is given, and whatever takes long to import (Twisted, the reactor, the
two ends of a migration) only once the options are known to be valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from getopt import GetoptError, getopt
from importlib import import_module
from typing import Any, Final, NamedTuple, Protocol, cast

from .usage import (
    EXIT_STATUSES,
    STANDARD_OPTIONS,
    Options,
    UsageError,
    display,
    suggestion,
    usage_text,
)


class CommandModule(Protocol):
    """What the module of a command has."""

    Options: type[Options]

    def run(self, options: Any) -> int:
        """Do it, and return the exit status."""


class Command(NamedTuple):
    """A row of the table.

    @ivar module: the name of its module.
    @ivar help: what it does, in one line.
    @ivar aliases: other names that it is known by.
    """

    name: str
    module: str
    help: str
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    def load(self) -> CommandModule:
        """Import its module."""
        return cast(CommandModule, import_module(f".{self.module}", __package__))


COMMANDS: Final = (
    Command("move", "move", "Move a disk to another host through ssh, with one command."),
    Command("receive", "receive", "Receive a disk: the destination of `send` or `mirror`."),
    Command("send", "send", "Send a disk to a receiver, or to any NBD server."),
    Command("check", "check", "Look whether a `send` could begin; change nothing."),
    Command("serve", "serve", "Serve a disk to NBD clients, such as QEMU."),
    Command("mirror", "mirror", "Move the disk of a running `serve` while clients use it."),
    Command("break", "break_", "Cancel the mirror of a running `serve`.", ("cancel",)),
    Command("rate", "rate", "Change the rate limit of a running mirror.", ("set-rate",)),
    Command("acl", "acl", "Show or change who may connect to a running command."),
    Command("status", "status", "Show what a running `serve` or `receive` is doing."),
    Command("inspect", "inspect", "Show which copy of a disk is the canonical one."),
    Command("accept", "accept", "Declare a received disk the canonical copy."),
    Command("forget", "forget", "Remove the records of finished migrations of a disk."),
    Command("certificates", "certificates", "Make certificates for TLS, and a CA for them."),
)

_DESCRIPTION: Final = (
    "Move the disks of virtual machines between hosts over NBD, even while they are in use.\n\n"
    "At every moment exactly one copy of a disk is canonical, that is, the copy to use: the source "
    "until the hand-off, which retires it (deletes it, or marks it as migrated), and the "
    "destination from then on.\n\n"
    "`blockmig COMMAND --help` describes a command."
)


def parse(given: Sequence[str]) -> tuple[Command, Options]:
    """The command that was given to `blockmig`, and its options.

    @raise UsageError: the command line is wrong.
    @raise SystemExit: it asked for something to be displayed.
    """
    try:
        letters = "".join(flag.short for flag in STANDARD_OPTIONS)
        given_options, rest = getopt(given, letters, [flag.name for flag in STANDARD_OPTIONS])
    except GetoptError as error:
        raise UsageError(f"{error} (see `blockmig --help`)") from None
    for name, _ in given_options:
        display(name, _help)
    if not rest:
        names = ", ".join(_title(command) for command in COMMANDS)
        raise UsageError(f"which command? {names} (see `blockmig --help`)")
    for command in COMMANDS:
        if rest[0] in command.names:
            options = command.load().Options(command.aliases)
            try:
                options.parseOptions(rest[1:])
            except UsageError as error:
                raise UsageError(f"{error} (see `blockmig {rest[0]} --help`)") from None
            return command, options
    close = suggestion(rest[0], [name for command in COMMANDS for name in command.names])
    raise UsageError(f"unknown command: {rest[0]}{close} (see `blockmig --help`)")


def _title(command: Command) -> str:
    """Its name, with its aliases in brackets."""
    return f"{command.name} ({', '.join(command.aliases)})" if command.aliases else command.name


def _help() -> str:
    return usage_text(
        ["blockmig COMMAND [options]"],
        _DESCRIPTION,
        STANDARD_OPTIONS,
        EXIT_STATUSES,
        commands=[(", ".join(command.names), command.help) for command in COMMANDS],
    )
