"""The library's messages, in the words of the commands.

The library says what is to be done by naming its arguments (C{overwrite=True}, C{unlink=False},
C{id='web'}; C{id=…} for one of any value), since it does not know who calls it. Whoever reads what
a command writes has options instead. Everything that a command writes passes through here: its log
lines, its output, its complaints.
"""

from __future__ import annotations

import re
from typing import Final

_SWITCHES: Final = re.compile(
    r"\b(overwrite|unlink|plain|in_use_anyway|raw_anyway|no_space_check)=True\b"
)
_WITHOUT: Final = re.compile(r"\bwith unlink=False\b")
_VALUES: Final = re.compile(r"\b(id|secret|retired_by)=(?:…|'([\w.-]*)')")


def in_options(text: str) -> str:
    """C{text} with options in place of the library's arguments."""
    if "=" not in text:
        return text
    text = _WITHOUT.sub("without --unlink", text)
    text = _SWITCHES.sub(lambda match: "--" + match[1].replace("_", "-"), text)
    return _VALUES.sub(
        lambda match: f"--{match[1].replace('_', '-')}" + (f" {match[2]}" if match[2] else ""), text
    )
