"""Uploads, and what was made for visitors, are deleted after a while."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path

EVERY = 30.0
"""Seconds between looks at the folder, at most."""


@contextlib.asynccontextmanager
async def swept(folder: Path, seconds: float, kept: Callable[[], Collection[str]]) -> AsyncIterator[None]:
    """Delete old files as long as the `with` block lasts.

    Args:
        folder: Where they are. Gradio knows only some of them: not what updates of fields brought, nor broken uploads.
        seconds: Files are deleted that were not written for so long.
        kept: Files that are not.
    """

    async def repeat() -> None:
        while True:
            await asyncio.sleep(min(EVERY, seconds / 2))
            await asyncio.to_thread(sweep, folder, seconds, kept())

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def sweep(folder: Path, seconds: float, kept: Collection[str]) -> None:
    """Delete files that were not written for a while, and empty folders.

    Args:
        folder: Where they are; it stays itself.
        seconds: How long.
        kept: Files that are not deleted.
    """
    latest = time.time() - seconds
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder comes before it
        with contextlib.suppress(OSError):  # it went meanwhile, or the folder is not empty
            if path.lstat().st_ctime > latest or str(path) in kept:
                continue
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
