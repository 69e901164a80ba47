from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.attention import BIG, borders, close, make, naive, reduced
from tests.kernels.conftest import DEVICE
from vtprune.kernels import attention_scores
from vtprune.kernels.attention_scores import attention_scores_reference

KEPT = dict(reduce_rows=None, reduce_heads=None)
pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("keys", [1, 7, 63, 577])
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (4, 4), (3, 1)])
def test_matches_naive(heads: int, kv_heads: int, keys: int, backend: str) -> None:
    if backend == "triton" and not BIG:
        keys = min(keys, 130)
    q, k = make(2, heads, kv_heads, 3, keys)
    full, _ = naive(q, k)
    close(attention_scores(q, k), full.mean((1, 2)))
    close(attention_scores(q, k, **KEPT), full)


@pytest.mark.parametrize("reduce_heads", ["mean", "max", None])
@pytest.mark.parametrize("reduce_rows", ["mean", "sum", "max", None])
@pytest.mark.parametrize("rows", [1, 7, 70])
def test_reductions(reduce_rows: str | None, reduce_heads: str | None, rows: int) -> None:
    q, k = make(2, 4, 2, rows, 37)
    expected = reduced(naive(q, k)[0], reduce_rows, reduce_heads)
    close(attention_scores(q, k, reduce_rows=reduce_rows, reduce_heads=reduce_heads), expected)
    for block in (1, 4):
        part = attention_scores_reference(q, k, reduce_rows=reduce_rows, reduce_heads=reduce_heads, block=block)
        close(part, expected)


@pytest.mark.parametrize("dim", [1, 8, 32, 40, 64, 72, 80, 96, 128, 160, 192, 256])
def test_head_dimensions(dim: int) -> None:
    q, k = make(1, 2, 1, 5, 40, dim)
    close(attention_scores(q, k, **KEPT), naive(q, k)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_row_positions_padding_and_causal_rows(causal: bool) -> None:
    q, k = make(2, 4, 2, 9, 70)
    valid = torch.arange(70, device=DEVICE) >= torch.tensor([[0], [65]], device=DEVICE)
    given = dict(key_valid=valid, causal=True) if causal else dict(key_valid=valid)
    if not causal:
        given["row_positions"] = torch.tensor([[0, 69, 3, 64, 65, 66, 31, 32, 100], [-1, 63, 64, 65, 66, 68, 0, 69, 1]])
        given["row_positions"] = given["row_positions"].to(DEVICE)
    full, _ = naive(q, k, **given)
    assert (full[1, :, 0] == 0).all(), "a row that sees nothing"
    close(attention_scores(q, k, **KEPT, **given), full)
    close(attention_scores(q, k, **given), full.mean((1, 2)))
    close(attention_scores(q, k, reduce_rows="max", **given), full.mean(1).amax(1))


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("rows", [1, 6])
def test_dense_mask(heads: int, rows: int) -> None:
    q, k = make(2, 4, 2, 6, 70)
    mask = torch.rand(2, heads, rows, 70, generator=torch.Generator().manual_seed(0)).to(DEVICE) < 0.5
    full, _ = naive(q, k, mask=mask)
    close(attention_scores(q, k, mask=mask, **KEPT), full)
    close(attention_scores(q, k, mask=mask), full.mean((1, 2)))
    close(attention_scores(q, k, mask=mask[0, 0], **KEPT), naive(q, k, mask=mask[0, 0])[0])


@pytest.mark.parametrize(
    ("reduce_rows", "sight"),
    [("mean", "all"), ("sum", "causal"), (None, "causal"), ("max", "positions"), ("mean", "valid")],
)
def test_packed_sequences(reduce_rows: str | None, sight: str) -> None:
    cu_q, cu_k = borders(3, 1, 0, 18, 2), borders(40, 1, 5, 20, 4)
    q, k = make(1, 4, 2, 24, 70, 24)
    given: dict[str, Any] = dict(cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
    if sight == "causal":
        given["causal"] = True
    elif sight == "positions":
        given["row_positions"] = torch.arange(24, device=DEVICE)[None] % 5
    elif sight == "valid":
        given |= dict(key_valid=(torch.arange(70) % 3 > 0)[None].to(DEVICE))
        given |= dict(row_mask=(torch.arange(24) % 4 > 0)[None].to(DEVICE))
    full, _ = naive(q, k, **given)
    for reduce_heads in ("mean", "max", None):
        actual = attention_scores(q, k, reduce_rows=reduce_rows, reduce_heads=reduce_heads, **given)
        if reduce_rows != "mean":
            close(actual, reduced(full, reduce_rows, reduce_heads))
            continue
        for number in range(5):
            rows, keys = slice(*cu_q[number : number + 2].tolist()), slice(*cu_k[number : number + 2].tolist())
            counted = given.get("row_mask", torch.ones(1, 24))[0, rows].sum().clamp_min(1).to(DEVICE)
            expected = reduced(full[..., rows, keys], "sum", reduce_heads) / counted
            close(actual[..., keys], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [64, 80])
def test_half_precision_input_is_computed_in_float32(dtype: torch.dtype, dim: int) -> None:
    q, k = (x.to(dtype) for x in make(1, 4, 2, 5, 577 if BIG else 130, dim))
    close(attention_scores(q, k), naive(q, k)[0].mean((1, 2)))


def test_ready_log_sum_exp() -> None:
    q, k = make(2, 4, 2, 20, 70)
    given = dict(causal=True, key_valid=torch.arange(70, device=DEVICE) >= torch.tensor([[0], [60]], device=DEVICE))
    full, lse = naive(q, k, **given)
    assert lse.isneginf().any()
    close(attention_scores(q, k, lse=lse.float(), **given, **KEPT), full, rtol=1e-4)
    # That it is used shows where it is wrong.
    close(attention_scores(q, k, lse=lse.float() + 1, **given), full.mean((1, 2)) / torch.e, rtol=1e-4)


def test_row_mask_and_weights() -> None:
    q, k = make(2, 4, 2, 5, 6)
    rows = torch.tensor([[True, False, True, True, False], [False, False, True, False, False]], device=DEVICE)
    full = naive(q, k)[0].mean(1)
    q = q.masked_fill(~rows[:, None, :, None], torch.nan)  # rows that do not count may hold anything
    for picture in range(2):
        chosen = full[picture, rows[picture]]
        for name, expected in {"mean": chosen.mean(0), "sum": chosen.sum(0), "max": chosen.amax(0)}.items():
            close(attention_scores(q, k, row_mask=rows, reduce_rows=name)[picture], expected)
    kept = attention_scores(q, k, row_mask=rows, **KEPT)
    assert kept[~rows[:, None].expand(-1, 4, -1)].eq(0).all()
    weights = torch.rand(2, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = (full * (weights * rows)[..., None]).sum(1)
    close(attention_scores(q, k, row_mask=rows, row_weights=weights, reduce_rows="sum"), expected)
    for reduce_heads in ("max", None):
        actual = attention_scores(
            q, k, row_mask=rows, row_weights=weights, reduce_rows="sum", reduce_heads=reduce_heads
        )
        per_head = reduced(naive(q.nan_to_num(), k)[0], None, reduce_heads) * (weights * rows)[
            :, None, :, None
        ].squeeze(1 if reduce_heads else 0)
        close(actual, per_head.sum(-2))


def test_nothing_to_see_gives_zeros() -> None:
    q, k = make(1, 2, 2, 3, 5)
    nothing = torch.zeros(1, 5, dtype=torch.bool, device=DEVICE)
    assert attention_scores(q, k, mask=nothing[:, None, None]).eq(0).all()
    assert attention_scores(q, k, key_valid=nothing).eq(0).all()
    assert attention_scores(q, k, row_mask=nothing[:, :3]).eq(0).all()
    assert attention_scores(q[:, :, :0], k).eq(0).all()
    assert attention_scores(q, k[:, :, :0]).shape == (1, 0)
    assert attention_scores(q[:, :, :0], k, **KEPT).shape == (1, 2, 0, 5)
    assert attention_scores(q[:0], k[:0]).shape == (0, 5)


def test_one_key_left() -> None:
    q, k = make(1, 2, 2, 3, 70)
    only = torch.arange(70, device=DEVICE)[None] == 69
    close(attention_scores(q, k, key_valid=only), only.float())


@pytest.mark.parametrize("reduce_rows", ["mean", "max", None])
@pytest.mark.parametrize("reduce_heads", ["mean", "max", None])
def test_nan(reduce_rows: str | None, reduce_heads: str | None) -> None:
    q, k = make(1, 2, 1, 4, 70)
    valid = torch.arange(70, device=DEVICE)[None] != 3
    given = dict(reduce_rows=reduce_rows, reduce_heads=reduce_heads)
    clean = attention_scores(q, k, key_valid=valid, **given)
    k[:, :, 3] = torch.nan
    close(attention_scores(q, k, key_valid=valid, **given), clean)  # nobody sees it
    broken = attention_scores(q, k, **given)
    assert broken.isnan().all(), "every row sees it"
    q[:, 0, 2] = torch.nan
    broken = attention_scores(q, k, key_valid=valid, **given)
    rows = broken if reduce_rows is not None else broken[..., 2, :]
    rows = rows if reduce_heads is not None else rows[:, 0]
    assert rows[:, valid[0]].isnan().all()


def test_autocast_changes_nothing() -> None:
    q, k = make(1, 4, 2, 5, 63, 64)
    expected = attention_scores(q, k)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(attention_scores(q, k), expected)


def test_non_contiguous_input_and_scale() -> None:
    q, k = make(2, 4, 2, 12, 20, 20)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)[:, :, ::2, ::2]
    k = k.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)[..., ::2]
    rows = torch.tensor([[True, False] * 6] * 2, device=DEVICE)[:, ::2]
    positions = torch.arange(24, device=DEVICE).view(2, 12)[:, ::2]
    given = dict(scale=1.7, row_mask=rows, row_positions=positions)
    close(attention_scores(q, k, **given), naive(q, k, **given)[0].mean((1, 2)))
    one = k[:1].expand(2, -1, -1, -1)
    close(attention_scores(q, one), naive(q, one)[0].mean((1, 2)))


@pytest.mark.parametrize("size", [1.0, 3.0, 6.0, 30.0])
@pytest.mark.parametrize("causal", [False, True])
def test_large_logits(size: float, causal: bool) -> None:
    q, k = make(2, 2, 1, 40, 70)
    q[:, :, ::2] *= size
    k = k * size - size  # all keys far from the middle: some rows have nothing but very negative logits
    full, lse = naive(q, k, causal=causal)
    # float32 rounds a logit to about 1e-7 of its terms, and the exponential makes that relative.
    rtol = 1e-5 + 3e-6 * float(q.abs().amax() * k.abs().amax())
    scores = attention_scores(q, k, reduce_rows="sum", causal=causal)
    close(scores, full.mean(1).sum(1), rtol=rtol)
    close(scores.sum(1), torch.full((2,), 40.0, device=DEVICE), atol=0.0, rtol=rtol)
    close(attention_scores(q, k, lse=lse.float(), reduce_rows="sum", causal=causal), full.mean(1).sum(1), rtol=rtol)


def test_huge_logits_stay_probabilities() -> None:
    q, k = make(2, 2, 1, 40, 70)
    scores = attention_scores(q * 1e4, k * 1e4, **KEPT)
    assert scores.isfinite().all()
    assert (scores >= 0).all()
    assert (scores <= 1).all()


@settings(max_examples=100 if BIG else 15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    rows=st.integers(1, 20),
    keys=st.integers(1, 40),
    dim=st.integers(1, 50),
    block=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 99),
)
def test_any_shape(
    batch: int, kv_heads: int, group: int, rows: int, keys: int, dim: int, block: int | None, seed: int
) -> None:
    q, k = make(batch, kv_heads * group, kv_heads, rows, keys, dim)
    g = torch.Generator().manual_seed(seed)
    given = dict(
        mask=torch.rand(batch, 1, rows, keys, generator=g).to(DEVICE) < 0.7,
        key_valid=torch.rand(batch, keys, generator=g).to(DEVICE) < 0.7,
        row_mask=torch.rand(batch, rows, generator=g).to(DEVICE) < 0.7,
        row_positions=torch.randint(-1, keys, (batch, rows), generator=g).to(DEVICE),
    )
    expected = naive(q, k, **given)[0].mean(1).sum(1)
    close(attention_scores(q, k, reduce_rows="sum", block=block, **given), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": torch.zeros(1, 3, 5, 8)}, ValueError, "multiple of the heads of k, got 4 and 3"),
        ({"k": torch.zeros(1, 2, 5, 9)}, ValueError, "same batch and dim"),
        (
            {"q": torch.zeros(4, 2, 8)},
            ValueError,
            r"q must have the axes \(batch, heads, rows, dim\), got .*\(4, 2, 8\)",
        ),
        ({"reduce_rows": "median"}, ValueError, "reduce_rows must be .* got 'median'"),
        ({"reduce_heads": "sum"}, ValueError, "reduce_heads must be .* got 'sum'"),
        ({"row_weights": torch.ones(1, 2)}, ValueError, "row_weights need reduce_rows='sum', got 'mean'"),
        ({"row_mask": torch.ones(1, 2)}, TypeError, "row_mask must hold bools, got torch.float32"),
        ({"row_mask": torch.ones(1, 5).bool()}, ValueError, r"row_mask must have the shape \(1, 2\), got \(1, 5\)"),
        ({"key_valid": torch.ones(5).bool()}, ValueError, r"key_valid must have the shape \(1, 5\), got \(5,\)"),
        ({"mask": torch.ones(2, 4)}, TypeError, "mask must be bool"),
        ({"mask": torch.ones(2, 4).bool()}, ValueError, "mask must be broadcastable"),
        ({"mask": torch.ones(2, 5).bool(), "cu_seqlens_q": borders(2), "cu_seqlens_k": borders(5)}, ValueError, "mask"),
        ({"cu_seqlens_q": borders(2)}, ValueError, "must be given together, got cu_seqlens_q only"),
        ({"cu_seqlens_q": borders(2), "cu_seqlens_k": borders(2, 3)}, ValueError, r"equally long, got \[2, 3\]"),
        ({"causal": True, "row_positions": torch.zeros(1, 2).long()}, ValueError, "causal and row_positions"),
        ({"lse": torch.zeros(1, 4)}, ValueError, "lse must have the shape"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attention_scores(**({"q": torch.zeros(1, 4, 2, 8), "k": torch.zeros(1, 2, 5, 8)} | arguments))


def test_triton_says_what_it_cannot_take(backend: str) -> None:
    wide, double = torch.zeros(1, 1, 2, 320, device=DEVICE), torch.zeros(1, 1, 2, 8, device=DEVICE).double()
    if backend == "torch":
        assert attention_scores(wide, wide).shape == attention_scores(double, double).shape == (1, 2)
        return
    with pytest.raises(ValueError, match=r"attention_scores cannot take this call: the head dimension .* got 320"):
        attention_scores(wide, wide)
    with pytest.raises(ValueError, match=r"q must be float16, bfloat16 or float32, got torch.float64"):
        attention_scores(double, double)
    with pytest.raises(ValueError, match=r"q, k and v must have one dtype, got torch.float32 and torch.bfloat16"):
        attention_scores(wide, wide.bfloat16())


def test_ties() -> None:
    """Equal keys get equal scores, wherever they stand."""
    q, k = make(1, 2, 2, 3, 1)
    scores = attention_scores(q, k.expand(-1, -1, 70, -1))
    assert torch.equal(scores, scores[:, :1].expand_as(scores))


@pytest.mark.parametrize("block", [None, 1])
def test_rows_that_do_not_count_by_their_log_sum_exp(backend: str, block: int | None) -> None:
    q, k = (torch.full((1, 1, n, 16), 60.0, device=DEVICE) for n in (2, 4))
    lse = torch.full((1, 1, 2), -torch.inf, device=DEVICE)
    assert attention_scores(q, k, lse=lse, block=block).eq(0).all()
