"""`evals/gpu_bench.py` in miniature: targets, tables, and which attention forward is faster."""

from __future__ import annotations

import json

import pytest
import torch

from vtprune.bench.cases import SCORED, Scene
from vtprune.evals import gpu_bench


def operators(forward=1.0):
    spread = {"median": 0.4, "q1": 0.4, "q3": 0.4}
    cases = {
        ("attention_scores", "last token, 32 heads of 128"): {"operator": spread},
        ("attention_column_mass", "vision"): {"operator, given log-sum-exp": spread, "sdpa forward": spread},
        ("flash_attention_with_scores", "decoder"): {"operator": {"median": forward}, SCORED: {"median": 1.0}},
        ("greedy_select", "farthest 64 of 576, 16 picture(s)"): {"operator": spread},
    }
    return [
        {
            "operator": operator,
            "shape": shape,
            "milliseconds": {"reference": {"median": 2.0}, **times},
            "refused": {},
            "floor_ms": 0.1,
        }
        for (operator, shape), times in cases.items()
    ]


@pytest.fixture(scope="module")
def points():
    """Two methods on a small model, in one round."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KINETO_LOG_LEVEL", "99")
        patch.setattr(gpu_bench, "METHODS", {"uniform": "uniform", "exit": "exit"})
        return gpu_bench.bench_model("qwen2.5-vl-7b", Scene(torch.device("cpu"), torch.float32, True), 1, 3)


def test_points_targets_and_tables(points):
    assert [x["method"] for x in points] == ["uniform", "exit"]
    points = [{**x, "model": "llava-1.5-7b"} for x in points]
    found = {x.name: x for x in gpu_bench.targets(points, operators())}
    assert found["overhead of exit on llava-1.5-7b, first token"].found == points[1]["overhead"]
    share = found["attention_scores, share of a prefill per scored layer"]
    assert share.found == pytest.approx(0.4 / points[0]["prefill"]["baseline"]["median"])
    assert found["greedy_select, 64 of 576, 16 pictures"].verdict == "met"
    machine = {"cpu": "a cpu", "device": "cpu", "threads": 1, "kernels": "torch", "commit": None, "torch": "2"}
    machine |= dict.fromkeys(("transformers", "triton", "vtprune"), "1")
    document = {
        "machine": machine,
        "kernels": {"said": "12 passed"},
        "targets": [x.to_dict() for x in found.values()],
        "points": points,
        "operators": operators(),
    }
    text = gpu_bench.markdown(document)
    for said in ("12 passed", "| uniform |", "| exit |", "greedy_select", "| met |"):
        assert said in text


@pytest.mark.parametrize(("found", "verdict"), [(1.0, "met"), (1.155, "missed by 10%"), (None, "not measured")])
def test_verdicts(found, verdict):
    assert gpu_bench.Target("x", found, 1.05).verdict == verdict


@pytest.mark.parametrize(("forward", "chosen"), [(0.8, "triton"), (1.2, "sdpa")])
def test_choice_of_the_attention_forward(forward, chosen, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_bench, "ROOT", tmp_path)
    (tmp_path / "kernels").mkdir()
    table = tmp_path / "kernels" / "measured.json"
    table.write_text('{"Another GPU": {"attention_forward": "sdpa"}}')
    machine = {"device": "NVIDIA H200", "torch": "2.11", "triton": "3.6"}
    gpu_bench.write_choice({"operators": operators(forward), "machine": machine}, tmp_path)
    written = json.loads(table.read_text())
    assert written["NVIDIA H200"]["attention_forward"] == chosen
    assert written["Another GPU"] == {"attention_forward": "sdpa"}
    assert json.loads((tmp_path / "measured.json").read_text()) == {"NVIDIA H200": written["NVIDIA H200"]}


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="--small"):
        gpu_bench.run(tmp_path / "out", small=False, minutes=1)
    assert list(tmp_path.iterdir()) == []
