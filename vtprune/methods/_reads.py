"""What methods that read a part of the cache have in common: nothing leaves it, and a decoded token reads less of it.

A step of decoding is bound by the bytes that it reads. Chosen visual entries are gathered beside all text into dense
keys and values, and the ordinary attention runs on these; memory stays what it was. Choosing costs something, too:
where the pictures of a cache have few entries, it costs more than it saves.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vtprune.budget import Budget, token_count
from vtprune.methods._select import given
from vtprune.methods._strongest import index_of
from vtprune.methods.base import Attend, LayerSlots, Part

Share = Literal["head", "group", "layer"]
"""Which query heads choose together: none, those that share a key head, or all of a layer."""


class Held(NamedTuple):
    """What a layer's cache holds, row by row, as numbers on the host: no step of decoding waits for the device.

    Attributes:
        visual: Number of visual entries.
        padding: Number of entries that are padding.
        entries: Number of all of them, padding included.
    """

    visual: list[int]
    padding: list[int]
    entries: int

    @property
    def text(self) -> list[int]:
        """How many other entries each row has."""
        return [self.entries - v - p for v, p in zip(self.visual, self.padding, strict=True)]

    def counts(self, keep: Budget) -> list[int]:
        """How many visual entries of each row `keep` allows, all pictures together."""
        return [token_count(keep, n) for n in self.visual]


def one_token(slots: LayerSlots) -> bool:
    """Whether this call is one decoded token; prompts, and drafted tokens, read everything."""
    return slots.past > 0 and slots.text.shape[1] + slots.visual.shape[1] == 1


def held(slots: LayerSlots, method: str, lasting: Collection[str] = ()) -> Held:
    """Count what a layer holds when a token is decoded; the host waits for it once after each prompt.

    Args:
        slots: What the stage is shown.
        method: Its method's name.
        lasting: Names under which the method has noted what does not depend on the entries; all else is forgotten where
            it may not fit them any more.
    """
    entries = given(slots.keys, method, "queries_keys_values").shape[2]
    known = slots.held.get("counts")
    if known is None or int(known[:, 2].max()) >= entries:  # the first token, or the cache was cropped
        forget(slots, lasting)
        visual = slots.visual_entries[:, 0].sum(1)
        padding = torch.zeros_like(visual) if slots.valid is None else (~slots.valid).sum(1).to(visual.device)
        known = torch.stack((visual, padding, torch.full_like(visual, entries)), 1).cpu()
        slots.held["counts"] = known
    return Held(known[:, 0].tolist(), known[:, 1].tolist(), entries)


def forget(slots: LayerSlots, lasting: Collection[str] = ()) -> None:
    """Forget what was noted of a layer, as its entries are other ones; to be called for prompts."""
    for name in [x for x in slots.held if x not in lasting]:
        del slots.held[name]


def wanted(queries: Tensor, keys: Tensor, scale: float, among: Tensor, share: Share) -> Tensor:
    """How much the queries of one token want each entry.

    Args:
        queries: (rows, heads, dim), rotated.
        keys: (rows, kv_heads, entries, dim), rotated; consecutive query heads share a key head.
        scale: Factor on the products.
        among: Bool, (rows, entries), what is ranked.
        share: "head": the logits of each query head; "group" and "layer": softmax over what is ranked, summed over
            the heads that choose together.

    Returns:
        float32, (rows, heads, entries), (rows, kv_heads, entries) or (rows, 1, entries); 0 on what is not ranked.
    """
    grouped = queries.float().unflatten(1, (keys.shape[1], -1))
    logits = (grouped * scale) @ keys.float().transpose(2, 3)  # (rows, kv_heads, group, entries)
    hidden = ~among[:, None, None]
    if share == "head":
        return logits.masked_fill(hidden, 0).flatten(1, 2)
    votes = logits.masked_fill(hidden, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(hidden, 0).sum(2)
    return votes.sum(1, keepdim=True) if share == "layer" else votes


def reading(slots: LayerSlots, now: Held, chosen: Tensor, counts: list[int]) -> Attend:
    """Attend to chosen visual entries, and to all text.

    Args:
        slots: What the stage is shown, of a decoded token.
        now: What the layer holds.
        chosen: (rows, n_heads, n), which entries, for all heads, each key-value head or each query head; -1 in front
            where a row reads fewer.
        counts: How many each row reads.
    """
    text, seen = slots.held.get("text"), int(slots.held["counts"][0, 2])
    if text is None:
        listed = text_entries(slots)[:, : None if chosen.shape[1] > 1 else 1, :seen]
        index, valid = index_of(listed, max(now.text) - (now.entries - seen))
        text = slots.held["text"] = torch.where(valid, index, -1)
    since = torch.arange(seen, now.entries, device=text.device).expand(*text.shape[:2], -1)
    heads = max(chosen.shape[1], text.shape[1])
    lists = [x.repeat_interleave(heads // x.shape[1], 1) for x in (chosen, torch.cat((text, since), 2))]
    ragged = len(set(counts)) > 1 or len(set(now.text)) > 1
    return Attend((Part(entries=torch.cat(lists, 2).sort(2).values, padded=ragged),))


def text_entries(slots: LayerSlots) -> Tensor:
    """Bool (rows, kv_heads or 1, entries), what is neither visual nor padding."""
    return ~slots.visual_entries if slots.valid is None else ~slots.visual_entries & slots.valid[:, None]
