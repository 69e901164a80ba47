"""What was saved as bars: a row for each quantity, the untouched model's above the pruned one's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape

from vtprune.demo.work.asking import Asked
from vtprune.report import Report


@dataclasses.dataclass(frozen=True)
class Bar:
    """A quantity without and with pruning.

    Args:
        name: What it is.
        before: Of the untouched model.
        after: With the methods.
        words: How a value is written.
        is_speed: Whether it says how fast the model is.
        more_is_better: Whether larger values are better.
    """

    name: str
    before: float
    after: float
    words: str
    is_speed: bool = False
    more_is_better: bool = False


def saved(report: Report) -> list[Bar]:
    """Visual tokens, prefill FLOPs and memory of the cache."""
    bars = [
        Bar("Visual tokens", report.visual_tokens_before, report.visual_tokens_after, "{:,.0f}"),
        Bar("Prefill FLOPs", *_scaled(report.prefill_flops_before, report.prefill_flops_after, _FLOPS)),
    ]
    if report.kv_bytes_before is not None and report.kv_bytes_after is not None:
        bars.append(Bar("KV cache", *_scaled(report.kv_bytes_before, report.kv_bytes_after, _BYTES)))
    return bars


def timed(asked: Asked) -> list[Bar]:
    """Time to first token and rate of decoding, as far as they are known."""
    if asked.times is None:
        return []
    before, after = asked.times
    bars = [Bar("Time to first token", before.ttft_ms, after.ttft_ms, "{:,.1f} ms", is_speed=True)]
    if before.tokens_per_second is not None and after.tokens_per_second is not None:
        rate = before.tokens_per_second, after.tokens_per_second
        bars.append(Bar("Decoding", *rate, "{:,.1f} tokens/s", is_speed=True, more_is_better=True))
    return bars


def draw_bars(bars: Sequence[Bar], pruned: str) -> str:
    """Bars as a table of HTML, which reads as a table where it cannot be seen.

    Args:
        bars: The quantities.
        pruned: Name of what was applied.
    """
    if not bars:
        return ""
    rows = "".join(_row(bar) for bar in bars)
    return (
        f'<table class="bars"><caption><span class="key before"></span>unpruned '
        f'<span class="key after"></span>{escape(pruned)}</caption><thead class="unseen"><tr>'
        '<th scope="col">Quantity</th><th scope="col">Unpruned, then pruned</th><th scope="col">Share</th>'
        f"</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(bar: Bar) -> str:
    longest = max(bar.before, bar.after) or 1
    lines = "".join(
        f'<div class="line"><span class="track"><span class="fill {kind}" style="width:{100 * value / longest:.1f}%">'
        f'</span></span><span class="value">{bar.words.format(value)}</span></div>'
        for kind, value in (("before", bar.before), ("after", bar.after))
    )
    return f'<tr><th scope="row">{escape(bar.name)}</th><td>{lines}</td><td class="share">{_share(bar)}</td></tr>'


def _share(bar: Bar) -> str:
    if not bar.before or not bar.after:
        return ""
    ratio = bar.after / bar.before
    if not bar.is_speed:
        return f"{ratio:.0%}"
    return f"{ratio if bar.more_is_better else 1 / ratio:.2f}×<small>as fast</small>"


_FLOPS = ((1e12, "{:,.2f} T"), (1e9, "{:,.2f} G"), (1e6, "{:,.1f} M"))
_BYTES = ((2**30, "{:,.2f} GiB"), (2**20, "{:,.1f} MiB"), (2**10, "{:,.0f} KiB"))


def _scaled(before: float, after: float, scales: Sequence[tuple[float, str]]) -> tuple[float, float, str]:
    """Both in the largest unit that the first one holds."""
    unit, words = next((pair for pair in scales if before >= pair[0]), scales[-1])
    return before / unit, after / unit, words
