"""The teacher's help for the projector: what a visual token should still know, or learn, when it enters the decoder.

Without it the projector dropped half of what the tower knew about places, and the model could not tell left from right.
The heads exist during training only.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vtprune.evals.scenes import QUADRANTS, Scene, patch_truth
from vtprune.evals.tiny_llava import GRID, VISUAL_TOKENS

_MOST_ALIKE, _MOST_OBJECTS = 8, 9
# Quadrant, number of objects of the same shape, of the same colour, of all; x and y.
_OUTPUTS = (len(QUADRANTS) + 1, _MOST_ALIKE + 1, _MOST_ALIKE + 1, _MOST_OBJECTS + 1, 2)
_POSITION_SHARE = 4.0


def scene_relations(scene: Scene) -> Tensor:
    """How the object under each patch stands to the picture and the others, (256, 4) int64.

    Its quadrant (1 + place in `QUADRANTS`, 0 for background or none), the number of objects of its shape and of its
    colour, itself included (at most 8; 0 for background), and the number of all objects (for background as well).
    """
    owner = patch_truth(scene, GRID).owner
    shapes, colours = Counter(o.shape for o in scene.objects), Counter(o.colour for o in scene.objects)
    relations = np.zeros((VISUAL_TOKENS, 4), dtype=np.int64)
    relations[:, 3] = len(scene.objects)
    for number, obj in enumerate(scene.objects):
        quadrant = 0 if obj.quadrant is None else 1 + QUADRANTS.index(obj.quadrant)
        alike = min(_MOST_ALIKE, shapes[obj.shape]), min(_MOST_ALIKE, colours[obj.colour])
        relations[owner == number, :3] = (quadrant, *alike)
    return torch.from_numpy(relations)


class RelationReadings(NamedTuple):
    """What the heads make of the projected visual tokens: scores, and (x, y) from -1 to 1."""

    quadrant: Tensor
    same_shape: Tensor
    same_colour: Tensor
    all_objects: Tensor
    position: Tensor


class RelationHeads(nn.Module):
    """Linear heads on the projected visual tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.token = nn.Linear(width, sum(_OUTPUTS))

    def forward(self, features: Tensor) -> RelationReadings:
        """Readings from projected visual tokens (batch, 256, width)."""
        return RelationReadings(*self.token(self.norm(features)).split(_OUTPUTS, dim=-1))


def relation_loss(readings: RelationReadings, relations: Tensor, position: Tensor) -> Tensor:
    """How far the heads are off, one number.

    Args:
        readings: What they read.
        relations: See `scene_relations`, (batch, 256, 4).
        position: Centre of each patch's object, (batch, 256, 2), as in `Targets`.
    """
    quadrant, same_shape, _, _ = relations.unbind(-1)
    objects = same_shape > 0
    loss = readings.position.new_zeros((), dtype=torch.float32)
    for number, scores in enumerate(readings[:4]):
        weight = torch.where(objects, 1.0, 0.1 if number == 3 else 0.02)
        if number == 0:
            weight = weight * (quadrant > 0)
        truth = relations[..., number]
        losses = functional.cross_entropy(scores.float().flatten(0, 1), truth.flatten(), reduction="none")
        loss = loss + (losses.view_as(weight) * weight).sum() / weight.sum().clamp(min=1)
    distance = (readings.position.float() - position).square() * objects[..., None]
    return loss + _POSITION_SHARE * distance.sum() / objects.sum().clamp(min=1)
