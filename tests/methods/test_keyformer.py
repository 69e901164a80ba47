"""Keyformer: noise, temperature, and the two ways to treat what leaves the recent entries."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.methods.inputs import INFO, cache_entries
from vtprune.methods._entries import received
from vtprune.methods.h2o import H2O
from vtprune.methods.keyformer import Keyformer, gumbel


def noise_of(entries, seed=0, calls=0):
    return gumbel(entries, seed, torch.full((len(entries.valid),), calls), slice(None))


def test_noise_is_gumbel_noise():
    noise = noise_of(cache_entries([(20, 100, 30)])).flatten()
    assert abs(float(noise.mean()) - 0.5772) < 0.02
    assert abs(float(noise.std()) - torch.pi / 6**0.5) < 0.02
    assert len(noise.unique()) > 0.98 * len(noise)
    # Neighbours in any direction have nothing to do with one another.
    cube = noise_of(cache_entries([(20, 100, 30)]))[0].flatten(0, 1)
    for a, b in ((cube[1:], cube[:-1]), (cube[:, 1:], cube[:, :-1]), (cube[..., 1:], cube[..., :-1])):
        assert abs(float(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1])) < 0.02


def test_noise_is_the_same_alone_and_padded_and_other_with_every_seed_and_call():
    rows = [(2, 12, 5), (9, 0, 3)]
    together, alone = noise_of(cache_entries(rows)), noise_of(cache_entries(rows, alone=1))
    assert torch.equal(together[1:, :, :, -12:, -12:], alone)
    assert not torch.equal(noise_of(cache_entries(rows), seed=1), together)
    assert not torch.equal(noise_of(cache_entries(rows), calls=1), together)
    assert not torch.equal(noise_of(dataclasses.replace(cache_entries(rows), layer=4)), together)


def test_without_noise_at_temperature_one_it_is_h2o():
    plain = Keyformer(keep=5, noise=False).decide(cache_entries([(2, 12, 5)])).mask
    assert torch.equal(plain, H2O(keep=5).decide(cache_entries([(2, 12, 5)])).mask)


def test_a_high_temperature_levels_the_attention():
    entries = cache_entries([(2, 12, 5)])
    Keyformer(noise=False, tau=1e5, tau_end=1e5).decide(entries)
    level = received(dataclasses.replace(entries, keys=torch.zeros_like(entries.keys)))
    torch.testing.assert_close(entries.memory["score_of_entries"], level, atol=1e-3, rtol=1e-3)


def step(method, memory, length):
    """One call on so many entries, without attention worth mention."""
    entries = cache_entries([(0, length, 0)], text=True)
    first = 0 if not memory else length - 1
    entries = dataclasses.replace(
        entries,
        keys=torch.zeros_like(entries.keys),
        queries=entries.queries[:, :, first:],
        query_at=entries.query_at[:, first:],
        query_valid=None,
        arrived=torch.tensor([[10]]),
        memory=memory,
    )
    return method.decide(entries).mask[0, 0].nonzero().flatten().tolist()


def test_what_leaves_the_recent_ones_competes_or_is_lost():
    for frozen, prompt in ((False, [0, 1, 2, 8, 9]), (True, [0, 1, 2, 9])):
        method, memory = Keyformer(keep=5, recent=0.4, noise=False, frozen=frozen, text=True), {}
        assert step(method, memory, 10) == prompt
        score = memory["score_of_entries"][:, :, prompt]
        score[:, :, -2 if not frozen else -1] = 9.0  # what is about to leave has become important
        memory["score_of_entries"] = torch.nn.functional.pad(score, (0, 1))
        expected = [0, 1, 3, 4, 5] if not frozen else [0, 1, 2, 4]
        assert step(method, memory, len(prompt) + 1) == expected


@pytest.mark.parametrize(
    "wrong",
    [{"tau": 0.0}, {"tau_end": -1}, {"tokens": 0}, {"seed": -1}, {"seed": 2**31}, {"frozen": True}, {"recent": 2}],
)
def test_refuses(wrong):
    with pytest.raises((ValueError, TypeError)):
        Keyformer(**wrong)


def test_only_text_needs_steps():
    assert [Keyformer(text=x).stages(INFO)[0].decodes for x in (False, True)] == [False, True]
