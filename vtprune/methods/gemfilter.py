"""Keeps the visual tokens that the last prompt token looks for in an early layer, found in a trial run of that far.

The first layers run once on the whole prompt, only to see which keys the last query matches best; then the model starts
again on what is left, so that kept tokens attend to one another alone, in every layer.

Paper: "Discovering the Gems in Early Layers: Accelerating Long-Context LLMs with 1000x Input Token Reduction", arXiv
2409.17422. Authors' code: github.com/SalesforceAIResearch/GemFilter. It is about text; visual tokens are not in it.
Differs from the paper in: only visual tokens leave (there any, even the question); scores are smoothed within each
picture, over its tokens in the order of the prompt; the trial stops before the filter layer's attention, of which only
queries and keys are made; positions stay (`positions="compact"` is the authors' renumbering); no trial where everything
may stay; every row of a batch has its own choice (there: one row).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._cuts import cuts_at
from vtprune.methods._select import check_whole_numbers, given, top_k_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Place, Positions, Stage, VisualTokens, check_layer
from vtprune.methods.registry import register

PAPER = (13,)


@register("gemfilter")
@dataclasses.dataclass(frozen=True)
class GemFilter(Method):
    """One choice before the first decoder layer, by what a later one looks for.

    The paper keeps 1024, 2048 or 4096 tokens of prompts of up to 128k; its filter layers are 13 of 32 (Llama 3.1 8B),
    19 of 40 (Mistral Nemo) and 19 of 32 (Phi 3.5 mini), all counted from 0.
    """

    kind = "pruning"
    places = (Place.DECODER_LAYER,)
    paper = "GemFilter, arXiv 2409.17422"
    cost = "the decoder layers before `layer` on the whole prompt, once more (13 of 32); keys of one layer (N C^2)"

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per picture; the paper names numbers of tokens for text
    layer: int | None = None  # whose last query chooses, >= 1; None: 13 of 32
    pool: int = 5  # width of the mean that smooths scores, odd, >= 1; 1 leaves them as they are
    positions: Positions = "original"  # position ids after the removal: "original", or "compact" as in the paper

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        width = check_whole_numbers("pool", self.pool, least=1)
        if isinstance(width, tuple) or width % 2 == 0:
            raise ValueError(f"pool must be an odd whole number >= 1, got {self.pool!r}.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the input of the first decoder layer, after a trial run."""
        if self.layer is None:
            (layer,) = cuts_at(None, PAPER, model.decoder_layers)
        else:
            layer = check_layer("layer", self.layer, 1, model.decoder_layers - 1)
        signals = frozenset({"last_row_ahead"})
        return [
            Stage(Place.DECODER_LAYER, self.decide, (0,), signals, self.positions, budget=self.keep, trial=layer),
        ]

    def decide(self, tokens: VisualTokens) -> Keep:
        """Keep the tokens with the highest smoothed scores, over all pictures of a row together."""
        row = given(tokens.last_row, self.name, "last_row_ahead")
        scores = match(row.queries[:, :, -1], row.keys).gather(1, row.at)
        picture = tokens.picture.to(scores.device)
        scores = smoothed(scores, picture, self.pool)
        return Keep(top_k_mask(scores, tokens.counts(self.keep), picture >= 0))


def match(query: Tensor, keys: Tensor) -> Tensor:
    """Plain inner products of one query with all keys, summed over heads, neither scaled nor normalised: (rows, keys).

    Args:
        query: (rows, heads, head_dim).
        keys: (rows, kv_heads, keys, head_dim); head h looks at key-value head h // (heads / kv_heads).
    """
    shared = query.float().unflatten(1, (keys.shape[1], -1)).sum(2)  # heads that look at the same keys, added up
    return torch.einsum("rhd,rhnd->rn", shared, keys.float())


def smoothed(scores: Tensor, picture: Tensor, width: int) -> Tensor:
    """Moving average within every picture, where what is missing at its ends counts as 0: (rows, tokens).

    Args:
        scores: (rows, tokens).
        picture: (rows, tokens), number of the picture, -1 on padding.
        width: How many tokens a mean is over, odd.
    """
    total = torch.zeros_like(scores)
    for offset in range(-(width // 2), width // 2 + 1):
        if abs(offset) >= scores.shape[1]:
            continue
        inside = picture.roll(offset, 1) == picture
        edge = slice(None, offset) if offset > 0 else slice(scores.shape[1] + offset, None)
        if offset:
            inside[:, edge] = False
        total = total + scores.roll(offset, 1).masked_fill(~inside, 0)
    return total / width
