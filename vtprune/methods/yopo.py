"""Visual tokens are computed on with less effort: few neighbours, fewer heads, narrower MLPs, and not in late layers.

They attend to their neighbours in the picture only; in most heads nothing attends to them; their MLPs use the first
channels; and from one layer on nothing attends to them at all. What is saved with dense kernels: `window` the products
beyond a band of rows; `mlp` the other channels; `layer` everything, as visual tokens then leave; heads, with `silent`,
all products of visual queries, with head_softmax="renormalise" those with visual keys, else nothing. With
layer_softmax="zero" late layers save nothing either, since their softmax still needs the keys of visual tokens.

Paper: Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See, arXiv 2410.06169.
Authors' code: ZhangAIPI/YOPO_MLLM_Pruning, which masks and saves nothing. Differs from the paper in: windows follow
each picture's own grid, tiles and frames; batches with padding and prompts without pictures are left as they should be.

The paper's LLaVA models are trained with it (13B: window=5, heads=<30 of 40>, silent=True, layer=20, mlp=2,
layer_softmax="zero"); Qwen2-VL-7B is not: heads=<14 of 28>, layer=24. `vtprune.calibration.yopo_heads` finds heads.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from vtprune.methods._heads import Heads, check_heads, load_heads
from vtprune.methods._select import check_choice, check_whole_numbers
from vtprune.methods._text import not_behind, of_heads, text_before, text_entries
from vtprune.methods._windows import window_blocks
from vtprune.methods.base import (
    Attend,
    Feed,
    Keep,
    LayerSlots,
    Method,
    ModelInfo,
    Part,
    Place,
    Positions,
    Stage,
    VisualTokens,
    Width,
    check_layer,
)
from vtprune.methods.registry import register

Softmax = Literal["zero", "renormalise"]


@register("yopo")
@dataclasses.dataclass(frozen=True)
class YOPO(Method):
    """Fewer efforts to see."""

    kind = "sparse"
    places = (Place.DECODER_LAYER, Place.ATTENTION, Place.MLP)
    paper = "Treat Visual Tokens as Text? But Your MLLM Only Needs Fewer Efforts to See, arXiv 2410.06169"
    cost = "N"

    window: int | None = None  # odd side of the square of neighbours that visual tokens attend to; None: no window
    heads: str | Heads | None = None  # per layer, those that attend to visual tokens; or a file of them; None: all
    silent: bool = False  # whether the other heads bring nothing to visual tokens, from text either
    layer: int | None = None  # first layer in which nothing attends to visual tokens; None: behind 6 of 7
    mlp: int = 1  # visual tokens use 1 / mlp of the channels of MLPs
    head_softmax: Softmax = "zero"  # attention to visual tokens in other heads: lost, or the rest adds up to one
    layer_softmax: Softmax = "renormalise"  # the same in late layers
    positions: Positions = "original"  # position ids once visual tokens have left: "original" or "compact"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.window is not None and (check_whole_numbers("window", [self.window], 1), self.window % 2 == 0)[1]:
            raise ValueError(f"window must be odd, so that a token stands in its middle, got {self.window}.")
        check_whole_numbers("mlp", [self.mlp], 1)
        for name in ("head_softmax", "layer_softmax"):
            check_choice(name, getattr(self, name), get_args(Softmax))

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """What is asked for, and no more."""
        layers, leaves = model.decoder_layers, self.layer_softmax == "renormalise"
        cut = max(1, layers * 6 // 7) if self.layer is None else self.layer
        check_layer("layer", cut, 1 if leaves else 0, layers)
        heads: Heads = (tuple(range(model.decoder_heads)),) * layers
        if self.heads is not None:
            heads = check_heads(load_heads(self.heads) if isinstance(self.heads, str) else self.heads, model)
        found = []
        if leaves and cut < layers:
            found.append(Stage(Place.DECODER_LAYER, none, (cut,), positions=self.positions))
        seen, signals = cut if leaves else layers, frozenset({"cells"})
        for i in range(seen):
            late = i >= cut
            if self.window is None and not late and len(heads[i]) == model.decoder_heads:
                continue
            softmax = self.layer_softmax if late else self.head_softmax
            decide = functools.partial(self.attend, sees=() if late else heads[i], table=heads[i], softmax=softmax)
            found.append(Stage(Place.ATTENTION, decide, (i,), signals, positions=self.positions, decodes=True))
        if self.mlp > 1:
            feed = functools.partial(narrower, channels=model.decoder_channels // self.mlp)
            found.append(Stage(Place.MLP, feed, tuple(range(seen)), positions=self.positions))
        return found

    def attend(
        self, slots: LayerSlots, sees: tuple[int, ...], table: tuple[int, ...], softmax: Softmax
    ) -> Attend | None:
        """The products of a layer.

        Args:
            slots: Its slots.
            sees: Heads in which anything attends to visual tokens.
            table: Heads that bring something to visual tokens, with `silent`.
            softmax: What becomes of attention to visual tokens in other heads.
        """
        others = tuple(h for h in range(slots.heads) if h not in sees)
        if not slots.visual.shape[1]:  # decoding, or a turn without pictures
            return Attend((*_in(sees, Part()), *_blind_text(others, Part(), slots, softmax))) if others else None
        asking = tuple(h for h in others if h in table or not self.silent)
        text = Part(slots.text[:, None])
        # All slots are one part where they can be: a kernel for causal attention does half the work.
        everyone = (Part(),) if self.window is None else (text, self._window(slots, self.window))
        parts = [x for part in everyone for x in _in(sees, part, slots)]
        if softmax == "zero":
            mute = tuple(h for h in others if h not in asking)
            losing = [dataclasses.replace(part, lost=slots.visual_entries) for part in everyone]
            parts += [x for part in losing for x in _in(asking, part, slots)]
            return Attend((*parts, *_blind_text(mute, text, slots, softmax)))
        parts += _blind_text(others, text, slots, softmax)
        parts += _in(asking, _text_only(slots.visual, *text_before(slots), slots), slots)
        return Attend(tuple(parts))

    def _window(self, slots: LayerSlots, side: int) -> Part:
        """The window, which is the same in all layers that have the same slots."""
        known = slots.memory.get("window")
        if known is None or known[0] is not slots.visual or known[1] != slots.past:
            known = slots.memory["window"] = slots.visual, slots.past, window_blocks(slots, side)
        return known[2]


def none(tokens: VisualTokens) -> Keep:
    """All visual tokens leave."""
    return Keep(torch.zeros_like(tokens.valid))


def narrower(slots: LayerSlots, channels: int) -> Feed:
    """Text uses the whole MLP, visual tokens its first channels."""
    return Feed((Width(slots.text), Width(slots.visual, channels)))


def _in(heads: tuple[int, ...], part: Part, slots: LayerSlots | None = None) -> tuple[Part, ...]:
    """A part in some heads; nothing without heads."""
    if not heads:
        return ()
    sees = part.sees if part.sees is None or slots is None else of_heads(part.sees, heads, slots)
    return (dataclasses.replace(part, heads=heads, sees=sees),)


def _blind_text(heads: tuple[int, ...], text: Part, slots: LayerSlots, softmax: Softmax) -> tuple[Part, ...]:
    """Text, all slots or a list of them, in heads in which visual tokens count for nothing."""
    if softmax == "zero":
        return _in(heads, dataclasses.replace(text, lost=slots.visual_entries))
    if text.slots is not None:
        return _in(heads, _text_only(slots.text, *text_entries(slots, slots.text), slots), slots)
    entries = torch.arange(slots.visual_entries.shape[2], device=slots.text.device)
    seen = not_behind(entries, entries[: len(entries) - slots.past], slots.past) & ~slots.visual_entries.unsqueeze(-2)
    return _in(heads, Part(sees=seen), slots)


def _text_only(asking: Tensor, entries: Tensor, is_text: Tensor, slots: LayerSlots) -> Part:
    """Slots (rows, n) that attend to text among `entries`."""
    seen = not_behind(entries, asking[:, None], slots.past) & is_text.unsqueeze(-2)
    return Part(asking[:, None], entries, sees=seen)
