"""The folded part of a tab that says how to get its result again, and gives it as a file."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache


class ShareBox:
    """Python, command lines and a download; unseen until there is a result.

    Args:
        name: Of the tab; ids begin with it.
    """

    def __init__(self, name: str) -> None:
        with gr.Accordion("Share this result", open=False, visible=False, elem_id=f"{name}-share") as self.box:
            self.python = gr.Code(language="python", label="Python", interactive=False, lines=3, wrap_lines=True)
            self.command = gr.Code(language="shell", label="Command line", interactive=False, lines=1, wrap_lines=True)
            self.download = gr.DownloadButton("Download the result as JSON")
        self.fields: list[Any] = [self.box, self.python, self.command, self.download]

    def hide(self) -> dict[Any, Any]:
        """Updates while there is no result."""
        return {self.box: gr.update(visible=False)}

    def show(self, python: str, command: str, document: dict[str, Any]) -> dict[Any, Any]:
        """Updates for a result.

        Args:
            python: Lines of Python that give it again.
            command: Command lines that do.
            document: The result, ready for JSON; the file is deleted with the uploads.
        """
        data = json.dumps(document, indent=2).encode()
        file = save_bytes_to_cache(data, "vtprune.json", self.download.GRADIO_CACHE)
        return {
            self.box: gr.update(visible=True),
            self.python: python,
            self.command: command,
            self.download: gr.update(value=file),
        }
