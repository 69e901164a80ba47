"""The tokens that were kept, drawn over what was asked about."""

from __future__ import annotations

import base64
import io

from PIL import Image

from vtprune.demo.work.media import Question
from vtprune.models import Loaded
from vtprune.overlay import caption_lines, draw_overlays
from vtprune.painting import SHORTEST
from vtprune.report import Report


def draw_kept(loaded: Loaded, question: Question, report: Report, caption: str | None) -> Image.Image:
    """Draw them: on the grid of the picture, of its tiles, or of each frame.

    Args:
        loaded: Model and processor.
        question: What was asked.
        report: What was saved.
        caption: What stands below, before the counts; None for nothing at all.
    """
    return draw_overlays([question.medium], report.pictures, caption, [question.region(loaded)])


def tell_kept(report: Report) -> str:
    """What the overlays show, as HTML: letters within pictures shrink with them."""
    return "".join(f'<p class="legend">{"; ".join(caption_lines(picture))}.</p>' for picture in report.pictures)


def draw_untouched(question: Question) -> Image.Image:
    """What was asked about, as large as an overlay; of a clip the frame in its middle."""
    medium = question.medium
    picture = medium if isinstance(medium, Image.Image) else Image.fromarray(medium.frames[len(medium.frames) // 2])
    scale = SHORTEST / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS)


def as_jpeg(picture: Image.Image) -> bytes:
    """A picture as a file that is made a hundred times faster than a PNG, and looks the same."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=92, subsampling=0)
    return file.getvalue()


def as_data(picture: Image.Image) -> str:
    """A picture as what an `<img>` may have for its source."""
    return f"data:image/jpeg;base64,{base64.b64encode(as_jpeg(picture)).decode()}"
