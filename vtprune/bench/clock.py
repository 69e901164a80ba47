"""When each phase of a request begins and ends: device events on a GPU, the clock of the host on a CPU."""

from __future__ import annotations

import functools
import gc
import time
from typing import Any

import torch

from vtprune.bench.generate import Requested, generate
from vtprune.bench.hooks import Hooks
from vtprune.integrations import Integration, integrate

PHASES = ("ttft", "encoder", "tower", "projector", "prefill", "decode")
"""Time to first token, and what it is made of: the encoder's call with tower and projector, the language model's call;
then a step of decoding."""


class Clock:
    """Marks points in time, and says how many milliseconds lie between two of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.events = device.type == "cuda"

    def mark(self) -> Any:
        """A point in time, on a GPU in the queue of its work."""
        if not self.events:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def finish(self) -> None:
        """Wait until all work is done."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def milliseconds(self, start: Any, stop: Any) -> float:
        """Time between two marks; call `finish` first."""
        return start.elapsed_time(stop) if self.events else 1000 * (stop - start)


class Phases(Hooks):
    """Notes when the parts of a model run. Put on last and taken off first, it is outside of all other hooks."""

    def __init__(self, model: Any, mark: Any) -> None:
        super().__init__()
        self.mark = mark
        self.spans: dict[str, list[tuple[Any, Any]]] = {name: [] for name in PHASES}
        self.begun: dict[str, Any] = {}
        self.steps: list[Any] = []  # when each call of the model began, the prefill's first
        integration: Integration = integrate(model)
        self.before(integration.model, self._step, first=True)
        for kind in integration.modalities:
            self.replace(integration.multimodal, f"get_{kind}_features", self._encoder)
        self._span("tower", integration.tower)
        for projector in integration.projectors:
            self._span("projector", projector)
        self._span("prefill", integration.language_model)

    def _span(self, name: str, module: Any) -> None:
        def enter(module: Any, args: Any, kwargs: Any) -> None:
            if name != "prefill" or len(self.steps) == 1:
                self.begun[name] = self.mark()

        def leave(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            if name in self.begun:
                self.spans[name].append((self.begun.pop(name), self.mark()))

        self.before(module, enter, first=True)
        self.after(module, leave)

    def _encoder(self, original: Any) -> Any:
        @functools.wraps(original)  # generate reads its signature
        def encode(*args: Any, **kwargs: Any) -> Any:
            if "encoder" in self.begun:  # videos that are encoded by the method for pictures
                return original(*args, **kwargs)
            self.begun["encoder"] = self.mark()
            output = original(*args, **kwargs)
            self.spans["encoder"].append((self.begun.pop("encoder"), self.mark()))
            return output

        return encode

    def _step(self, module: Any, args: Any, kwargs: Any) -> None:
        self.steps.append(self.mark())


def time_request(model: Any, request: Requested) -> dict[str, float]:
    """Milliseconds of each phase of a request as the model stands, with or without hooks.

    The first token is there when `generate` has chosen it and turns to the next one, or returns. "decode" is the mean
    over all further tokens.
    """
    clock = Clock(model.device)
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with Phases(model, clock.mark) as phases:
            clock.finish()
            start = clock.mark()
            generate(model, request)
            stop = clock.mark()
            clock.finish()
    finally:
        if enabled:
            gc.enable()
    times = {name: sum(clock.milliseconds(*span) for span in spans) for name, spans in phases.spans.items() if spans}
    further = phases.steps[1:]
    times["ttft"] = clock.milliseconds(start, further[0] if further else stop)
    if further:
        times["decode"] = clock.milliseconds(further[0], stop) / len(further)
    return times
