from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.attention import BIG, borders, close, make, naive
from tests.kernels.conftest import DEVICE
from vtprune.kernels import flash_attention_with_scores

pytestmark = pytest.mark.usefixtures("backend")


def inputs(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k = make(*shape)
    return q, k, torch.randn(k.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def expected(q: Tensor, k: Tensor, v: Tensor, **sight: Any) -> tuple[Tensor, Tensor, Tensor]:
    full, lse = naive(q, k, **sight)
    return full @ v.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1), lse, full


@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 70), (70, 70), (9, 70), (70, 9)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_matches_naive(rows: int, keys: int, causal: bool, padded: bool) -> None:
    q, k, v = inputs(2, 4, 2, rows, keys, 16)
    sight: dict[str, Any] = dict(causal=causal)
    if padded:
        sight["key_valid"] = torch.arange(keys, device=DEVICE) >= torch.tensor([[0], [5]], device=DEVICE)
    out, lse, full = expected(q, k, v, **sight)
    actual = flash_attention_with_scores(q, k, v, **sight)
    close(actual[0], out)
    close(actual[1], lse)
    close(actual[2], full.mean((1, 2)))
    assert flash_attention_with_scores(q, k, v, scores=False, **sight)[2] is None
    heads = flash_attention_with_scores(q, k, v, reduce_heads=None, **sight)[2]
    close(heads, full.mean(2))
    counted = torch.arange(rows, device=DEVICE) % 3 == torch.tensor([[0], [1]], device=DEVICE)
    some = flash_attention_with_scores(q, k, v, score_rows=counted, **sight)[2]
    close(some, (full.mean(1) * counted[..., None]).sum(1) / counted.sum(1, keepdim=True).clamp_min(1))
    numbers = torch.tensor([[rows - 1, -1], [0, rows - 1]], device=DEVICE)
    few = flash_attention_with_scores(q, k, v, score_rows=numbers, **sight)[2]
    close(few, torch.stack((full[0, :, -1].mean(0), (full[1, :, -1] + full[1, :, 0]).mean(0) / 2)))


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences(causal: bool) -> None:
    cu = borders(50, 1, 0, 20, 2)
    q, k, v = inputs(1, 4, 2, 73, 73, 24)
    valid = torch.arange(73, device=DEVICE)[None] % 5 > 0
    out, lse, full = expected(q, k, v, causal=causal, key_valid=valid, cu_seqlens_q=cu, cu_seqlens_k=cu)
    actual = flash_attention_with_scores(q, k, v, causal=causal, key_valid=valid, cu_seqlens=cu)
    close(actual[0], out)
    close(actual[1], lse)
    lengths = torch.tensor([50, 1, 20, 2], device=DEVICE)
    close(actual[2], full.mean(1).sum(1) / lengths.repeat_interleave(lengths))


@pytest.mark.parametrize("dim", [8, 32, 72, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_head_dimensions_and_dtypes(dim: int, dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in inputs(1, 2, 1, 20, 40, dim))
    out, lse, full = expected(q, k, v)
    actual = flash_attention_with_scores(q, k, v)
    assert actual[0].dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(actual[0].double(), out, atol=tolerance, rtol=tolerance)
    close(actual[1], lse)
    close(actual[2], full.mean((1, 2)))


def test_non_contiguous_input_and_scale() -> None:
    q, k, v = inputs(2, 4, 2, 40, 60, 20)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)[:, :, ::2, ::2]
    k, v = (x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)[..., ::2] for x in (k, v))
    out, lse, full = expected(q, k, v, scale=0.7)
    actual = flash_attention_with_scores(q, k, v, scale=0.7)
    for got, wanted in zip(actual, (out, lse, full.mean((1, 2))), strict=True):
        close(got, wanted)


def test_nothing_to_see_and_nothing_there() -> None:
    q, k, v = inputs(1, 2, 2, 3, 5)
    for sight in (dict(key_valid=torch.zeros(1, 5, dtype=torch.bool, device=DEVICE)), {}):
        keys = slice(None) if sight else slice(0)
        out, lse, scores = flash_attention_with_scores(q, k[:, :, keys], v[:, :, keys], **sight)
        assert out.eq(0).all()
        assert lse.isneginf().all()
        assert scores.eq(0).all()
    out, lse, scores = flash_attention_with_scores(q[:, :, :0], k, v)
    assert out.shape == (1, 2, 0, 8)
    assert scores.eq(0).all()


def test_nan() -> None:
    q, k, v = inputs(1, 2, 1, 40, 40)
    seen = torch.arange(40, device=DEVICE)[None] != 3
    clean = flash_attention_with_scores(q, k, v, key_valid=seen)
    broken_k, broken_v = k.clone(), v.clone()
    broken_k[:, :, 3] = broken_v[:, :, 3] = torch.nan
    for got, wanted in zip(flash_attention_with_scores(q, broken_k, broken_v, key_valid=seen), clean, strict=True):
        close(got, wanted)
    for part in flash_attention_with_scores(q, broken_k, v):
        assert part.isnan().all()
    assert flash_attention_with_scores(q, k, broken_v)[0].isnan().all()
    q[:, :, 7] = torch.nan
    out, lse, scores = flash_attention_with_scores(q, k, v)
    assert out[:, :, 7].isnan().all()
    assert lse[:, :, 7].isnan().all()
    assert scores.isnan().all()
    assert out[:, :, :7].isfinite().all()


@pytest.mark.parametrize("size", [1.0, 6.0, 30.0])
def test_large_logits(size: float) -> None:
    q, k, v = inputs(1, 2, 1, 70, 70)
    q, k = q * size, k * size - size
    out, lse, full = expected(q, k, v, causal=True)
    rtol = 1e-5 + 3e-6 * float(q.abs().amax() * k.abs().amax())
    actual = flash_attention_with_scores(q, k, v, causal=True)
    close(actual[0], out, atol=rtol)
    close(actual[1], lse)
    close(actual[2], full.mean((1, 2)), rtol=rtol)


@settings(max_examples=60 if BIG else 12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    rows=st.integers(1, 300 if BIG else 40),
    extra=st.integers(-5, 9),
    dim=st.integers(1, 50),
    causal=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(
    batch: int, kv_heads: int, group: int, rows: int, extra: int, dim: int, causal: bool, seed: int
) -> None:
    keys = max(rows + extra, 1)
    q, k, v = inputs(batch, kv_heads * group, kv_heads, rows, keys, dim)
    valid = torch.rand(batch, keys, generator=torch.Generator().manual_seed(seed)).to(DEVICE) < 0.7
    out, lse, full = expected(q, k, v, causal=causal, key_valid=valid)
    actual = flash_attention_with_scores(q, k, v, causal=causal, key_valid=valid)
    for got, wanted in zip(actual, (out, lse, full.mean((1, 2))), strict=True):
        close(got, wanted)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"v": torch.zeros(1, 2, 5, 4)}, ValueError, r"v must have the shape of k, \(1, 2, 5, 8\), got \(1, 2, 5, 4\)"),
        ({"reduce_heads": "max"}, ValueError, "reduce_heads must be 'mean' or None, got 'max'"),
        (
            {"score_rows": torch.zeros(1, 3).bool()},
            ValueError,
            r"score_rows must have the shape \(1, 2\), got \(1, 3\)",
        ),
        ({"score_rows": torch.zeros(1, 3)}, TypeError, "score_rows must hold ints"),
        ({"cu_seqlens": borders(2)}, ValueError, "as many rows as keys, got 2 and 5"),
        ({"key_valid": torch.zeros(1, 5)}, TypeError, "key_valid must hold bools"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    plain = {"q": torch.zeros(1, 4, 2, 8), "k": torch.zeros(1, 2, 5, 8), "v": torch.zeros(1, 2, 5, 8)}
    with pytest.raises(error, match=message):
        flash_attention_with_scores(**(plain | arguments))
