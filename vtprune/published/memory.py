"""How much memory is left on a device."""

from __future__ import annotations

from pathlib import Path

import torch

_CGROUP = Path("/sys/fs/cgroup")


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device; None if it does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    amounts = [_free_of_machine(), _free_of_container()]
    return min((amount for amount in amounts if amount is not None), default=None)


def _free_of_machine() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    free = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(free[0]) * 1024 if free else None


def _free_of_container() -> int | None:
    try:
        limit, used = ((_CGROUP / f"memory.{what}").read_text().strip() for what in ("max", "current"))
        cached = [x.split()[1] for x in (_CGROUP / "memory.stat").read_text().splitlines() if x.startswith("file ")]
    except OSError:  # no limit is set
        return None
    # Files in the cache count as used, and are given up when memory is needed.
    return int(limit) - int(used) + int(cached[0] if cached else 0) if limit != "max" else None
