"""The shipped matrix of what works where is what really happens."""

from __future__ import annotations

import json

import pytest
import torch

import vtprune
from tests.support import JSON, PAGE, page, try_family
from vtprune.integrations import FAMILIES, UNSUPPORTED


@pytest.mark.parametrize("name", [family.family for family in FAMILIES])
def test_matrix(name):
    """Run `python -m tests.support` after a change of methods or families."""
    assert json.loads(JSON.read_text())[name] == try_family(name)


def test_page():
    assert page(json.loads(JSON.read_text())) == PAGE.read_text()


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_other_families_refuse(kind):
    from transformers import AutoConfig, AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind))
    with pytest.raises(ValueError, match=rf"model type '{kind}'\) is not supported: it"):
        vtprune.apply(model, "divprune", keep=0.5)


def test_methods_name_their_families():
    by_name = {one["name"]: one for one in vtprune.methods()}
    assert set(by_name["divprune"]["families"]) == {family.family for family in FAMILIES}
    assert {"internvl", "qwen3_vl"} <= set(by_name["divprune"]["video_families"])
    assert "llava" not in by_name["divprune"]["video_families"]
    assert "qwen2_5_vl" not in by_name["tome"]["families"]
    assert "whole tokens" in by_name["tome"]["refuses"]["qwen2_5_vl"]
