"""The search for chains: budgets that meet a share, halving, the journal, held-out questions, and the page."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

import vtprune
from vtprune.budget import token_count
from vtprune.evals import search as module
from vtprune.evals.chains import CACHE, GRID, Candidate, Fit, candidates, fit
from vtprune.evals.halving import halve, standard_error, survivors, wilson
from vtprune.evals.journal import Journal, journal_of
from vtprune.evals.probes import Probe, draw_questions
from vtprune.evals.search import CALIBRATION_SEED, HELD_OUT_SEED, Search, Settings, about_model, run_search
from vtprune.evals.search_page import section
from vtprune.evals.suite import judge
from vtprune.models import Loaded, load_model


@pytest.fixture(scope="module")
def shipped():
    return load_model("tiny-qwen2.5-vl", device="cpu")


@pytest.fixture
def loaded(model, processor):
    return Loaded("small", model, processor)


# The probe.


@pytest.mark.parametrize(
    "chain", [[], ["divprune:keep=0.25"], ["fastv:layer=2,keep=0.5", "snapkv:keep=0.3"], ["resize:keep=0.5"]]
)
def test_reading_an_answer_is_what_generating_it_would_be(shipped, chain):
    questions = draw_questions("scenes", 20, 5)
    read = Probe(shipped, questions, batch_size=8).read(chain)
    with vtprune.applied(shipped.model, chain or ["random:keep=1.0"]):
        found = judge(shipped.model, shipped.processor, questions, batch_size=8)
        report = vtprune.report(shipped.model)
    assert list(read.right) == [good for _, good in found]
    assert 0 < read.accuracy < 1
    if chain:
        assert read.share == pytest.approx(report.prefill_flops_after / report.prefill_flops_before, abs=1e-3)
        assert read.kv_share < 1
    else:
        assert read.share == read.kv_share == 1


def test_likelihood_is_that_of_one_forward_pass(shipped):
    """Without methods, prefill and answer in one piece give the same."""
    questions = draw_questions("scenes", 4, 5)
    probe = Probe(shipped, questions, batch_size=1)
    read = probe.read([])
    for i in range(4):
        (batch,) = probe._batches(i, i + 1)
        answer = torch.tensor(batch.answers)
        ids = torch.cat((batch.inputs["input_ids"], answer), 1)
        longer = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        longer["mm_token_type_ids"] = torch.nn.functional.pad(batch.inputs["mm_token_type_ids"], (0, answer.shape[1]))
        with torch.no_grad():
            logits = shipped.model(**{**batch.inputs, **longer}).logits[0, -answer.shape[1] - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, answer.T).sum()
        assert read.likelihood[i] == pytest.approx(float(expected), abs=1e-4)


def test_own_answers_are_always_right(shipped):
    read = Probe(shipped, draw_questions("clips", 5, 5), answers="own", batch_size=3).read([])
    assert all(read.right)
    assert read.mean <= 0


def test_parts_add_up(shipped):
    probe = Probe(shipped, draw_questions("scenes", 12, 5), batch_size=4)
    chain = ["divprune:keep=0.5"]
    whole, parts = probe.read(chain), probe.read(chain, 0, 4) + probe.read(chain, 4, 12)
    assert parts.likelihood == pytest.approx(whole.likelihood, abs=1e-4)
    assert dataclasses.replace(parts, likelihood=whole.likelihood) == whole


def test_first_questions_are_of_all_kinds():
    drawn = draw_questions("scenes", 96, 1)
    assert len({x.question.kind for x in drawn[:16]}) == 6
    assert len({x.seed for x in drawn[:16]}) > 8
    with pytest.raises(ValueError, match="suite must be one of scenes, clips, got 'vqa'"):
        draw_questions("vqa", 3, 0)


# Budgets.


def tokens(level, refused_below=0):
    if level < refused_below:
        return "too few"
    share = token_count(level / GRID, 64) / 64
    return 0.3 + 0.5 * share + 0.1 * share * share


@pytest.mark.parametrize("wanted", [0.32, 0.4, 0.55, 0.7, 0.89])
def test_the_largest_budget_that_meets_a_share(wanted):
    asked = []
    found = fit(lambda level: asked.append(level) or tokens(level), wanted)
    assert found.share == tokens(found.level) <= wanted < tokens(found.level + 1)
    assert len(asked) <= 10


def test_shares_that_cannot_be_met_are_told_apart():
    assert fit(tokens, 0.95) == Fit(GRID, tokens(GRID))
    assert fit(tokens, 0.2) == Fit(None, tokens(1), least=1)
    assert fit(lambda level: tokens(level, 20), 0.35) == Fit(None, tokens(20), least=20)
    assert fit(lambda level: tokens(level, 20), 0.6).level > 20
    assert fit(lambda level: "never", 0.5) == Fit(None, None, reason="never")


def test_every_candidate_is_a_chain_that_can_be_built():
    from vtprune.api import build_chain

    found = candidates()
    assert len({one.name for one in found}) == len(found)
    for one in found:
        methods = build_chain(list(one.chain(10)), None, {})
        assert methods[0].keep == pytest.approx(0.2)
        places = [place for method in methods for place in method.places]
        assert places
    for cache in CACHE:
        build_chain([cache], None, {})
    assert Candidate("fastv:layer=2").chain(GRID) == ("fastv:layer=2,keep=1.0",)


# Halving.


def test_halving_finds_the_best_and_asks_most_of_the_best():
    asked = {}

    def scores(one, questions):
        asked[one] = questions
        noise = [math.sin(12.9 * one + 78.2 * i) for i in range(questions)]
        return [one / 10 + x for x in noise]

    assert halve(range(40), scores, (8, 16, 64))[0] == 39
    assert asked[39] == 64
    assert sum(x == 64 for x in asked.values()) == survivors(survivors(40)) == 5
    assert halve([3, 3], lambda one, n: [1.0] * n, (2,)) == [3, 3]


def test_intervals():
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(10, 10)[1] == 1
    assert standard_error([1, 1, 1]) == 0
    assert standard_error([1, 0, -1, 0]) == pytest.approx((2 / 3 / 4) ** 0.5)


# The journal.


def test_a_journal_goes_on(tmp_path):
    path = journal_of(tmp_path / "s.json")
    first = Journal(path, {"model": "a"})
    assert first.get("x", lambda: [1, 2]) == [1, 2]
    with path.open("a") as stream:
        stream.write('{"name": "torn"')  # as it is when a run is killed
    again = Journal(path, {"model": "a"})
    assert again.get("x", lambda: pytest.fail("asked twice")) == [1, 2]
    assert again.get("torn", lambda: 3) == 3
    assert Journal(path, {"model": "a"}).found == {"x": [1, 2], "torn": 3}
    with pytest.raises(ValueError, match=r"other settings \(model\)"):
        Journal(path, {"model": "b"})
    path.write_text("[]\n")
    with pytest.raises(ValueError, match="holds no evaluations of a search"):
        Journal(path, {})


# The search.

FEW = [Candidate("divprune"), Candidate("random"), Candidate("divprune", ("exit:layer=1",)), Candidate("hired")]


@pytest.fixture
def small(monkeypatch):
    """A search with few candidates."""
    monkeypatch.setattr(module, "candidates", lambda: FEW)
    return Settings(calibration=24, held_out=10, batch_size=12)


def test_a_search_end_to_end_and_taken_up_again(loaded, small, tmp_path):
    out = tmp_path / "s.json"
    about = about_model(loaded, "random:small")
    journal = Journal(journal_of(out), {})
    steps = []
    finder = Search(loaded, small, journal, lambda *step: steps.append(step))
    found = run_search(finder, [0.6, 0.01], about, out)
    assert json.loads(out.read_text()) == found
    reached, missed = found["budgets"]["0.6"], found["budgets"]["0.01"]
    assert reached["reached"]
    assert reached["meeting"] + reached["not_reaching"] + reached["needless"] + len(reached["refused"]) == len(FEW)
    best = reached["best"]
    assert best["calibration"]["share"] <= 0.6
    assert best["held_out"]["share"] <= 0.6 * 1.02
    assert len(best["held_out"]["interval"]) == 2
    assert len(reached["single"]["chain"]) == 1
    assert best["apply"] == f"vtprune.apply(model, {best['chain']!r})"
    with vtprune.applied(loaded.model, best["chain"]):
        pass
    assert best["arguments"].split("--method ")[1:] == [f"{x} " for x in best["chain"][:-1]] + [best["chain"][-1]]
    assert not missed["reached"]
    assert missed["closest"]["held_out"]["share"] > 0.01
    assert "best" not in missed
    assert steps

    class Never(Probe):
        def read(self, *args, **kwargs):
            pytest.fail("asked twice")

    finder = Search(loaded, small, Journal(journal_of(out), {}))
    finder.probe.__class__ = Never
    out.unlink()
    assert run_search(finder, [0.6, 0.01], about, out) == found
    with pytest.raises(ValueError, match="hold a search with"):
        run_search(finder, [0.6], {**about, "dtype": "float64"}, out)


def test_no_question_is_used_twice(loaded, small):
    finder = Search(loaded, small, Journal(None, {}))
    assert len({CALIBRATION_SEED, HELD_OUT_SEED, 0}) == 3
    assert not {x.seed for x in finder.probe.questions} & {x.seed for x in finder.held_out}


def test_of_equally_good_chains_the_smaller_cache_wins(loaded, small, monkeypatch):
    finder = Search(loaded, small, Journal(None, {}))
    likelihood = {"a": [-1.0, -1.0, -1.2], "b": [-1.0, -1.1, -1.0], "c": [-3.0, -3.1, -3.0]}
    kv = {"a": 0.5, "b": 0.2, "c": 0.1}

    def reading(chain, questions):
        name = chain[0]
        return module.Reading(tuple(likelihood[name]), (True,) * 3, (10, 5), (100, int(100 * kv[name])))

    monkeypatch.setattr(finder, "reading", reading)
    assert finder._choose([("a",), ("b",), ("c",)], 0.5) == ("b",)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="metric must be one of likelihood"):
        Settings(metric="loss")
    with pytest.raises(ValueError, match="calibration must be a whole number >= 24, got 5"):
        Settings(calibration=5)


# The page.


def outcome(*chain):
    judged = {"accuracy": 0.9, "interval": [0.85, 0.94], "against_unpruned": [0.01, -0.02, 0.04]}
    return {"chain": list(chain), "held_out": {**judged, "share": 0.249, "kv_share": 0.3}}


def test_the_section_of_the_page():
    about = {
        "model": "b",
        "suite": "scenes",
        "metric": "likelihood",
        "dtype": "bfloat16",
        "machine": "M",
        "command": "vtprune search --model b",
        "calibration": {"questions": 96},
        "held_out": {"questions": 200},
    }
    budgets = {
        "0.1": {"candidates": 9, "meeting": 0, "closest": outcome("tome:keep=0.02", "exit")},
        "0.25": {"candidates": 9, "meeting": 4, "best": outcome("x:keep=0.1", "y"), "single": outcome("x:keep=0.1")},
        "0.5": {"candidates": 9, "meeting": 0},
    }
    documents = [
        {"search": {**about, "suite": "clips"}, "unpruned": outcome(), "budgets": {}},
        {"search": about, "unpruned": outcome(), "budgets": budgets},
        {"search": {**about, "model": "a"}, "unpruned": outcome(), "budgets": {}},
    ]
    lines = list(section(documents, ["a", "b"]))
    rows = [line for line in lines if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[1:]] == ["a", "b", "b", "b", "", "b", "b, clips"]
    assert rows[4] == "| b | 25 % | `x:keep=0.1` + `y` | 25 | 30 | 90.0 (85 to 94) | +1.0 (-2.0 to +4.0) |"
    assert rows[5].startswith("| | | one method: `x:keep=0.1` |")
    assert "not reached (`tome:keep=0.02` + `exit`)" in rows[6]
    assert "every chain is refused" in rows[3]
    assert any("`vtprune search --model b`, 96 questions to choose and" in line for line in lines)
    assert list(section([], ["a"])) == []
