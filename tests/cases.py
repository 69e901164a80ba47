"""Every registered method, with parameters that fit the tiny models. A new method is tested without further work."""

from __future__ import annotations

import dataclasses

from tests.methods.inputs import router_file
from vtprune.methods import get_method, method_names

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


def cases() -> list[tuple[str, dict]]:
    """(name, parameters) of every method, and of both position rules where a method offers them."""
    found = []
    for name in method_names():
        fields = {f.name for f in dataclasses.fields(get_method(name))}
        parameters = SPECIAL.get(name, {"keep": 0.3} if "keep" in fields else {})
        found.append((name, parameters))
        if "positions" in fields:
            default = get_method(name)().positions
            for other in {"auto": ("original", "compact"), "original": ("compact",), "compact": ("original",)}[default]:
                found.append((name, {**parameters, **LEAVING.get(name, {}), "positions": other}))
    return found


CASES = cases()
IDS = [f"{name}{'-' + p['positions'] if 'positions' in p else ''}" for name, p in CASES]
