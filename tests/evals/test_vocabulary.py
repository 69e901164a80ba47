"""Tokenizer and processor: any text, exactly 256 placeholders per picture, one <s>, the prompts of the training."""

from __future__ import annotations

import functools
import hashlib
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vtprune.evals.scenes import draw_scene, make_scene
from vtprune.evals.tiny_llava import BOS_ID, EOS_ID, IMAGE_ID, PAD_ID, VOCAB_SIZE
from vtprune.evals.vocabulary import PROMPT, build_tokenizer

QUESTION = "What colour is the star?"


@functools.cache
def built():
    """Hypothesis runs a test many times and takes no fixtures of a test."""
    return build_tokenizer()


def user(text: str, images: int = 1, image: Image.Image | None = None) -> dict:
    part = {"type": "image"} if image is None else {"type": "image", "image": image}
    return {"role": "user", "content": [part] * images + [{"type": "text", "text": text}]}


def test_ids_are_those_of_the_shipped_weights(processor):
    vocabulary = json.dumps(sorted(processor.tokenizer.get_vocab().items()))
    assert hashlib.sha256(vocabulary.encode()).hexdigest()[:16] == "971657617fe928b6"
    ids = processor.tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<image>"])
    assert ids == [PAD_ID, BOS_ID, EOS_ID, IMAGE_ID] == [0, 1, 2, 3]
    assert len(processor.tokenizer) <= VOCAB_SIZE


@given(st.text())
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back(text):
    tokenizer = built()
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
    assert tokenizer(text).input_ids[0] == BOS_ID


@pytest.mark.parametrize("size", [(224, 224), (448, 448), (300, 100), (17, 400), (3, 3)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_a_picture_is_256_tokens(processor, size, mode):
    inputs = processor(images=Image.new(mode, size), text=PROMPT.format(question=QUESTION), return_tensors="pt")
    assert inputs.pixel_values.shape == (1, 3, 224, 224)
    assert (inputs.input_ids == IMAGE_ID).sum() == 256
    assert (inputs.input_ids == BOS_ID).sum() == 1
    assert inputs.input_ids[0, 0] == BOS_ID


def test_wide_pictures_are_not_cropped(processor):
    picture = Image.new("RGB", (400, 100))
    picture.paste((255, 255, 255), (0, 0, 20, 100))
    pixels = processor.image_processor(picture, return_tensors="pt").pixel_values[0, 0]
    assert pixels[:, 2].min() > pixels[:, 100].max()


def test_prompts(processor):
    render = processor.apply_chat_template
    prompt = PROMPT.format(question=QUESTION)
    assert render([user(QUESTION)], add_generation_prompt=True) == prompt
    answered = [user(QUESTION), {"role": "assistant", "content": "red"}]
    assert render(answered) == f"{prompt} red</s>"
    follow_up = [*answered, {"role": "user", "content": "Where is it?"}]
    expected = f"{prompt} red</s>USER: Where is it? ASSISTANT:"
    assert render(follow_up, add_generation_prompt=True) == expected
    assert render([user("Which?", images=3)]) == "USER: <image>\n<image>\n<image>\nWhich?"
    system = [{"role": "system", "content": "Be brief."}, user(QUESTION)]
    assert render(system, add_generation_prompt=True) == f"Be brief. {prompt}"
    with pytest.raises(Exception, match="role must be user, assistant or system, got tool"):
        render([{"role": "tool", "content": "x"}])


def test_one_start_token_on_every_path(processor):
    picture = draw_scene(make_scene(0))
    prompt = PROMPT.format(question=QUESTION)
    direct = processor(images=picture, text=prompt, return_tensors="pt").input_ids
    options = dict(add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
    templated = processor.apply_chat_template([user(QUESTION, image=picture)], **options)
    assert torch.equal(templated["input_ids"], direct)
    assert (direct == BOS_ID).sum() == 1


def test_batches_are_padded_on_the_left(processor):
    pictures = [draw_scene(make_scene(seed)) for seed in (0, 1)]
    texts = [PROMPT.format(question=question) for question in ("Count the stars.", "In which quarter is the red star?")]
    inputs = processor(images=pictures, text=texts, padding=True, return_tensors="pt")
    padding = int((inputs.attention_mask[0] == 0).sum())
    assert padding > 0
    assert inputs.input_ids[0, :padding].eq(PAD_ID).all()
    assert inputs.input_ids[0, padding] == BOS_ID
    assert inputs.attention_mask[1].all()
