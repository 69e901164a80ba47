"""Searches for schedules on a model: `vtprune.schedule_search` with a metric of calibration questions.

Every probe asks the same questions, so that two schedules differ by what they do and not by luck. Evaluations are kept
beside the result, and a search that was interrupted goes on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from vtprune.budget import check_keep
from vtprune.engine.flops import linear_flops
from vtprune.evals.journal import Journal
from vtprune.evals.probes import Probe, check_suite, draw_questions
from vtprune.evals.search import CALIBRATION_SEED, METRICS, Metric
from vtprune.integrations import integrate
from vtprune.methods._ranked import DEFAULT
from vtprune.methods._scores import ScoreName, score_of
from vtprune.methods.gsearch import GSearch
from vtprune.models import Loaded
from vtprune.schedule_search import Sampler, check_optuna, gsearch, psigmoid
from vtprune.schedules import MERGE, PrefillCost, Rates, Schedule, mean


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the metric depends on, beside the model.

    Args:
        suite: "scenes" or "clips".
        metric: Mean log-likelihood of right answers or of the model's own, or the share of right ones.
        score: What ranks tokens, one of `vtprune.methods._scores.SCORES`.
        questions: How many.
        batch_size: Questions per call.
    """

    suite: str = "scenes"
    metric: Metric = "likelihood"
    score: ScoreName = DEFAULT
    questions: int = 96
    batch_size: int = 32

    def __post_init__(self) -> None:
        """Check them."""
        if self.metric not in METRICS:
            raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}.")
        score_of(self.score)
        for name in ("questions", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {getattr(self, name)}.")


class Quality:
    """The metric: from rates to a number, the higher the better.

    Args:
        loaded: Model and processor.
        settings: What it depends on.
        journal: What is known already.
        on_probe: Called after every evaluation with how many there were, the rates and the value.
    """

    def __init__(
        self,
        loaded: Loaded,
        settings: Settings,
        journal: Journal,
        on_probe: Callable[[int, Rates, float], None] = lambda probes, rates, value: None,
    ) -> None:
        check_suite(loaded, settings.suite)
        self.loaded, self.settings, self.journal, self.on_probe = loaded, settings, journal, on_probe
        questions = draw_questions(settings.suite, settings.questions, CALIBRATION_SEED)
        answers: Any = "own" if settings.metric == "agreement" else "right"
        self.probe = Probe(loaded, questions, answers=answers, batch_size=settings.batch_size)
        self.layers = len(integrate(loaded.model).decoder_layers)
        self.first = 2 if score_of(settings.score).behind else 1
        self.asked = 0

    def __call__(self, rates: Rates) -> float:
        """The mean over all questions."""
        merged = Schedule(rates).merged().rates

        def ask() -> float:
            chain = [] if min(merged) == 1 else [GSearch(merged, score=self.settings.score)]
            reading = self.probe.read(chain)
            return reading.accuracy if self.settings.metric == "accuracy" else reading.mean

        value: float = self.journal.get(" ".join(f"{rate:.6g}" for rate in merged), ask)
        self.asked += 1
        self.on_probe(self.asked, rates, value)
        return value

    def cost(self) -> PrefillCost:
        """What the prefill of the first question costs by a schedule, the encoder included."""
        integration = integrate(self.loaded.model)
        (report,) = self.probe.reports([GSearch((1.0,) * self.layers)], 1)
        costs = tuple((linear_flops(x), integration.decoder_width(x)) for x in integration.decoder_layers)
        visual = report.visual_tokens_before
        decoder = PrefillCost(costs, visual, self.probe.slots() - visual)
        other = report.prefill_flops_before - int(decoder.flops([1.0] * self.layers))
        return dataclasses.replace(decoder, other=other)


def search_gsearch(quality: Quality, *, bound: float, step: float, about: dict[str, Any]) -> Schedule:
    """The fewest tokens per layer with which the metric falls by no more than `bound`; merged, and measured again."""
    found = gsearch(quality, quality.layers, bound=bound, step=step, first=quality.first)
    return _finished(quality, found, about)


def search_psigmoid(
    quality: Quality,
    *,
    keep: float | None,
    flops: float | None,
    evaluations: int,
    sampler: Sampler,
    start: Schedule | None,
    about: dict[str, Any],
) -> Schedule:
    """The best sigmoid at a budget: the share of tokens that a layer sees on average, or that of prefill FLOPs.

    Raises:
        ValueError: Not exactly one of the budgets is given, or it cannot be met.
        ImportError: The sampler's library is not installed.
    """
    if (keep is None) == (flops is None):
        raise ValueError("a sigmoid needs one budget: --keep, or --flops.")
    budget = check_keep(keep if flops is None else flops, "--keep" if flops is None else "--flops")
    if isinstance(budget, int):
        raise ValueError(f"the budget of a sigmoid is a ratio in (0, 1], got {budget}.")
    if sampler == "gp":
        check_optuna()
    found = psigmoid(
        quality,
        quality.layers,
        budget,
        measure=mean if flops is None else quality.cost().share,
        evaluations=evaluations,
        sampler=sampler,
        start=start,
        first=quality.first,
        within=MERGE,
    )
    return _finished(quality, found, {**about, "budget_of": "tokens" if flops is None else "prefill FLOPs"})


def _finished(quality: Quality, found: Schedule, about: dict[str, Any]) -> Schedule:
    merged = found.merged()
    figures = {
        "unpruned": quality((1.0,) * quality.layers),
        "value": quality(merged.rates),
        "mean_rate": round(merged.mean, 4),
        "prefill_flops": round(quality.cost().share(merged.rates), 4),
    }
    kept = {**found.about, **figures, **dataclasses.asdict(quality.settings), "seed_of_questions": CALIBRATION_SEED}
    return Schedule(merged.rates, quality.settings.score, {**kept, **about})
