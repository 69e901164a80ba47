"""Several methods side by side: a card for each, with the tokens that it keeps and its answer."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from PIL import Image

from vtprune.demo.drawn.drawing import as_data
from vtprune.demo.work.comparing import Entry


def draw_cards(entries: Sequence[Entry], overlays: Sequence[Image.Image | None]) -> str:
    """A grid of cards, as HTML.

    Args:
        entries: The untouched model first.
        overlays: What each keeps; None where there is nothing to be shown.
    """
    baseline = entries[0].ttft_ms
    cards = "".join(_card(one, drawn, baseline) for one, drawn in zip(entries, overlays, strict=True))
    return f'<div class="cards">{cards}</div>'


def _card(entry: Entry, overlay: Image.Image | None, baseline: float | None) -> str:
    head = f"<h3>{escape(entry.label)}</h3>"
    if entry.error:
        return f'<article class="card">{head}<p class="refused">{escape(entry.error)}</p></article>'
    alt = f"the tokens that {entry.label} keeps" if entry.chain else "the picture, untouched"
    shown = f'<img src="{as_data(overlay)}" alt="{escape(alt)}">' if overlay is not None else ""
    mark = "" if entry.chain is None else _mark(entry)
    figures = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in _figures(entry, baseline))
    said = f'<p class="said"><q>{escape(entry.answer)}</q>{mark}</p>'
    return f'<article class="card">{shown}{head}{said}<dl>{figures}</dl></article>'


def _mark(entry: Entry) -> str:
    return '<span class="same">✓ same</span>' if entry.same else '<span class="other">≠ differs</span>'


def _figures(entry: Entry, baseline: float | None) -> list[tuple[str, str]]:
    report, found = entry.report, []
    if report is not None:
        found += [
            ("visual tokens", f"{report.visual_tokens_after:,} of {report.visual_tokens_before:,}"),
            ("prefill FLOPs", f"{report.prefill_flops_after / report.prefill_flops_before:.0%}"),
        ]
        if report.kv_bytes_before and report.kv_bytes_after is not None:
            found.append(("KV cache", f"{report.kv_bytes_after / report.kv_bytes_before:.0%}"))
        found.append(("first token alike", f"{entry.likeness:.0%}"))
    if entry.ttft_ms is not None:
        share = f" ({entry.ttft_ms / baseline:.0%})" if baseline and entry.chain is not None else ""
        found.append(("first token after", f"{entry.ttft_ms:,.1f} ms{share}"))
    return found
