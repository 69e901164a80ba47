"""The loop of `greedy_select` in torch: float32, with float64 where float32 cannot decide."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vtprune.kernels._cosine import all_pairs, float32_error, live_unit_rows
from vtprune.kernels._decide import NO_LIKENESS, Decider
from vtprune.kernels._shared import first_argmax, full_precision

# Below this gain a token adds nothing to a determinant ("dpp").
LEAST_GAIN = 1e-10
# A matrix of all pairs, cut to its triangle, costs as much as one row for every eighth to tenth token on two cores
# (576 tokens: 3.4 ms against 75 us per row; 2,880 tokens: 65 ms against 225 us per row), and more on one.
TOKENS_PER_ROW = 6


class Parts(NamedTuple):
    """What a selection starts from.

    Every rule scores a token by base - weight x likeness. Its likeness to the picks is the largest similarity
    ("maxmin", "mmr"), the sum of similarities ("maxsum"), or minus the share of its squared length outside the span of
    the picks ("dpp").

    Attributes:
        unit: (pictures, tokens, channels), unit rows in float32.
        live: bool, (pictures, tokens): may be picked, and is finite.
        base: float64, (pictures, tokens).
        weight: float64, (pictures, tokens).
        relevance: float64, (pictures, tokens): what first="importance" goes by.
        rest: float64, (pictures, tokens): order of the tokens that fill the places left over, minus infinity for those
            that must not.
    """

    unit: Tensor
    live: Tensor
    base: Tensor
    weight: Tensor
    relevance: Tensor
    rest: Tensor


def prepare(features: Tensor, rule: str, importance: Tensor | None, trade_off: float, valid: Tensor | None) -> Parts:
    """Work out the parts of a selection; arguments as in `greedy_select`. Reads nothing on the host, but on the CPU."""
    given = importance
    live = valid
    if given is None:
        relevance = torch.ones(features.shape[:2], dtype=torch.float64, device=features.device)
    else:
        finite = given.isfinite()
        relevance = given.detach().double().masked_fill(~finite, 0.0)
        live = finite if live is None else live & finite
    unit, live = live_unit_rows(features, live)
    ones = torch.ones_like(relevance)
    base, weight = torch.zeros_like(ones), ones
    if rule == "mmr":
        base, weight = relevance * trade_off, ones * (1.0 - trade_off)
    elif rule == "dpp":
        # A row of zeros spans nothing.
        weight = relevance.square() * unit.any(2)
    rest = (relevance if rule == "dpp" else base).masked_fill(~live, torch.finfo(torch.float64).min)
    if valid is not None:
        rest = rest.masked_fill(~valid, -torch.inf)
    return Parts(unit, live, base, weight, relevance, rest)


def fill_rest(picks: Tensor, rest: Tensor) -> Tensor:
    """Fill the places that a selection left empty (-1), by `rest`, lowest index first among equals."""
    if not bool((picks < 0).any()):
        return picks
    for p, row in enumerate(picks):
        done = int((row >= 0).sum())
        left = rest[p].index_fill(0, row[:done], -torch.inf)
        order = left.argsort(descending=True, stable=True)[: int((left > -torch.inf).sum())]
        chosen = order[: len(row) - done]
        row[done : done + len(chosen)] = chosen
    return picks


class Selection:
    """A greedy selection of `count` of the live tokens in each of some pictures.

    Per step: one row of similarities, one update of the likenesses, the two best scores. Where these lie closer than
    float32 errors reach, a `Decider` computes the scores of the few tokens in question again.
    """

    def __init__(self, features: Tensor, rule: str, parts: Parts, count: int, matrix_bytes: int) -> None:
        """Allocate the buffers."""
        self.features, self.rule, self.parts, self.count = features, rule, parts, count
        pictures, tokens, channels = features.shape
        self.matrix = 4 * tokens**2 <= matrix_bytes and tokens <= TOKENS_PER_ROW * count
        self.matrix_bytes = matrix_bytes
        new = parts.unit.new_empty
        self.base = parts.base.masked_fill(~parts.live, -torch.inf).float()
        self.weight: Tensor | float = parts.weight.float() if rule == "dpp" else float(parts.weight[0, 0])
        # A sum over many picks would lose in float32 what the decisions need.
        kind = torch.float64 if rule == "maxsum" else torch.float32
        self.score = self.base.to(kind, copy=True)
        if rule in ("maxmin", "mmr"):  # so far nothing is like a pick
            self.score.masked_fill_(parts.live, torch.inf)
        self.likeness = new((pictures, tokens)).fill_(NO_LIKENESS[rule]) if rule == "dpp" else self.score
        self.row = new((pictures, tokens))
        self.basis = new((pictures, count, tokens)) if rule == "dpp" else None
        self.order: list[list[int]] = []  # per step, the pick of each picture
        self.pairs: Tensor | None = None
        # Rows of the buffers: a step takes a few microseconds, and indexing a tensor takes two.
        self.each = list(zip(parts.unit, self.base, self.score, self.row, strict=True))
        self.scales: list[float] = (parts.base.abs() + parts.weight).masked_fill_(~parts.live, 0.0).amax(1).tolist()
        self.error = 2.0 * float32_error(channels)
        self.deciders: dict[int, Decider] = {}
        self.done = {p for p, any_live in enumerate(parts.live.any(1).tolist()) if not any_live}

    def run(self, first: str | Tensor) -> Tensor:
        """(pictures, count) int64, -1 where no live token is left or none adds anything."""
        with full_precision(self.parts.unit):
            return self._run(first)

    def _run(self, first: str | Tensor) -> Tensor:
        picks = self._first(first).tolist()
        columns = min(2, self.score.shape[1])
        for step in range(self.count):
            self.order.append([-1 if p in self.done else pick for p, pick in enumerate(picks)])
            if step == self.count - 1 or len(self.done) == len(picks):
                break
            if self.basis is None:
                self._lower(picks)
            else:
                self._span(step, picks)
            for (_, _, score, _), pick in zip(self.each, picks, strict=True):
                score[pick] = -torch.inf
            best, places = torch.topk(self.score, columns)
            picks = [place[0] for place in places.tolist()]
            self._decide(best.tolist(), picks)
        nothing = [[-1] * len(picks)] * (self.count - len(self.order))
        return torch.tensor(self.order + nothing, device=self.row.device).T

    def _first(self, first: str | Tensor) -> Tensor:
        """First picks, (pictures,)."""
        parts, tokens = self.parts, self.base.shape[1]
        nearest = isinstance(first, str) and first == "nearest_neighbour"
        closest: Tensor | None = None
        if self.matrix or nearest:
            # Once all pairs are computed for the nearest neighbours, keeping them is cheaper than any row again.
            keep = self.matrix or (4 * tokens**2 <= self.matrix_bytes and self.count > 1)
            self.pairs, closest = all_pairs(parts.unit, parts.live, matrix=keep, nearest=nearest)
        if isinstance(first, Tensor) or first == "importance":
            wanted = parts.relevance
            if isinstance(first, Tensor):
                wanted = (torch.arange(tokens, device=first.device) == first[:, None]).double()
            return first_argmax(wanted.masked_fill(~parts.live, -torch.inf))[1]
        error = self.error
        if closest is not None:
            scores = -closest
        else:
            total = parts.unit.sum(1)
            scores = -(parts.unit @ total.unsqueeze(2)).squeeze(2)
            error *= float(total.norm(dim=1).amax()) + tokens**0.5
        scores = scores.masked_fill(~parts.live, -torch.inf)
        best, index = first_argmax(scores)
        close = scores >= (best - error).unsqueeze(1)
        for p in (close.sum(1) > 1).nonzero()[:, 0].tolist():
            if p not in self.done:
                decider, candidates = self._decider(p), close[p].nonzero()[:, 0]
                exact = decider.isolation(candidates) if nearest else decider.off_mean(candidates)
                index[p] = decider.best(exact, candidates, 1.0)
        return index

    def _similar(self, picks: list[int]) -> Tensor:
        """Similarities of the last picks to all tokens."""
        for p, (unit, _, _, row) in enumerate(self.each):
            if self.pairs is None:
                torch.mv(unit, unit[picks[p]], out=row)
            else:
                row.copy_(self.pairs[p, picks[p]])
        return self.row

    def _lower(self, picks: list[int]) -> None:
        """Lower the scores by the likeness to the last picks."""
        if self.rule == "maxsum":
            self.score -= self._similar(picks)
            return
        weight = float(self.weight)
        for p, (unit, base, _, row) in enumerate(self.each):
            if self.pairs is None:
                torch.addmv(base, unit, unit[picks[p]], alpha=-weight, out=row)
            else:
                torch.sub(base, self.pairs[p, picks[p]], alpha=weight, out=row)
        torch.minimum(self.score, self.row, out=self.score)

    def _span(self, step: int, picks: list[int]) -> None:
        """Lower the scores by what the last picks add to the span of the picks ("dpp")."""
        likeness, row, basis = self.likeness, self._similar(picks), self.basis
        if basis is None or not isinstance(self.weight, Tensor):
            raise RuntimeError("only the rule 'dpp' has a span.")
        index = torch.tensor(picks, device=row.device).unsqueeze(1)
        self.base.scatter_(1, index, -torch.inf)
        # One more row of the Cholesky factor of the similarities.
        factor = basis[:, step]
        if step:
            known = basis[:, :step]
            here = known.gather(2, index.unsqueeze(1).expand(-1, step, 1)).transpose(1, 2)
            torch.baddbmm(row.unsqueeze(1), here, known, alpha=-1, out=factor.unsqueeze(1))
        else:
            factor.copy_(row)
        # What is left of a picked token is never less than what float32 can tell: nothing is divided by noise.
        factor *= likeness.gather(1, index).neg_().clamp_min_(self.error).rsqrt_()
        likeness.addcmul_(factor, factor)
        torch.addcmul(self.base, self.weight, likeness, value=-1, out=self.score)

    def _decide(self, best_two: list[list[float]], picks: list[int]) -> None:
        """Correct the next picks where the best scores are too close, given the scores of the best two."""
        growth = len(self.order) ** 0.5 if self.rule in ("maxsum", "dpp") else 1.0
        for p, best in enumerate(best_two):
            tolerance = self.error * growth * self.scales[p]
            low = self.rule == "dpp" and best[0] < LEAST_GAIN + tolerance
            if not (low or best[0] == -torch.inf or best[0] - best[-1] <= tolerance) or p in self.done:
                continue
            if best[0] == -torch.inf:
                self.done.add(p)
                continue
            decider = self._decider(p)
            candidates = (self.score[p] >= best[0] - tolerance).nonzero()[:, 0]
            before = torch.tensor([pick[p] for pick in self.order], device=candidates.device)
            gains = decider.gains(candidates, before)
            if self.rule == "dpp" and float(gains.max()) < LEAST_GAIN:
                self.done.add(p)
            else:
                picks[p] = decider.best(gains, candidates, growth * self.scales[p])

    def _decider(self, p: int) -> Decider:
        if p not in self.deciders:
            parts = self.parts
            self.deciders[p] = Decider(self.features[p], parts.live[p], self.rule, parts.base[p], parts.weight[p])
        return self.deciders[p]
