"""The methods that the demo offers: what is known of them, and which of them suit a model."""

from __future__ import annotations

import functools
from typing import Any

import vtprune
from vtprune.integrations import integrate
from vtprune.models import Loaded

KINDS = ("pruning", "merging", "frequency", "exit", "sparse", "cache", "baseline")
"""In the order in which they are listed; kinds that are not among them come behind."""


@functools.cache
def catalogue() -> dict[str, dict[str, Any]]:
    """What `vtprune.methods()` says, by name; by kind, then by name."""

    def place(one: dict[str, Any]) -> tuple[int, str, str]:
        kind = one["kind"]
        return KINDS.index(kind) if kind in KINDS else len(KINDS), kind, one["name"]

    return {one["name"]: one for one in sorted(vtprune.methods(), key=place)}


def refusals(loaded: Loaded, video: bool) -> dict[str, str]:
    """Methods that do not work on a model, each with the reason.

    Args:
        loaded: The model.
        video: Whether it is shown a clip; else pictures.
    """
    integration = integrate(loaded.model)
    found = {name: _refusal(one, integration.family, video) for name, one in catalogue().items()}
    return {name: reason for name, reason in found.items() if reason}


def offered(loaded: Loaded, video: bool) -> list[tuple[str, str]]:
    """All methods as choices (label, name): first those that suit a model, then those that do not, marked as such.

    Args:
        loaded: The model.
        video: Whether it is shown a clip; else pictures.
    """
    refused = refusals(loaded, video)
    labels = {name: f"{label} (not here)" if name in refused else label for label, name in choices()}
    return [(labels[name], name) for name in sorted(labels, key=lambda name: name in refused)]


def choices() -> list[tuple[str, str]]:
    """All methods as choices (label, name), for any model."""
    return [(f"{name} · {one['kind']}", name) for name, one in catalogue().items()]


def _refusal(method: dict[str, Any], family: str, video: bool) -> str | None:
    if method["needs_training"] and not method["signals"]:
        return "it needs weights of its own, which the demo has no place for"
    if not video and method["needs_video"]:
        return "it acts on clips and leaves pictures as they are"
    if family in method["video_families" if video else "families"]:
        return None
    return method["refuses"].get(family) or "it has not been made to work on clips of this model"
