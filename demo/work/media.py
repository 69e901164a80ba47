"""What a visitor asks about: an upload or a shipped example, read and put into the model's words."""

from __future__ import annotations

import dataclasses
import filecmp
import re
from pathlib import Path
from typing import Any

from PIL import Image

from vtprune.demo.setting import Limits
from vtprune.images import load_image
from vtprune.inputs import make_inputs
from vtprune.models import Loaded, shipped_example
from vtprune.overlay import Box
from vtprune.run import seen_region
from vtprune.videos import Video, load_video


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a picture or a clip.

    Args:
        text: The question.
        medium: What it is about.
        file: Name of the medium's file, without its folder.
        shipped: Whether that is an example that comes with the package.
    """

    text: str
    medium: Image.Image | Video
    file: str
    shipped: bool = False

    @property
    def is_video(self) -> bool:
        """Whether it is about a clip."""
        return isinstance(self.medium, Video)

    def inputs(self, loaded: Loaded, new_tokens: int) -> Any:
        """What the model is called with.

        Args:
            loaded: Model and processor.
            new_tokens: How long the answer may become, in tokens.

        Raises:
            ValueError: The model takes no clips, or question and answer are too long for it.
        """
        medium = self.medium
        images, videos = ([], [medium]) if isinstance(medium, Video) else ([medium], [])
        inputs = make_inputs(loaded, images, self.text, videos)
        length = inputs["input_ids"].shape[1]
        longest = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
        if longest is not None and length + new_tokens > longest:
            raise ValueError(
                f"prompt must have at most {longest - new_tokens:,} tokens, visual ones included, so that the answer "
                f"fits into the {longest:,} of {loaded.name!r}; it has {length:,}. Ask a shorter question."
            )
        return inputs

    def region(self, loaded: Loaded) -> Box | None:
        """Which part of the medium the model sees, see `vtprune.run.seen_region`."""
        return seen_region(loaded.processor, self.medium.size, video=self.is_video)


def read_question(text: str, picture: str | None, clip: str | None, limits: Limits) -> Question:
    """Check a question and read what it is about.

    Args:
        text: The question.
        picture: File of a picture; None if there is a clip.
        clip: File of a clip; None if there is a picture.
        limits: How long a question may be, and how many frames are taken of a clip.

    Raises:
        ValueError: The question is empty or too long, there is nothing to look at, or it cannot be read.
        TypeError: The question is no text.
    """
    if not isinstance(text, str):
        raise TypeError(f"question must be a text, got a {type(text).__name__}.")
    text = text.strip()
    if not text:
        raise ValueError("question must not be empty; type one or pick one.")
    if len(text) > limits.prompt:
        raise ValueError(f"question must have at most {limits.prompt:,} letters, got {len(text):,}.")
    if picture is None and clip is None:
        raise ValueError("there is nothing to look at; upload a picture or a clip, or pick an example.")
    file = Path(str(clip if picture is None else picture))
    if not file.exists():
        raise ValueError(
            f"{file.name!r} is not here any more: files are deleted after {limits.upload_minutes:g} minutes. "
            "Upload or pick it again."
        )
    try:
        medium = load_video(file, frames=limits.frames) if picture is None else load_image(file)
    except (ValueError, OSError) as error:
        # The visitor knows the file by its name; where the server keeps it is none of his business.
        said = re.sub(r"'[^']*'", repr(file.name), str(error), count=1) if str(file) in str(error) else str(error)
        raise ValueError(said) from None
    except ImportError as error:
        raise ValueError(f"this server reads no clips: {error}") from None
    return Question(text, medium, file.name, _is_shipped(file))


def _is_shipped(file: Path) -> bool:
    try:
        example, _ = shipped_example(file.name)
    except ValueError:
        return False
    return filecmp.cmp(example, file, shallow=False)
