"""The loss of a step: that of the answers, and what the heads of tower and projector add to it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vtprune.evals.auxiliary import auxiliary_loss
from vtprune.evals.dense import IGNORED, Item, first_token
from vtprune.evals.phases import Phase
from vtprune.evals.relations import relation_loss
from vtprune.evals.student import Output

_TOWER_SHARE = 0.25


def total_loss(output: Output, batch: Item, phase: Phase) -> tuple[Tensor, Tensor]:
    """The loss to minimise, and the part to watch: that of the answers, or of the tower if nothing was asked."""
    auxiliary = auxiliary_loss(output.readings, batch.targets)
    if output.scores is None or output.relations is None:
        return auxiliary, auxiliary.detach()
    weight = torch.ones(output.scores.shape[-1], device=output.scores.device)
    for text, value in phase.token_weights:
        weight[first_token(text)] = value
    answer = functional.cross_entropy(output.scores.float(), batch.labels[batch.labels != IGNORED], weight=weight)
    loss = answer + _TOWER_SHARE * auxiliary
    if phase.relations > 0:
        related = relation_loss(output.relations, batch.targets.relations, batch.targets.position)
        loss = loss + phase.relations * related
    return loss, answer.detach()
