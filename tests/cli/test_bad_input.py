"""Bad input: one clear line on stderr, exit code 2, no traceback, nothing on stdout."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from transformers import CLIPConfig, LlamaConfig, LlamaForCausalLM, PaliGemmaConfig


@pytest.mark.parametrize("keep", ["0", "-1", "-0.5", "0.0", "1.5", "25.0", "nan", "inf", "abc", "", "0.5x", "True"])
def test_keep(refused, keep):
    refused("--keep", keep, said="keep must be a ratio in (0, 1] or a whole number of tokens >= 1")


@pytest.mark.parametrize("method", ["divprune:keep=0", "divprune:keep=1.5", "divprune:keep=abc", "divprune:keep=nan"])
def test_keep_written_inline(refused, method):
    refused("--method", method, said="keep must be a ratio in (0, 1]")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "divprun"], ["unknown method 'divprun'", "Did you mean 'divprune'"]),
        (["--method", "xyzzy"], ["unknown method 'xyzzy'", "Known methods"]),
        (["--method", ""], "a method is written"),
        (["--method", "divprune:"], "parameters are missing"),
        (["--method", "divprune:kep=0.5"], ["no parameter 'kep'", "Did you mean 'keep'"]),
        (["--method", "divprune:keep"], "name=value"),
        (["--method", "divprune:keep=0.5,keep=0.2"], "given twice"),
        (["--method", "divprune:keep=[1"], "is missing in"),
        (["--method", "divprune", "--set", "kepe=0.5"], ["no parameter 'kepe'", "Did you mean 'keep'"]),
        (["--method", "divprune", "--set", "keep"], "name=value"),
        (["--set", "keep=0.5", "--set", "keep=0.2"], "set twice"),
        (["--method", "divprune:keep=0.5", "--keep", "0.25"], "keep"),
        (["--method", "divprune", "--method", "fastv", "--keep", "0.5"], "several take it"),
        (["--method", "divprune", "--method", "fastv", "--set", "layer=2"], "write them with their method"),
        (["--method", "fastv:layer=99"], ["layer", "99"]),
        (["--method", "fastv:layer=3"], ["layer", "3"]),  # the model's decoder layers are 0, 1 and 2
        (["--method", "fastv", "--set", "layer=-1"], ["layer", "-1"]),
        (["--video", "clip.mp4"], "video 'clip.mp4' does not exist"),
        (["--frames", "4"], "--video"),
        (["--fps", "2"], "--video"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "int3"], "dtype must be auto, float32, bfloat16 or float16"),
        (["--attn", "telepathy"], "telepathy"),
    ],
)
def test_methods_and_settings(refused, words, said):
    refused(*words, said=said)


def bad_pictures(folder):
    gradient = Image.radial_gradient("L").convert("RGB")
    for name in ("whole.jpg", "whole.png"):
        gradient.save(folder / name)
        content = (folder / name).read_bytes()
        (folder / name.replace("whole", "half")).write_bytes(content[: len(content) // 2])
        (folder / name.replace("whole", "head")).write_bytes(content[:30])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    (folder / "folder.png").mkdir()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("half.jpg", "truncated or damaged"),
        ("half.png", "truncated or damaged"),
        ("head.jpg", ""),
        ("head.png", ""),
        ("empty.png", "empty"),
        ("text.png", "no picture"),
        ("folder.png", "is a folder"),
        ("missing.png", "does not exist"),
        ("text.png/inside.png", ""),
    ],
)
def test_pictures(refused, tmp_path, name, said):
    bad_pictures(tmp_path)
    refused(image=tmp_path / name, said=[said, name])


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("<image><image> what?", "2 image placeholders '<image>' for 1 picture"),
        ("", "prompt"),
        ("  \n", "prompt"),
        (None, "--prompt is missing"),
    ],
)
def test_prompts(refused, prompt, said):
    refused(prompt=prompt, said=said)


def test_prompt_without_placeholder_for_a_model_without_chat_template(refused, model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    (folder / "chat_template.jinja").unlink()
    refused(model=folder, said="no image placeholder '<image>'")


def test_chat_template_that_drops_pictures(refused, model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'][-1]['text'] }}")
    refused(model=folder, said="0 image placeholders")


def copy_of(model_folder, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in model_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_model_names(refused, tmp_path):
    refused(model="tiny-lava", said=["unknown model 'tiny-lava'", "Shipped models"])
    refused(model=tmp_path / "nothing", said="does not exist")
    refused(model=tmp_path, said="no config.json")
    (tmp_path / "file").touch()
    refused(model=tmp_path / "file", said="is a file")
    refused(model="", said="model")


def test_hub_id_that_cannot_be_reached(refused, monkeypatch):
    def no_net(*_):
        raise OSError("no name service")

    monkeypatch.setattr("vtprune.hub.getproxies", dict)
    monkeypatch.setattr("vtprune.hub.socket.getaddrinfo", no_net)
    refused(model="nobody/tiny-llava", said=["'nobody/tiny-llava' cannot be loaded", "Shipped models"])
    refused(model="nobody/a b c", said="nobody/a b c")


def test_text_only_model(refused, tmp_path):
    settings = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=32)
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(tmp_path)
    refused(model=tmp_path, said=["'llama'", "no vision-language model"])


@pytest.mark.parametrize("config", [CLIPConfig(), PaliGemmaConfig()], ids=lambda config: config.model_type)
def test_model_of_another_family(refused, tmp_path, config):
    config.save_pretrained(tmp_path)
    refused(model=tmp_path, said=[repr(config.model_type), "not supported", "llava"])


def test_broken_models(refused, model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    refused(model=folder, said="cannot be loaded")
    (folder / "model.safetensors").unlink()
    refused(model=folder, said="cannot be loaded")
    (folder / "config.json").write_text("{")
    refused(model=folder, said="cannot be loaded")
    for content in ({"model_type": "imagined"}, {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 32}):
        (folder / "config.json").write_text(json.dumps(content))
        refused(model=folder, said="cannot be loaded")


def test_model_without_a_processor_for_pictures(refused, model_folder, tmp_path):
    folder = copy_of(model_folder, tmp_path)
    (folder / "processor_config.json").unlink()
    refused(model=folder, said=str(folder))


def test_overlay_that_cannot_be_written(refused, tmp_path, monkeypatch):
    def run(*_, **__):
        raise AssertionError("the model ran")

    monkeypatch.setattr("vtprune.run.compare", run)
    (tmp_path / "file").touch()
    (tmp_path / "folder.png").mkdir()
    refused("--overlay", tmp_path / "file" / "out.png", said="out.png")
    refused("--overlay", tmp_path / "folder.png", said="is a folder")
    refused("--overlay", tmp_path / "out.bmp", said="PNG")
    refused("--overlay", "/proc/nowhere/out.png", said="cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_usage_errors_exit_with_2(invoke):
    assert invoke("run", "--nonsense").exit_code == 2
    assert invoke("run", "--max-new-tokens", "0").exit_code == 2
    assert invoke("nonsense").exit_code == 2


def test_faults_of_ours_keep_their_traceback(ask, monkeypatch):
    def run(*_, **__):
        raise ValueError("a fault")

    monkeypatch.setattr("vtprune.run.compare", run)
    with pytest.raises(ValueError, match="a fault"):
        ask()
