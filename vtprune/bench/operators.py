"""Times operators beside their reference and the floor of the device."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from vtprune.bench.cases import Case, Scene
from vtprune.bench.clock import Clock
from vtprune.bench.stats import Spread

LEAST_MS = 2.0  # a sample is at least so long: short calls are repeated within it


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What the device reaches in this run: a copy of a large tensor, and a matrix product in the cases' precision.

    Measured and not taken from a data sheet, so that other work on the machine, power limits and the precision count.
    """

    bytes_per_second: float
    flops_per_second: float

    def floor_ms(self, case: Case) -> float:
        """The least time for a case: that of its bytes or of its FLOPs, whichever is longer."""
        return 1000 * max(case.work.bytes / self.bytes_per_second, case.work.flops / self.flops_per_second)

    def bound(self, case: Case) -> str:
        """Which of the two it is."""
        by_bytes = case.work.bytes / self.bytes_per_second
        return "bandwidth" if by_bytes >= case.work.flops / self.flops_per_second else "arithmetic"


@dataclasses.dataclass(frozen=True)
class Timed:
    """One case: the times of its versions in milliseconds, or why a version got none."""

    case: Case
    times: dict[str, Spread]
    refused: dict[str, str]
    floor_ms: float
    bound: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "operator": self.case.operator,
            "shape": self.case.shape,
            "milliseconds": {name: spread.to_dict() for name, spread in self.times.items()},
            "refused": self.refused,
            "floor_ms": self.floor_ms,
            "bound": self.bound,
            "bytes": self.case.work.bytes,
            "flops": self.case.work.flops,
        }


def measure_peaks(scene: Scene) -> Peaks:
    """Bandwidth and arithmetic of the device, the best of several tries."""
    size, side = (1 << 26, 1024) if scene.small else (1 << 30, 8192)
    source = torch.empty(size, dtype=torch.uint8, device=scene.device)
    target = torch.empty_like(source)
    a, b = scene.random(side, side), scene.random(side, side, seed=1)
    copy = _sample(lambda: target.copy_(source), scene.device)
    product = _sample(lambda: a @ b, scene.device)
    copy_ms = min(copy() for _ in range(5))
    product_ms = min(product() for _ in range(5))
    return Peaks(1000 * 2 * size / copy_ms, 1000 * 2 * side**3 / product_ms)


def time_cases(cases: Iterable[Case], scene: Scene, peaks: Peaks, repeats: int = 10) -> Iterator[Timed]:
    """Compare and time the versions of each case, in alternation. A version that disagrees gets no time."""
    for case in cases:
        refused = disagreements(case)
        calls = {name: call for name, call in case.versions.items() if name not in refused} | case.beside
        samples = {name: _sample(call, scene.device) for name, call in calls.items()}
        found: dict[str, list[float]] = {name: [] for name in samples}
        for number in range(repeats):
            names = list(samples)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                found[name].append(samples[name]())
        times = {name: Spread.of(values) for name, values in found.items()}
        yield Timed(case, times, refused, peaks.floor_ms(case), peaks.bound(case))


def disagreements(case: Case) -> dict[str, str]:
    """Which versions differ from the reference, and how."""
    wanted = case.versions["reference"]()
    refused = {}
    for name, call in case.versions.items():
        said = None if name == "reference" else case.differs(call(), wanted)
        if said is not None:
            refused[name] = said
    return refused


def _sample(call: Callable[[], Any], device: torch.device) -> Callable[[], float]:
    """A function that times one call in milliseconds: the mean over as many as make a sample long enough.

    Inputs stay where the last call left them, in the caches if they fit: as behind the layer that made them.
    """
    clock = Clock(device)

    def run(times: int) -> float:
        clock.finish()
        start = clock.mark()
        for _ in range(times):
            call()
        stop = clock.mark()
        clock.finish()
        return clock.milliseconds(start, stop) / times

    run(1)
    begun = time.perf_counter()
    run(1)
    times = max(1, min(1000, round(LEAST_MS / max(1000 * (time.perf_counter() - begun), 1e-3))))
    return lambda: run(times)
