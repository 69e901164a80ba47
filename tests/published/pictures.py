"""Pictures and videos, and a processor's inputs for them."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image

from vtprune import published

FRAMES = 8


def picture(width: int, height: int) -> Image.Image:
    """A smooth picture of a size in pixels."""
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def video(side: int) -> np.ndarray:
    """(FRAMES, side, side, 3) noise."""
    return np.random.default_rng(0).integers(0, 255, (FRAMES, side, side, 3), dtype=np.uint8)


@functools.cache
def processor(name: str):
    return published.processor(name, small=True)


def ask(name: str, kind: str, thing):
    """The inputs for a question about one picture or one video."""
    content = [{"type": kind}, {"type": "text", "text": "What is this?"}]
    text = processor(name).apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    settings = {"images": [thing]} if kind == "image" else {"videos": [thing], "do_sample_frames": False}
    return processor(name)(text=text, return_tensors="pt", **settings)


def placeholders(config, inputs, kind: str = "image") -> int:
    """How many ids of the prompt stand for pictures, or for videos."""
    token = config.image_token_id if kind == "image" else getattr(config, "video_token_id", config.image_token_id)
    return int((inputs["input_ids"] == token).sum())
