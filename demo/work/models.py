"""The models of the demo: those that were named at its start, and no others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from vtprune.demo.work.turns import Turns
from vtprune.inputs import takes_videos
from vtprune.models import Loaded


class Models:
    """Models that requests take turns with.

    One request at a time computes, on whichever model: methods are applied to a model, not to a request, and a time
    is only worth showing if nothing else ran. Who has long work to do takes a turn for each step of it.

    Args:
        loaded: The models, at least one, each under a name of its own.

    Raises:
        ValueError: There is none, or two have the same name.
    """

    def __init__(self, loaded: Sequence[Loaded]) -> None:
        self._loaded = {one.name: one for one in loaded}
        if not loaded or len(self._loaded) < len(loaded):
            raise ValueError(f"models must be at least one, each named once, got {[one.name for one in loaded]}.")
        self._turns = Turns()

    @property
    def names(self) -> list[str]:
        """The names, in the order that was given."""
        return list(self._loaded)

    def get(self, name: str) -> Loaded:
        """A model, to be read and not to be run.

        Raises:
            ValueError: It is none of those named at the start.
        """
        if not isinstance(name, str) or name not in self._loaded:
            raise ValueError(f"model must be one of {', '.join(self._loaded)}, got {name!r}.")
        return self._loaded[name]

    def check_clips(self, name: str) -> None:
        """See whether a model takes clips.

        Raises:
            ValueError: It does not, or is none of those named at the start.
        """
        if takes_videos(self.get(name).processor):
            return
        others = [one.name for one in self._loaded.values() if takes_videos(one.processor)]
        instead = f"for clips choose {' or '.join(others)}" if others else "no model of this page takes clips"
        raise ValueError(f"model {name!r} takes pictures only; {instead}.")

    @contextmanager
    def lease(self, name: str) -> Iterator[Loaded]:
        """A model for the length of a `with` block, once it is one's turn.

        Raises:
            ValueError: It is none of those named at the start.
        """
        loaded = self.get(name)
        with self._turns.take():
            yield loaded
