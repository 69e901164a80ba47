"""What a method may learn from a few pictures before it is used: no labels, no gradients, no change to the model.

thresholds = dymu_thresholds(model, [processor(...), processor(...)], keep=0.25)
save_thresholds("thresholds.json", thresholds)
vtprune.apply(model, "dymu", thresholds="thresholds.json")

save_heads("heads.json", yopo_heads(model, [processor(...), processor(...)], keep=0.75))
vtprune.apply(model, "yopo", heads="heads.json")

save_chunks("chunks.json", fasa_chunks(model, [processor(...), processor(...)], keep=0.25))
vtprune.apply(model, "fasa", keep=0.25, chunks="chunks.json")

layers = stable_layers(model, [processor(...), processor(...)])
vtprune.apply(model, "token_sparse_attention", keep=0.25, layers=layers)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtprune.api import applied
from vtprune.budget import Budget, token_count
from vtprune.integrations import integrate
from vtprune.kernels import attention_column_mass, attention_scores
from vtprune.methods._heads import Heads, chosen, load_heads, save_heads, votes
from vtprune.methods._select import check_number
from vtprune.methods.base import EncoderTokens, Group, LayerSlots, Method, ModelInfo, Place, Stage
from vtprune.methods.dymu import (
    Schedule,
    load_thresholds,
    nearest_pairs,
    pairs_group,
    pooled_threshold,
    removals,
    save_thresholds,
)
from vtprune.methods.fasa import FASA, Chunks, load_chunks, save_chunks
from vtprune.methods.token_sparse_attention import drift, stable

__all__ = [
    "ChunkCalibration",
    "DyMUCalibration",
    "HeadCalibration",
    "dymu_thresholds",
    "fasa_chunks",
    "load_chunks",
    "load_heads",
    "load_thresholds",
    "save_chunks",
    "save_heads",
    "save_thresholds",
    "stable_layers",
    "yopo_heads",
]


@torch.no_grad()
def dymu_thresholds(
    model: Any, batches: Iterable[Mapping[str, Any]], *, keep: Budget = 0.25, schedule: Schedule = "constant"
) -> tuple[float | None, ...]:
    """Find thresholds for `dymu` that leave `keep` of the patches on average over the given pictures.

    A batch's best pairs merge, wherever they are, as many as the schedule has for a block; its threshold is the most
    similar pair that does not. Blocks follow one another, each on what the earlier ones left, and thresholds are means
    over the batches.

    Args:
        model: As for `vtprune.apply`; what is applied to it is set aside meanwhile.
        batches: Inputs of the model with pictures, as its processor makes them; a few dozen different pictures in
            batches of several are a start, the paper takes 256,000. The pictures of a batch share its threshold, so
            batches should be mixed.
        keep: Ratio in (0, 1], or patches per picture or tile.
        schedule: Whether all blocks merge as much, or early ones more ("linear"), or late ones ("reverse").

    Returns:
        One threshold per encoder block that is used; None for a block that is to merge nothing.

    Raises:
        ValueError: There is no picture in the batches, `dymu` does not fit the model, or a block would have to merge
            more than half of its patches.
    """
    calibration = DyMUCalibration(keep, schedule)
    with applied(model, calibration):
        for batch in batches:
            model(**batch)
    if not calibration.means or None in calibration.means:
        raise ValueError("batches must hold pictures to calibrate on, got none.")
    return calibration.thresholds


class DyMUCalibration(Method):
    """Merges the best pairs of each batch as a whole, and remembers the mean of the thresholds that this took.

    Attributes:
        latest: The threshold that the latest batch took, per block.
        means: Their mean so far; None before the first one.
    """

    name = "dymu"
    kind = "merging"
    places = (Place.ENCODER_LAYER,)

    def __init__(self, keep: Budget, schedule: Schedule = "constant") -> None:
        self.keep, self.schedule = keep, schedule
        self.__post_init__()
        self.latest: list[float | None] = []
        self.means: list[float | None] = []
        self.batches: list[int] = []
        self.merging: tuple[int, ...] = ()  # pairs per picture and block, on average

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """The means, and None for blocks in which nothing is to merge."""
        return tuple(mean if pairs else None for mean, pairs in zip(self.means, self.merging, strict=True))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """As those of `dymu`, without sharing: what the language model makes of it does not matter."""
        layers = model.encoder_layers
        self.latest, self.means, self.batches = [None] * layers, [None] * layers, [0] * layers
        return [Stage(Place.ENCODER_LAYER, self.decide, tuple(range(layers)), proportional=True, ragged=True)]

    def decide(self, tokens: EncoderTokens) -> Group | None:
        """Take the threshold of this batch and merge what is above."""
        layer, valid = tokens.layer, tokens.sizes > 0
        total = tokens.patches - token_count(self.keep, tokens.patches)
        self.merging = removals(total, len(self.means), self.schedule)
        arriving, pairs = tokens.patches - sum(self.merging[:layer]), self.merging[layer]
        if pairs > arriving // 2:
            raise ValueError(
                f"keep={self.keep!r} leaves {tokens.patches - total} of {tokens.patches} patches, for which block "
                f"{layer} would have to merge {pairs} of {arriving}, and at most half can; raise keep, or choose "
                "another schedule."
            )
        likeness, partner = nearest_pairs(tokens.keys, valid, tokens.protected)
        threshold, merged = pooled_threshold(likeness, self.merging[layer])
        mean, count = self.means[layer] or 0.0, self.batches[layer]
        self.latest[layer] = threshold
        self.means[layer] = (mean * count + threshold) / (count + 1)
        self.batches[layer] = count + 1
        return pairs_group(likeness, partner, merged, valid, tokens.protected)


@torch.no_grad()
def yopo_heads(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    keep: float = 0.5,
    threshold: float | None = None,
    first: int = 2,
    agree: float = 0.4,
    decoding: bool = False,
) -> Heads:
    """Find the heads of `yopo` that go on attending to visual tokens.

    A prompt votes for a head if this gives visual tokens more than `threshold` of what it gives all others, summed over
    all queries. Heads that more than `agree` of the prompts vote for stay.

    Args:
        model: As for `vtprune.apply`; what is applied to it is set aside meanwhile.
        batches: Inputs of the model with pictures, as its processor makes them; the paper takes 100 prompts for LLaVA
            and one for others.
        keep: Share of the heads that stay in layers from `first` on, in [0, 1]; it decides the threshold.
        threshold: What the ratio must exceed; None: as `keep` has it. The paper takes 0.035 to keep 30 of 40 heads in
            LLaVA-13B, 0.07 in Qwen2-VL-7B.
        first: First layer of which heads may be cut.
        agree: Share of the prompts, in [0, 1).
        decoding: Whether only the query of the last token counts, as for Qwen2-VL.

    Returns:
        For every decoder layer the heads that stay.

    Raises:
        ValueError: There is no picture in the batches, or a parameter is out of range.
    """
    check_number("keep", keep, 0, 1)
    check_number("agree", agree, 0, 1)
    calibration = HeadCalibration(decoding)
    with applied(model, calibration):
        for batch in batches:
            model(**batch)
    if not calibration.visual:
        raise ValueError("batches must hold pictures to calibrate on, got none.")
    layers = sorted(calibration.visual)
    visual, other = (torch.stack([torch.cat(x[i]) for i in layers]) for x in (calibration.visual, calibration.other))
    needed = int(agree * visual.shape[1])  # votes, and one more
    if threshold is not None:
        return chosen(votes(visual, other, threshold, first) > needed)
    # Of the ratio that the last needed vote must exceed, the largest ones.
    ratio = (visual / other).sort(1, descending=True).values[:, min(needed, visual.shape[1] - 1)]
    mask = torch.ones_like(ratio, dtype=torch.bool)
    best = ratio[first:].flatten().sort(descending=True, stable=True).indices[: round(keep * ratio[first:].numel())]
    mask[first:] = torch.zeros(ratio[first:].numel(), dtype=torch.bool).scatter(0, best, True).view_as(ratio[first:])
    return chosen(mask)


class HeadCalibration(Method):
    """Notes how much attention heads give to visual tokens, and how much to all others; changes nothing.

    Attributes:
        visual: By layer, what each batch's prompts with pictures give visual tokens, (prompts, heads).
        other: The same of all other tokens.
    """

    name = "yopo"
    kind = "sparse"
    places = (Place.ATTENTION,)

    def __init__(self, decoding: bool) -> None:
        self.decoding = decoding
        self.visual: dict[int, list[Tensor]] = {}
        self.other: dict[int, list[Tensor]] = {}

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """All layers, once queries and keys are there."""
        layers = tuple(range(model.decoder_layers))
        return [Stage(Place.ATTENTION, self.decide, layers, frozenset({"queries_keys_values"}))]

    def decide(self, slots: LayerSlots) -> None:
        """Note it."""
        if slots.queries is None or slots.keys is None or slots.past:
            return
        there = slots.keys.new_ones(len(slots.keys), slots.keys.shape[2], dtype=torch.bool)
        there = there if slots.valid is None else slots.valid
        if self.decoding:
            last = (there * torch.arange(1, there.shape[1] + 1, device=there.device)).argmax(1)
            row = slots.queries.take_along_dim(last[:, None, None, None], 2)
            mass = attention_scores(row, slots.keys, scale=slots.scale, key_valid=there, reduce_heads=None)
        else:
            mass = attention_column_mass(
                slots.queries,
                slots.keys,
                scale=slots.scale,
                causal=True,
                key_valid=there,
                row_mask=there,
                reduce_heads=None,
            )
        visual = slots.visual_entries
        with_picture = visual.any(-1)[:, 0]
        self.visual.setdefault(slots.layer, []).append((mass * visual).sum(-1)[with_picture].cpu())
        self.other.setdefault(slots.layer, []).append((mass * ~visual).sum(-1)[with_picture].cpu())


@torch.no_grad()
def fasa_chunks(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    *,
    keep: Budget = 0.25,
    share: Budget = 0.25,
    queries: int = 16,
) -> Chunks:
    """Find the frequency chunks of `fasa` that rank visual entries as whole queries and keys do.

    Args:
        model: As for `vtprune.apply`; what is applied to it is set aside meanwhile.
        batches: Inputs of the model with pictures, as its processor makes them; a handful. Pictures and videos may have
            other chunks.
        keep: How many entries are the best that a chunk should find: a ratio in (0, 1] of the visual ones, or a number.
        share: How many chunks are dominant: a ratio in (0, 1], or a number.
        queries: Last tokens of a prompt that are looked at, >= 1.

    Returns:
        The dominant chunks of every layer and key-value head.

    Raises:
        ValueError: There is no picture in the batches, or a parameter is out of range.
    """
    calibration = ChunkCalibration(FASA(keep=keep, share=share, queries=queries))
    with applied(model, calibration):
        for batch in batches:
            model(**batch)
    if not calibration.prompts:
        raise ValueError("batches must hold pictures to calibrate on, got none.")
    found = [calibration.fasa.leading(calibration.total[i]) for i in sorted(calibration.total)]
    return tuple(tuple(tuple(head) for head in layer.tolist()) for layer in found)


class ChunkCalibration(Method):
    """Notes how far single chunks agree with whole queries and keys; changes nothing.

    Attributes:
        total: By layer, agreement summed over prompts with pictures, (kv_heads, chunks).
        prompts: By layer, how many these were.
    """

    name = "fasa"
    kind = "sparse"
    places = (Place.ATTENTION,)

    def __init__(self, fasa: FASA) -> None:
        self.fasa = fasa
        self.total: dict[int, Tensor] = {}
        self.prompts: dict[int, int] = {}

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """All layers, once queries and keys are there."""
        layers = tuple(range(model.decoder_layers))
        return [Stage(Place.ATTENTION, self.decide, layers, frozenset({"queries_keys_values"}))]

    def decide(self, slots: LayerSlots) -> None:
        """Note it."""
        with_picture = slots.visual_entries[:, 0].any(1)
        found = self.fasa.agreements(slots)[with_picture]
        self.total[slots.layer] = self.total.get(slots.layer, 0) + found.sum(0).cpu()
        self.prompts[slots.layer] = self.prompts.get(slots.layer, 0) + len(found)


@torch.no_grad()
def stable_layers(model: Any, batches: Iterable[Mapping[str, Any]], *, share: float = 0.5) -> tuple[int, ...]:
    """Find the layers for `token_sparse_attention`: those that change their tokens least.

    Args:
        model: As for `vtprune.apply`; what is applied to it is set aside meanwhile.
        batches: Inputs of the model, as its processor makes them, padded or not; the paper takes one prompt of 131,072
            tokens.
        share: Which quantile of the layers' mean drift a layer may not exceed, in [0, 1].

    Raises:
        ValueError: There are no batches, or `share` is out of range.
    """
    check_number("share", share, 0, 1)
    layers = integrate(model).decoder_layers
    totals, tokens = torch.zeros(len(layers), dtype=torch.float64), 0
    valid: Tensor | None = None

    def note(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            moved = drift(args[0], output[0] if isinstance(output, tuple) else output)
            totals[layer] += float((moved if valid is None else moved * valid.to(moved.device)).sum())

        return hook

    with applied(model, Untouched()):
        handles = [layer.register_forward_hook(note(i)) for i, layer in enumerate(layers)]
        try:
            for batch in batches:
                valid = batch.get("attention_mask")
                model(**batch)
                tokens += batch["input_ids"].numel() if valid is None else int(valid.sum())
        finally:
            for handle in handles:
                handle.remove()
    if not tokens:
        raise ValueError("batches must hold prompts to calibrate on, got none.")
    return stable(totals / tokens, share)


class Untouched(Method):
    """Does nothing, in the place of what is set aside."""

    name = "untouched"
    kind = "baseline"
    places = ()

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """None."""
        return []
