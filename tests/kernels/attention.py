"""What the tests of the attention operators compare with: everything at once, in float64."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from tests.kernels.conftest import DEVICE

BIG = DEVICE == "cuda"  # Triton's interpreter takes seconds for what a GPU does in microseconds


def make(batch: int, heads: int, kv_heads: int, rows: int, keys: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows * 1000 + keys)
    q, k = torch.randn(batch, heads, rows, dim, generator=g), torch.randn(batch, kv_heads, keys, dim, generator=g)
    return q.to(DEVICE), k.to(DEVICE)


def visible(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    row_mask: Tensor | None = None,
    row_positions: Tensor | None = None,
    key_valid: Tensor | None = None,
    causal: bool = False,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k: Tensor | None = None,
) -> Tensor:
    """Which keys each row sees, (batch, 1 or heads, rows, keys)."""
    (batch, _, rows, _), keys = q.shape, k.shape[2]
    seen = torch.ones(batch, 1, rows, keys, dtype=torch.bool, device=q.device)
    borders = [[0, n] if x is None else x.tolist() for x, n in ((cu_seqlens_q, rows), (cu_seqlens_k, keys))]
    if cu_seqlens_q is not None:
        seen[:] = False
    for (q0, q1), (k0, k1) in zip(*map(pairwise, borders), strict=True):
        number = torch.arange(k1 - k0, device=q.device)
        part = torch.ones(batch, q1 - q0, k1 - k0, dtype=torch.bool, device=q.device)
        if causal:
            part &= number <= number.new_tensor(range(k1 - k0 - (q1 - q0), k1 - k0))[:, None]
        if row_positions is not None:
            part &= number <= row_positions[:, q0:q1, None]
        seen[:, 0, q0:q1, k0:k1] = part
    if key_valid is not None:
        seen = seen & key_valid[:, None, None]
    if row_mask is not None:
        seen = seen & row_mask[:, None, :, None]
    return seen if mask is None else seen & mask


def naive(q: Tensor, k: Tensor, scale: float | None = None, **sight: Tensor | bool | None) -> tuple[Tensor, Tensor]:
    """Probabilities (batch, heads, rows, keys), zeros where a row sees nothing, and log-sum-exp, in float64."""
    seen = visible(q, k, **sight)
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    logits = logits.masked_fill(~seen, -torch.inf)
    return logits.softmax(-1).masked_fill(~seen, 0.0), logits.logsumexp(-1)


def reduced(full: Tensor, reduce_rows: str | None, reduce_heads: str | None) -> Tensor:
    """Heads first, then rows."""
    if reduce_heads is not None:
        full = full.mean(1) if reduce_heads == "mean" else full.amax(1)
    if reduce_rows is not None:
        full = {"mean": full.mean, "sum": full.sum, "max": full.amax}[reduce_rows](-2)
    return full


def close(actual: Tensor, expected: Tensor, atol: float = 1e-6, rtol: float = 1e-5) -> None:
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected.float(), atol=atol, rtol=rtol)


def borders(*lengths: int) -> Tensor:
    """cu_seqlens of sequences of these lengths."""
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0).to(torch.int32)
