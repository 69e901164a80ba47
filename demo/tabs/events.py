"""How handlers of the page are wired."""

from __future__ import annotations

from typing import Any

QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Not for programs, which have endpoints of their own; and without gradio's veil over what is about to change."""

AT_ONCE: dict[str, Any] = {**QUIET, "queue": False}
"""For what must not wait in the queue. Errors of such handlers are not shown in the page, so they must not refuse."""
