"""Hooks that are put on together and taken off together, by a `with` block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import nn


class Hooks:
    """Collects hooks; `with` puts nothing on, and takes everything off."""

    def __init__(self) -> None:
        self.handles: list[Any] = []
        self.replaced: list[tuple[Any, str, Any]] = []

    def before(self, module: nn.Module, hook: Callable[..., Any], first: bool = False) -> Any:
        """Call `hook(module, args, kwargs)` before a module runs; `first` of all its hooks, or last."""
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=first))
        return self.handles[-1]

    def after(self, module: nn.Module, hook: Callable[..., Any], first: bool = False) -> Any:
        """Call `hook(module, args, kwargs, output)` after a module ran; `first` of all its hooks, or last."""
        self.handles.append(module.register_forward_hook(hook, with_kwargs=True, prepend=first))
        return self.handles[-1]

    def replace(self, module: Any, name: str, wrap: Callable[[Any], Any]) -> None:
        """Put `wrap(method)` in the place of a method, on this instance only."""
        self.replaced.append((module, name, module.__dict__.get(name)))
        setattr(module, name, wrap(getattr(module, name)))

    def remove(self) -> None:
        """Take everything off, last first."""
        while self.handles:
            self.handles.pop().remove()
        while self.replaced:
            module, name, earlier = self.replaced.pop()
            delattr(module, name)
            if earlier is not None:
                setattr(module, name, earlier)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()
