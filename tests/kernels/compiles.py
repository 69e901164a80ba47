"""Compiles Triton kernels for GPUs that need not be there: `python -m tests.kernels.compiles attention_scores`.

Launchers are called on tensors that have shapes and no memory, and Triton compiles what they launch, to a cubin, with
the assembler that it brings along. Each function below makes the calls of one operator: every arrangement of its
kernels, at the shapes where tiles are largest. To be run in a process without TRITON_INTERPRET, which would put
interpreted functions in the kernels' place.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

SHARED = {80: 163 * 1024, 90: 227 * 1024}  # shared memory that a block can have, in bytes
CALLS: dict[str, Callable[[], None]] = {}


def compiled(function: Callable[[], None]) -> Callable[[], None]:
    """Registers a function that calls the launcher of the operator after which it is named."""
    CALLS[function.__name__] = function
    return function


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")


@compiled
def attention_scores() -> None:
    from vtprune.kernels.attention_scores_triton import attention_scores_triton as scores

    for dtype, dim in ((torch.bfloat16, 80), (torch.bfloat16, 256), (torch.float32, 256)):
        q, k = empty(1, 28, 1, dim, dtype=dtype), empty(1, 4, 4096, dim, dtype=dtype)
        scores(q, k, key_valid=empty(1, 4096, dtype=torch.bool))
    q, k = empty(2, 8, 100, 128, dtype=torch.float16), empty(2, 2, 640, 128, dtype=torch.float16)
    positions, counted = empty(2, 100, dtype=torch.int64), empty(2, 100, dtype=torch.bool)
    for by_rows, by_heads in (("mean", "mean"), ("max", "mean"), (None, None)):
        scores(q, k, row_mask=counted, row_positions=positions, reduce_rows=by_rows, reduce_heads=by_heads)
    q, k, cu = empty(1, 8, 900, 80), empty(1, 2, 900, 80), empty(10, dtype=torch.int32)
    scores(q, k, cu_seqlens_q=cu, cu_seqlens_k=cu, causal=True, reduce_rows=None, reduce_heads="max")
    scores(q, k, mask=empty(1, 1, 900, 900, dtype=torch.bool), lse=empty(1, 8, 900, dtype=torch.float32))


@compiled
def attention_column_mass() -> None:
    from vtprune.kernels.attention_column_mass_triton import attention_column_mass_triton as mass

    for dtype, dim in ((torch.bfloat16, 80), (torch.bfloat16, 128), (torch.float16, 256), (torch.float32, 256)):
        q, k = empty(1, 28, 4096, dim, dtype=dtype), empty(1, 4, 4096, dim, dtype=dtype)
        mass(q, k, lse=empty(1, 28, 4096, dtype=torch.float32))
    counted = empty(1, 4096, dtype=torch.bool)
    mass(empty(1, 16, 4096, 128), empty(1, 4, 4096, 128), causal=True, key_valid=counted, row_mask=counted)
    mass(empty(1, 16, 4900, 80), empty(1, 16, 4900, 80), cu_seqlens=empty(10, dtype=torch.int32))


@compiled
def flash_attention_with_scores() -> None:
    from vtprune.kernels.flash_attention_with_scores_triton import flash_attention_triton as flash

    for dtype, dim in ((torch.bfloat16, 80), (torch.bfloat16, 128), (torch.float16, 256), (torch.float32, 256)):
        q, k = empty(1, 28, 4096, dim, dtype=dtype), empty(1, 4, 4096, dim, dtype=dtype)
        flash(q, k, k, causal=dim != 80)
    q, k = empty(1, 28, 1, 128), empty(1, 4, 4096, 128)
    flash(q, k, k, key_valid=empty(1, 4096, dtype=torch.bool))
    q = empty(1, 16, 4900, 80)
    flash(q, q, q, cu_seqlens=empty(10, dtype=torch.int32))


@compiled
def greedy_select() -> None:
    from vtprune.kernels.greedy_select_triton import greedy_select_triton as select

    for tokens, pictures in ((576, 16), (16384, 1)):
        features, scores = empty(pictures, tokens, 1024), empty(pictures, tokens, dtype=torch.float32)
        for rule, importance in (("maxmin", None), ("maxsum", None), ("mmr", scores), ("dpp", scores)):
            arguments = {"rule": rule, "importance": importance, "trade_off": 0.5, "valid": None}
            select(features, 64, first="nearest_neighbour", **arguments)
            select(features, 64, first="mean", **arguments)
    select(empty(1, 20000, 64), 64, rule="dpp", first="nearest_neighbour", importance=None, trade_off=0.5, valid=None)


@compiled
def bipartite_merge() -> None:
    from vtprune.kernels.bipartite_merge_triton import bipartite_matching_triton, merge_by_owner_triton

    for barred in (0, 1):
        unit = empty(8, 577, 64, dtype=torch.float32)
        bipartite_matching_triton(unit, empty(8, 577, dtype=torch.bool), barred=barred)
    for dtype in (torch.float32, torch.bfloat16):
        owner = empty(8, 577, dtype=torch.int64)
        merge_by_owner_triton(empty(8, 577, 1024, dtype=dtype), owner, 560, empty(8, 577, dtype=torch.float32))


@compiled
def ragged_compact() -> None:
    from vtprune.kernels.ragged_compact_triton import ragged_compact_triton as compact

    keep = empty(4, 3000, dtype=torch.bool)
    hidden, positions, flags = empty(4, 3000, 4096), empty(4, 3000, 3, dtype=torch.int64), keep
    compact(keep, (hidden, positions, flags), width=700, padded=False)
    compact(keep, (hidden, positions, flags), fills=(0.0, -1, False), width=700, padded=True)


def compile_calls(function: Callable[[], None], capability: int) -> list[str]:
    """Compile everything that a function launches; a line for each kernel: its name, shared memory and registers."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    target = GPUTarget("cuda", capability, 32)
    driver: Any = SimpleNamespace(
        get_current_device=lambda: 0, get_current_stream=lambda device: 0, get_current_target=lambda: target
    )
    triton.runtime.driver.set_active(driver)
    run, lines = JITFunction.run, []

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        shared = kernel.metadata.shared
        if not kernel.asm["cubin"] or shared > SHARED[capability]:
            raise RuntimeError(f"{self.__name__} needs {shared} bytes of shared memory on sm_{capability}: {kwargs}")
        lines.append(f"sm_{capability} {self.__name__}: {shared} bytes shared")

    JITFunction.run = compile_only  # type: ignore[method-assign]
    try:
        function()
    finally:
        JITFunction.run = run  # type: ignore[method-assign]
    return lines


def main(names: list[str]) -> None:
    """Compile the named operators, or all, for every GPU in `SHARED`."""
    for name, capability in itertools.product(names or CALLS, SHARED):
        print("\n".join(compile_calls(CALLS[name], capability)))


if __name__ == "__main__":
    main(sys.argv[1:])
