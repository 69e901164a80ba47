"""docs/benchmarks-data.md: `python -m vtprune.evals.data.benchmarks.page > docs/benchmarks-data.md`."""

from __future__ import annotations

from vtprune.evals.data.benchmarks import BENCHMARKS, Benchmark
from vtprune.evals.data.benchmarks.base import VideoFiles
from vtprune.evals.data.benchmarks.places import DEFAULT_FOLDER, FOLDER_VARIABLE, command

_FEW = 2

_PAGE = """\
# Data of public benchmarks

Made by `python -m vtprune.evals.data.benchmarks.page` from what the readers declare; a test compares the two.

A benchmark's files are looked for in `FOLDER/<name>`, in the layout in which the repository publishes them. FOLDER is
the one asked for, or that of the environment variable {variable}, or {folder}. Failing that, and unless a
folder was asked for, tables come from the Hub: those files that the questions need go to its cache, and where there is
no network, what lies in that cache is used. Tables are read where they lie, neither copied nor converted. What
`datasets.Dataset.save_to_disk` wrote is understood, too, in `FOLDER/<name>`, or `FOLDER/<name>/<configuration>` where a
benchmark has several tables.

Videos are never downloaded (some need 100 GB and more). Unpack the zip files anywhere below `FOLDER/<name>`: a video is
found by the end of its path.

A limit takes the first questions, in equal parts of each table. No question is left out: a row without a picture, video
or answer, a missing column, an incomplete download are errors that say where. Questions are put as LLaVA-type models
are asked; letters before options and the request for one come from the metric. `by` is what results are broken down by.

| name | benchmark | what is asked | questions | metric | by | repository (branch), split | tables |
|---|---|---|---:|---|---|---|---|
{rows}

To download by hand, with the default folder:

```
{commands}
```

Repositories of lmms-lab moved to lmms-lab-encoder (pictures) and lmms-eval (videos) in July 2026. The Hub redirects the
old names, and what its cache holds under them is found.

What to know before comparing figures:

- `gqa`: results by what a question is about (its semantic type). `chartqa`, `scienceqa`: the tables do not tell which
  questions share a picture, so each counts as its own group.
- `vqav2`, `textvqa`: ten people's answers each; those of the test splits are not public. No OCR tokens in the prompt.
- `mme`: "Please answer yes or no." becomes the request for a word or phrase, as in LLaVA and lmms-eval.
- `mmbench`: plain accuracy over all orders of the options, not CircularEval; the orders of a question are one group.
- `mvbench`: from the branch `video`, whose clips are cut to the seconds that a question is about.
- `videomme`: without subtitles. `mlvu`: multiple choice only. `egoschema`: the 500 questions whose answers are public.
"""


def page() -> str:
    """The page's text."""
    return _PAGE.format(
        variable=FOLDER_VARIABLE,
        folder=DEFAULT_FOLDER,
        rows="\n".join(map(_row, BENCHMARKS.values())),
        commands="\n".join(command(each, f"{DEFAULT_FOLDER}/{each.name}") for each in BENCHMARKS.values()),
    )


def _row(benchmark: Benchmark) -> str:
    branch = "" if benchmark.revision == "main" else f" ({benchmark.revision})"
    files = [f"`{pattern}`" for pattern in benchmark.files]
    shown = ", ".join(files) if len(files) <= _FEW else f"{files[0]} and {len(files) - 1} more"
    cells = (
        f"`{benchmark.name}`",
        f"{benchmark.title} ([{benchmark.paper}](https://arxiv.org/abs/{benchmark.paper}))",
        benchmark.about,
        f"{benchmark.questions:,}",
        f"`{benchmark.metric}`",
        benchmark.by,
        f"{benchmark.repository}{branch}, {benchmark.parts[0].split}",
        shown + (", videos" if isinstance(benchmark.media, VideoFiles) else ""),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(page(), end="")
