"""One run of the vision encoder: merges between its layers and before the projector, and gathers signals."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vtprune.engine.chain import Chain
from vtprune.engine.chain_stage import ChainStage
from vtprune.engine.events import Count, Event, Grouped
from vtprune.engine.merging import DROPPED, Running
from vtprune.engine.patches import Seen, patch_values
from vtprune.engine.pixels import pixel_steps
from vtprune.engine.shrinking import shrink
from vtprune.integrations.base import EncoderBlock, EncoderCall, Integration, PictureLayout
from vtprune.kernels import gather_rows
from vtprune.methods.base import EncoderSignal, EncoderTokens, Group, Keep, Pictures, Replace


class EncoderRun:
    """State of one call of `get_image_features` or `get_video_features`; lives on as long as its features.

    Attributes:
        given: The call as it was made.
        call: The call that is encoded: the same, or that of smaller pictures.
        covers: Per unit, the token of the smaller picture that covers each slot, (slots,); None if all kept their size.
        units: What was given, see `Integration`.
        encoded: Per unit, features before the projector (slots, channels); None if nobody asks for them.
        signals: What was asked of vision blocks, per unit (slots,) or (slots, channels).
        pixel_steps: What neighbouring pixels differ by, per unit (slots, 2); None if nobody asks for it.
        groups: Per unit, the group of every slot (slots,), -1 on newlines; None where nothing was merged.
        layer_tokens: Per block, tokens per tile in its attention and in its MLP.
        projected_tokens: How many tokens ran through the projector.
        given_tokens: How many would have, had the encoder been left alone.
        merged_any: Whether tokens were merged or dropped between vision blocks.
    """

    def __init__(self, integration: Integration, chain: Chain, call: EncoderCall) -> None:
        self.integration = integration
        self.chain = chain
        self.given = self.call = call
        self.covers: list[Tensor] | None = None
        self.joins_patches = integration.patches_per_token(call) > 1
        self.events: list[Event] = []
        self.layer_tokens: dict[int, tuple[int, int]] = {}
        self.projected_tokens = self.given_tokens = 0
        self.merged_any = False
        self.units: list[PictureLayout] = []
        self.encoded: list[Tensor] | None = None
        self.signals: dict[EncoderSignal, list[Tensor]] = {}
        self.pixel_steps: list[Tensor] | None = None
        self.groups: list[Tensor] | None = None
        # While the tower runs. Tiles are the rows of its batch.
        self.tokens = Running()
        self.projections: dict[int, tuple[Tensor, ...]] = {}  # what holds queries and keys of the block that runs
        self.attention_inputs: Mapping[str, Any] = {}
        self.seen: dict[EncoderSignal, Seen] = {}
        self.asked: EncoderSignal | None = None  # what the attention call that runs will answer itself
        self.values: Tensor | None = None  # of the block that runs, (tiles, tokens, channels)
        # Queries, keys and values of the block that runs, as the stages that acted in it left them.
        self.left_by_stages: tuple[Tensor, Tensor, Tensor | None] | None = None
        self.merged: Tensor | None = None
        self.mlp_output: Tensor | None = None
        # Before the projector.
        self.features: Tensor | None = None  # (tiles, groups, channels)
        self.group_owner: Tensor | None = None  # (tiles, tokens) -> group

    def __deepcopy__(self, memo: dict[int, Any]) -> EncoderRun:
        # Assisted decoding copies encoder outputs; a finished run does not change, and leads to the whole model.
        return self

    # Before the encoder.

    def shrink(self) -> bool:
        """Let the stages at its input make the pictures smaller; returns whether they did."""
        if not self.chain.encoder_input_stages:
            return False
        self.call, self.covers, acted = shrink(self.integration, self.chain.encoder_input_stages, self.given)
        self.events += acted
        _, self.projected_tokens = acted[-1].counts()
        return self.covers is not None

    # Between encoder layers.

    def see_projection(self, index: int, part: int, parts: int, output: Tensor) -> None:
        """Take one of the outputs that hold queries and keys of block `index`."""
        earlier = self.projections.get(index, ()) if part else ()
        self.left_by_stages = None
        self.projections = {index: (*earlier, output)}
        asked = [x for x in self.chain.encoder_signals if x.block == index and x != self.asked]
        if part + 1 == parts and asked:
            with torch.no_grad():
                block = self.integration.block(index)
                pairs = self.integration.encoder_queries_keys(block, self.projections[index], self.attention_inputs)
                bias = self.tokens.beside(output).key_bias(self.chain.weighs_keys)
                for signal in asked:
                    values = [patch_values(signal.name, self.integration, block, *pair, bias) for pair in pairs]
                    self.seen[signal] = Seen(values, self.tokens.owner)

    def merge(self, index: int, block: EncoderBlock, stages: Sequence[ChainStage], hidden: Tensor) -> Tensor | None:
        """Merge or drop tokens of the residual stream; None if nothing changes."""
        before = hidden.shape[1]
        merged = hidden
        self.tokens.beside(hidden)
        queries, head_keys, values = self.left_by_stages or self._projected(index, block)
        acting = [s for s in self.chain.encoder_layer_stages if index in s.layers]
        last = max(acting, key=lambda s: (s.stage.after_block, acting.index(s)))
        for stage in stages:
            if stage.stage.prunes and self.joins_patches:
                raise ValueError(
                    f"{stage.method} drops single patches in the encoder, of which several make a token here; use a "
                    "method that merges (tome), or one at the encoder's output (divprune)."
                )
            with torch.no_grad():
                decision = stage.decide(
                    EncoderTokens(
                        layer=index,
                        keys=head_keys.mean(1),
                        sizes=self.tokens.sizes_of(merged),
                        protected=int(self.integration.has_cls),
                        patches=self._patches(before),
                        hidden=merged,
                        queries=queries,
                        head_keys=head_keys,
                        values=values,
                        scale=self.integration.encoder_scale(block),
                        key_bias=self.tokens.key_bias(self.chain.weighs_keys),
                    )
                )
            if decision is None:
                continue
            if not isinstance(decision, Group | Keep):
                raise TypeError(
                    f"{stage.method}: a stage between encoder layers must return Group or Keep, got {decision!r}."
                )
            drops = isinstance(decision, Keep) or decision.keep is not None
            if drops and not stage.stage.prunes:
                raise TypeError(f"{stage.method}: a stage that drops tokens must say so by prunes=True.")
            there = self._there(merged)
            if stage is last:
                (merged,) = self.tokens.follow(decision, merged)
            else:
                heads = queries.shape[1]
                more = [x.transpose(1, 2).flatten(2) for x in (queries, head_keys)]
                merged, *more = self.tokens.follow(decision, merged, *more, *([] if values is None else [values]))
                queries, head_keys = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in more[:2])
                values = None if values is None else more[2]
                self.left_by_stages = queries, head_keys, values
            if self.tokens.ragged and not self.chain.biases_keys:
                raise TypeError(f"{stage.method}: tiles kept different numbers; its stage must say so by ragged=True.")
            self.events.append(Grouped(stage, index, there, self._there(merged), self._owner))
        after = merged.shape[1]
        if stages[0].stage.after_block:
            inside = self.layer_tokens.get(index, (before, before))
            self.layer_tokens.update({index: inside, index + 1: (after, after)})
        else:
            self.layer_tokens[index] = (before, after)
        return merged if merged is not hidden else None

    def _projected(self, index: int, block: EncoderBlock) -> tuple[Tensor, Tensor, Tensor | None]:
        outputs = self.projections.get(index)
        if outputs is None:
            raise RuntimeError(f"encoder block {index} ran without its key projection.")
        ((queries, keys),) = self.integration.encoder_queries_keys(block, outputs, self.attention_inputs)
        return queries.detach(), keys.detach(), self.values

    def _there(self, hidden: Tensor) -> Count:
        """Tokens that are no padding, without the leading ones that never leave the encoder."""
        lead = self.integration.leading
        if not self.tokens.ragged or self.tokens.sizes is None:
            return hidden.shape[0] * (hidden.shape[1] - lead)
        return [self.tokens.sizes[:, lead:] > 0]

    @property
    def _owner(self) -> Tensor | None:
        """(tiles, patches), the token that each patch has become part of; None where nothing was merged."""
        return None if self.tokens.owner is None else self.tokens.owner[:, self.integration.leading :]

    def _patches(self, tokens: int) -> int:
        first = self.tokens.owner.shape[1] if self.tokens.owner is not None else tokens
        return first - int(self.integration.has_cls)

    def spread(self, hidden: Tensor) -> Tensor:
        """Copy the features of merged patches back to all patches, where several are about to be joined to a token."""
        owner = self.tokens.owner
        return hidden if owner is None else gather_rows(hidden, owner.clamp_min(0))

    # At the projector.

    def before_projector(self, features: Tensor) -> Tensor:
        """Take over what is about to enter the projector, (tiles, groups, channels); returns what it is to see."""
        if (owner := self._owner) is not None and not self.joins_patches:
            self.group_owner = torch.where(owner == DROPPED, DROPPED, owner - self.integration.leading)
        self.features = features
        for stage in self.chain.projector_stages:
            self._replace(stage, features)
        self.projected_tokens = self.features.shape[0] * self.features.shape[1]
        tokens = features.shape[1] if self.group_owner is None else self.group_owner.shape[1]
        self.given_tokens = features.shape[0] * tokens
        return self.features

    def _replace(self, stage: ChainStage, features: Tensor) -> None:
        self.units = self.integration.layouts(self.call)
        grid = self.units[0].maps[0].grid
        tiles, tokens, _ = features.shape
        decision = stage.decide(Pictures((1, *grid[1:]) if grid[1] * grid[2] == tokens else None, features))
        if decision is None:
            self.events.append(Grouped(stage, None, tiles * tokens, tiles * tokens, self.group_owner))
            return
        if not isinstance(decision, Replace):
            raise TypeError(f"{stage.method}: a stage that needs the grid must return Replace, got {decision!r}.")
        self.features = decision.features
        groups = decision.features.shape[1]
        if groups < tokens or decision.ragged:
            self.group_owner = decision.owner
        left: Count = tiles * groups
        if decision.ragged:
            stands = torch.zeros(tiles, groups, dtype=torch.bool, device=features.device)
            left = [stands.scatter_(1, decision.owner, True)]
        self.events.append(Grouped(stage, None, tiles * tokens, left, self.group_owner))

    def after_projector(self, projected: Tensor) -> Tensor:
        """Copy the projected features of groups to all of their tokens: (tiles, tokens, width)."""
        return projected if self.group_owner is None else gather_rows(projected, self.group_owner.clamp_min(0))

    # Afterwards.

    def finish(self) -> None:
        """Bring everything that stages at the language model's door may ask for to the slots of the units."""
        integration, call = self.integration, self.call
        with torch.no_grad():
            self.units = self.units or integration.layouts(self.given)
            owner = self._owner if self.group_owner is None else self.group_owner
            if owner is not None:
                self.groups = integration.owners_on_slots(call, owner)
            for signal, seen in self.seen.items():
                on_slots = integration.scores_on_slots(call, seen.per_patch(signal.name, self.tokens.owner))
                self.signals[signal] = on_slots if signal.name == "keys" else [x.squeeze(1) for x in on_slots]
            if self.chain.compares_pixels:
                self.pixel_steps = pixel_steps(integration, call, self.units)
            if self.covers is not None:
                self._cover(self.covers)
        if self.features is not None and self.chain.door_stages:
            features = self.features
            if self.group_owner is not None:
                features = gather_rows(features, self.group_owner.clamp_min(0))
            self.encoded = integration.features_on_slots(call, features)
        self.given_tokens = self.given_tokens or sum(unit.slots for unit in self.units)
        self.projected_tokens = self.projected_tokens or self.given_tokens
        self.features = self.group_owner = None
        self.merged_any = self.tokens.owner is not None
        self.tokens = Running()
        self.seen = {}
        self.projections = {}
        self.attention_inputs = {}
        self.values = self.left_by_stages = None
        self.given, self.call = _without_pixels(self.given), _without_pixels(call)

    def _cover(self, covers: Sequence[Tensor]) -> None:
        """Bring what is known of smaller pictures to the slots that they cover."""
        self.groups = [x[i] for x, i in zip(self.groups, covers, strict=True)] if self.groups else list(covers)
        for signal, values in self.signals.items():
            self.signals[signal] = [x[i] for x, i in zip(values, covers, strict=True)]

    def without_features(self) -> EncoderRun:
        """A copy for a report, which needs no features."""
        twin = copy.copy(self)
        twin.encoded = twin.covers = twin.groups = twin.pixel_steps = None
        twin.signals = {}
        return twin

    def time_frames(self, seconds: Sequence[float]) -> None:
        """Note the time from frame to frame of every video; a beam search repeats them."""
        times = seconds[:: max(len(seconds) // max(len(self.units), 1), 1)]
        self.units = [dataclasses.replace(x, seconds=float(t)) for x, t in zip(self.units, times, strict=True)]


def _without_pixels(call: EncoderCall) -> EncoderCall:
    """From here on only the shapes of pixels matter."""
    pixels = {k: v.to("meta") for k, v in call.arguments.items() if isinstance(v, Tensor) and "pixel" in k}
    return EncoderCall(call.kind, {**call.arguments, **pixels})
