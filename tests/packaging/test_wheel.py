"""The wheel holds what a user needs and nothing else, and works from anywhere."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # A copy, so that the build leaves nothing in the working tree.
    source = folder / "source"
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, files.split("\0")):
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name for name in names if ".dist-info" not in name}
    assert {name.split("/")[0] for name in inside} == {"vtprune"}
    for part in ("py.typed", "engine/engine.py", "kernels/__init__.py", "integrations/llava.py", "methods/divprune.py"):
        assert f"vtprune/{part}" in inside
    assert "vtprune/evals/models/tiny-llava/model.safetensors" in inside
    assert "vtprune/evals/examples/examples.json" in inside
    assert "vtprune/evals/examples/run-tiny-llava/summary.json" in inside
    assert any("LICENSE" in name for name in names)
    assert wheel.stat().st_size < 70 * 2**20


@pytest.mark.parametrize("installed", ["wheel", "editable"])
def test_runs_from_elsewhere(wheel, tmp_path, installed):
    """From an unrelated folder: the wheel unpacked onto the path, and the environment's editable install."""
    program = (
        "import pathlib, torch, vtprune, vtprune.kernels, vtprune.evals, vtprune.models as m;"
        "print(vtprune.__file__); loaded = m.load_model('tiny-llava');"
        "vtprune.apply(loaded.model, 'divprune', keep=0.25); vtprune.remove(loaded.model)"
    )
    environment = None
    if installed == "wheel":
        zipfile.ZipFile(wheel).extractall(tmp_path / "site")
        import os

        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    where = Path(done.stdout.strip())
    assert where.is_relative_to(tmp_path / "site" if installed == "wheel" else ROOT)
