"""`greedy_select` on GPUs: all similarities by tiles, then one program per picture that makes all picks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtprune.kernels._cosine import NOBODY, float32_error
from vtprune.kernels._decide import NO_LIKENESS
from vtprune.kernels._greedy import LEAST_GAIN, prepare
from vtprune.kernels._shared import full_precision
from vtprune.kernels._tiles_triton import similarity_tile

# Similarities of all pairs, for as many pictures at a time as fit; without them a program computes its rows itself.
MATRIX_BYTES = 1 << 30
TILE = 64
TILE_CHANNELS = 32
# Stands before every real score: dead tokens, which are picked last.
LAST = -3.0e38
RULES = {"maxmin": 0, "mmr": 0, "maxsum": 1, "dpp": 2}


@triton.jit
def pairs_kernel(
    unit,
    live,
    pairs,
    closest,
    tokens,
    channels,
    NOBODY: tl.constexpr,
    STORE: tl.constexpr,
    NEAREST: tl.constexpr,
    TILE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """One block of rows of a picture's similarities, and each row's largest to another live token."""
    picture = tl.program_id(1).to(tl.int64)
    unit += picture * tokens * channels
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    nearest = tl.full((TILE,), NOBODY, tl.float32)
    for start in range(0, tokens, TILE):
        columns = start + tl.arange(0, TILE)
        tile = similarity_tile(
            unit, unit, channels, 1, channels, 1, rows, columns, tokens, tokens, channels, TILE, TILE, CHANNELS
        )
        if STORE:
            places = pairs + (picture * tokens + rows[:, None]) * tokens + columns[None, :]
            tl.store(places, tile, mask=(rows < tokens)[:, None] & (columns < tokens)[None, :])
        if NEAREST:
            alive = tl.load(live + picture * tokens + columns, mask=columns < tokens, other=0) != 0
            other = alive[None, :] & (rows[:, None] != columns[None, :])
            nearest = tl.maximum(nearest, tl.max(tl.where(other, tile, NOBODY), 1))
    if NEAREST:
        tl.store(closest + picture * tokens + rows, nearest, mask=rows < tokens)


@triton.jit
def greedy_kernel(
    similarities,
    score,
    base,
    weight,
    rest,
    factor,
    picks,
    tokens,
    channels,
    count,
    noise,
    least_gain,
    NO_LIKENESS: tl.constexpr,
    RULE: tl.constexpr,
    LAZY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All picks of one picture; scores live in registers."""
    picture = tl.program_id(0).to(tl.int64)
    token = tl.arange(0, BLOCK)
    inside = token < tokens
    here = picture * tokens + token
    picks += picture * count
    now = tl.load(score + here, mask=inside, other=float("-inf"))
    base_now = tl.load(base + here, mask=inside, other=float("-inf"))
    weight_now = tl.load(weight + here, mask=inside, other=0.0)
    likeness = tl.full((BLOCK,), NO_LIKENESS, tl.float32)
    if RULE == 2:
        rest_now = tl.load(rest + here, mask=inside, other=float("-inf"))
        factor += picture * count * tokens
    if LAZY:
        similarities += picture * channels * tokens
    else:
        similarities += picture * tokens * tokens
    for step in range(0, count):
        best, pick = tl.max(now, 0, return_indices=True)
        tl.store(picks + step, tl.where(best > float("-inf"), pick, -1).to(tl.int64))
        base_now = tl.where(token == pick, float("-inf"), base_now)
        row = tl.zeros((BLOCK,), tl.float32)
        if LAZY:
            # Channel by channel, all tokens at once: equal rows get equal bits.
            line = similarities
            for _channel in range(0, channels):
                row += tl.load(line + pick) * tl.load(line + token, mask=inside, other=0.0)
                line += tokens
        else:
            row = tl.load(similarities + pick.to(tl.int64) * tokens + token, mask=inside, other=0.0)
        if RULE == 0:
            likeness = tl.maximum(likeness, row)
        elif RULE == 1:
            likeness += row
        else:
            rest_now = tl.where(token == pick, float("-inf"), rest_now)
            # One more row of the Cholesky factor of the similarities.
            line = factor
            for _earlier in range(0, step):
                row -= tl.load(line + pick) * tl.load(line + token, mask=inside, other=0.0)
                line += tokens
            left = tl.sum(tl.where(token == pick, -likeness, 0.0))
            row = row / tl.sqrt(tl.maximum(left, noise))
            tl.store(line + token, row, mask=inside)
            # Other threads read this row's entries in later steps.
            tl.debug_barrier()
            likeness += row * row
        now = base_now - weight_now * likeness
        if RULE == 2:
            # What float32 cannot tell from nothing is nothing.
            now = tl.where(-likeness < noise, base_now, now)
            now = tl.where(tl.max(now, 0) < least_gain, rest_now, now)


def greedy_select_triton(
    features: Tensor,
    count: int,
    *,
    rule: str,
    first: str | Tensor,
    importance: Tensor | None,
    trade_off: float,
    valid: Tensor | None,
) -> Tensor:
    """`greedy_select` by Triton kernels."""
    pictures, tokens, _ = features.shape
    picks = torch.full((pictures, count), -1, dtype=torch.int64, device=features.device)
    room = _room(features.device, 4 * tokens**2 * pictures)
    lazy = 4 * tokens**2 > room
    chunk = pictures if lazy else max(1, room // (4 * tokens**2))
    wanted = min(count, tokens)
    for start in range(0, pictures, chunk):
        part = slice(start, start + chunk)
        picks[part, :wanted] = _select(
            features[part],
            wanted,
            rule,
            first[part] if isinstance(first, Tensor) else first,
            None if importance is None else importance[part],
            trade_off,
            None if valid is None else valid[part],
            lazy,
        )
    return picks


def _room(device: torch.device, needed: int) -> int:
    """Bytes that matrices of similarities may take; beyond them, rows are computed when they are needed."""
    if device.type != "cuda" or needed <= MATRIX_BYTES // 16:
        return MATRIX_BYTES
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(MATRIX_BYTES, free // 2)


def _select(
    features: Tensor,
    count: int,
    rule: str,
    first: str | Tensor,
    importance: Tensor | None,
    trade_off: float,
    valid: Tensor | None,
    lazy: bool,
) -> Tensor:
    parts = prepare(features, rule, importance, trade_off, valid)
    unit, live = parts.unit.contiguous(), parts.live.contiguous()
    pictures, tokens, channels = unit.shape
    nearest = isinstance(first, str) and first == "nearest_neighbour"
    pairs = unit.new_empty((pictures, tokens, tokens)) if not lazy else unit
    closest = unit.new_empty((pictures, tokens)) if nearest else unit
    picks = torch.empty((pictures, count), dtype=torch.int64, device=unit.device)
    factor = unit.new_empty((pictures, count, tokens)) if rule == "dpp" else unit
    block = triton.next_power_of_2(tokens)
    with torch.cuda.device(unit.device if unit.is_cuda else -1):
        if nearest or not lazy:
            pairs_kernel[(triton.cdiv(tokens, TILE), pictures)](
                unit,
                live.view(torch.uint8),
                pairs,
                closest,
                tokens,
                channels,
                NOBODY=NOBODY,
                STORE=not lazy,
                NEAREST=nearest,
                TILE=TILE,
                CHANNELS=TILE_CHANNELS,
                num_warps=4,
            )
        if nearest:
            score = -closest
        elif first == "mean":
            with full_precision(unit):
                score = -(unit @ unit.sum(1).unsqueeze(2)).squeeze(2)
        elif isinstance(first, Tensor):
            score = (torch.arange(tokens, device=unit.device) == first.unsqueeze(1)).float()
        else:
            score = parts.relevance.float()
        greedy_kernel[(pictures,)](
            unit.transpose(1, 2).contiguous() if lazy else pairs,
            _ranked(score, live, valid),
            _ranked(parts.base.float(), live, valid),
            parts.weight.float().contiguous(),
            _ranked(parts.rest.float(), live, valid),
            factor,
            picks,
            tokens,
            channels,
            count,
            4.0 * float32_error(channels),
            LEAST_GAIN,
            NO_LIKENESS=NO_LIKENESS[rule],
            RULE=RULES[rule],
            LAZY=lazy,
            BLOCK=block,
            num_warps=min(32, max(4, block // 512)),
        )
    return picks


def _ranked(score: Tensor, live: Tensor, valid: Tensor | None) -> Tensor:
    """Scores (pictures, tokens) in which dead tokens come last, and tokens that must not be picked never."""
    score = score.masked_fill(~live, LAST)
    return (score if valid is None else score.masked_fill(~valid, -torch.inf)).contiguous()
