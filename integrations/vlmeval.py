"""A model for VLMEvalKit (open-compass/VLMEvalKit).

VLMEvalKit knows models by name, from a dictionary in its own source; `register` adds one to it, so that no fork is
needed. Its results are kept under that name alone. See docs/lmms-eval.md.
"""

from __future__ import annotations

import functools
from typing import Any

from vlmeval.config import supported_VLM
from vlmeval.vlm.base import BaseModel

import vtprune
from vtprune.evals.runner.answering import answer
from vtprune.integrations.harness import NEW_TOKENS, Reader, conversation, inputs_of, wanted_chain
from vtprune.models import load_model


class Model(BaseModel):
    """Answers one question at a time, as VLMEvalKit asks them; greedy.

    Args:
        pretrained: A shipped model, a folder or a Hub id, see `vtprune.models.load_model`.
        method: As `vtprune.apply` takes it. None or "none": the untouched model.
        keep: The budget, a ratio in (0, 1] or a number of tokens per picture.
        device: "auto", "cpu", "cuda", ...
        dtype: "auto", "float32", "bfloat16" or "float16".
        attention: Attention implementation; None: the model's own choice.
        max_new_tokens: Answers are cut off there.
        use_vllm: VLMEvalKit's own wish for models of some names; only False.
        **parameters: Of the single method.

    Raises:
        ValueError: A setting is unknown or out of range, or the model or method is not supported.
    """

    INTERLEAVE = True

    def __init__(
        self,
        pretrained: str,
        method: str | None = None,
        keep: float | int | None = None,
        device: str = "auto",
        dtype: str = "auto",
        attention: str | None = None,
        max_new_tokens: int = NEW_TOKENS,
        use_vllm: bool = False,
        **parameters: Any,
    ) -> None:
        super().__init__()
        if use_vllm:
            raise ValueError("use_vllm must be False: methods work on models of transformers.")
        chain = wanted_chain(method, keep, parameters)
        self.max_new_tokens = max_new_tokens
        self.loaded = load_model(pretrained, device=device, dtype=dtype, attention=attention)
        if chain:
            vtprune.apply(self.loaded.model, chain)

    def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
        """The answer to texts and pictures in their order.

        Args:
            message: Dicts with "type" and "value": a text, or a picture's or video's file.
            dataset: Not used.
        """
        content = [
            {"type": "text", "text": part["value"]} if part["type"] == "text" else {**part, "url": part["value"]}
            for part in message
        ]
        asked = conversation(self.loaded, [{"role": "user", "content": content}], Reader())
        return answer(self.loaded, inputs_of(self.loaded, [asked]), self.max_new_tokens).texts[0]


def register(name: str, pretrained: str, **settings: Any) -> None:
    """Make a model known to VLMEvalKit.

    Args:
        name: What it is called there; its results are kept under it, so that other settings need another name.
        pretrained: As for `Model`.
        **settings: Further ones of `Model`.

    Raises:
        ValueError: There is a model of that name.
    """
    if name in supported_VLM:
        raise ValueError(
            f"VLMEvalKit has a model {name!r} already; name what is special, as in {name + '-divprune-25'!r}."
        )
    supported_VLM[name] = functools.partial(Model, pretrained, **settings)
