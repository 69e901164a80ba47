"""The inputs of a request several times over: a batch."""

from __future__ import annotations

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
