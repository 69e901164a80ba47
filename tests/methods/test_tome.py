from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.inputs import INFO, encoder_tokens
from vtprune.engine.merging import Running
from vtprune.methods import EncoderTokens, ModelInfo, build_method
from vtprune.methods.tome import ToMe, even_schedule, expand_schedule, merge_step


@pytest.mark.parametrize(
    ("left", "schedule"),
    [(192, [17] * 16 + [16] * 7), (128, [20] * 11 + [19] * 12), (64, [23] * 6 + [22] * 17), (576, [0] * 23)],
)
def test_presets_of_llava(left: int, schedule: list[int]) -> None:
    assert list(even_schedule(576, left, 23)) == schedule


@settings(max_examples=100, deadline=None)
@given(patches=st.integers(1, 80), layers=st.integers(1, 8), share=st.floats(0, 1))
def test_schedule_reaches_every_possible_budget(patches: int, layers: int, share: float) -> None:
    least = patches
    for _ in range(layers):
        least = -(-least // 2)
    left = least + round(share * (patches - least))
    schedule = even_schedule(patches, left, layers)
    assert len(schedule) == layers
    arriving = patches
    for merges in schedule:
        assert 0 <= merges <= arriving // 2
        arriving -= merges
    assert arriving == left
    assert list(schedule) == sorted(schedule, reverse=True)


@pytest.mark.parametrize(("keep", "patches", "least"), [(1, 64, 8), (0.1, 50, 7), (6, 50, 7)])
def test_unreachable_budget_names_the_smallest(keep: float, patches: int, least: int) -> None:
    message = f"keep must leave at least {least} of {patches} patches, got .*: each of the 3 encoder blocks"
    with pytest.raises(ValueError, match=message):
        ToMe(keep=keep).decide(encoder_tokens(0, patches), layers=3)
    assert sum(even_schedule(patches, least, 3)) == patches - least


def test_unreachable_budget_is_refused_as_soon_as_the_picture_size_is_known() -> None:
    model = ModelInfo("llava", encoder_layers=2, decoder_layers=4, has_cls=True, patches=36)
    with pytest.raises(ValueError, match="keep must leave at least 9 of 36 patches, got 4"):
        ToMe(keep=4).stages(model)
    assert ToMe(keep=9).stages(model)
    assert ToMe(keep=4).stages(dataclasses.replace(model, patches=None))
    assert ToMe(keep=4, r=3).stages(model)


@pytest.mark.parametrize(
    ("r", "inflection", "expected"),
    [
        (8, 0.0, (8, 8, 8, 8)),
        (6, -1.0, (12, 8, 4, 0)),
        (6, 1.0, (0, 4, 8, 12)),
        (5, -0.5, (7, 5, 4, 3)),
        ([4, 3], 0.0, (4, 3, 0, 0)),
    ],
)
def test_written_schedules(r: int | list[int], inflection: float, expected: tuple[int, ...]) -> None:
    assert expand_schedule(r, 4, inflection) == expected


def test_one_layer_schedule() -> None:
    assert expand_schedule(3, 1, 1.0) == (0,)


def test_r_beats_keep_and_is_cut_to_half() -> None:
    tokens = encoder_tokens(0, 48)
    assert ToMe(r=5).decide(tokens, layers=3).groups == 49 - 5
    assert ToMe(r=1000).decide(tokens, layers=3).groups == 49 - 24
    assert ToMe(r=[5]).decide(dataclasses.replace(tokens, layer=1), layers=3) is None
    assert ToMe(r=0).decide(tokens, layers=3) is None
    assert ToMe(keep=1.0).decide(tokens, layers=3) is None


def test_merges_the_most_similar_pair() -> None:
    keys = torch.eye(9)[None]
    keys[0, 6] = keys[0, 3]
    step = merge_step(keys, 1, protected=1)
    assert step.groups == 8
    assert step.owner[0].tolist() == [0, 4, 1, 5, 2, 6, 5, 7, 3]


def test_averages_count_patches_or_tokens() -> None:
    tokens = encoder_tokens(0, 4, protected=0, count=1)
    tokens = dataclasses.replace(tokens, sizes=torch.tensor([[3.0, 1.0, 1.0, 1.0]]), keys=torch.eye(4)[None].clone())
    tokens.keys[0, 0] = tokens.keys[0, 1]
    pair = tokens.hidden[0, :2]
    for weighted, expected in ((True, (3 * pair[0] + pair[1]) / 4), (False, pair.mean(0))):
        decision = ToMe(r=1, weighted=weighted).decide(tokens, layers=1)
        running = Running()
        running.sizes = tokens.sizes
        (merged,) = running.follow(decision, tokens.hidden)
        torch.testing.assert_close(merged[0, decision.owner[0, 0]], expected)
        assert running.sizes.sum() == 6


def test_stage_covers_the_used_blocks() -> None:
    (stage,) = ToMe().stages(INFO)
    assert stage.layers == tuple(range(23))
    assert stage.proportional
    assert not ToMe(proportional=False).stages(INFO)[0].proportional
    tokens = EncoderTokens(22, torch.randn(1, 209, 4), torch.ones(1, 209), 1, 576)
    assert ToMe(keep=192).stages(INFO)[0].decide(tokens).groups == 193


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"r": -1}, "r must be a whole number >= 0 or a sequence of them, got -1"),
        ({"r": []}, r"r must be .* got \[\]"),
        ({"r": 8, "inflection": 2.0}, r"inflection must be a number in \[-1, 1\], got 2.0"),
        ({"inflection": 0.5}, "inflection=0.5 needs a single whole number r, got r=None"),
        ({"r": [1], "inflection": 0.5}, "inflection=0.5 needs a single whole number r"),
        ({"r": [1] * 24}, "r must name at most 23 blocks of this model, got 24"),
    ],
)
def test_refuses(parameters: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method("tome", parameters).stages(INFO)


@pytest.mark.parametrize("parameters", [{"r": [1, 2.5]}, {"r": True}, {"r": "8"}, {"inflection": "up"}])
def test_refuses_other_types(parameters: dict) -> None:
    with pytest.raises(TypeError, match=f"{next(iter(parameters))} must be .* got "):
        build_method("tome", parameters)
