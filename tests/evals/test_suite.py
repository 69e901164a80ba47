"""The suite and the table on a shrunken model."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

import vtprune
from tests.evals.small import small_family
from vtprune.evals import suite, turns
from vtprune.evals.clip_questions import CLIP_KINDS
from vtprune.evals.clip_suite import questions_about_clips
from vtprune.evals.export import export
from vtprune.evals.questions import KINDS
from vtprune.evals.rows import Row, plan, run_row
from vtprune.evals.suite import evaluate, scene_questions
from vtprune.evals.table import main, run_table
from vtprune.evals.train_family import RECIPES
from vtprune.evals.turns import question_pairs


def test_kinds_are_equally_frequent():
    for n in (60, 61):
        counts = Counter(item.question.kind for item in scene_questions(n))
        assert set(counts) == set(KINDS)
        assert sum(counts.values()) == n
        assert max(counts.values()) - min(counts.values()) == n % len(KINDS)
    assert scene_questions(20) == scene_questions(20)
    assert {item.question.kind for item in scene_questions(5, kinds=["read"])} == {"read"}
    with pytest.raises(ValueError, match="kinds must be some of"):
        scene_questions(5, kinds=["size"])


def test_whole_answers_are_compared(model, processor, monkeypatch):
    questions = scene_questions(12)
    right = {item.question.text: item.question.answer.lower() for item in questions}
    wrong = next(item.question for item in questions if item.question.kind == "where")

    def answers(model, processor, pictures, asked):
        assert len(pictures) == len(asked) <= 5
        return ["top" if text == wrong.text else right[text] for text in asked]

    monkeypatch.setattr(suite, "ask_model", answers)
    seen = []
    result = evaluate(model, processor, questions, batch_size=5, on_batch=seen.append)
    assert seen == [5, 5, 2]
    assert result["n"] == 12
    assert result["accuracy"] == pytest.approx(11 / 12)
    assert result["by_kind"] == {**dict.fromkeys(KINDS, 1.0), "where": 0.5}


def test_batches_do_not_change_answers(model, processor):
    questions = scene_questions(6)
    pictures = [suite.scene_picture(item.seed) for item in questions]
    texts = [item.question.text for item in questions]
    together = suite.ask_model(model, processor, pictures, texts)
    alone = [suite.ask_model(model, processor, [p], [t])[0] for p, t in zip(pictures, texts, strict=True)]
    assert together == alone


@pytest.mark.parametrize("name", tuple(RECIPES))
def test_clips_are_asked_about(name, tmp_path):
    model, processor = small_family(name), RECIPES[name][0].build_processor()
    questions = questions_about_clips(6)
    seen = []
    result = evaluate(model, processor, questions, batch_size=4, on_batch=seen.append)
    assert sum(seen) == result["n"] == 6
    assert set(result["by_kind"]) == set(CLIP_KINDS)
    out = tmp_path / "table.json"
    options = dict(settings={"model": name}, limit=4, batch_size=4, clips=True)
    table = run_table(model, processor, [Row(), Row(blank=True)], out, **options)
    assert table["settings"]["about"] == "clips"
    assert "| needle |" in out.with_suffix(".md").read_text()


def test_second_questions_are_about_the_same_picture():
    pairs = question_pairs(30)
    assert len(pairs) == 30
    assert all(a.seed == b.seed and a.question != b.question for a, b in pairs)
    assert question_pairs(30)[:10] == question_pairs(10)


@pytest.mark.parametrize("name", tuple(RECIPES))
def test_second_questions_are_answered_as_in_the_whole_conversation(name, tmp_path, monkeypatch):
    """What is fed to the kept cache is all that a run over the whole conversation would feed, and no answer differs."""
    model, processor = small_family(name), RECIPES[name][0].build_processor()
    (first, second), *_ = pairs = question_pairs(1)
    conversation = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": first.question.text}]},
        {"role": "assistant", "content": [{"type": "text", "text": first.question.answer.lower()}]},
        {"role": "user", "content": [{"type": "text", "text": second.question.text}]},
    ]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor(text=[text], images=[suite.scene_picture(first.seed)], return_tensors="pt")
    with torch.no_grad():
        whole = model.generate(**inputs, do_sample=False, max_new_tokens=16)
    answers, seen = [], []
    with monkeypatch.context() as patched:
        patched.setattr(processor, "batch_decode", lambda ids, **_: answers.append(ids) or [""] * len(ids))
        result = turns.evaluate_turns(model, processor, pairs, on_batch=seen.append)
    assert torch.equal(answers[0][0], whole[0, inputs["input_ids"].shape[1] :])
    assert seen == [1]
    assert result == {"accuracy": 0.0, "n": 1, "by_kind": {second.question.kind: 0.0}}
    rows = [Row(), Row(blank=True), Row("snapkv", 0.25)]
    table = run_table(model, processor, rows, tmp_path / "t.json", settings={"model": name}, limit=5, turns=True)
    assert table["settings"]["about"] == "turns"
    assert table["rows"]["snapkv keep=0.25"]["cache_bytes"] < 1
    with pytest.raises(ValueError, match="clips or turns"):
        run_table(model, processor, rows, tmp_path / "u.json", settings={}, limit=5, turns=True, clips=True)


def test_plan():
    rows = plan(["fastv:layer=1", "exit", "divprune:keep=0.5"], [0.5, 64])
    names = [row.name for row in rows]
    assert names[:2] == ["unpruned", "blank pictures"]
    assert names[2:] == ["fastv:layer=1 keep=0.5", "fastv:layer=1 keep=64", "exit", "divprune:keep=0.5"]
    with pytest.raises(ValueError, match="methods must be among"):
        plan(["fastw"], [0.5])


def test_tokens_that_the_decoder_sees(model, processor):
    layers = model.config.get_text_config().num_hidden_layers
    options = dict(questions=scene_questions(3), batch_size=2)
    for row, expected in (
        (Row("random", 0.25), 64),
        (Row("fastv:layer=1", 0.25), (256 + (layers - 1) * 64) / layers),
        (Row(f"exit:layer={layers - 1}"), 256 * (layers - 1) / layers),
    ):
        result = run_row(model, processor, row, **options)
        assert result["tokens_before"] == 3 * 256
        assert result["tokens_seen"] == pytest.approx(3 * expected, abs=0.1)


def test_table_is_resumed(model, processor, tmp_path):
    rows = [Row(), Row("random", 0.25), Row("tome", 1)]
    out, seen = tmp_path / "table.json", []
    options = dict(settings={"model": "small"}, limit=6, batch_size=4)
    first = run_table(model, processor, rows[:2], out, **options)
    assert vtprune.methods("random")
    assert first["rows"]["random keep=0.25"]["tokens_after"] == 6 * 64
    table = run_table(model, processor, rows, out, **options, on_row=lambda row: seen.append(row.name))
    assert seen == ["tome keep=1"]
    assert json.loads(out.read_text()) == table
    assert table["rows"] | first["rows"] == table["rows"]
    assert "keep must leave at least" in table["rows"]["tome keep=1"]["unsupported"]
    assert out.with_suffix(".md").read_text().count("\n") == 2 + len(rows)
    with pytest.raises(ValueError, match="no method is applied"):
        vtprune.report(model)
    with pytest.raises(ValueError, match="out must be a new file or hold results with"):
        run_table(model, processor, rows, out, **{**options, "limit": 7})


def test_command_line(model, tmp_path, capsys):
    export(model, tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "t.json"), "--limit", "6"]
    main([*arguments, "--methods", "uniform", "--keep", "0.5"])
    assert "| uniform keep=0.5 |" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "t.json").read_text())["rows"]) == {
        "unpruned",
        "blank pictures",
        "uniform keep=0.5",
    }
