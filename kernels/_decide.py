"""Decides between the few tokens of a picture whose float32 scores are too close to tell them apart."""

from __future__ import annotations

import torch
from torch import Tensor

# Scores in float64 carry errors near 1e-15; what differs by less than this, relative to their scale, is equal.
TIE = 1e-12
# Likeness to the picks before there are any.
NO_LIKENESS = {"maxmin": -2.0, "mmr": -2.0, "maxsum": 0.0, "dpp": -1.0}


class Decider:
    """Scores of a greedy selection in float64, for one picture and only for the tokens that are asked about.

    What a token's score took from earlier picks is remembered, so that each pair of a token and a pick costs once.

    Args:
        features: (tokens, channels).
        live: bool, (tokens,).
        rule: As in `greedy_select`.
        base: float64, (tokens,): score of a token when nothing is picked.
        weight: float64, (tokens,): what its likeness to the picks takes from that.
    """

    def __init__(self, features: Tensor, live: Tensor, rule: str, base: Tensor, weight: Tensor) -> None:
        """Compute nothing yet."""
        tokens, channels = features.shape
        self.features, self.live, self.rule, self.base, self.weight = features.detach(), live, rule, base, weight
        self.unit = torch.empty((tokens, channels), dtype=torch.float64, device=features.device)
        self.ready = torch.zeros(tokens, dtype=torch.bool, device=features.device)
        self.likeness = torch.full_like(base, NO_LIKENESS[rule])
        self.seen = torch.zeros(tokens, dtype=torch.int64, device=features.device)
        self.basis = self.unit[:0]

    def best(self, scores: Tensor, candidates: Tensor, scale: float) -> int:
        """The candidate with the highest score, the first among equals; candidates ascend."""
        return int(candidates[(scores >= scores.max() - TIE * scale).nonzero()[0, 0]])

    def gains(self, candidates: Tensor, picks: Tensor) -> Tensor:
        """float64 scores of the candidates (n,) after the picks (steps,)."""
        steps, start = len(picks), int(self.seen[candidates].min())
        if start < steps:
            products = self._rows(candidates) @ self._directions(picks, start).T  # (candidates, new steps)
            if self.rule in ("maxmin", "mmr"):
                more = torch.maximum(self.likeness[candidates], products.amax(1))
            else:
                unseen = torch.arange(start, steps, device=picks.device) >= self.seen[candidates, None]
                terms = products.square() if self.rule == "dpp" else products
                more = self.likeness[candidates] + torch.where(unseen, terms, 0.0).sum(1)
            self.likeness[candidates] = more
            self.seen[candidates] = steps
        return self.base[candidates] - self.weight[candidates] * self.likeness[candidates]

    def isolation(self, candidates: Tensor) -> Tensor:
        """Minus the similarity to the nearest other live token."""
        others = self.live.nonzero()[:, 0]
        scores = []
        for part in candidates.split(256):
            similarity = self._rows(part) @ self._rows(others).T
            scores.append(-similarity.masked_fill_(others == part[:, None], -2.0).amax(1))
        return torch.cat(scores)

    def off_mean(self, candidates: Tensor) -> Tensor:
        """Minus the product with the sum of all unit rows."""
        return -(self._rows(candidates) @ self._rows(self.live.nonzero()[:, 0]).sum(0))

    def _rows(self, index: Tensor) -> Tensor:
        """Unit rows (n, channels)."""
        missing = index[~self.ready[index]]
        if len(missing):
            x = self.features[missing].double()
            tiny = torch.finfo(torch.float32).tiny
            self.unit[missing] = x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(tiny)
            self.ready[missing] = True
        return self.unit[index]

    def _directions(self, picks: Tensor, start: int) -> Tensor:
        """What likeness is measured on, from pick `start` on: unit rows, or for "dpp" their orthonormal basis.

        The determinant that a token adds is its squared distance to the span of the picks.
        """
        if self.rule != "dpp":
            return self._rows(picks[start:])
        rows = self._rows(picks[len(self.basis) :])
        for _ in range(2):  # once more for what rounding left of the first time
            rows = rows - (rows @ self.basis.T) @ self.basis
        more = torch.zeros_like(rows)
        (real,) = rows.any(1).nonzero(as_tuple=True)  # a first pick may have been a row of zeros
        more[real] = torch.linalg.qr(rows[real].T).Q.T
        self.basis = torch.cat((self.basis, more))
        return self.basis[start:]
