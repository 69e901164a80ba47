from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.attention import BIG, borders, close, make, naive
from tests.kernels.conftest import DEVICE
from vtprune.kernels import attention_column_mass
from vtprune.kernels.attention_column_mass import attention_column_mass_reference

PLAIN = dict(reduce_heads=None, normalise="sum")
pytestmark = pytest.mark.usefixtures("backend")


@pytest.mark.parametrize("rows", [1, 7, 63, 577])
@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (6, 2)])
def test_matches_naive(heads: int, kv_heads: int, rows: int, backend: str) -> None:
    if backend == "triton" and not BIG:
        rows = min(rows, 70)
    q, k = make(2, heads, kv_heads, rows, rows)
    full, lse = naive(q, k)
    mass = attention_column_mass(q, k)
    close(mass, full.mean((1, 2)))
    close(mass.sum(1), torch.ones(2, device=DEVICE))
    plain, found = attention_column_mass(q, k, return_lse=True, **PLAIN)
    close(plain, full.sum(2))
    close(found, lse)
    close(attention_column_mass(q, k, lse=found), mass)
    group = attention_column_mass(q, k, reduce_heads="group", normalise="sum")
    close(group, full.sum(2).view(2, kv_heads, -1, rows).sum(2))


@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (70, 70), (9, 70), (70, 9)])
@pytest.mark.parametrize("ready", [False, True])
def test_causal_with_padding(rows: int, keys: int, ready: bool) -> None:
    q, k = make(2, 4, 2, rows, keys, 16)
    given = dict(causal=True, key_valid=torch.arange(keys, device=DEVICE) >= torch.tensor([[0], [5]], device=DEVICE))
    given["row_mask"] = torch.arange(rows, device=DEVICE) >= torch.tensor([[1], [5]], device=DEVICE)
    full, lse = naive(q, k, **given)
    close(attention_column_mass(q, k, lse=lse.float() if ready else None, **given, **PLAIN), full.sum(2))
    counted = given["row_mask"].sum(1, keepdim=True).clamp_min(1)
    close(attention_column_mass(q, k, **given), full.mean(1).sum(1) / counted)
    found = attention_column_mass(q, k, return_lse=True, **given)[1]
    close(found, lse)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ready", [False, True])
def test_packed_sequences(causal: bool, ready: bool) -> None:
    cu = borders(70, 1, 0, 30, 2)
    q, k = make(1, 4, 2, 103, 103, 24)
    given: dict[str, Any] = dict(causal=causal, key_valid=torch.arange(103, device=DEVICE)[None] % 5 > 0)
    given["row_mask"] = torch.arange(103, device=DEVICE)[None] % 3 > 0
    full, lse = naive(q, k, cu_seqlens_q=cu, cu_seqlens_k=cu, **given)
    given["lse"] = lse.float() if ready else None
    close(attention_column_mass(q, k, cu_seqlens=cu, **given, **PLAIN), full.sum(2))
    mean = attention_column_mass(q, k, cu_seqlens=cu, **given)
    for start, stop in ((0, 70), (70, 71), (71, 101), (101, 103)):
        rows = full[0, :, start:stop, start:stop].mean(0).sum(0) / given["row_mask"][0, start:stop].sum().clamp_min(1)
        close(mean[0, start:stop], rows)


@pytest.mark.parametrize("dim", [1, 16, 40, 72, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_head_dimensions(dim: int, dtype: torch.dtype) -> None:
    q, k = (x.to(dtype) for x in make(1, 2, 1, 20, 40, dim))
    close(attention_column_mass(q, k, **PLAIN), naive(q, k)[0].sum(2))


@pytest.mark.parametrize("size", [1.0, 3.0, 6.0, 30.0])
@pytest.mark.parametrize("causal", [False, True])
def test_large_logits(size: float, causal: bool) -> None:
    q, k = make(1, 2, 1, 70, 70)
    q[:, :, ::2] *= size
    k = k * size - size
    full, _ = naive(q, k, causal=causal)
    rtol = 1e-5 + 3e-6 * float(q.abs().amax() * k.abs().amax())
    mass = attention_column_mass(q, k, causal=causal, **PLAIN)
    close(mass, full.sum(2), rtol=rtol)
    close(mass.sum(-1), torch.full((1, 2), 70.0, device=DEVICE), rtol=rtol)


def test_bound_that_is_too_loose(backend: str) -> None:
    """Keys and queries that are long and at right angles: exponentials relative to the bound would all be zero."""
    q, k = make(1, 1, 1, 64, 64, 16)
    q[..., 8:] = 0
    k[..., :8] = 0
    q *= 100
    k *= 100
    close(attention_column_mass(q, k), torch.full((1, 64), 1 / 64, device=DEVICE))


def test_nothing_to_see_and_nothing_there() -> None:
    q, k = make(1, 2, 2, 3, 5)
    nothing = torch.zeros(1, 5, dtype=torch.bool, device=DEVICE)
    mass, lse = attention_column_mass(q, k, key_valid=nothing, return_lse=True)
    assert mass.eq(0).all()
    assert lse.isneginf().all()
    assert attention_column_mass(q, k, row_mask=nothing[:, :3]).eq(0).all()
    assert attention_column_mass(q[:, :, :0], k).eq(0).all()
    mass, lse = attention_column_mass(q, k[:, :, :0], return_lse=True)
    assert mass.shape == (1, 0)
    assert lse.isneginf().all()
    only = torch.arange(5, device=DEVICE)[None] == 4
    close(attention_column_mass(q, k, key_valid=only), only.float())


def test_nan() -> None:
    q, k = make(1, 2, 1, 40, 40)
    seen, counted = (torch.arange(40, device=DEVICE)[None] != n for n in (3, 5))
    clean = attention_column_mass(q, k, key_valid=seen, row_mask=counted)
    k[:, :, 3] = q[:, :, 5] = torch.nan
    close(attention_column_mass(q, k, key_valid=seen, row_mask=counted), clean)
    assert attention_column_mass(q, k, row_mask=counted).isnan().all()
    assert attention_column_mass(q, k, key_valid=seen).isnan()[seen].all()
    k[:, :, 3] = 0
    k[:, :, 39] = torch.nan
    causal = attention_column_mass(q[:, :, :39], k[:, :, :39], causal=True, row_mask=counted[:, :39], normalise="sum")
    counted[:, 39] = False
    both = attention_column_mass(q, k, causal=True, row_mask=counted, normalise="sum")
    close(both[:, :39], causal)  # seen only by a row that does not count


def test_non_contiguous_input_and_scale() -> None:
    q, k = make(2, 4, 2, 40, 60, 20)
    q = q.transpose(1, 2).contiguous().transpose(1, 2)[:, :, ::2, ::2]
    k = k.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)[..., ::2]
    rows = torch.tensor([[True, False, True, True] * 10] * 2, device=DEVICE)[:, ::2]
    full, lse = naive(q, k, scale=0.7, row_mask=rows)
    close(attention_column_mass(q, k, scale=0.7, row_mask=rows, **PLAIN), full.sum(2))
    strided = lse.float().transpose(1, 2).contiguous().transpose(1, 2)
    close(attention_column_mass(q, k, scale=0.7, row_mask=rows, lse=strided, **PLAIN), full.sum(2))


def test_autocast_changes_nothing() -> None:
    q, k = make(1, 4, 2, 40, 40, 64)
    expected = attention_column_mass(q, k)
    with torch.autocast(DEVICE, torch.bfloat16):
        assert torch.equal(attention_column_mass(q, k), expected)


def test_reference_holds_no_matrix(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "triton":
        pytest.skip("about the reference")
    sizes = []
    product = torch.bmm

    def watch(*arguments: Any, **named: Any) -> torch.Tensor:
        made = product(*arguments, **named)
        sizes.append(made.shape)
        return made

    monkeypatch.setattr(torch, "bmm", watch)
    attention_column_mass(*make(1, 2, 1, 63, 63), block=16)
    assert sizes == [(1, 32, 63)] * 3 + [(1, 30, 63)]
    sizes.clear()
    attention_column_mass(*make(1, 4, 4, 600, 5000))
    assert max(s.numel() for s in sizes) <= 128 * 5000


@settings(max_examples=60 if BIG else 12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    rows=st.integers(1, 300 if BIG else 40),
    extra=st.integers(-5, 9),
    dim=st.integers(1, 50),
    causal=st.booleans(),
    block=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 99),
)
def test_any_shape(
    batch: int, kv_heads: int, group: int, rows: int, extra: int, dim: int, causal: bool, block: int | None, seed: int
) -> None:
    keys = max(rows + extra, 1)
    q, k = make(batch, kv_heads * group, kv_heads, rows, keys, dim)
    g = torch.Generator().manual_seed(seed)
    valid = torch.rand(batch, keys, generator=g).to(DEVICE) < 0.7
    counted = torch.rand(batch, rows, generator=g).to(DEVICE) < 0.7
    given = dict(causal=causal, key_valid=valid, row_mask=counted)
    close(attention_column_mass(q, k, block=block, **given, **PLAIN), naive(q, k, **given)[0].sum(2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": torch.zeros(1, 3, 5, 8)}, ValueError, "multiple of the heads of k, got 4 and 3"),
        ({"reduce_heads": "max"}, ValueError, "reduce_heads must be 'mean', 'group' or None, got 'max'"),
        ({"normalise": "none"}, ValueError, "normalise must be 'mean' or 'sum', got 'none'"),
        ({"row_mask": torch.ones(1, 2)}, TypeError, "row_mask must hold bools, got torch.float32"),
        ({"key_valid": torch.ones(1, 2).bool()}, ValueError, r"key_valid must have the shape \(1, 5\)"),
        ({"cu_seqlens": borders(2)}, ValueError, "as many rows as keys, got 2 and 5"),
        ({"cu_seqlens": torch.zeros(3)}, ValueError, "cu_seqlens must be an integer vector"),
        ({"lse": torch.zeros(1, 4, 2).long()}, TypeError, "lse must hold floats"),
    ],
)
def test_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attention_column_mass(**({"q": torch.zeros(1, 4, 2, 8), "k": torch.zeros(1, 2, 5, 8)} | arguments))


def test_reference_alone_returns_both() -> None:
    q, k = make(1, 2, 1, 7, 9)
    full, lse = naive(q, k)
    mass, found = attention_column_mass_reference(q, k)
    close(mass, full.sum(2))
    close(found, lse)
