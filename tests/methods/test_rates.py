from __future__ import annotations

import pytest
import torch

from vtprune.rates import candidates, encoder_flops, flops_loss, kept_tokens, masked_softmax, token_mask


def test_counts_are_whole_and_have_a_gradient():
    options = candidates(10, 3)
    assert options.tolist() == [10, 7, 4, 1]
    logits = torch.zeros(4, requires_grad=True)
    kept = kept_tokens(logits.softmax(0), options)
    assert kept.item() == 7  # 5.5 patches, rounded up, and the class token
    kept.backward()
    assert logits.grad[0] > 0 > logits.grad[3]
    assert kept_tokens(torch.full((144,), 1 / 144), candidates(576, 4)).item() == 291, "290 up to rounding is 290"
    with pytest.raises(ValueError, match="patches and step must be at least 1"):
        candidates(10, 0)


def test_the_mask_drops_what_arrives_and_no_more():
    options = candidates(6, 1)
    probability = torch.zeros(6).softmax(0)  # 3.5 patches: 4 and the class token
    assert token_mask(probability, options).tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert token_mask(probability, options, arriving=6).tolist() == [1, 1, 1, 1, 1, 0, 1]


def test_masked_softmax_is_the_softmax_of_the_rest():
    scores = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 0, 1, 0]])
    seen = (mask[:, None, None] > 0) | torch.eye(5, dtype=torch.bool)
    found = masked_softmax(scores, mask)
    torch.testing.assert_close(found, scores.masked_fill(~seen, -torch.inf).softmax(-1), atol=1e-5, rtol=0)
    mask.requires_grad_()
    masked_softmax(scores, mask)[1, :, 0, 0].sum().backward()
    assert (mask.grad[1, 1:] < 0).all(), "a key that comes back takes from the others"


def test_flops_count_what_reaches_each_part():
    full = torch.tensor(9.0)
    width, tokens = 4, 9
    whole = encoder_flops([full, full], [full, full], tokens, width, other=7)
    assert whole.item() == 2 * (12 * tokens * width**2 + 2 * tokens**2 * width) + 7
    less = encoder_flops([full, torch.tensor(6.0)], [torch.tensor(5.0), full], tokens, width)
    first = 4 * 9 * 16 + 2 * 81 * 4 + 8 * 5 * 16
    assert less.item() == first + 4 * 5 * 16 + 2 * 25 * 4 + 8 * 5 * 16
    assert flops_loss(torch.tensor(5e9), 3.0).item() == pytest.approx(20)


def test_rates_learn_to_meet_a_target():
    """Gradients lead from the FLOPs back to the logits: plain descent reaches the target."""
    options, width, target = candidates(40, 2), 32, 1.0e-3
    logits = torch.zeros(3, 2, len(options), requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(60):
        counts = [[kept_tokens(row.softmax(0), options) for row in block] for block in logits]
        flops = encoder_flops([c[0] for c in counts], [c[1] for c in counts], 41, width)
        loss = flops_loss(flops, target, weight=1e6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert flops.item() == pytest.approx(target * 1e9, rel=0.05)
