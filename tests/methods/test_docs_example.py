"""The example of docs/add-a-method.md is a working method."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import vtprune
from tests.methods.inputs import INFO, pictures
from tests.tiny import TOKENS, picture, prompt, tiny_llava
from vtprune import kernels
from vtprune.methods import _select, build_method, method_names, registry

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    method_names()  # everything is loaded before the catalogue is copied
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    file = tmp_path / "feature_norm.py"
    file.write_text(block)
    spec = importlib.util.spec_from_file_location("docs_example", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "docs_example", module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_example_selects(example: ModuleType) -> None:
    (stage,) = build_method("feature_norm", {"keep": 0.25}).stages(INFO)
    batch = pictures()
    mask = stage.decide(batch).mask
    norms = batch.encoded.norm(dim=-1)
    assert mask.sum(1).tolist() == [12, 12]
    for i in range(2):
        assert norms[i, mask[i]].min() > norms[i, ~mask[i]].max()
    assert torch.equal(example.longest(torch.tensor([[[3.0], [-4.0], [4.0]]]), 1), torch.tensor([[False, True, False]]))


def test_example_is_about_thirty_lines(example: ModuleType) -> None:
    code = [line for line in Path(example.__file__ or "").read_text().splitlines() if line.strip()]
    assert len(code) <= 32


def test_example_checks_its_budget(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="keep must be a ratio"):
        build_method("feature_norm", {"keep": 25.0})


def test_example_leaves_the_catalogue_alone() -> None:
    assert "feature_norm" not in method_names()


def test_page_names_what_exists() -> None:
    page = PAGE.read_text()
    operators = re.search(r"`vtprune\.kernels`: (.*?)\. Budgets", page, flags=re.DOTALL)
    assert operators is not None
    named = set(re.findall(r"`(\w+)`", operators[1]))
    assert named == {name for name in kernels.__all__ if name.islower()}
    for helper in ("check_choice", "check_number", "check_whole_numbers", "top_k_mask"):
        assert helper in page
        assert hasattr(_select, helper)
    for path in re.findall(r"`((?:vtprune|tests)/[\w/.]+)`", page):
        assert path.endswith("feature_norm.py") or (PAGE.parents[1] / path).exists(), path


@torch.no_grad()
def test_example_runs_in_a_model(example: ModuleType) -> None:
    model = tiny_llava()
    vtprune.apply(model, ["feature_norm", "fastv:layer=2,keep=0.5"], keep=0.25)
    model(input_ids=prompt(5, 0, 7)[None], pixel_values=picture())
    report = vtprune.report(model)
    assert report is not None
    assert [place.tokens_after for place in report.places] == [TOKENS // 4, TOKENS // 8]
