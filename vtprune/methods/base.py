"""What a method is: the places where it acts, the signals that it needs, and how it decides.

A method never sees a hook, a cache, a mask or a model family. It describes itself as one or more `Stage`s; the engine
gathers the signals that a stage asks for, calls its `decide`, and carries the decision out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Literal

from vtprune.budget import Budget, LayerBudget, check_keep, check_layer_keep
from vtprune.methods._computation import Activations, Attend, Feed, LayerSlots, Neurons, Part, Where, Width
from vtprune.methods._decisions import Group, Keep, Replace, Resize, Store
from vtprune.methods._inputs import (
    CacheEntries,
    Cells,
    EncoderSignal,
    EncoderTokens,
    Observation,
    Pictures,
    Pixels,
    QueriesKeys,
    TextRows,
    VisualTokens,
)
from vtprune.methods._tiles import Tiles

__all__ = [
    "Activations",
    "Attend",
    "CacheEntries",
    "Cells",
    "Decide",
    "EncoderSignal",
    "EncoderTokens",
    "Feed",
    "Group",
    "Keep",
    "LayerSlots",
    "Method",
    "ModelInfo",
    "Neurons",
    "Observation",
    "Part",
    "Pictures",
    "Pixels",
    "Place",
    "Positions",
    "QueriesKeys",
    "Replace",
    "Resize",
    "Scope",
    "Stage",
    "Store",
    "TextRows",
    "Tiles",
    "VisualTokens",
    "Where",
    "Width",
    "all_layers",
    "check_layer",
]

Positions = Literal["auto", "original", "compact"]
Scope = Literal["picture", "tile"]


class Place(StrEnum):
    """Where visual tokens can be saved."""

    ENCODER_INPUT = "encoder input"
    ENCODER_LAYER = "encoder layer"
    ENCODER_OUTPUT = "encoder output"
    DECODER_LAYER = "decoder layer"
    ATTENTION = "decoder attention"
    MLP = "decoder MLP"
    CACHE = "decoder cache"


@dataclasses.dataclass(frozen=True)
class ModelInfo:
    """What a method may know about the model that it is applied to.

    `encoder_layers` counts only the blocks whose output reaches the language model. `patches` is the number of
    patches of a picture, or tile, in the encoder, None where it depends on the picture. `position_axes` is the number
    of coordinates of a position id: 1, or 3 (time, row, column) with M-RoPE. `attention_blocks` are the vision blocks
    whose attention may be asked for, by index: those in which all patches of a tile or frame see one another, also the
    ones after the last used block; `scored_block` is the one that "encoder_attention" stands for. `encoder_heads` is
    the number of their heads. `takes_videos` is False where the model cannot be given one, `encoder_stages` where no
    stage can act between encoder layers. `any_size` is True where the encoder takes pictures of any size, so that they
    may be made smaller before it. `decoder_heads` and `decoder_kv_heads` are the heads of a decoder layer,
    `decoder_channels` the intermediate channels of its MLP.
    """

    family: str
    encoder_layers: int
    decoder_layers: int
    has_cls: bool
    patches: int | None = None
    position_axes: int = 1
    attention_blocks: tuple[int, ...] = ()
    scored_block: int = 0
    encoder_heads: int = 1
    takes_videos: bool = True
    encoder_stages: bool = True
    any_size: bool = False
    decoder_heads: int = 1
    decoder_kv_heads: int = 1
    decoder_channels: int = 1

    def attention_block(self, depth: float) -> int:
        """The block whose attention may be asked for that is nearest to a relative depth, in [0, 1] of the used ones.

        Of two equally near ones the deeper.

        Raises:
            ValueError: There is none.
        """
        wanted = depth * (self.encoder_layers - 1)
        used = [block for block in self.attention_blocks if block < self.encoder_layers]
        if not used:
            raise ValueError(
                f"no vision block of this model ({self.family}) can be asked for its attention; use a method that "
                "looks at features only (divprune)."
            )
        return min(used, key=lambda block: (abs(block - wanted), -block))


Decide = Callable[[Any], Resize | Keep | Replace | Group | Attend | Feed | Neurons | Store | None]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One action of a method at one place.

    Args:
        place: Where it acts.
        decide: Pure function from `Pixels`, `EncoderTokens`, `Pictures`, `VisualTokens`, `LayerSlots` or
            `CacheEntries` to a decision; None changes nothing.
        layers: The encoder or decoder layers at which it acts. A decoder stage acts on the input of the layer, a stage
            at the attention or the MLP inside it, a stage at the cache on what the layer holds once its attention has
            run.
        signals: Of "values" (encoder layer); "encoder_attention", "pixel_steps", "projected", "text" and any
            `EncoderSignal` (encoder output); "hidden", "queries_keys", "closing_text", "prediction", and "last_query"
            or "text_queries" (decoder layer; the latter two: attention of the last prompt token, or of all text tokens
            after the first visual one); "closing_queries" or "all_queries" (cache: whose queries are shown, those of
            all text after the last visual token, or of the last token where there is none, or everyone's);
            "queries_keys_values" (attention: the stage decides once these are there; without it before they are made,
            so that some need not be) and "cells" (attention).
        positions: Position ids after a removal: "original", "compact" (dense), or "auto": dense ones on LLaVA-1.5 and
            LLaVA-NeXT, as in the authors' code, and original ones on all other families, as in ports to Qwen-VL.
        proportional: Encoder layers only: weigh each key by its size (adds log(size) to its attention logits).
        after_block: Encoder layers only: act on the output of the block, instead of between attention and MLP.
        prunes: Encoder layers only: tokens may be dropped (`Keep`), not only merged.
        ragged: Encoder layers only: pictures may keep different numbers of tokens.
        mixes: Encoder output and decoder layers: whether kept tokens may get new features (`Keep.mix`). Cache: whether
            kept entries may get new keys and values (`Keep.keys`, `Keep.values`).
        needs_grid: Whether the stage makes new features of whole grids; implies `needs_all`.
        needs_all: Whether the stage needs every token of what it decides on, unmerged and unpruned.
        over_time: Whether a stage that needs the grid needs all frames of a video in it.
        shares: Before the language model only: merged tokens do not leave, but stay on their slots and share the hidden
            state of the one that stands for them (of a `Group`, or named by `Keep.owner`). Other methods cannot act
            beside it.
        skips: Encoder output only: decoder layers, from 1 on, that tokens pass by unless `Keep` marks them; they do not
            leave the prompt. Such a layer runs on the others alone, and its cache holds only these. One stage of a
            chain may do so.
        scope: Encoder output only: whether it decides on all tokens of a picture or video together ("picture"), or on
            every tile and frame by itself ("tile").
        budget: With scope "tile", the budget that `decide` asks for by `Pictures.count`: a number of tokens per
            picture is shared out among tiles and frames in proportion, to the token. With `trial`, the budget that
            `decide` asks for by `VisualTokens.counts`: nothing is tried where it lets all tokens stay.
        observations: Decoder layers only: what to note of layers before; a method notes each part of a layer once.
        text: Cache only: text may be evicted too, in prompts with pictures.
        decodes: Cache and attention only: it acts in all later calls too, at every decoded token; else once, on new
            pictures.
        turns: Cache only: it also acts before every later call of several slots, as a further turn is one
            (`CacheEntries.coming`); with `decodes`.
        alike: Attention only: which caches must hold the same entries at the same places, since the stage names one
            place for all: those of the "heads" of a layer, or of all heads of all its "layers". Methods that evict
            there, or let tokens leave or pass by between these layers, are refused beside it.
        late: Cache only: it acts behind the last layer, layer by layer, and is shown what is still there
            (`CacheEntries.alive`), but no queries.
        hides: Decoder layers only, one of them: tokens that `Keep` does not mark stay, but from the layer on no query
            sees them, here and while decoding. It saves nothing; no other method acts inside the decoder behind it.
        trial: Decoder layer 0 only: run the layers before this one on trial first, and show the stage what it would be
            shown at that layer's input, had nothing left. What it drops then leaves before layer 0.
        every: Cache only, with `decodes`: in calls without pictures it waits until so many tokens have come since it
            acted last.
    """

    place: Place
    decide: Decide
    layers: tuple[int, ...] = ()
    signals: frozenset[str | EncoderSignal] = frozenset()
    positions: Positions = "original"
    proportional: bool = False
    after_block: bool = False
    prunes: bool = False
    ragged: bool = False
    mixes: bool = False
    needs_grid: bool = False
    needs_all: bool = False
    over_time: bool = False
    shares: bool = False
    skips: tuple[int, ...] = ()
    scope: Scope = "picture"
    budget: Budget | None = None
    observations: tuple[Observation, ...] = ()
    text: bool = False
    decodes: bool = False
    turns: bool = False
    alike: Literal["heads", "layers"] | None = None
    late: bool = False
    trial: int | None = None
    every: int = 1
    hides: bool = False


class Method:
    """Base of all methods. A subclass is a frozen dataclass of parameters, registered with `@register(name)`.

    Class attributes describe it: `kind` (pruning, merging, frequency, exit, sparse, cache, baseline), `paper` (title,
    arXiv id), `cost` (leading terms of its operations on one picture, in the letters of docs/methods.md), `needs_text`,
    `needs_training`, and `positions`, the default position rule; `needs_video` if it leaves pictures as they are,
    `adaptive` if the number of tokens follows from what they show and meets `keep` only roughly; `layered` if `keep`
    may be a sequence with a budget for every decoder layer.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    places: ClassVar[tuple[Place, ...]]
    paper: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    needs_text: ClassVar[bool] = False
    needs_training: ClassVar[bool] = False
    needs_video: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    layered: ClassVar[bool] = False

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """The method's stages on a model.

        Raises:
            ValueError: A parameter does not fit the model (a layer beyond the last, say).
        """
        raise TypeError(f"{type(self).__name__} defines no stages(model).")

    def __post_init__(self) -> None:
        """Check the budget and the position rule; subclasses with more parameters extend this."""
        if hasattr(self, "keep"):
            object.__setattr__(self, "keep", (check_layer_keep if self.layered else check_keep)(self.keep))
        positions = getattr(self, "positions", "original")
        if positions not in ("auto", "original", "compact"):
            raise ValueError(f"positions must be 'auto', 'original' or 'compact', got {positions!r}.")


def all_layers(model: ModelInfo, keep: LayerBudget = 1.0) -> tuple[int, ...]:
    """All decoder layers of a model, for which there must be as many budgets if `keep` is a sequence.

    Raises:
        ValueError: It is longer or shorter.
    """
    if isinstance(keep, Sequence) and len(keep) != model.decoder_layers:
        raise ValueError(
            f"keep must be one budget or {model.decoder_layers}, one for every decoder layer of this model, got "
            f"{len(keep)}."
        )
    return tuple(range(model.decoder_layers))


def check_layer(name: str, layer: object, first: int, last: int) -> int:
    """Check a layer index.

    Raises:
        ValueError: `layer` is no whole number in [first, last].
    """
    if isinstance(layer, bool) or not isinstance(layer, int) or not first <= layer <= last:
        raise ValueError(f"{name} must be a layer from {first} to {last} of this model, got {layer!r}.")
    return layer
