"""What the page is made of, and what it says to what is no use of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from vtprune.demo.server.messages import REFUSED
from vtprune.demo.server.sweeping import swept
from vtprune.demo.server.uploads import NOT_UPLOADED
from vtprune.demo.setting import Limits
from vtprune.demo.work.stops import Stops

_log = logging.getLogger("vtprune.demo")


class Page(gr.Blocks):
    """A page whose visitors leave nothing behind.

    Args:
        limits: How long uploads are kept, among others.
        **options: Those of `gradio.Blocks`.
    """

    def __init__(self, limits: Limits, **options: Any) -> None:
        self.limits = limits
        self.stops = Stops()
        super().__init__(**options)

    async def preprocess_data(self, *args: Any, **options: Any) -> list[Any]:
        """What handlers are given; of what no page and no client sends, gradio's own words would tell too much."""
        try:
            return await super().preprocess_data(*args, **options)
        except gr.Error:
            raise
        except Exception as error:
            _log.info("refused what was sent: %s", error)
            raise gr.Error(NOT_UPLOADED, title=REFUSED, print_exception=False) from None

    @contextlib.asynccontextmanager
    async def served(self, _: Any) -> AsyncIterator[None]:
        """For the time in which the page is served: uploads are deleted, and in the end all work stops."""
        async with swept(Path(get_upload_folder()), 60 * self.limits.upload_minutes, self._kept):
            try:
                yield
            finally:
                self.stops.close()

    def _kept(self) -> set[str]:
        return {file for block in list(self.blocks.values()) for file in block.keep_in_cache}
