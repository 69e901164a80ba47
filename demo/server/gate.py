"""The gate before the server: gradio serves more than the page needs, and some of that fetches addresses."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_READ = re.compile(
    r"/(?:config/?|theme\.css|favicon\.ico|manifest\.json|robots\.txt|(?:static|assets|svelte)/.+"
    r"|gradio_api/(?:info/?|openapi\.json|app_id/?|startup-events|theme\.css|upload_progress|file=(?!\w+:).+"
    r"|queue/(?:data|status)|heartbeat/\w+|call/(?:v2/)?\w+/\w+))?"
)
_WRITE = re.compile(r"/gradio_api/(?:upload|cancel|reset/?|queue/join|(?:run|api)/\w+/?|call/(?:v2/)?\w+/?)")
_WORDS = 2**20
"""Bytes that a request may have that is no upload, and that an upload may have besides its file."""


class Gate:
    """Lets through what the page and programs need, in requests of limited size.

    Args:
        app: What is behind.
        upload_mb: Size of a picture or a clip, in megabytes.
    """

    def __init__(self, app: ASGIApp, upload_mb: int) -> None:
        self.app = app
        self.upload_mb = upload_mb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        refused = self._refuse(Request(scope)) if scope["type"] == "http" else None
        await (refused or self.app)(scope, receive, send)

    def _refuse(self, request: Request) -> PlainTextResponse | None:
        path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        allowed = {"GET": _READ, "HEAD": _READ, "POST": _WRITE}.get(request.method)
        if allowed is None or not allowed.fullmatch(path):
            return PlainTextResponse("Not found.", 404)
        if request.method != "POST":
            return None
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return PlainTextResponse("How long the request is must be said.", 411)
        upload = path == "/gradio_api/upload"
        if int(length) > _WORDS + self.upload_mb * 2**20 * upload:
            said = f"An upload may have at most {self.upload_mb} MB." if upload else "The request is too long."
            return PlainTextResponse(said, 413)
        return None
