"""From a prompt, pictures and videos to what a model is called with, by the model's own processor."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vtprune.files import reason
from vtprune.models import Loaded
from vtprune.videos import Video


@dataclasses.dataclass(frozen=True)
class Ask:
    """A prompt and what it is about."""

    prompt: str
    images: Sequence[Image.Image] = ()
    videos: Sequence[Video] = ()


def make_inputs(loaded: Loaded, images: Sequence[Image.Image], prompt: str, videos: Sequence[Video] = ()) -> Any:
    """The processor's inputs for a prompt about pictures and videos, on the model's device; see `make_batch`."""
    return make_batch(loaded, [Ask(prompt, images, videos)])


def make_batch(loaded: Loaded, asks: Sequence[Ask]) -> Any:
    """The processor's inputs for several prompts, padded on the left, on the model's device.

    A prompt that holds the processor's own image or video placeholder is taken as it is; any other becomes the user's
    message in the model's chat template, after the pictures and the videos. The frames of a video are all used; when
    they were taken is told to processors that want to know.

    Args:
        loaded: Model and processor.
        asks: The prompts. Either all have pictures or none has, and the same goes for videos.

    Raises:
        ValueError: A prompt is empty, its placeholders do not match the pictures and videos, there are none of both,
            some prompts have pictures and others have not, or the model takes no videos.
    """
    if not asks:
        raise ValueError("there must be at least one prompt, got none.")
    for ask in asks:
        _check(loaded, ask)
    for kind in ("images", "videos"):
        if len({bool(getattr(ask, kind)) for ask in asks}) > 1:
            raise ValueError(f"either all prompts of a batch have {kind}, or none has.")
    processor = loaded.processor
    texts = [_text(loaded, ask.prompt, len(ask.images), len(ask.videos)) for ask in asks]
    begin = getattr(processor.tokenizer, "bos_token", None)
    # A template that writes the first token itself must not get a second one.
    special = not (begin and all(text.startswith(begin) for text in texts))
    extra: dict[str, Any] = {}
    videos = [video for ask in asks for video in ask.videos]
    if videos:
        extra["videos"] = [_enough_frames(processor, video.frames) for video in videos]
        extra["video_metadata"] = [_metadata(v, len(frames)) for v, frames in zip(videos, extra["videos"], strict=True)]
        extra["do_sample_frames"] = False
    if asks[0].images:
        # Prompt by prompt: LLaVA-OneVision cuts a picture into tiles only if its prompt has no other.
        extra["images"] = [list(ask.images) for ask in asks]
    if len(asks) > 1:
        processor.tokenizer.padding_side = "left"
        extra["padding"] = True
    try:
        inputs = processor(text=texts, add_special_tokens=special, return_tensors="pt", **extra)
    except ValueError as error:
        said = reason(error).splitlines()[0]
        lengths = [len(video.frames) for video in videos]
        if len(set(lengths)) > 1:
            said = f"its videos must have the same number of frames, got {' and '.join(map(str, lengths))}"
        raise ValueError(f"the processor of {loaded.name!r} refuses the prompt: {said}.") from None
    inputs = inputs.to(loaded.model.device)
    for name in ("pixel_values", "pixel_values_videos"):
        if name in inputs and inputs[name].is_floating_point():
            inputs[name] = inputs[name].to(loaded.model.dtype)
    return inputs


def _check(loaded: Loaded, ask: Ask) -> None:
    if not ask.prompt.strip():
        raise ValueError("prompt must hold a question or an instruction, got nothing but spaces.")
    if not ask.images and not ask.videos:
        raise ValueError("there is nothing to look at; give a picture or a video.")
    if getattr(loaded.processor, "image_processor", None) is None:
        raise ValueError(f"model {loaded.name!r} comes without a processor for pictures, only with a tokenizer.")
    if ask.videos and not takes_videos(loaded.processor):
        raise ValueError(f"model {loaded.name!r} takes pictures only, no videos.")


def continuation(loaded: Loaded, ask: Ask, answer: str) -> list[int]:
    """The tokens that follow a prompt if the model gives an answer, up to and with the end of its turn.

    Raises:
        ValueError: The prompt is written out, or the chat template does not continue its prompt with the answer.
    """
    processor = loaded.processor
    if _is_raw(processor, ask.prompt) or not getattr(processor, "chat_template", None):
        raise ValueError("the answer to a prompt can only be read with the model's own chat template.")
    return continued(loaded, [_message(ask.prompt, len(ask.images), len(ask.videos))], answer)


def continued(loaded: Loaded, messages: Sequence[Mapping[str, Any]], answer: str) -> list[int]:
    """The tokens that follow messages if the model gives an answer, up to and with the end of its turn.

    Raises:
        ValueError: The chat template does not continue its prompt with the answer.
    """
    processor = loaded.processor
    answered = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    whole = processor.apply_chat_template(answered)
    if not whole.startswith(prompt):
        raise ValueError(f"the chat template of {loaded.name!r} does not continue its prompt with the answer.")
    ids = processor.tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    return list(ids)


def _message(prompt: str, images: int, videos: int) -> dict[str, Any]:
    shown = [{"type": "image"}] * images + [{"type": "video"}] * videos
    return {"role": "user", "content": [*shown, {"type": "text", "text": prompt}]}


def takes_videos(processor: Any) -> bool:
    """Whether a processor has a way to put videos into a prompt."""
    return getattr(processor, "video_processor", None) is not None and bool(getattr(processor, "video_token", None))


def in_prompt_order(
    processor: Any, prompt: str, images: Sequence[Image.Image], videos: Sequence[Video]
) -> list[Image.Image | Video]:
    """The pictures and videos as they follow one another in what `make_inputs` makes of them."""
    if not _is_raw(processor, prompt):
        return [*images, *videos]
    kinds = {token: kind for kind, token in _placeholders(processor).items()}
    left: dict[str, Iterator[Any]] = {"image": iter(images), "video": iter(videos)}
    return [next(left[kinds[token]]) for token in re.findall("|".join(map(re.escape, kinds)), prompt)]


def _placeholders(processor: Any) -> dict[str, str]:
    tokens = {kind: getattr(processor, f"{kind}_token", None) for kind in ("image", "video")}
    return {kind: token for kind, token in tokens.items() if token}


def _is_raw(processor: Any, prompt: str) -> bool:
    return any(token in prompt for token in _placeholders(processor).values())


def _text(loaded: Loaded, prompt: str, images: int, videos: int) -> str:
    """The whole prompt, with one placeholder for each picture and each video."""
    processor = loaded.processor
    wanted = {"image": images, "video": videos}
    tokens = _placeholders(processor)
    if _is_raw(processor, prompt):
        for kind, token in tokens.items():
            if prompt.count(token) != wanted[kind]:
                things = f"{wanted[kind]} {'picture' if kind == 'image' else 'video'}(s)"
                raise ValueError(f"prompt has {prompt.count(token)} {kind} placeholders {token!r} for {things}.")
        return prompt
    if not getattr(processor, "chat_template", None):
        needed = " and ".join(f"no {kind} placeholder {token!r}" for kind, token in tokens.items() if wanted[kind])
        raise ValueError(
            f"prompt has {needed or 'no placeholder'}, and {loaded.name!r} has no chat template that would add one; "
            "write the whole prompt with its placeholder."
        )
    text = processor.apply_chat_template([_message(prompt, images, videos)], add_generation_prompt=True)
    for kind, token in tokens.items():
        if text.count(token) != wanted[kind]:
            things = f"{wanted[kind]} {'picture' if kind == 'image' else 'video'}(s)"
            raise ValueError(
                f"the chat template of {loaded.name!r} puts {text.count(token)} {kind} placeholders {token!r} for "
                f"{things}; write the whole prompt with its placeholders."
            )
    return text


def _enough_frames(processor: Any, frames: np.ndarray) -> np.ndarray:
    """The frames, the last one repeated where they are fewer than a model looks at together."""
    missing = (getattr(processor.video_processor, "temporal_patch_size", None) or 1) - len(frames)
    return np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)]) if missing > 0 else frames


def _metadata(video: Video, frames: int) -> Any:
    from transformers.video_utils import VideoMetadata

    # Processors take the time of frame number n to be n / fps, which is wrong where the frame rate varies: they get the
    # numbers that the frames would have at an even rate.
    numbers = [round(time * video.fps) for time in video.times]
    return VideoMetadata(
        total_num_frames=video.total_frames,
        fps=video.fps,
        width=video.frames.shape[2],
        height=video.frames.shape[1],
        duration=video.duration,
        video_backend="decord",
        frames_indices=numbers + numbers[-1:] * (frames - len(numbers)),
    )
