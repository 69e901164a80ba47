"""What decoder layers compute that compute less: on which slots their projections run, which products are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vtprune.engine.flops import linear_flops
from vtprune.engine.slot_lists import SlotLists
from vtprune.integrations.base import Integration
from vtprune.kernels import gather_rows
from vtprune.methods.base import Part, Width


class Chosen:
    """Slots that a module runs on, of all that there are.

    Args:
        lists: (rows, ...) each, -1 on padding; no slot is in two of them.
        width: Number of slots that there are.
    """

    def __init__(self, lists: Sequence[Tensor], width: int) -> None:
        self.at = torch.cat([x.flatten(1) for x in lists], 1)
        self.width = width

    def take(self, x: Tensor) -> Tensor:
        """Theirs of (rows, slots, channels): (rows, n, channels)."""
        return gather_rows(x, self.at.clamp_min(0))

    def put_back(self, x: Tensor) -> Tensor:
        """(rows, slots, channels) of (rows, n, channels), zeros for all others."""
        at = torch.where(self.at < 0, self.width, self.at).to(x.device).unsqueeze(-1).expand_as(x)
        return x.new_zeros(len(x), self.width + 1, x.shape[2]).scatter(1, at, x)[:, : self.width]


@dataclasses.dataclass
class Work:
    """What one decoder layer computes in one call.

    Attributes:
        methods: Who decided.
        parts: Products of its attention; None for all.
        asked: Slots that its query projection runs on; None for all.
        given: Slots that its output projection runs on; None for all.
        fed: What its MLP runs on; None for everything.
    """

    methods: set[str] = dataclasses.field(default_factory=set)
    parts: tuple[Part, ...] | None = None
    asked: Chosen | None = None
    given: Chosen | None = None
    fed: tuple[Width, ...] | None = None

    def flops(self, integration: Integration, layer: nn.Module, counts: Sequence[int], past: int) -> int:
        """FLOPs of the layer on `counts` slots per row and `past` earlier ones; see `vtprune.engine.flops`."""
        (queries, *_), output = integration.decoder_projections(layer)
        mlp = layer.get_submodule("mlp")
        every = sum(counts)
        asked = every if self.asked is None else int((self.asked.at >= 0).sum())
        given = every if self.given is None else int((self.given.at >= 0).sum())
        fed = float(every)
        if self.fed is not None:
            channels = integration.decoder_channels
            fed = sum(int((x.slots >= 0).sum()) * (x.channels or channels) / channels for x in self.fed)
        rest = linear_flops(layer) - sum(linear_flops(x) for x in (queries, output, mlp))
        total = every * rest + asked * linear_flops(queries) + given * linear_flops(output)
        total += round(fed * linear_flops(mlp))
        products = self._products(integration.decoder_heads, counts, past)
        return total + round(4 * products * integration.decoder_width(layer))

    def _products(self, heads: int, counts: Sequence[int], past: int) -> float:
        """Products of a query and a key, summed over rows, mean over heads."""
        if self.parts is None:
            return float(sum(n * (past + n) for n in counts))
        total = 0.0
        for part in self.parts:
            if part.itself:
                continue
            n, m = _numbers(part.slots, counts), _numbers(part.entries, [past + c for c in counts])
            if n.shape[1] > 1 and m.shape[1] > 1 and n.shape[1] != m.shape[1]:
                m = m.repeat_interleave(n.shape[1] // m.shape[1], 1)
            share = 1.0 if part.heads is None else len(part.heads) / heads
            total += float((n * m).sum(2).mean(1).sum()) * share
        return total


@dataclasses.dataclass
class Inside:
    """What stages inside decoder layers do in one call of the language model.

    Attributes:
        work: By layer, what is computed where something else is than usual.
        lists: The slots that were there last.
        paused: Whether they do not act now, as layers run on trial.
        neurons: By layer, who chose neurons for decoding, and which, bool (rows, channels).
    """

    work: dict[int, Work] = dataclasses.field(default_factory=dict)
    lists: SlotLists | None = None
    paused: bool = False
    neurons: dict[int, tuple[str, Tensor]] = dataclasses.field(default_factory=dict)


def _numbers(listed: Tensor | None, otherwise: Sequence[int]) -> Tensor:
    """How many a list holds, (rows, heads or 1, blocks or 1)."""
    if listed is None:
        return torch.tensor(otherwise, dtype=torch.float64).view(-1, 1, 1)
    listed = listed.unsqueeze(2) if listed.ndim == 3 else listed
    return (listed >= 0).sum(-1).cpu().double()
