"""A model for lmms-eval (EvolvingLMMs-Lab/lmms-eval, 0.7), found through its entry points.

    lmms-eval --model vtprune --model_args pretrained=tiny-llava,method=fastv,keep=0.25 --tasks mme --batch_size 8

Every setting travels in `model_args`, as lmms-eval's cache of answers tells models apart by those. See
docs/lmms-eval.md.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.models.registry_v2 import ModelManifest
from tqdm import tqdm

import vtprune
from vtprune.evals.likelihood import read_answers
from vtprune.evals.runner.answering import answer
from vtprune.inputs import continued
from vtprune.integrations import integrate
from vtprune.integrations.harness import (
    Conversation,
    Reader,
    Tally,
    batches,
    conversation,
    cut,
    generation_settings,
    inputs_of,
    wanted_chain,
)
from vtprune.models import load_model

_Ask = Callable[[list[Conversation], list[Instance]], list[GenerationResult]]


def manifest() -> ModelManifest:
    """What lmms-eval is told: a model for chat messages, and one for `--force_simple`."""
    return ModelManifest(model_id="vtprune", chat_class_path=f"{__name__}.Chat", simple_class_path=f"{__name__}.Simple")


class _Model(lmms):
    """What both have in common.

    Args:
        pretrained: A shipped model, a folder or a Hub id, see `vtprune.models.load_model`.
        method: As `vtprune.apply` takes it, with semicolons between parameters, as lmms-eval splits at commas:
            "fastv:layer=2;keep=0.5", "tome+snapkv". None or "none": the untouched model.
        keep: The budget, a ratio in (0, 1] or a number of tokens per picture.
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", ...; of several processes each has its own.
        device_map: "auto" spreads a model over several GPUs; for a single process.
        attn_implementation: Attention implementation; None: the model's own choice.
        trust_remote_code: Run code that comes with the checkpoint.
        frames: How many frames of a video, evenly spaced. Default: 32, or as `fps` says.
        fps: Frames per second of a video.
        batch_size: Questions per call; `--batch_size`.
        max_batch_size: Not used; lmms-eval hands it over.
        **parameters: Of the single method.

    Raises:
        ValueError: A setting is missing, unknown or out of range, or the model or method is not supported.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        method: str | None = None,
        keep: float | int | None = None,
        dtype: str = "auto",
        device: str | None = None,
        device_map: str | None = None,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        frames: int | None = None,
        fps: float | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **parameters: Any,
    ) -> None:
        super().__init__()
        if pretrained is None:
            raise ValueError("model_args must name the model: pretrained=tiny-llava, say, or a folder or a Hub id.")
        chain = wanted_chain(method, keep, parameters)
        if not str(batch_size).isdecimal() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be a whole number >= 1, got {batch_size!r}.")
        self.batch_size = int(batch_size)
        self.reader = Reader(frames, fps)
        self.accelerator = Accelerator()
        if self.accelerator.num_processes > 1:
            if device_map is not None:
                raise ValueError(
                    "device_map is for a single process; start without accelerate launch, or leave it out."
                )
            device = str(self.accelerator.device)
        self.loaded = load_model(
            pretrained,
            device=device or "auto",
            dtype=dtype,
            attention=attn_implementation,
            trust_remote_code=trust_remote_code,
            device_map=device_map,
        )
        if chain:
            vtprune.apply(self.loaded.model, chain)
        self.pruned, self.tally, self.seconds, self.new_tokens = bool(chain), Tally(), 0.0, 0

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts what processes tell each other."""
        device: torch.device = self.accelerator.device
        return device

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answers to questions; greedy unless the task wishes otherwise."""
        answers = self._in_batches(requests, self._answers)
        self._log()
        return answers

    def loglikelihood(self, requests: list[Instance]) -> list[GenerationResult]:
        """How unlikely continuations are as answers in the model's chat template.

        Returns:
            Of each, the negative log-likelihood per token in nats, the end of the turn included, and whether greedy
            decoding would give it. lmms-eval speaks of log-likelihoods, but of several choices it takes the one with
            the smallest number, and such a loss is what its models return (issue 370 there).
        """
        losses = self._in_batches(requests, self._losses)
        self._log()
        return losses

    def clean(self) -> None:
        """Give back the model's memory, for a judge that lmms-eval may load next."""
        vtprune.remove(self.loaded.model)
        del self.loaded
        super().clean()

    @abc.abstractmethod
    def _wishes(self, request: Instance) -> dict[str, Any]:
        """The generation settings that a request comes with."""

    @abc.abstractmethod
    def _messages(self, request: Instance) -> list[dict[str, Any]]:
        """What is asked, see `vtprune.integrations.harness.conversation`."""

    def _document(self, request: Instance) -> Any:
        """The line of the data set that a request is about."""
        number, task, split = request.args[-3:]
        return self.task_dict[task][split][number]

    def _in_batches(self, requests: list[Instance], ask: _Ask) -> list[GenerationResult]:
        """Results of requests in their order; those with the same wishes and alike in shape are asked together."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(self._wishes(request).items())), []).append(place)
        found: dict[int, GenerationResult] = {}
        with tqdm(total=len(requests), disable=self.rank != 0, desc="Model Responding") as progress:
            for places in groups.values():
                for first in range(0, len(places), self.batch_size):
                    chunk = places[first : first + self.batch_size]
                    asked = [conversation(self.loaded, self._messages(requests[i]), self.reader) for i in chunk]
                    for alike in batches(asked):
                        results = ask([asked[i] for i in alike], [requests[chunk[i]] for i in alike])
                        found.update(zip([chunk[i] for i in alike], results, strict=True))
                        progress.update(len(alike))
        return [found[place] for place in range(len(requests))]

    def _answers(self, asked: Sequence[Conversation], requests: Sequence[Instance]) -> list[GenerationResult]:
        wishes = self._wishes(requests[0])
        inputs = inputs_of(self.loaded, asked)
        answered = answer(self.loaded, inputs, **generation_settings(wishes))
        self._count(asked)
        self.seconds += answered.time_ms / 1000
        self.new_tokens += sum(answered.new_tokens)
        slots = inputs["attention_mask"].sum(1).tolist()
        return [
            GenerationResult(cut(text, wishes.get("until")), TokenCounts(input_tokens=before, output_tokens=new))
            for text, before, new in zip(answered.texts, slots, answered.new_tokens, strict=True)
        ]

    def _losses(self, asked: Sequence[Conversation], requests: Sequence[Instance]) -> list[GenerationResult]:
        model, inputs = self.loaded.model, inputs_of(self.loaded, asked)
        answers = [
            continued(self.loaded, one.messages, self._continuation(request).strip())
            for one, request in zip(asked, requests, strict=True)
        ]
        if not any(asked[0].shape):
            _forget_pictures(model)
        with torch.inference_mode():
            output = model(**inputs, use_cache=True, logits_to_keep=1)
            first, cache = output.logits[:, -1], output.past_key_values
            likelihoods, greedy = read_answers(model, inputs["attention_mask"], cache, first, answers)
        self._count(asked)
        losses = [-likelihood / len(ids) for likelihood, ids in zip(likelihoods, answers, strict=True)]
        # A bare pair is turned into text by lmms-eval 0.7.3 before it is scored.
        return [GenerationResult(pair) for pair in zip(losses, greedy, strict=True)]

    def _continuation(self, request: Instance) -> str:
        wanted = request.args[1]
        return str(wanted(self._document(request)) if callable(wanted) else wanted)

    def _count(self, asked: Sequence[Conversation]) -> None:
        if self.pruned and any(asked[0].shape):
            report = vtprune.report(self.loaded.model)
            if report is not None:
                self.tally.add(report, len(asked))

    def _log(self) -> None:
        """Tell what was saved; lmms-eval prints it and keeps it under "throughput" in its results."""
        speed = self.new_tokens / self.seconds if self.seconds else 0.0
        log_metrics(self.seconds, self.new_tokens, speed, self.tally.to_dict())
        self.tally, self.seconds, self.new_tokens = Tally(), 0.0, 0


class Chat(_Model):
    """Shows a task's chat messages, pictures where the task puts them between its words."""

    is_simple = False

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Answers of several rounds; each is a prompt of its own, which the task writes from those before."""
        answers = [self._rounds(request) for request in tqdm(requests, disable=self.rank != 0, desc="Model Responding")]
        self._log()
        return answers

    def _wishes(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[2] or {})

    def _messages(self, request: Instance) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = request.args[1](self._document(request))
        return messages

    def _rounds(self, request: Instance) -> list[str]:
        write, document = request.args[1], self._document(request)
        messages, info = write(document), None
        said: list[str] = []
        while True:
            asked = conversation(self.loaded, messages, self.reader)
            said = [*said, self._answers([asked], [request])[0].text]
            payload = write(document, round_idx=len(said), previous_output=said, previous_round_info=info)
            if not isinstance(payload, tuple):
                return said
            messages, over, said, info = payload
            if over:
                return list(said)


class Simple(_Model):
    """Shows a task's pictures and then its text (`--force_simple`); what multiple choice by likelihood needs."""

    is_simple = True

    def generate_until_multi_round(self, requests: list[Instance]) -> list[list[str]]:
        """Left to `Chat`.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("tasks of several rounds are asked by chat messages: leave out --force_simple.")

    def _wishes(self, request: Instance) -> dict[str, Any]:
        return dict(request.args[1] or {}) if request.request_type == "generate_until" else {}

    def _messages(self, request: Instance) -> list[dict[str, Any]]:
        shown = request.args[2](self._document(request)) or []
        content = [{"type": None, "url": one} for one in shown]
        return [{"role": "user", "content": [*content, {"type": "text", "text": request.args[0]}]}]


def _forget_pictures(model: Any) -> None:
    """Before a prompt without any: Qwen-VL keeps, from the last prompt, how positions shift behind its pictures."""
    multimodal = integrate(model).multimodal
    if getattr(multimodal, "rope_deltas", None) is not None:
        multimodal.rope_deltas = None
