"""What an evaluation harness asks, as calls of a model: conversations, how to generate, and what was saved."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vtprune.api import build_chain
from vtprune.images import load_image
from vtprune.inputs import Ask, make_batch
from vtprune.methods.base import Method
from vtprune.methods.parse import parse_value
from vtprune.models import Loaded
from vtprune.report import Report
from vtprune.videos import Video, load_video

logger = logging.getLogger(__name__)

NEW_TOKENS = 1024
"""Length of an answer where a task sets no limit."""

_PICTURES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"})
_PASSED_ON = ("top_p", "top_k", "num_beams", "repetition_penalty", "length_penalty", "min_new_tokens")
_FOR_OTHERS = frozenset({"until", "image_aspect_ratio", "max_new_tokens", "do_sample", "temperature"})


SETTINGS = (
    "pretrained, method, keep, dtype, device, device_map, attn_implementation, trust_remote_code, frames, fps and "
    "parameters of a single method"
)


def wanted_chain(method: str | None, keep: Any, parameters: Mapping[str, Any]) -> list[Method]:
    """The methods that a harness's settings ask for; [] for none.

    Args:
        method: As `vtprune.apply` takes it; None or "none" for none.
        keep: The budget. Here and in `parameters` texts are read as in "fastv:layer=2".
        parameters: Of the single method.

    Raises:
        ValueError: A method or a parameter is unknown or out of range, or there is one of these without a method.
    """
    keep, given = _value(keep), {name: _value(value) for name, value in parameters.items()}
    if method is None or str(method).lower() == "none":
        unused = sorted(given) + ["keep"] * (keep is not None)
        if unused:
            raise ValueError(f"{', '.join(unused)} is of no use without a method; the settings are {SETTINGS}.")
        return []
    try:
        return build_chain(str(method), keep, given)
    except (ValueError, TypeError) as error:
        said = f" The settings are {SETTINGS}." if given else ""
        raise ValueError(f"{error}{said}") from None


def _value(value: Any) -> Any:
    return parse_value(value) if isinstance(value, str) else value


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads pictures and videos.

    Args:
        frames: How many frames of a video, see `vtprune.videos.load_video`.
        fps: How many a second.
    """

    frames: int | None = None
    fps: float | None = None

    def read(self, medium: Any, kind: str | None = None) -> Image.Image | Video:
        """A picture or a video.

        Args:
            medium: A `PIL.Image.Image`, a path, or a dict with a path under "url" or "path".
            kind: "image" or "video"; None to tell by the file's ending.

        Raises:
            ValueError: It is neither, or part of a video is asked for.
            OSError: A file cannot be read.
        """
        if isinstance(medium, Image.Image):
            return medium.convert("RGB")
        if isinstance(medium, Mapping):
            parts = sorted(set(medium) & {"start_time", "end_time", "video_start", "video_end"})
            if any(medium[part] is not None for part in parts):
                raise ValueError(f"a task asks for part of a video ({', '.join(parts)}), which is not supported.")
            kind = medium.get("type", kind)
            medium = medium.get("url") or medium.get("path")
        if kind not in (None, "image", "video") or not isinstance(medium, str | Path):
            raise ValueError(
                f"a task shows {kind or ''} {type(medium).__name__}; only pictures and videos are supported."
            )
        if kind == "image" or (kind is None and Path(medium).suffix.lower() in _PICTURES):
            return load_image(medium)
        return load_video(medium, frames=self.frames, fps=self.fps)


@dataclasses.dataclass(frozen=True)
class Conversation:
    """Messages for a chat template, with the pictures and videos that they show, in that order."""

    messages: tuple[dict[str, Any], ...]
    images: tuple[Image.Image, ...]
    videos: tuple[Video, ...]

    @property
    def shape(self) -> tuple[Any, ...]:
        """What must be equal for conversations to go into one batch."""
        return bool(self.images), tuple(len(video.frames) for video in self.videos)

    def prompt(self, loaded: Loaded) -> str:
        """All of it by the model's chat template, up to where the answer begins.

        Raises:
            ValueError: The model has no chat template.
        """
        if not getattr(loaded.processor, "chat_template", None):
            raise ValueError(f"model {loaded.name!r} has no chat template to ask questions with.")
        text: str = loaded.processor.apply_chat_template(list(self.messages), add_generation_prompt=True)
        return text


def conversation(loaded: Loaded, messages: Sequence[Mapping[str, Any]], reader: Reader) -> Conversation:
    """A conversation from messages.

    Where the text of a message marks the places of its pictures, by "<image>" or by the model's own placeholder, one
    for each, they are shown there. Other such marks are taken out, as no text may hold a placeholder.

    Args:
        loaded: Model and processor.
        messages: Each a dict with "role" and "content": a text, or dicts with "type" and "text", or with "type" and
            "url", which is what `Reader.read` takes.
        reader: Reads what is shown.

    Raises:
        ValueError, OSError: As `Reader.read`.
    """
    images: list[Image.Image] = []
    videos: list[Video] = []
    written = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        shown = [reader.read(_medium(part), part["type"]) for part in parts if part["type"] != "text"]
        images += [one for one in shown if not isinstance(one, Video)]
        videos += [one for one in shown if isinstance(one, Video)]
        kinds = iter(["video" if isinstance(one, Video) else "image" for one in shown])
        plain = [part if part["type"] == "text" else {"type": next(kinds)} for part in parts]
        written.append({"role": message["role"], "content": _placed(loaded, plain)})
    return Conversation(tuple(written), tuple(images), tuple(videos))


def _medium(part: Mapping[str, Any]) -> Any:
    times = {name: part[name] for name in ("start_time", "end_time") if part.get(name) is not None}
    return {"url": part["url"], **times} if times else part["url"]


def _placed(loaded: Loaded, parts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Parts of a message, pictures at the marks in its text where there is one for each."""
    names = ("image_token", "video_token")
    own = [token for name in names if (token := getattr(loaded.processor, name, None))]
    marks = re.compile("|".join(map(re.escape, dict.fromkeys(["<image>", "<video>", *own]))))
    found = sum(len(marks.findall(part["text"])) for part in parts if part["type"] == "text")
    if not found:
        return [dict(part) for part in parts]
    shown = [dict(part) for part in parts if part["type"] != "text"]
    if found != len(shown):
        logger.warning("a text marks %d places for %d pictures; the marks are taken out.", found, len(shown))
        return [
            {**part, "text": marks.sub("", part["text"])} if part["type"] == "text" else dict(part) for part in parts
        ]
    placed: list[dict[str, Any]] = []
    for part in parts:
        if part["type"] == "text":
            for number, text in enumerate(marks.split(part["text"])):
                placed += [shown.pop(0)] if number else []
                placed += [{"type": "text", "text": text}] if text else []
    return placed


def batches(conversations: Sequence[Conversation]) -> Iterator[list[int]]:
    """The places of those that can go into one call of the model together."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, one in enumerate(conversations):
        groups.setdefault(one.shape, []).append(place)
    yield from groups.values()


def inputs_of(loaded: Loaded, asked: Sequence[Conversation]) -> Any:
    """What the model is called with for conversations of one shape, padded on the left.

    Raises:
        ValueError: As `vtprune.inputs.make_batch`.
    """
    texts = [one.prompt(loaded) for one in asked]
    if any(asked[0].shape):
        return make_batch(loaded, [Ask(text, one.images, one.videos) for text, one in zip(texts, asked, strict=True)])
    tokenizer = loaded.processor.tokenizer
    tokenizer.padding_side = "left"
    special = not (tokenizer.bos_token and all(text.startswith(tokenizer.bos_token) for text in texts))
    return tokenizer(texts, padding=True, add_special_tokens=special, return_tensors="pt").to(loaded.model.device)


def generation_settings(wishes: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` is told, from a task's `generation_kwargs`; greedy unless a task wishes otherwise.

    A temperature decides whether to sample: above 0 yes, at 0 no; without one, `do_sample` does.
    """
    temperature = wishes.get("temperature")
    sample = bool(wishes.get("do_sample", False)) if temperature is None else temperature > 0
    settings: dict[str, Any] = {"do_sample": sample, "max_new_tokens": wishes.get("max_new_tokens") or NEW_TOKENS}
    if sample and temperature is not None:
        settings["temperature"] = temperature
    passed = [name for name in _PASSED_ON if sample or name not in ("top_p", "top_k")]
    settings |= {name: wishes[name] for name in passed if wishes.get(name) is not None}
    unknown = sorted(set(wishes) - set(_PASSED_ON) - _FOR_OTHERS)
    if unknown:
        logger.warning("generation settings %s are not known and have no effect.", ", ".join(unknown))
    return settings


def cut(text: str, until: str | Sequence[str] | None) -> str:
    """An answer up to the first of the texts that end it.

    An empty line does not: tasks that name no end of their own get it from their examples, and it would cut reasoning
    short; the models that come with lmms-eval pass it over as well.
    """
    ends = [until] if isinstance(until, str) else list(until or ())
    places = [text.find(end) for end in ends if end.strip()]
    return text[: min((place for place in places if place >= 0), default=len(text))].strip()


@dataclasses.dataclass
class Tally:
    """What prefills saved, added up."""

    questions: int = 0
    visual_tokens: tuple[int, int] = (0, 0)
    flops: tuple[int, int] = (0, 0)
    kv_bytes: tuple[int, int] = (0, 0)

    def add(self, report: Report, questions: int) -> None:
        """Count a report in."""
        self.questions += questions
        tokens = report.visual_tokens_before, report.visual_tokens_after
        kv = report.kv_bytes_before or 0, report.kv_bytes_after or 0
        self.visual_tokens = _sum(self.visual_tokens, tokens)
        self.flops = _sum(self.flops, (report.prefill_flops_before, report.prefill_flops_after))
        self.kv_bytes = _sum(self.kv_bytes, kv)

    def to_dict(self) -> dict[str, float]:
        """Visual tokens a question, and shares of what the untouched model needs; {} if nothing was counted."""
        if not self.questions:
            return {}
        return {
            "visual_tokens_before": self.visual_tokens[0] / self.questions,
            "visual_tokens_after": self.visual_tokens[1] / self.questions,
            "prefill_flops_share": self.flops[1] / self.flops[0],
            "kv_bytes_share": self.kv_bytes[1] / self.kv_bytes[0],
        }


def _sum(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return first[0] + second[0], first[1] + second[1]
