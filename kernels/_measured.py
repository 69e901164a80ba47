"""Which attention forward is faster where: decided by measurement, in a table that `evals/gpu_bench.py` writes."""

from __future__ import annotations

import dataclasses
import functools
import json
from importlib import resources
from typing import Any, Literal

import torch

from vtprune.kernels._dispatch import VARIABLE, backend, forced_backend


@dataclasses.dataclass(frozen=True)
class Choice:
    """An attention forward, and why it is used.

    Attributes:
        forward: "sdpa", torch's own, or "triton", `flash_attention_with_scores`.
        why: In words.
    """

    forward: Literal["sdpa", "triton"]
    why: str


def attention_forward(device: str | torch.device | None = None) -> Choice:
    """Which forward `attn_implementation="vtprune"` uses for tensors on a device.

    The table `measured.json` says it for every GPU, by its name, that somebody has measured:
    {"NVIDIA H200": {"attention_forward": "sdpa" or "triton", ...}}. VTPRUNE_KERNELS=torch|triton forces one.

    Args:
        device: Where the tensors are; None: the current GPU if there is one, else the CPU.

    Raises:
        ValueError: VTPRUNE_KERNELS asks for what cannot run, or the table names an unknown forward.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "meta":
        return Choice("sdpa", "tensors without memory")
    forced = forced_backend()
    if forced is not None:
        return Choice("triton" if backend(device) == "triton" else "sdpa", f"{VARIABLE}={forced}")
    if device.type != "cuda":
        return Choice("sdpa", "not on a CUDA GPU")
    if backend(device) != "triton":
        return Choice("sdpa", "triton is not installed")
    return measured(torch.cuda.get_device_name(device))


def measured(name: str) -> Choice:
    """What the table says about a GPU.

    Raises:
        ValueError: It names an unknown forward.
    """
    entry = _table().get(name)
    if entry is None:
        return Choice("sdpa", f"nobody has measured the kernels on {name}; run evals/gpu_bench.py")
    forward = entry["attention_forward"]
    if forward not in ("sdpa", "triton"):
        raise ValueError(f"attention_forward of {name} in measured.json must be 'sdpa' or 'triton', got {forward!r}.")
    return Choice(forward, f"measured to be faster on {name}")


@functools.cache
def _table() -> dict[str, dict[str, Any]]:
    return json.loads((resources.files("vtprune.kernels") / "measured.json").read_text())
