"""What a user calls: apply, applied, remove, report, methods."""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any

from torch import nn

from vtprune.budget import Budget
from vtprune.describe import facts
from vtprune.engine.chain import Chain
from vtprune.engine.engine import Engine
from vtprune.integrations import FAMILIES, integrate
from vtprune.methods.base import Method
from vtprune.methods.parse import parse_method, split_methods
from vtprune.methods.registry import build_method, get_method, method_names
from vtprune.report import Report

MethodLike = str | Method | tuple[str, Mapping[str, Any]]

_engines: weakref.WeakKeyDictionary[nn.Module, Engine] = weakref.WeakKeyDictionary()


def apply(model: Any, method: MethodLike | Sequence[MethodLike], keep: Budget | None = None, **parameters: Any) -> Any:
    """Make a vision-language model spend fewer visual tokens, in place.

    Calls of the model stay as they are. Applying again replaces what was applied before; methods that are to work
    together go into one call.

    Args:
        model: A transformers model of a supported family, wrapped (peft, torch.compile) or not.
        method: A name ("divprune"), a name with parameters ("fastv:layer=2,keep=0.5", also with semicolons, or
            ("fastv", {"keep": 0.5})), a `Method`, or a list of these: a chain, in the order of their places. A chain
            of names may also be one text: "tome+fastv:layer=2+snapkv".
        keep: The budget, a ratio in (0, 1] or a number of tokens per picture. In a chain it goes to the one method
            that takes a budget and was given none.
        **parameters: Further parameters, where there is a single method.

    Returns:
        The model.

    Raises:
        ValueError: Unknown method or parameter, value out of range, model or chain not supported.
        TypeError: A value of the wrong type. After an error the model is as it was.
    """
    integration = integrate(model)
    chain = Chain(build_chain(method, keep, parameters), integration)
    engine = Engine(integration, chain)
    previous = _engines.pop(integration.model, None)
    if previous is not None:
        previous.detach()
    try:
        engine.attach()
    except BaseException:
        if previous is not None:
            previous.attach()
            _engines[integration.model] = previous
        raise
    _engines[integration.model] = engine
    return model


def remove(model: Any) -> Any:
    """Take everything off the model that `apply` put on it; without effect if there is nothing. Returns the model."""
    engine = _engines.pop(integrate(model).model, None)
    if engine is not None:
        engine.detach()
    return model


@contextmanager
def applied(
    model: Any, method: MethodLike | Sequence[MethodLike], keep: Budget | None = None, **parameters: Any
) -> Iterator[Any]:
    """`apply` for the length of a `with` block; afterwards the model is as it was, with what was applied to it then."""
    inner = integrate(model).model
    previous = _engines.get(inner)
    apply(model, method, keep, **parameters)
    try:
        yield model
    finally:
        remove(model)
        if previous is not None:
            previous.attach()
            _engines[inner] = previous


def report(model: Any) -> Report | None:
    """What the last prefill with pictures saved: of this thread, else of any; None before the first one.

    Raises:
        ValueError: Nothing is applied to the model.
    """
    engine = _engines.get(integrate(model).model)
    if engine is None:
        raise ValueError("no method is applied to this model: call vtprune.apply(model, method, keep=...) first.")
    prefill = engine.local.prefill or engine.latest
    return None if prefill is None else prefill.report()


def methods(pattern: str = "*") -> list[dict[str, Any]]:
    """All methods whose name matches a wildcard pattern, with what there is to say about them.

    To what `vtprune.describe.facts` says come `families`, those on which a method works with pictures,
    `video_families`, those on which it works with videos, and `refuses`, why it does not work on others. That is known
    from tests for the methods that come with the package; a method from elsewhere is listed with all families, and is
    refused when it is applied.
    """
    tried: dict[str, Any] = json.loads((resources.files("vtprune") / "support.json").read_text())
    return [{**facts(get_method(name)), **_support(name, tried)} for name in method_names(pattern)]


def _support(name: str, tried: dict[str, Any]) -> dict[str, Any]:
    results = {family.family: tried.get(family.family, {}).get(name, {}) for family in FAMILIES}
    works = {kind: sorted(f for f, x in results.items() if x.get(kind, "yes") == "yes") for kind in ("image", "video")}
    takes_videos = {f for f in results if any(x["video"] == "yes" for x in tried.get(f, {}).values())}
    return {
        "families": works["image"],
        "video_families": [f for f in works["video"] if f in takes_videos],
        "refuses": {f: x["image"] for f, x in results.items() if x.get("image", "yes") != "yes"},
    }


def build_chain(
    method: MethodLike | Sequence[MethodLike], keep: Budget | None, parameters: Mapping[str, Any]
) -> list[Method]:
    """Methods from what a user wrote; see `apply`."""
    single = isinstance(method, str | Method) or (
        isinstance(method, tuple) and len(method) == 2 and isinstance(method[1], Mapping)
    )
    if not single and not isinstance(method, list | tuple):
        raise TypeError(
            f"method must be a name, a (name, parameters) pair, a Method or a list of these, got {method!r}."
        )
    items: list[Any] = [method] if single else list(method)  # type: ignore[arg-type]
    written = [one for item in items for one in (split_methods(item) if isinstance(item, str) else [item])]
    if not written:
        raise ValueError("method must name at least one method, got an empty list.")
    if parameters and len(written) > 1:
        raise ValueError(
            f"parameters {sorted(parameters)} cannot be given to a chain of {len(written)} methods; "
            "write them with their method, as in ('fastv', {'layer': 2})."
        )
    parts: list[Method | tuple[str, dict[str, Any]]] = [_part(item) for item in written]
    if len(parts) == 1 and parameters:
        if isinstance(parts[0], Method):
            raise ValueError(f"parameters {sorted(parameters)} cannot be added to a ready-made {parts[0].name!r}.")
        parts[0] = (parts[0][0], {**parts[0][1], **parameters})
    if keep is not None:
        takers = [p for p in parts if not isinstance(p, Method) and "keep" not in p[1] and _takes_keep(p[0])]
        if len(takers) != 1:
            names = [p.name if isinstance(p, Method) else p[0] for p in parts]
            why = "none of them is without a budget that it takes" if not takers else "several take it"
            raise ValueError(f"keep={keep!r} is for one method, but of {names} {why}; write it with its method.")
        takers[0][1]["keep"] = keep
    return [p if isinstance(p, Method) else build_method(*p) for p in parts]


def open_budgets(method: str) -> int:
    """How many methods of a chain, written as one text, take a budget and were written without one.

    Raises:
        ValueError: A method is unknown or malformed.
    """
    parts = [parse_method(one) for one in split_methods(method)]
    return sum("keep" not in parameters and _takes_keep(name) for name, parameters in parts)


def _part(item: Any) -> Method | tuple[str, dict[str, Any]]:
    if isinstance(item, Method):
        return item
    if isinstance(item, str):
        name, inline = parse_method(item)
        get_method(name)
        return name, dict(inline)
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Mapping):
        get_method(item[0])
        return item[0], dict(item[1])
    raise TypeError(f"a method is a name, a (name, parameters) pair or a Method, got {item!r}.")


def _takes_keep(name: str) -> bool:
    return any(f.name == "keep" for f in dataclasses.fields(get_method(name)))  # type: ignore[arg-type]
