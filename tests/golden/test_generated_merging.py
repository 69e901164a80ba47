"""Kinds of golden cases of merging methods that have no file here, on arrays made up here, computed the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.golden.adapters import outputs


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def pairs_of(metric: np.ndarray, cls: int) -> dict[int, tuple[float, int]]:
    """For every even token its best odd one: {token: (cosine, partner)}."""
    like = unit(metric.astype(np.float64)) @ unit(metric.astype(np.float64)).T
    odd = range(1, len(metric), 2)
    return {
        a: max(((like[a, b], b) for b in odd), key=lambda pair: pair[0]) for a in range(2 if cls else 0, len(metric), 2)
    }


@pytest.mark.parametrize("names", ["batch{j}_{n}", "{n}_{j}", "{n}"])
def test_dymu_calibration(names: str) -> None:
    rng = np.random.default_rng(0)
    tokens, merges, cls = 37, 6, 1
    metric = rng.normal(size=(3, 3, tokens, 8)).astype(np.float32)
    x = rng.normal(size=(3, 3, tokens, 5)).astype(np.float32)
    case = {"kind": np.int64(1), "r": np.int64(merges), "class_token": np.int64(cls)}
    for name, values in (("metric", metric), ("x", x)):
        if names == "{n}":
            case[name] = values
        else:
            case |= {names.format(j=j, n=name): values[j] for j in range(3)}
    out = outputs("dymu", case)
    taken = []
    for j in range(3):
        best = [pairs_of(metric[j, k], cls) for k in range(3)]
        pool = sorted(((likeness, k, a) for k in range(3) for a, (likeness, _) in best[k].items()), reverse=True)
        taken.append(max(pool[3 * merges][0], 0))
        merged = {(k, a) for _, k, a in pool[: 3 * merges]}
        counts = []
        for k in range(3):
            groups = {b: [b] for b in range(1, tokens, 2)}
            groups |= {a: [a] for a in range(0, tokens, 2) if (k, a) not in merged}
            for a in (a for picture, a in merged if picture == k):
                groups[best[k][a][1]].append(a)
            rows = sorted(sorted(group) for group in groups.values())
            counts.append(len(rows))
            assert [np.flatnonzero(row).tolist() for row in out[f"batch{j}_img{k}_pos"]] == rows
            expected = np.stack([x[j, k, row].sum(0) / (len(row) + 1e-4) for row in rows])
            np.testing.assert_allclose(out[f"batch{j}_img{k}_x"], expected, atol=2e-4, rtol=2e-4)
            assert out[f"batch{j}_img{k}_size"][:, 0].tolist() == [len(row) for row in rows]
        assert out[f"batch{j}_counts"].tolist() == counts
        assert sum(counts) == 3 * (tokens - merges)
        assert out[f"batch{j}_padded_len"] == max(counts)
    np.testing.assert_allclose(out["batch_threshold"], taken, atol=1e-5)
    np.testing.assert_allclose(out["running_threshold"], np.cumsum(taken) / [1, 2, 3], atol=1e-5)


@pytest.mark.parametrize(("ratio", "merges"), [(-1.0, 10), (0.35, 7), (0.0, 0)])
def test_dymu_cap(ratio: float, merges: int) -> None:
    rng = np.random.default_rng(1)
    case = {
        "kind": np.int64(0),
        "metric": rng.normal(size=(1, 21, 6)).astype(np.float32),
        "x": rng.normal(size=(1, 21, 4)).astype(np.float32),
        "threshold": np.float32(-1),
        "class_token": np.int64(1),
        "r_cfg": np.int64(20),
        "max_r_per_instance_ratio": np.float32(ratio),
        "size_in": np.ones((1, 21, 1), np.float32),
        "pos_in": np.eye(21, dtype=np.int64)[None],
    }
    out = outputs("dymu", case)
    best = pairs_of(case["metric"][0], 1)
    gone = sorted(best, key=lambda a: -best[a][0])[:merges]
    assert out["n_merged"] == merges
    groups = {b: [b, *(a for a in gone if best[a][1] == b)] for b in range(1, 21, 2)}
    groups |= {a: [a] for a in range(0, 21, 2) if a not in gone}
    found = [np.flatnonzero(row).tolist() for row in out["pos_out"][0]]
    assert sorted(found) == sorted(sorted(group) for group in groups.values())
    assert outputs("dymu", case | {"r_cfg": np.int64(0)})["n_merged"] == 0


def test_diffrate_rates() -> None:
    rng = np.random.default_rng(2)
    case = {}
    for j, (patches, step, limit) in enumerate([(12, 1, 13), (30, 4, 20), (9, 2, 4)]):
        case |= {f"patch_number_{j}": np.int64(patches), f"granularity_{j}": np.int64(step)}
        case |= {f"mask_limit_{j}": np.int64(limit)}
        case[f"logits_{j}"] = rng.normal(size=len(range(patches, 0, -step))).astype(np.float32)
    case |= {"init_kept_196_1": np.int64(0), "init_kept_576_1": np.int64(0), "init_kept_576_4": np.int64(0)}
    out = outputs("diffrate", case)
    assert [out[f"init_kept_{name}"] for name in ("196_1", "576_1", "576_4")] == [100, 290, 291]
    for j in range(3):
        logits, patches = case[f"logits_{j}"].astype(np.float64), int(case[f"patch_number_{j}"])
        options = np.arange(patches, 0, -int(case[f"granularity_{j}"]))
        limit = int(case[f"mask_limit_{j}"])
        p = np.exp(logits) / np.exp(logits).sum()
        kept = math.ceil((p * options).sum()) + 1
        places = np.arange(patches + 1)
        soft = np.array([p[options + 1 > i].sum() for i in places])
        slope = np.diag(p) - np.outer(p, p)  # of p by the logits
        np.testing.assert_array_equal(out[f"candidates_{j}"], options)
        np.testing.assert_allclose(out[f"probs_{j}"], p, atol=1e-6)
        assert out[f"kept_{j}"] == kept
        np.testing.assert_allclose(out[f"token_probability_{j}"], soft, atol=1e-6)
        np.testing.assert_array_equal(out[f"mask_{j}"], places < kept)
        np.testing.assert_array_equal(out[f"mask_limited_{j}"], (places < kept) | (places >= limit))
        by_place = (options[:, None] + 1 > places) @ places  # of each probability, in the weighted sum
        np.testing.assert_allclose(out[f"grad_mask_weighted_{j}"], slope @ by_place, atol=1e-3)
        np.testing.assert_allclose(out[f"grad_kept_{j}"], slope @ options, atol=1e-4)
