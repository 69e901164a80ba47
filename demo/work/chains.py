"""Chains of methods as a visitor puts them together: read from text, checked, changed, written. No Gradio here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vtprune.budget import Budget
from vtprune.demo.work.catalogue import catalogue
from vtprune.demo.work.parameters import Parameter, parameters, same
from vtprune.methods.parse import parse_method, split_methods, write_method
from vtprune.methods.registry import build_method, get_method

LONGEST = 2000
LARGEST = 1_000_000
LEAST = 0.01

Chain = list[tuple[str, dict[str, Any]]]
"""Names of methods, and those of their parameters that are given."""


def parse_chain(written: str) -> Chain:
    """A chain from text of the command line; values of parameters are not looked at.

    Raises:
        ValueError: No method, or an unknown or malformed one.
    """
    if not written.strip():
        raise ValueError("method must name at least one method (divprune, say).")
    if len(written) > LONGEST:
        raise ValueError(f"method must have at most {LONGEST} letters, got {len(written)}.")
    chain = [parse_method(one) for one in split_methods(written)]
    for name, _ in chain:
        get_method(name)
    return chain


def read_chain(written: str) -> Chain:
    """A chain from text of the command line, checked as far as that can be done without a model.

    Files are not read for a visitor: a parameter that would take the name of one must be given as numbers. Nor is work
    without end done: numbers have a limit.

    Raises:
        ValueError: No method, an unknown or malformed one, or a parameter out of range.
        TypeError: The value of a parameter is of the wrong type.
    """
    chain = parse_chain(written)
    for name, given in chain:
        known = parameters(name)
        for key, value in given.items():
            if key in known:
                _check_value(known[key], value)
            elif key in catalogue()[name]["parameters"]:
                raise ValueError(f"{key} of {name} can be given in Python only.")
        build_method(name, given)
    return chain


def write_chain(chain: Chain) -> str:
    """A chain as text of the command line, which `read_chain` reads as the same; parameters in the method's order."""
    return "+".join(
        write_method(name, {key: given[key] for key in catalogue()[name]["parameters"] if key in given})
        for name, given in chain
    )


def problem(written: str) -> str:
    """What is wrong with a chain as written, for a visitor to read; nothing if it is well."""
    try:
        read_chain(written)
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def choose(chain: Chain, names: Sequence[str], keep: Budget) -> Chain:
    """A chain of other methods: those that stay keep their parameters, further ones come behind them.

    Args:
        chain: What was chosen before.
        names: What is chosen now.
        keep: The budget of the one method that takes one, if it has none yet.
    """
    stay = [(name, given) for name, given in chain if name in names]
    known = {name for name, _ in stay}
    chosen: Chain = [*stay, *((name, {}) for name in names if name not in known)]
    takers = _takers(chosen)
    if len(takers) == 1 and "keep" not in chosen[takers[0]][1]:
        return set_budget(chosen, takers[0], keep)
    return chosen


def set_values(chain: Chain, values: Mapping[tuple[int, str], Any]) -> Chain:
    """A chain whose parameters have these values; those at their default are left out.

    Args:
        chain: Of methods.
        values: By the place of the method in the chain and the name of the parameter.
    """
    changed: Chain = []
    for place, (name, given) in enumerate(chain):
        merged = {**given, **{key: value for (at, key), value in values.items() if at == place}}
        known = parameters(name)
        changed.append((name, {k: v for k, v in merged.items() if k not in known or not same(v, known[k].default)}))
    return changed


def set_budget(chain: Chain, place: int, keep: Budget) -> Chain:
    """A chain in which the method at a place has this budget, written down even where it is the default."""
    return [(name, {**given, "keep": keep} if at == place else given) for at, (name, given) in enumerate(chain)]


@dataclasses.dataclass(frozen=True)
class Shown:
    """The budget of a chain, as the control above the parameters shows it.

    Args:
        place: Which method of the chain it is the budget of; None if that control has nothing to say.
        keep: A share of the tokens, or a number of them; None likewise.
        note: Why not; empty if it has.
    """

    place: int | None
    keep: Budget | None
    note: str


def budget(chain: Chain) -> Shown:
    """What the control for the budget shows for a chain."""
    takers = _takers(chain)
    names = " and ".join(name for name, _ in chain)
    if not takers:
        several = len(chain) > 1
        return Shown(None, None, f"{names} take{'' if several else 's'} no budget.")
    if len(takers) > 1:
        return Shown(None, None, "Each of several methods has a budget of its own, among its parameters.")
    name, given = chain[takers[0]]
    keep = given.get("keep", parameters(name)["keep"].default)
    if isinstance(keep, int) or (isinstance(keep, float) and keep >= LEAST):
        return Shown(takers[0], keep, "")
    return Shown(None, None, "The budget is as written below.")


def _takers(chain: Chain) -> list[int]:
    return [place for place, (name, _) in enumerate(chain) if "keep" in parameters(name)]


def _check_value(parameter: Parameter, value: Any) -> None:
    if parameter.files and isinstance(value, str):
        raise ValueError(f"{parameter.name} must be given as numbers, got {value!r}; the demo reads no files by name.")
    if isinstance(value, list | tuple):
        for item in value:
            _check_value(parameter, item)
    elif isinstance(value, int | float) and abs(value) > LARGEST:
        raise ValueError(f"{parameter.name} must be at most {LARGEST} in the demo, got {value!r}.")
