"""Kinds of golden cases of the cache that have no file here, on arrays made up here and computed entry by entry."""

from __future__ import annotations

import numpy as np
import pytest

from tests.golden.adapters import outputs
from tests.golden.slow import falling, softmax, unit

CLOSE = dict(atol=1e-4, rtol=1e-4)


def made(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("heavy", "recent"), [(0.25, 0.1), (0.05, 0.5), (0.0, 0.2)])
def test_h2o_simulation(heavy: float, recent: float) -> None:
    """Entries are hidden, not dropped: one that has left the recent ones is hidden for a step, and may come back."""
    rng = np.random.default_rng(0)
    heads, start, tokens, dim = 3, 21, 29, 4
    q, k, v = (made(rng, 1, heads, tokens, dim) for _ in range(3))
    ratios = {"heavy_ratio": np.float32(heavy), "recent_ratio": np.float32(recent)}
    out = outputs("h2o", {"q": q, "k": k, "v": v, "variant": np.int64(2), "prefill_len": np.int64(start), **ratios})
    most, newest = int(heavy * start), int(recent * start)
    assert (out["heavy_budget"], out["recent_budget"]) == (most, newest)
    for h in range(heads):
        score = np.zeros(0)
        mask = np.ones(start, bool)
        for end in range(start, tokens + 1):
            rows = range(start) if end == start else [end - 1]
            score = np.concatenate((score, np.zeros(end - len(score))))
            for row in rows:
                logits = k[0, h, : row + 1].astype(float) @ q[0, h, row] / np.sqrt(dim)
                seen = np.ones(row + 1, bool) if end == start else mask
                p = softmax(np.where(seen, logits, -np.inf))
                score[: row + 1] += p
            if end > start:
                found = out["decode_out"][end - start - 1].reshape(heads, dim)[h]
                np.testing.assert_allclose(found, p @ v[0, h, :end], **CLOSE)
            mask = np.zeros(end + 1, bool)
            mask[end + 1 - newest :] = True
            mask[falling(score[: end - newest])[:most]] = True
            always = np.arange(end) >= end - newest
            score = np.where(mask[:end] | always, score, 0)
            stage = end - start
            np.testing.assert_array_equal(out["next_mask"][stage, h, : end + 1], mask)
            assert (out["next_mask"][stage, h, end + 1 :] == -1).all()
            np.testing.assert_allclose(out["score"][stage, h, :end], score, **CLOSE)
            assert np.isnan(out["score"][stage, h, end:]).all()


@pytest.mark.parametrize(("group", "rows", "ratio", "window"), [(1, 1, 0.5, 4), (4, 2, 0.7, 8), (2, 1, 0.95, 2)])
def test_kvpress(group: int, rows: int, ratio: float, window: int) -> None:
    """Scores of the last queries, of all of them, the budgets of a pyramid, and values that merge."""
    rng = np.random.default_rng(1)
    heads, tokens, dim, kernel = 2, 60, 4, 5
    kept = int(tokens * (1 - ratio) + 1e-9)
    angle = np.arange(tokens)[:, None] * np.array([1.0, 0.1, 1.0, 0.1])
    q, keys, values = made(rng, rows, heads * group, tokens, dim), *(made(rng, rows, heads, tokens, dim) for _ in "kv")
    knorm = np.sort(np.argsort(np.linalg.norm(keys, axis=-1), kind="stable")[..., :kept])
    case = {
        "q_prerope": q,
        "keys": keys,
        "values": values,
        "cos": np.cos(angle)[None].repeat(rows, 0).astype(np.float32),
        "sin": np.sin(angle)[None].repeat(rows, 0).astype(np.float32),
        "compression_ratio": np.float32(ratio),
        "n_kept": np.int64(kept),
        "window_size": np.int64(window),
        "kernel_size": np.int64(kernel),
        "knorm_kept": knorm,
        "pyramid_budgets": np.zeros(8, np.int64),
    }
    out = outputs("snapkv", case)
    turned = q * np.cos(angle) + np.concatenate((-q[..., 2:], q[..., :2]), -1) * np.sin(angle)
    for r in range(rows):
        for h in range(heads):
            logits = np.stack([turned[r, h * group + g] @ keys[r, h].T / np.sqrt(dim) for g in range(group)])
            logits[:, np.triu_indices(tokens, 1)[0], np.triu_indices(tokens, 1)[1]] = -np.inf
            p = softmax(logits.astype(float)).mean(0)
            observed = p.sum(0) / np.arange(tokens, 0, -1)
            np.testing.assert_allclose(out["observed_score"][r, h], observed, **CLOSE)
            np.testing.assert_array_equal(out["observed_kept"][r, h], np.sort(falling(observed)[:kept]))
            mean = np.pad(p[-window:, :-window].mean(0), kernel // 2)
            score = np.array([mean[i : i + kernel].mean() for i in range(tokens - window)])
            np.testing.assert_allclose(out["snapkv_score"][r, h, :-window], score, **CLOSE)
            best = [*np.sort(falling(score)[: kept - window]), *range(tokens - window, tokens)]
            np.testing.assert_array_equal(out["snapkv_kept"][r, h], best)
            stays = knorm[r, h]
            total, weight = values[r, h].astype(float), np.ones(tokens)
            for i in set(range(tokens)) - set(stays.tolist()):
                alike = unit(keys[r, h]) @ unit(keys[r, h, i])
                to = max(stays, key=lambda j, alike=alike: alike[j])
                length = [np.linalg.norm(values[r, h, j]) for j in (i, to)]
                share = max(0, alike[to]) * length[0] / (sum(length) + 1e-6)
                total[to] += share * values[r, h, i]
                weight[to] += share
            expected = (total / weight[:, None])[stays]
            np.testing.assert_allclose(out["merging_knorm_values_sorted"][r, h], expected, **CLOSE)
    mean = tokens * (1 - ratio)
    last = max(mean / 20, 2 * mean - (tokens - window))
    steps = np.linspace(2 * mean - last, last, 8) if last >= window else np.full(8, mean)
    np.testing.assert_array_equal(out["pyramid_budgets"], np.round(steps))


@pytest.mark.parametrize(
    ("sizes", "queries"),
    [((0, 1, 5, 5), 1), ((3, 7, 9, 4), 2), ((0, 20, 20, 1), 1), ((2, 6, 3, 9), 1), ((0, 9, 40, 0), 1)],
)
def test_spatten(sizes: tuple[int, int, int, int], queries: int) -> None:
    """Without room for recent ones, at the limit, and one beyond it."""
    rng = np.random.default_rng(2)
    layers, heads, tokens, dim = 2, 3, 40, 4
    start, important, recent, coming = sizes
    q, k = made(rng, layers, heads, queries, dim), made(rng, layers, heads, tokens, dim)
    names = ("start_size", "important_size", "recent_size", "num_coming")
    out = outputs("spatten", {"q": q, "k": k, **{x: np.int64(n) for x, n in zip(names, sizes, strict=True)}})
    raw = q.astype(float) @ np.swapaxes(k, -1, -2) / np.sqrt(dim)
    np.testing.assert_allclose(out["raw_logits"], raw, **CLOSE)
    for layer in range(layers):
        for h in range(heads):
            kept = list(range(tokens))
            if tokens + coming > start + important + recent:
                end = min(tokens, tokens - recent + coming)
                score = raw[layer, h].sum(0)[start:end]
                kept = [*range(start), *sorted(start + falling(score)[:important]), *range(end, tokens)]
            np.testing.assert_array_equal(out["kept_idx"][layer, h], kept)
            np.testing.assert_array_equal(out["kept_k"][layer, h], k[layer, h, kept])
