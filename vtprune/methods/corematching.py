"""Keeps visual tokens that activate the same neurons as the prompt's last word, in the MLP of one decoder layer.

A neuron is active where its gated activation, what enters the MLP's last projection, is above zero. Tokens that share
many active neurons with a token of the text are core tokens: those above the elbow of the sorted counts, or as many as
a budget allows. The others leave behind that layer. No attention is needed. With `neurons=True` decoded tokens also use
only the core neurons of each MLP: those that were most often among the strongest of the prompt's tokens.

Paper: "CoreMatching: A Co-adaptive Sparse Inference Framework with Token and Neuron Pruning for Comprehensive
Acceleration of Vision-Language Models", ICML 2025, arXiv 2505.19235. Authors' code:
github.com/wangqinsi1/2025-ICML-CoreMatching, and CoreInfer for core neurons.
Differs from the paper in: tokens really leave, as the paper says (the released code sets their keys and values in the
caches of layers 5 to 18 to zero, which neither saves anything nor hides them); they do so once, behind the layer that
a disabled part of the code names; `keep` names a budget, elbow="strict" takes the authors' rule. Neurons, of which
there is no code but CoreInfer's: every row of a batch has its own (one that only others use is zero), weights are
sliced to what all rows use together, and prompts, those of further turns too, run on all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._cuts import DEPTH, cuts_at
from vtprune.methods._select import check_choice, check_number, check_whole_numbers, top_k_mask
from vtprune.methods.base import (
    Activations,
    Keep,
    Method,
    ModelInfo,
    Neurons,
    Observation,
    Place,
    Positions,
    Stage,
    VisualTokens,
    check_layer,
)
from vtprune.methods.registry import register

PAPER = (10,)
SPARSE = (6, 26)  # layers of 32 whose neurons are pruned
PART: Literal["mlp.down_proj"] = "mlp.down_proj"


@register("corematching")
@dataclasses.dataclass(frozen=True)
class CoreMatching(Method):
    """One cut between two decoder layers, by active neurons."""

    kind = "pruning"
    places = (Place.DECODER_LAYER, Place.MLP)
    paper = "CoreMatching, ICML 2025, arXiv 2505.19235"
    cost = "N times the neurons of one MLP, about 3 N C; to sort them as well, with core neurons"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture; no effect with `elbow`
    elbow: Literal["strict", "inclusive"] | None = None  # keep what is above, or not below, the elbow; paper: "strict"
    layer: int | None = None  # first decoder layer with the reduced set, >= 1; None: 10 of 32, behind layer 9
    reference: Literal["text", "core"] = "text"  # neurons of one token of the text, or the core neurons of the prompt
    back: int = 5  # which token of the text, counted from the end, >= 1; 5: where "ASSISTANT:" begins in LLaVA-1.5
    token_share: float = 0.2  # core neurons: strongest of each token, as a share of the mean active ones, in (0, 1]
    neuron_share: float = 0.4  # core neurons: the most frequent of these, as a share of all neurons, in (0, 1]
    neurons: bool = False  # whether decoded tokens use the core neurons only; costs memory for the sliced weights
    neuron_layers: tuple[int, int] | None = None  # first and last layer where they do; None: 6 and 26 of 32
    positions: Positions = "original"  # position ids after the removal: "original" or "compact"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        check_choice("reference", self.reference, ("text", "core"))
        check_choice("neurons", self.neurons, (False, True))
        if self.neuron_layers is not None:
            object.__setattr__(self, "neuron_layers", check_whole_numbers("neuron_layers", self.neuron_layers, 0, 2))
        if self.elbow is not None:
            check_choice("elbow", self.elbow, ("strict", "inclusive"))
        if isinstance(check_whole_numbers("back", self.back, least=1), tuple):
            raise TypeError(f"back must be a whole number >= 1, got {self.back!r}.")
        check_number("token_share", self.token_share, 0, 1, above_low=True)
        check_number("neuron_share", self.neuron_share, 0, 1, above_low=True)

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the input of a decoder layer, by what the MLP before it did; and choices of neurons."""
        if self.layer is None:
            (layer,) = cuts_at(None, PAPER, model.decoder_layers)
        else:
            layer = check_layer("layer", self.layer, 1, model.decoder_layers - 1)
        seen = Observation(PART, (layer - 1,), self.measure)
        cut = Stage(Place.DECODER_LAYER, self.decide, (layer,), positions=self.positions, observations=(seen,))
        if not self.neurons:
            return [cut]
        layers, signals = self.sparse_layers(model.decoder_layers), frozenset({"activations"})
        return [cut, Stage(Place.MLP, self.choose, layers, signals, self.positions)]

    def sparse_layers(self, depth: int) -> tuple[int, ...]:
        """The layers whose neurons are pruned in a model of so many layers."""
        if self.neuron_layers is None:
            first, last = (int(layer * depth / DEPTH + 0.5) for layer in SPARSE)
        else:
            first, last = self.neuron_layers
        last = check_layer("the last of neuron_layers", last, 0, depth - 1)
        return tuple(range(check_layer("the first of neuron_layers", first, 0, last), last + 1))

    def measure(self, active: Tensor, output: Tensor, valid: Tensor | None) -> Tensor:
        """How many neurons of the reference every slot activates, (rows, slots)."""
        if self.reference == "text":
            return shared_neurons(active, reference_rows(active.shape[:2], valid, self.back, active.device))
        core = core_neurons(active, valid, self.token_share, self.neuron_share)
        return ((active > 0) & core.unsqueeze(1)).sum(-1)

    def choose(self, mlp: Activations) -> Neurons:
        """The core neurons of an MLP, row by row."""
        return Neurons(core_neurons(mlp.values, mlp.valid, self.token_share, self.neuron_share))

    def decide(self, tokens: VisualTokens) -> Keep:
        """Keep the core tokens, over all pictures of a row together."""
        counts = tokens.observed[PART, tokens.layer - 1].to(tokens.valid.device)
        if self.elbow is None:
            return Keep(top_k_mask(counts.float(), tokens.counts(self.keep), tokens.valid))
        return Keep(above_elbow(counts, tokens.valid, self.elbow))


def reference_rows(shape: Sequence[int], valid: Tensor | None, back: int, device: torch.device | None = None) -> Tensor:
    """(rows,): the slot that is the `back`-th from the end of every row, or its first one.

    Args:
        shape: (rows, slots).
        valid: bool, (rows, slots), False on padding; None without.
        back: 1 is the last slot.
        device: Where the result is.
    """
    rows, slots = shape
    if valid is None:
        return torch.full((rows,), max(slots - back, 0), device=device)
    last = slots - 1 - valid.flip(1).long().argmax(1)
    return torch.maximum(last - back + 1, valid.long().argmax(1))


def shared_neurons(active: Tensor, reference: Tensor) -> Tensor:
    """How many neurons are active both in a slot and in the row's reference slot, (rows, slots).

    Args:
        active: (rows, slots, neurons), activations.
        reference: (rows,), a slot of every row.
    """
    on = active > 0
    chosen = on.gather(1, reference[:, None, None].expand(-1, 1, on.shape[2]))
    return (on & chosen).sum(-1)


def neurons_per_token(active: Tensor, valid: Tensor | None, token_share: float) -> Tensor:
    """How many of its strongest neurons count for each token of a row, (rows,): a share of the mean active ones."""
    on = active > 0 if valid is None else (active > 0) & valid.unsqueeze(-1)
    length = torch.full((len(on),), on.shape[1], device=on.device) if valid is None else valid.sum(1)
    return (on.sum((1, 2)).double() * token_share / length.clamp_min(1)).long()


def core_neurons(active: Tensor, valid: Tensor | None, token_share: float, neuron_share: float) -> Tensor:
    """The neurons that are most often among the strongest of a token, bool (rows, neurons).

    Args:
        active: (rows, slots, neurons), activations.
        valid: bool, (rows, slots), False on padding; None without.
        token_share: See `neurons_per_token`.
        neuron_share: How many neurons, as a share of all, rounded down.
    """
    counts, neurons = neurons_per_token(active, valid, token_share), active.shape[2]
    strongest = active.float().argsort(dim=2, descending=True, stable=True)
    wanted = (torch.arange(neurons, device=active.device) < counts.unsqueeze(1)).unsqueeze(1)
    if valid is not None:
        wanted = wanted & valid.unsqueeze(-1)
    often = torch.zeros(len(active), neurons, dtype=torch.long, device=active.device)
    often = often.scatter_add(1, strongest.flatten(1), wanted.expand_as(strongest).long().flatten(1))
    return top_k_mask(often.float(), int(neuron_share * neurons))


def elbow(counts: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sorted counts of every row are farthest from the line between the first and the last: index, count.

    Args:
        counts: (rows, tokens).
        valid: bool, (rows, tokens), False on padding.

    Returns:
        (rows,) each; the first of several such places.
    """
    y = counts.double().masked_fill(~valid, -torch.inf).sort(dim=1, descending=True).values
    last = (valid.sum(1, keepdim=True) - 1).clamp_min(0)
    x = torch.arange(y.shape[1], device=y.device).double()
    there = x <= last
    y = y.masked_fill(y.isinf(), 0)
    rise = y.gather(1, last) - y[:, :1]
    length = (rise.square() + last.double().square()).sqrt().clamp_min(1e-12)
    distance = ((rise * x - last * (y - y[:, :1])).abs() / length).masked_fill(~there, -1)
    index = (distance >= distance.amax(1, keepdim=True) - 1e-9).long().argmax(1)
    return index, y.gather(1, index.unsqueeze(1)).squeeze(1)


def above_elbow(counts: Tensor, valid: Tensor, rule: Literal["strict", "inclusive"]) -> Tensor:
    """Core tokens, bool (rows, tokens): above the elbow; not below it, if asked for or if none is above."""
    limit = elbow(counts, valid)[1].unsqueeze(1)
    above, from_it_on = valid & (counts > limit), valid & (counts >= limit)
    return from_it_on if rule == "inclusive" else torch.where(above.any(1, keepdim=True), above, from_it_on)
