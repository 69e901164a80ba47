"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vtprune import kernels


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Device, processor, threads, versions, which kernels run, and the commit where this is a checkout."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "transformers", "triton", "vtprune")},
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "kernels": kernels.backend(device),
        "commit": _commit(),
    }


def machine_line(machine: dict[str, Any]) -> str:
    """The same in one line."""
    where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    versions = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "transformers", "triton", "vtprune") if machine[name]
    )
    commit = f", commit {machine['commit']}" if machine["commit"] else ""
    return f"{where}, {machine['threads']} threads, {versions}, kernels: {machine['kernels']}{commit}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that this file lies in, with a plus sign if files differ from it; None outside of one."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if changed else "")
