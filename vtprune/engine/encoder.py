"""One run of the vision encoder: merges between its layers, gathers signals, decides at its output."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vtprune.engine.chain import Chain, ChainStage
from vtprune.integrations.base import EncoderBlock, Grid, Integration
from vtprune.kernels import attention_column_mass, attention_scores, compact_index, gather_rows, merge_by_owner
from vtprune.methods.base import EncoderTokens, Group, Keep, Pictures, Replace

Count = int | Tensor


@dataclasses.dataclass(frozen=True)
class Event:
    """A stage that acted: its method, place and layer, and the number of visual tokens before and after."""

    stage: ChainStage
    layer: int | None
    before: Count
    after: Count


class EncoderRun:
    """State of one call of the vision tower, from its pixels to the projector's output.

    After the projector has run, `tokens`, `grids`, `kept` and `owner` say what became of every picture's tokens.

    Attributes:
        kept: Bool (pictures, tokens), which slots of the language model's input stay; None for all.
        owner: (pictures, tokens), the token that stands for each token; None where nothing was merged.
        layer_tokens: Per block, tokens per picture in its attention and in its MLP.
    """

    def __init__(self, integration: Integration, chain: Chain, pixel_values: Tensor) -> None:
        self.integration = integration
        self.chain = chain
        self.pixel_values: Tensor | None = pixel_values
        self.events: list[Event] = []
        self.layer_tokens: dict[int, tuple[int, int]] = {}
        self.projected_tokens = 0
        self.kept: Tensor | None = None
        self.owner: Tensor | None = None
        self.tokens: list[int] = []
        self.grids: list[Grid] = []
        # While the tower runs.
        self.sizes: Tensor | None = None  # (pictures, tokens now), patches per token
        self.token_owner: Tensor | None = None  # (pictures, tokens at first), which token each has become part of
        self.queries: Tensor | None = None  # of the last used block, if its attention is asked for
        self.keys: Tensor | None = None  # of the block that runs
        self.signal: tuple[Tensor, Tensor] | None = None  # queries and keys of the last used block
        self.signal_sizes: Tensor | None = None
        self.signal_owner: tuple[Tensor, int] | None = None
        self.merged: Tensor | None = None
        self.mlp_output: Tensor | None = None
        # At the encoder's output.
        self.alive: Tensor | None = None  # bool (pictures, groups)
        self.group_owner: Tensor | None = None  # (pictures, tokens) -> group
        self.attention: Tensor | None = None
        self.encoded: Tensor | None = None
        self.pending: list[ChainStage] = []

    # Between encoder layers.

    def see_keys(self, keys: Tensor, attention: bool) -> None:
        """Take the keys of the block that runs, (pictures, tokens, heads * head_dim)."""
        self.keys = keys
        if attention and self.queries is not None:
            self.signal = (self.queries, keys)
            weighed = any(s.stage.proportional for s in self.chain.encoder_layer_stages)
            self.signal_sizes = self.sizes if weighed else None

    def merge(self, index: int, block: EncoderBlock, stages: Sequence[ChainStage], hidden: Tensor) -> Tensor | None:
        """Merge tokens of the residual stream between attention and MLP; None if nothing is merged."""
        pictures, before, _ = hidden.shape
        if self.keys is None:
            raise RuntimeError(f"encoder block {index} ran without its key projection.")
        heads = self.integration.encoder_heads(block)
        keys = self.keys.unflatten(-1, (heads, -1)).mean(2)
        self.keys = None
        merged = hidden
        for stage in stages:
            sizes = self.sizes if self.sizes is not None else hidden.new_ones(pictures, before, dtype=torch.float32)
            protected = int(self.integration.has_cls)
            with torch.no_grad():
                decision = stage.decide(EncoderTokens(index, keys, sizes, protected, self._patches(before)))
            if decision is None:
                continue
            if not isinstance(decision, Group):
                raise TypeError(f"{stage.method}: a stage between encoder layers must return Group, got {decision!r}.")
            tokens = merged.shape[1]
            merged, self.sizes = merge_by_owner(merged, decision.owner, decision.groups, sizes)
            if self.token_owner is None:
                self.token_owner = torch.arange(tokens, device=hidden.device).expand(pictures, -1)
            self.token_owner = decision.owner.gather(1, self.token_owner)
            keys, _ = merge_by_owner(keys, decision.owner, decision.groups, sizes)
            if index == len(self.integration.encoder_blocks) - 1:
                earlier = self.signal_owner
                owner = decision.owner if earlier is None else decision.owner.gather(1, earlier[0])
                self.signal_owner = (owner, decision.groups)
            lead = self.integration.leading
            self.events.append(Event(stage, index, pictures * (tokens - lead), pictures * (decision.groups - lead)))
        self.layer_tokens[index] = (before, merged.shape[1])
        return merged if merged is not hidden else None

    def _patches(self, tokens: int) -> int:
        first = self.token_owner.shape[1] if self.token_owner is not None else tokens
        return first - int(self.integration.has_cls)

    # At the encoder's output.

    def before_projector(self, features: Tensor) -> Tensor:
        """Take over the encoder's output, (pictures, groups, channels); returns what the projector is to see."""
        pictures, groups, _ = features.shape
        tokens = groups
        if self.token_owner is not None:
            lead = self.integration.leading
            self.group_owner = self.token_owner[:, lead:] - lead
            tokens = self.group_owner.shape[1]
        pixels = self.pixel_values
        grid = None if pixels is None else self.integration.grid(pixels, tokens)
        self.pixel_values = None
        self.tokens = [tokens] * pictures
        self.grids = [grid if grid is not None else (1, 1, tokens)] * pictures
        self.grid = grid if self.group_owner is None else None
        self.encoded = features
        self.pending = list(self.chain.encoder_output_stages)
        if any("encoder_attention" in s.signals for s in self.pending):
            self.attention = self._received_attention()
        self.signal = self.queries = self.keys = self.sizes = None
        while self.pending and "projected" not in self.pending[0].signals:
            self._decide(self.pending.pop(0), None)
        self.projected_tokens = self.encoded.shape[0] * self.encoded.shape[1]
        return self.encoded

    def after_projector(self, projected: Tensor) -> Tensor:
        """Decide on projected features (pictures, groups, width) and return them on all slots."""
        while self.pending:
            self._decide(self.pending.pop(0), projected)
        if self.group_owner is not None:
            pictures, tokens = self.group_owner.shape
            numbers = torch.arange(tokens, device=projected.device).expand(pictures, -1)
            first = torch.full((pictures, projected.shape[1]), tokens, device=projected.device)
            first = first.scatter_reduce(1, self.group_owner, numbers, "amin")
            self.owner = first.gather(1, self.group_owner)
            self.kept = self.owner == numbers
            if self.alive is not None:
                self.kept = self.kept & self.alive.gather(1, self.group_owner)
            projected = gather_rows(projected, self.group_owner)
        else:
            self.kept = self.alive
        self.encoded = self.attention = None
        return projected

    def _decide(self, stage: ChainStage, projected: Tensor | None) -> None:
        encoded = self.encoded
        if encoded is None:
            raise RuntimeError("the projector ran before the encoder.")
        before = self._tokens_left()
        with torch.set_grad_enabled(torch.is_grad_enabled() and stage.differentiable):
            if self.alive is None:
                self._act(stage, stage.decide(Pictures(self.grid, encoded, projected, self.attention)), None, None)
            else:
                self._decide_on_survivors(stage, encoded, projected)
        self.events.append(Event(stage, None, before, self._tokens_left()))

    def _tokens_left(self) -> Count:
        if self.alive is not None:
            return self.alive.sum()
        return 0 if self.encoded is None else self.encoded.shape[0] * self.encoded.shape[1]

    def _decide_on_survivors(self, stage: ChainStage, encoded: Tensor, projected: Tensor | None) -> None:
        """Later stages see only what earlier ones kept; pictures that keep equally many are decided together."""
        alive = self.alive
        if alive is None:
            return
        counts = alive.sum(1)
        for count in counts.unique().tolist():
            chosen = (counts == count).nonzero().squeeze(1)
            index, _ = compact_index(alive[chosen])
            pictures = Pictures(
                None,
                gather_rows(encoded[chosen], index),
                None if projected is None else gather_rows(projected[chosen], index),
                None if self.attention is None else gather_rows(self.attention[chosen], index),
            )
            self._act(stage, stage.decide(pictures), chosen, index)

    def _act(self, stage: ChainStage, decision: Any, chosen: Tensor | None, index: Tensor | None) -> None:
        if decision is None:
            return
        if isinstance(decision, Keep):
            mask = decision.mask
            if self.alive is None:
                self.alive = mask if not bool(mask.all()) else None
            elif chosen is not None and index is not None:
                self.alive[chosen] = torch.zeros_like(self.alive[chosen]).scatter(1, index, mask)
        elif isinstance(decision, Replace) and self.alive is None and self.group_owner is None:
            self.encoded = decision.features
            identity = torch.arange(decision.owner.shape[1], device=decision.owner.device)
            if decision.features.shape[1] < len(identity):
                self.group_owner = decision.owner
            self.grid = None
        else:
            raise TypeError(f"{stage.method}: a stage at the encoder's output cannot return {type(decision).__name__}.")

    def _received_attention(self) -> Tensor:
        """Attention that each token receives in the last used block, (pictures, groups)."""
        if self.signal is None:
            raise RuntimeError("the last used encoder block ran without its query and key projections.")
        block = self.integration.encoder_blocks[-1]
        heads = self.integration.encoder_heads(block)
        queries, keys = (x.detach().unflatten(-1, (heads, -1)).transpose(1, 2) for x in self.signal)
        scale = self.integration.encoder_scale(block)
        if self.signal_sizes is not None:
            # The bias log(size) on the logits, as one more channel.
            one = queries.new_full((*queries.shape[:3], 1), 1 / scale)
            bias = self.signal_sizes.log()[:, None, :, None].expand(-1, heads, -1, 1)
            queries, keys = torch.cat((queries, one), -1).float(), torch.cat((keys, bias.to(keys.dtype)), -1).float()
        if self.integration.has_cls:
            received = attention_scores(queries[:, :, :1], keys, scale=scale)
        else:
            received = attention_column_mass(queries, keys, scale=scale)
        if self.signal_owner is not None:
            owner, groups = self.signal_owner
            received = received.new_zeros(received.shape[0], groups).scatter_add(1, owner, received)
        return received[:, self.integration.leading :]
