"""How the options of a command are declared, read from the command line, and shown by `--help`.

A part of L{twisted.python.usage}: its words, its layout and the names of its methods, so that
twistd can use a command's options as they are. Twisted's own takes seven times as long to import as
Python to start, which is more than anybody should wait to be told of a wrong letter.

Nothing is imported here that takes long, and nothing is known of any command.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterable, Sequence
from getopt import GetoptError, gnu_getopt
from typing import Any, ClassVar, NamedTuple, NoReturn, TypeVar

from .. import __version__

T = TypeVar("T")


class UsageError(Exception):
    """What was given makes no sense; the message says why."""


def parse_value(text: str, parse: Callable[[str], T], what: str = "") -> T:
    """What C{parse} makes of C{text}.

    @param parse: raises L{ValueError} if it makes nothing of it.
    @param what: how an error calls it; "" where the error itself does.
    @raise UsageError: it is no such value.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{what}: {error}" if what else str(error)) from None


class Flag(NamedTuple):
    """An option that is given or not: its value is 1 or 0.

    @ivar short: its letter; "" for none.
    """

    name: str
    help: str
    short: str = ""

    @property
    def getopt_name(self) -> str:
        """Its name, as getopt(3) and its users see it."""
        return self.name

    @property
    def initial_value(self) -> Any:
        """Its value where it is not given."""
        return 0

    def updated(self, text: str, previous: Any) -> Any:
        """Its value now that it is given."""
        return 1


class Parameter(NamedTuple):
    """An option that has a value.

    @ivar parse: makes the value from its text, or raises L{ValueError}.
    @ivar default: its value where it is not given.
    @ivar short: its letter; "" for none.
    @ivar repeated: it may be given several times, and its value is a list.
    """

    name: str
    help: str
    parse: Callable[[str], Any] = str
    default: Any = None
    short: str = ""
    repeated: bool = False

    @property
    def getopt_name(self) -> str:
        """Its name, as getopt(3) and its users see it."""
        return f"{self.name}="

    @property
    def initial_value(self) -> Any:
        """Its value where it is not given."""
        return [] if self.repeated else self.default

    def value(self, text: str) -> Any:
        """What C{text} means.

        @raise UsageError: nothing.
        """
        return parse_value(text, self.parse, f"--{self.name}")

    def updated(self, text: str, previous: Any) -> Any:
        """Its value now that it is given.

        @raise UsageError: C{text} is no such value.
        """
        value = self.value(text)
        return [*previous, value] if self.repeated else value


Option = Flag | Parameter

STANDARD_OPTIONS = (
    Flag("help", "Display this help and exit."),
    Flag("version", "Display the version and exit."),
)
"""The options of every command, and of `blockmig` itself."""


def display(name: str, help_text: Callable[[], str]) -> NoReturn:
    """Print what one of L{STANDARD_OPTIONS} asks for, and exit."""
    print(help_text() if name == "--help" else f"blockmig {__version__}")
    raise SystemExit(0)


def usage_text(
    options: Iterable[Option],
    longdesc: str,
    commands: Sequence[tuple[str, str]] = (),
    width: int | None = None,
) -> str:
    """What `--help` says below the synopsis.

    @param longdesc: what it all is for.
    @param commands: the names of the commands that can follow, and what each is for.
    @param width: columns; None for those of the terminal.
    """
    columns = width or int(os.environ.get("COLUMNS", "80"))
    rows = []
    for option in sorted(options, key=lambda option: option.short or option.name):
        default = getattr(option, "default", None)
        letter = f"-{option.short}," if option.short else "   "
        default_note = "" if default is None else f" [default: {default}]"
        rows.append((f"  {letter} --", option.getopt_name, f"{option.help}{default_note}"))
    text = "Options:\n" + _table(rows, "  ", columns)
    text += "\n" + "\n".join(textwrap.wrap(longdesc, columns)) + "\n"
    if commands:
        rows = [("    ", name, purpose) for name, purpose in sorted(commands)]
        text += "Commands:\n" + _table(rows, "      ", columns)
    return text


def _table(rows: list[tuple[str, str, str]], gap: str, columns: int) -> str:
    """Rows of a margin, a name and an explanation, which has a column of its own."""
    longest = max(len(name) for _, name, _ in rows)
    lines = []
    for margin, name, explanation in rows:
        left = f"{margin}{name:<{longest}}{gap}"
        first, *rest = textwrap.wrap(explanation, columns - len(left))
        lines += [left + first, *(" " * len(left) + line for line in rest)]
    return "".join(f"{line}\n" for line in lines)


class Options(dict[str, Any]):
    """The options of one command: the value of each by its name.

    @cvar synopsis: the command line, in one line.
    @cvar longdesc: what the command does, for `--help`.
    @cvar optFlags: those that have no value.
    @cvar optParameters: those that have one.
    """

    synopsis: ClassVar[str]
    longdesc: ClassVar[str]
    optFlags: ClassVar[tuple[Flag, ...]] = ()
    optParameters: ClassVar[tuple[Parameter, ...]] = ()

    def __init__(self) -> None:
        own: tuple[Option, ...] = (*self.optFlags, *self.optParameters)
        super().__init__({option.name: option.initial_value for option in own})
        self._known: tuple[Option, ...] = (*own, *STANDARD_OPTIONS)

    def __str__(self) -> str:
        return f"Usage: {self.synopsis}\n{self.getUsage()}"

    def getUsage(self, width: int | None = None) -> str:
        """What `--help` says below the synopsis."""
        return usage_text(self._known, self.longdesc, width=width)

    def parseOptions(self, options: Iterable[str]) -> None:
        """Take what was given; options may stand after arguments too, as people write them.

        @raise UsageError: it makes no sense.
        @raise SystemExit: it asked for something to be displayed.
        """
        given = list(options)
        letters = [
            option.short + (":" if isinstance(option, Parameter) else "")
            for option in self._known
            if option.short
        ]
        try:
            given_options, arguments = gnu_getopt(
                given, "".join(letters), [option.getopt_name for option in self._known]
            )
        except GetoptError as error:
            raise UsageError(str(error)) from None
        for name, _ in given_options:
            # A promise, or the deletion of a disk, is not to be given by one letter too many.
            if name.startswith("--") and not any(
                text == name or text.startswith(f"{name}=") for text in given
            ):
                raise UsageError(f"{name}: options must be spelled out in full")
        by_spelling = {f"--{option.name}": option for option in self._known}
        by_spelling |= {f"-{option.short}": option for option in self._known if option.short}
        for name, text in given_options:
            option = by_spelling[name]
            if option in STANDARD_OPTIONS:
                display(name, self.__str__)
            self[option.name] = option.updated(text, self[option.name])
        self.parseArgs(*arguments)
        self.postOptions()

    def parseArgs(self, *arguments: str) -> None:
        """Take what is no option; by default there is no such thing.

        @raise UsageError: there is too much of it, or too little.
        """
        if arguments:
            raise UsageError("Wrong number of arguments.")

    def postOptions(self) -> None:
        """Look at what depends on several options.

        @raise UsageError: they contradict each other, or one is missing.
        """
