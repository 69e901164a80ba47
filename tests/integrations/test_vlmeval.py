"""VLMEvalKit itself, on a local data set: its model must say what vtprune says of the same questions."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

import vtprune
from vtprune.evals.suite import ask_model, scene_picture, scene_questions
from vtprune.models import load_model

if find_spec("vlmeval") is None:
    pytest.skip("VLMEvalKit is not installed", allow_module_level=True)

QUESTIONS = scene_questions(12, seed=7)
PROGRAM = """
import json, sys
from vlmeval.dataset import build_dataset
from vlmeval.inference import infer_data_job
from vlmeval.smp import get_pred_file_path, load
from vtprune.integrations.vlmeval import register

register("tiny-llava-divprune-25", "tiny-llava", method="divprune", keep=0.25, device="cpu", max_new_tokens=16)
dataset = build_dataset("Scenes")
infer_data_job("tiny-llava-divprune-25", sys.argv[1], "tiny-llava-divprune-25", dataset)
found = load(get_pred_file_path(sys.argv[1], "tiny-llava-divprune-25", "Scenes", use_env_format=True))
print(json.dumps([str(answer) for answer in found["prediction"]]))
"""


def test_answers_are_those_of_vtprune(tmp_path):
    rows = ["index\tquestion\tanswer\timage"]
    for number, item in enumerate(QUESTIONS):
        file = io.BytesIO()
        scene_picture(item.seed).save(file, format="PNG")
        picture = base64.b64encode(file.getvalue()).decode()
        rows.append(f"{number}\t{item.question.text}\t{item.question.answer}\t{picture}")
    (tmp_path / "Scenes.tsv").write_text("\n".join(rows) + "\n")
    environment = {**os.environ, "LMUData": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    loaded = load_model("tiny-llava", device="cpu")
    vtprune.apply(loaded.model, "divprune", keep=0.25)
    shown = [scene_picture(item.seed) for item in QUESTIONS]
    expected = ask_model(loaded.model, loaded.processor, shown, [item.question.text for item in QUESTIONS])
    assert [answer.lower() for answer in json.loads(done.stdout.splitlines()[-1])] == expected
