"""Which version of an operator runs: the torch reference or the Triton kernel."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["torch", "triton"]
VARIABLE = "VTPRUNE_KERNELS"

logger = logging.getLogger("vtprune.kernels")


def backend(device: str | torch.device | None = None) -> Backend:
    """Which version of the operators runs for tensors on a device.

    Triton kernels on GPUs, vectorised torch elsewhere. The environment variable VTPRUNE_KERNELS, "torch" or "triton",
    forces one of them. On the CPU, Triton kernels run in Triton's interpreter only, for tests: TRITON_INTERPRET=1.

    Args:
        device: Where the tensors are; None: the current GPU if there is one, else the CPU.

    Raises:
        ValueError: VTPRUNE_KERNELS says something else, or asks for Triton where it cannot run.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = torch.device(device).type
    forced = forced_backend()
    if forced != "triton":
        return forced or ("triton" if kind == "cuda" and _triton_installed() else "torch")
    if not _triton_installed():
        raise ValueError(f"{VARIABLE}=triton, but triton is not installed; install it, or set {VARIABLE}=torch.")
    if kind == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"{VARIABLE}=triton, but the tensors are on the CPU, where Triton kernels run in the interpreter only: "
            f"start Python with TRITON_INTERPRET=1 (slow, for tests), or leave {VARIABLE} unset."
        )
    return "triton"


def forced_backend() -> Backend | None:
    """What VTPRUNE_KERNELS asks for; None if it is unset, empty or "auto".

    Raises:
        ValueError: It holds anything else.
    """
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value in ("", "auto"):
        return None
    if value not in ("torch", "triton"):
        raise ValueError(f"{VARIABLE} must be 'torch', 'triton' or 'auto', got {value!r}.")
    return value  # type: ignore[return-value]


def runs_on_triton(operator: str, unsupported: str | None, *tensors: Tensor | None) -> bool:
    """Whether a call runs on Triton.

    Args:
        operator: Its name, for messages.
        unsupported: Why the Triton kernel cannot take this call, as in "head_dim must be at most 256, got 320"; None if
            it can. The torch reference then takes it, which is noted once in the log.
        tensors: The call's tensors; the first one says where it runs.

    Raises:
        ValueError: VTPRUNE_KERNELS=triton, and the kernel cannot take the call.
    """
    given = [t for t in tensors if t is not None]
    device = given[0].device
    if device.type == "meta":
        return False
    for other in given:
        if other.device != device:
            raise ValueError(f"{operator} needs all tensors on one device, got {device} and {other.device}.")
    if backend(device) == "torch":
        return False
    if unsupported is None:
        return True
    if forced_backend() == "triton":
        raise ValueError(f"the Triton kernel of {operator} cannot take this call: {unsupported}; unset {VARIABLE}.")
    _note(operator, unsupported)
    return False


@functools.cache
def _note(operator: str, reason: str) -> None:
    logger.warning("%s runs on its torch reference: %s.", operator, reason)


@functools.cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
