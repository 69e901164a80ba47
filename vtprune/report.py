"""What a run saved: visual tokens at each place, prefill FLOPs, KV-cache bytes, and which tokens were kept."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class PlaceReport:
    """Visual tokens before and after one stage, summed over the batch.

    `layer` is None at the encoder's output. `note` says why a stage changed nothing, where it did not.
    """

    method: str
    place: str
    layer: int | None
    tokens_before: int
    tokens_after: int
    note: str = ""


@dataclasses.dataclass(frozen=True)
class MapReport:
    """A rectangular map of tokens.

    Args:
        name: "picture", "thumbnail", "canvas" (tiles put together again), "tile" or "video".
        grid: (frames, rows, columns).
        tokens: Its token numbers in raster order, frame by frame.
    """

    name: str
    grid: tuple[int, int, int]
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class PictureReport:
    """Which tokens of one picture or video were kept. Tokens are numbered in the order of the prompt.

    Args:
        row: Row of the batch.
        index: Number of the picture within its row.
        kind: "image" or "video".
        tokens: How many tokens it has, newline tokens between its rows included.
        maps: The maps that its tokens form; tokens that belong to none are newlines.
        entered: Token numbers that entered the language model.
        kept: Token numbers that are left after the last stage.
        owner: For every token the number of the token that stands for it, where tokens were merged; else None.
        seconds: Time from frame to frame of a video, if the model is told.
    """

    row: int
    index: int
    kind: str
    tokens: int
    maps: tuple[MapReport, ...]
    entered: tuple[int, ...]
    kept: tuple[int, ...]
    owner: tuple[int, ...] | None = None
    seconds: float | None = None

    @property
    def grid(self) -> tuple[int, int, int] | None:
        """(frames, rows, columns) where all tokens form one map, in raster order; else None."""
        return self.maps[0].grid if len(self.maps) == 1 and len(self.maps[0].tokens) == self.tokens else None


@dataclasses.dataclass(frozen=True)
class Report:
    """The last prefill of a model on this thread.

    FLOPs count multiply and add as two, use the dense formulas (no discount for the causal half of attention) with the
    real number of tokens in every layer of the encoder, the projector and the decoder, and sum over the batch; patch
    embedding and language-model head are left out, being the same in both; layers that run on trial count. KV bytes are
    measured on the cache right after the prefill (`before`: the same cache, had nothing been removed) and None where
    the run used no cache.

    Merged tokens that stay on their slots and share a hidden state count as tokens, since attention and cache hold
    them; `prefill_flops_after` knows what is computed once, and a note says how many states there are. Tokens that
    leave only the cache count as kept: `places` and the KV bytes tell of them.
    """

    methods: tuple[str, ...]
    visual_tokens_before: int
    visual_tokens_after: int
    prefill_flops_before: int
    prefill_flops_after: int
    kv_bytes_before: int | None
    kv_bytes_after: int | None
    places: tuple[PlaceReport, ...]
    pictures: tuple[PictureReport, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as plain Python values, ready for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        """A few lines for people."""
        lines = [f"{' + '.join(self.methods)}: {self.visual_tokens_before} -> {self.visual_tokens_after} visual tokens"]
        for places in self._runs():
            place, first, last = places[0], places[0].layer, places[-1].layer
            where = place.place if first is None else f"{place.place} {first}"
            where += "" if first == last else f" to {last}"
            note = f" ({place.note})" if place.note else ""
            lines.append(f"  {where}: {place.method}, {place.tokens_before} -> {place.tokens_after}{note}")
        before, after = self.prefill_flops_before, self.prefill_flops_after
        lines.append(f"  prefill: {before / 1e9:,.3f} -> {after / 1e9:,.3f} GFLOPs ({after / before:.0%})")
        if self.kv_bytes_before is not None and self.kv_bytes_after is not None:
            share = self.kv_bytes_after / max(self.kv_bytes_before, 1)
            lines.append(
                f"  KV cache: {self.kv_bytes_before / 1024:,.0f} -> {self.kv_bytes_after / 1024:,.0f} KiB ({share:.0%})"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _runs(self) -> list[list[PlaceReport]]:
        """Places one by one, but layers that follow one another and say the same together."""
        runs: list[list[PlaceReport]] = []
        for place in self.places:
            last = runs[-1][-1] if runs else None
            follows = last is not None and last.layer is not None and place.layer == last.layer + 1
            if last is not None and follows and dataclasses.replace(last, layer=place.layer) == place:
                runs[-1].append(place)
            else:
                runs.append([place])
        return runs
