from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.conftest import DEVICE
from vtprune.kernels import compact_index, gather_rows, ragged_compact


@pytest.fixture(autouse=True)
def _on_the_device() -> Iterator[None]:
    """New tensors are on the GPU if there is one."""
    with torch.device(DEVICE):
        yield


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), rows=st.integers(1, 4), slots=st.integers(1, 12))
def test_matches_naive(backend: str, data: st.DataObject, rows: int, slots: int) -> None:
    bits = st.lists(st.booleans(), min_size=slots, max_size=slots)
    keep = torch.tensor(data.draw(st.lists(bits, min_size=rows, max_size=rows)))
    index, valid = compact_index(keep)
    kept = [row.nonzero()[:, 0].tolist() for row in keep]
    longest = max(map(len, kept))
    assert index.shape == (rows, longest)
    assert index.dtype == torch.int64
    assert (valid is None) == (len({len(k) for k in kept}) == 1)
    for i, expected in enumerate(kept):
        padding = longest - len(expected)
        assert index[i].tolist() == [0] * padding + expected
        if valid is not None:
            assert valid[i].tolist() == [False] * padding + [True] * len(expected)


@pytest.mark.parametrize("slots", [1, 7, 63, 577])
def test_keep_all_is_the_identity(backend: str, slots: int) -> None:
    index, valid = compact_index(torch.ones(2, slots, dtype=torch.bool))
    assert valid is None
    assert torch.equal(index, torch.arange(slots).expand(2, -1))


def test_nothing_kept(backend: str) -> None:
    index, valid = compact_index(torch.zeros(3, 5, dtype=torch.bool))
    assert index.shape == (3, 0)
    assert valid is None
    assert gather_rows(torch.ones(3, 5, 2), index).shape == (3, 0, 2)


def test_one_empty_row_among_others(backend: str) -> None:
    index, valid = compact_index(torch.tensor([[False, False, False], [True, False, True]]))
    assert index.tolist() == [[0, 0], [0, 2]]
    assert valid is not None
    assert valid.tolist() == [[False, False], [True, True]]


def test_no_rows(backend: str) -> None:
    index, valid = compact_index(torch.zeros(0, 4, dtype=torch.bool))
    assert index.shape == (0, 0)
    assert valid is None


def test_non_contiguous_keep(backend: str) -> None:
    keep = torch.tensor([[True, False, True], [False, True, True]]).T
    index, valid = compact_index(keep)
    assert index.tolist() == [[0, 0], [0, 1], [0, 1]]
    assert valid is not None
    assert valid.tolist() == [[False, True], [False, True], [True, True]]


@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 3), (2, 7, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_gather_rows(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randint(0, 2, shape, generator=torch.Generator(DEVICE).manual_seed(0)).to(dtype)
    index = torch.tensor([[6, 0, 0], [1, 2, 5]])
    out = gather_rows(x, index)
    assert out.dtype == dtype
    assert torch.equal(out, torch.stack([x[i, index[i]] for i in range(2)]))


def test_gather_rows_non_contiguous(backend: str) -> None:
    x = torch.arange(24.0).view(2, 3, 4).transpose(1, 2)
    index = torch.tensor([[3, 1], [0, 2]])
    assert torch.equal(gather_rows(x, index), torch.stack([x[i, index[i]] for i in range(2)]))


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"keep must have the axes \(rows, slots\), got the shape \(3,\)"):
        compact_index(torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("fills", [None, (0.5, -1, True, None)])
def test_several_tensors_in_one_call(backend: str, fills: tuple[float | int | bool | None, ...] | None) -> None:
    generator = torch.Generator(DEVICE).manual_seed(0)
    keep = torch.rand(3, 70, generator=generator) < torch.tensor([[0.5], [0.9], [0.0]])
    hidden = torch.randn(70, 3, 33, generator=generator).bfloat16().transpose(0, 1)
    positions = torch.randint(0, 2**40, (3, 3, 70), generator=generator).permute(1, 2, 0)
    given = (hidden, positions, keep.clone(), torch.randn(3, 70, 2, 2, generator=generator))
    index, valid, tensors = ragged_compact(keep, given, fills=fills)
    assert valid is not None
    for i, (before, after) in enumerate(zip(given, tensors, strict=True)):
        assert after.dtype == before.dtype
        expected = gather_rows(before, index)
        if fills is not None and fills[i] is not None:
            expected[~valid] = fills[i]
        assert torch.equal(after, expected)


@pytest.mark.parametrize("width", [2, 5])
def test_known_width(backend: str, width: int) -> None:
    keep = torch.tensor([[True, False, True], [False, True, True]])
    index, valid = compact_index(keep, width=width, padded=True)
    assert index.tolist() == [[0] * (width - 2) + [0, 2], [0] * (width - 2) + [1, 2]]
    assert valid is not None
    assert valid.tolist() == [[False] * (width - 2) + [True, True]] * 2
    assert (compact_index(keep, width=width)[1] is None) == (width == 2)
    if width == 2:
        assert compact_index(keep, width=2, padded=False)[1] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 1}, "width=1 and padded=None do not fit rows that keep \\[2, 1\\] slots"),
        ({"width": 2, "padded": False}, "width=2 and padded=False do not fit"),
        ({"padded": False}, "padded=False needs width, got None"),
        ({"width": -1}, "width must be at least 0, got -1"),
        ({"fills": (0,)}, "fills must have one value for each of 0 tensors, got 1"),
        ({"tensors": (torch.zeros(2, 4),)}, "must begin with the axes"),
        ({"keep": torch.ones(2, 3)}, "keep must be bool, got torch.float32"),
    ],
)
def test_refuses(arguments: dict, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VTPRUNE_KERNELS", "torch")
    keep = torch.tensor([[True, False, True], [False, True, False]])
    with pytest.raises(ValueError, match=message):
        ragged_compact(**({"keep": keep, "tensors": ()} | arguments))


def test_rows_without_slots(backend: str) -> None:
    keep = torch.zeros(2, 0, dtype=torch.bool, device=DEVICE)
    index, valid, (x,) = ragged_compact(keep, [torch.zeros(2, 0, 3, device=DEVICE)])
    assert index.shape == (2, 0)
    assert valid is None
    assert x.shape == (2, 0, 3)
