"""Devices that are not there: tensors that say they are on one, and operators that refuse to mix them.

A tensor holds its numbers on the CPU, and reports, checks and hands on its device as torch does. accelerate can spread
a model over such devices, with the hooks that it has for GPUs. For machines without GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

KIND = "cuda"
aten = torch.ops.aten
CROSSING = {aten.copy_.default, aten._copy_from.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}


class Placed(Tensor):
    """A tensor on a device that is not there."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor, device: torch.device):
        x = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=device,
        )
        x.held = held
        return x

    def __repr__(self):
        return f"Placed({self.held!r}, {self.device})"

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Devices(TorchDispatchMode):
    """Makes tensors on these devices where they are asked for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Lists(TorchFunctionMode):
    """Lists of numbers that are on these devices are read where torch would ask a driver for them."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.tensor and not isinstance(args[0], Tensor):
            args = tree_map(lambda x: x.tolist() if isinstance(x, Placed) else x, args)
        return func(*args, **(kwargs or {}))


@contextmanager
def logical_devices() -> Iterator[None]:
    """A block in which there are `cuda:0`, `cuda:1` and so on."""
    torch._C._ensureCUDADeviceGuardSet()  # without a driver, as torch's own fake tensors do
    lifting = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=...) passes through the mode
    try:
        plain = mock.patch.dict(os.environ, VTPRUNE_KERNELS="torch")
        with mock.patch("torch.cuda._lazy_init"), plain, Devices(), Lists():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(lifting)


def run(func, args, kwargs):
    """What torch does on a device, done on the CPU."""
    if func is aten._fused_sdp_choice.default:
        return 0  # plain products
    wanted = kwargs.get("device")
    there = where(func, args, kwargs)
    if wanted is not None:
        there = torch.device(wanted)
        kwargs = {**kwargs, "device": torch.device("cpu") if there.type == KIND else there}
    given = {id(x.held): x for x in tree_leaves((args, kwargs)) if isinstance(x, Placed)}
    args, kwargs = tree_map(lambda x: x.held if isinstance(x, Placed) else x, (args, kwargs))
    out = func(*args, **kwargs)
    if there.type != KIND:
        return out

    def place(x):
        if not isinstance(x, Tensor):
            return x
        same = given.get(id(x))
        return Placed(x, there) if same is None else same

    return tree_map(place, out)


def where(func, args, kwargs) -> torch.device:
    """The device that an operator runs on."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if func in CROSSING:
        return args[0].device
    if func in INDEXING:  # lists may be on the CPU
        tensors = [
            args[0],
            *(x for x in tree_leaves((args[1:], kwargs)) if isinstance(x, Tensor) and x.device.type != "cpu"),
        ]
    devices = {x.device for x in tensors}
    if len(devices) > 1:  # numbers on the CPU go with everything
        devices = {x.device for x in tensors if x.ndim or x.device.type != "cpu"}
    if len(devices) > 1:
        raise RuntimeError(f"{func}: all tensors must be on one device, got {sorted(map(str, devices))}.")
    return devices.pop() if devices else torch.device("cpu")
