"""`vtprune demo`: speed and quality in a browser."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from vtprune.cli.common import Attention, Device, Dtype, TrustRemoteCode, app, check_extras, fail, input_errors


@app.command()
def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A shipped model, a folder, a Hub id or random:NAME; may repeat. Default: all shipped models.",
        ),
    ] = None,
    results: Annotated[
        list[Path] | None,
        typer.Option("--results", help="Folder of a finished evaluation, or one that holds several; may repeat."),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to serve on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    share: Annotated[bool, typer.Option("--share", help="Also make a public link, through gradio's servers.")] = False,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    upload_mb: Annotated[int, typer.Option("--upload-mb", min=1, help="Largest upload, in megabytes.")] = 64,
    at_once: Annotated[
        int,
        typer.Option("--at-once", min=1, help="Requests that are worked on at once; others wait in a queue."),
    ] = 4,
    device: Device = "auto",
    device_map: Annotated[
        str | None, typer.Option("--device-map", help="auto spreads models over all GPUs of a machine.")
    ] = None,
    dtype: Dtype = "auto",
    attention: Attention = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Ask, compare, explore and evaluate in a browser, with the shipped models or your own.

    The page reads uploads and shipped examples only, and deletes uploads after half an hour. Models are those given
    here, and no others. One request at a time computes, so that its times are its own.
    """
    check_extras()
    _check_address(host, port)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with _ended_by_signals(), tempfile.TemporaryDirectory(prefix="vtprune-demo-") as scratch:
        # Gradio reads these when it is imported.
        os.environ["GRADIO_TEMP_DIR"] = str(Path(scratch) / "uploads")
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            fail(f"the demo needs {error.name}, which is not installed: pip install 'vtprune[demo]'.")
        from vtprune.demo.app import build, launch
        from vtprune.demo.setting import Limits, Setting
        from vtprune.demo.work.models import Models
        from vtprune.models import load_model, shipped_models

        given: dict[str, Any] = {
            "device": device,
            "device_map": device_map,
            "dtype": dtype,
            "attention": attention,
            "trust_remote_code": trust_remote_code,
        }
        plain = inspect.signature(load_model).parameters
        loading = {name: value for name, value in given.items() if value != plain[name].default}
        with input_errors():
            for folder in results or []:
                if not folder.is_dir():
                    raise ValueError(f"--results {str(folder)!r} is no folder.")
            loaded = [load_model(name, **loading) for name in model or _shipped(shipped_models())]
            setting = Setting(
                Models(loaded),
                Path(scratch),
                tuple(results or ()),
                loading,
                Limits(upload_mb=upload_mb, at_once=at_once),
            )
            page = build(setting)
        _, local, public = launch(
            page,
            setting,
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=browser,
            prevent_thread_lock=True,
        )
        console = Console(highlight=False)
        console.print(f"vtprune demo: {public or local} (Ctrl-C ends it)", markup=False, soft_wrap=True)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)


def _shipped(names: list[str]) -> list[str]:
    """Shipped models, first the one that is the default elsewhere."""
    return sorted(names, key=lambda name: name != "tiny-llava")


def _check_address(host: str, port: int | None) -> None:
    """Say so before models are loaded if nothing can be served there."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        where = f"--host {host!r}" if port is None else f"--host {host!r}, --port {port}"
        fail(f"nothing can be served on {where}: {error.strerror or error}.")


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Containers end programs by a signal, too; what was uploaded must not stay behind."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
