"""lmms-eval itself, on a local task: it must say what vtprune says of the same questions."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import vtprune
from vtprune.evals.runner.answering import answer
from vtprune.evals.runner.likelihood import likeliest
from vtprune.evals.suite import ask_model, scene_picture, scene_questions
from vtprune.images import load_image
from vtprune.inputs import Ask, continuation, make_batch
from vtprune.models import load_model, shipped_example
from vtprune.videos import load_video

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
datasets = pytest.importorskip("datasets")

QUESTIONS = scene_questions(24, seed=7)
CHOICES_OF = [
    sorted({x.question.answer for x in QUESTIONS if x.question.kind == item.question.kind}) for item in QUESTIONS
]
METHODS = {"none": None, "fastv": 0.25, "divprune": 0.25}
TASK = """
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_visual: image
doc_to_text: question
"""
OPEN = """
task: scenes_open
output_type: generate_until
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 16
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true, ignore_case: true}
"""
CHOICES = """
task: scenes_choices
output_type: multiple_choice
doc_to_choice: choices
doc_to_target: right
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
ROUNDS = """
task: clips_in_rounds
output_type: generate_until_multi_round
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
doc_to_visual: !function rounds.first_shown
doc_to_text: !function rounds.asked
doc_to_target: answer
generation_kwargs:
  max_new_tokens: 16
process_results: !function rounds.judged
metric_list:
  - {{metric: answers, aggregation: mean, higher_is_better: true}}
"""
EXAMPLES = [(shipped_example(f"clip-{n}.mp4"), shipped_example(f"scene-{n}.png")) for n in (1, 2)]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    lines = [
        {
            "image": scene_picture(item.seed),
            "question": item.question.text,
            "answer": item.question.answer,
            "choices": choices,
            "right": choices.index(item.question.answer),
        }
        for item, choices in zip(QUESTIONS, CHOICES_OF, strict=True)
    ]
    data = folder / "scenes.parquet"
    datasets.Dataset.from_list(lines).cast_column("image", datasets.Image()).to_parquet(str(data))
    for name, text in (("open", OPEN), ("choices", CHOICES)):
        (folder / f"{name}.yaml").write_text(text.strip() + TASK.format(data=data))
    lines = [{"shown": [str(file) for file, _ in pair], "asked": [text for _, text in pair]} for pair in EXAMPLES]
    (folder / "clips.jsonl").write_text("".join(json.dumps({**line, "answer": ""}) + "\n" for line in lines))
    (folder / "rounds.yaml").write_text(ROUNDS.strip().format(data=folder / "clips.jsonl"))
    (folder / "rounds.py").write_text(Path(__file__).with_name("lmms_rounds.py").read_text())
    return folder


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    home = str(tmp_path_factory.mktemp("home"))
    never = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "WANDB_MODE": "disabled"}
    return {**os.environ, **never, "HF_HOME": home, "HF_DATASETS_CACHE": home, "OMP_NUM_THREADS": "1"}


def model_args(method, model="tiny-llava"):
    return f"pretrained={model},method={method}" + ("" if METHODS[method] is None else f",keep={METHODS[method]}")


def run_all(tasks, offline, folder):
    """All that one process of lmms-eval found, by name."""
    cache = {"use_cache": str(folder / "cache")}
    plan = {
        **{m: {"model_args": model_args(m), "tasks": ["scenes_open"], **cache} for m in METHODS},
        "cached": {"model_args": model_args("fastv"), "tasks": ["scenes_open"], **cache},
        "qwen": {"model_args": model_args("divprune", "tiny-qwen2.5-vl"), "tasks": ["scenes_open"]},
        "rounds": {"model_args": model_args("divprune", "tiny-qwen2.5-vl") + ",frames=6", "tasks": ["clips_in_rounds"]},
        "choices": {"model_args": model_args("fastv"), "tasks": ["scenes_choices"], "force_simple": True},
    }
    (folder / "plan.json").write_text(json.dumps({"tasks": str(tasks), "runs": list(plan.values())}))
    script = Path(__file__).with_name("lmms_run.py")
    command = [sys.executable, str(script), str(folder / "plan.json"), str(folder / "results.json")]
    done = subprocess.run(command, env=offline, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return dict(zip(plan, json.loads((folder / "results.json").read_text()), strict=True))


def asked(model, method):
    """What vtprune says, without lmms-eval, and how much of it is right."""
    loaded, answers = load_model(model, device="cpu"), []
    if METHODS[method] is not None:
        vtprune.apply(loaded.model, method, keep=METHODS[method])
    for first in range(0, len(QUESTIONS), 8):
        items = QUESTIONS[first : first + 8]
        shown = [scene_picture(x.seed) for x in items]
        answers += ask_model(loaded.model, loaded.processor, shown, [x.question.text for x in items])
    return answers, sum(map(is_right, answers, QUESTIONS)) / len(QUESTIONS)


def is_right(answer, item):
    return answer == item.question.answer.lower()


def said(run):
    return [answer.lower() for (answer,) in run["samples"]["scenes_open"]]


def test_lmms_eval_says_what_vtprune_says(tasks, offline, tmp_path):
    """One test, as its one process is dear, and tests of a module may be shared out among workers."""
    runs = run_all(tasks, offline, tmp_path)
    for method in METHODS:
        check_answers_and_accuracy(runs[method], "tiny-llava", method)
    check_answers_and_accuracy(runs["qwen"], "tiny-qwen2.5-vl", "divprune")
    check_what_was_saved(runs)
    check_that_the_cache_of_answers_tells_methods_apart(runs)
    check_multiple_choice_by_likelihood(runs)
    check_rounds_of_videos_and_pictures(runs)


def check_answers_and_accuracy(run, model, method):
    answers, accuracy = asked(model, method)
    assert said(run) == answers
    assert run["results"]["scenes_open"]["exact_match,none"] == pytest.approx(accuracy)


def check_what_was_saved(runs):
    saved = runs["divprune"]["throughput"]
    assert (saved["avg_visual_tokens_before"], saved["avg_visual_tokens_after"]) == (256, 64)
    assert 0 < saved["avg_prefill_flops_share"] < runs["fastv"]["throughput"]["avg_prefill_flops_share"] < 1
    assert "avg_visual_tokens_after" not in runs["none"]["throughput"]


def check_that_the_cache_of_answers_tells_methods_apart(runs):
    """All had the same cache: each method was run once, and only what is the same in everything was served from it."""
    assert all(runs[method]["throughput"]["total_gen_tokens"] > 0 for method in METHODS)
    assert not runs["cached"]["throughput"]
    assert said(runs["cached"]) == said(runs["fastv"])


def check_multiple_choice_by_likelihood(runs):
    """What the harness is told is the likelihood that vtprune reads, as a loss per token; it takes the smallest."""
    loaded, right = load_model("tiny-llava", device="cpu"), []
    vtprune.apply(loaded.model, "fastv", keep=METHODS["fastv"])
    for item, choices, line in zip(QUESTIONS, CHOICES_OF, runs["choices"]["samples"]["scenes_choices"], strict=True):
        ask = Ask(item.question.text, [scene_picture(item.seed)])
        found = likeliest(loaded, make_batch(loaded, [ask]), [ask], [choices])
        tokens = [len(continuation(loaded, ask, choice)) for choice in choices]
        losses = [-value / count for value, count in zip(found.likelihoods[0], tokens, strict=True)]
        assert [loss for loss, _ in line] == pytest.approx(losses, abs=1e-4)
        right.append(choices[losses.index(min(losses))] == item.question.answer)
    assert runs["choices"]["results"]["scenes_choices"]["acc,none"] == pytest.approx(sum(right) / len(right))


def check_rounds_of_videos_and_pictures(runs):
    loaded = load_model("tiny-qwen2.5-vl", device="cpu")
    vtprune.apply(loaded.model, "divprune", keep=METHODS["divprune"])
    expected = []
    for (clip, first), (picture, second) in EXAMPLES:
        asks = Ask(first, videos=[load_video(clip, frames=6)]), Ask(second, [load_image(picture)])
        expected.append([answer(loaded, make_batch(loaded, [ask]), 16).texts[0] for ask in asks])
    assert [said for (said,) in runs["rounds"]["samples"]["clips_in_rounds"]] == expected
    assert runs["rounds"]["results"]["clips_in_rounds"]["answers,none"] == 2


def test_two_processes_give_the_numbers_of_one(tasks, offline, tmp_path):
    """By the command line, data parallel, with an odd number of questions."""
    answers, _ = asked("tiny-llava", "fastv")
    accuracy = sum(map(is_right, answers[:23], QUESTIONS[:23])) / 23
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    launch = ["accelerate.commands.launch", "--num_processes", "2", "--cpu", "--main_process_port", str(port)]
    words = ["--model", "vtprune", "--model_args", model_args("fastv"), "--tasks", "scenes_open", "--batch_size", "5"]
    where = ["--include_path", str(tasks), "--output_path", str(tmp_path), "--log_samples", "--limit", "23"]
    command = [sys.executable, "-m", *launch, "-m", "lmms_eval", *words, *where]
    done = subprocess.run(command, env=offline, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (results,) = tmp_path.rglob("*_results.json")
    found = json.loads(results.read_text())
    assert found["results"]["scenes_open"]["exact_match,none"] == pytest.approx(accuracy)
    (lines,) = tmp_path.rglob("*_samples_scenes_open.jsonl")
    told = {one["doc_id"]: one["filtered_resps"] for one in map(json.loads, lines.read_text().splitlines())}
    assert [told[number].lower() for number in range(len(told))] == answers[:23]
