"""Numbers as people read them."""

from __future__ import annotations

from typing import Any

NBSP = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
NOTHING = "\N{EN DASH}"
_FRACTIONS = {
    0.75: "three quarters of the visual tokens",
    2 / 3: "two thirds of the visual tokens",
    0.5: "half the visual tokens",
    1 / 3: "a third of the visual tokens",
    0.25: "a quarter of the visual tokens",
    0.2: "a fifth of the visual tokens",
    0.1: "a tenth of the visual tokens",
}


def percent(share: float | None, digits: int = 1) -> str:
    """0.9131 as "91.3 %"."""
    return NOTHING if share is None else f"{_number(100 * share, digits)}{NBSP}%"


def percents(interval: tuple[float, float] | list[float] | None) -> str:
    """(0.9, 0.95) as "90.0 to 95.0"."""
    return "" if interval is None else " to ".join(_number(100 * share, 1) for share in interval)


def points(difference: float | None, digits: int = 1) -> str:
    """-0.0141 as "-1.4", a difference in percentage points, with its sign; only 0 itself has none."""
    if difference is None:
        return NOTHING
    sign = MINUS if difference < 0 else "+" if difference > 0 else ""
    return f"{sign}{_number(abs(100 * difference), digits)}"


def point_range(interval: tuple[float, float] | list[float] | None) -> str:
    """(-0.03, 0.002) as "-3.0 to +0.2"."""
    return "" if interval is None else " to ".join(map(points, interval))


def amount(value: float | None, unit: str = "", base: int = 1000) -> str:
    """1.5e9 with unit "FLOPs" as "1.50 GFLOPs"; with `base` 1024 and unit "B" as "1.40 GiB"."""
    if value is None:
        return NOTHING
    prefixes = ("", "k", "M", "G", "T", "P") if base == 1000 else ("", "Ki", "Mi", "Gi", "Ti", "Pi")
    step = 0
    while abs(value) >= base * 0.9995 and step < len(prefixes) - 1:
        value, step = value / base, step + 1
    return f"{short(value)}{NBSP}{prefixes[step]}{unit}" if unit or step else short(value)


def short(value: float | None) -> str:
    """Three digits, or as many as stand before the point."""
    if value is None:
        return NOTHING
    if value == round(value) and abs(value) < 1e6:
        return _number(value, 0)
    size = abs(value)
    return _number(value, 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.0995 else 4)


def tokens_in_words(share: float) -> str:
    """0.25 as "a quarter of the visual tokens"."""
    for fraction, words in _FRACTIONS.items():
        if abs(share - fraction) <= 0.005:
            return words
    return f"{percent(share, 0 if share >= 0.0995 else 1)} of the visual tokens"


def value_in_words(value: Any) -> str:
    """A setting: lists with commas, nothing as a dash, mappings as name=value."""
    if value is None or value == [] or value == {}:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}={value_in_words(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(value_in_words, value))
    return str(value)


def _number(value: float, digits: int) -> str:
    said = f"{value:,.{digits}f}"
    if said.startswith("-"):
        said = said[1:] if not float(said.replace(",", "")) else MINUS + said[1:]
    return said
