"""`vtprune run`: a question about a picture or a video, answered without and with pruning."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vtprune.cli.common import (
    AsJson,
    Attention,
    Device,
    Dtype,
    TrustRemoteCode,
    app,
    check_writable,
    fail,
    input_errors,
    parse_keep,
    parse_settings,
    quietly,
)
from vtprune.report import Report


@app.command()
def run(
    image: Annotated[
        list[Path] | None,
        typer.Option(
            "--image",
            "-i",
            help="Picture; repeat for several. Default: a shipped example; example:scene-2.png is another one.",
        ),
    ] = None,
    video: Annotated[
        list[Path] | None,
        typer.Option(
            "--video", help="Video clip, for families that take videos; may repeat. example:clip-1.mp4 is shipped."
        ),
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            "--frames", help="Frames of each clip, evenly spaced. Default: 32, or as --fps says; at most all."
        ),
    ] = None,
    fps: Annotated[
        float | None, typer.Option("--fps", help="Frames per second of each clip; with --frames, at most that many.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="Question about picture or clip. Default: the example's.")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="A shipped model, a folder, or a Hub id (owner/name).")
    ] = "tiny-llava",
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="Method, name or name:param=value,...; to chain, repeat it or join them: tome+fastv:layer=2. "
            "Default: divprune.",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            "--keep", "-k", help="Budget: 0.25 keeps a quarter, 64 keeps 64 tokens per picture or clip. Default: 0.25."
        ),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Parameter of the single method, name=value; may repeat.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", min=1, help="Length of the answer, in tokens.")
    ] = 64,
    overlay: Annotated[
        Path | None,
        typer.Option(
            "--overlay",
            "-o",
            help="Write a picture of the kept tokens to this PNG file; of a chain, also of what every place left.",
        ),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    attention: Attention = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Answer a question about a picture or a video without and with pruning, side by side.

    Time to first token: median over five calls of generate with max_new_tokens=1, without and with the methods in
    alternation, after a warm-up and with the device synchronised. It covers the vision encoder and the prefill, not
    reading and preparing the picture or video.
    """
    budget, parameters = parse_keep(keep), parse_settings(setting or [])
    if video is None and (frames is not None or fps is not None):
        fail("--frames and --fps are about --video, which is missing.")
    methods = method or ["divprune"]
    if method is None and keep is None and "keep" not in parameters:
        budget = 0.25
    if overlay is not None:
        check_writable(overlay, "--overlay", ".png")
    from vtprune.images import load_image
    from vtprune.models import example_file, load_model, shipped_example
    from vtprune.videos import Video, load_video

    with input_errors():
        if not image and not video:
            path, question = shipped_example()
            image, prompt = [path], prompt or question
        if prompt is None:
            raise ValueError("--prompt is missing: what is to be asked about the picture or video?")
        images = [load_image(example_file(path)) for path in image or []]
        try:
            videos = [load_video(example_file(path), frames=frames, fps=fps) for path in video or []]
        except ImportError as error:
            fail(str(error))
        from vtprune.api import build_chain

        chain = build_chain(methods if len(methods) > 1 else methods[0], budget, parameters)
        with quietly(as_json):
            loaded = load_model(
                model, device=device, dtype=dtype, attention=attention, trust_remote_code=trust_remote_code
            )
        import vtprune
        from vtprune.run import compare, make_inputs

        with vtprune.applied(loaded.model, chain):
            pass
        make_inputs(loaded, images, prompt, videos)
    # From here on an error is a fault of ours, and keeps its traceback.
    with quietly(as_json):
        result = compare(loaded, images, prompt, chain, max_new_tokens=max_new_tokens, videos=videos)
    if overlay is not None:
        from vtprune.inputs import in_prompt_order
        from vtprune.overlay import draw_report
        from vtprune.run import seen_region

        shown = in_prompt_order(loaded.processor, prompt, images, videos)
        regions = [seen_region(loaded.processor, one.size, video=isinstance(one, Video)) for one in shown]
        sheet = draw_report(shown, result.report, regions)
        try:
            overlay.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(overlay, format="PNG")
        except OSError as error:
            fail(f"--overlay {str(overlay)!r} cannot be written: {error.strerror or error}.")
    if as_json:
        document = {**result.to_dict(), "model": model}
        if videos:
            document["videos"] = [
                {"file": str(path), **clip.to_dict()} for path, clip in zip(video or [], videos, strict=True)
            ]
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
        return
    console = Console(highlight=False)
    console.print(f"question: {prompt}", markup=False)
    for path, clip in zip(video or [], videos, strict=True):
        frames_taken = f"{len(clip.frames)} of {clip.total_frames} frames"
        console.print(f"video: {path.name}, {frames_taken}, {clip.duration:.1f} s", markup=False, soft_wrap=True)
    console.print(_comparison_table(result))
    console.print(_places_table(result.report))
    for note in result.to_dict()["notes"]:
        console.print(f"note: {note}", markup=False)
    if overlay is not None:
        console.print(f"kept tokens drawn in {overlay}", markup=False, soft_wrap=True)


def _comparison_table(result: Any) -> Table:
    report = result.report
    table = Table(title=f"without and with {' + '.join(report.methods)}", title_justify="left")
    table.add_column("")
    for head in ("unpruned", "pruned", "pruned / unpruned"):
        table.add_column(head, justify="right")
    table.add_row("answer", result.baseline_answer, result.answer, "")
    rows = [
        ("visual tokens", report.visual_tokens_before, report.visual_tokens_after, "{:,}"),
        ("prefill FLOPs", report.prefill_flops_before / 1e9, report.prefill_flops_after / 1e9, "{:,.3f} G"),
        ("KV cache", (report.kv_bytes_before or 0) / 1024, (report.kv_bytes_after or 0) / 1024, "{:,.0f} KiB"),
        ("time to first token", result.baseline_ttft_ms, result.ttft_ms, "{:,.1f} ms"),
    ]
    for name, before, after, form in rows:
        share = f"{after / before:.0%}" if before else ""
        table.add_row(name, form.format(before), form.format(after), share)
    return table


def _places_table(report: Report) -> Table:
    """What each method saves where, beyond those before it, as shares of what the untouched model needs."""
    table = Table(title="where it is saved", title_justify="left")
    table.add_column("place", no_wrap=True)
    table.add_column("method")
    for head in ("visual tokens", "prefill FLOPs", "KV cache"):
        table.add_column(head, justify="right")
    for where, place in report.summary():
        saved = (place.flops_saved, report.prefill_flops_before), (place.kv_bytes_saved, report.kv_bytes_before)
        shares = [f"{-x / whole:+.1%}" if x and whole else "" for x, whole in saved]
        table.add_row(where, place.method, f"{place.tokens_before:,} -> {place.tokens_after:,}", *shares)
    return table
