"""Greedy selection of a diverse subset: each pick is the token with the highest score given those already picked."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vtprune.kernels._dispatch import runs_on_triton
from vtprune.kernels._greedy import Selection, fill_rest, prepare
from vtprune.kernels._shared import check_shape

Rule = Literal["maxmin", "maxsum", "mmr", "dpp"]
First = Literal["nearest_neighbour", "mean", "importance"]

# A matrix of all similarities is worth having up to this size, for the pictures of a chunk together.
MATRIX_BYTES = 256 << 20


def greedy_select(
    features: Tensor,
    count: int,
    *,
    rule: Rule = "maxmin",
    first: First | Tensor | None = None,
    importance: Tensor | None = None,
    trade_off: float = 0.5,
    valid: Tensor | None = None,
) -> Tensor:
    """Pick `count` tokens of each picture, one after the other.

    Similarity is the cosine of two tokens' features; a zero row has similarity 0 to every other. A token is picked
    once. Among equal scores the lowest index wins. Tokens whose features or importance are not finite (NaN, infinite,
    or so large that their squares overflow float32) have no influence on others, and are picked only once no other is
    left, lowest index first.

    The torch reference computes in float32 and decides in float64 wherever float32 cannot: its picks are those of
    float64, alone and in a batch. The Triton kernel decides in float32; equal rows tie there too, but scores that
    differ by less than about 1e-6 may fall either way.

    Args:
        features: (pictures, tokens, channels), any floating type.
        count: Number of picks.
        rule: What the next pick maximises:
            "maxmin": its distance (1 - similarity) to the nearest pick (k-center; DivPrune, arXiv 2503.02175);
            "maxsum": the sum of its distances to all picks (ToDRE, arXiv 2505.18757);
            "mmr": `trade_off` times its importance minus (1 - `trade_off`) times its similarity to the nearest pick
            (maximal marginal relevance; IDPruner, arXiv 2602.13315);
            "dpp": the determinant of importance x similarity x importance over the picks (greedy MAP of a conditional
            determinantal point process; CDPruner, arXiv 2506.10967). Once no token adds a factor of 1e-10 (Triton: once
            float32 cannot tell that one does), the rest is picked by importance.
        first: The first pick: the token whose nearest neighbour is farthest away ("nearest_neighbour"), the one
            farthest from the mean direction ("mean"), the most important one ("importance"), or given by its index,
            (pictures,) int64; an index that cannot be picked stands for the lowest one that can. None:
            "nearest_neighbour" for "maxmin" and "maxsum", "importance" for "mmr" and "dpp".
        importance: (pictures, tokens), needed by "mmr" and first="importance"; 1 everywhere if None for "dpp", where
            it should not be negative.
        trade_off: Weight of importance against similarity for "mmr", in [0, 1].
        valid: bool, (pictures, tokens), True for the tokens that may be picked; the others have no influence.

    Returns:
        (pictures, count) int64 in the order of picking; -1 at the end where a picture has too few valid tokens.

    Raises:
        ValueError: An argument is none of the above.
    """
    first = _check(features, count, rule, first, importance, trade_off, valid)
    unsupported = None if features.shape[1] <= 16384 else f"tokens must be at most 16384, got {features.shape[1]}"
    given = first if isinstance(first, Tensor) else None
    if features.numel() and count and runs_on_triton("greedy_select", unsupported, features, given, importance, valid):
        from vtprune.kernels.greedy_select_triton import greedy_select_triton

        return greedy_select_triton(
            features, count, rule=rule, first=first, importance=importance, trade_off=trade_off, valid=valid
        )
    return greedy_select_reference(
        features, count, rule=rule, first=first, importance=importance, trade_off=trade_off, valid=valid
    )


def greedy_select_reference(
    features: Tensor,
    count: int,
    *,
    rule: Rule = "maxmin",
    first: First | Tensor | None = None,
    importance: Tensor | None = None,
    trade_off: float = 0.5,
    valid: Tensor | None = None,
) -> Tensor:
    """`greedy_select` in torch. Reads scores on the host at every step, which is free on the CPU."""
    first = _check(features, count, rule, first, importance, trade_off, valid)
    pictures, tokens, _ = features.shape
    picks = torch.full((pictures, count), -1, dtype=torch.int64, device=features.device)
    wanted = min(count, tokens)
    chunk = max(1, MATRIX_BYTES // (4 * max(tokens, 1) ** 2))
    for start in range(0, pictures if wanted else 0, chunk):
        part = slice(start, start + chunk)
        parts = prepare(features[part], rule, _cut(importance, part), trade_off, _cut(valid, part))
        here = first[part] if isinstance(first, Tensor) else first
        chosen = Selection(features[part], rule, parts, wanted, MATRIX_BYTES).run(here)
        picks[part, :wanted] = fill_rest(chosen, parts.rest)
    return picks


def _cut(tensor: Tensor | None, part: slice) -> Tensor | None:
    return None if tensor is None else tensor[part]


def _check(
    features: Tensor,
    count: int,
    rule: str,
    first: str | Tensor | None,
    importance: Tensor | None,
    trade_off: float,
    valid: Tensor | None,
) -> First | Tensor:
    """Refuse what is not allowed; returns `first` with its default."""
    check_shape("features", features, "pictures", "tokens", "channels")
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}.")
    if rule not in ("maxmin", "maxsum", "mmr", "dpp"):
        raise ValueError(f"rule must be 'maxmin', 'maxsum', 'mmr' or 'dpp', got {rule!r}.")
    if first is None:
        first = "importance" if rule in ("mmr", "dpp") else "nearest_neighbour"
    names = ("nearest_neighbour", "mean", "importance")
    if isinstance(first, Tensor):
        _check_grid("first", first, features.shape[:1])
    elif first not in names:
        raise ValueError(f"first must be one of {names} or a tensor of indices, got {first!r}.")
    uses = rule in ("mmr", "dpp") or (isinstance(first, str) and first == "importance")
    if importance is None:
        if uses and rule != "dpp":
            raise ValueError(f"rule={rule!r} with first={first!r} needs importance, got None.")
    elif not uses:
        raise ValueError(f"rule={rule!r} with first={first!r} does not use importance; leave it out.")
    for name, tensor in (("importance", importance), ("valid", valid)):
        if tensor is not None:
            _check_grid(name, tensor, features.shape[:2])
    if not 0.0 <= trade_off <= 1.0:
        raise ValueError(f"trade_off must be in [0, 1], got {trade_off!r}.")
    return first  # type: ignore[return-value]


def _check_grid(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have the shape {tuple(shape)}, got {tuple(tensor.shape)}.")
