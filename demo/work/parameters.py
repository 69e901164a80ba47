"""Parameters of methods as controls show them, by their types and comments. Knows nothing of Gradio."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from vtprune.demo.work.catalogue import catalogue
from vtprune.describe import parameter_types
from vtprune.methods.parse import parse_value, write_value
from vtprune.methods.registry import get_method

Kind = Literal["flag", "whole", "number", "choice", "text"]
_PLAIN: dict[type, Kind] = {bool: "flag", int: "whole", float: "number"}
_LISTS = (tuple, list, Sequence)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter of a method, as a control shows it.

    Args:
        name: As in the method.
        about: What it means.
        default: Its value if none is given.
        kind: What control suits it. That of a "text" holds a value as the command line writes it, and is empty at the
            default.
        choices: With "choice", the values that it takes, as the command line writes them.
        files: Whether a text would be taken for the name of a file.
    """

    name: str
    about: str
    default: Any
    kind: Kind
    choices: tuple[str, ...] = ()
    files: bool = False

    def show(self, value: Any) -> Any:
        """What the control shows for a value."""
        if self.kind in ("flag", "whole", "number"):
            return value
        return "" if self.kind == "text" and same(value, self.default) else write_value(value)

    def read(self, shown: Any) -> Any:
        """The value for what the control shows."""
        if shown is None or shown == "":
            return self.default
        if self.kind == "number":
            return float(shown)
        return shown if self.kind in ("flag", "whole") else parse_value(shown)


@functools.cache
def parameters(method: str) -> dict[str, Parameter]:
    """The parameters of a method by name, without those that can be given in Python only.

    Raises:
        ValueError: There is no such method.
    """
    allowed = parameter_types(get_method(method))
    said = catalogue()[method]
    found = {}
    for name, default in said["parameters"].items():
        choices = tuple(map(write_value, said["choices"].get(name, ())))
        kind, files = _kind(allowed[name], bool(choices))
        if kind:
            about = said["about_parameters"].get(name, "")
            found[name] = Parameter(name, about, default, kind, choices if kind == "choice" else (), files)
    return found


def same(one: Any, other: Any) -> bool:
    """Whether values of a parameter are the same, 1 and 1.0 not being so: one is a number of tokens, one a share."""
    return repr(one) == repr(other)


def _kind(allowed: tuple[Any, ...], chosen: bool) -> tuple[Kind | None, bool]:
    """The kind of control, if the parameter can be written at all, and whether a text would name a file."""
    members = [x for x in allowed if x is not types.NoneType and typing.get_origin(x) is not Literal]
    written = [x for x in members if x is str or x in _PLAIN or typing.get_origin(x) in _LISTS]
    if chosen and not written:
        return "choice", False
    if members and not written:
        return None, False
    if len(allowed) == 1 and members[0] in _PLAIN:
        return _PLAIN[members[0]], False
    return "text", str in members or not members
