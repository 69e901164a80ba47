"""Options that take several values behind one another: `--keep 0.5 0.25` is `--keep 0.5 --keep 0.25`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand

REPEATED = ("--method", "--keep", "-k")


class ManyValues(TyperCommand):
    """A command without arguments, in which words behind the value of some options are more values of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Write the option before each of its values."""
        written: list[str] = []
        option = ""
        value_next = False
        for word in args:
            if word.startswith("-") and not value_next:
                option = word if word in REPEATED else ""
                value_next = bool(option)
            elif option and not value_next:
                written.append(option)
            else:
                value_next = False
            written.append(word)
        return super().parse_args(ctx, written)
