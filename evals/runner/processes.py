"""Several processes that share a run, as `accelerate launch`, `torchrun` or `mpirun` start them; else one."""

from __future__ import annotations

import datetime
import os

_PATIENCE = datetime.timedelta(days=7)
"""How long processes wait for the slowest one: shares of a run may differ by hours."""
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""How launchers tell the number of processes: torchrun and accelerate, then kinds of mpirun."""


class Processes:
    """The processes of a run, of which this is one.

    Args:
        device: As `--device` has it: "cpu" does without GPUs that are there.
    """

    def __init__(self, device: str = "auto") -> None:
        self.count, self.rank, self._state = 1, 0, None
        if any(int(os.environ.get(name) or 1) > 1 for name in _SIZES):
            import torch
            from accelerate import PartialState

            cpu = device == "cpu" or not torch.accelerator.is_available()
            self._state = PartialState(cpu=cpu, timeout=_PATIENCE)
            self.count, self.rank = self._state.num_processes, self._state.process_index

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
