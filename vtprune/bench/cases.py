"""The operators at shapes that occur: what is called, what it is compared with, and the least that it has to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtprune import kernels
from vtprune.kernels.attention_column_mass import attention_column_mass_reference
from vtprune.kernels.attention_scores import attention_scores_reference
from vtprune.kernels.bipartite_merge import bipartite_matching_reference, merge_by_owner_reference
from vtprune.kernels.flash_attention_with_scores import flash_attention_reference
from vtprune.kernels.greedy_select import greedy_select_reference
from vtprune.kernels.ragged_compact import ragged_compact_reference

SCORED = "sdpa forward and attention_scores"
"""The other way to get attention with scores; `evals/gpu_bench.py` decides between the two."""

Call = Callable[[], Any]
Judge = Callable[[Any, Any], str | None]


@dataclasses.dataclass(frozen=True)
class Work:
    """The least that an operator must do.

    Args:
        bytes: To read its inputs and write its outputs once.
        flops: Of its matrix products, in the inputs' precision.
    """

    bytes: int
    flops: int = 0


@dataclasses.dataclass(frozen=True)
class Case:
    """One operator at one shape.

    Args:
        operator: Its name in `vtprune.kernels`.
        shape: In words.
        versions: By name; "operator" is what users get, "reference" what it must agree with.
        work: For the floor.
        differs: Says how a version's result differs from the reference's, None if it does not.
        beside: Versions that compute something else, for scale; they are not compared.
    """

    operator: str
    shape: str
    versions: dict[str, Call]
    work: Work
    differs: Judge
    beside: dict[str, Call] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Where and in what precision the cases run; `small` shapes are for CPUs."""

    device: torch.device
    dtype: torch.dtype
    small: bool

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        """Normally distributed numbers."""
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(*shape, generator=generator, device=self.device).to(self.dtype)


def close(tolerance: float) -> Judge:
    """Results that may differ by a share of their largest value; not a number is different from all."""

    def judge(found: Any, wanted: Any) -> str | None:
        found, wanted = found.double(), wanted.double()
        if found.shape != wanted.shape:
            return f"shape {tuple(found.shape)} instead of {tuple(wanted.shape)}"
        error = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        return None if error <= tolerance else f"off by {error:.1e} of the largest value, allowed {tolerance:.0e}"

    return judge


def _tolerance(scene: Scene) -> float:
    return 1e-5 if scene.dtype == torch.float32 else 1e-2


def attention_scores(scene: Scene) -> Iterator[Case]:
    """Query rows against all keys: the last prompt token, all text, the class token."""
    long = 1024 if scene.small else 4096
    shapes = [
        ("last token, 32 heads of 128", (1, 32, 32, 1, 640, 128)),
        (f"last token, 28 heads of 128 on 4, {long} keys", (1, 28, 4, 1, long, 128)),
        (f"64 text tokens, 28 heads on 4, {long} keys", (1, 28, 4, 64, long, 128)),
        ("class token of 16 pictures, 16 heads of 64", (16, 16, 16, 1, 577, 64)),
    ]
    for words, (batch, heads, kv_heads, rows, keys, dim) in shapes:
        q, k = scene.random(batch, heads, rows, dim), scene.random(batch, kv_heads, keys, dim, seed=1)
        yield Case(
            "attention_scores",
            words,
            {
                "operator": partial(kernels.attention_scores, q, k),
                "reference": partial(attention_scores_reference, q, k),
            },
            Work(q.nbytes + k.nbytes + 4 * batch * keys, 2 * batch * heads * rows * keys * dim),
            close(_tolerance(scene)),
        )


def attention_column_mass(scene: Scene) -> Iterator[Case]:
    """Column sums of the attention matrix; an attention forward of the same shape stands beside."""
    tokens = 576 if scene.small else 4096
    for words, heads, kv_heads, dim, causal in (
        (f"vision, {tokens} patches, 16 heads of 80", 16, 16, 80, False),
        (f"decoder, {tokens} tokens, 28 heads of 128 on 4, causal", 28, 4, 128, True),
    ):
        q, k = scene.random(1, heads, tokens, dim), scene.random(1, kv_heads, tokens, dim, seed=1)
        v = scene.random(1, kv_heads, tokens, dim, seed=2)
        lse = attention_column_mass_reference(q, k, causal=causal, want_lse=True)[1]
        plain = _column_mass(q, k, causal)
        shares = 0.5 if causal else 1.0
        yield Case(
            "attention_column_mass",
            words,
            {
                "operator": partial(kernels.attention_column_mass, q, k, causal=causal),
                "operator, given log-sum-exp": partial(kernels.attention_column_mass, q, k, causal=causal, lse=lse),
                "reference": plain,
            },
            Work(q.nbytes + k.nbytes + 4 * tokens, int(shares * 2 * heads * tokens**2 * dim)),
            close(_tolerance(scene)),
            {"sdpa forward": _attention(q, k, v, causal)},
        )


def _column_mass(q: Tensor, k: Tensor, causal: bool) -> Call:
    def mass() -> Tensor:
        return attention_column_mass_reference(q, k, causal=causal)[0].mean(1) / q.shape[2]

    return mass


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Call:
    attention = torch.nn.functional.scaled_dot_product_attention
    return lambda: attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


def flash_attention_with_scores(scene: Scene) -> Iterator[Case]:
    """A decoder's attention that also scores its keys by the last row; beside it, sdpa with and without that."""
    long = 576 if scene.small else 4096
    for words, heads, kv_heads, rows in (
        ("decoder, 32 heads of 128, 640 tokens", 32, 32, 640),
        (f"decoder, 28 heads of 128 on 4, {long} tokens", 28, 4, long),
    ):
        q, k, v = (scene.random(1, h, rows, 128, seed=i) for i, h in enumerate((heads, kv_heads, kv_heads)))
        last = torch.full((1, 1), rows - 1, device=scene.device)
        sdpa = _attention(q, k, v, True)

        def scored(sdpa: Call = sdpa, q: Tensor = q, k: Tensor = k) -> tuple[Tensor, Tensor]:
            return sdpa(), kernels.attention_scores(q[:, :, -1:], k)

        def plain(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> tuple[Tensor, Tensor]:
            return flash_attention_reference(q, k, v, causal=True)[0], attention_scores_reference(q[:, :, -1:], k)

        def flash(q: Tensor = q, k: Tensor = k, v: Tensor = v, last: Tensor = last) -> tuple[Any, Any]:
            out, _, scores = kernels.flash_attention_with_scores(q, k, v, causal=True, score_rows=last)
            return out, scores

        def unscored(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Any:
            return kernels.flash_attention_with_scores(q, k, v, causal=True, scores=False)

        yield Case(
            "flash_attention_with_scores",
            words,
            {"operator": flash, SCORED: scored, "reference": plain},
            Work(2 * (q.nbytes + k.nbytes), 2 * heads * rows**2 * 128),
            _all_close(_tolerance(scene)),
            {"operator, without scores": unscored, "sdpa forward": sdpa},
        )


def _all_close(tolerance: float) -> Judge:
    judge = close(tolerance)

    def all_of(found: Any, wanted: Any) -> str | None:
        return next((said for pair in zip(found, wanted, strict=True) if (said := judge(*pair)) is not None), None)

    return all_of


def greedy_select(scene: Scene) -> Iterator[Case]:
    """A diverse subset; beside the two straightforward ways, all similarities first, and one row for each step."""
    shapes = [(1, 576, 64)] if scene.small else [(1, 576, 64), (16, 576, 64), (1, 2880, 640), (1, 16384, 2048)]
    for pictures, tokens, count in shapes:
        x = scene.random(pictures, tokens, 1024)
        versions: dict[str, Call] = {
            "operator": partial(kernels.greedy_select, x, count, first="mean"),
            "reference": partial(greedy_select_reference, x, count, first="mean"),
            "one row for each step": partial(_farthest, x, count, matrix=False),
        }
        if tokens <= 4096:
            versions["whole matrix first"] = partial(_farthest, x, count, matrix=True)
        yield Case(
            "greedy_select",
            f"farthest {count} of {tokens}, {pictures} picture(s), 1,024 channels",
            versions,
            Work(x.nbytes + 8 * pictures * count, 2 * pictures * tokens * count * 1024),
            partial(_other_picks, x),
        )


def _farthest(features: Tensor, count: int, matrix: bool) -> Tensor:
    """Farthest points as one writes them down: float32, every step a few operators."""
    unit = torch.nn.functional.normalize(features.float(), dim=-1)
    batch = torch.arange(len(unit), device=unit.device)
    pairs = unit @ unit.transpose(1, 2) if matrix else None
    pick = (unit @ unit.sum(1).unsqueeze(2)).squeeze(2).argmin(1)
    nearest = torch.full(unit.shape[:2], -torch.inf, device=unit.device)
    picks = []
    for _ in range(count):
        picks.append(pick)
        row = (unit @ unit[batch, pick].unsqueeze(2)).squeeze(2) if pairs is None else pairs[batch, pick]
        nearest = torch.maximum(nearest, row)
        nearest[batch, pick] = torch.inf
        pick = nearest.argmin(1)
    return torch.stack(picks, 1)


def _other_picks(features: Tensor, found: Tensor, wanted: Tensor) -> str | None:
    """Picks may differ from where two tokens are equally far to within float32."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    for picture in (found != wanted).any(1).nonzero()[:, 0].tolist():
        step = int((found[picture] != wanted[picture]).nonzero()[0])
        rows = unit[picture]
        likeness = (rows @ rows[wanted[picture, :step]].T).amax(1) if step else rows @ rows.sum(0)
        score = -likeness
        gap = float(score[wanted[picture, step]] - score[found[picture, step]])
        if abs(gap) > 1e-5 * max(1.0, float(score.abs().max())):
            return f"picture {picture}: pick {step} is another one, whose score is smaller by {gap:.1e}"
    return None


def bipartite_merge(scene: Scene) -> Iterator[Case]:
    """Matching in a vision block, and the merge that follows from it."""
    pictures, tokens, merges = (1, 577, 54) if scene.small else (16, 577, 25)
    keys, hidden = scene.random(pictures, tokens, 64), scene.random(pictures, tokens, 1024, seed=1)
    sizes = torch.ones(pictures, tokens, device=scene.device)
    matching = kernels.bipartite_matching(keys, merges, protected=1)
    owner, groups = kernels.owner_map(matching, tokens, protected=1)
    yield Case(
        "bipartite_matching",
        f"{merges} of {tokens}, {pictures} picture(s), 64 channels",
        {
            "operator": lambda: kernels.bipartite_matching(keys, merges, protected=1),
            "reference": lambda: bipartite_matching_reference(keys, merges, protected=1),
        },
        Work(keys.nbytes + 8 * pictures * tokens, 2 * pictures * (tokens // 2) ** 2 * 64),
        partial(_other_pairs, keys),
    )
    yield Case(
        "merge_by_owner",
        f"{tokens} to {groups} tokens, {pictures} picture(s), 1,024 channels",
        {
            "operator": lambda: kernels.merge_by_owner(hidden, owner, groups, sizes)[0],
            "reference": lambda: merge_by_owner_reference(hidden, owner, groups, sizes)[0],
        },
        Work(hidden.nbytes + hidden.nbytes * groups // tokens + owner.nbytes),
        close(_tolerance(scene)),
    )


def _other_pairs(keys: Tensor, found: Any, wanted: Any) -> str | None:
    """Pairs may differ where two similarities are equal to within float32."""
    unit = torch.nn.functional.normalize(keys.double(), dim=-1)

    def likeness(pairs: Any) -> Tensor:
        a, b = 2 * pairs.sources, 2 * pairs.destinations + 1
        return (unit.take_along_dim(a[..., None], 1) * unit.take_along_dim(b[..., None], 1)).sum(-1)

    gap = float((likeness(found) - likeness(wanted)).abs().max())
    return None if gap <= 1e-5 else f"pairs whose similarities differ by {gap:.1e}"


def ragged_compact(scene: Scene) -> Iterator[Case]:
    """Rows that keep different numbers of slots: hidden states, positions and the picture of every slot."""
    rows, slots, width = (2, 620, 768) if scene.small else (16, 4096, 3584)
    generator = torch.Generator(scene.device).manual_seed(0)
    keep = torch.rand(rows, slots, generator=generator, device=scene.device) < 0.25
    hidden = scene.random(rows, slots, width)
    positions = torch.arange(slots, device=scene.device).expand(rows, -1)
    given = [hidden, positions, positions // 2]
    kept = int(keep.sum(1).max())
    yield Case(
        "ragged_compact",
        f"a quarter of {slots:,} slots, {rows} rows, {width:,} channels and two maps",
        {
            "operator": lambda: kernels.ragged_compact(keep, given)[2],
            "operator, given its width": lambda: kernels.ragged_compact(keep, given, width=kept, padded=True)[2],
            "reference": lambda: ragged_compact_reference(keep, given)[2],
        },
        Work(keep.nbytes + 2 * rows * kept * (width * hidden.element_size() + 16)),
        _all_close(0.0),
    )


CASES: dict[str, Callable[[Scene], Iterator[Case]]] = {
    "attention_scores": attention_scores,
    "attention_column_mass": attention_column_mass,
    "flash_attention_with_scores": flash_attention_with_scores,
    "greedy_select": greedy_select,
    "bipartite_merge": bipartite_merge,
    "ragged_compact": ragged_compact,
}
"""By what `--operator` calls them."""


def find_cases(names: Sequence[str], scene: Scene) -> Iterator[Case]:
    """The cases of these operators, of all if none is named; made one after the other, as some are large.

    Raises:
        ValueError: There is no such operator.
    """
    for name in names:
        if name not in CASES:
            raise ValueError(f"unknown operator {name!r}; there are {', '.join(CASES)}.")
    for name in names or CASES:
        yield from CASES[name](scene)
