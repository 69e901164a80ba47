"""What questions are asked under: the unpruned model, and every method at every budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vtprune.api import build_chain, open_budgets
from vtprune.budget import Budget
from vtprune.methods.base import Method

UNPRUNED = "unpruned"


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The model as it is, or with methods.

    Args:
        method: A method or a chain, as `vtprune.apply` takes it in one string; None: as it is.
        keep: The budget, for the one method that was written without; None: as written.
    """

    method: str | None = None
    keep: Budget | None = None

    @property
    def name(self) -> str:
        """What results call it."""
        if self.method is None:
            return UNPRUNED
        return self.method if self.keep is None else f"{self.method}@{self.keep:g}"

    def chain(self) -> list[Method]:
        """The methods; none for the model as it is.

        Raises:
            ValueError, TypeError: As `vtprune.apply`.
        """
        return [] if self.method is None else build_chain(self.method, self.keep, {})


def plan(methods: Sequence[str], budgets: Sequence[Budget]) -> list[Configuration]:
    """The unpruned model, then every method at every budget; a method written with its budget, or without one, once.

    Raises:
        ValueError: A method is unknown, or leaves budgets open and is given none, or budgets are given to none.
        TypeError: A parameter is of a wrong type.
    """
    found = [Configuration()]
    taken = False
    for method in methods:
        takes = open_budgets(method) > 0
        taken |= takes
        found += [Configuration(method, keep) for keep in budgets] if takes and budgets else [Configuration(method)]
    if budgets and not taken:
        raise ValueError(f"keep={budgets[0]!r} is for a method without a budget of its own, and there is none.")
    for one in found:
        one.chain()
    return list(dict.fromkeys(found))
