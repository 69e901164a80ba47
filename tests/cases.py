"""Every registered method with parameters that fit the tiny models, and the pairs of methods and families to test.

A new method is tested without further work. What each test runs over is one of these lists, of (family, method):

- `everywhere()`: every method on every family that it works on. The main equivalences run over it: keeping everything
  changes nothing, pruning equals the bare model with the same decisions, a padded batch equals its rows, decoding
  equals recomputing, turns equal the whole conversation, `remove` undoes `apply`.
- `paths_everywhere(way)`: one method of every path through the engine (`path`) on every family, and all that is in
- `methods_twice(way)`: every method on one family of pictures and on one that takes videos too.

The last two are for all further ways of running a model. What these find there (a mask, a cache, rows in another order,
another type, another thread) is what a decision has left behind; how it came about, the signals and the method's
arithmetic, lies behind and has been tested everywhere. So methods whose decisions are of one kind and are carried out
by the same code stand for one another. Which of them meets which family turns from way to way, always in the same
manner, so that over all ways pairs of methods and families go on being tried.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import zlib
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any

import pytest

from tests.families import FAMILIES, IMAGE, VIDEO
from tests.methods.inputs import router_file
from vtprune.integrations import FAMILIES as INTEGRATIONS
from vtprune.methods import ModelInfo, build_method, get_method, method_names
from vtprune.methods.base import Stage

SPECIAL = {
    "dymu": {"thresholds": 0.3},
    "dyvte": {"routers": router_file(layers=5, width=48)},
    "exit": {"layer": 3},
    "fastv": {"layer": 2, "keep": 0.3},
    "holitom": {"keep": 0.3, "tau": 0.0},  # random frames are not alike
    "mustdrop": {"keep": 0.3, "window": 2},  # frames of 2 x 2 tokens
    "patience": {"patience": 1, "first": 1, "last": 3},
    "pitome": {"keep": 0.5},
    "showui": {"keep": 0.3, "threshold": 70.0},  # random pixels are nowhere equal
    "sparsevlm": {"keep": 0.3, "recycle": 0.0},  # the bare model drops, it does not merge; see test_sparsevlm.py
    "tinychart": {"keep": 0.5},
    "tome": {"keep": 0.5},
    "turbo": {"keep": 0.5},
    "yopo": {"window": 3, "mlp": 2},
}
LEAVING = {"dymu": {"unmerge": False}}  # what else it takes for tokens to leave, so that position rules matter

Case = tuple[str, dict[str, Any]]
"""A method: name and parameters."""
Pair = tuple[str, Case]
"""A family in `tests.families` and a method."""


def parameters(name: str) -> dict[str, Any]:
    """Parameters that make a method act on the tiny models."""
    keeps = any(f.name == "keep" for f in dataclasses.fields(get_method(name)))  # type: ignore[arg-type]
    return SPECIAL.get(name, {"keep": 0.3} if keeps else {})


METHODS = {name: parameters(name) for name in method_names()}

# Of a stage, what decides which code of the engine carries its decisions out.
CARRIED_OUT = (
    *("proportional", "after_block", "prunes", "ragged", "mixes", "needs_grid", "over_time", "shares", "skips"),
    *("text", "decodes", "turns", "alike", "late", "hides", "trial"),
)
# What a decision is made of or when, numbers, and rules that are checked when methods are applied.
DECIDED_BY = ("decide", "layers", "signals", "scope", "budget", "observations", "every", "positions", "needs_all")
PLAIN = ModelInfo("llava", 4, 5, True, 36, attention_blocks=(0, 1, 2), scored_block=2, encoder_heads=4)
MODELS = (PLAIN, dataclasses.replace(PLAIN, any_size=True, encoder_stages=False))
"""Some methods act elsewhere where the encoder takes pictures of any size."""


@functools.cache
def path(name: str) -> frozenset[tuple[Any, ...]]:
    """How a method's decisions go through the engine: by stage the place, the kinds of decisions, and `CARRIED_OUT`."""
    method = build_method(name, METHODS[name])
    return frozenset(_path_of(stage) for model in MODELS for stage in method.stages(model))


def _path_of(stage: Stage) -> tuple[Any, ...]:
    kinds = inspect.signature(stage.decide).return_annotation.split(" | ")
    flags = {x for x in CARRIED_OUT if getattr(stage, x) not in (False, None, ())}
    return stage.place, frozenset(kinds) - {"None"}, frozenset(flags)


@functools.cache
def paths() -> list[list[str]]:
    """All methods, by path."""
    found: dict[frozenset[tuple[Any, ...]], list[str]] = {}
    for name in METHODS:
        found.setdefault(path(name), []).append(name)
    return list(found.values())


@functools.cache
def _tried() -> Any:
    return json.loads((resources.files("vtprune") / "support.json").read_text())


def works(name: str, family: str) -> bool:
    """Whether a method works on a family, as `tests/engine/test_support.py` has tried."""
    tried = _tried()[family.split("-")[0]][name]
    return "yes" in (tried[IMAGE], tried[VIDEO])


def everywhere() -> list[Pair]:
    """Every method on every family that it works on."""
    return [(family, (name, METHODS[name])) for family in FAMILIES for name in METHODS if works(name, family)]


def paths_everywhere(way: str, families: Iterable[str] = FAMILIES) -> list[Pair]:
    """One method of every path on every family; for a way of running, whose name says where the turning begins."""
    found, begin = [], zlib.crc32(way.encode())
    for j, family in enumerate(families):
        for i, methods in enumerate(paths()):
            able = [name for name in methods if works(name, family)]
            if able:
                found.append((family, able[(begin + i + j) % len(able)]))
    found += [(family, name) for family, (name, _) in methods_twice(way, families)]
    return [(family, (name, METHODS[name])) for family, name in sorted(set(found), key=_order)]


def methods_twice(way: str, families: Iterable[str] = FAMILIES) -> list[Pair]:
    """Every method on one family of pictures and one that takes videos too, as far as there are such."""
    found, begin = [], zlib.crc32(way.encode())
    for k, name in enumerate(METHODS):
        for videos in (False, True):
            able = [x for x in families if (VIDEO in FAMILIES[x].kinds) is videos and works(name, x)]
            if able:
                found.append((able[(begin + k) % len(able)], (name, METHODS[name])))
    return sorted(found, key=lambda pair: _order((pair[0], pair[1][0])))


def _order(pair: tuple[str, str]) -> tuple[int, str]:
    return list(FAMILIES).index(pair[0]), pair[1]


def position_rule(family: str, case: Case) -> str | None:
    """By which rule positions are to be set on a family: "original" or "compact"; None where no token leaves."""
    name, given = case
    if not hasattr(get_method(name)(), "positions"):
        return None
    integration = next(x for x in INTEGRATIONS if x.family == family.split("-")[0])
    model = dataclasses.replace(PLAIN, position_axes=integration.position_axes, any_size=integration.any_size)
    (rule,) = {stage.positions for stage in build_method(name, {**METHODS[name], **given}).stages(model)}
    return integration.auto_positions if rule == "auto" else rule


def other_rules() -> list[Pair]:
    """One method of every path on every family, with the position rule that it does not come with there."""
    found = []
    for family, (name, given) in paths_everywhere("position rules"):
        own = position_rule(family, (name, given))
        if own is not None:
            other = "original" if own == "compact" else "compact"
            found.append((family, (name, {**given, **LEAVING.get(name, {}), "positions": other})))
    return found


EAGER = ("llava-clip", "llava-siglip", "qwen2_5_vl")
"""Families whose models are also tested with transformers' own attention."""


def over(pairs: Iterable[Pair], eager: Iterable[Pair] = ()) -> Callable[[Any], Any]:
    """Run a test of `tests/engine` over pairs, with torch's attention and some with transformers' own."""
    found = [((family, "sdpa"), case) for family, case in pairs] + [((family, "eager"), case) for family, case in eager]
    ids = ["-".join((*kind, name, given.get("positions", ""))).rstrip("-") for kind, (name, given) in found]
    return pytest.mark.parametrize(("kind", "method"), found, ids=ids, indirect=True)
