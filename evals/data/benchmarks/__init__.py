"""Public benchmarks, in the layouts in which the Hub publishes them. docs/benchmarks-data.md lists them."""

from __future__ import annotations

import difflib
import os

from vtprune.evals.data.benchmarks.base import Benchmark
from vtprune.evals.data.benchmarks.chartqa import CHARTQA
from vtprune.evals.data.benchmarks.docvqa import DOCVQA
from vtprune.evals.data.benchmarks.egoschema import EGOSCHEMA
from vtprune.evals.data.benchmarks.gqa import GQA
from vtprune.evals.data.benchmarks.mlvu import MLVU
from vtprune.evals.data.benchmarks.mmbench import MMBENCH
from vtprune.evals.data.benchmarks.mme import MME
from vtprune.evals.data.benchmarks.mvbench import MVBENCH
from vtprune.evals.data.benchmarks.nextqa import NEXTQA
from vtprune.evals.data.benchmarks.pope import POPE
from vtprune.evals.data.benchmarks.reading import read
from vtprune.evals.data.benchmarks.scienceqa import SCIENCEQA
from vtprune.evals.data.benchmarks.textvqa import TEXTVQA
from vtprune.evals.data.benchmarks.videomme import VIDEOMME
from vtprune.evals.data.benchmarks.vqav2 import VQAV2
from vtprune.evals.data.sample import QuestionSet

_PICTURES = (GQA, VQAV2, TEXTVQA, POPE, MME, MMBENCH, SCIENCEQA, CHARTQA, DOCVQA)
_VIDEOS = (VIDEOMME, MVBENCH, MLVU, NEXTQA, EGOSCHEMA)

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in (*_PICTURES, *_VIDEOS)}
"""All benchmarks by their names."""


def read_benchmark(
    name: str,
    *,
    folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
) -> QuestionSet:
    """The questions of a benchmark; pictures and videos are read when they are looked at.

    A question that cannot be asked is an error, none is left out. The source holds a fingerprint of the names and sizes
    of the files that were needed.

    Args:
        name: One of `BENCHMARKS`.
        folder: Of all benchmarks' files; those of this one are in the folder of its name. None: the folder of the
            environment variable VTPRUNE_DATA, or else ~/.cache/vtprune/data, and if they are not there, the Hub; videos
            are never downloaded.
        limit: How many questions at most: the first ones, in equal parts of every task of MVBench; no more files are
            read (nor downloaded) than these need. None: all.
        frames: Frames of a video, see `vtprune.videos.load_video`.
        fps: Frames per second of a video, see there.

    Raises:
        ValueError: There is no such benchmark; `limit`, `frames` or `fps` is out of range, or there are no videos; the
            files are damaged, in two versions or of another layout, with the row that is; datasets is not installed.
        FileNotFoundError: Tables or videos are not there; the message says how to get them.
        OSError: The Hub does not give them out.
    """
    if name not in BENCHMARKS:
        near = difflib.get_close_matches(str(name).lower(), BENCHMARKS, n=1, cutoff=0.4)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}.{hint}")
    return read(BENCHMARKS[name], folder=folder, limit=limit, frames=frames, fps=fps)


__all__ = ["BENCHMARKS", "Benchmark", "read_benchmark"]
