"""How the options of `vtprune run` go together; on a tiny random model, so none of this waits for a trained one."""

from __future__ import annotations

import json

import pytest
from PIL import Image


def only_json(result):
    """The document on stdout, which holds nothing else."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(("keep", "tokens"), [("0.5", 128), ("1.0", 256), ("1", 1)])
def test_keep_is_a_ratio_or_a_number(ask, keep, tokens):
    found = only_json(ask("--keep", keep, "--json"))
    assert found["visual_tokens_after"] == tokens
    if tokens == 256:
        assert found["answer"] == found["baseline_answer"]


def test_parameters_inline_and_by_set(ask):
    inline = only_json(ask("--method", "fastv:layer=1,keep=0.5", "--json"))
    by_set = only_json(ask("--method", "fastv", "--set", "layer=1", "--set", "keep=0.5", "--json"))
    assert inline["kept"] == by_set["kept"]
    assert inline["visual_tokens_after"] == 128


def test_keep_of_a_chain_goes_to_the_one_method_without(ask):
    found = only_json(ask("--method", "divprune:keep=0.5", "--method", "fastv:layer=1", "--keep", "8", "--json"))
    assert found["visual_tokens_after"] == 8
    assert [place["tokens_after"] for place in found["places"]] == [128, 8]


def test_overlay_of_two_pictures(ask, picture, tmp_path):
    overlay = tmp_path / "kept.png"
    found = only_json(ask("--image", picture, "--keep", "16", "--overlay", overlay, "--json"))
    assert [len(kept) for kept in found["kept"]] == [16, 16]
    with Image.open(overlay) as sheet:
        assert sheet.width > sheet.height


def test_prompt_with_its_own_placeholder_is_taken_as_it_is(ask):
    raw = only_json(ask("--json", prompt="USER: <image>\nWhat colour is the circle? ASSISTANT:"))
    templated = only_json(ask("--json"))
    assert raw["prefill_flops_before"] == templated["prefill_flops_before"]
    assert raw["baseline_answer"] == templated["baseline_answer"]


def test_model_is_taken_from_the_current_folder(ask, model_folder, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    assert only_json(ask("--json", model="./random-llava"))["visual_tokens_before"] == 256
