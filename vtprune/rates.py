"""What the rates of `diffrate` are learned with: differentiable functions from logits to numbers of tokens.

Each block has one vector of logits for pruning and one for merging, over candidates for how many patches it keeps. The
model's weights are frozen; the loss of the task plus `flops_loss` trains the logits alone. The steps, of one vector:

    options = candidates(576, step=4)               # patches kept: 576, 572, ..., 4
    probability = logits.softmax(0)                 # zeros at first
    kept = kept_tokens(probability, options)        # a whole number of tokens, [CLS] among them, with a gradient
    mask = token_mask(probability, options, arriving)   # over tokens by falling importance, 0 where one is dropped

and in attention `masked_softmax` in the place of the softmax, with all tokens still there. In the end
`DiffRate(pruned=..., merged=...)` takes the counts, less one for [CLS]. No trainer comes with this: the authors train
for 3 epochs with AdamW (learning rate 0.01, cosine to 0.001), a weight of 5 on the FLOPs, and leave the first block
alone.

Paper: "DiffRate: Differentiable Compression Rate for Efficient Vision Transformers", ICCV 2023, arXiv 2305.17997.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ROUNDING = 1e-4  # an expected number of patches that is whole up to this is whole


def candidates(patches: int, step: int = 4, device: torch.device | None = None) -> Tensor:
    """How many patches a block may keep, most first: `patches`, `patches` - `step`, ..., above 0."""
    if patches < 1 or step < 1:
        raise ValueError(f"patches and step must be at least 1, got {patches!r} and {step!r}.")
    return torch.arange(patches, 0, -step, device=device)


def kept_tokens(probability: Tensor, options: Tensor, protected: int = 1) -> Tensor:
    """Number of tokens that are kept: the expected patches, rounded up, and the protected tokens; 0-d, float32.

    Its gradient is that of the expectation (straight-through).

    Args:
        probability: (options,), of each candidate.
        options: (options,), numbers of patches.
        protected: Tokens beside the patches that always stay ([CLS]).
    """
    expected = (probability.float() * options).sum()
    whole = (expected.detach() - ROUNDING).ceil() + protected
    return whole + (expected - expected.detach())


def token_probability(probability: Tensor, options: Tensor, protected: int = 1) -> Tensor:
    """Probability of each place in the order of importance, protected tokens first, to be kept: (tokens,).

    There are as many places as the largest candidate has patches, and the protected ones.
    """
    places = torch.arange(int(options.max()) + protected, device=options.device)
    return ((options + protected > places[:, None]) * probability.float()).sum(1)


def token_mask(probability: Tensor, options: Tensor, arriving: int | None = None, protected: int = 1) -> Tensor:
    """1 for the places that are kept and 0 for those that are dropped, with the gradient of `token_probability`.

    Args:
        probability: (options,), of each candidate.
        options: (options,), numbers of patches.
        arriving: Tokens that arrive: only places before this can be dropped here. None for all.
        protected: As for `kept_tokens`.

    Returns:
        (tokens,), float32, by falling importance.
    """
    soft = token_probability(probability, options, protected)
    places = torch.arange(len(soft), device=soft.device)
    kept = places < kept_tokens(probability, options, protected).detach()
    if arriving is not None:
        kept = kept | (places >= arriving)
    return kept.float() + (soft - soft.detach())


def masked_softmax(scores: Tensor, mask: Tensor, eps: float = 1e-6) -> Tensor:
    """Softmax over keys that hides masked ones, in float32, with a gradient for the mask; a token always sees itself.

    Args:
        scores: (pictures, heads, tokens, tokens), attention logits.
        mask: (pictures, tokens), 1 for a key that is there, 0 for one that is not.
        eps: Spread over all keys.
    """
    tokens = scores.shape[-1]
    seen = mask.float()[:, None, None]
    own = torch.eye(tokens, device=scores.device)
    seen = seen + (1 - seen) * own
    scores = scores.float()
    weights = (scores - scores.amax(-1, keepdim=True).detach()).exp() * seen
    return (weights + eps / tokens) / (weights.sum(-1, keepdim=True) + eps)


def encoder_flops(
    pruned: Sequence[Tensor], merged: Sequence[Tensor], tokens: int, width: int, other: float = 0
) -> Tensor:
    """FLOPs of an encoder, by the numbers of tokens that its blocks keep; a multiply-add counts as one, as in the code.

    Args:
        pruned: Per block, the tokens left behind pruning, of `kept_tokens`.
        merged: Per block, those left behind merging.
        tokens: Tokens that enter the first block.
        width: Channels; the MLP has four times as many.
        other: FLOPs beside the blocks: patch embedding and head.
    """
    now = torch.as_tensor(float(tokens), device=pruned[0].device)
    total = torch.full_like(now, float(other))
    for after_pruning, after_merging in zip(pruned, merged, strict=True):
        total = total + 4 * now * width**2 + 2 * now**2 * width
        now = torch.minimum(now, torch.minimum(after_pruning, after_merging))
        total = total + 8 * now * width**2
    return total


def flops_loss(flops: Tensor, target: float, weight: float = 5.0) -> Tensor:
    """`weight` times the squared distance from the target, both in units of 1e9 FLOPs.

    Args:
        flops: Of `encoder_flops`.
        target: In 1e9 FLOPs.
        weight: The paper's; 0 while the model warms up.
    """
    return weight * (flops / 1e9 - target) ** 2
