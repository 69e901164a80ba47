"""Arguments of what programs may call, as fields of the page that nobody sees."""

from __future__ import annotations

from typing import Any, Literal

import gradio as gr
from gradio.data_classes import JsonData

Kind = Literal["string", "number", "integer", "array"]


class Argument(gr.JSON):
    """An argument that is handed on as it was given: what checks it knows best what to say of it.

    Args:
        name: What it is called.
        value: If none is given.
        kind: Type in JSON; an array is one of texts.
        about: What it means.
    """

    def __init__(self, name: str, value: Any, kind: Kind, about: str) -> None:
        self.default, self.kind, self.about = value, kind, about
        super().__init__(value, label=name)

    def get_block_name(self) -> str:
        """The name of the parts of the page that show it."""
        return "json"

    def postprocess(self, value: Any) -> JsonData:
        """The value as it is, texts too."""
        return JsonData(value)

    def api_info(self) -> dict[str, Any]:
        """Its type and meaning, for the page about the API."""
        items = {"items": {"type": "string"}} if self.kind == "array" else {}
        return {"type": self.kind, **items, "additional_description": self.about}

    def example_payload(self) -> Any:
        """What may be given."""
        return self.default
