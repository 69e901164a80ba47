"""What a visitor asks about, and what is wrong with it."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from vtprune.demo.setting import Limits
from vtprune.demo.work.media import read_question
from vtprune.videos import Video

TEXT = "What colour is the circle?"


def test_a_shipped_picture(picture, tmp_path):
    copy = tmp_path / picture.name
    shutil.copy(picture, copy)
    question = read_question(f"  {TEXT} ", str(copy), None, Limits())
    assert (question.text, question.file, question.shipped, question.is_video) == (TEXT, "scene-1.png", True, False)


def test_an_upload_of_the_same_name_is_no_shipped_picture(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "scene-1.png")
    assert not read_question(TEXT, str(tmp_path / "scene-1.png"), None, Limits()).shipped


def test_a_clip_has_no_more_frames_than_allowed(clip):
    question = read_question(TEXT, None, str(clip), Limits(frames=3))
    assert isinstance(question.medium, Video)
    assert len(question.medium.frames) == 3


def test_a_question_is_put_into_the_words_of_the_model(llava, question):
    inputs = question.inputs(llava, 8)
    assert "circle" in llava.processor.decode(inputs["input_ids"][0])
    assert inputs["pixel_values"].shape[0] == 1


def test_a_prompt_longer_than_the_model(llava, picture):
    question = read_question("circle " * 1900, str(picture), None, Limits(prompt=100_000))
    with pytest.raises(ValueError, match=r"prompt must have at most [\d,]+ tokens.*Ask a shorter question"):
        question.inputs(llava, 128)


def test_a_model_that_takes_no_clips(llava, clip):
    with pytest.raises(ValueError, match="takes pictures only"):
        read_question(TEXT, None, str(clip), Limits(frames=4)).inputs(llava, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "must not be empty"), ("  \n", "must not be empty"), ("x" * 2001, "at most 2,000 letters, got 2,001")],
)
def test_questions_that_are_none(text, message, picture):
    with pytest.raises(ValueError, match=message):
        read_question(text, str(picture), None, Limits())


def test_nothing_to_look_at():
    with pytest.raises(ValueError, match="upload a picture or a clip"):
        read_question(TEXT, None, None, Limits())


@pytest.mark.parametrize("kind", ["picture", "clip"])
def test_a_wrong_file_is_told_without_its_folder(tmp_path, kind):
    wrong = tmp_path / "notes.png"
    wrong.write_text("no picture at all")
    files = (str(wrong), None) if kind == "picture" else (None, str(wrong))
    with pytest.raises(ValueError, match=r"notes\.png") as told:
        read_question(TEXT, *files, Limits())
    assert str(tmp_path) not in str(told.value)


def test_an_upload_that_has_been_deleted(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.png") as told:
        read_question(TEXT, str(tmp_path / "gone.png"), None, Limits())
    assert str(tmp_path) not in str(told.value)
