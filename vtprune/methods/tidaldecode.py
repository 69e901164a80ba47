"""Lets few decoder layers choose which visual entries a decoded token reads, and all layers behind them read the same.

Two layers see everything: an early one, and a later one that corrects it. What their heads attend to most is read by
the layers behind them, beside all text; layers before the first read everything. The choice is made anew for each
token, and nothing leaves the cache.

With dense kernels this saves bytes read while decoding: of the layers that do not choose, all visual keys and values
but the chosen ones. Memory and the prefill stay what they were. A layer that chooses takes about twice as long as
without; with 576 entries that eats up most of what the others save.

Paper: "TidalDecode: Fast and Accurate LLM Decoding with Position Persistent Sparse Attention", ICLR 2025, arXiv
2410.05076. Authors' code: github.com/DerrickYLJ/TidalDecode.
Differs from the paper in: visual entries are chosen, and text is always read (the paper chooses from all entries and
may leave out the token itself); calls of several tokens read everything; by default the query heads of a key head
choose together (`share="head"` is the paper's way, which reads up to as many entries more as a key head has queries);
keys and values are never made anew (the paper's cache correction).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._reads import Share, forget, held, one_token, reading, wanted
from vtprune.methods._select import check_choice, given
from vtprune.methods._strongest import index_of, strongest
from vtprune.methods.base import Attend, LayerSlots, Method, ModelInfo, Place, Stage, check_layer
from vtprune.methods.registry import register


@register("tidaldecode")
@dataclasses.dataclass(frozen=True)
class TidalDecode(Method):
    """Two layers choose, token by token.

    The paper's settings for LLaMA-3-8B: `keep=256, second=13, share="head"`, of 32 layers.
    """

    kind = "sparse"
    places = (Place.ATTENTION,)
    paper = "TidalDecode, ICLR 2025, arXiv 2410.05076"
    cost = "N C per layer that chooses and decoded token"

    keep: Budget = 0.25  # ratio in (0, 1] of a row's visual entries, or how many, that a layer reads
    first: int | None = None  # layer that chooses first; those before it read everything; None: 2, or the last one
    second: int | None = None  # layer that chooses again, above `first`; None: at 0.4 of the layers; equal: none does
    share: Share = "group"  # who chooses together: no query heads, those of a key head, or all of the layer

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("share", self.share, ("head", "group", "layer"))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """The layers from `first` on."""
        last = model.decoder_layers - 1
        first = min(2, last) if self.first is None else check_layer("first", self.first, 0, last)
        second = max(round(0.4 * model.decoder_layers), first) if self.second is None else self.second
        choosing = {first, check_layer("second", second, first, last)}

        def decide(slots: LayerSlots) -> Attend | None:
            if slots.layer not in choosing:
                return self.follow(slots)
            self.choose(slots)
            return None

        asked = frozenset({"queries_keys_values"})
        return [Stage(Place.ATTENTION, decide, tuple(range(first, last + 1)), asked, decodes=True, alike="layers")]

    def choose(self, slots: LayerSlots) -> None:
        """Note what is wanted most; this layer reads everything."""
        if not one_token(slots):
            forget(slots)
            return
        now = held(slots, self.name)
        counts = now.counts(self.keep)
        if counts == now.visual:
            return
        queries = given(slots.queries, self.name, "queries_keys_values")[:, :, 0]
        keys = given(slots.keys, self.name, "queries_keys_values")
        among = slots.visual_entries[:, 0]
        mask = most_wanted(queries, keys, slots.scale, among, torch.tensor(counts, device=keys.device), self.share)
        index, valid = index_of(mask, max(counts))
        slots.memory["read"] = reading(slots, now, torch.where(valid, index, -1), counts)

    def follow(self, slots: LayerSlots) -> Attend | None:
        """Read what the layer before that chose has noted."""
        return slots.memory.get("read")


def most_wanted(
    queries: Tensor, keys: Tensor, scale: float, among: Tensor, counts: Tensor, share: Share, most: int | None = None
) -> Tensor:
    """Mark the entries that a token's queries want most, bool (rows, heads or kv_heads or 1, entries).

    Args:
        queries: (rows, heads, dim), rotated.
        keys: (rows, kv_heads, entries, dim), rotated.
        scale: Factor on their products.
        among: Bool, (rows, entries), what may be marked.
        counts: (rows,), how many are marked for each that chooses.
        share: Who chooses together, see `wanted`.
        most: The largest count, known to the host; None: as many as there are entries.
    """
    scores = wanted(queries, keys, scale, among, share)
    return strongest(scores, counts[:, None], among[:, None], among.shape[1] if most is None else most)
