"""The methods that a visitor chose, and their budget."""

from __future__ import annotations

import dataclasses

from vtprune.api import build_chain, open_budgets
from vtprune.budget import Budget, check_keep
from vtprune.demo.work.chains import read_chain
from vtprune.methods import Method


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Methods with parameters and budgets.

    Args:
        written: As the command line writes them, `tome+fastv:layer=2`.
        keep: The budget of the one that is written without; None if all budgets are written, or none is taken.
        methods: What that means.
    """

    written: str
    keep: Budget | None
    methods: list[Method]

    @property
    def label(self) -> str:
        """Methods and budget, for people."""
        return self.written if self.keep is None else f"{self.written}, keep={self.keep}"


def read_chosen(written: str, keep: Budget | None) -> Chosen:
    """Check what a visitor chose.

    Args:
        written: Methods, as the command line writes them.
        keep: The budget; left out of account where no method is without one that it takes.

    Raises:
        ValueError, TypeError: As `vtprune.apply`, and as `vtprune.demo.work.chains.read_chain`.
    """
    if not isinstance(written, str):
        raise TypeError(f"method must be a text, got a {type(written).__name__}.")
    written = written.strip()
    read_chain(written)
    budget = None if keep is None or open_budgets(written) == 0 else check_keep(keep)
    return Chosen(written, budget, build_chain(written, budget, {}))
