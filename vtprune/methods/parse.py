"""Methods as text: `divprune`, `fastv:layer=2,keep=0.5`, `pyramiddrop:layers=[8,16,24]`, `tome+fastv:layer=2`.

Read and written: what `write_method` writes, `parse_method` reads as the same.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

_WORDS: dict[str, Any] = {
    "true": True,
    "false": False,
    "none": None,
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
}
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
_PLAIN = re.compile(r"[\w./\\~:-]+")
_NEXT_METHOD = re.compile(r"\+\s*[^\W\d]\w*\s*(?:[:+]|$)")


def parse_value(text: str) -> Any:
    """A parameter's value: a number, True/False/None in any case, a list or tuple of such, else the text itself."""
    text = text.strip()
    word = text.lower()
    if word in _WORDS:
        return _WORDS[word]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def parse_parameter(text: str) -> tuple[str, Any]:
    """One `param=value`.

    Raises:
        ValueError: No `=`, no name before it, or nothing behind it.
    """
    name, equals, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not equals or not name or not value:
        raise ValueError(f"a parameter is written name=value (layer=2, say), got {text.strip()!r}.")
    if not name.isidentifier():
        raise ValueError(f"a parameter's name is one word of letters, digits and underscores, got {name!r}.")
    return name, parse_value(value)


def split_methods(text: str) -> list[str]:
    """The methods of a chain written as one: `tome+fastv:layer=2,keep=0.5+snapkv` are three.

    A plus sign begins a method if one word follows it, and then a colon, another plus sign or the end; so `1e+5`, `+3`
    and `a+b.json` are values. Those inside brackets and quotes always belong to the value.

    Raises:
        ValueError: A method is missing beside a plus sign, or an unclosed bracket or quote.
    """
    parts = [part.strip() for part in _split(text, lambda at: _NEXT_METHOD.match(text, at) is not None)]
    if len(parts) > 1 and not all(parts):
        raise ValueError(f"a method is missing beside a plus sign of {text!r}.")
    return parts


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """A method's name and parameters from `name` or `name:param=value,param=value`; `;` does as well as `,`.

    Commas and semicolons inside brackets and quotes belong to the value.

    Raises:
        ValueError: No name, a malformed or repeated parameter, or an unclosed bracket or quote.
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not name:
        raise ValueError(f"a method is written name or name:param=value,..., got {text!r}.")
    if set(name) & set("=,;"):
        raise ValueError(f"a method's name and its parameters are separated by a colon (fastv:layer=2), got {text!r}.")
    parameters: dict[str, Any] = {}
    if colon and not rest.strip():
        raise ValueError(f"parameters are missing after the colon of {text!r}.")
    for part in _split(rest, lambda at: rest[at] in ",;") if colon else ():
        key, value = parse_parameter(part)
        if key in parameters:
            raise ValueError(f"parameter {key!r} is given twice in {text!r}.")
        parameters[key] = value
    return name, parameters


def write_value(value: Any) -> str:
    """A parameter's value as text that `parse_value` reads as the same value.

    Args:
        value: A number, True, False, None, a text, or a list or tuple of such.

    Raises:
        TypeError: It is something else.
        ValueError: It is a list or tuple with nan in it, which there is no way to write.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    if isinstance(value, str) and _PLAIN.fullmatch(value) and parse_value(value) == value:
        return value
    return _literal(value)


def write_method(name: str, parameters: Mapping[str, Any]) -> str:
    """A method as text, which `parse_method` reads as this name and these parameters.

    Raises:
        TypeError: The value of a parameter cannot be written; see `write_value`.
        ValueError: Likewise.
    """
    return f"{name}:{','.join(f'{key}={write_value(x)}' for key, x in parameters.items())}" if parameters else name


def _literal(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float) and not math.isnan(value):
        return float.__repr__(value) if math.isfinite(value) else f"{'-' * (value < 0)}1e999"
    if isinstance(value, str):
        return repr(value).replace("\\'", "\\x27")  # a quote inside quotes would end them
    if isinstance(value, list | tuple):
        items = ",".join(map(_literal, value))
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
    if isinstance(value, float):
        raise ValueError("nan cannot be written inside a list or tuple.")
    raise TypeError(f"a number, True, False, None, a text, or a list or tuple of such can be written, got {value!r}.")


def _split(text: str, separates: Callable[[int], bool]) -> list[str]:
    """Split at the characters outside brackets and quotes at whose places `separates` says so."""
    parts, start = [], 0
    closing: list[str] = []
    quote = ""
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in _BRACKETS:
            closing.append(_BRACKETS[char])
        elif closing and char == closing[-1]:
            closing.pop()
        elif not closing and separates(at):
            parts.append(text[start:at])
            start = at + 1
    if quote or closing:
        raise ValueError(f"{(quote or closing[-1])!r} is missing in {text!r}.")
    return [*parts, text[start:]]
