from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vtprune.kernels import compact_index, gather_rows


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rows=st.integers(1, 4), slots=st.integers(1, 12))
def test_matches_naive(data: st.DataObject, rows: int, slots: int) -> None:
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
def test_keep_all_is_the_identity(slots: int) -> None:
    index, valid = compact_index(torch.ones(2, slots, dtype=torch.bool))
    assert valid is None
    assert torch.equal(index, torch.arange(slots).expand(2, -1))


def test_nothing_kept() -> None:
    index, valid = compact_index(torch.zeros(3, 5, dtype=torch.bool))
    assert index.shape == (3, 0)
    assert valid is None
    assert gather_rows(torch.ones(3, 5, 2), index).shape == (3, 0, 2)


def test_one_empty_row_among_others() -> None:
    index, valid = compact_index(torch.tensor([[False, False, False], [True, False, True]]))
    assert index.tolist() == [[0, 0], [0, 2]]
    assert valid is not None
    assert valid.tolist() == [[False, False], [True, True]]


def test_no_rows() -> None:
    index, valid = compact_index(torch.zeros(0, 4, dtype=torch.bool))
    assert index.shape == (0, 0)
    assert valid is None


def test_non_contiguous_keep() -> None:
    keep = torch.tensor([[True, False, True], [False, True, True]]).T
    index, valid = compact_index(keep)
    assert index.tolist() == [[0, 0], [0, 1], [0, 1]]
    assert valid is not None
    assert valid.tolist() == [[False, True], [False, True], [True, True]]


@pytest.mark.parametrize("shape", [(2, 7), (2, 7, 3), (2, 7, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_gather_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    index = torch.tensor([[6, 0, 0], [1, 2, 5]])
    out = gather_rows(x, index)
    assert out.dtype == dtype
    assert torch.equal(out, torch.stack([x[i, index[i]] for i in range(2)]))


def test_gather_rows_non_contiguous() -> None:
    x = torch.arange(24.0).view(2, 3, 4).transpose(1, 2)
    index = torch.tensor([[3, 1], [0, 2]])
    assert torch.equal(gather_rows(x, index), torch.stack([x[i, index[i]] for i in range(2)]))


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"keep must have the axes \(rows, slots\), got the shape \(3,\)"):
        compact_index(torch.ones(3, dtype=torch.bool))
