"""tiny-internvl and tiny-qwen2.5-vl: the training looks at pictures and clips as processor and model do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.evals.small import small_family
from vtprune.evals.clip_questions import CLIP_KINDS, ask_clip
from vtprune.evals.clips import draw_clip, make_clip
from vtprune.evals.dense import encode
from vtprune.evals.export import export
from vtprune.evals.family import CLIP_SLOT, FamilyStudent, alike_clips
from vtprune.evals.qwen_family import SHAPES
from vtprune.evals.scenes import draw_scene, make_scene
from vtprune.evals.slots import decode
from vtprune.evals.tiny_internvl import new_internvl
from vtprune.evals.tiny_llava import IMAGE_ID, VOCAB_SIZE, new_model
from vtprune.evals.train_family import RECIPES
from vtprune.evals.vocabulary import build_tokenizer

NAMES = tuple(RECIPES)


@pytest.fixture(scope="module", params=NAMES)
def family(request):
    return RECIPES[request.param][0]


@pytest.fixture(scope="module")
def its_processor(family):
    return family.build_processor()


@pytest.fixture(scope="module")
def student(family):
    return FamilyStudent(family, small_family(family.name))


def dense_scores(student, batch, row: int, slot: int) -> torch.Tensor:
    """Scores of the tokens that answer a slot's question, from the training's path."""
    _, features = student.family.look(student.model, batch.pixels, batch.grid)
    hidden, _ = decode(student.model.model.language_model, features, batch.layout, batch.ids, 0)
    return student.model.lm_head(hidden[row, slot][batch.labels[row, slot] >= 0])


def single_scores(student, processor, kind: str, seen, text: str) -> torch.Tensor:
    """The same from an ordinary prompt, by the model as everybody uses it."""
    model = type(student.model)(type(student.model.config).from_dict(student.model.config.to_dict()))
    model.load_state_dict(student.model.state_dict())
    model.set_attn_implementation("sdpa")
    question, answer = text.split(" ASSISTANT: ")
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": kind}, {"type": "text", "text": question}]}], add_generation_prompt=True
    )
    shown = {"images": seen} if kind == "image" else {"videos": [seen]}
    inputs = processor(text=f"{prompt} {answer}", return_tensors="pt", **shown)
    answered = len(processor.tokenizer(f" {answer}", add_special_tokens=False).input_ids)
    return model.eval()(**inputs).logits[0, -answered - 1 :]


def slot_text(processor, batch, row: int, slot: int) -> str:
    ids = batch.ids[row, slot]
    return processor.tokenizer.decode(ids[: int((ids != 0).sum())])


@pytest.mark.parametrize("shape", [0, SHAPES.index((12, 20)), SHAPES.index((20, 20))])
def test_pictures_are_seen_as_by_the_processor(family, student, its_processor, shape, monkeypatch):
    class Drawn:
        integers = staticmethod(lambda *_: shape)

    batch = family.pictures([3, 4], characters=0.6, rng=Drawn())
    with torch.no_grad():
        for row, slot in ((0, 0), (1, 5)):
            picture = draw_scene(make_scene((3, 4)[row], characters=0.6))
            if len(batch.grid) == 3:
                size = batch.grid[2] * 14, batch.grid[1] * 14
                picture = picture.resize(size, Image.Resampling.BICUBIC)
            text = slot_text(its_processor, batch, row, slot)
            expected = single_scores(student, its_processor, "image", picture, text)
            # Thumbnails are made by PIL here and by torchvision there, which differ by a shade at most.
            torch.testing.assert_close(dense_scores(student, batch, row, slot), expected, atol=5e-3, rtol=1e-2)


def test_clips_are_seen_as_by_the_processor(family, student, its_processor):
    for seed in (0, 5):
        clips = alike_clips(family, seed, 2)
        assert len({family.steps(clip) for clip in clips}) == 1
        batch = family.clips(clips)
        with torch.no_grad():
            for row, clip in enumerate(clips):
                text = slot_text(its_processor, batch, row, 0)
                expected = single_scores(student, its_processor, "video", draw_clip(clip), text)
                torch.testing.assert_close(dense_scores(student, batch, row, 0), expected, atol=1e-4, rtol=1e-3)


def test_every_clip_question_fits_into_a_slot():
    for seed in range(60):
        for place, kind in enumerate(CLIP_KINDS):
            asked = ask_clip(make_clip(seed), np.random.default_rng(place), kind)
            assert asked is None or encode(asked.text, asked.answer, CLIP_SLOT) is not None


def test_targets_follow_the_tokens(family):
    batch = family.pictures([11], characters=0.6)
    words = batch.tokens[0][0]
    assert words.shape[:2] == (len(batch.layout.visual), 4)
    assert batch.counting.shape == (len(batch.layout.visual),)
    assert sorted(words.flatten(0, 1).tolist()) == sorted(batch.patches[0][0].tolist())


def test_text_tokens_are_those_of_tiny_llava(its_processor, processor):
    text = "Where is the red star? \N{SNOWMAN}"
    assert its_processor.tokenizer(text).input_ids == processor.tokenizer(text).input_ids
    assert len(its_processor.tokenizer) <= VOCAB_SIZE


def test_a_new_model_reads_text_as_tiny_llava(family):
    llava = new_model(3)
    model = family.new_model(llava)
    assert 4 * sum(p.numel() for p in model.parameters()) < 19_980_000
    ids = torch.tensor([[1, 300, 310, 42, 99]])
    with torch.no_grad():
        # The ids behind are those of new special tokens.
        new, old = (m(input_ids=ids).logits[..., : len(build_tokenizer())] for m in (model, llava))
    torch.testing.assert_close(new, old, atol=1e-4, rtol=1e-4)


def test_a_new_tower_starts_from_tiny_llavas():
    llava = new_model(3)
    new, old = new_internvl(llava).model.vision_tower, llava.model.vision_tower
    for layer, source in zip(new.encoder.layer, old.encoder.layers, strict=True):
        assert torch.equal(layer.mlp.fc1.weight, source.mlp.fc1.weight)
        assert (layer.lambda_1 == 1).all()


def test_exported_and_loaded_by_auto_classes(family, student, its_processor, tmp_path):
    export(student.model, tmp_path / "model", its_processor)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    its = AutoProcessor.from_pretrained(tmp_path / "model")
    assert type(its) is type(its_processor)
    picture = draw_scene(make_scene(1))
    content = [{"type": "image"}, {"type": "text", "text": "Where is it?"}]
    prompt = its.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = its(images=picture, text=prompt, return_tensors="pt")
    assert (inputs.input_ids == IMAGE_ID).sum() == (80 if family.name == "tiny-internvl" else 64)
    assert loaded.generate(**inputs).shape[1] > inputs.input_ids.shape[1]
    assert loaded.config._attn_implementation == "sdpa"
