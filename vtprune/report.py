"""What a run saved: visual tokens at each place, prefill FLOPs, KV-cache bytes, and which tokens were kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class PlaceReport:
    """Visual tokens before and after one stage, and what it saves, summed over the batch.

    `layer` is None at the encoder's input and output. `note` says why a stage changed nothing, where it did not.
    `flops_saved` and `kv_bytes_saved` (None without a cache) count beyond what the places before it save, and add up to
    the savings of the whole; in a later turn of a conversation, what earlier turns took away comes on top. What tokens
    save that leave inside the encoder is shared among its layers in proportion to the tokens that they take away.
    """

    method: str
    place: str
    layer: int | None
    tokens_before: int
    tokens_after: int
    note: str = ""
    flops_saved: int = 0
    kv_bytes_saved: int | None = None


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
class StepReport:
    """Which tokens of one picture or video a stage left; layers that follow one another together.

    The steps of a picture are those of `Report.summary()`, one by one, also where a stage acted on other pictures only.

    Inside the encoder, where `PlaceReport` counts patches, a step counts the tokens of the prompt that are different
    from one another by then. Of several patches that make a token (InternVL) all must have become the same as another
    token's; of shrunk canvases and pooled frames (LLaVA-OneVision) the patch nearest to the token's centre tells.

    Args:
        where: As in `Report.summary()`: "encoder layer 0 to 22".
        method: By name.
        tokens_before: How many tokens of the picture there were before it.
        tokens_after: How many there are behind it; at the cache, how many a head of a layer holds on average, rounded.
        kept: Token numbers that are left in the prompt; where tokens pass by decoder layers, those that do not. Tokens
            that share the hidden state of another (see `Report`) do not count, unlike in `PictureReport.kept`.
        owner: As in `PictureReport`, by what was merged so far.
        held: At the cache: for every token the share of these layers and their heads that still hold it. Where tokens
            are hidden: 0 for those that nobody attends to from here on, 1 for the others. Else None.
    """

    where: str
    method: str
    tokens_before: int
    tokens_after: int
    kept: tuple[int, ...]
    owner: tuple[int, ...] | None = None
    held: tuple[float, ...] | None = None


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
        owner: For every token the number of the token that stands for it, where tokens were merged; else None. What
            became part of a token of another picture stands for itself, and is gone.
        seconds: Time from frame to frame of a video, if the model is told.
        steps: What was left of it behind every place, in the order of `Report.summary()`.
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
    steps: tuple[StepReport, ...] = ()

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
        for where, place in self.summary():
            said = f"  {where}: {place.method}, {place.tokens_before} -> {place.tokens_after}"
            saved = self._saved(place)
            lines.append(said + (f", {saved}" if saved else "") + (f" ({place.note})" if place.note else ""))
        before, after = self.prefill_flops_before, self.prefill_flops_after
        lines.append(f"  prefill: {before / 1e9:,.3f} -> {after / 1e9:,.3f} GFLOPs ({after / before:.0%})")
        if self.kv_bytes_before is not None and self.kv_bytes_after is not None:
            share = self.kv_bytes_after / max(self.kv_bytes_before, 1)
            lines.append(
                f"  KV cache: {self.kv_bytes_before / 1024:,.0f} -> {self.kv_bytes_after / 1024:,.0f} KiB ({share:.0%})"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def _saved(self, place: PlaceReport) -> str:
        said = []
        if place.flops_saved:
            flops = abs(place.flops_saved)
            said.append(f"{flops / 1e9:,.3f} GFLOPs ({flops / self.prefill_flops_before:.0%})")
        if place.kv_bytes_saved:
            share = place.kv_bytes_saved / max(self.kv_bytes_before or 0, 1)
            said.append(f"{place.kv_bytes_saved / 1024:,.0f} KiB ({share:.0%})")
        return f"{'costs' if place.flops_saved < 0 else 'saves'} {' and '.join(said)}" if said else ""

    def summary(self) -> list[tuple[str, PlaceReport]]:
        """Where something was saved, in words, and what; layers that follow one another together.

        Encoder or decoder layers at which one method takes away more and more make one line, and so do layers of the
        cache of which it takes the same away. Their savings are added up.
        """
        return [(where_of(run), _together(run)) for run in runs_of(self.places)]


def runs_of(places: Sequence[PlaceReport]) -> list[list[PlaceReport]]:
    """Places in order, those together that make one line of `Report.summary()`."""
    runs: list[list[PlaceReport]] = []
    for place in places:
        if runs and _continues(runs[-1][-1], place):
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _continues(last: PlaceReport, place: PlaceReport) -> bool:
    if last.layer is None or place.layer != last.layer + 1:
        return False
    if (last.method, last.place, last.note) != (place.method, place.place, place.note):
        return False
    if (last.tokens_before, last.tokens_after) == (place.tokens_before, place.tokens_after):
        return True
    return place.place.endswith("layer") and place.tokens_before == last.tokens_after


def where_of(run: Sequence[PlaceReport]) -> str:
    """Where such places are, in words."""
    place, first, last = run[0].place, run[0].layer, run[-1].layer
    return place + ("" if first is None else f" {first}") + ("" if first == last else f" to {last}")


def _together(run: list[PlaceReport]) -> PlaceReport:
    freed = [place.kv_bytes_saved for place in run if place.kv_bytes_saved is not None]
    return dataclasses.replace(
        run[0],
        tokens_after=run[-1].tokens_after,
        flops_saved=sum(place.flops_saved for place in run),
        kv_bytes_saved=sum(freed) if freed else None,
    )
