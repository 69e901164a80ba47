"""Overlays of the questions whose answer pruning changed."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
from collections import Counter
from pathlib import Path
from typing import Any

from vtprune.evals.runner.asking import Outcome
from vtprune.evals.runner.records import Record
from vtprune.inputs import Ask, in_prompt_order
from vtprune.overlay import draw_overlays
from vtprune.run import seen_region
from vtprune.videos import Video

logger = logging.getLogger(__name__)

QUALITY = 85


class Pictures:
    """Draws overlays, so many per configuration.

    Each of several processes draws as many, of its own first questions: the first ones of all are among them.

    Args:
        folder: Where they are written; made when there is one.
        processor: The model's.
        most: Per configuration; 0 for none.
    """

    def __init__(self, folder: Path, processor: Any, most: int) -> None:
        self.folder, self.processor, self.most = folder, processor, most
        self._drawn: Counter[str] = Counter()

    def draw(self, record: Record, ask: Ask, outcome: Outcome) -> Record:
        """The record, with the file of its overlay where the answer is not the unpruned model's."""
        if record.agrees is not False or outcome.report is None or self._drawn[record.configuration] >= self.most:
            return record
        self._drawn[record.configuration] += 1
        shown = in_prompt_order(self.processor, ask.prompt, ask.images, ask.videos)
        regions = [seen_region(self.processor, one.size, video=isinstance(one, Video)) for one in shown]
        own = [picture for picture in outcome.report.pictures if picture.row == outcome.row]
        try:
            sheet = draw_overlays(shown, own, record.configuration, regions)
        except ValueError as error:  # the answer counts all the same
            logger.warning("no overlay of question %s under %s: %s", record.id, record.configuration, error)
            return record
        name = f"{_plain(record.configuration)}-{record.index}.jpg"
        self.folder.mkdir(parents=True, exist_ok=True)
        sheet.save(self.folder / name, quality=QUALITY)
        return dataclasses.replace(record, picture=name)


def _plain(name: str) -> str:
    """A name that every file system takes, and that no other name has."""
    plain = re.sub(r"[^\w.@=-]+", "_", name)
    return (
        plain if plain == name and len(name) < 60 else f"{plain[:50]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    )
