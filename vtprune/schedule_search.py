"""Searches for schedules: the fewest tokens without a loss (G-Search), and the best sigmoid at a budget (P-Sigmoid).

Both are pure in a metric: a function from rates, one per decoder layer, to a number that is the higher the better, of
the same examples every time. `vtprune.evals.schedules` makes one of a model and a set of questions:

    schedule = gsearch(metric, layers=32, bound=0.01)
    schedule = psigmoid(metric, layers=32, budget=0.3)
    schedule.save("schedule.json")
    vtprune.apply(model, "gsearch", schedule="schedule.json")

Paper: "Accelerating Multimodal Large Language Models by Searching Optimal Vision Token Reduction", CVPR 2025,
arXiv 2412.00556. Left open by the paper, and chosen here: while a layer is searched, all deeper ones get as much as it
does; the grid; what P-Sigmoid's parameters are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

from vtprune.methods._select import check_choice, check_number
from vtprune.schedules import Measure, Rates, Schedule, centred, fitted_sigmoid, mean, sigmoid_rates

Metric = Callable[[Rates], float]
Sampler = Literal["gp", "sobol"]

STEEPNESS = (1.0, 60.0)
FLOOR = 0.2
USUAL = 8.0
STARTS = 8


def gsearch(
    metric: Metric,
    layers: int,
    *,
    bound: float = 0.0,
    step: float = 0.05,
    first: int = 1,
    strategy: Literal["bisection", "scan"] = "bisection",
) -> Schedule:
    """Search the least tokens per layer, from the first layer to the last, that keep the metric up.

    A layer's rate is the least one, not above that of the layer before, with which the metric is not below its value
    for all tokens minus `bound`, while all deeper layers get as many tokens. If layers rank tokens alike, so that what
    a layer needs is among what those before it need, no schedule has fewer tokens.

    Args:
        metric: What is to stay high.
        layers: Decoder layers.
        bound: How much it may fall, >= 0.
        step: Of the grid of rates, in (0, 1]; the reciprocal of a whole number.
        first: The first layer that may get fewer tokens, >= 1.
        strategy: "bisection" asks the metric about log2(1 / step) times per layer, "scan" tries downwards until the
            first failure, one step at a time. They find the same where the metric never rises as tokens leave.

    Raises:
        ValueError: An argument is out of range.
    """
    check_number("bound", bound, 0, math.inf)
    check_number("step", step, 0, 1, above_low=True)
    check_choice("strategy", strategy, ("bisection", "scan"))
    steps = round(1 / step)
    if abs(steps * step - 1) > 1e-6:
        raise ValueError(f"step must be the reciprocal of a whole number (0.05, say), got {step!r}.")
    if not 1 <= first < layers:
        raise ValueError(f"first must be a layer from 1 to {layers - 1}, got {first!r}.")
    whole = metric((1.0,) * layers)
    found = [steps] * first
    probes = 1

    def good(level: int) -> bool:
        nonlocal probes
        probes += 1
        levels = found + [level] * (layers - len(found))
        return metric(tuple(x / steps for x in levels)) >= whole - bound

    while len(found) < layers:
        # The level of the layer before is good: it was tried with all deeper layers at it.
        least = found[-1]
        if strategy == "scan":
            while least > 0 and good(least - 1):
                least -= 1
        else:
            bad = -1
            while least - bad > 1:
                middle = (least + bad) // 2
                if good(middle):
                    least = middle
                else:
                    bad = middle
        found.append(least)
    about = {"search": "gsearch", "bound": bound, "step": step, "first": first, "whole": whole, "probes": probes}
    return Schedule(tuple(x / steps for x in found), about=about)


@dataclasses.dataclass(frozen=True)
class _Candidate:
    steepness: float
    centre: float
    floor: float
    rates: Rates


def psigmoid(
    metric: Metric,
    layers: int,
    budget: float,
    *,
    measure: Measure = mean,
    evaluations: int = 25,
    sampler: Sampler = "gp",
    start: Schedule | None = None,
    first: int = 1,
    within: float = 0.0,
    seed: int = 0,
) -> Schedule:
    """Fit a falling sigmoid at a fixed budget, by Bayesian optimisation of its steepness and its floor.

    The centre follows from the budget, so that every candidate costs the same.

    Args:
        metric: What is to be high.
        layers: Decoder layers.
        budget: What `measure` may say: by default the share of tokens that a layer sees on average.
        measure: What a schedule costs; `vtprune.schedules.PrefillCost.share` for FLOPs.
        evaluations: How often the metric is asked, >= 1.
        sampler: "gp": a Gaussian process (Matern 5/2) with expected improvement, after a few random candidates; needs
            optuna. "sobol": quasi-random candidates, without a library.
        start: A schedule, of `gsearch` say, whose nearest sigmoid is tried first; then, and else at first, a usual one.
        first: The first layer that may get fewer tokens, >= 1.
        within: Layers that differ by less are cut together, and measured so; see `Schedule.merged`.
        seed: Of the candidates.

    Raises:
        ValueError: The budget cannot be met, or an argument is out of range.
        ImportError: "gp" without optuna.
    """
    check_choice("sampler", sampler, ("gp", "sobol"))
    if evaluations < 1 or not 1 <= first < layers:
        raise ValueError(f"evaluations must be >= 1 and first from 1 to {layers - 1}, got {evaluations} and {first}.")
    highest = _highest_floor(budget, layers, measure, first)

    def candidate(steepness: float, floor: float) -> _Candidate:
        options: dict[str, Any] = dict(whole=first, within=within, measure=measure)
        centre = centred(budget, layers, steepness, floor, **options)
        return _Candidate(steepness, centre, floor, sigmoid_rates(layers, steepness, centre, floor, whole=first))

    known: dict[Rates, float] = {}
    tried: list[tuple[float, _Candidate]] = []

    def value(steepness: float, floor: float) -> float:
        one = candidate(steepness, floor)
        rates = Schedule(one.rates).merged(within).rates
        if rates not in known:
            known[rates] = metric(rates)
        tried.append((known[rates], one))
        return known[rates]

    begin = [(USUAL, 0.0)]
    if start is not None:
        steepness, _, floor = fitted_sigmoid(start.rates, whole=first)
        begin.insert(0, (min(max(steepness, STEEPNESS[0]), STEEPNESS[1]), min(floor, highest)))
    ask = _bayesian if sampler == "gp" else _quasi_random
    ask(value, highest, evaluations, begin, seed)
    best, one = max(tried, key=lambda x: x[0])  # of equal ones the first
    about = {
        "search": "psigmoid",
        "sampler": sampler,
        "budget": budget,
        "steepness": one.steepness,
        "centre": one.centre,
        "floor": one.floor,
        "value": best,
        "probes": len(known),
        "seed": seed,
    }
    return Schedule(Schedule(one.rates).merged(within).rates, about=about)


def check_optuna() -> Any:
    """The optimiser library.

    Raises:
        ImportError: It is not installed; the message says what to do.
    """
    try:
        import optuna
        import scipy  # noqa: F401  its Gaussian process needs it
    except ImportError as error:
        raise ImportError(
            f"Bayesian optimisation needs optuna and scipy ({error}): pip install 'vtprune[search]'; or choose "
            "quasi-random candidates, sampler='sobol'."
        ) from None
    return optuna


def _highest_floor(budget: float, layers: int, measure: Measure, first: int) -> float:
    """The largest floor that the budget allows, at most `FLOOR`."""

    def cost(floor: float) -> float:
        return measure((1.0,) * first + (floor,) * (layers - first))

    if cost(0.0) > budget:
        centred(budget, layers, 1.0, whole=first, measure=measure)  # says what is wrong
    low, high = 0.0, FLOOR
    if cost(high) <= budget:
        return high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low


Value = Callable[[float, float], float]
Begin = list[tuple[float, float]]


def _bayesian(value: Value, highest: float, evaluations: int, begin: Begin, seed: int) -> None:
    optuna = check_optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    starts = min(STARTS, evaluations)
    sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=starts)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for steepness, floor in begin:
        study.enqueue_trial({"steepness": steepness, **({"floor": floor} if highest > 0 else {})})

    def objective(trial: Any) -> float:
        steepness = trial.suggest_float("steepness", *STEEPNESS, log=True)
        return value(steepness, trial.suggest_float("floor", 0.0, highest) if highest > 0 else 0.0)

    study.optimize(objective, n_trials=evaluations)


def _quasi_random(value: Value, highest: float, evaluations: int, begin: Begin, seed: int) -> None:
    import torch

    points = torch.quasirandom.SobolEngine(2, scramble=True, seed=seed).draw(evaluations, dtype=torch.float64)
    low, high = map(math.log, STEEPNESS)
    asked = begin + [(math.exp(low + x * (high - low)), y * highest) for x, y in points.tolist()]
    for steepness, floor in asked[:evaluations]:
        value(steepness, floor)
