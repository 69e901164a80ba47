"""The main job: a question about a picture or a video, answered without and with pruning, and what that saved."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

import vtprune
from vtprune.api import MethodLike
from vtprune.budget import Budget
from vtprune.inputs import make_inputs
from vtprune.models import Loaded
from vtprune.report import Report
from vtprune.videos import Video

TIMED = 5  # timed prefills of each kind, in alternation, after one warm-up


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Answers without and with pruning. Times to first token are medians, in milliseconds."""

    answer: str
    baseline_answer: str
    report: Report
    ttft_ms: float
    baseline_ttft_ms: float

    def to_dict(self) -> dict[str, Any]:
        """The command line's JSON."""
        report = self.report
        return {
            "answer": self.answer,
            "baseline_answer": self.baseline_answer,
            "visual_tokens_before": report.visual_tokens_before,
            "visual_tokens_after": report.visual_tokens_after,
            "prefill_flops_before": report.prefill_flops_before,
            "prefill_flops_after": report.prefill_flops_after,
            "kv_bytes_before": report.kv_bytes_before,
            "kv_bytes_after": report.kv_bytes_after,
            "ttft_ms": self.ttft_ms,
            "baseline_ttft_ms": self.baseline_ttft_ms,
            "kept": [list(picture.kept) for picture in report.pictures],
            "methods": list(report.methods),
            "places": [dataclasses.asdict(place) for place in report.places],
            "notes": [*report.notes, *(f"{p.method}: {p.note}" for p in report.places if p.note)],
        }


def seen_region(
    processor: Any, size: tuple[int, int], *, video: bool = False
) -> tuple[float, float, float, float] | None:
    """Which part of a picture of `size` (width, height) the model sees: (left, top, right, bottom) in its pixels.

    None stands for all of it. LLaVA-1.5's processor scales the shorter side to a fixed length and cuts a square out of
    the middle, and LLaVA-NeXT-Video's does so with the frames of a video.
    """
    images = processor.video_processor if video else processor.image_processor
    wanted, crop = getattr(images, "size", None), getattr(images, "crop_size", None)
    if not (getattr(images, "do_center_crop", False) and crop and getattr(images, "do_resize", False) and wanted):
        return None
    shortest = wanted.get("shortest_edge") if hasattr(wanted, "get") else getattr(wanted, "shortest_edge", None)
    if not shortest:
        return None
    width, height = size
    scale = shortest / min(width, height)
    across, down = crop["width"] / scale, crop["height"] / scale
    left, top = (width - across) / 2, (height - down) / 2
    return left, top, left + across, top + down


def compare(
    loaded: Loaded,
    images: list[Image.Image],
    prompt: str,
    method: MethodLike | Sequence[MethodLike],
    keep: Budget | None = None,
    max_new_tokens: int = 64,
    videos: Sequence[Video] = (),
    **parameters: Any,
) -> Comparison:
    """Answer a prompt about pictures and videos without and with pruning, and measure both.

    The model is left without methods.

    Raises:
        ValueError, TypeError: As `vtprune.apply` and `make_inputs`; before the model runs.
    """
    model = loaded.model
    with vtprune.applied(model, method, keep, **parameters):
        pass  # a bad method or budget is said before the model runs
    inputs = make_inputs(loaded, images, prompt, videos)
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False}
    times: dict[bool, list[float]] = {False: [], True: []}
    with torch.inference_mode():
        baseline = _answer(loaded, inputs, settings)
        with vtprune.applied(model, method, keep, **parameters):
            pruned = _answer(loaded, inputs, settings)
            report = vtprune.report(model)
        if report is None:
            raise ValueError("the prompt reached the model without a picture or a video.")
        for _ in range(TIMED):  # in alternation, so that a drift of the machine's speed meets both
            times[False].append(_first_token_ms(model, inputs))
            with vtprune.applied(model, method, keep, **parameters):
                times[True].append(_first_token_ms(model, inputs))
    return Comparison(pruned, baseline, report, statistics.median(times[True]), statistics.median(times[False]))


def _answer(loaded: Loaded, inputs: Any, settings: dict[str, Any]) -> str:
    generated = loaded.model.generate(**inputs, **settings)[0, inputs["input_ids"].shape[1] :]
    return loaded.processor.decode(generated, skip_special_tokens=True).strip()


def _first_token_ms(model: Any, inputs: Any) -> float:
    _synchronize(model.device)
    start = time.perf_counter()
    model.generate(**inputs, max_new_tokens=1, do_sample=False)
    _synchronize(model.device)
    return 1000 * (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
