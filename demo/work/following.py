"""Work followed from an event loop: who stops listening stops the work at once, and not at its next step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Step = TypeVar("Step")

_END: Any = object()


async def follow(work: Generator[Step, None, None], stop: threading.Event) -> AsyncIterator[Step]:
    """Go through a generator that computes, on a thread of its own.

    Args:
        work: Ends soon after `stop` is set.
        stop: Set in the end, above all when nobody listens any more.

    Yields:
        What the generator does. It has ended when this has.
    """
    loop, thread = asyncio.get_running_loop(), ThreadPoolExecutor(1, thread_name_prefix="vtprune-work")
    try:
        while (step := await loop.run_in_executor(thread, next, work, _END)) is not _END:
            yield step
    finally:
        stop.set()
        await loop.run_in_executor(thread, work.close)  # behind the step that was on its way
        thread.shutdown(wait=False)
