from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vtprune.kernels import attention_column_mass, attention_scores


def naive(q: Tensor, k: Tensor, scale: float | None = None, mask: Tensor | None = None) -> Tensor:
    """Full probabilities (batch, heads, rows, keys) in float64; rows without any key give zeros."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    logits = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    return logits.softmax(-1).nan_to_num(0.0)


def make(batch: int, heads: int, kv_heads: int, rows: int, keys: int, dim: int = 8) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(rows * 1000 + keys)
    return torch.randn(batch, heads, rows, dim, generator=g), torch.randn(batch, kv_heads, keys, dim, generator=g)


@pytest.mark.parametrize("keys", [1, 7, 63, 577])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (4, 4), (3, 1)])
def test_matches_naive(heads: int, kv_heads: int, keys: int) -> None:
    q, k = make(2, heads, kv_heads, 3, keys)
    full = naive(q, k)
    torch.testing.assert_close(attention_scores(q, k), full.mean((1, 2)).float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(attention_scores(q, k, reduce_rows=None, reduce_heads=None), full.float())
    assert attention_scores(q, k).dtype == torch.float32


@pytest.mark.parametrize("reduce_heads", ["mean", "max", None])
@pytest.mark.parametrize("reduce_rows", ["mean", "sum", "max", None])
@pytest.mark.parametrize("block", [1, 4, 256])
def test_reductions_do_not_depend_on_the_block(reduce_rows: str | None, reduce_heads: str | None, block: int) -> None:
    q, k = make(2, 4, 2, 7, 11)
    expected = naive(q, k)
    if reduce_heads is not None:
        expected = expected.mean(1) if reduce_heads == "mean" else expected.amax(1)
    if reduce_rows is not None:
        expected = {"mean": expected.mean(-2), "sum": expected.sum(-2), "max": expected.amax(-2)}[reduce_rows]
    actual = attention_scores(q, k, reduce_rows=reduce_rows, reduce_heads=reduce_heads, block=block)
    torch.testing.assert_close(actual, expected.float())


def test_causal_and_padding_mask() -> None:
    q, k = make(2, 4, 2, 9, 9)
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    padding = torch.arange(9) >= torch.tensor([0, 3]).unsqueeze(1)
    mask = causal & padding[:, None, None]
    full = naive(q, k, mask=mask)
    assert (full[1, :, :3] == 0).all(), "the second picture's first rows see nothing"
    for block in (2, 256):
        actual = attention_scores(q, k, mask=mask, reduce_rows=None, reduce_heads=None, block=block)
        torch.testing.assert_close(actual, full.float())
    counted = attention_scores(q, k, mask=mask, row_mask=padding)
    torch.testing.assert_close(counted[1], full[1, :, 3:].mean((0, 1)).float())
    torch.testing.assert_close(counted[0], full[0].mean((0, 1)).float())
    torch.testing.assert_close(attention_scores(q, k, mask=causal), naive(q, k, mask=causal).mean((1, 2)).float())


def test_mask_per_head() -> None:
    q, k = make(2, 4, 2, 3, 6)
    mask = torch.rand(2, 4, 3, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    torch.testing.assert_close(
        attention_scores(q, k, mask=mask, reduce_rows=None, reduce_heads=None), naive(q, k, mask=mask).float()
    )


def test_everything_masked_gives_zeros() -> None:
    q, k = make(1, 2, 2, 3, 5)
    nothing = torch.zeros(1, 1, 1, 5, dtype=torch.bool)
    assert attention_scores(q, k, mask=nothing).eq(0).all()
    assert attention_scores(q, k, row_mask=torch.zeros(1, 3, dtype=torch.bool)).eq(0).all()
    assert attention_scores(q[:, :, :0], k).eq(0).all()


def test_masked_keys_may_hold_anything() -> None:
    q, k = make(1, 2, 1, 2, 5)
    mask = torch.tensor([True, True, False, True, False])
    clean = attention_scores(q, k, mask=mask)
    k[:, :, ~mask] = torch.nan
    torch.testing.assert_close(attention_scores(q, k, mask=mask), clean)


def test_row_mask_leaves_out_rows_of_every_reduction() -> None:
    q, k = make(2, 2, 2, 5, 6)
    rows = torch.tensor([[True, False, True, True, False], [False, False, True, False, False]])
    full = naive(q, k).mean(1).float()
    for picture in range(2):
        chosen = full[picture, rows[picture]]
        for name, expected in {"mean": chosen.mean(0), "sum": chosen.sum(0), "max": chosen.amax(0)}.items():
            torch.testing.assert_close(attention_scores(q, k, row_mask=rows, reduce_rows=name)[picture], expected)
    kept = attention_scores(q, k, row_mask=rows, reduce_rows=None, reduce_heads=None)
    assert kept[~rows[:, None].expand(-1, 2, -1)].eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_computed_in_float32(dtype: torch.dtype) -> None:
    q, k = (x.to(dtype) for x in make(1, 4, 2, 5, 577, 64))
    torch.testing.assert_close(attention_scores(q, k), naive(q, k).mean((1, 2)).float(), atol=1e-6, rtol=1e-5)


def test_autocast_changes_nothing() -> None:
    q, k = make(1, 4, 2, 5, 63, 64)
    expected = attention_scores(q, k)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_scores(q, k), expected)


def test_non_contiguous_input_and_scale() -> None:
    q, k = make(2, 4, 2, 6, 10)
    strided_q = q.transpose(1, 2).contiguous().transpose(1, 2)[:, :, ::2]
    strided_k = k.transpose(1, 2).contiguous().transpose(1, 2)
    actual = attention_scores(strided_q, strided_k, scale=1.7)
    torch.testing.assert_close(actual, naive(q[:, :, ::2], k, scale=1.7).mean((1, 2)).float())


def test_huge_logits_stay_finite() -> None:
    q, k = make(1, 1, 1, 2, 4)
    scores = attention_scores(q * 1e4, k * 1e4, mask=torch.tensor([True, True, True, False]))
    torch.testing.assert_close(scores.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("rows", [1, 7, 63, 577])
def test_column_mass(rows: int) -> None:
    q, k = make(2, 2, 2, rows, rows)
    mass = attention_column_mass(q, k, block=100)
    torch.testing.assert_close(mass, naive(q, k).mean((1, 2)).float(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mass.sum(1), torch.ones(2))


def test_column_mass_never_holds_all_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    softmax = torch.Tensor.softmax

    def watch(self: Tensor, dim: int) -> Tensor:
        seen.append(self.shape[-2])
        return softmax(self, dim)

    monkeypatch.setattr(torch.Tensor, "softmax", watch)
    attention_column_mass(*make(1, 1, 1, 63, 63), block=16)
    assert seen == [16, 16, 16, 15]


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    rows=st.integers(1, 5),
    keys=st.integers(1, 20),
    block=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_any_shape(batch: int, kv_heads: int, group: int, rows: int, keys: int, block: int, seed: int) -> None:
    q, k = make(batch, kv_heads * group, kv_heads, rows, keys, 4)
    mask = torch.rand(batch, 1, rows, keys, generator=torch.Generator().manual_seed(seed)) < 0.7
    actual = attention_scores(q, k, mask=mask, block=block)
    torch.testing.assert_close(actual, naive(q, k, mask=mask).mean((1, 2)).float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": torch.zeros(1, 3, 5, 8)}, "multiple of the heads of k, got 4 and 3"),
        ({"q": torch.zeros(4, 2, 8)}, r"q must have the axes \(batch, heads, rows, dim\), got the shape \(4, 2, 8\)"),
        ({"reduce_rows": "median"}, "reduce_rows must be .* got 'median'"),
        ({"reduce_heads": "sum"}, "reduce_heads must be .* got 'sum'"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_scores(**({"q": torch.zeros(1, 4, 2, 8), "k": torch.zeros(1, 2, 5, 8)} | arguments))
