"""Distances of logits, against plain sums."""

from __future__ import annotations

import math

import pytest
import torch

from vtprune.evals.runner.fidelity import kl_divergence, logit_error


def test_against_plain_sums():
    torch.manual_seed(0)
    new, old = torch.randn(3, 7), torch.randn(3, 7)
    for row in range(3):
        p = [math.exp(x) for x in old[row].tolist()]
        q = [math.exp(x) for x in new[row].tolist()]
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        assert kl_divergence(new, old)[row] == pytest.approx(
            sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        )
        apart = [(a - b) for a, b in zip(new[row].tolist(), old[row].tolist(), strict=True)]
        mean = sum(apart) / 7
        assert logit_error(new, old)[row] == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in apart) / 7))


def test_nothing_between_equals():
    logits = torch.randn(2, 5)
    assert kl_divergence(logits, logits) == [0, 0]
    shifted = logits + 3
    assert kl_divergence(shifted, logits) == pytest.approx([0, 0], abs=1e-6)
    assert logit_error(shifted, logits) == pytest.approx([0, 0], abs=1e-5)


def test_tokens_that_are_ruled_out_count_in_neither():
    old = torch.tensor([[1.0, 2.0, -math.inf, 0.5]])
    new = torch.tensor([[0.5, 2.5, -math.inf, 0.0]])
    kept = [0, 1, 3]
    assert kl_divergence(new, old) == pytest.approx(kl_divergence(new[:, kept], old[:, kept]))
    assert logit_error(new, old) == pytest.approx(logit_error(new[:, kept], old[:, kept]))
