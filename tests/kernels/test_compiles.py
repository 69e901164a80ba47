"""Every Triton kernel compiles for the GPUs that it is written for, also where there is none; see compiles.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.compiles import CALLS, SHARED

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("operator", CALLS)
def test_compiles(operator: str) -> None:
    pytest.importorskip("triton")
    if not sys.platform.startswith("linux"):
        pytest.skip("Triton brings its compiler on Linux only")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.compiles", operator]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    for capability in SHARED:
        assert f"sm_{capability} " in done.stdout, "nothing was compiled"
