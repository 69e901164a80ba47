"""Several processes that share a run, as `accelerate launch` or `torchrun` start them; one where none did."""

from __future__ import annotations

import datetime
import os

_PATIENCE = datetime.timedelta(days=7)
"""How long processes wait for the slowest one: shares of a run may differ by hours."""


class Processes:
    """The processes of a run, of which this is one.

    Args:
        device: As `--device` has it: "cpu" lets processes meet without a GPU.
    """

    def __init__(self, device: str = "auto") -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._state = None
        if self.count > 1:
            from accelerate import PartialState
            from accelerate.utils import InitProcessGroupKwargs

            options = InitProcessGroupKwargs(timeout=_PATIENCE).to_kwargs()
            self._state = PartialState(cpu=device == "cpu", **options)

    @property
    def first(self) -> bool:
        """Whether this process does what is to be done once."""
        return self.rank == 0

    def device(self, wanted: str) -> str:
        """The device of this process: "auto" is the GPU of its own, if there is one."""
        if self._state is None or wanted != "auto":
            return wanted
        return str(self._state.device)

    def wait(self) -> None:
        """Go on when all have come so far."""
        if self._state is not None:
            self._state.wait_for_everyone()

    def end(self) -> None:
        """Part in good order."""
        if self._state is not None:
            self._state.destroy_process_group()
