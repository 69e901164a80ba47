"""gsearch and psigmoid: what a schedule and a score make of a prompt."""

from __future__ import annotations

import dataclasses
import typing

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.methods.inputs import INFO, visual_tokens
from vtprune.methods import Place
from vtprune.methods._ranked import counts_by_rate
from vtprune.methods._scores import SCORES, Score, ScoreName
from vtprune.methods.gsearch import GSearch
from vtprune.methods.psigmoid import PSigmoid
from vtprune.schedules import Schedule, mean, merged_rates

LLAVA = FAMILIES["llava-clip"]


def info(layers: int):
    return dataclasses.replace(INFO, decoder_layers=layers)


def counts(method, layers: int, arrived: list[int]) -> dict[int, int]:
    """What is left behind every cut of a row in which all pictures arrived whole."""
    found, memory, left = {}, {}, sum(arrived)
    acting = [(layer, s) for s in method.stages(info(layers)) for layer in s.layers if s.place is Place.DECODER_LAYER]
    for layer, stage in sorted(acting, key=lambda x: x[0]):
        tokens = visual_tokens(torch.rand(1, sum(arrived)), [arrived], layer, memory)
        left = found[layer] = int(stage.decide(tokens).mask.sum())
    assert left == min(found.values(), default=left)
    return found


def test_rates_become_counts_of_all_pictures_together_rounded_up():
    assert counts(GSearch((1, 1, 0.55, 0.55, 0.1, 0)), 6, [12, 5]) == {2: 10, 4: 2, 5: 0}
    assert counts_by_rate(torch.tensor([10, 1000, 0, 3]), 0.3).tolist() == [3, 300, 0, 1]
    assert counts(GSearch(), 4, [8]) == {1: 6, 2: 4, 3: 2}


def test_layers_that_hardly_differ_are_cut_together():
    rates = (1, 0.99, 0.6, 0.59, 0.575, 0.57, 0)
    assert counts(GSearch(rates), 7, [100]) == {2: 60, 4: 58, 6: 0}
    assert counts(GSearch(rates, merge=0), 7, [100]) == {1: 99, 2: 60, 3: 59, 4: 58, 5: 57, 6: 0}


def test_sigmoid_meets_its_budget_and_never_exceeds_it():
    for keep in (0.2, 0.34, 0.5, 0.9):
        for steepness in (1.0, 8.0, 60.0):
            left = counts(PSigmoid(keep, steepness, merge=0), 6, [1000])
            seen = [1000] + [left.get(i, None) for i in range(1, 6)]
            for i in range(1, 6):
                seen[i] = seen[i - 1] if seen[i] is None else seen[i]
            assert mean(seen) / 1000 == pytest.approx(keep, abs=2e-3)
            merged = counts(PSigmoid(keep, steepness), 6, [1000])
            assert merged.keys() <= left.keys()


def test_budgets_that_cannot_be_met_are_refused():
    with pytest.raises(ValueError, match=r"keep=0\.1 is too little for psigmoid: a budget of 0\.1 cannot be met"):
        PSigmoid(0.1).stages(info(6))
    with pytest.raises(ValueError, match="for psigmoid, which counts over layers, got 64 tokens"):
        PSigmoid(64)


def test_what_does_not_fit_the_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="rates for 3 decoder layers, and this model has 32"):
        GSearch((1, 0.5, 0.2)).stages(INFO)
    with pytest.raises(ValueError, match="the first decoder layer, which ranks them unlike all others"):
        GSearch((1, 0.5, 0.2), score="last_query").stages(info(3))
    with pytest.raises(ValueError, match="score must be one of 'text_queries_ahead'"):
        GSearch(score="attention")
    with pytest.raises(ValueError, match="rates must be numbers"):
        GSearch((1, 0.5, 0.7))
    with pytest.raises(TypeError, match="schedule must be a file"):
        GSearch(0.5)
    with pytest.raises(FileNotFoundError, match=r"schedule .* does not exist"):
        GSearch(str(tmp_path / "none.json")).stages(INFO)


def test_a_file_brings_its_score(tmp_path):
    path = tmp_path / "s.json"
    Schedule((1, 1, 0.5), "last_query").save(path)
    (stage,) = GSearch(path).stages(info(3))
    assert stage.signals == {"last_query"}
    (stage,) = GSearch(str(path), score="text_queries").stages(info(3))
    assert stage.signals == {"text_queries"}


@torch.no_grad()
@pytest.mark.parametrize(
    "score", [*SCORES, Score("norm", lambda tokens: tokens.hidden.norm(dim=-1), frozenset({"hidden"}))]
)
def test_any_score_on_a_model(score):
    """Rows of a padded batch keep what they keep alone, as many as the schedule says."""
    model = LLAVA.model()
    rows = [LLAVA.row(5, IMAGE, 7, seed=1), LLAVA.row(2, IMAGE, 3, IMAGE, 4, seed=2)]
    with vtprune.applied(model, GSearch((1, 1, 0.5, 0.25, 0), score=score)):
        together = model(**LLAVA.inputs(*rows)).logits[:, -1]
        report = vtprune.report(model)
        assert [p.tokens_after for p in report.places if p.place == "decoder layer"] == [54, 27, 0]
        for i, row in enumerate(rows):
            alone = model(**LLAVA.inputs(row)).logits[0, -1]
            torch.testing.assert_close(together[i], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_names_of_scores_are_known_to_the_type_checker():
    assert typing.get_args(ScoreName) == tuple(SCORES)


def test_a_ranking_of_the_encoder_is_the_same_at_all_layers():
    model, x = LLAVA.model(), LLAVA.inputs(LLAVA.row(5, IMAGE, 7))
    with vtprune.applied(model, "fastervlm", keep=9):
        model(**x)
        best = vtprune.report(model).pictures[0].kept
    with vtprune.applied(model, GSearch((1, 0.75, 0.5, 0.25, 0.25), score="encoder_attention")):
        model(**x)
        assert vtprune.report(model).pictures[0].kept == best


def test_merged_rates_never_fall_below():
    rates = (1, 0.985, 0.97, 0.5, 0.495, 0.0)
    assert merged_rates(rates) == (1, 1, 0.97, 0.5, 0.5, 0.0)
    assert merged_rates(rates, 0) == rates
