"""What computes can be used, and tested, without a page."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from vtprune.demo import drawn, work

FILES = [path for package in (work, drawn) for path in sorted(Path(package.__path__[0]).glob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_knows_nothing_of_gradio(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(node, "module", None) or alias.name for node in imports for alias in node.names]
    assert not [name for name in names if name.startswith(("gradio", "vtprune.demo.tabs", "vtprune.demo.server"))]
