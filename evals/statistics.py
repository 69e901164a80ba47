"""How far a mean over questions may be off: intervals by the bootstrap, questions about one picture drawn together.

Cluster bootstrap with percentile intervals of 95 % (Efron and Tibshirani 1993, "An Introduction to the Bootstrap",
chapters 8 and 13; Field and Welsh 2007 for clusters). Groups are drawn with replacement, and the mean is taken over all
questions of the groups drawn. Groups with the same sum of scores and the same number of questions are alike, so that it
is enough to draw how many of each sort there are: the distribution is the same, a hundred thousand questions take
milliseconds instead of the 20 seconds that `scipy.stats.bootstrap` takes, and the order of the questions does not
matter.

Where all groups have the same mean, the bootstrap draws it again and again, and its interval has no length however few
the groups are. There, a share of at most p of the groups may be different and have been missed, p being the upper end
of Wilson's interval for 0 out of so many; the interval holds all means that this allows. For answers that are all right
or all wrong that is Wilson's interval itself.

With fewer than about ten groups, all such intervals are too short.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

try:
    from scipy.stats import binomtest
except ImportError as error:
    raise ImportError(f"intervals need scipy ({error}): pip install 'vtprune[eval]'.") from None

RESAMPLES = 10_000
LEVEL = 0.95
_AT_ONCE = 4_000_000  # counts drawn together: 32 MB


def mean_interval(
    scores: Sequence[float], groups: Sequence[Hashable], seed: int = 0, *, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """The 95 % interval of a mean score.

    Args:
        scores: Of the questions, 0 .. 1.
        groups: What each question is about; equal ones are drawn together.
        seed: Of the draws. The same scores and seed give the same interval.
        resamples: How many times the groups are drawn.

    Returns:
        Lower and upper end; None if there is only one group, from which nothing can be said about others.

    Raises:
        ValueError: There are no scores, one is out of range, or there are not as many groups.
    """
    return _interval(_checked("scores", scores, groups), groups, 0.0, seed, resamples)


def paired_interval(
    scores: Sequence[float],
    baseline_scores: Sequence[float],
    groups: Sequence[Hashable],
    seed: int = 0,
    *,
    resamples: int = RESAMPLES,
) -> tuple[float, float, float] | None:
    """How much higher a mean score is than another one on the same questions, with the 95 % interval.

    Args:
        scores: Of the questions, 0 .. 1.
        baseline_scores: Of the same questions, in the same order.
        groups: What each question is about; equal ones are drawn together.
        seed: Of the draws.
        resamples: How many times the groups are drawn.

    Returns:
        The difference of the means, its lower and its upper end; None if there is only one group.

    Raises:
        ValueError: As with `mean_interval`.
    """
    values = _checked("scores", scores, groups) - _checked("baseline_scores", baseline_scores, groups)
    interval = _interval(values, groups, -1.0, seed, resamples)
    return None if interval is None else (float(values.mean()), *interval)


def _checked(name: str, scores: Sequence[float], groups: Sequence[Hashable]) -> np.ndarray:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must be a list of at least one number, got shape {values.shape}.")
    if len(groups) != len(values):
        raise ValueError(f"groups must be as many as {name}, got {len(groups)} and {len(values)}.")
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{name} must be from 0 to 1, got {values[~((values >= 0) & (values <= 1))][0]}.")
    return values


def _interval(
    values: np.ndarray, groups: Sequence[Hashable], least: float, seed: int, resamples: int
) -> tuple[float, float] | None:
    """The interval of the mean of values that are from `least` to 1."""
    places: dict[Hashable, int] = {}
    of_group = [places.setdefault(group, len(places)) for group in groups]
    n = len(places)
    if n == 1:
        return None
    sums, counts = np.bincount(of_group, weights=values), np.bincount(of_group)
    # Rounded, for sums that differ by the order of their terms are the same.
    sorts, times = np.unique(np.stack((sums.round(9), counts), 1), axis=0, return_counts=True)
    means = sorts[:, 0] / sorts[:, 1]
    if np.ptp(means) < 1e-9:
        missed = binomtest(0, n).proportion_ci(LEVEL, method="wilson").high
        mean = float(values.mean())
        return mean + missed * (least - mean), mean + missed * (1 - mean)
    rng = np.random.default_rng(seed)
    drawn = np.empty(resamples)
    step = max(1, _AT_ONCE // len(sorts))
    for first in range(0, resamples, step):
        part = drawn[first : first + step]
        how_many = rng.multinomial(n, times / n, size=len(part))
        total, questions = (how_many @ sorts).T
        part[:] = np.clip(total / questions, least, 1)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
