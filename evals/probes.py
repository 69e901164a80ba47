"""How likely a model finds given answers: one prefill and one short call per batch, far less noisy than counting.

A `Probe` holds questions and answers, prepared once, and asks the same ones of every chain of methods. The prompt is
prefilled as always, so that methods see what they see in use, and the answer is then read with the cache.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch

import vtprune
from vtprune.api import MethodLike
from vtprune.evals.clip_suite import ClipQuestion, questions_about_clips
from vtprune.evals.likelihood import read_answers
from vtprune.evals.suite import SceneQuestion, by_shape, prompt_inputs, prompt_text, scene_questions, seen
from vtprune.integrations import integrate
from vtprune.models import Loaded
from vtprune.report import Report

Answers = Literal["right", "own"]
SUITES = ("scenes", "clips")
LONGEST = 16  # tokens of an answer


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a chain made of some questions, one entry each.

    Args:
        likelihood: Log-likelihood of the answer, in nats.
        right: Whether every token of it was the likeliest one, which is what greedy decoding would give.
        flops: (before, after) of the prefill, summed over the questions; as reports count them.
        kv_bytes: (before, after) of the cache right after the prefill.
    """

    likelihood: tuple[float, ...]
    right: tuple[bool, ...]
    flops: tuple[int, int]
    kv_bytes: tuple[int, int]

    def __add__(self, other: Reading) -> Reading:
        """Of these questions, then of the others."""
        return Reading(
            self.likelihood + other.likelihood,
            self.right + other.right,
            (self.flops[0] + other.flops[0], self.flops[1] + other.flops[1]),
            (self.kv_bytes[0] + other.kv_bytes[0], self.kv_bytes[1] + other.kv_bytes[1]),
        )

    @property
    def share(self) -> float:
        """Prefill FLOPs of encoder, projector and decoder, as a share of the unpruned model's."""
        return self.flops[1] / self.flops[0]

    @property
    def kv_share(self) -> float:
        """Bytes of the cache, as a share of the unpruned model's."""
        return self.kv_bytes[1] / self.kv_bytes[0]

    @property
    def mean(self) -> float:
        """Mean log-likelihood."""
        return math.fsum(self.likelihood) / len(self.likelihood)

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.right) / len(self.right)


@dataclasses.dataclass(frozen=True)
class _Batch:
    inputs: dict[str, Any]
    answers: list[list[int]]


def draw_questions(suite: str, count: int, seed: int) -> list[SceneQuestion] | list[ClipQuestion]:
    """Questions of a test set in an order in which any first ones are about many pictures and of all kinds.

    Raises:
        ValueError: There is no such suite.
    """
    if suite not in SUITES:
        raise ValueError(f"suite must be one of {', '.join(SUITES)}, got {suite!r}.")
    drawn: Any = questions_about_clips(count, seed) if suite == "clips" else scene_questions(count, seed)
    random.Random(seed).shuffle(drawn)
    return drawn


def check_suite(loaded: Loaded, suite: str) -> None:
    """Refuse clips for a model that cannot be shown any.

    Raises:
        ValueError: It takes no videos.
    """
    if suite == "clips" and not (integrate(loaded.model).takes_videos and hasattr(loaded.processor, "video_processor")):
        raise ValueError(f"model {loaded.name!r} takes no videos; use the suite 'scenes'.")


class Probe:
    """Questions with answers, asked of a model under any chain.

    Args:
        loaded: Model and processor.
        questions: What to ask.
        answers: "right": the answers of the suite; "own": those of the model as it is, by greedy decoding.
        batch_size: Questions per call.

    Raises:
        ValueError: The processor's template has no room for answers.
    """

    def __init__(
        self,
        loaded: Loaded,
        questions: Sequence[SceneQuestion] | Sequence[ClipQuestion],
        *,
        answers: Answers = "right",
        batch_size: int = 24,
    ) -> None:
        self.model, self.processor = loaded.model, loaded.processor
        self.questions, self.answers, self.batch_size = list(questions), answers, batch_size
        self._prepared: dict[tuple[int, int], list[_Batch]] = {}

    def read(
        self,
        chain: Sequence[MethodLike],
        first: int = 0,
        last: int | None = None,
        on_batch: Callable[[int], None] | None = None,
    ) -> Reading:
        """Ask the questions from `first` up to `last` with methods applied, as `vtprune.apply` takes them; none for [].

        Raises:
            ValueError: The chain cannot work on the model.
        """
        last = len(self.questions) if last is None else last
        if not chain:
            return self._ask(first, last, on_batch, pruned=False)
        with vtprune.applied(self.model, list(chain)):
            return self._ask(first, last, on_batch, pruned=True)

    def reports(self, chain: Sequence[MethodLike], questions: int) -> list[Report]:
        """Reports of prefills of the first questions; see `read`."""
        reports = []
        with vtprune.applied(self.model, list(chain)), torch.inference_mode():
            for batch in self._batches(0, questions):
                self.model(**batch.inputs, use_cache=True, logits_to_keep=1)
                report = vtprune.report(self.model)
                if report is None:
                    raise ValueError("the questions reached the model without a picture or a video.")
                reports.append(report)
        return reports

    def slots(self) -> int:
        """Slots of the first question's prompt."""
        return int(self._batches(0, 1)[0].inputs["attention_mask"].sum())

    def _ask(self, first: int, last: int, on_batch: Callable[[int], None] | None, pruned: bool) -> Reading:
        found: Reading | None = None
        for batch in self._batches(first, last):
            one = self._read(batch, pruned)
            found = one if found is None else found + one
            if on_batch is not None:
                on_batch(len(batch.answers))
        if found is None:
            raise ValueError(f"there are no questions from {first} to {last}.")
        return found

    @torch.inference_mode()
    def _read(self, batch: _Batch, pruned: bool) -> Reading:
        output = self.model(**batch.inputs, use_cache=True, logits_to_keep=1)
        report = vtprune.report(self.model) if pruned else None
        mask, cache = batch.inputs["attention_mask"], output.past_key_values
        likelihood, right = read_answers(self.model, mask, cache, output.logits[:, -1], batch.answers)
        flops = (1, 1) if report is None else (report.prefill_flops_before, report.prefill_flops_after)
        kv = (1, 1) if report is None else (report.kv_bytes_before or 1, report.kv_bytes_after or 1)
        return Reading(tuple(likelihood), tuple(right), flops, kv)

    def _batches(self, first: int, last: int) -> list[_Batch]:
        """Prepared once, as they are asked again and again."""
        if (first, last) not in self._prepared:
            self._prepared[first, last] = list(self._prepare(self.questions[first:last]))
        return self._prepared[first, last]

    def _prepare(self, questions: Sequence[Any]) -> Iterator[_Batch]:
        for items in by_shape(questions, self.batch_size):
            shown = [seen(item) for item in items]
            inputs = prompt_inputs(self.model, self.processor, shown, [item.question.text for item in items])
            if self.answers == "own":
                answers = self._own(inputs)
            else:
                clips = isinstance(shown[0], np.ndarray)
                answers = [self._right(item.question.text, item.question.answer, clips) for item in items]
            yield _Batch(dict(inputs), answers)

    def _right(self, question: str, answer: str, clips: bool) -> list[int]:
        prompt = prompt_text(self.processor, question, clips)
        whole = prompt_text(self.processor, question, clips, answer)
        if not whole.startswith(prompt):
            raise ValueError(
                "the model's chat template does not continue its prompt with the answer, so that right answers cannot "
                "be read; ask for the model's own (--metric agreement)."
            )
        ids = self.processor.tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
        return list(ids)[:LONGEST]

    def _own(self, inputs: Any) -> list[list[int]]:
        with torch.inference_mode():
            output = self.model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
        ends = self.model.generation_config.eos_token_id
        stops = set(ends if isinstance(ends, list) else [ends])
        answers = []
        for ids in output[:, inputs["input_ids"].shape[1] :].tolist():
            end = next((i for i, token in enumerate(ids) if token in stops), len(ids) - 1)
            answers.append(ids[: end + 1])
        return answers
