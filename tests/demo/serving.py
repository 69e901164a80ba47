"""The page, served from within a test on a free port."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client

from vtprune.demo.app import build, launch
from vtprune.demo.server.page import Page
from vtprune.demo.setting import Limits, Setting
from vtprune.demo.work.models import Models


@dataclasses.dataclass(frozen=True)
class Served:
    """A page that is being served.

    Args:
        url: Where, with a slash at its end.
        page: The page.
        setting: What it was made from.
        uploads: Folder for what visitors send and are sent.
    """

    url: str
    page: Page
    setting: Setting
    uploads: Path

    @contextlib.contextmanager
    def program(self, files: Path | None = None) -> Iterator[Client]:
        """A program that calls it.

        Args:
            files: Where files that it is sent go; None leaves them where they are.
        """
        folder = str(files) if files else False
        client = Client(self.url, download_files=folder, verbose=False, analytics_enabled=False)
        try:
            yield client
        finally:
            client.close()


@contextlib.contextmanager
def serve(
    models: Models, scratch: Path, limits: Limits | None = None, results: tuple[Path, ...] = ()
) -> Iterator[Served]:
    """Serve the page as `vtprune demo` does; only one may be served at a time.

    Args:
        models: The models.
        scratch: An empty folder.
        limits: How much a visitor may ask for.
        results: Folders of evaluations.
    """
    setting, uploads = Setting(models, scratch, results, limits=limits or Limits()), scratch / "uploads"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")  # for the programs of the tests, too
        page = build(setting)
        _, url, _ = launch(page, setting, server_name="127.0.0.1", prevent_thread_lock=True)
        try:
            yield Served(url, page, setting, uploads)
        finally:
            page.close(verbose=False)
