"""What no given case of zipcache shows, by plain loops in numpy: one key-value head, 8 and 4 bits, few tokens."""

from __future__ import annotations

import numpy as np
import pytest

from tests.golden import adapters

Case = dict[str, np.ndarray]


def made(seed: int, heads: int, kv_heads: int, length: int, dim: int, bits: tuple[int, int], ratio: float) -> Case:
    """A case as its README says, entry by entry."""
    g = np.random.default_rng(seed)
    q = g.normal(size=(1, heads, length, dim)).astype(np.float32)
    k, v = (g.normal(size=(1, kv_heads, length, dim)).astype(np.float32) for _ in range(2))
    k[..., 1] *= 5
    v[..., 2] *= 6
    first = int(length - 0.05 * length)
    drawn = g.integers(0, max(first, 1), int(0.05 * length)).tolist()
    probes = [*range(first, length), *drawn]
    accumulated = np.zeros((1, kv_heads, length))
    for row in probes:
        for head in range(heads):
            own = head * kv_heads // heads
            logits = (k[0, own, : row + 1].astype(np.float64) @ q[0, head, row]) / dim**0.5
            weights = np.exp(logits - logits.max())
            accumulated[0, own, : row + 1] += weights / weights.sum()
    code, paper = accumulated.copy(), accumulated.copy()
    for j in range(length):
        code[..., j] /= length - j
        paper[..., j] /= max(sum(row >= j for row in probes), 1)
    fewer = int(ratio * length)
    case = {"q": q, "k": k, "v": v, "probe_ids": np.array(probes)}
    case |= {"unimportant_ratio": np.float32(ratio), "bits_important": bits[0], "bits_unimportant": bits[1]}
    case |= {"accum_score": accumulated, "norm_score_code": code, "norm_score_paper": paper}
    others = np.stack([sorted(range(length), key=lambda j, h=h: code[0, h, j])[:fewer] for h in range(kv_heads)])
    chosen = np.stack([[j for j in range(length) if j not in set(others[h])] for h in range(kv_heads)])
    case |= {"unimportant_ids_topk_order": others[None], "important_ids": chosen[None]}
    scale = np.sqrt(np.abs(v[0]).max(1)).reshape(-1)  # head by head
    case["v_channel_scale"] = scale[None, None]
    wholes = {"k": k.copy(), "v": v.copy()}
    for name, ids, width in (("imp", chosen, bits[0]), ("unimp", others, bits[1])):
        count, channels = ids.shape[1], kv_heads * dim
        keys, values = (
            np.stack([x[0, np.arange(kv_heads), ids[:, n]].reshape(-1) for n in range(count)]) for x in (k, v)
        )
        values = values / scale
        for letter, x, groups in (
            ("k", keys, [(slice(None), c) for c in range(channels)]),
            ("v", values, range(count)),
        ):
            codes, back = np.zeros((count, channels), int), np.zeros((count, channels), np.float32)
            lows, steps = [], []
            for group in groups:
                low, high = x[group].min(), x[group].max()
                step = (high - low) / np.float32(2**width - 1)
                codes[group] = np.round((x[group] - low) / step).astype(int)
                back[group] = codes[group] * step + low
                lows.append(low)
                steps.append(step)
            shape = (1, 1, 1, channels) if letter == "k" else (1, count, 1)
            case[f"{letter}_{name}_q"] = codes.reshape(
                (1, 1, count, channels) if letter == "k" else (1, count, channels)
            )
            case[f"{letter}_{name}_min"] = np.array(lows).reshape(shape)
            case[f"{letter}_{name}_{'scale' if letter == 'k' else 'step'}"] = np.array(steps).reshape(shape)
            parts = codes.reshape(count, 8 // width, -1)
            packed = sum(parts[:, i] * 2 ** (width * i) for i in range(8 // width))
            case[f"{letter}_{name}_packed"] = packed.reshape((1, 1, count, -1) if letter == "k" else (1, count, -1))
            for n in range(count):
                for h in range(kv_heads):
                    own = slice(h * dim, (h + 1) * dim)
                    wholes[letter][0, h, ids[h, n]] = back[n, own] * (scale[own] if letter == "v" else 1)
    return case | {"k_dequant": wholes["k"], "v_dequant": wholes["v"]}


@pytest.mark.parametrize(
    "shape",
    [
        (4, 1, 60, 8, (8, 4), 0.6),
        (8, 2, 72, 8, (4, 2), 0.4),
        (4, 4, 45, 4, (8, 2), 0.5),
        (2, 2, 15, 8, (4, 2), 0.4),  # no random probe, one recent one
    ],
    ids=["one head", "groups", "8 and 2 bits", "few tokens"],
)
@pytest.mark.parametrize("seed", range(3))
def test_zipcache(shape: tuple, seed: int) -> None:
    case = made(seed, *shape)
    inputs = {name: np.asarray(case[name]) for name in case}
    found = adapters.outputs("zipcache", inputs)
    given = {*adapters.INPUTS["zipcache"], "unimportant_ratio", "bits_important", "bits_unimportant"}
    for name in set(case) - given:
        np.testing.assert_allclose(found[name], case[name], atol=2e-5, rtol=1e-5, err_msg=name)
