"""The catalogue of methods: registration by decorator, look-up by name, entry points for outside packages."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import importlib
import importlib.metadata
import pkgutil
import re
from collections.abc import Callable
from typing import Any, TypeVar

from vtprune.methods.base import Method

M = TypeVar("M", bound=type[Method])

_METHODS: dict[str, type[Method]] = {}
_loaded = False


def register(name: str) -> Callable[[M], M]:
    """Class decorator: make a method known under `name` (lower-case letters, digits and underscores).

    Raises:
        ValueError: The name is malformed or taken by another class.
        TypeError: The class is no dataclass derived from `Method`.
    """

    def add(cls: M) -> M:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"method name must be lower-case letters, digits and underscores, got {name!r}.")
        if not (isinstance(cls, type) and issubclass(cls, Method) and dataclasses.is_dataclass(cls)):
            raise TypeError(f"method {name!r} must be a dataclass derived from vtprune.Method, got {cls!r}.")
        taken = _METHODS.get(name)
        if taken is not None and taken.__qualname__ != cls.__qualname__:
            raise ValueError(f"method {name!r} is already registered by {taken.__module__}.{taken.__qualname__}.")
        cls.name = name
        _METHODS[name] = cls
        return cls

    return add


def _load() -> None:
    global _loaded
    if _loaded:
        return
    _loaded = True
    package = importlib.import_module("vtprune.methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"vtprune.methods.{module.name}")
    for entry in importlib.metadata.entry_points(group="vtprune.methods"):
        entry.load()


def method_names(pattern: str = "*") -> list[str]:
    """Names of all methods that match a wildcard pattern, sorted."""
    _load()
    return sorted(fnmatch.filter(_METHODS, pattern))


def get_method(name: str) -> type[Method]:
    """The class registered under `name`.

    Raises:
        ValueError: Unknown name; the message suggests the nearest ones.
    """
    _load()
    if name in _METHODS:
        return _METHODS[name]
    near = difflib.get_close_matches(str(name), _METHODS, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
    raise ValueError(f"unknown method {name!r}.{hint} Known methods: {', '.join(method_names())}.")


def build_method(name: str, parameters: dict[str, Any]) -> Method:
    """Make a method from its name and parameters.

    Raises:
        ValueError: Unknown name or parameter, or a value out of range.
        TypeError: A value of the wrong type.
    """
    cls = get_method(name)
    fields = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in parameters:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            known = ", ".join(fields) or "none"
            raise ValueError(f"method {name!r} has no parameter {key!r}.{hint} Its parameters: {known}.")
    return cls(**parameters)
