"""HoliTom: where a video is cut, what its tokens become, and how many of each kind stay."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.golden.adapters import outputs
from tests.methods.inputs import pictures, visual_tokens
from tests.reference import bare_run, decisions, feeding, positions_of, whole
from vtprune.methods._density import density_clusters, distances
from vtprune.methods._halving import halving_weights
from vtprune.methods._segments import best_segments, plan_video, still_counts, still_since
from vtprune.methods.base import EncoderSignal
from vtprune.methods.holitom import HoliTom, blend

ASKED = EncoderSignal("received", 22)


def video(frames, tokens, channels=16, seed=0, still=0.5):
    """Features (1, frames, tokens, channels): a share of the tokens stands still but for a cut in the middle."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(1, frames, tokens, channels, generator=g)
    for a, b in ((0, frames // 2), (frames // 2, frames)):
        x[:, a:b, : int(still * tokens)] = x[:, a : a + 1, : int(still * tokens)]
    return x + 0.05 * torch.randn(x.shape, generator=g)


def counts_by_hand(alike):
    """Still tokens from a to b, by definition: alike (frames - 1, tokens) bool."""
    frames = len(alike) + 1
    return np.array([[int(alike[a:b].all(0).sum()) if a <= b else 0 for a in range(frames)] for b in range(frames)])


def every_way(counts, window):
    """What the best of all segmentations saves."""
    frames = len(counts)
    best = 0
    for cuts in itertools.product((False, True), repeat=frames - 1):
        borders = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), frames]
        pairs = [(a, b - 1) for a, b in itertools.pairwise(borders)]
        if max(b - a for a, b in pairs) < window:
            best = max(best, sum((b - a) * int(counts[b, a]) for a, b in pairs))
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("window", [1, 2, 3, 1024])
def test_segments_save_as_much_as_any(seed, window):
    alike = np.random.default_rng(seed).random((7, 9)) < 0.7
    counts = counts_by_hand(alike)
    since = still_since(torch.from_numpy(alike)[None].float(), 0.5)
    found = still_counts(since)[0].numpy()
    lower = np.tril(np.ones_like(counts), -1).astype(bool)
    assert (found[lower] == counts[lower]).all()
    segments, saved = best_segments(found, window)
    assert saved == every_way(counts, window)
    assert saved == sum((b - a) * counts[b, a] for a, b in segments)
    assert [a for a, _ in segments] == [0, *(b + 1 for _, b in segments[:-1])]
    assert segments[-1][1] == 7
    assert max(b - a for a, b in segments) < window


def test_nothing_stands_still():
    plan = plan_video(np.zeros((4, 4), dtype=np.int64), 25, 0.05)
    assert plan.segments == [(i, i) for i in range(4)]
    assert plan.table[2].tolist() == [2, 2, 2, 2]  # 1.25 rounded up
    assert plan.share == 0.05


def test_saved_tokens_are_given_back():
    """Six of ten tokens stand still through four frames: 18 of 40 are saved, and a share of 0.2 becomes 8 / 22."""
    counts = np.tril(np.full((4, 4), 6))
    plan = plan_video(counts, 10, 0.2, contextual=0.5)
    assert (plan.saved, plan.segments) == (18, [(0, 3)])
    assert plan.share == pytest.approx(8 / 22)
    assert plan.table[4].tolist() == [round(6 * 8 / 22), 0, 0, 0]
    assert plan.table[2].tolist() == [1] * 4  # of two, half
    assert plan.table[3].tolist() == [1] * 4


def test_a_video_never_loses_all_tokens():
    still = torch.ones(1, 6, 4, 8)
    found = HoliTom(keep=0.01).reduce(still, torch.rand(1, 6, 4), 0.01)
    assert found.kept.nonzero().tolist() == [[0, 0, 0]]


def clusters_by_hand(x, count, neighbours):
    distance = (x[:, None] - x[None]).norm(dim=-1) / x.shape[1] ** 0.5
    nearest = distance.sort(1).values[:, : min(neighbours, count)]
    density = (-nearest.square().mean(1)).exp().tolist()
    score = []
    for i, here in enumerate(density):
        higher = [float(distance[i, j]) for j, other in enumerate(density) if other > here]
        score.append(here * (min(higher) if higher else float(distance.max())))
    centres = sorted(sorted(range(len(x)), key=lambda i: -score[i])[:count])
    return [i if i in centres else min(centres, key=lambda c: float(distance[i, c])) for i in range(len(x))]


def test_density_clusters():
    """Rows with different numbers of tokens and centres, each as if it were alone."""
    x = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(1))
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[1, ::3] = False
    valid[2, :10] = False
    counts = torch.tensor([4, 3, 1])
    owner = density_clusters(x, valid, counts, 3, 12)
    for row in range(3):
        chosen = valid[row].nonzero()[:, 0]
        expected = chosen[torch.tensor(clusters_by_hand(x[row, chosen], int(counts[row]), 3))]
        assert owner[row, chosen].tolist() == expected.tolist()
        assert owner[row, ~valid[row]].tolist() == (~valid[row]).nonzero()[:, 0].tolist()


def test_equal_tokens_tie():
    """Equal tokens have the distance 0 and the same density, whatever stands beside them: the first ones win."""
    x = torch.randn(1, 3, 700, generator=torch.Generator().manual_seed(2)) * 30
    x = x[:, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])]
    valid = torch.ones(1, 10, dtype=torch.bool)
    assert distances(x, valid)[0, 0].tolist()[::3] == [0.0] * 4
    owner = density_clusters(x, valid, torch.tensor([3]), 3, 10)
    assert owner.tolist() == [[0, 1, 2] * 3 + [0]]


def test_one_centre_is_the_first_token():
    """With one centre only the token itself is its neighbour: all densities tie."""
    owner = density_clusters(torch.randn(1, 6, 4), torch.ones(1, 6, dtype=torch.bool), torch.tensor([1]), 7, 6)
    assert owner.tolist() == [[0] * 6]


def test_features_by_hand():
    """Mean over time first, then over what a centre stands for, which is one mean of means and no sum of tokens."""
    x = torch.tensor([[[1.0], [10], [100], [3.0], [20], [200]]])  # two frames of three tokens
    still = torch.tensor([[0, 1, 2, 0, 1, 5]])
    owner = torch.tensor([[0, 0, 2, 3, 4, 5]])  # token 1 goes to token 0
    new = blend(x, still, owner, 0.6)[0, :, 0]
    assert new[0] == pytest.approx(0.6 * 2 + 0.4 * 15)
    assert new[2] == 100
    assert new[5] == 200


def test_gradients_reach_what_is_averaged():
    x = video(4, 12).flatten(1, 2)
    batch = dataclasses.replace(pictures(1, (4, 3, 4)), projected=x, signals={ASKED: torch.rand(1, 48)})
    decision = HoliTom(keep=0.5, contextual=0.5).decide(batch, ASKED)
    x = x.clone().requires_grad_()
    decision.mix(x)[decision.mask].sum().backward()
    assert torch.equal(x.grad.abs().sum(-1)[0] > 0, torch.isin(decision.owner[0], decision.mask[0].nonzero()[:, 0]))


def test_every_video_of_a_batch_has_its_own_segments_and_share():
    x = torch.cat((video(6, 12, still=0.75), video(6, 12, seed=1, still=0.0), video(6, 12, seed=2, still=1.0)))
    received = torch.rand(3, 6, 12)
    together = HoliTom().reduce(x, received, 0.3)
    shares = [plan.share for plan in together.plans]
    assert len(set(shares)) == 3
    for i in range(3):
        alone = HoliTom().reduce(x[i : i + 1], received[i : i + 1], 0.3)
        assert alone.plans[0].share == shares[i]
        assert torch.equal(alone.kept[0], together.kept[i])
        assert torch.equal(alone.owner[0], together.owner[i])


def test_what_stood_still_is_in_the_first_frame():
    found = HoliTom().reduce(video(6, 12, still=1.0), torch.rand(1, 6, 12), 0.2)
    assert found.plans[0].segments == [(0, 2), (3, 5)]
    assert found.kept[0].any(1).tolist() == [True, False, False, True, False, False]


@pytest.mark.parametrize(("keep", "tau"), [(0.1, 0.65), (0.15, 0.8), (0.05, 0.65), (0.25, 0.8)])
def test_threshold_of_the_paper(keep, tau):
    assert HoliTom(keep=keep).threshold(keep) == tau
    assert HoliTom(keep=keep, tau=0.3).threshold(keep) == 0.3


@pytest.mark.parametrize("lines", [0, 1])
def test_order_of_the_authors(lines):
    """Segments in turn, what stood still first; or rows with newlines. By the adapter, on what has no file here."""
    x = video(5, 9, seed=3, still=0.6)[0]
    case = {"features": x, "attn": torch.rand(5, 9), "newline": torch.full((16,), 7.0)}
    numbers = dict(grid=3, retain_ratio=0.4, tau=0.8, D=0.0, beta=1.0, K=7, max_window=2, grid_newline=lines)
    out = outputs("holitom", {k: np.asarray(v) for k, v in (case | numbers).items()})
    assert max(b - a for a, b in out["segments"].tolist()) == 1
    assert out["segment_lengths"].sum() == len(out["out"])
    newline = (out["out"] == 7).all(1)
    assert newline.any() == bool(lines)
    if lines:
        assert newline[-1]
        return
    at = 0
    for (a, b), still, length in zip(out["segments"], out["static_count"], out["segment_lengths"], strict=True):
        first = round(int(still) * float(out["adjusted_retain_ratio"]))
        mean = x[a : b + 1].mean(0).numpy()
        for token in out["out"][at : at + first]:  # beta is 1: centres are means over time
            assert np.abs(mean - token).max(1).min() < 1e-5
        for token in out["out"][at + first : at + length]:
            assert np.abs(x[a : b + 1].flatten(0, 1).numpy() - token).max(1).min() == 0
        at += length


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"tau": 1.5}, ValueError),
        ({"beta": -1}, ValueError),
        ({"contextual": 2}, ValueError),
        ({"window": 0}, ValueError),
    ],
)
def test_refuses_bad_parameters(parameters, error):
    with pytest.raises(error, match=f"{next(iter(parameters))} must be"):
        HoliTom(**parameters)


def test_models_without_videos_refuse():
    with pytest.raises(ValueError, match=r"holitom cannot work on .* it acts on videos"):
        vtprune.apply(FAMILIES["llava-clip"].model(), "holitom")


def halved(x, owner):
    """The tokens of (tokens, channels) in turn, each averaged into its owner."""
    x = x.clone()
    for token, at in enumerate(owner.tolist()):
        if at != token:
            x[at] = (x[at] + x[token]) / 2
    return x


def test_what_comes_later_weighs_more():
    owner = torch.tensor([[2, 2, 2, 3, 2, 3, 6], [0, 0, 0, 0, 0, 0, 0]])
    weights = halving_weights(owner)
    assert weights[0].tolist() == [1 / 8, 1 / 4, 1 / 8, 1 / 2, 1 / 2, 1 / 2, 1]
    assert weights[1].tolist() == [1 / 64, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2]


def test_inner_merge_is_the_loop():
    """Rows with different numbers of tokens, each as if alone: by their cosines before any of them has changed."""
    g = torch.Generator().manual_seed(4)
    arrived = [[12, 5], [9, 0], [1, 0]]
    tokens = visual_tokens(torch.rand(3, 17, generator=g), arrived, layer=3)
    tokens = dataclasses.replace(tokens, hidden=torch.randn(3, 17, 8, generator=g))
    decision = HoliTom(inner_layer=3).merge(tokens)
    assert (decision.mask & ~tokens.valid).sum() == 0
    assert decision.mask.sum(1).tolist() == [6 + 2, 4, 1]
    new = decision.mix(tokens.hidden)
    for row, n in enumerate((17, 9, 1)):
        x, stays = tokens.hidden[row, :n], decision.mask[row, :n]
        likeness = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
        owner = torch.where(stays, torch.arange(n), likeness.masked_fill(~stays, -2).argmax(1))
        assert torch.equal(decision.owner[row, :n], owner)
        torch.testing.assert_close(new[row, :n][stays], halved(x, owner)[stays])
    assert torch.equal(decision.owner[1, 9:], torch.arange(9, 17)), "padding belongs to nobody"


def test_many_merges_into_one_token():
    owner = torch.zeros(1, 1000, dtype=torch.int64)
    weights = halving_weights(owner)
    assert weights.isfinite().all()
    assert weights.sum() == pytest.approx(1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava_onevision", "qwen3_vl", "internvl"])
def test_inner_merge_inside_the_model(name):
    """The engine's removal equals the bare model whose hidden states were merged by the loop."""
    family = FAMILIES[name]
    model, row = family.model(), family.row(2, IMAGE, 3, VIDEO, 4, seed=2)
    method = HoliTom(keep=0.6, tau=-0.2, inner_layer=3)
    decided = []

    class Spy(HoliTom):
        def merge(self, tokens):
            decided.append(super().merge(tokens))
            return decided[-1]

    spy = Spy(**dataclasses.asdict(method))
    with vtprune.applied(model, spy), feeding(model) as seen:
        logits = model(**family.inputs(row)).logits
        found = decisions(model, row)
        newlines = vtprune.api._engines[model].latest.layout.newlines
    fed = whole(model, row, [(found.entered.nonzero()[:, 0], seen[0])])
    candidates = row.visual if newlines is None else row.visual & ~newlines[0]

    def mix(layer, hidden, slots):
        if layer == 3:
            hidden = hidden.clone()
            here = candidates[slots]
            hidden[0, here] = halved(hidden[0, here], decided[0].owner[0])
        return hidden

    expected, _ = bare_run(model, fed, positions_of(model, family, row), found, mix=mix)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert list(found.cuts) == [3]


def test_inner_layer_must_exist():
    with pytest.raises(ValueError, match="inner_layer must be a layer from 1 to 4"):
        vtprune.apply(FAMILIES["qwen2_vl"].model(), "holitom", inner_layer=5)
    with pytest.raises(ValueError, match="inner_keep must be a ratio"):
        HoliTom(inner_keep=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl", "llava_onevision"])
def test_videos_of_every_family(name):
    family = FAMILIES[name]
    with vtprune.applied(family.model(), "holitom", keep=0.4, tau=-0.2, contextual=0.5) as model:
        model(**family.inputs(family.row(1, VIDEO, 2, VIDEO, 3)))
        shown = vtprune.report(model).pictures
    for one in shown:
        assert 0 < len(one.kept) <= math.ceil(0.75 * one.tokens)
