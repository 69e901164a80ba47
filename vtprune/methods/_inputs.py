"""What stages are shown, place by place."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vtprune.budget import Budget, LayerBudget, of_layer, token_count, token_counts
from vtprune.methods._tiles import Tiles


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


Module = Literal["self_attn", "mlp", "mlp.down_proj"]
"""A part of a decoder layer."""
Measure = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From a module's input and output (rows, slots, width) and what is no padding (rows, slots), to (rows, slots)."""


@dataclasses.dataclass(frozen=True)
class Observation:
    """What a stage wants to be noted of decoder layers before it, one number per slot; it follows all removals.

    Args:
        module: Which part of a layer: "self_attn", "mlp" or "mlp.down_proj". Its output is what it returns, before
            anything is added to it.
        layers: Which layers. Those that are not behind the stage's layer have no effect.
        measure: Pure function from the part's input and output and bool (rows, slots), False on padding (None: there
            is none), to (rows, slots).
    """

    module: Module
    layers: tuple[int, ...]
    measure: Measure


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
class TextRows:
    """What tokens of the prompt ask in a decoder layer, and all keys that there are: all text after the first picture
    in the layer before ("text_rows"), or the last token in the layer that is about to run ("last_row_ahead").

    The text is the same in every layer, so that its tokens are comparable from stage to stage.

    Args:
        queries: (rows, heads, n, head_dim), rotated; rows with less text are padded on the left.
        keys: (rows, kv_heads, keys, head_dim), rotated; those of earlier calls on the same cache first.
        scale: Factor on their products.
        sees: (rows, n), the last key that each query sees, itself; -1 on padding.
        valid: bool, (rows, keys), False on padding; None without padding.
        at: (rows, tokens), which key each visual token is; any on padding.
        query_rotation: Cosines and sines of the queries' positions, (rows, n, head_dim).
        token_rotation: The same of the visual tokens' positions, (rows, tokens, head_dim).
    """

    queries: Tensor
    keys: Tensor
    scale: float
    sees: Tensor
    valid: Tensor | None
    at: Tensor
    query_rotation: tuple[Tensor, Tensor]
    token_rotation: tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class VisualTokens:
    """What a stage at a decoder layer sees: the visual tokens of every row of the batch, padded to the longest row.

    Args:
        layer: Index of the decoder layer that is about to run; after a trial run, of the one that would be next.
        valid: (rows, tokens), False on padding.
        picture: (rows, tokens), number of the picture within its row, -1 on padding.
        arrived: (rows, pictures), how many tokens of each picture arrive at this layer; 0 where there is none.
        attention: (rows, tokens), attention that the query rows asked for give each visual token in the layer before
            this one, or would give in this one ("..._ahead"): softmax over all keys, mean over heads and query rows; 0
            on padding. None unless asked for.
        memory: Lives as long as this prefill; for stages that compare layers.
        hidden: (rows, tokens, width), hidden states; present if "hidden" was asked for, anything on padding.
        queries_keys: Queries and keys of the layer before this one; present if "queries_keys" was asked for.
        text_rows: The same, with queries of text only; present if "text_rows" was asked for.
        text: (rows, n, width), hidden states of all text after the first picture, padded on the left; present if
            "text" was asked for.
        text_valid: bool, (rows, n), False on padding.
        marked: (rows, tokens), what the method marked at the encoder's output, bool or numbers; anything on padding;
            None if it marked nothing.
        observed: By module and layer, what an `Observation` measured of the visual tokens, (rows, tokens).
        closing: (rows, n, width), hidden states of the text behind the last picture, up to the last prompt token,
            padded on the left; present if "closing_text" was asked for.
        closing_valid: bool, (rows, n), False on padding.
        prediction: (rows, vocabulary), what the model would answer to the last prompt token if no further layer ran, as
            logits by its own last norm and head; present if "prediction" was asked for.
        last_row: The last prompt token's query and all keys of the layer that is about to run; present if
            "last_row_ahead" was asked for.
    """

    layer: int
    valid: Tensor
    picture: Tensor
    arrived: Tensor
    attention: Tensor | None
    memory: dict[str, Any]
    hidden: Tensor | None = None
    queries_keys: QueriesKeys | None = None
    text_rows: TextRows | None = None
    text: Tensor | None = None
    text_valid: Tensor | None = None
    observed: Mapping[tuple[str, int], Tensor] = dataclasses.field(default_factory=dict)
    marked: Tensor | None = None
    last_row: TextRows | None = None
    closing: Tensor | None = None
    closing_valid: Tensor | None = None
    prediction: Tensor | None = None

    def counts(self, keep: Budget) -> Tensor:
        """(rows,): how many visual tokens `keep` allows, summed over the row's pictures."""
        return token_counts(keep, self.arrived).sum(1)


@dataclasses.dataclass(frozen=True)
class CacheEntries:
    """What a stage at the cache sees: all that a decoder layer holds once its attention has run.

    An entry is a slot whose key and value the layer holds, in the order of the prompt; of heads that have kept
    different ones, the n-th entries are different slots. All heads of a row must keep equally many.

    Args:
        layer: Index of the decoder layer.
        queries: (rows, heads, n, head_dim), rotated queries of the slots asked for; in later calls of all of its slots.
        query_at: (rows, n), which entry each of these slots is.
        query_valid: bool, (rows, n), False on padding; None without.
        keys: (rows, kv_heads, entries, head_dim), rotated at the positions that they had at first.
        values: (rows, kv_heads, entries, value_dim).
        scale: Factor on the products of queries and keys.
        valid: bool, (rows, entries), False on padding.
        candidate: bool, (rows, kv_heads, entries), what may leave: the visual tokens of this call, newlines excepted;
            with `Stage(text=True)` all of its tokens, with `Stage(decodes=True)` those of earlier calls too.
        picture: (rows, entries), number of the picture within its row, for visual tokens of this call; else -1.
        arrived: (rows, groups), how many candidates came, by what has a budget of its own: the pictures; or one group,
            if text may leave or earlier calls count, decoded tokens excepted.
        memory: With `Stage(decodes=True)`, tensors that live as long as the cache and follow its rows; under names that
            end with "_of_entries" (rows, kv_heads, entries), which follow the entries and get zeros for new ones.
        across: The same for all layers of the method together, for stages that compare layers; rows first, no entries.
            Without `Stage(decodes=True)` it lives as long as this call.
        alive: bool, (rows, entries), what has not left before the end of the last layer; present with
            `Stage(late=True)`.
        slot: (rows, n), which slot of the conversation each of the last n entries is, those of this call; padding is a
            slot, too. The same slot has the same number in all layers.
        fed: Number of slots of the conversation, with those of this call.
        grows: Whether later calls bring candidates, too, so that a number of entries may exceed what has come.
        coming: With `Stage(turns=True)`, before a further turn: number of slots that are about to come; no queries are
            shown. 0 once they are there.
    """

    layer: int
    queries: Tensor
    query_at: Tensor
    query_valid: Tensor | None
    keys: Tensor
    values: Tensor
    scale: float
    valid: Tensor
    candidate: Tensor
    picture: Tensor
    arrived: Tensor
    memory: dict[str, Tensor]
    across: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    alive: Tensor | None = None
    slot: Tensor | None = None
    fed: int = 0
    grows: bool = False
    coming: int = 0

    def counts(self, keep: LayerBudget) -> Tensor:
        """(rows,): how many candidates `keep` allows in this layer, summed over what has a budget of its own."""
        budget = of_layer(keep, self.layer)
        if self.grows and isinstance(budget, int):
            return torch.full_like(self.arrived[:, 0], budget)
        return token_counts(budget, self.arrived).sum(1)
