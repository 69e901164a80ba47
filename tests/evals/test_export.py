"""An exported model is an ordinary checkpoint: the Auto classes load it, and it does what the original does."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from vtprune.evals.export import export
from vtprune.evals.export_tiny_llava import export_tiny_llava
from vtprune.evals.scenes import draw_scene, make_scene
from vtprune.evals.tiny_llava import EOS_ID, PAD_ID, new_model
from vtprune.evals.vocabulary import PROMPT


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export(model, folder)
    return folder


def test_loaded_by_auto_classes(model, processor, exported):
    loaded, its = AutoModelForImageTextToText.from_pretrained(exported), AutoProcessor.from_pretrained(exported)
    assert loaded.dtype == torch.float32
    picture, text = draw_scene(make_scene(1)), PROMPT.format(question="Where is the red cross? \N{SNOWMAN}\ttab")
    inputs, expected = (p(images=picture, text=text, return_tensors="pt") for p in (its, processor))
    assert torch.equal(inputs.input_ids, expected.input_ids)
    assert torch.equal(inputs.pixel_values, expected.pixel_values)
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)
    defaults = loaded.generation_config
    assert (defaults.max_new_tokens, defaults.do_sample) == (16, False)
    assert (defaults.eos_token_id, defaults.pad_token_id) == (EOS_ID, PAD_ID)
    assert its.tokenizer.padding_side == "left"
    conversation = [{"role": "user", "content": "x"}]
    assert its.apply_chat_template(conversation, add_generation_prompt=True) == "USER: x ASSISTANT:"


def test_an_export_replaces_an_export_and_nothing_else(model, exported, tmp_path):
    export(model, exported)
    assert (exported / "config.json").exists()
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="folder must be new, empty or an exported model"):
        export(model, tmp_path)
    assert (tmp_path / "notes.txt").exists()


def test_a_failed_export_leaves_the_old_one(model, exported, monkeypatch):
    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(type(model), "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        export(model, exported)
    assert AutoProcessor.from_pretrained(exported)
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_bare_weights(tmp_path):
    state = {name: value for name, value in new_model(1).state_dict().items() if name != "lm_head.weight"}
    save_file(state, tmp_path / "w.safetensors")
    export_tiny_llava(tmp_path / "w.safetensors", tmp_path / "out")
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) < 20_000_000
    state.pop(next(iter(state)))
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="weights must fit tiny-llava"):
        export_tiny_llava(tmp_path / "w.safetensors", tmp_path / "out")
