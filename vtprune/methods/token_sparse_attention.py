"""Lets every head of some decoder layers attend among tokens of its own choice; those that it leaves out get nothing.

In the prefill, each head takes the queries, keys and values of the visual tokens to which the end of the prompt
attends most, and of all text, runs ordinary causal attention on these, and puts the result back among zeros. The next
layer, and the next head, sees all tokens again; nothing leaves.

With dense kernels this saves attention products in the prefill: a head that keeps a share s of the tokens computes s^2
of them. Projections, MLPs and the cache stay what they were; gathering repeats the keys and values of grouped queries.
On one CPU core the attention of a layer took a quarter less time at 576 visual tokens and keep=0.25, choosing included,
and a fifth of the time at 4,096; but of the whole prefill, attention is a small part below some thousand tokens.

Paper: "Token Sparse Attention: Efficient Long-Context Inference with Interleaved Token Selection", arXiv 2602.03216.
Authors' code: github.com/dongwonjo/Token-Sparse-Attention.
Differs from the paper in: only visual tokens are left out, unless `text=True`; the queries that decide are those of the
text behind the last picture (the last token where there is none), of which the last `window` count; scores are smoothed
within a map of tokens only, and stay float32; batches, padding and later turns, where rows keep different numbers or
earlier entries are there, go through masks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget, token_counts
from vtprune.kernels import attention_scores
from vtprune.methods._entries import age
from vtprune.methods._select import check_number, check_whole_numbers, given
from vtprune.methods._strongest import index_of, strongest
from vtprune.methods.base import Attend, LayerSlots, Method, ModelInfo, Part, Place, Stage, check_layer
from vtprune.methods.registry import register
from vtprune.methods.snapkv import smoothed


@register("token_sparse_attention")
@dataclasses.dataclass(frozen=True)
class TokenSparseAttention(Method):
    """Tokens that a head keeps: as many as `coverage` asks for, and at least `keep`.

    The paper's settings: `keep=1024, coverage=0.005, text=True`, and layers of `vtprune.calibration.stable_layers`.
    """

    kind = "sparse"
    places = (Place.ATTENTION,)
    paper = "Token Sparse Attention, arXiv 2602.03216"
    cost = "N T C per layer, for T <= `window` tokens of text"
    needs_text = True

    keep: Budget = 0.25  # ratio in (0, 1] of a row's visual tokens, or how many, that a head keeps at least
    coverage: float = 1.0  # attention to visual tokens that may be lost, in [0, 1]; 1: as much as `keep` allows
    window: int = 128  # last tokens of the prompt whose attention counts, >= 1
    kernel: int = 7  # odd number of neighbours over which scores are averaged, 1 for none
    layers: tuple[int, ...] | None = None  # where heads leave tokens out; None: in the second half of the layers
    text: bool = False  # whether text may be left out too; the last `window` tokens then always take part

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("coverage", self.coverage, 0, 1)
        check_whole_numbers("window", (self.window,), 1)
        check_whole_numbers("kernel", (self.kernel,), 1)
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be an odd number, got {self.kernel}.")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """The attention of the chosen layers."""
        last = model.decoder_layers - 1
        layers = tuple(range(model.decoder_layers // 2, last + 1)) if self.layers is None else self.layers
        for layer in layers:
            check_layer("layers", layer, 0, last)
        return [Stage(Place.ATTENTION, self.decide, layers, frozenset({"queries_keys_values", "cells"}))]

    def decide(self, slots: LayerSlots) -> Attend | None:
        """Choose head by head; a call without new pictures is left alone."""
        if not slots.visual.shape[1]:
            return None
        valid, group = self.groups(slots)
        candidate, scores = group >= 0, self.smooth(slots, valid, group)
        arrived = candidate.sum(1)
        counts = torch.maximum(token_counts(self.keep, arrived), arrived - droppable(scores, candidate, self.coverage))
        kept = valid.sum(1) - arrived + counts
        chosen, before, width = torch.stack((counts, arrived, kept)).tolist()  # the one time that the host waits
        if chosen == before:
            return None
        mask = strongest(scores, counts[:, None], candidate[:, None], max(chosen)) | (valid & ~candidate)[:, None]
        index, there = index_of(mask, max(width))
        padded = min(width) != max(width)
        own = torch.where(there, index, -1) if padded else index
        if not slots.past:
            return Attend((Part(slots=own, entries=own, padded=padded),))
        earlier = torch.arange(slots.past, device=own.device).expand(*own.shape[:2], -1)
        if slots.valid is not None:
            earlier = torch.where(slots.valid[:, None, : slots.past], earlier, -1)
        entries = torch.cat((earlier, torch.where(own < 0, -1, own + slots.past)), 2).sort(2).values
        return Attend((Part(slots=own, entries=entries, padded=padded or slots.valid is not None),))

    def groups(self, slots: LayerSlots) -> tuple[Tensor, Tensor]:
        """Which slots are no padding, bool (rows, slots), and the map of those that may be left out, -1 on others."""
        queries = given(slots.queries, self.name, "queries_keys_values")
        rows, _, width, _ = queries.shape
        valid = queries.new_ones(rows, width, dtype=torch.bool)
        if slots.valid is not None:
            valid = slots.valid[:, slots.past :]
        maps = given(slots.where, self.name, "cells").cells.map
        if self.text:
            there = (slots.visual >= 0).any(1, keepdim=True)
            return valid, torch.where(valid & there & (age(valid) >= self.window), 0, -1)
        group = torch.full((rows, width + 1), -1, device=valid.device)  # the last is for padding to be written to
        group.scatter_(1, torch.where(slots.visual < 0, width, slots.visual), torch.where(slots.visual < 0, -1, maps))
        return valid, group[:, :width]

    def smooth(self, slots: LayerSlots, valid: Tensor, group: Tensor) -> Tensor:
        """Smoothed scores of slots, (rows, heads, slots), float32; see `groups`."""
        return smoothed(self.scores(slots, valid)[:, :, slots.past :], group, self.kernel)

    def scores(self, slots: LayerSlots, valid: Tensor) -> Tensor:
        """Mean attention of the last queries that count, (rows, heads, entries), float32."""
        queries = given(slots.queries, self.name, "queries_keys_values")
        keys = given(slots.keys, self.name, "queries_keys_values")
        last = valid & (age(valid) == 0)
        if self.text:
            asking, most = valid, valid.shape[1]
        else:
            visual = slots.visual_entries[:, 0, slots.past :]
            behind = visual.flip(1).long().cumsum(1).flip(1) == 0
            asking, most = (valid & behind) | last, slots.text.shape[1] + 1
        asking = asking & (age(asking) < self.window)
        at, counted = (x[:, 0] for x in index_of(asking[:, None], min(self.window, most, valid.shape[1])))
        chosen = queries.gather(2, at[:, None, :, None].expand(-1, queries.shape[1], -1, queries.shape[3]))
        return attention_scores(
            chosen,
            keys,
            scale=slots.scale,
            row_mask=counted,
            row_positions=at + slots.past,
            key_valid=slots.valid,
            reduce_heads=None,
        )


def droppable(scores: Tensor, candidate: Tensor, coverage: float) -> Tensor:
    """How many candidates can be left out for a share `coverage` of the attention, (rows,); the last may exceed it.

    Args:
        scores: (rows, heads, n); heads decide together.
        candidate: Bool, (rows, n).
        coverage: In [0, 1]; 0 leaves out nothing.
    """
    share = scores.mean(1).masked_fill(~candidate, 0)
    share = share / (share.sum(1, keepdim=True) + 1e-8)
    rising = share.masked_fill(~candidate, torch.inf).sort(1).values
    count = (rising.cumsum(1) < coverage).sum(1)
    return torch.minimum(count + (count > 0), candidate.sum(1))


def drift(before: Tensor, after: Tensor) -> Tensor:
    """How much a layer changes its tokens: length of the change relative to the state, (..., tokens), float32.

    Args:
        before: (..., tokens, width), hidden states that enter it.
        after: The same behind it.
    """
    before, after = before.float(), after.float()
    return (after - before).norm(dim=-1) / (before.norm(dim=-1) + 1e-8)


def stable(drifts: Tensor, share: float = 0.5) -> tuple[int, ...]:
    """The layers whose drift is not above the quantile `share` of all layers' drifts, (layers,)."""
    rank = math.floor(share * (len(drifts) - 1) + 1e-6)
    return tuple((drifts <= drifts.sort().values[rank]).nonzero()[:, 0].tolist())
