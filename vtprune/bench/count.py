"""What a request costs, counted and not timed: FLOPs, operators, waits for the device, memory, key-value bytes."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import vtprune
from vtprune import integrations, kernels
from vtprune.bench.clock import Phases
from vtprune.bench.generate import Requested, generate
from vtprune.bench.hooks import Hooks
from vtprune.engine.cache import held_bytes
from vtprune.integrations import integrate

# Operators whose result, or its size, the host must wait for on a GPU.
WAITS = frozenset(
    {
        "_local_scalar_dense",  # item(), bool(), int(), float()
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "equal",
        "bincount",
        "repeat_interleave.Tensor",
    }
)
BY_MASK = frozenset({"index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"})
TO_HOST = frozenset({"tolist", "numpy", "cpu"})
HERE = Path(__file__).parent
ROOTS = frozenset(Path(str(x.__file__)).parent for x in (vtprune, kernels, integrations))


@dataclasses.dataclass(frozen=True)
class Calls:
    """Operators that were dispatched, and at how many of them a GPU's host would wait."""

    operators: int
    waits: int


@dataclasses.dataclass(frozen=True)
class Counts:
    """What one arm costs.

    Args:
        flops: Executed, by phase ("encoder", "tower", "projector", "prefill"): matrix products, convolutions and
            attention, as torch's counter sees them; kernels of Triton are not seen.
        calls: Operators and waits of the encoder, the prefill, one step of decoding and the whole request.
        sites: Where in vtprune the prefill and the encoder wait, with how often.
        peak_bytes: Most memory in use at once, beyond what was in use before.
        kv_bytes: Held by the cache after the prefill.
    """

    flops: dict[str, int]
    calls: dict[str, Calls]
    sites: dict[str, int]
    peak_bytes: int
    kv_bytes: int


class _Operators(TorchDispatchMode):
    """Counts operators below autograd, and those that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.waits = 0
        self.sites: Counter[str] = Counter()

    def now(self) -> Calls:
        return Calls(self.operators, self.waits)

    def wait(self) -> None:
        self.waits += 1
        self.sites[_site()] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.operators += 1
        by_mask = name in BY_MASK and any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
        if by_mask or name in WAITS or f"{name}.{func._overloadname}" in WAITS:
            self.wait()
        return func(*args, **(kwargs or {}))


class _ToHost(TorchFunctionMode):
    """Counts what brings tensors to the host; of a tensor on the CPU no operator would tell."""

    def __init__(self, operators: _Operators) -> None:
        super().__init__()
        self.operators = operators

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in TO_HOST and isinstance(args[0], torch.Tensor):
            self.operators.wait()
        return func(*args, **(kwargs or {}))


def _site() -> str:
    """The innermost line of vtprune below this folder's own calls; "elsewhere" if there is none."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if HERE in file.parents and file.name != Path(__file__).name:
            break  # whoever asked for the request
        if HERE not in file.parents and not ROOTS.isdisjoint(file.parents):
            return f"{file.parent.name}/{file.name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


def count_request(model: Any, request: Requested, *, arm: Any) -> Counts:
    """Run a request a few times and count.

    Args:
        model: The model.
        request: At least two new tokens are decoded, whatever it asks for.
        arm: Makes a fresh context manager under which the model is what is to be counted; entered for each run.
    """
    with arm():
        flops, held = _flops(model, request)
    with arm():
        calls, sites = _calls(model, request)
    with arm():
        peak = _peak(model, request)
    return Counts(flops, calls, sites, peak, held)


def _attention_flops(query: Any, key: Any, value: Any, *more: Any, **named: Any) -> int:
    """From shapes; older versions of torch count attention on GPUs only."""
    batch, heads, rows, dim = query
    return 2 * batch * heads * rows * key[2] * (dim + value[3])


def _flops(model: Any, request: Requested) -> tuple[dict[str, int], int]:
    """By phase, and the bytes that the cache holds afterwards."""
    held = 0

    def see(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal held
        held, _ = held_bytes(output.past_key_values)

    on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    known = {} if on_cpu in flop_registry else {on_cpu: _attention_flops}
    with FlopCounterMode(display=False, custom_mapping=known) as counter, Hooks() as hooks:
        hooks.after(integrate(model).language_model, see)
        with Phases(model, counter.get_total_flops) as phases:
            generate(model, Requested(request.inputs))
    flops = {name: sum(stop - start for start, stop in spans) for name, spans in phases.spans.items() if spans}
    return flops, held


def _calls(model: Any, request: Requested) -> tuple[dict[str, Calls], dict[str, int]]:
    operators = _Operators()
    wanted = max(request.new_tokens, 3)
    # Tensors of the caller's loop (masks, chosen tokens) are counted in "request" only.
    with _ToHost(operators), operators, Phases(model, operators.now) as phases:
        generate(model, Requested(request.inputs, wanted))
    found = {
        name: Calls(
            sum(stop.operators - start.operators for start, stop in spans),
            sum(stop.waits - start.waits for start, stop in spans),
        )
        for name, spans in phases.spans.items()
        if spans
    }
    later = phases.steps[1:]
    steps = len(later) - 1
    found["decode"] = Calls(
        round((later[-1].operators - later[0].operators) / steps), round((later[-1].waits - later[0].waits) / steps)
    )
    return found, dict(operators.sites)


def _peak(model: Any, request: Requested) -> int:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
        before = torch.cuda.memory_allocated(model.device)
        torch.cuda.reset_peak_memory_stats(model.device)
        generate(model, Requested(request.inputs))
        torch.cuda.synchronize(model.device)
        return torch.cuda.max_memory_allocated(model.device) - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        generate(model, Requested(request.inputs))
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
