"""How the options of a command are declared, read from the command line, and shown by `--help`.

Covers the part of L{twisted.python.usage} that is needed here, with the same method names, so that
twistd can use a command's options as they are. Importing Twisted's own takes seven times as long as
Python takes to start: too long to wait for the report of a mistyped option.

Nothing that takes long is imported here, and nothing is known of any command.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import StrEnum
from getopt import GetoptError, gnu_getopt
from typing import Any, ClassVar, Final, NamedTuple, NoReturn, TypeVar

from .. import __version__
from ..units import printable
from .wording import in_options

T = TypeVar("T")

_NARROWEST: Final = 25
"""Columns of an explanation beside its name; with fewer it is put below."""

_BELOW: Final = " " * 8


class UsageError(Exception):
    """The command line is wrong; the message says why."""


def parse_value(text: str, parse: Callable[[str], T], what: str = "") -> T:
    """Parse C{text}.

    @param parse: raises L{ValueError} if the text is not valid.
    @param what: the name of the value in an error; "" if the L{ValueError} says it itself.
    @raise UsageError: the text is not valid.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{what}: {error}" if what else str(error)) from None


def suggestion(given: str, names: Iterable[str], prefix: str = "") -> str:
    """What may have been meant by C{given}, as the end of a message; "" if nothing is like it."""
    from difflib import get_close_matches  # noqa: PLC0415

    close = get_close_matches(given, list(names), 1)
    return f": do you mean {prefix}{close[0]}?" if close and given not in close else ""


class Group(StrEnum):
    """What an option is about: C{--help} shows the options in these groups, in this order."""

    WHAT = "What"
    WHERE = "Where"
    TLS = "TLS"
    WHEN = "When"
    HOW_MUCH = "How much"
    OUTPUT = "Output"


class Flag(NamedTuple):
    """An option without a value: 1 if it is given, 0 if not.

    @ivar short: its letter; "" for none.
    """

    name: str
    help: str
    short: str = ""
    group: Group = Group.WHAT

    @property
    def getopt_name(self) -> str:
        """The name as L{getopt.gnu_getopt} expects it."""
        return self.name

    @property
    def shown_name(self) -> str:
        return self.name

    @property
    def shown_default(self) -> str:
        return ""

    @property
    def initial_value(self) -> Any:
        return 0

    def updated(self, text: str, previous: Any) -> Any:
        """The value after the option was given."""
        return 1


class Parameter(NamedTuple):
    """An option with a value.

    @ivar parse: makes the value from its text, or raises L{ValueError}.
    @ivar default: the value if the option is not given.
    @ivar short: its letter; "" for none.
    @ivar repeated: it may be given several times, and its value is a list.
    @ivar metavar: what C{--help} shows in place of the value, such as C{SECONDS}.
    @ivar default_text: the default as C{--help} shows it, where that is not C{default} itself; ""
        if C{help} says it.
    """

    name: str
    help: str
    parse: Callable[[str], Any] = str
    default: Any = None
    short: str = ""
    repeated: bool = False
    metavar: str = ""
    default_text: str | None = None
    group: Group = Group.WHAT

    @property
    def getopt_name(self) -> str:
        """The name as L{getopt.gnu_getopt} expects it."""
        return f"{self.name}="

    @property
    def shown_name(self) -> str:
        return f"{self.name}={self.metavar}"

    @property
    def shown_default(self) -> str:
        """The default as C{--help} shows it; "" for none."""
        if self.default_text is not None:
            return self.default_text
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return "" if self.default is None else str(self.default)

    @property
    def initial_value(self) -> Any:
        return [] if self.repeated else self.default

    def value(self, text: str) -> Any:
        """The value that C{text} stands for.

        @raise UsageError: it is not valid.
        """
        return parse_value(text, self.parse, f"--{self.name}")

    def updated(self, text: str, previous: Any) -> Any:
        """The value after the option was given with C{text}.

        @raise UsageError: C{text} is not valid.
        """
        value = self.value(text)
        return [*previous, value] if self.repeated else value


Option = Flag | Parameter

STANDARD_OPTIONS: Final = (
    Flag("help", "Display this help and exit.", "h", Group.OUTPUT),
    Flag("version", "Display the version and exit.", group=Group.OUTPUT),
)
"""The options of every command, and of `blockmig` itself."""

EXIT_STATUSES: Final = {
    0: "Done.",
    1: "Bad usage, or refused at the start: nothing was changed.",
    3: "Failed for a local reason: a disk error, no space, no permission.",
    4: "Stopped or gave up before completion: the destination's copy is not canonical.",
    5: "Completion, or the verdict, is not certain: `blockmig inspect DISK` says which copy is "
    "canonical, or where to look.",
}
"""What `--help` says of each L{exit status<blockmig.errors.ExitStatus>}."""


class OutputFailed(Exception):
    """What was to be printed could not be written; the message says why."""

    @classmethod
    def of(cls, error: OSError) -> OutputFailed:
        return cls(f"cannot write to standard output: {error.strerror}")


def show(text: str) -> None:
    """Print C{text}, which may have several lines, without what a terminal would obey.

    A reader that has left (`| head`) changes nothing, and no exit status.

    @raise OutputFailed: it cannot be written, for another reason.
    """
    with _to_output():
        lines = with_any_name(in_options(text)).split("\n")
        print("\n".join(printable(line, longest=len(line)) for line in lines))


def show_any_name() -> None:
    """Print names of files from now on that are not UTF-8, too, as they need not be."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def with_any_name(text: str) -> str:
    """C{text}, with what is not UTF-8 in names of files as L{show_any_name} has it printed."""
    if getattr(sys.stdout, "errors", None) != "backslashreplace":
        return text
    return text.encode(errors="backslashreplace").decode()


def flush_output() -> None:
    """Write what is buffered now, not when the interpreter ends and nobody can be told.

    @raise OutputFailed: it cannot be written.
    """
    with _to_output():
        if sys.stdout is not None:
            sys.stdout.flush()


@contextlib.contextmanager
def _to_output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        raise OutputFailed.of(error) from None


def _discard_output() -> None:
    """Let the rest of what is printed, and what is buffered, go nowhere."""
    _lead_nowhere(sys.stdout)


def _lead_nowhere(stream: Any) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def complain(what: object) -> None:
    """Print on stderr what is wrong; where nobody reads that, the exit status has to do."""
    try:
        print(f"blockmig: {printable(in_options(str(what)))}", file=sys.stderr, flush=True)
    except OSError:
        # What is buffered would fail again when the interpreter ends, and set the exit status.
        _lead_nowhere(sys.stderr)


def display(name: str, help_text: Callable[[], str]) -> NoReturn:
    """Print what one of L{STANDARD_OPTIONS} asks for, and exit."""
    text = help_text() if name in ("-h", "--help") else f"blockmig {__version__}"
    try:
        # Whether anybody reads it is found out here, however short it is.
        print(text, flush=True)
    except OSError as error:
        _discard_output()
        if not isinstance(error, BrokenPipeError):
            complain(OutputFailed.of(error))
        raise SystemExit(3) from None
    raise SystemExit(0)


def usage_text(
    synopses: Sequence[str],
    description: str,
    options: Iterable[Option],
    statuses: Iterable[int],
    *,
    commands: Sequence[tuple[str, str]] = (),
    examples: Sequence[tuple[str, str]] = (),
    width: int | None = None,
) -> str:
    """The whole text of `--help`.

    @param synopses: the command line, in each form that it has.
    @param description: what the command does; paragraphs are separated by empty lines.
    @param statuses: those of L{EXIT_STATUSES} that the command can exit with.
    @param commands: the names of the commands that can follow, and what each does.
    @param examples: whole command lines, and what each is for.
    @param width: columns; None for those of the terminal.
    """
    columns = width or int(os.environ.get("COLUMNS", "80"))
    first, *others = synopses
    text = "".join([f"Usage: {first}\n", *(f"   or: {other}\n" for other in others)])
    for paragraph in description.split("\n\n"):
        lines = _wrapped(paragraph, columns)
        text += "\n" + "\n".join(lines) + "\n"
    if commands:
        rows = [("    ", name, purpose) for name, purpose in commands]
        text += "\nCommands:\n" + _table(rows, "  ", columns)
    if examples:
        text += "\nExamples:\n" + _examples_text(examples, columns)
    text += "\n" + options_text(options, columns)
    rows = [("    ", str(status), EXIT_STATUSES[status]) for status in statuses]
    return text + "\nExit statuses:\n" + _table(rows, "  ", columns)


def _wrapped(text: str, columns: int) -> list[str]:
    """Lines that never end within `--an-option` or a file-name."""
    import textwrap  # noqa: PLC0415 (only help is wrapped)

    return textwrap.wrap(text, columns, break_on_hyphens=False)


def options_text(options: Iterable[Option], columns: int) -> str:
    """The sections of the options, one for each group, with their explanations aligned."""
    given = sorted(options, key=lambda option: option.name)
    longest = max(len(option.shown_name) for option in given)
    sections = []
    for group in Group:
        rows = []
        for option in given:
            if option.group == group:
                letter = f"-{option.short}," if option.short else "   "
                default = f" [default: {option.shown_default}]" if option.shown_default else ""
                name = f"{option.shown_name:<{longest}}"
                rows.append((f"  {letter} --", name, f"{option.help}{default}"))
        if rows:
            sections.append(f"{group}:\n{_table(rows, '  ', columns)}")
    return "\n".join(sections)


def _examples_text(examples: Sequence[tuple[str, str]], columns: int) -> str:
    """Command lines, each in one line that can be copied, and under it what it is for."""
    text = ""
    for line, purpose in examples:
        text += f"  {line}\n"
        wrapped = _wrapped(purpose, max(20, columns - 6))
        text += "".join(f"      {one}\n" for one in wrapped)
    return text


def _table(rows: list[tuple[str, str, str]], gap: str, columns: int) -> str:
    """Rows of a margin, a name and an explanation; the explanations are aligned."""
    longest = max(len(name) for _, name, _ in rows)
    lines = []
    for margin, name, explanation in rows:
        left = f"{margin}{name:<{longest}}{gap}"
        if columns - len(left) < _NARROWEST:
            below = _wrapped(explanation, max(_NARROWEST, columns - len(_BELOW)))
            lines += [f"{margin}{name}".rstrip(), *(_BELOW + line for line in below)]
            continue
        first, *rest = _wrapped(explanation, columns - len(left))
        lines += [left + first, *(" " * len(left) + line for line in rest)]
    return "".join(f"{line}\n" for line in lines)


class Options(dict[str, Any]):
    """The options of one command: the value of each by its name.

    @cvar synopsis: the command line, in one line.
    @cvar longdesc: what the command does, for `--help`.
    @cvar examples: whole command lines, and what each is for.
    @cvar statuses: what the command can exit with.
    @cvar optFlags: the options without a value.
    @cvar optParameters: the options with a value.
    @param aliases: other names of the command.
    """

    synopsis: ClassVar[str]
    longdesc: ClassVar[str]
    examples: ClassVar[tuple[tuple[str, str], ...]] = ()
    statuses: ClassVar[tuple[int, ...]] = ()
    optFlags: ClassVar[tuple[Flag, ...]] = ()
    optParameters: ClassVar[tuple[Parameter, ...]] = ()

    def __init__(self, aliases: Sequence[str] = ()) -> None:
        own: tuple[Option, ...] = (*self.optFlags, *self.optParameters)
        super().__init__({option.name: option.initial_value for option in own})
        self._known: tuple[Option, ...] = (*own, *STANDARD_OPTIONS)
        self._aliases = aliases

    def __str__(self) -> str:
        return self.getUsage()

    def getUsage(self, width: int | None = None) -> str:
        """The whole text of `--help`."""
        program, command, rest = self.synopsis.split(" ", 2)
        synopses = [f"{program} {name} {rest}" for name in (command, *self._aliases)]
        return usage_text(
            synopses,
            self.longdesc,
            self._known,
            self.statuses,
            examples=self.examples,
            width=width,
        )

    def parseOptions(self, options: Iterable[str]) -> None:
        """Read the command line after the command; options may follow arguments.

        @raise UsageError: it is wrong.
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
            names = [option.name for option in self._known]
            raise UsageError(f"{error}{suggestion(error.opt, names, '--')}") from None
        for name, _ in given_options:
            # getopt takes abbreviations, but no mistyped one may delete or declare a disk.
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
        """Take the arguments that are not options; by default none is allowed.

        @raise UsageError: there are too many, or too few.
        """
        if arguments:
            raise UsageError(f"unexpected argument: {arguments[0]!r}")

    def postOptions(self) -> None:
        """Check what depends on several options.

        @raise UsageError: they contradict each other, or one is missing.
        """
