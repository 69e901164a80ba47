"""What a method is: the places where it acts, the signals that it needs, and how it decides.

A method never sees a hook, a cache, a mask or a model family. It describes itself as one or more `Stage`s; the engine
gathers the signals that a stage asks for, calls its `decide`, and carries the decision out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from vtprune.budget import Budget, check_keep, token_count, token_counts
from vtprune.methods._tiles import Tiles

Positions = Literal["auto", "original", "compact"]
Scope = Literal["picture", "tile"]


class Place(StrEnum):
    """Where visual tokens can be saved."""

    ENCODER_INPUT = "encoder input"
    ENCODER_LAYER = "encoder layer"
    ENCODER_OUTPUT = "encoder output"
    DECODER_LAYER = "decoder layer"


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
    may be made smaller before it.
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

    def attention_block(self, depth: float) -> int:
        """The block whose attention may be asked for that is nearest to a relative depth, in [0, 1] of the used ones.

        Of two equally near ones the deeper.
        """
        wanted = depth * (self.encoder_layers - 1)
        used = [block for block in self.attention_blocks if block < self.encoder_layers]
        return min(used, key=lambda block: (abs(block - wanted), -block))


@dataclasses.dataclass(frozen=True)
class Resize:
    """Decision at the encoder's input: a smaller picture in the place of the picture.

    Args:
        pixels: (frames, channels, height, width), each side a whole multiple of a token's.
    """

    pixels: Tensor


@dataclasses.dataclass(frozen=True)
class Keep:
    """Decision: which visual tokens stay, and what becomes of their features.

    Args:
        mask: bool, (pictures or rows, tokens), True where a token stays.
        mix: New features of all tokens from the old ones, (pictures, tokens, channels) both, of which those that stay
            are used; differentiable, as DeepStack levels and gradients go through it too. At a decoder layer it gets
            hidden states, (rows, tokens, width), and features that DeepStack adds later are those of the tokens that
            stay. None leaves them as they are. The stage must say so by `mixes`.
        owner: (pictures, tokens), for every token the kept one that stands for it, itself if none does; None where
            features do not mix. For reports.
    """

    mask: Tensor
    mix: Callable[[Tensor], Tensor] | None = None
    owner: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Replace:
    """Decision: new features instead of the old ones.

    Args:
        features: (pictures, groups, channels), in reading order.
        owner: (pictures, tokens), for every old token the index of the group that stands for it.
        ragged: Whether pictures may have different numbers of groups; those that stand for no token are padding.
        again: The same for another level of features of these pictures, (pictures, tokens, channels), where the
            decision depends on the features; differentiable. None: `decide` is asked again.
    """

    features: Tensor
    owner: Tensor
    ragged: bool = False
    again: Callable[[Tensor], Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Decision between encoder layers: which tokens become one.

    Args:
        owner: (pictures, tokens), for every token the index of its group after this step; padding may own any.
        groups: Number of groups; of the picture that has most, if pictures have different numbers of them.
        weighted: Whether the mean of a group weighs tokens by their sizes.
        ragged: Whether pictures may have different numbers of groups; their groups then come first, 0, 1, 2, ...
        keep: bool, (pictures, tokens), False where a token leaves and belongs to no group; None if all stay. The stage
            must say so by `prunes`.
        sizes: (pictures, groups), sizes of the groups, above 0; None for the sums of the sizes of their tokens.
    """

    owner: Tensor
    groups: int
    weighted: bool = True
    ragged: bool = False
    keep: Tensor | None = None
    sizes: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Pixels:
    """What a stage at the encoder's input sees: a picture, or a video, of a model that takes any size.

    Args:
        grid: (frames, rows, columns) of the tokens that it will be.
        pixels: (frames, channels, height, width), normalised; what an encoder joins over time counts as channels.
    """

    grid: tuple[int, int, int]
    pixels: Tensor


@dataclasses.dataclass(frozen=True)
class EncoderTokens:
    """What a stage between encoder layers sees. All tokens are in the order in which they run, [CLS] first.

    Where a stage before it has merged tokens in the same block, their queries, keys and values are means.

    Args:
        layer: Index of the block.
        keys: (pictures, tokens, head_dim), attention keys of this block, mean over heads.
        sizes: (pictures, tokens), how many patches each token stands for; 0 on padding, behind all tokens.
        protected: How many leading tokens must stay alone ([CLS]).
        patches: Number of patches per picture before any merging.
        hidden: (pictures, tokens, channels), the residual stream that is about to be merged.
        queries: (pictures, heads, tokens, head_dim), queries of this block, of all heads.
        head_keys: The same of its keys.
        values: (pictures, tokens, heads * head_dim), values of this block; present if "values" was asked for.
        scale: Factor on the products of queries and keys.
        key_bias: (pictures, tokens), what was added to the attention logits of each key; None for nothing.
    """

    layer: int
    keys: Tensor
    sizes: Tensor
    protected: int
    patches: int
    hidden: Tensor | None = None
    queries: Tensor | None = None
    head_keys: Tensor | None = None
    values: Tensor | None = None
    scale: float = 1.0
    key_bias: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class EncoderSignal:
    """What a stage at the encoder's output may ask of one vision block; values per token, averaged over its patches.

    Args:
        name: "attention": attention each token receives from [CLS], or, in encoders without one, from all tokens on
            average; "received": from all tokens on average, [CLS] among them; "logits": logits of [CLS], or of the
            mean query, before the softmax; (pictures, tokens) each, mean over heads. "keys": attention keys as the
            block uses them, (pictures, tokens, heads * head_dim).
        block: Index of the block, one of `ModelInfo.attention_blocks`.
    """

    name: Literal["attention", "received", "logits", "keys"]
    block: int


class Cells(NamedTuple):
    """Where the tokens of a batch of pictures lie, (pictures, tokens) each.

    Tiles are counted over the whole picture (a thumbnail is one), rows and columns within the map of tokens.
    """

    map: Tensor
    tile: Tensor
    frame: Tensor
    row: Tensor
    column: Tensor


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What a stage at the encoder's output sees: a batch of pictures, videos or tiles of one shape.

    Args:
        grid: (frames, rows, columns), their product is the number of tokens, which are in raster order; None where
            tokens were removed or merged before, or form several maps (thumbnail and canvas, tiles).
        encoded: (pictures, tokens, channels), features at the encoder's output; those before the projector, except in
            families whose encoder ends with it (Qwen-VL).
        projected: (pictures, tokens, width), features after the projector; None for a stage before it.
        attention: (pictures, tokens), the `EncoderSignal` "attention" of the last used block; present if
            "encoder_attention" was asked for.
        cells: Map, tile, frame, row and column of every token.
        seconds: Time from frame to frame of a video, if the model is told.
        share: How many of them may stay, where a number of tokens per picture was shared out among its tiles.
        signals: What was asked for of other blocks.
        text: (pictures, n, width), embeddings of the prompt's text after its first visual token, padded on the left;
            present if "text" was asked for.
        text_valid: bool, (pictures, n), False on padding.
        tiles: Thumbnail and tiles of a tiled picture of which no token was removed before; else None.
        pixel_steps: (pictures, tokens, 2), RMS difference of the normalised pixels of a token and of the next one, on
            the right and below; infinite at the edges of maps and frames. Present if "pixel_steps" was asked for.
    """

    grid: tuple[int, int, int] | None
    encoded: Tensor
    projected: Tensor | None = None
    attention: Tensor | None = None
    cells: Cells | None = None
    seconds: float | None = None
    share: int | None = None
    signals: Mapping[EncoderSignal, Tensor] = dataclasses.field(default_factory=dict)
    text: Tensor | None = None
    text_valid: Tensor | None = None
    tiles: Tiles | None = None
    pixel_steps: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens per picture."""
        return self.encoded.shape[1]

    def count(self, keep: Budget) -> int:
        """How many of these tokens `keep` allows."""
        return token_count(keep, self.tokens) if self.share is None else min(self.share, self.tokens)


@dataclasses.dataclass(frozen=True)
class QueriesKeys:
    """What the attention of a decoder layer works on, for all of its slots, of text too.

    Args:
        queries: (rows, heads, slots, head_dim), rotated.
        keys: (rows, kv_heads, earlier + slots, head_dim), rotated; those of earlier calls on the same cache first.
        scale: Factor on their products.
        valid: bool, (rows, earlier + slots), False on padding; None without padding.
        at: (rows, tokens), which slot each visual token is; any on padding.
    """

    queries: Tensor
    keys: Tensor
    scale: float
    valid: Tensor | None
    at: Tensor


@dataclasses.dataclass(frozen=True)
class VisualTokens:
    """What a stage at a decoder layer sees: the visual tokens of every row of the batch, padded to the longest row.

    Args:
        layer: Index of the decoder layer that is about to run.
        valid: (rows, tokens), False on padding.
        picture: (rows, tokens), number of the picture within its row, -1 on padding.
        arrived: (rows, pictures), how many tokens of each picture arrive at this layer; 0 where there is none.
        attention: (rows, tokens), attention that the query rows asked for give each visual token in the layer before
            this one: softmax over all keys, mean over heads and query rows; 0 on padding. None unless asked for.
        memory: Lives as long as this prefill; for stages that compare layers.
        hidden: (rows, tokens, width), hidden states; present if "hidden" was asked for, anything on padding.
        queries_keys: Queries and keys of the layer before this one; present if "queries_keys" was asked for.
    """

    layer: int
    valid: Tensor
    picture: Tensor
    arrived: Tensor
    attention: Tensor | None
    memory: dict[str, Any]
    hidden: Tensor | None = None
    queries_keys: QueriesKeys | None = None

    def counts(self, keep: Budget) -> Tensor:
        """(rows,): how many visual tokens `keep` allows, summed over the row's pictures."""
        return token_counts(keep, self.arrived).sum(1)


Decide = Callable[[Any], Resize | Keep | Replace | Group | None]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One action of a method at one place.

    Args:
        place: Where it acts.
        decide: Pure function from `Pixels`, `EncoderTokens`, `Pictures` or `VisualTokens` to a decision; None changes
            nothing.
        layers: The encoder or decoder layers at which it acts. A decoder stage acts on the input of the layer.
        signals: Of "values" (encoder layer); "encoder_attention", "pixel_steps", "projected", "text" and any
            `EncoderSignal` (encoder output); "hidden", "queries_keys", and "last_query" or "text_queries" (decoder
            layer; the latter two: attention of the last prompt token, or of all text tokens after the first visual
            one).
        positions: Position ids after a removal: "original", "compact" (dense), or "auto": dense ones on LLaVA-1.5 and
            LLaVA-NeXT, as in the authors' code, and original ones on all other families, as in ports to Qwen-VL.
        proportional: Encoder layers only: weigh each key by its size (adds log(size) to its attention logits).
        after_block: Encoder layers only: act on the output of the block, instead of between attention and MLP.
        prunes: Encoder layers only: tokens may be dropped (`Keep`), not only merged.
        ragged: Encoder layers only: pictures may keep different numbers of tokens.
        mixes: Encoder output and decoder layers: whether kept tokens may get new features (`Keep.mix`).
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
            picture is shared out among tiles and frames in proportion, to the token.
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


class Method:
    """Base of all methods. A subclass is a frozen dataclass of parameters, registered with `@register(name)`.

    Class attributes describe it: `kind` (pruning, merging, frequency, exit, baseline), `paper` (title, arXiv id),
    `cost` (leading terms of its operations on one picture, in the letters of docs/methods.md), `needs_text`,
    `needs_training`, and `positions`, the default position rule; `needs_video` if it leaves pictures as they are,
    `adaptive` if the number of tokens follows from what they show and meets `keep` only roughly.
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

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """The method's stages on a model.

        Raises:
            ValueError: A parameter does not fit the model (a layer beyond the last, say).
        """
        raise TypeError(f"{type(self).__name__} defines no stages(model).")

    def __post_init__(self) -> None:
        """Check the budget and the position rule; subclasses with more parameters extend this."""
        if hasattr(self, "keep"):
            object.__setattr__(self, "keep", check_keep(self.keep))
        positions = getattr(self, "positions", "original")
        if positions not in ("auto", "original", "compact"):
            raise ValueError(f"positions must be 'auto', 'original' or 'compact', got {positions!r}.")


def check_layer(name: str, layer: object, first: int, last: int) -> int:
    """Check a layer index.

    Raises:
        ValueError: `layer` is no whole number in [first, last].
    """
    if isinstance(layer, bool) or not isinstance(layer, int) or not first <= layer <= last:
        raise ValueError(f"{name} must be a layer from {first} to {last} of this model, got {layer!r}.")
    return layer
