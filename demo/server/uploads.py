"""Fields for a picture and for a clip, which hand on the file as it was uploaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder
from gradio_client.utils import is_http_url_like

from vtprune.demo.server.messages import REFUSED

NOT_UPLOADED = "What was sent does not suit the fields. Pictures and clips have to be uploaded first."
NOT_FETCHED = "Give a file, not an address: this server fetches nothing."


class _Uploaded:
    """Takes uploads only, and leaves reading them to us: gradio would open them first, and fail on its own terms."""

    def preprocess(self, payload: Any) -> str | None:
        if payload is None:
            return None
        # Gradio looks only at those paths that are marked as files, and does not insist on the mark.
        folder = Path(get_upload_folder()).resolve()
        if not payload.path or not Path(payload.path).resolve().is_relative_to(folder):
            raise gr.Error(NOT_UPLOADED, title=REFUSED, print_exception=False)
        return payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        if url_or_file_path is not None and is_http_url_like(str(url_or_file_path)):
            raise gr.Error(NOT_FETCHED, title=REFUSED, print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)  # type: ignore[misc]

    def _example(self, name: str) -> dict[str, Any]:
        """For the page about the API."""
        return {"path": name, "orig_name": name, "url": name, "meta": {"_type": "gradio.FileData"}}


class Picture(_Uploaded, gr.Image):
    """A picture: uploaded, pasted or taken."""

    def get_block_name(self) -> str:
        """The name of the parts of the page that show it."""
        return "image"

    def example_payload(self) -> dict[str, Any]:
        """What may be given."""
        return self._example("picture.png")


class Clip(_Uploaded, gr.Video):
    """A clip: uploaded or taken."""

    def get_block_name(self) -> str:
        """The name of the parts of the page that show it."""
        return "video"

    def example_payload(self) -> dict[str, Any]:
        """What may be given."""
        return self._example("clip.mp4")
