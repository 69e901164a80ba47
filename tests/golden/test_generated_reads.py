"""Kinds of golden cases of methods that compute, or read, less of an attention, made up and computed the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.golden.slow import Array, falling, probabilities, softmax
from tests.golden.test_generated_encoder import expect, floats


@pytest.mark.parametrize(
    ("length", "window", "kernel", "least", "coverage"),
    [(90, 8, 7, 16, 0.2), (90, 8, 7, 60, 0.5), (60, 16, 3, 44, 0.5), (60, 5, 5, 8, 0.0), (70, 6, 1, 4, 0.01)],
)
def test_token_sparse_attention(length: int, window: int, kernel: int, least: int, coverage: float) -> None:
    heads, dim = 3, 8
    rng = np.random.default_rng(length + kernel)
    q, k, v = (floats(rng, heads, length, dim) * scale for scale in (1.5, 1.5, 1))
    case: dict[str, object] = {"q": q, "k": k, "v": v, "window": window, "kernel_size": kernel}
    case |= {"min_tokens": least, "coverage": np.float32(coverage)}
    causal = np.stack([_causal(q[h], k[h]) for h in range(heads)])
    prefix = length - window
    dense = {"selected": 0, "attn_output": np.concatenate(list(causal @ v), 1)}
    score = causal[:, -window:, :prefix].mean(1)
    around = kernel // 2
    pooled = np.array(
        [[sum(row[max(i - around, 0) : i + around + 1]) / kernel for i in range(prefix)] for row in score]
    )
    share = pooled.mean(0) / (pooled.mean(0).sum() + 1e-8)
    dropped = int((np.cumsum(np.sort(share)) < coverage).sum())
    if length <= least + window or dropped == 0:
        expect("token_sparse_attention", case, **dense)
        return
    kept = max(least, prefix - (dropped + 1))
    indices, out = [], np.zeros((length, heads * dim))
    for h in range(heads):
        own = sorted(falling(pooled[h])[:kept].tolist()) + list(range(prefix, length))
        indices.append(own)
        out[own, h * dim : (h + 1) * dim] = _causal(q[h][own], k[h][own]) @ v[h][own]
    expected = {"selected": 1, "pooled_score": pooled, "indices": indices, "attn_output": out}
    expect("token_sparse_attention", case, compressed_len=kept + window, **expected)


def _causal(queries: Array, keys: Array) -> Array:
    logits = queries.astype(np.float64) @ keys.T.astype(np.float64) / math.sqrt(queries.shape[1])
    return softmax(np.where(np.tri(len(queries), dtype=bool), logits, -np.inf))


@pytest.mark.parametrize(("layers", "shares"), [(9, (0.5, 0.25, 0.3)), (12, (0.5, 0.0, 1.0, 0.9)), (2, (0.5,))])
def test_layers_of_token_sparse_attention(layers: int, shares: tuple[float, ...]) -> None:
    states = floats(np.random.default_rng(layers), layers + 1, 11, 16).cumsum(0)
    drift = [
        np.mean([np.linalg.norm(b - a) / (np.linalg.norm(a) + 1e-8) for a, b in zip(*pair, strict=True)])
        for pair in zip(states[:-1].astype(np.float64), states[1:].astype(np.float64), strict=True)
    ]
    case = {"hidden_states": states} | {f"quantile_{j}": np.float32(x) for j, x in enumerate(shares)}
    chosen = {
        f"layers_{j}": [i for i in range(layers) if drift[i] <= np.quantile(drift, round(share, 6)) + 1e-12]
        for j, share in enumerate(shares)
    }
    expect("token_sparse_attention", case, drift_mean=drift, drift_norm=np.array(drift) / sum(drift), **chosen)


@pytest.mark.parametrize(
    ("heads", "groups", "queries", "entries", "first", "last", "top", "kernel"),
    [(8, 2, 8, 50, 3, 8, 6, -1), (4, 4, 16, 70, 1, 16, 9, 5), (6, 1, 1, 30, 0, 0, 29, 3), (4, 2, 1, 20, 4, 8, 8, -1)],
)
def test_tokenselect(
    heads: int, groups: int, queries: int, entries: int, first: int, last: int, top: int, kernel: int
) -> None:
    rng = np.random.default_rng(heads + entries)
    q, k = floats(rng, queries, heads, 8), floats(rng, entries, groups, 8)
    case: dict[str, object] = {"q_prerope": q, "k_prerope": k, "rope_base": np.float32(10000.0)}
    case |= {"n_init": first, "n_local": last, "top_k": top, "kernel_size": kernel}
    if first + last + top >= entries:
        expect("tokenselect", case, returns_none=1)
        return
    query = np.zeros((heads, 8))
    for number in range(queries):
        for i in range(4):
            angle = (last + number) * 10000.0 ** (-2 * i / 8)
            a, b = q[number, :, i].astype(np.float64), q[number, :, i + 4].astype(np.float64)
            query[:, i] += (a * math.cos(angle) - b * math.sin(angle)) / queries
            query[:, i + 4] += (b * math.cos(angle) + a * math.sin(angle)) / queries
    expected: dict[str, object] = {"returns_none": 0, "query_mean_rotated": query}
    for name, key_of in (("", lambda h: h // (heads // groups)), ("_official_mod", lambda h: h % groups)):
        between = k[first : entries - last].astype(np.float64)
        votes = sum(softmax(between[:, key_of(h)] @ query[h]) for h in range(heads))
        around = max(kernel, 1) // 2
        pooled = [max(votes[max(i - around, 0) : i + around + 1]) for i in range(len(votes))]
        chosen = sorted(falling(pooled)[:top].tolist())
        read = [*range(first), *(first + i for i in chosen), *range(entries - last, entries)]
        expected |= {f"vote_score{name}": votes, f"retrieved_idx{name}": read}
    expect("tokenselect", case, **expected)


@pytest.mark.parametrize(
    ("heads", "groups", "length", "layers", "top", "start", "correction"),
    [(4, 2, 40, 6, 7, 1, 3), (6, 1, 30, 4, 1, 0, 2), (4, 4, 20, 3, 64, 1, 2), (4, 2, 25, 5, 3, 2, 9)],
)
def test_tidaldecode(heads: int, groups: int, length: int, layers: int, top: int, start: int, correction: int) -> None:
    rng = np.random.default_rng(heads + length)
    case: dict[str, object] = {"n_layers": layers, "top_k": top}
    case |= {"sparse_layer_start": start, "correction_layer": correction}
    expected: dict[str, object] = {}
    mask = np.full((heads, length), -1)
    for layer in range(layers):
        q, k, v = floats(rng, 1, heads, 8), floats(rng, 1, groups, length, 8), floats(rng, 1, groups, length, 8)
        case |= {f"q_{layer}": q, f"k_{layer}": k, f"v_{layer}": v}
        choosing, out = layer in (start, correction), np.zeros((heads, 8))
        for h in range(heads):
            key, value = (x[0, h // (heads // groups)] for x in (k, v))
            seen = list(range(length)) if choosing or mask[h, 0] < 0 else mask[h].nonzero()[0].tolist()
            out[h] = probabilities(q[0, h], key[seen]) @ value[seen]
            if choosing:
                best = falling(key.astype(np.float64) @ q[0, h])[: min(length, top)]
                mask = mask.copy()
                mask[h] = 0
                mask[h, best] = 1
        expected |= {f"out_{layer}": out, f"mask_{layer}": mask}
    expect("tidaldecode", case, **expected)
