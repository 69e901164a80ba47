"""The training of tiny-internvl and tiny-qwen2.5-vl: the loop of tiny-llava with pictures and clips in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vtprune.evals.clip_questions import CLIP_KINDS
from vtprune.evals.dense import first_token
from vtprune.evals.family import Batch, Family, Output, alike_clips
from vtprune.evals.family_phases import FamilyPhase
from vtprune.evals.held_out import HELD_OUT_SEED_START
from vtprune.evals.questions import KINDS
from vtprune.evals.training import Trainer
from vtprune.evals.training_log import TrainingLog

_CLIP_SPACING = 1000
_TEST_BATCH = 8


class FamilyTrainer(Trainer):
    """A run over phases for a model of a family; everything else is as in `Trainer`."""

    def _step(self, phase: Any, batch: Batch) -> Tensor:
        """One step; returns the loss to watch."""
        loss, watched = family_loss(self.student(batch, questions=phase.questions > 0), batch, phase)
        self._follow(phase, loss)
        return watched

    def _batches(self, phase: Any) -> Iterator[Batch]:
        """Batches that follow from the place in the run, so that a resumed run sees the same."""
        family: Family = self.accelerator.unwrap_model(self.student).family
        while True:
            rng = np.random.default_rng((family.first_seed, self.progress.steps))
            yield to_device(
                draw(family, phase, self.progress.pictures, self.progress.steps, rng), self.accelerator.device
            )

    def _test(self, phase: Any, log: TrainingLog) -> None:
        student = self.accelerator.unwrap_model(self.student)
        clips = 4 if phase.questions and phase.clips > 0 else 0
        log.test(self.progress, family_accuracy(self.student, student.family, self.accelerator.device, 3, clips))


def draw(family: Family, phase: FamilyPhase, pictures: int, step: int, rng: np.random.Generator) -> Batch:
    """The batch of a step, behind so many pictures."""
    if phase.questions and rng.random() < phase.clips:
        return family.clips(alike_clips(family, family.first_seed + step * _CLIP_SPACING, phase.clips_per_step))
    first = family.first_seed + pictures
    seeds = range(first, first + phase.pictures)
    return family.pictures(seeds, characters=phase.characters, shares=phase.shares, rng=rng)


def family_loss(output: Output, batch: Batch, phase: FamilyPhase) -> tuple[Tensor, Tensor]:
    """The loss to minimise, and the part to watch: that of the answers, or of the patches if nothing was asked."""
    if output.scores is None or output.middle is None:
        return output.patch + 0.5 * output.token, output.patch.detach()
    weight = torch.ones(output.scores.shape[-1], device=output.scores.device)
    for text, value in phase.token_weights:
        weight[first_token(text)] = value
    answer = functional.cross_entropy(output.scores.float(), batch.labels[batch.labels >= 0], weight=weight)
    parts = zip(phase.heads, (output.patch, output.token, output.middle), strict=True)
    return answer + torch.stack([share * part for share, part in parts]).sum(), answer.detach()


@torch.no_grad()
def family_accuracy(student: Any, family: Family, device: torch.device, pictures: int, clips: int) -> dict[str, float]:
    """Share of right answers on held-out pictures and clips, as `vtprune.evals.held_out` counts them.

    Args:
        student: A `FamilyStudent` in training.
        family: What kind of model it is.
        device: Where it is.
        pictures: Batches of eight pictures, sixteen questions each, all kinds alike.
        clips: Batches of eight clips, six questions each.

    Returns:
        Every kind of question that was asked, "mean" over the kinds about pictures, and "clips" over the others.
    """
    found: dict[str, float] = {}
    for names, batches, mean in (
        (KINDS, (_held_out_pictures(family, number) for number in range(pictures)), "mean"),
        (CLIP_KINDS, (_held_out_clips(family, number) for number in range(clips)), "clips"),
    ):
        right, asked = torch.zeros(len(names)), torch.zeros(len(names))
        for drawn in batches:
            batch = to_device(drawn, device)
            scores, wanted = student(batch).scores, batch.labels >= 0
            wrong = torch.zeros_like(wanted)
            wrong[wanted] = scores.argmax(-1) != batch.labels[wanted]
            for kind in range(len(names)):
                right[kind] += (~wrong.any(-1) & (batch.kinds == kind)).sum().item()
                asked[kind] += (batch.kinds == kind).sum().item()
        if asked.sum() > 0:
            shares = right / asked.clamp(min=1)
            found |= dict(zip(names, shares.tolist(), strict=True)) | {mean: shares.mean().item()}
    return found


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device; the layout is moved where it is used."""
    moved: dict[str, Any] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = value.to(device)
        elif field.name in ("patches", "tokens"):
            moved[field.name] = tuple(part.to(device) for part in value)
    return dataclasses.replace(batch, **moved)


def _held_out_pictures(family: Family, number: int) -> Batch:
    first = HELD_OUT_SEED_START + number * _TEST_BATCH
    return family.pictures(range(first, first + _TEST_BATCH), characters=0.55)


def _held_out_clips(family: Family, number: int) -> Batch:
    return family.clips(alike_clips(family, HELD_OUT_SEED_START + number * _CLIP_SPACING, _TEST_BATCH))
