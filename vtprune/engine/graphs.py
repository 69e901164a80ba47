"""Keeps hooks out of compiled graphs: torch.compile breaks its graph there and runs them as they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch


class OutsideGraphs:
    """A hook that is never traced: traced into a graph, what it keeps per thread would silently be lost."""

    def __init__(self, hook: Callable[..., Any]) -> None:
        self.hook = hook
        self.disabled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # importing the compiler takes seconds; nobody has asked for it
            return self.hook(*args, **kwargs)
        if self.disabled is None:
            self.disabled = torch.compiler.disable(self.hook)
        return self.disabled(*args, **kwargs)

    __call__._torchdynamo_disable = True  # type: ignore[attr-defined]

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        # A copied hook would go on serving the model that it was made for.
        raise TypeError("a model with vtprune methods cannot be copied: call vtprune.remove(model) first.")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a model with vtprune methods cannot be pickled: call vtprune.remove(model) first, or use save_pretrained."
        )
