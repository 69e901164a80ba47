"""A quick look at pictures that are held out from training: how many answers would be right, per kind of question."""

from __future__ import annotations

from collections.abc import Callable

import torch
from accelerate.utils import send_to_device
from torch.utils.data import default_collate

from vtprune.evals.auxiliary import centre_accuracy
from vtprune.evals.dense import IGNORED, QUESTIONS, Item, make_item
from vtprune.evals.questions import KINDS
from vtprune.evals.scenes import TEST_SEED_START
from vtprune.evals.student import Output

HELD_OUT_SEED_START = TEST_SEED_START + 5_000_000
"""Of the test range, but not among the pictures of `vtprune.evals.suite`."""

_BATCH = 8


@torch.no_grad()
def held_out_accuracy(
    student: Callable[..., Output], device: torch.device, pictures: int = 24, questions: int = QUESTIONS
) -> dict[str, float]:
    """Share of right answers on held-out pictures.

    An answer counts if every token of it is the likeliest one behind the question and the tokens before it, which is
    what greedy decoding would give.

    Args:
        student: The model in training.
        device: Where it is.
        pictures: How many pictures to look at.
        questions: Slots per picture, evenly over the kinds; with 0 only the tower's heads are tested.

    Returns:
        "patch colour", "patch shape", "patch character" (at the objects' centres), and with questions every kind of
        question and their "mean".
    """
    heads: list[dict[str, float]] = []
    right, asked = torch.zeros(len(KINDS)), torch.zeros(len(KINDS))
    for first in range(0, pictures, _BATCH):
        numbers = range(first, min(first + _BATCH, pictures))
        items = [make_item(HELD_OUT_SEED_START + n, characters=0.55, questions=questions) for n in numbers]
        batch: Item = send_to_device(default_collate(items), device)
        output = student(batch)
        heads.append(centre_accuracy(output.readings, batch.targets))
        if output.scores is not None:
            wanted = batch.labels != IGNORED
            wrong = torch.zeros_like(wanted)
            wrong[wanted] = output.scores.argmax(-1) != batch.labels[wanted]
            good = ~wrong.any(-1)
            for kind in range(len(KINDS)):
                right[kind] += (good & (batch.kinds == kind)).sum().item()
                asked[kind] += (batch.kinds == kind).sum().item()
    found = {f"patch {name}": sum(part[name] for part in heads) / len(heads) for name in heads[0]}
    if asked.sum() > 0:
        shares = right / asked.clamp(min=1)
        found |= dict(zip(KINDS, shares.tolist(), strict=True)) | {"mean": shares.mean().item()}
    return found
