"""Keeps key tokens in the cache of every layer and head: those with most attention, drawn with noise.

Like h2o, but what is summed is the softmax of noisy logits, divided by a temperature that rises from step to step: once
entries have left, the softmax of the others is too sure of itself, and noise keeps the choice open.

Paper: "Keyformer: KV Cache Reduction through Key Tokens Selection for Efficient Generative Inference", MLSys 2024,
arXiv 2403.09054. Authors' code: github.com/d-matrix-ai/keyformer-llm.
Differs from the paper in: only visual entries leave, unless `text=True`; by default the queries of the text behind the
last picture decide; the noise follows from `seed`, layer, head, query and entry, so that an answer can be had again,
alone and in a batch; with grouped queries the heads of a group decide together. The authors' code never lets an entry
that leaves the recent ones become a key token, so that these stay as the prompt made them: `frozen=True`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import LayerBudget
from vtprune.methods._entries import age, best, counted, newest, share
from vtprune.methods._select import check_choice, check_number, check_whole_numbers
from vtprune.methods.base import CacheEntries, Keep, Method, ModelInfo, Place, Stage, all_layers
from vtprune.methods.h2o import accumulated, heavy_and_recent
from vtprune.methods.registry import register


@register("keyformer")
@dataclasses.dataclass(frozen=True)
class Keyformer(Method):
    """One eviction per layer after the prefill; with `text=True` one per decoded token after that.

    The paper's setting: `keep=0.6, recent=0.3, queries="all", text=True`.
    """

    kind = "cache"
    places = (Place.CACHE,)
    paper = "Keyformer, MLSys 2024, arXiv 2403.09054"
    cost = "N T C per decoder layer; with queries='all' (N + T)^2 C"
    needs_text = True
    layered = True

    keep: LayerBudget = (
        0.6  # ratio in (0, 1] or entries per picture and head, or a list by layer; with `text`, of the prompt
    )
    recent: float = (
        0.0  # share in [0, 1] of these that is left to the most recent ones, rounded down; the paper's is 0.3
    )
    tau: float = 1.0  # temperature at the prompt, above 0
    tau_end: float = 2.0  # temperature at the end of an answer, above 0
    tokens: int = 128  # length of an answer, >= 1
    noise: bool = True  # whether logits get Gumbel noise
    seed: int = 0  # of the noise, whole number from 0 to 2**31 - 1
    queries: Literal["closing", "all"] = "closing"  # whose attention counts: of the text behind the pictures, or of all
    frozen: bool = False  # with `text`: what leaves the recent ones is lost, as in the authors' code
    text: bool = False  # whether text may leave too, at every step

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_number("recent", self.recent, 0, 1)
        check_whole_numbers("tokens", self.tokens, 1)
        check_number("seed", check_whole_numbers("seed", self.seed, 0), 0, 2**31 - 1)
        check_choice("queries", self.queries, ("closing", "all"))
        for name in ("tau", "tau_end"):
            check_number(name, getattr(self, name), 0, 1e6, above_low=True)
        if self.frozen and not self.text:
            raise ValueError("frozen=True concerns text that leaves while decoding; use it with text=True.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One eviction in every layer."""
        signals = frozenset({f"{self.queries}_queries"})
        layers = all_layers(model, self.keep)
        return [Stage(Place.CACHE, self.decide, layers, signals, text=self.text, decodes=self.text)]

    def decide(self, entries: CacheEntries) -> Keep:
        """Add up the noisy attention, and keep the key tokens and the most recent entries."""
        memory = entries.memory
        calls = memory.get("calls", torch.zeros(len(entries.valid), device=entries.valid.device))
        noise = functools.partial(gumbel, entries, self.seed, calls) if self.noise else None
        return self.step(entries, noise, self.tau + calls * (self.tau_end - self.tau) / self.tokens)

    def step(self, entries: CacheEntries, noise: Callable[[slice], Tensor] | None, tau: Tensor) -> Keep:
        """One decision under a given noise.

        Args:
            entries: What a stage is shown.
            noise: What is added to the logits of a block of queries, (rows, kv_heads, group, queries, entries); None
                for nothing.
            tau: (rows,), the temperature.
        """

        def noisy(logits: Tensor, here: slice) -> Tensor:
            added = logits if noise is None else logits + noise(here)
            return added / tau[:, None, None, None, None]

        score = accumulated(entries, adjust=noisy)
        memory = entries.memory
        memory["calls"] = memory.get("calls", torch.zeros_like(tau)) + 1
        counts = entries.counts(self.keep)
        recent = share(counts, self.recent)
        if not self.frozen:
            return Keep(heavy_and_recent(score, entries.candidate, counts - recent, recent))
        # In the authors' code the coming token is among the recent ones already, and the entry that has just left them
        # is hidden before it can be chosen; with that, its score is lost.
        last = newest(entries.candidate, recent)
        seen = memory.get("seen", torch.zeros_like(counts)) + counted(entries).sum(1)
        memory["seen"] = seen
        mask = newest(entries.candidate, recent - 1) | best(score, counts - recent, entries.candidate & ~last)
        mask = mask | (seen <= counts)[:, None, None]
        memory["score_of_entries"] = score.masked_fill(~mask, 0)
        return Keep(mask)


def gumbel(entries: CacheEntries, seed: int, calls: Tensor, here: slice) -> Tensor:
    """Gumbel noise of a block of queries.

    It depends on the seed, the layer, the call, the head, and on query and entry, both counted from the end.

    Args:
        entries: What a stage is shown.
        seed: Whole number.
        calls: (rows,), how often the stage has been called on this cache before.
        here: Which queries.

    Returns:
        float32, (rows, kv_heads, group, queries, entries).
    """
    heads, group = entries.keys.shape[1], entries.queries.shape[1] // entries.keys.shape[1]
    device = entries.keys.device
    head = torch.arange(heads * group, device=device).view(1, heads, group, 1, 1)
    place = scrambled(scrambled(calls.long() * 4096 + entries.layer + (seed << 32))[:, None, None, None, None] + head)
    query, entry = age(counted(entries))[:, here].to(device), age(entries.valid)
    place = scrambled(scrambled(place + query[:, None, None, :, None]) + entry[:, None, None, None])
    uniform = ((place & 0xFFFFFF).float() + 0.5) / 2**24
    return -(-uniform.log()).log()


def scrambled(x: Tensor) -> Tensor:
    """A fixed pseudo-random function of whole numbers, to 40 bits."""
    x = x & ((1 << 62) - 1)
    for factor, shift in ((0x9E3779B1, 15), (0x85EBCA77, 13), (0xC2B2AE3D, 16)):
        x = ((x ^ (x >> shift)) & 0xFFFFFFFFF) * factor  # may wrap
        x = (x ^ (x >> 29)) & ((1 << 62) - 1)
    return x & ((1 << 40) - 1)
