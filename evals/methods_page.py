"""docs/methods.md, from the registry, the support matrix, measured tables, and docs/methods-notes.toml.

`python -m vtprune.evals.methods_page docs/methods.md docs/results/{methods,turns,overheads,search}-*.json` writes the
page and its plots.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import vtprune
from vtprune.describe import LETTERS, describe_lines
from vtprune.evals.methods_data import Point, Table, read_tables
from vtprune.evals.search_page import is_search, section

NOTES, PLOTS = "methods-notes.toml", "plots"
GLANCE = "0.25"
INTRO = """# Methods

Every method of the package: what it does, what it looks at, what it costs, where it works, and how it fares on the
[tiny models](tiny-models.md). `vtprune methods NAME` says the same without the figures; [support.md](support.md) has
all families; [benchmarks.md](benchmarks.md) explains overheads. This page is written by

```sh
python -m vtprune.evals.methods_page docs/methods.md docs/results/{{methods,turns,overheads,search}}-*.json
```

from the methods' own files, from what was measured, and from [methods-notes.toml](methods-notes.toml).

## How to read it

- **Cost**: multiplications and additions for one picture, leading terms only, sorting left out. Other letters than
  these are explained where they stand:

{letters}

- **Looks at**: what the method asks for, in LLaVA-1.5 (23 of 24 CLIP blocks in use, counted from 0).
- **Tokens**: visual tokens that a layer of the decoder sees on average, as a share of all, as counted. Methods whose
  numbers follow from the content meet `keep` only roughly, and methods between decoder layers show all tokens to the
  first ones. **FLOPs**: of the prefill with the encoder, as a share of the unpruned model's. **Cache**: bytes of all
  keys and values, those of text among them, after the prefill, likewise.
- **Right**: answers that are right as a whole, in percent. **Random**: how much more that is than with `random` at the
  same `keep`, on the mean over its seeds; set in bold where it is less by more than two standard errors.
- **Next turn**: second questions about the same picture that are answered rightly on the cache which the first left
  behind. Unpruned: {turns}.
- **Speedup** and **overhead** of the time to first token: untouched / method and method / ideal, where the ideal is the
  bare model that is given just the tokens which the method keeps; `~` where the run does not tell the ratio from 1.
  On models as small as these most of that time is Python's.

What a method costs a model of five million parameters says something about the method and about the code, and little
about the accuracy of large models on photographs.
"""


def main(arguments: Sequence[str]) -> None:
    """Write the page and its plots.

    Args:
        arguments: The page, then documents of `vtprune.evals.table`, `vtprune.evals.overheads` and `vtprune search`.
    """
    from vtprune.evals.methods_plots import draw_group

    page, *documents = map(Path, arguments)
    notes = read_notes(page.with_name(NOTES))
    read = [json.loads(path.read_text(encoding="utf-8")) for path in documents]
    tables = read_tables([x for x in read if not is_search(x)], notes["models"])
    page.write_text(text(notes, tables, [x for x in read if is_search(x)]), encoding="utf-8")
    for group in notes["groups"]:
        if views := group.get("views", ["tokens"]):
            draw_group(group["methods"], tables, page.parent / plot(group), views=views)


def read_notes(path: Path) -> dict[str, Any]:
    """What people wrote.

    Raises:
        ValueError: A method is in no group or in several, or a note is about none.
    """
    notes = tomllib.loads(path.read_text(encoding="utf-8"))
    grouped = sorted(name for group in notes["groups"] for name in group["methods"])
    known = [method["name"] for method in vtprune.methods()]
    if grouped != known:
        wrong = sorted({*known} ^ {*grouped}) or sorted({x for x in grouped if grouped.count(x) > 1})
        raise ValueError(f"{path.name} must have every method in one of its groups, which {wrong} are not.")
    if unknown := sorted({*notes["notes"]} - {*known}):
        raise ValueError(f"{path.name} has notes on {unknown}, which are no methods.")
    return notes


def plot(group: dict[str, Any]) -> str:
    """The plot of a group, seen from the page."""
    return f"{PLOTS}/methods-{re.sub('[^a-z]+', '-', group['title'].lower())}.png"


def text(notes: dict[str, Any], tables: Sequence[Table], searches: Sequence[dict[str, Any]] = ()) -> str:
    """The whole page."""
    about = {method["name"]: method for method in vtprune.methods()}
    letters = "\n".join(["  | | |", "  |---|---|", *(f"  | {letter} | {said} |" for letter, said in LETTERS.items())])
    turns = ", ".join(f"{100 * x.turn:.1f} ({x.name})" for x in tables if x.turns) or "none"
    lines = [INTRO.format(letters=letters, turns=turns), *_glance(notes, about, tables), *_measured(tables)]
    lines += section(searches, notes.get("models", []))
    lines += ["## What was learnt", "", *(_wrapped(f"- {said}") for said in notes["learnt"]), ""]
    for group in notes["groups"]:
        lines += [f"## {group['title']}", "", _wrapped(group["about"]), ""]
        lines += [f"![{group['title']}]({plot(group)})", ""] if group.get("views", ["tokens"]) else []
        for name in group["methods"]:
            lines += [*_method(about[name], tables), *_note(notes["notes"].get(name))]
    return "\n".join(lines)


def _glance(notes: dict[str, Any], about: dict[str, Any], tables: Sequence[Table]) -> Iterator[str]:
    """All methods at one budget."""
    yield "## At a glance"
    yield ""
    yield f"Right answers in percent with keep={GLANCE}, or without a budget where a method takes none; in brackets the"
    yield "share of tokens that the decoder sees, in percent."
    yield ""
    yield "| method | kind | place | " + " | ".join(table.name for table in tables) + " |"
    yield "|---|---|---|" + "---:|" * len(tables)
    yield "| unpruned | | | " + " | ".join(f"{100 * table.unpruned:.1f} (100)" for table in tables) + " |"
    for group in notes["groups"]:
        for name in group["methods"]:
            cells = []
            for table in tables:
                fitting = (x for x in table.points.get(name, []) if x.keep in (GLANCE, None) and not x.parameters)
                point = next(fitting, None)
                cells.append("-" if point is None else f"{100 * point.right:.1f} ({100 * point.tokens:.0f})")
            one = about[name]
            yield f"| [{name}](#{name}) | {one['kind']} | {', '.join(one['places'])} | {' | '.join(cells)} |"
    yield ""


def _measured(tables: Sequence[Table]) -> Iterator[str]:
    """How the figures were made."""
    command = "python -m vtprune.evals.{} --model tiny-llava {} --out docs/results/{}-tiny-llava.json"
    s = tables[0].settings
    yield "How the figures were made, with questions as in [tiny-models.md](tiny-models.md); likewise for the other"
    yield "models, and with `--clips`:"
    yield ""
    yield "```sh"
    asked = f"--limit {s['limit']} --dtype {s['dtype']} --batch-size {s['batch_size']}"
    yield command.format("table", asked, "methods")
    if any(table.timed for table in tables):
        repeats = next(table.timed["repeats"] for table in tables if table.timed)
        yield command.format("overheads", f"--repeats {repeats}", "overheads")
    yield "```"
    yield ""
    yield "Further seeds and rows with parameters are asked for by name (`--methods random:seed=1 mustdrop:window=3`)."
    yield ""
    for table in tables:
        if table.turns:
            yield f"- {table.name}, next turn: {table.turns['limit']} pairs of questions, likewise (`--turns`)."
        s = table.settings
        versions = ", ".join(f"{name} {s[name]}" for name in ("torch", "transformers"))
        yield f"- {table.name}: {s['limit']} questions in {s['dtype']}, batches of {s['batch_size']}, {versions}."
        if table.seeds > 1:
            yield f"  `random` is the mean over {table.seeds} seeds."
        if table.timed:
            t = table.timed
            yield f"  Times: {t['dtype']}, one prompt of {t['prompt_slots']} slots, medians of {t['repeats']} rounds;"
            yield f"  {t['machine']}."
    yield ""
    yield "The standard error of a figure is one to two points, and up to three where half of the answers are wrong."
    yield ""


def _method(method: dict[str, Any], tables: Sequence[Table]) -> Iterator[str]:
    yield f"### {method['name']}"
    yield ""
    yield _wrapped(method["does"])
    yield ""
    for name, said in describe_lines(method):
        said = _linked(f"`{said}`" if name == "cost" else said)
        yield _wrapped(f"- **{name[0].upper()}{name[1:]}**: {said}.")
    yield ""
    yield "| parameter | default | |"
    yield "|---|---|---|"
    for name, default in method["parameters"].items():
        said = method["about_parameters"].get(name, "").replace("|", "\\|")
        yield f"| `{name}` | `{default!r}` | {said} |"
    yield ""
    yield from _figures(method, tables)


def _figures(method: dict[str, Any], tables: Sequence[Table]) -> Iterator[str]:
    rows = [(table, point) for table in tables for point in table.points.get(method["name"], [])]
    timed, cached = any(point.ttft for _, point in rows), any(point.cache is not None for _, point in rows)
    asked = any(point.turn is not None for _, point in rows)
    if rows:
        names = ["tokens, %", "FLOPs, %", *["cache, %"] * cached, "right, %", "random"]
        names += ["next turn, %"] * asked + ["speedup", "overhead"] * timed
        yield f"| model | keep | {' | '.join(names)} |"
        yield "|---|" + "---:|" * (len(names) + 1)
        for table, point in rows:
            cells = [
                table.name,
                point.label,
                *("-" if x is None else f"{100 * x:.0f}" for x in (point.tokens, point.flops, *[point.cache] * cached)),
                f"{100 * point.right:.1f}",
                _against(point, table.random(point.keep)),
                *["-" if point.turn is None else f"{100 * point.turn:.1f}"] * asked,
                *([_ratio(point, "speedup"), _ratio(point, "overhead")] if timed else ()),
            ]
            yield f"| {' | '.join(cells)} |"
        yield ""
    reasons: dict[str, list[str]] = {}
    for table in tables:
        for keep, reason in table.refused.get(method["name"], {}).items():
            everything = method["name"] not in table.points
            where = table.name if everything or not keep else f"{table.name} at {keep}"
            reasons.setdefault(reason, [])
            if where not in reasons[reason]:
                reasons[reason].append(where)
    for reason, places in reasons.items():
        yield _wrapped(f"Refused on {', '.join(places)}: {reason}")
        yield ""


def _against(point: Point, random: Point | None) -> str:
    if random is None or random is point:
        return ""
    more = point.right - random.right
    shown = f"{100 * more:+.1f}"
    return f"**{shown}**" if more < -2 * math.hypot(point.error, random.error) else shown


def _ratio(point: Point, name: str) -> str:
    if point.ttft is None or point.ttft[name] is None:
        return "-"
    return f"{point.ttft[name]:.2f}{'' if point.ttft[f'{name}_significant'] else ' ~'}"


def _linked(said: str) -> str:
    said = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", said)
    return re.sub(r"(?<![\w/])(github\.com/[\w./-]*[\w-])", r"[\1](https://\1)", said)


def _note(said: str | None) -> Iterator[str]:
    if said:
        yield _wrapped(f"**What was learnt.** {said}")
        yield ""


def _wrapped(said: str) -> str:
    indent = "  " if said.startswith("- ") else ""
    return textwrap.fill(
        " ".join(said.split()), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    main(sys.argv[1:])
