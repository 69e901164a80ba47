"""`vtprune bench` and `vtprune bench-kernels`: output, refusals, and sweeps that are taken up again."""

from __future__ import annotations

import csv
import json

import pytest

from vtprune.bench import measuring
from vtprune.bench.clock import PHASES
from vtprune.bench.count import Calls, Counts

ARMS = {"baseline", "method", "ideal"}


@pytest.fixture
def bench(invoke, model_folder, picture, monkeypatch):
    """`vtprune bench` on the random model, as short as can be."""
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")

    def call(*words, model=model_folder):
        given = ["--model", model, "--image", picture, "--repeats", 2, "--warmup", 0, "--new-tokens", 3]
        return invoke("bench", *given, *words)

    return call


@pytest.fixture
def uncounted(monkeypatch):
    """Skip the counting, which takes most of a short run."""
    calls = dict.fromkeys(("encoder", "tower", "projector", "prefill", "decode"), Calls(2, 1))
    counts = Counts(dict.fromkeys(("encoder", "tower", "prefill"), 10), calls, {}, 3, 2)
    monkeypatch.setattr(measuring, "count_request", lambda *_, **__: counts)


def only_json(result):
    """The document on stdout, which holds nothing else."""
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_json(bench, tmp_path):
    out = tmp_path / "new" / "bench.json"
    found = only_json(bench("--method", "divprune", "--keep", "0.25", "--json", "--out", out))
    assert json.loads(out.read_text()) == found
    assert found["speedup"] == pytest.approx(found["baseline_ttft_ms"] / found["ttft_ms"])
    assert found["overhead"] == pytest.approx(found["ttft_ms"] / found["ideal_ttft_ms"])
    assert (found["visual_tokens_before"], found["visual_tokens_after"]) == (256, 64)
    assert found["slots_per_layer"] == [found["prompt_slots"] - 192] * 3
    for phase in PHASES:
        measured = found[phase]
        for arm in ARMS:
            assert 0 < measured[arm]["q1"] <= measured[arm]["median"] <= measured[arm]["q3"]
        assert measured["speedup"] == pytest.approx(measured["baseline"]["median"] / measured["method"]["median"])
        assert measured["overhead"] == pytest.approx(measured["method"]["median"] / measured["ideal"]["median"])
    for arm in ARMS:
        assert found["tower"][arm]["median"] <= found["encoder"][arm]["median"] <= found["ttft"][arm]["median"]
        assert found["prefill"][arm]["median"] <= found["ttft"][arm]["median"]
        assert found["peak_bytes"][arm] > found["kv_bytes"][arm] > 0
        assert found["achieved_flops_per_second"][arm]["prefill"] > 0
        assert found["operators"][arm]["decode"] > 0
    assert found["kv_bytes"]["method"] == found["kv_bytes"]["ideal"] < found["kv_bytes"]["baseline"]
    executed = found["flops"]["executed"]
    assert executed["ideal"]["prefill"] <= executed["method"]["prefill"] < executed["baseline"]["prefill"]
    assert found["waits"]["ideal"]["prefill"] == found["waits"]["baseline"]["prefill"] == 0
    assert found["machine"]["torch"]
    assert found["machine"]["threads"] >= 1
    assert (found["repeats"], found["batch_size"], found["keep"]) == (2, 1, 0.25)


def test_table_says_what_it_means(bench, uncounted):
    result = bench("--method", "fastv:layer=1", "--keep", "0.25", "--batch-size", "2")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "fastv:layer=1 keeps 128 of 512 visual tokens" in said
    assert "times as fast as from the untouched model" in said
    for name in ("time to first token", "vision tower", "prefill", "each further token", "KV cache", "torch 2."):
        assert name in said


def test_no_decoding(bench, uncounted):
    found = only_json(bench("--method", "exit:layer=1", "--json", "--new-tokens", "1"))
    assert found["decode"] is None
    assert found["keep"] is None
    assert found["visual_tokens_after"] == 0


def test_chain(bench):
    words = ["--method", "tome:keep=0.5", "--method", "fastv:layer=1,keep=0.5", "--json"]
    found = only_json(bench(*words))
    assert found["method"] == "tome:keep=0.5 + fastv:layer=1,keep=0.5"
    assert found["visual_tokens_after"] == 64
    assert found["flops"]["executed"]["ideal"]["tower"] < found["flops"]["executed"]["baseline"]["tower"]


def refused(result, *said):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    for text in said:
        assert text in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "0"], "keep must be a ratio"),
        (["--method", "divprun"], "Did you mean 'divprune'"),
        (["--method", "fastv:layer=99"], "99"),
        (["--keep", "0.5", "--keep", "0.25"], "--sweep"),
        (["--resume"], "--sweep"),
        (["--sweep"], "--out"),
        (["--sweep", "--out", "x.png"], "CSV"),
        (["--out", "x.csv"], "JSON"),
        (["--out", "/proc/nowhere/x.json"], "cannot be written"),
        (["--sweep", "--out", "x.csv", "--set", "layer=2"], "write parameters with their method"),
        (["--sweep", "--out", "x.csv", "--method", "fastv", "--method", "fastv"], "given twice"),
        (["--device", "abacus"], "abacus"),
        (["--dtype", "int3"], "dtype"),
        (["--video", "clip.mp4"], "does not exist"),
    ],
)
def test_bad_input(bench, words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measuring, "record", None)
    refused(bench(*words), said)
    assert list(tmp_path.iterdir()) == []


def test_usage_errors(bench):
    assert bench("--repeats", "0").exit_code == 2
    assert bench("--new-tokens", "0").exit_code == 2
    assert bench("--batch-size", "0").exit_code == 2


def test_sweep_is_taken_up_again(bench, uncounted, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    out = tmp_path / "sweep.csv"
    words = [
        "--sweep",
        "--out",
        out,
        "--keep",
        "0.5",
        "--keep",
        "32",
        "--method",
        "divprune",
        "--method",
        "exit:layer=1",
    ]
    timed, time_request = [], measuring.time_request

    def interrupted(*arguments):
        timed.append(arguments)
        if len(timed) > 2 * 5:  # the first method's two points: untouched, and method and ideal for each
            raise KeyboardInterrupt
        return time_request(*arguments)

    monkeypatch.setattr(measuring, "time_request", interrupted)
    result = bench(*words)
    assert result.exit_code == 130
    assert "2 points are in" in result.stderr
    assert "--resume" in result.stderr
    first = list(csv.DictReader(out.open()))
    assert [(row["method"], row["keep"]) for row in first] == [("divprune", "0.5"), ("divprune", "32")]
    monkeypatch.setattr(measuring, "time_request", time_request)
    refused(bench(*words), "--resume")
    refused(bench(*words, "--resume", "--new-tokens", "2"), "new_tokens is 3 there and 2 now")
    result = bench(*words, "--resume")
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(out.open()))
    assert rows[:2] == first
    assert [(row["method"], row["keep"], row["visual_tokens_after"]) for row in rows] == [
        ("divprune", "0.5", "128"),
        ("divprune", "32", "32"),
        ("exit:layer=1", "", "0"),
    ]
    for row in rows:
        assert float(row["overhead"]) == pytest.approx(float(row["ttft_ms"]) / float(row["ideal_ttft_ms"]))
        assert float(row["prefill_q1_ms"]) <= float(row["prefill_ms"]) <= float(row["prefill_q3_ms"])
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(out.with_suffix(".json").read_text())["points"]) == 3
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", ".png"]


def test_sweep_without_matplotlib(bench, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    refused(bench("--sweep", "--out", tmp_path / "x.csv"), "matplotlib", "vtprune[eval]")


def test_bench_kernels(invoke):
    words = ["--operator", "greedy_select", "--operator", "ragged_compact", "--repeats", "2", "--json"]
    found = only_json(invoke("bench-kernels", *words, "--device", "cpu"))
    assert {case["operator"] for case in found["cases"]} == {"greedy_select", "ragged_compact"}
    for case in found["cases"]:
        assert case["refused"] == {}
        assert {"operator", "reference"} <= set(case["milliseconds"])
        assert case["floor_ms"] > 0
        assert case["bound"] in ("bandwidth", "arithmetic")


def test_bench_kernels_gives_a_wrong_version_no_time(invoke, monkeypatch):
    from vtprune import kernels

    right = kernels.merge_by_owner
    monkeypatch.setattr(kernels, "merge_by_owner", lambda x, *more: (right(x + 1, *more)[0], None))
    result = invoke("bench-kernels", "--operator", "bipartite_merge", "--repeats", "1", "--device", "cpu")
    assert result.exit_code == 1
    assert "differs from the reference" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--operator", "abacus"], "unknown operator 'abacus'"),
        (["--dtype", "int3"], "--dtype must be one of"),
        (["--shapes", "huge"], "--shapes must be one of"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bench_kernels_bad_input(invoke, words, said):
    refused(invoke("bench-kernels", *words), said)
