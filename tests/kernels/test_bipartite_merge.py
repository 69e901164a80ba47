from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.conftest import DEVICE
from vtprune.kernels import bipartite_matching, merge_by_owner, owner_map, unmerge


@pytest.fixture(autouse=True)
def _on_the_device() -> Iterator[None]:
    """New tensors are on the GPU if there is one."""
    with torch.device(DEVICE):
        yield


def naive_groups(keys: Tensor, merges: int, protected: int) -> list[list[int]]:
    """Groups of one picture in output order, each with the token that stays first."""
    n = len(keys)
    unit = torch.nn.functional.normalize(keys.double(), dim=-1)
    similarity = unit @ unit.T
    merges = min(merges, (n - protected) // 2)
    sources = [a for a in range(0, n, 2) if not (protected and a == 0)]
    targets = [b for b in range(1, n, 2) if not (protected == 2 and b == 1)]
    partner = {a: max(targets, key=lambda b: (similarity[a, b].item(), -b)) for a in sources} if targets else {}
    ranked = sorted(partner, key=lambda a: (-similarity[a, partner[a]].item(), a))
    merged, rest = ranked[:merges], ranked[merges:] if targets else sources
    alone = sorted([0, *rest]) if protected else rest
    groups = [[a] for a in alone] + [[b, *(a for a in merged if partner[a] == b)] for b in range(1, n, 2)]
    if protected == 2:
        groups.insert(1, groups.pop(len(alone)))
    return groups


def make(pictures: int, tokens: int, channels: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(pictures, tokens, channels, generator=torch.Generator(DEVICE).manual_seed(seed))


def owner_of(keys: Tensor, merges: int, protected: int = 0) -> tuple[Tensor, int]:
    return owner_map(bipartite_matching(keys, merges, protected=protected), keys.shape[1], protected=protected)


def groups_of(owner: Tensor, groups: int) -> list[set[int]]:
    return [set((owner == g).nonzero()[:, 0].tolist()) for g in range(groups)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 24),
    merges=st.integers(0, 15),
    protected=st.integers(0, 2),
    seed=st.integers(0, 20),
)
def test_groups_match_naive(backend: str, tokens: int, merges: int, protected: int, seed: int) -> None:
    protected = min(protected, tokens)
    keys = make(2, tokens, seed=seed)
    owner, count = owner_of(keys, merges, protected)
    for i in range(2):
        assert groups_of(owner[i], count) == [set(g) for g in naive_groups(keys[i], merges, protected)]


@pytest.mark.parametrize("tokens", [7, 63, 577])
def test_protected_tokens_stay_alone_and_first(backend: str, tokens: int) -> None:
    keys = make(2, tokens)
    keys[:, 2] = keys[:, 1]
    keys[:, 3] = keys[:, 0]
    owner, _ = owner_of(keys, tokens, 1)
    assert ((owner == 0).sum(1) == 1).all()
    assert (owner[:, 0] == 0).all()
    owner, _ = owner_of(keys, tokens, 2)
    assert ((owner == 0).sum(1) == 1).all()
    assert ((owner == 1).sum(1) == 1).all()
    assert (owner[:, :2] == torch.arange(2)).all()


def test_ties_lower_index_wins(backend: str) -> None:
    matching = bipartite_matching(torch.ones(1, 9, 4), 3, protected=1)
    assert matching.sources.tolist() == [[1, 2, 3]]
    assert matching.destinations.tolist() == [[0, 0, 0]]
    assert matching.unmerged.tolist() == [[0, 4]]
    assert bipartite_matching(torch.ones(1, 9, 4), 3).unmerged.tolist() == [[3, 4]]


def test_zero_keys_give_no_nan(backend: str) -> None:
    matching = bipartite_matching(torch.zeros(1, 8, 4), 2)
    assert matching.sources.tolist() == [[0, 1]]


@pytest.mark.parametrize("tokens", [1, 2, 7, 63])
def test_asking_for_more_merges_at_most_half(backend: str, tokens: int) -> None:
    for protected in range(min(tokens, 2) + 1):
        owner, groups = owner_of(make(1, tokens), 1000, protected)
        assert groups == tokens - (tokens - protected) // 2
        assert owner.unique().numel() == groups


def test_bfloat16_keys_are_matched_in_float32(backend: str) -> None:
    keys = make(2, 64).bfloat16()
    for a, b in zip(bipartite_matching(keys, 9), bipartite_matching(keys.float(), 9), strict=True):
        assert torch.equal(a, b)


def test_autocast_changes_nothing(backend: str) -> None:
    keys = make(2, 64)
    expected = bipartite_matching(keys, 20)
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(bipartite_matching(keys, 20), expected, strict=True):
            assert torch.equal(a, b)


def test_non_contiguous_keys(backend: str) -> None:
    keys = make(6, 31, 2).permute(2, 1, 0)
    for a, b in zip(bipartite_matching(keys, 9), bipartite_matching(keys.contiguous(), 9), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("protected", [-1, 3])
def test_refuses_other_protection(protected: int) -> None:
    with pytest.raises(ValueError, match=f"protected must be 0, 1 or 2, got {protected}"):
        bipartite_matching(make(1, 8), 2, protected=protected)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pictures=st.integers(1, 3),
    tokens=st.integers(1, 12),
    groups=st.integers(1, 8),
    channels=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_merge_matches_naive(backend: str, pictures: int, tokens: int, groups: int, channels: int, seed: int) -> None:
    g = torch.Generator(DEVICE).manual_seed(seed)
    x = torch.randn(pictures, tokens, channels, generator=g)
    owner = torch.randint(0, groups, (pictures, tokens), generator=g)
    sizes = torch.randint(1, 6, (pictures, tokens), generator=g).float()
    merged, merged_sizes = merge_by_owner(x, owner, groups, sizes)
    for p in range(pictures):
        for group in range(groups):
            inside = owner[p] == group
            weight = sizes[p, inside].double()
            expected = (x[p, inside].double() * weight[:, None]).sum(0) / max(weight.sum().item(), 1e-30)
            torch.testing.assert_close(merged[p, group], expected.float(), atol=1e-6, rtol=1e-5)
            assert merged_sizes[p, group] == weight.sum()


def test_merge_without_sizes_counts_tokens(backend: str) -> None:
    x, owner = make(1, 4, 3), torch.tensor([[1, 0, 1, 1]])
    merged, sizes = merge_by_owner(x, owner, 2)
    assert sizes.tolist() == [[1.0, 3.0]]
    torch.testing.assert_close(merged[0, 1], x[0, [0, 2, 3]].mean(0))


def test_merge_bfloat16_accumulates_in_float32(backend: str) -> None:
    x = torch.full((1, 1001, 2), 1.0, dtype=torch.bfloat16)
    x[0, 0] = 512.0
    merged, sizes = merge_by_owner(x, torch.zeros(1, 1001, dtype=torch.int64), 1)
    assert merged.dtype == torch.bfloat16
    assert sizes.item() == 1001
    torch.testing.assert_close(merged.float(), torch.full((1, 1, 2), 1512 / 1001), rtol=4e-3, atol=0)


def test_merge_non_contiguous(backend: str) -> None:
    x = make(3, 8, 5).transpose(1, 2)  # (3, 5, 8)
    owner = torch.tensor([[0, 1, 1, 0, 2]]).expand(3, -1)
    actual, expected = merge_by_owner(x, owner, 3), merge_by_owner(x.contiguous(), owner.contiguous(), 3)
    assert torch.equal(actual[0], expected[0])


@pytest.mark.parametrize("protected", [0, 1, 2])
def test_unmerge_gives_back_lone_tokens(backend: str, protected: int) -> None:
    x = make(2, 31)
    owner, groups = owner_of(x, 7, protected)
    merged, sizes = merge_by_owner(x, owner, groups)
    back = unmerge(merged, owner)
    alone = sizes.gather(1, owner) == 1
    assert back.shape == x.shape
    assert alone.any()
    assert not alone.all()
    torch.testing.assert_close(back[alone], x[alone])
    assert torch.equal(merge_by_owner(torch.ones_like(x), owner, groups)[0], torch.ones(2, groups, 6))


def test_keys_that_are_not_finite_merge_last(backend: str) -> None:
    keys = make(1, 16)
    keys[0, 4, 0], keys[0, 7, 1] = torch.nan, torch.inf
    matching = bipartite_matching(keys, 7)
    assert 3 not in matching.destinations[0].tolist(), "token 7 is the fourth of B"
    assert matching.unmerged.tolist() == [[2]], "token 4 is the third of A"
    assert bipartite_matching(torch.full((1, 6, 4), torch.nan), 3, protected=1).sources.tolist() == [[1, 2]]


def test_merge_of_empty_groups_and_nan(backend: str) -> None:
    x = make(1, 4, 3)
    x[0, 1, 2] = torch.nan
    merged, sizes = merge_by_owner(x, torch.tensor([[0, 2, 0, 3]]), 5)
    assert sizes.tolist() == [[2.0, 0.0, 1.0, 1.0, 0.0]]
    assert merged.isnan().nonzero().tolist() == [[0, 2, 2]]
    assert not merged[0, [1, 4]].any()


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"owner must have the shape \(1, 4\), got \(1, 3\)"):
        merge_by_owner(make(1, 4, 3), torch.zeros(1, 3, dtype=torch.int64), 2)


def test_merge_with_a_transposed_owner(backend: str) -> None:
    x, owner = make(3, 9, 5), torch.randint(0, 4, (3, 9), generator=torch.Generator(DEVICE).manual_seed(0))
    for actual, expected in zip(
        merge_by_owner(x, owner.t().contiguous().t(), 4),
        merge_by_owner(x, owner, 4),
        strict=True,
    ):
        assert torch.equal(actual, expected)
