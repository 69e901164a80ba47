"""The chains that `vtprune search` chooses from, and how the budget of one is set so that it meets a share of FLOPs.

A candidate is a chain of methods with fixed budgets but one, the open budget, which follows from the share. Encoder
sides are one of `INSIDE` (open), one of `OUTPUT` (open), or one of `INSIDE` (open) and then one of `OUTPUT` at a half.
Each goes alone or before one of `DECODER`; those of `DECODER_ALONE` go without an encoder side, and are open. The best
of all is tried before every one of `CACHE`, which costs no FLOPs of the prefill and saves memory.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

INSIDE = ("turbo", "tome", "pitome", "diffrate", "resize")
"""Methods that save work in the encoder, on some family at least."""
OUTPUT = ("divprune", "hiprune", "idpruner", "visionzip")
"""Methods at the encoder's output."""
BEHIND_INSIDE = 0.5
"""What they keep of what a method inside the encoder has left."""
DECODER = ("fastv:layer=2,keep=0.25", "pyramiddrop:keep=0.25", "psigmoid:keep=0.5", "exit")
"""Methods at decoder layers behind an encoder side."""
DECODER_ALONE = ("fastv:layer=2", "pyramiddrop", "psigmoid")
"""Methods at decoder layers without an encoder side."""
CACHE = ("snapkv:keep=0.5", "h2o:keep=0.5", "keyformer:keep=0.5")
"""Methods that evict from the cache."""

GRID = 50
"""Open budgets are multiples of 1 / GRID."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A chain whose first method has an open budget."""

    first: str
    rest: tuple[str, ...] = ()

    def chain(self, level: int) -> tuple[str, ...]:
        """The chain with an open budget of level / GRID, as `vtprune.apply` takes it."""
        keep = f"keep={level / GRID:g}" if level < GRID else "keep=1.0"
        return (f"{self.first}{',' if ':' in self.first else ':'}{keep}", *self.rest)

    @property
    def name(self) -> str:
        """The chain without the open budget."""
        return " + ".join((self.first, *self.rest))


def candidates() -> list[Candidate]:
    """All of them."""
    sides = [Candidate(first) for first in (*INSIDE, *OUTPUT)]
    sides += [Candidate(x, (f"{y}:keep={BEHIND_INSIDE:g}",)) for x, y in itertools.product(INSIDE, OUTPUT)]
    behind = [Candidate(x.first, (*x.rest, y)) for x, y in itertools.product(sides, DECODER)]
    return [*sides, *behind, *map(Candidate, DECODER_ALONE)]


@dataclasses.dataclass(frozen=True)
class Fit:
    """What became of an open budget.

    Args:
        level: The largest one that meets the share; None if there is none.
        share: What the chain needs then; where none meets it, the least that it can need, None if it is refused always.
        least: The level that needs least, where none meets the share.
        reason: Why it is refused.
    """

    level: int | None
    share: float | None
    least: int | None = None
    reason: str = ""


def fit(share_at: Callable[[int], float | str], wanted: float) -> Fit:
    """Find the largest level, from 1 to `GRID`, whose share of FLOPs is at most `wanted`; between, shares grow.

    Args:
        share_at: The share at a level, or why the chain is refused there; what is refused is so at all lower levels.
        wanted: The share.

    Returns:
        The fit; a level of `GRID` means that the method with the open budget has nothing to do.
    """
    top = share_at(GRID)
    if isinstance(top, str):
        return Fit(None, None, reason=top)
    if top <= wanted:
        return Fit(GRID, top)
    low, high, above, below = 0, GRID, top, None
    while high - low > 1:
        middle = (low + high) // 2
        if below is not None:  # shares are nearly straight
            middle = min(max(low + round((high - low) * (wanted - below) / (above - below)), low + 1), high - 1)
        share = share_at(middle)
        if isinstance(share, str):
            low = middle
        elif share <= wanted:
            low, below = middle, share
        else:
            high, above = middle, share
    if below is not None:
        return Fit(low, below)
    return Fit(None, above, least=high)
