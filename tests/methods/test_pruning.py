"""FasterVLM, DivPrune, FastV, exit, ToDRE and the baselines: what is special about each."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.methods.inputs import INFO, pictures, visual_tokens
from vtprune.methods import Keep, ModelInfo, Pictures, Place, build_method
from vtprune.methods.divprune import diverse_mask
from vtprune.methods.fastervlm import FasterVLM, stitched_order
from vtprune.methods.fastv import FastV
from vtprune.methods.random import random_mask
from vtprune.methods.todre import ToDRE, absorbed
from vtprune.methods.uniform import uniform_mask

DIVPRUNE_CASES = sorted((Path(__file__).parents[1] / "golden" / "data" / "divprune").glob("*.npz"))


def test_fastervlm_keeps_the_most_attended() -> None:
    attention = torch.tensor([[0.1, 0.4, 0.0, 0.3], [0.2, 0.2, 0.2, 0.2]])
    mask = FasterVLM(keep=2).decide(Pictures(None, torch.zeros(2, 4, 3), attention=attention)).mask
    assert mask.tolist() == [[False, True, False, True], [True, True, False, False]]


def test_fastervlm_without_its_signal() -> None:
    with pytest.raises(ValueError, match="'fastervlm' needs the signal 'encoder_attention'"):
        FasterVLM().decide(Pictures(None, torch.zeros(1, 4, 3)))


def test_stitched_order_of_everything_is_the_canvas() -> None:
    crop, token = stitched_order(torch.ones(7, 4, dtype=torch.bool), rows=2, columns=3)
    assert crop[:4].tolist() == [0] * 4
    assert crop[4:].view(4, 6)[0].tolist() == [1, 1, 2, 2, 3, 3]
    assert token[4:].view(4, 6)[:2].tolist() == [[0, 1] * 3, [2, 3] * 3]
    assert crop[4:].view(4, 6)[3].tolist() == [4, 4, 5, 5, 6, 6]


@pytest.mark.parametrize(("shape", "rows", "columns"), [((5, 4), 2, 3), ((5, 6), 2, 2)])
def test_stitched_order_refuses_other_grids(shape: tuple[int, int], rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match=f"rows={rows} and columns={columns}"):
        stitched_order(torch.ones(shape, dtype=torch.bool), rows, columns)


def test_divprune_prefers_the_outlier_and_drops_duplicates() -> None:
    x = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(1, 9, 8).clone()
    x[0, 4] *= -1
    assert diverse_mask(x, 2)[0].nonzero()[:, 0].tolist() == [0, 4]
    assert diverse_mask(x, 9).all()


@pytest.mark.parametrize("path", DIVPRUNE_CASES, ids=lambda p: p.stem)
def test_todre_k_center_from_the_most_isolated_token_is_divprune(path: Path) -> None:
    with np.load(path) as case:
        features, ratio, kept = torch.from_numpy(case["features"])[None], float(case["ratio"]), case["kept_sorted"]
    mask = ToDRE(keep=ratio).select(Pictures(None, features)).mask
    assert mask[0].nonzero()[:, 0].tolist() == kept.tolist()


def test_todre_options_change_the_set() -> None:
    batch = pictures()
    options = [{}, {"init": "cls"}, {"init": "mean"}, {"objective": "maxsum"}, {"features": "projected"}]
    masks = [tuple(ToDRE(keep=5, **o).select(batch).mask.flatten().tolist()) for o in options]
    assert len(set(masks)) == len(options)
    most_attended = batch.attention.argmax(1)
    assert ToDRE(keep=5, init="cls").select(batch).mask[torch.arange(2), most_attended].all()


@pytest.mark.parametrize(
    ("parameters", "signals"),
    [
        ({}, [set(), {"last_query"}]),
        ({"init": "cls", "query": "text"}, [{"encoder_attention"}, {"text_queries"}]),
        ({"features": "projected"}, [{"projected"}, {"last_query"}]),
    ],
)
def test_todre_asks_for_what_it_needs(parameters: dict, signals: list[set[str]]) -> None:
    assert [set(s.signals) for s in ToDRE(**parameters).stages(INFO)] == signals


def exits(masses: list[list[float]], **parameters: float) -> list[int | None]:
    """Layer at whose input each row loses its visual tokens, from the mass per layer (layers of the window, rows)."""
    stage = ToDRE(**parameters).stages(INFO)[1]
    left: list[int | None] = [None] * len(masses[0])
    memory: dict = {}
    for layer, mass in zip(stage.layers, masses, strict=False):
        attention = torch.tensor(mass)[:, None] / 4 * torch.ones(4)
        decision = stage.decide(visual_tokens(attention, [[4]] * len(mass), layer, memory))
        for r in range(len(mass)):
            if decision is not None and not decision.mask[r].any() and left[r] is None:
                left[r] = layer
    return left


def test_todre_rows_leave_by_themselves_when_their_mass_falls() -> None:
    masses = [[0.5, 0.1, 0.4], [0.2, 0.4, 0.4], [0.16, 0.11, 0.4], [0.14, 0.2, 0.4], [0.2, 0.2, 0.11]]
    assert exits(masses, l_min=10, l_max=20) == [14, 13, 15]
    assert exits(masses, l_min=10, l_max=12) == [13, 13, 13]
    assert exits(masses, l_min=10, l_max=20, tau=0.0) == [None, None, None]


def test_todre_always_leaves_after_l_max() -> None:
    stage = ToDRE(l_min=3, l_max=3).stages(INFO)[1]
    assert stage.layers == (4,)
    assert exits([[1.0]], l_min=3, l_max=3) == [4]


def test_todre_rows_without_pictures_do_not_leave_early() -> None:
    assert absorbed(torch.zeros(2), torch.zeros(2), 0.3).tolist() == [False, False]


@pytest.mark.parametrize(("layers", "window"), [(32, (16, 26)), (28, (14, 22)), (5, (2, 3)), (3, (1, 1)), (2, (0, 0))])
def test_todre_default_window(layers: int, window: tuple[int, int]) -> None:
    assert ToDRE().window(layers) == window


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"l_max": 31}, "l_max must be a layer from 0 to 30 of this model, got 31"),
        ({"l_min": 20, "l_max": 10}, "l_min must be a layer from 0 to 10 of this model, got 20"),
        ({"tau": 1.5}, r"tau must be a number in \[0, 1\], got 1.5"),
        ({"tau": float("nan")}, "tau must be .* got nan"),
        ({"init": "first"}, "init must be one of 'nn', 'cls', 'mean', got 'first'"),
        ({"objective": "minmax"}, "objective must be one of"),
        ({"features": "raw"}, "features must be one of"),
        ({"query": "all"}, "query must be one of 'last', 'text', got 'all'"),
    ],
)
def test_todre_refuses(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("todre", parameters).stages(INFO)


def test_fastv_budgets_count_per_picture_and_compete_per_row() -> None:
    attention = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.1, 0.2], [0.1, 0.2, 0.3, 0.4, 0.0, 0.0]])
    tokens = visual_tokens(attention, [[4, 2], [4, 0]])
    mask = FastV(keep=0.5).decide(tokens).mask
    assert mask.tolist() == [[True, True, True, False, False, False], [False, False, True, True, False, False]]
    assert FastV(keep=3).decide(tokens).mask.sum(1).tolist() == [5, 3]


def test_fastv_acts_on_the_layer_asked_for() -> None:
    (stage,) = FastV(layer=7).stages(INFO)
    assert stage.layers == (7,)
    assert stage.signals == {"last_query"}
    assert stage.positions == "original"


@pytest.mark.parametrize("layer", [0, -1, 32, 2.0, True, "two"])
@pytest.mark.parametrize("name", ["fastv", "exit"])
def test_layer_must_be_in_the_model(name: str, layer: object) -> None:
    with pytest.raises(ValueError, match="layer must be a layer from 1 to 31 of this model, got"):
        build_method(name, {"layer": layer}).stages(INFO)


def test_fastv_chooses_at_random_where_there_are_no_scores_yet() -> None:
    """As many as at any layer, others with another seed, and the same for a row alone as beside a longer one."""
    arrived = [[40], [23]]
    (stage,) = build_method("fastv", {"layer": 0, "hide": True, "keep": 0.5}).stages(INFO)
    tokens = visual_tokens(torch.rand(2, 40), arrived, layer=0)
    mask = stage.decide(tokens).mask
    assert mask.sum(1).tolist() == [20, 12]
    assert torch.equal(stage.decide(visual_tokens(torch.rand(1, 23), arrived[1:], layer=0)).mask[0], mask[1, :23])
    (other,) = build_method("fastv", {"layer": 0, "hide": True, "keep": 0.5, "seed": 1}).stages(INFO)
    assert not torch.equal(other.decide(tokens).mask, mask)
    with pytest.raises(ValueError, match="positions must be 'original' where tokens are hidden"):
        build_method("fastv", {"hide": True, "positions": "compact"})


@pytest.mark.parametrize(("layers", "expected"), [(2, 1), (3, 1), (32, 16)])
def test_exit_defaults_to_half_of_the_layers(layers: int, expected: int) -> None:
    (stage,) = build_method("exit", {}).stages(ModelInfo("x", 3, layers, True))
    assert stage.layers == (expected,)
    decision = stage.decide(visual_tokens(torch.rand(2, 5), [[5], [3]]))
    assert isinstance(decision, Keep)
    assert not decision.mask.any()


def test_random_choice_depends_on_seed_and_size_only() -> None:
    assert torch.equal(random_mask(100, 10, 3), random_mask(100, 10, 3))
    assert not torch.equal(random_mask(100, 10, 3), random_mask(100, 10, 4))
    assert (random_mask(100, 10, 3) <= random_mask(100, 30, 3)).all(), "a smaller budget keeps a subset"
    torch.manual_seed(0)
    a = torch.rand(1)
    torch.manual_seed(0)
    random_mask(10, 2, 1)
    assert torch.equal(torch.rand(1), a), "the global generator is left alone"
    (stage,) = build_method("random", {}).stages(INFO)
    other = dataclasses.replace(pictures(seed=1))
    assert torch.equal(stage.decide(pictures()).mask, stage.decide(other).mask)


@pytest.mark.parametrize("seed", [-1, 1.5, True, "x", 2**63])
def test_random_refuses_seeds(seed: object) -> None:
    with pytest.raises(ValueError, match="seed must be a whole number from 0"):
        build_method("random", {"seed": seed})


@pytest.mark.parametrize("tokens", [1, 7, 63, 577])
@pytest.mark.parametrize("count", [1, 3, 100])
def test_uniform_is_even(tokens: int, count: int) -> None:
    count = min(count, tokens)
    places = uniform_mask(tokens, count)[0].nonzero()[:, 0]
    assert len(places) == count
    gaps = places.diff(prepend=-1 - places[:1], append=2 * tokens - 1 - places[-1:])
    assert gaps.max() - gaps[1:-1].min() <= 1 if count > 1 else places.item() == tokens // 2


def test_uniform_quarter_of_a_picture() -> None:
    assert uniform_mask(12, 3)[0].nonzero()[:, 0].tolist() == [2, 6, 10]


def test_every_stage_at_the_output_is_an_output_stage() -> None:
    assert {s.place for s in build_method("divprune", {}).stages(INFO)} == {Place.ENCODER_OUTPUT}
