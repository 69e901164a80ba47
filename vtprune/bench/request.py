"""The inputs of a request: several times over, and told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch


def repeat_inputs(inputs: Any, times: int) -> dict[str, Any]:
    """A batch that holds the same prompt several times, with its pictures and videos.

    In all supported families everything that a processor makes is joined along the first axis.

    Raises:
        ValueError: `times` is less than 1.
    """
    if times < 1:
        raise ValueError(f"batch size must be at least 1, got {times}.")
    return {k: torch.cat([v] * times) if isinstance(v, torch.Tensor) else v for k, v in dict(inputs).items()}


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """A short hash of the model's inputs: two runs with the same one asked the same about the same pictures."""
    digest = hashlib.sha256()
    for name in sorted(inputs):
        value = inputs[name]
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()[:12]
