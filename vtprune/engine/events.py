"""What stages did: how many tokens were there before and after, and what tells which ones, for a report.

Everything that is held here has been computed anyway, and is looked at when someone asks for a report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from vtprune.engine.chain_stage import ChainStage
from vtprune.integrations.base import Grid

# A number of tokens, or masks that mark them: these are counted when someone asks, not while the model runs.
Count = int | Sequence[Tensor]


@dataclasses.dataclass(frozen=True)
class Event:
    """A stage that acted.

    Attributes:
        stage: The stage.
        layer: Of the encoder or decoder; None for none.
        before: Visual tokens before it.
        after: Visual tokens after it.
        freed: Bytes that it freed in the cache.
        spared: FLOPs that it saves without taking tokens away; less than 0 for what it costs.
    """

    stage: ChainStage
    layer: int | None
    before: Count
    after: Count
    freed: int = dataclasses.field(default=0, kw_only=True)
    spared: int = dataclasses.field(default=0, kw_only=True)

    def counts(self) -> tuple[int, int]:
        """Numbers of visual tokens before and after."""
        before, after = (
            count if isinstance(count, int) else sum(int(mask.sum()) for mask in count)
            for count in (self.before, self.after)
        )
        return before, after

    def note(self) -> str:
        """What there is to say beside the numbers."""
        return ""


@dataclasses.dataclass(frozen=True)
class Resized(Event):
    """A stage at the encoder's input.

    Attributes:
        grids: Of every unit, its tokens now.
    """

    grids: Sequence[Grid]


@dataclasses.dataclass(frozen=True)
class Grouped(Event):
    """A stage between encoder layers or before the projector.

    Attributes:
        owner: (tiles, patches or tokens at first), the group that each belongs to now, below zero if none; None while
            each is its own.
    """

    owner: Tensor | None


@dataclasses.dataclass(frozen=True)
class Chosen(Event):
    """A stage at the language model's door; `before` and `after` hold a mask for every layout, as `Selected` does.

    Attributes:
        owners: Of every layout, (pictures, slots), the slot that stands for each now; None while all do for themselves.
    """

    owners: Sequence[Tensor | None]


@dataclasses.dataclass(frozen=True)
class Marked(Event):
    """A stage of the language model; `before` and `after` mark visual slots, (rows, slots that were there).

    Attributes:
        slot: (rows, slots that were there), which slot of the call each was; None while all were there.
    """

    slot: Tensor | None


@dataclasses.dataclass(frozen=True)
class Blended(Marked):
    """A stage between decoder layers that let tokens leave and become part of others.

    Attributes:
        owner: (rows, tokens), the token that stands for each of those that could leave.
        at: (rows, tokens), on which of the slots that were there each stood.
        valid: Bool (rows, tokens), False on padding; None without.
    """

    owner: Tensor
    at: Tensor
    valid: Tensor | None
