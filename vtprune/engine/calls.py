"""Calls of modules."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

_SIGNATURES: dict[type, inspect.Signature] = {}


def call_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A module's call as keyword arguments."""
    if not args:
        return dict(kwargs)
    signature = _SIGNATURES.setdefault(type(module), inspect.signature(type(module).forward))
    names = list(signature.parameters)[1:]
    return {**dict(zip(names, args, strict=False)), **kwargs}
