"""The model as it is trained: tiny-llava with the auxiliary heads beside it, called with dense batches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from vtprune.evals.auxiliary import Heads, Readings, auxiliary_loss
from vtprune.evals.dense import IGNORED, Item, dense_states

_AUXILIARY_SHARE = 0.25


class Output(NamedTuple):
    """What a step needs: the heads' readings, and scores (answer tokens of the batch, vocabulary) or None."""

    readings: Readings
    scores: Tensor | None


class Student(nn.Module):
    """The model and its heads.

    Args:
        model: The model to train.
    """

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        self.heads = Heads(model.config.vision_config.hidden_size)

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
            return Output(readings, None)
        features = inner.multi_modal_projector(states[:, 1:])
        hidden = dense_states(self.model, features, batch.ids, kept)
        return Output(readings, self.model.lm_head(hidden[batch.labels != IGNORED]))

    def tower_parameters(self) -> list[nn.Parameter]:
        """The weights of the vision tower and the heads."""
        return [*self.model.model.vision_tower.parameters(), *self.heads.parameters()]


def normalised(pictures: Tensor) -> Tensor:
    """Pictures (batch, 224, 224, 3) uint8 as the processor would hand them over: (batch, 3, 224, 224) float32."""
    mean = pictures.new_tensor(OPENAI_CLIP_MEAN, dtype=torch.float32).view(1, 3, 1, 1)
    std = pictures.new_tensor(OPENAI_CLIP_STD, dtype=torch.float32).view(1, 3, 1, 1)
    return (pictures.permute(0, 3, 1, 2).float() / 255 - mean) / std


def losses(output: Output, batch: Item) -> tuple[Tensor, Tensor]:
    """The loss to minimise, and the part to watch: that of the answers, or of the heads where nothing was asked."""
    auxiliary = auxiliary_loss(output.readings, batch.targets)
    if output.scores is None:
        return auxiliary, auxiliary.detach()
    answer = functional.cross_entropy(output.scores.float(), batch.labels[batch.labels != IGNORED])
    return answer + _AUXILIARY_SHARE * auxiliary, answer.detach()
