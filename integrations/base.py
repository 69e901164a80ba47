"""What an integration is: the answers to the engine's questions about one model family, and nothing else."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from vtprune.integrations.decoder_parts import DecoderParts
from vtprune.integrations.layout import Grid, Kind, Map, PictureLayout

__all__ = ["EncoderBlock", "EncoderCall", "Grid", "Integration", "Kind", "Map", "PictureLayout"]


@dataclasses.dataclass(frozen=True)
class EncoderBlock:
    """The parts of one vision block.

    Args:
        layer: The whole block.
        attention: Its self-attention.
        projections: The modules whose outputs hold its queries and keys: one for each, or one for both (qkv).
        before_mlp: The module that receives the residual stream between attention and MLP.
        mlp: The module whose output, times `gain`, is added to that residual stream.
        gain: Name of the layer's parameter that multiplies the MLP's output (layer scale); None for 1.
        values: The module whose output holds the values; None where tokens cannot be merged.
    """

    layer: nn.Module
    attention: nn.Module
    projections: tuple[nn.Module, ...]
    before_mlp: nn.Module
    mlp: nn.Module
    gain: str | None = None
    values: nn.Module | None = None


@dataclasses.dataclass(frozen=True)
class EncoderCall:
    """A call of `get_image_features` or `get_video_features` of the module `multimodal`.

    Args:
        kind: "image" or "video".
        arguments: Its arguments by name.
    """

    kind: Kind
    arguments: Mapping[str, Any]


class Integration(DecoderParts, ABC):
    """Answers the engine's questions about one family, for one model.

    Vocabulary: the encoder sees *patches*; the language model gets *tokens*, each made of one or several patches, on
    the *slots* of its input. A call of `get_image_features` or `get_video_features` encodes a number of *units*
    (pictures, videos, or single tiles where the model does not know which belong together).

    Args:
        model: The conditional-generation model itself, without any wrapper.

    Raises:
        ValueError: The model is of this family, but built in a way that is not supported; the message says why.
    """

    model_types: ClassVar[tuple[str, ...]]
    modalities: ClassVar[tuple[Kind, ...]] = ("image",)
    position_axes: ClassVar[int] = 1
    """Number of coordinates of a position: 1, or 3 (time, row, column) with M-RoPE."""
    auto_positions: ClassVar[Literal["original", "compact"]] = "original"
    """What positions="auto" stands for: "compact" where the methods' authors make positions dense in their own code."""
    joins_patches: ClassVar[bool] = False
    """Whether several patches of a picture, or of a frame, make one token: joined, pooled or resampled."""
    any_size: ClassVar[bool] = False
    """Whether the encoder takes pictures of any size, and puts out accordingly many tokens."""
    grid_stages: ClassVar[Literal["projector", "language model"]] = "projector"
    """Before what a method that replaces whole grids acts."""

    def __init__(self, model: Any) -> None:
        self.model = model
        config: Any = self.model.config
        text = config.get_text_config()
        windowed = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
        if windowed or (not hasattr(text, "layer_types") and getattr(text, "sliding_window", None)):
            raise ValueError(
                f"{self.family_name} has a decoder with {', '.join(sorted(windowed)) or 'sliding-window attention'}; "
                "supported: full attention in every layer (for Mistral, sliding_window=None in the text config)."
            )

    @property
    def takes_videos(self) -> bool:
        """Whether a prompt can hold a video."""
        return "video" in self.modalities

    # The model's parts.

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower."""

    @property
    @abstractmethod
    def projectors(self) -> tuple[nn.Module, ...]:
        """What brings features to the width of the language model; each runs once per token, the main one first."""

    @property
    @abstractmethod
    def all_encoder_layers(self) -> nn.ModuleList:
        """All vision blocks that run, also those after the last used one."""

    @property
    @abstractmethod
    def encoder_blocks(self) -> list[EncoderBlock]:
        """The vision blocks whose output reaches the projector, in order."""

    @property
    def unused_encoder_blocks(self) -> list[EncoderBlock]:
        """The vision blocks after these, which run all the same."""
        return []

    def block(self, index: int) -> EncoderBlock:
        """A vision block, used or unused."""
        used = self.encoder_blocks
        return used[index] if index < len(used) else self.unused_encoder_blocks[index - len(used)]

    @property
    def attention_blocks(self) -> tuple[int, ...]:
        """The blocks, used and unused ones, in which all patches of a tile or frame see one another."""
        return tuple(range(len(self.encoder_blocks) + len(self.unused_encoder_blocks)))

    @property
    @abstractmethod
    def encoder_heads(self) -> int:
        """Attention heads of a vision block."""

    @property
    def scored_block(self) -> int:
        """The block whose attention says how much each patch matters: the last used one."""
        return len(self.encoder_blocks) - 1

    @property
    @abstractmethod
    def has_cls(self) -> bool:
        """Whether the encoder's first token is a [CLS] token."""

    @property
    def leading(self) -> int:
        """How many of the encoder's first tokens are dropped before the projector."""
        return 0

    @property
    def patches_per_picture(self) -> int | None:
        """Patches of a unit in the encoder; None where it depends on the picture."""
        return None

    def refusal(self, method: str, place: str, needs_grid: bool) -> str | None:
        """Why a stage cannot work on this model and what to use instead; None if it can."""
        return None

    @property
    def projects_tiles(self) -> bool:
        """Whether the projector is a module of its own that gets (tiles, tokens, channels)."""
        return False

    def patches_per_token(self, call: EncoderCall) -> int:
        """Patches per side that are joined to one token before the projector."""
        return 1

    # The encoder.

    def check(self, call: EncoderCall) -> None:
        """Refuse arguments of a call that change what the encoder does.

        Raises:
            ValueError: There is one; the message says what to do instead.
        """
        return

    @property
    @abstractmethod
    def encoder_width(self) -> int:
        """Width of the encoder's attention, heads * head_dim."""

    @abstractmethod
    def encoder_scale(self, block: EncoderBlock) -> float:
        """Softmax scale of a vision block's attention."""

    @abstractmethod
    def encoder_attention_implementation(self, block: EncoderBlock) -> str:
        """Name of the attention implementation of a vision block ("sdpa", "eager", "flash_attention_2", ...)."""

    @abstractmethod
    def encoder_queries_keys(
        self, block: EncoderBlock, outputs: Sequence[Tensor], inputs: Mapping[str, Any]
    ) -> list[tuple[Tensor, Tensor]]:
        """Queries and keys of a block as its attention uses them, from the outputs of its `projections`.

        Returns:
            Batches of (sequences, heads, patches, head_dim), for patches that see one another, in the encoder's order.
        """

    @abstractmethod
    def encoder_lengths(self, layer: int, call: EncoderCall) -> list[int]:
        """Lengths of the sequences that a vision block attends over."""

    @abstractmethod
    def layouts(self, call: EncoderCall) -> list[PictureLayout]:
        """The layout of every unit that a call encodes."""

    @abstractmethod
    def scores_on_slots(self, call: EncoderCall, scores: list[Tensor]) -> list[Tensor]:
        """Values per patch as values per slot of every unit, averaged over the patches of a token.

        Args:
            call: The call that encoded the units.
            scores: Batches of (sequences, patches, channels), in the encoder's order, with its leading tokens.

        Returns:
            (slots, channels) of every unit.
        """

    def features_on_slots(self, call: EncoderCall, features: Tensor) -> list[Tensor]:
        """What enters the projector, (tiles, tokens, channels), as (slots, channels) of every unit."""
        raise TypeError(f"{self.family_name} has no features before the projector.")

    def owners_on_slots(self, call: EncoderCall, owner: Tensor) -> list[Tensor]:
        """Which group each slot of a unit belongs to, (slots,), -1 for newlines; slots of one group show the same.

        Args:
            call: The call that encoded the units.
            owner: (tiles, tokens or patches), the group of every token before the projector.
        """
        raise TypeError(f"{self.family_name} cannot merge tokens before the projector.")

    @abstractmethod
    def pixels_on_slots(self, call: EncoderCall) -> list[Tensor]:
        """What the encoder is given of each slot's cell, (slots, values) of every unit; 0 on newlines.

        Tokens that the model mixes from several patches get the same mixture of their pixels.
        """

    def pixels(self, call: EncoderCall) -> list[Tensor]:
        """What each unit shows, (frames, channels, height, width); for encoders that take any size."""
        raise TypeError(f"{self.family_name} takes no pictures of other sizes.")

    def with_pixels(self, call: EncoderCall, pixels: Sequence[Tensor]) -> EncoderCall:
        """A call that encodes these pixels instead.

        Raises:
            ValueError: Their sides are no whole numbers of tokens.
        """
        raise TypeError(f"{self.family_name} takes no pictures of other sizes.")

    def spread_units(self, output: Any, index: Sequence[Tensor]) -> None:
        """Put other tokens in the output of a call that encodes pictures: of every unit those of `index` (slots,)."""
        raise TypeError(f"{self.family_name} takes no pictures of other sizes.")

    # The prompt.

    def placeholders(self, kind: Kind, arguments: Mapping[str, Any]) -> Tensor:
        """Which slots of the prompt stand for tokens of pictures or of videos, bool (rows, slots).

        Args:
            kind: "image" or "video".
            arguments: Of `multimodal`.
        """
        token = getattr(self.model.config, f"{kind}_token_id")
        if (input_ids := arguments.get("input_ids")) is not None:
            return input_ids == token
        embeds = arguments["inputs_embeds"]
        placeholder = self.model.get_input_embeddings()(torch.tensor(token, device=embeds.device))
        return (embeds == placeholder).all(-1)

    def pictures(self, row: np.ndarray, units: Sequence[PictureLayout], input_ids: Tensor | None) -> list[int]:
        """How many consecutive units make up each picture of a row.

        Args:
            row: (slots,), number of the unit on every slot, -1 elsewhere.
            units: Layouts of the row's units.
            input_ids: (slots,), if known.
        """
        return [1] * len(units)

    def frame_seconds(self, arguments: Mapping[str, Any]) -> Sequence[float] | None:
        """Seconds from frame to frame of every video, from the arguments of `multimodal`; None if it is not told."""
        return None
