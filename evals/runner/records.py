"""What is noted about one question under one configuration: a line of a run's `questions.jsonl`."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Record:
    """A question, what was answered, and what it took.

    Numbers of a batch (FLOPs, bytes, times) are given to its questions in equal parts, so that sums and means over
    questions are exact; tokens are each question's own.

    Args:
        id: Of the sample.
        index: Its place in the question set.
        configuration: Name of the configuration ("unpruned", "divprune@0.25", ...).
        batch: Number of the batch; it holds the same questions under every configuration.
        kind: Of the sample.
        group: What the bootstrap draws together.
        media: Names of what is shown.
        question: As in the sample.
        answers: Right answers.
        answer: What the model said; None if it failed.
        score: 0 .. 1; None without right answers, or if the question failed.
        error: Why it failed; None if it did not.
        visual_tokens_before: That entered the language model, had nothing been pruned.
        visual_tokens_after: Left after the last place.
        flops_before: Of the prefill (encoder, projector, decoder).
        flops_after: The same with pruning.
        kv_bytes_before: Of the cache after the prefill.
        kv_bytes_after: The same with pruning.
        ttft_ms: Time to the first token of the batch, inputs prepared, milliseconds.
        time_ms: Time of the whole answer; a batch's time by its questions.
        new_tokens: Tokens of the answer.
        agrees: Whether the answer is the unpruned model's, word for word.
        kl: KL divergence of the first token's distribution from the unpruned model's, in nats.
        logit_error: Root mean square of the difference of the first token's logits, each centred on its mean.
        likelihoods: Of the choices, in nats, where they were asked for.
        picture: File of the overlay in the folder of pictures, if one was drawn.
    """

    id: str
    index: int
    configuration: str
    batch: int
    kind: str
    group: str
    media: tuple[str, ...]
    question: str
    answers: tuple[str, ...]
    answer: str | None = None
    score: float | None = None
    error: str | None = None
    visual_tokens_before: int | None = None
    visual_tokens_after: int | None = None
    flops_before: float | None = None
    flops_after: float | None = None
    kv_bytes_before: float | None = None
    kv_bytes_after: float | None = None
    ttft_ms: float | None = None
    time_ms: float | None = None
    new_tokens: int | None = None
    agrees: bool | None = None
    kl: float | None = None
    logit_error: float | None = None
    likelihoods: tuple[float, ...] | None = None
    picture: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Record:
        """From what `to_dict` gave and JSON kept."""
        lists = {name: tuple(values[name]) for name in ("media", "answers")}
        if values.get("likelihoods") is not None:
            lists["likelihoods"] = tuple(values["likelihoods"])
        return cls(**{**values, **lists})
