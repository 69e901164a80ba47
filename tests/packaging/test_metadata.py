"""What pyproject.toml says agrees with what is in the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import vtprune

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed():
    """The list in pyproject.toml is written by hand: a folder missing there would be missing from the wheel only."""
    found = set()
    for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join((name, *init.parent.relative_to(ROOT / folder).parts)))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_versions_agree():
    assert vtprune.__version__ == PROJECT["project"]["version"]
    assert (
        f"## [{vtprune.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
        or "Unreleased" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_extras_and_licence():
    assert {"demo", "eval", "flash", "dev"} <= set(PROJECT["project"]["optional-dependencies"])
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


def test_nothing_imports_the_root_folders_by_their_bare_names():
    """`kernels` is also a package of Hugging Face's, and a bare `evals` works in a checkout only."""
    bare = re.compile(r"^\s*(?:from|import) (?:kernels|evals|integrations)\b", re.MULTILINE)
    for folder in ("vtprune", "kernels", "evals", "integrations", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not bare.search(file.read_text()), file
