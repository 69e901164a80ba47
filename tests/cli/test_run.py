"""`vtprune run` on good input: the table, the JSON contract, budgets, chains, overlays, pictures of all kinds."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from vtprune.models import shipped_models

KEYS = {
    "answer",
    "baseline_answer",
    "visual_tokens_before",
    "visual_tokens_after",
    "prefill_flops_before",
    "prefill_flops_after",
    "kv_bytes_before",
    "kv_bytes_after",
    "ttft_ms",
    "baseline_ttft_ms",
    "kept",
}


def only_json(result):
    """The document on stdout, which holds nothing else."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_json_follows_the_contract(ask):
    found = only_json(ask("--json"))
    assert set(found) >= KEYS
    assert found["visual_tokens_before"] == 256
    assert found["visual_tokens_after"] == 64
    assert 0 < found["prefill_flops_after"] < found["prefill_flops_before"]
    assert 0 < found["kv_bytes_after"] < found["kv_bytes_before"]
    assert found["ttft_ms"] > 0
    assert found["baseline_ttft_ms"] > 0
    assert isinstance(found["answer"], str)
    assert isinstance(found["baseline_answer"], str)
    [kept] = found["kept"]
    assert len(kept) == 64
    assert kept == sorted(set(kept))
    assert 0 <= kept[0] <= kept[-1] < 256


def test_table_names_everything(ask):
    result = ask()
    assert result.exit_code == 0
    for text in ("divprune", "answer", "visual tokens", "256", "64", "prefill FLOPs", "KV cache", "time to first token"):
        assert text in result.stdout


@pytest.mark.parametrize(("keep", "tokens"), [("0.5", 128), ("1.0", 256), ("10", 10), ("1", 1), ("9999", 256)])
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


def test_two_pictures(ask, picture, tmp_path):
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


def test_overlay_is_written_and_named(ask, tmp_path):
    overlay = tmp_path / "new" / "folder" / "kept.png"
    result = ask("--overlay", overlay)
    assert result.exit_code == 0
    assert str(overlay) in result.stdout.replace("\n", "")
    with Image.open(overlay) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 200


def test_model_is_taken_from_the_current_folder(ask, model_folder, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    assert only_json(ask("--json", model="./random-llava"))["visual_tokens_before"] == 256


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [
        ("a.jpg", "RGB", (64, 48)),
        ("a.jpg", "CMYK", (64, 48)),
        ("a.webp", "RGBA", (33, 90)),
        ("a.gif", "P", (40, 40)),
        ("a.bmp", "RGB", (3, 200)),
        ("a.png", "I;16", (20, 30)),
        ("a.png", "L", (1, 1)),
        ("a.tiff", "F", (16, 16)),
    ],
)
def test_pictures_of_all_kinds(ask, tmp_path, name, mode, size):
    path = tmp_path / name
    Image.new(mode, size, 0).save(path)
    found = only_json(ask("--json", image=path))
    assert found["visual_tokens_after"] == 64


@pytest.mark.skipif("tiny-llava" not in shipped_models(), reason="the shipped model is not trained yet")
def test_without_any_option(invoke):
    found = only_json(invoke("run", "--json"))
    assert found["visual_tokens_after"] == found["visual_tokens_before"] // 4
    assert found["model"] == "tiny-llava"
    assert found["methods"][0].startswith("divprune")
