"""Holds keys and values in few bits: entries that received much attention in 4, the others in 2.

Nothing leaves the cache. After the prefill every layer and head ranks its visual entries by the attention that a few
queries paid to them; the cache then holds codes in the place of numbers, and later calls see what these stand for.

Paper: "ZipCache: Accurate and Efficient KV Cache Quantization with Salient Token Identification", NeurIPS 2024, arXiv
2405.14256. Authors' code: github.com/ThisisBillhe/ZipCache.
Differs from the paper in: only visual entries are rounded, unless `text=True`; by default the queries of the text
behind the last picture are the probes, and see all of it; sums are divided by the number of probes that see an entry,
as the paper has it (`divisor="length"`: as the code does); what was rounded stays as it is while the cache grows, where
the code rounds everything again with every block (`again=True`); rows of a batch have ranges of their own.
Whole keys and values are made from the codes in every layer and call: memory is saved, time is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import LayerBudget
from vtprune.kernels.quantise import WIDTHS
from vtprune.methods._entries import age, best, counted, received
from vtprune.methods._probes import mean_received, probe_rows, shown_by
from vtprune.methods._select import check_choice, check_number, check_whole_numbers
from vtprune.methods.base import CacheEntries, Method, ModelInfo, Place, Stage, Store, all_layers
from vtprune.methods.registry import register

FULL = 16  # bits of a number that is not rounded, in which budgets are counted


@register("zipcache")
@dataclasses.dataclass(frozen=True)
class ZipCache(Method):
    """Rounding in every layer after the prefill; with `text=True` again whenever `period` tokens have come.

    `keep` is the share of memory, counted as if whole numbers had 16 bits: of entries of 4 and 2 bits it takes as many
    of each as that makes. Above a quarter the most salient entries are not rounded at all, below an eighth all have 2
    bits, which is the least. The paper's settings: `keep=0.2` (60 percent salient), 0.25 (all at 4 bits), 0.1375 (10
    percent); its probes: `queries="probes"`.
    """

    kind = "cache"
    places = (Place.CACHE,)
    paper = "ZipCache, NeurIPS 2024, arXiv 2405.14256"
    cost = "N T C per decoder layer; with queries='probes' (N + T)^2 C / 10"
    needs_text = True
    layered = True

    keep: LayerBudget = 0.2  # ratio in (0, 1] of memory, or entries per picture that take as much, or a list by layer
    bits: tuple[int, int] = (4, 2)  # of salient and of other entries: 2, 4 or 8
    queries: Literal["closing", "probes"] = "closing"  # whose attention counts: of the text behind the pictures, or ...
    recent: float = 0.05  # ... of this share, in [0, 1], of the last queries, ...
    random: float = 0.05  # ... and of so many, in [0, 1], drawn from those before
    seed: int = 0  # of the draw, whole number >= 0
    divisor: Literal["seen", "length"] = "seen"  # probes that see an entry, or entries behind it, itself among them
    text: bool = False  # whether text is rounded too, and what is decoded
    period: int = 100  # with `text`: decoded tokens that are rounded together, >= 1
    again: bool = False  # with `text`: round all entries again with them

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        bits = check_whole_numbers("bits", self.bits, WIDTHS[0], 2)
        if not isinstance(bits, tuple) or not set(bits) <= set(WIDTHS) or bits[0] < bits[1]:
            raise ValueError(f"bits must be two of {WIDTHS}, the greater first, got {self.bits!r}.")
        object.__setattr__(self, "bits", bits)
        check_choice("queries", self.queries, ("closing", "probes"))
        check_choice("divisor", self.divisor, ("seen", "length"))
        check_number("recent", self.recent, 0, 1)
        check_number("random", self.random, 0, 1)
        check_whole_numbers("seed", self.seed, 0)
        check_whole_numbers("period", self.period, 1)
        if self.again and not self.text:
            raise ValueError("again=True rounds again what decoded tokens are rounded with; it needs text=True.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One decision in every layer."""
        signals = frozenset({"closing_queries" if self.queries == "closing" else "all_queries"})
        layers = all_layers(model, self.keep)
        return [Stage(Place.CACHE, self.decide, layers, signals, text=self.text, decodes=self.text, every=self.period)]

    def decide(self, entries: CacheEntries) -> Store:
        """Give salient entries more bits than the others."""
        before = entries.memory.get("bits_of_entries", torch.zeros(entries.candidate.shape, dtype=torch.uint8))
        before = before.to(entries.candidate.device)
        new = entries.candidate & (before == 0)
        scores = salience(entries, self)
        bits = torch.where(new, mixed(scores, new, share_of(entries, self.keep), self.bits), before)
        entries.memory["bits_of_entries"] = bits
        return Store(bits, self.again)


def salience(entries: CacheEntries, method: ZipCache) -> Tensor:
    """How much attention entries received from the probes: float32, (rows, kv_heads, entries)."""
    if method.queries == "probes":
        chosen = probe_rows(counted(entries), float(method.recent), float(method.random), method.seed)
        entries = shown_by(entries, *chosen)
    if method.divisor == "length":
        return received(entries) / (age(entries.valid) + 1)[:, None]
    return mean_received(entries)


def share_of(entries: CacheEntries, keep: LayerBudget) -> Tensor:
    """What part of the memory of the candidates `keep` allows in this layer, (rows,)."""
    budget = keep[entries.layer] if isinstance(keep, Sequence) else keep
    if isinstance(budget, float):
        return torch.full((len(entries.valid),), budget, device=entries.candidate.device)
    return entries.counts(keep) / entries.arrived.sum(1).clamp_min(1)


def mixed(scores: Tensor, among: Tensor, share: Tensor, bits: tuple[int, int]) -> Tensor:
    """Number of bits of every entry, so that the mean is as near to a share of 16 as whole entries allow from above.

    Args:
        scores: (rows, kv_heads, entries), the highest get most.
        among: bool, (rows, kv_heads, entries), what gets bits at all, equally many in all heads of a row.
        share: (rows,), in [0, 1].
        bits: Of high ones and low ones.

    Returns:
        uint8, (rows, kv_heads, entries): 16 for an entry that is not rounded, 0 for one that is not `among`.
    """
    high, low = bits
    count, mean = among[:, 0].sum(1), FULL * share
    whole = ((mean - high) / (FULL - high) * count - 1e-3).ceil().clamp_min(0).long()
    few = ((high - mean) / max(high - low, 1) * count + 1e-3).floor().clamp_min(0).long().minimum(count)
    result = torch.where(among, low, 0)
    result = torch.where(best(scores, count - few, among), high, result)
    return torch.where(best(scores, whole, among), FULL, result).to(torch.uint8)
