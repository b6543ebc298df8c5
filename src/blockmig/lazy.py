"""Packages whose names are loaded on first use (PEP 562).

A package that offers the names of its modules would otherwise import all of them for whoever needs
one: `receive` would start with the relay of `serve`. Type checkers are shown plain imports.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The C{__getattr__} of a package.

    @param package: its C{__name__}.
    @param modules: which of its modules has which name.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f".{modules[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
