"""Models on several devices: what belongs to a call goes where its hidden states go.

accelerate moves a module's inputs inside its forward, behind the hooks that are put on it. So what a hook is given may
still be where the module before it ran.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn


def at_module(module: nn.Module, x: Tensor) -> Tensor:
    """A module's input where the module runs; itself where accelerate has no say."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", (hook,)):
        if (device := getattr(one, "execution_device", None)) is not None:
            return x.to(device)
    return x


def moved(x: Any, device: torch.device) -> Any:
    """Tensors, and containers and dataclasses of them, on a device; what is there already is not copied."""
    if isinstance(x, Tensor):
        return x.to(device)
    if isinstance(x, dict):
        return {k: moved(v, device) for k, v in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(moved(v, device) for v in x))
    if isinstance(x, list | tuple):
        return type(x)(moved(v, device) for v in x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        return dataclasses.replace(x, **{f.name: moved(getattr(x, f.name), device) for f in dataclasses.fields(x)})
    return x
