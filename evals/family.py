"""What the training needs to know of a kind of model: how it is built, what it is shown, and how it looks at it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from vtprune.evals.clip_questions import CLIP_KINDS, ask_clip
from vtprune.evals.clips import Clip, make_clip
from vtprune.evals.dense import QUESTIONS, SLOT, fill_slots
from vtprune.evals.patch_targets import PatchTargets
from vtprune.evals.questions import KINDS, ask
from vtprune.evals.scenes import Scene
from vtprune.evals.slots import PLAIN, SLOTS, Layout, decode
from vtprune.evals.teacher import Teacher

CLIP_QUESTIONS, CLIP_SLOT = 6, 30
"""Slots per clip, and tokens per slot."""

MIDDLE = 3
"""The decoder layer whose states are asked for places."""

_TRIES = 80
_CLIP_SHARES = (0.3, 0.28, 0.24, 0.18)


@dataclass(frozen=True)
class Batch:
    """Pictures or clips of one shape, with their questions.

    Attributes:
        pixels: As the family's `look` takes them.
        grid: What else `look` has to know of the shape.
        layout: The prompt's prefix.
        patches: Targets of the patches, (batch, patches, ...).
        tokens: Targets of the visual tokens' patches, (batch, tokens, 4, ...).
        counting: (tokens,) 1.0 for visual tokens whose part of the tower sees the whole picture.
        ids: Slots, (batch, questions, slot).
        labels: The token that follows each answer token, as in `vtprune.evals.dense`.
        kinds: (batch, questions) place in `KINDS` or `CLIP_KINDS`, -1 for an empty slot.
        clips: Whether these are clips.
    """

    pixels: Tensor
    grid: tuple[int, ...]
    layout: Layout
    patches: tuple[Tensor, Tensor]
    tokens: tuple[Tensor, Tensor]
    counting: Tensor
    ids: Tensor
    labels: Tensor
    kinds: Tensor
    clips: bool


class Family(ABC):
    """A kind of tiny model.

    Attributes:
        name: Name of the model.
        first_seed: Where its training pictures and clips begin.
        sees_motion: Whether the tower sees several frames of a clip at once.
    """

    name: str
    first_seed: int
    sees_motion: bool = False

    @abstractmethod
    def new_model(self, llava: LlavaForConditionalGeneration, seed: int = 0) -> Any:
        """A model that starts from a trained tiny-llava; what that one lacks is drawn at random."""

    @abstractmethod
    def build_processor(self) -> Any:
        """Its processor."""

    @abstractmethod
    def tower(self, model: Any) -> nn.Module:
        """The vision tower of a model, projector or merger not necessarily included."""

    @abstractmethod
    def pictures(
        self,
        seeds: Sequence[int],
        *,
        characters: float,
        shares: Sequence[float] | None = None,
        rng: np.random.Generator | None = None,
    ) -> Batch:
        """Pictures with questions.

        Args:
            seeds: Seeds of the scenes.
            characters: Share of objects that carry a character.
            shares: How often each of `KINDS` is asked, in proportion; None for all alike.
            rng: Draws the pictures' common shape; without it they are squares of 224 px.
        """

    @abstractmethod
    def clips(self, clips: Sequence[Clip]) -> Batch:
        """Clips of the same `steps`, with questions."""

    @abstractmethod
    def steps(self, clip: Clip) -> int:
        """How many steps of time a clip is for the model."""

    @abstractmethod
    def look(self, model: Any, pixels: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Run tower and projector: states of the patches and projected visual tokens, as `Batch` has their targets."""


class Output(NamedTuple):
    """What a step needs: losses of the heads, and scores of the answer tokens; the last two None without questions."""

    patch: Tensor
    token: Tensor
    middle: Tensor | None
    scores: Tensor | None


class FamilyStudent(nn.Module):
    """A model in training with its heads.

    Args:
        family: What kind of model it is.
        model: The model; its attention becomes that of training.
    """

    def __init__(self, family: Family, model: Any) -> None:
        super().__init__()
        self.family, self.model = family, model
        tower: Any = family.tower(model)
        model.model.language_model.config._attn_implementation = SLOTS
        tower.config._attn_implementation = PLAIN
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            widths = tower.config.hidden_size, model.config.text_config.hidden_size
            self.teacher = Teacher(*widths, motion=family.sees_motion)

    def forward(self, batch: Batch, questions: bool = True) -> Output:
        """Look at a batch and, unless the questions are left out, predict the answers."""
        states, features = self.family.look(self.model, batch.pixels, batch.grid)
        patch = self.teacher.patch_loss(states, *batch.patches)
        token = self.teacher.token_loss(features, *batch.tokens, batch.counting)
        if not questions:
            return Output(patch, token, None, None)
        decoder = self.model.model.language_model
        hidden, half = decode(decoder, features, batch.layout, batch.ids, min(MIDDLE, len(decoder.layers) - 1))
        middle = self.teacher.middle_loss(half, *batch.tokens)
        return Output(patch, token, middle, self.model.lm_head(hidden[batch.labels >= 0]))

    def tower_parameters(self) -> list[nn.Parameter]:
        """The weights of the vision tower and of all heads."""
        return [*self.family.tower(self.model).parameters(), *self.teacher.parameters()]


def picture_questions(scene: Scene, shares: Sequence[float] | None) -> tuple[Tensor, Tensor, Tensor]:
    """Sixteen slots about a scene; which ones follows from its seed."""
    rng = np.random.default_rng((scene.seed, 7))
    odds = None if shares is None else np.asarray(shares) / sum(shares)
    drawn = rng.choice(len(KINDS), size=_TRIES, p=odds)
    return fill_slots(((int(kind), ask(scene, rng, KINDS[kind])) for kind in drawn), QUESTIONS, SLOT)


def clip_questions(clip: Clip) -> tuple[Tensor, Tensor, Tensor]:
    """Six slots about a clip; which ones follows from its seed."""
    rng = np.random.default_rng((clip.seed, 7))
    drawn = rng.choice(len(CLIP_KINDS), size=4 * CLIP_QUESTIONS, p=_CLIP_SHARES)
    asked = ((int(kind), ask_clip(clip, rng, CLIP_KINDS[kind])) for kind in drawn)
    return fill_slots(asked, CLIP_QUESTIONS, CLIP_SLOT)


def alike_clips(family: Family, first_seed: int, count: int) -> list[Clip]:
    """So many clips, from a seed on, that take as many steps as the first of them."""
    found: list[Clip] = []
    for clip in _clips_from(first_seed):
        if not found or family.steps(clip) == family.steps(found[0]):
            found.append(clip)
        if len(found) == count:
            break
    return found


def _clips_from(seed: int) -> Iterator[Clip]:
    while True:
        yield make_clip(seed)
        seed += 1


def stacked(targets: Sequence[PatchTargets]) -> tuple[Tensor, Tensor]:
    """The targets of several pictures or clips as tensors, words and place, with a leading dimension."""
    words, place = (torch.from_numpy(np.stack(part)) for part in zip(*targets, strict=True))
    return words, place
