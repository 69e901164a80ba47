"""The model as it is trained: tiny-llava with the auxiliary heads beside it, called with dense batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vtprune.evals.auxiliary import Heads, Readings
from vtprune.evals.dense import IGNORED, Item, dense_states
from vtprune.evals.relations import RelationHeads, RelationReadings


class Output(NamedTuple):
    """What a step needs.

    Attributes:
        readings: What the tower's heads read.
        relations: What the projector's heads read; None if nothing was asked.
        scores: (answer tokens of the batch, vocabulary); None if nothing was asked.
    """

    readings: Readings
    relations: RelationReadings | None
    scores: Tensor | None


class Student(nn.Module):
    """The model and its heads.

    Args:
        model: The model to train.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        config: Any = model.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.heads = Heads(config.vision_config.hidden_size)
            self.relation_heads = RelationHeads(config.text_config.hidden_size)

    def forward(self, batch: Item, kept: Tensor | None = None) -> Output:
        """Look at the pictures and, where the batch has questions, predict the answers.

        Args:
            batch: Pictures with their questions; without any (no slots) the decoder is left out.
            kept: Visual tokens that take part, (batch, kept); None for all.
        """
        inner = self.model.model
        states = inner.vision_tower(normalised(batch.picture)).last_hidden_state
        readings = self.heads(states)
        if batch.ids.shape[1] == 0:
            return Output(readings, None, None)
        features = inner.multi_modal_projector(states[:, 1:])
        hidden = dense_states(self.model, features, batch.ids, kept)
        scores = self.model.lm_head(hidden[batch.labels != IGNORED])
        return Output(readings, self.relation_heads(features), scores)

    def tower_parameters(self) -> list[nn.Parameter]:
        """The weights of the vision tower and of all heads."""
        parts = self.model.model.vision_tower, self.heads, self.relation_heads
        return [parameter for part in parts for parameter in part.parameters()]


def normalised(pictures: Tensor) -> Tensor:
    """Pictures (batch, 224, 224, 3) uint8 as the processor would hand them over: (batch, 3, 224, 224) float32."""
    mean = pictures.new_tensor(OPENAI_CLIP_MEAN, dtype=torch.float32).view(1, 3, 1, 1)
    std = pictures.new_tensor(OPENAI_CLIP_STD, dtype=torch.float32).view(1, 3, 1, 1)
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std
