"""Kinds of golden cases of methods between vision blocks, on arrays made up here and results computed the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.golden.slow import averaged, falling, members, paired, softmax, unit
from tests.golden.test_golden import check

Case = dict[str, np.ndarray]


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def expect(method: str, case: dict[str, object], **expected: object) -> None:
    """The adapter makes the expected outputs of the case."""
    check(method, {name: np.asarray(value) for name, value in {**case, **expected}.items()})


@pytest.mark.parametrize(
    ("pictures", "tokens", "merges", "cls", "alpha", "beta", "gamma", "merged"),
    [(2, 65, 12, 1, 5, 1, 0, 2), (1, 33, 200, 1, 5, 1, 0, 1), (2, 30, 9, 0, 2, 0.9, 3, 5), (1, 31, 40, 0, 0, 1, 0, 0)],
)
def test_turbo(pictures, tokens, merges, cls, alpha, beta, gamma, merged) -> None:
    rng = np.random.default_rng(0)
    case = {
        "x": floats(rng, pictures, tokens, 4),
        "metric": floats(rng, pictures, tokens, 8),
        "attn_cls": softmax(1.5 * floats(rng, pictures, tokens)),
        "size": rng.integers(1, 4, (pictures, tokens, 1)).astype(np.float32),
        "params": np.array([merges, cls, alpha, beta, gamma, merged], np.float32),
    }
    x, sizes, owners = [], [], []
    for i in range(pictures):
        penalty = 30 * alpha * beta ** abs(gamma - merged) * case["attn_cls"][i]
        groups = paired(case["metric"][i], merges, cls, penalty)
        mean, size = averaged(case["x"][i], groups, case["size"][i, :, 0])
        x.append(mean)
        sizes.append(size[:, None])
        owners.append([next(g for g, group in enumerate(groups) if token in group) for token in range(tokens)])
    expect("turbo", case, x_merged=np.stack(x), size_merged=np.stack(sizes), owner=owners)


def energy(metric: np.ndarray, margin: float, alpha: float) -> np.ndarray:
    z = unit(metric) @ unit(metric).T - margin
    return np.where(z > 0, z, alpha * (np.exp(np.minimum(z, 0)) - 1)).mean(1)


@pytest.mark.parametrize(("mode", "cls", "ratio"), [(0, 0, 0.9), (0, 1, 0.5), (1, 0, 0.9), (2, 1, 0.9), (2, 0, 0.6)])
def test_pitome(mode: int, cls: int, ratio: float) -> None:
    rng = np.random.default_rng(1)
    pictures, tokens, margin, alpha = 2, 33, 0.4, 0.8
    case = {
        "metric": floats(rng, pictures, tokens, 6),
        "x": floats(rng, pictures, tokens, 5),
        "size_in": rng.integers(1, 5, (pictures, tokens, 1)).astype(np.float32),
        **{"ratio": ratio, "margin": margin, "alpha": alpha, "class_token": cls, "mode": mode},
    }
    found: dict[str, list[object]] = {}
    for x, metric, sizes in zip(case["x"], case["metric"], case["size_in"][..., 0], strict=True):
        lead = cls if mode != 1 else 0
        patches = metric[lead:]
        merges = math.floor(len(patches) - len(patches) * ratio)
        scores = energy(patches, margin, alpha)
        like, order = unit(patches) @ unit(patches).T, falling(scores)
        one: dict[str, object] = {"energy": scores}
        if mode == 1:
            groups = paired(metric, merges, cls)
        else:
            # By falling energy in turn: those that may merge, and those that they may merge with.
            candidates = order[: 2 * merges] if mode == 0 else order
            a, b = candidates[::2], candidates[1::2]
            best = like[np.ix_(a, b)].argmax(1)
            if mode == 0:
                chosen, alone = np.arange(merges), order[2 * merges :]
                one |= {"protected_idx": alone}
            else:
                by_likeness = falling(like[np.ix_(a, b)].max(1))
                chosen, alone = by_likeness[:merges], a[by_likeness[merges:]]
                one |= {"src_idx": chosen, "unm_idx": by_likeness[merges:]}
            one |= {"a_idx": a, "b_idx": b, "dst_idx": best[chosen]}
            one["x_prune"] = x[[*range(lead), *(alone + lead), *(b + lead)]]
            groups = [[0]] * lead + [[i + lead] for i in alone]
            groups += [[t + lead, *(a[s] + lead for s in chosen if best[s] == j)] for j, t in enumerate(b)]
        weighted, size = averaged(x, groups, sizes)
        one |= {"x_mean": averaged(x, groups)[0], "x_wavg": weighted, "size_wavg": size[:, None]}
        one["source"] = members(groups, tokens)
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    expect("pitome", case, r=merges, **found)


@pytest.mark.parametrize(
    ("pictures", "tokens", "reference", "slots"), [(2, 30, 30, 30), (1, 33, 9, 9), (1, 65, 17, 17), (1, 37, 65, 37)]
)
def test_ats(pictures: int, tokens: int, reference: int, slots: int) -> None:
    """Also with fewer samples than tokens, where the authors' code looks at the highest scores alone."""
    rng = np.random.default_rng(2)
    case = {
        "attn_logits": 2 * floats(rng, pictures, 2, tokens, tokens),
        "v": floats(rng, pictures, 2, tokens, 4),
        "raw_x": floats(rng, pictures, tokens, 8),
        "policy_in": np.ones((pictures, tokens, 1), np.float32),
        **{"n_ref_tokens": reference, "n_tokens": slots},
    }
    attention = softmax(case["attn_logits"].astype(np.float64))
    lengths = np.linalg.norm(case["v"].swapaxes(1, 2).reshape(pictures, tokens, -1), axis=2)
    attended = (attention @ case["v"]).swapaxes(1, 2).reshape(pictures, tokens, -1)
    found: dict[str, list[object]] = {}
    for i in range(pictures):
        scores = attention[i, :, 0, 1:].sum(0) * lengths[i, 1:]
        scores /= scores.sum()
        order = np.argsort(scores, kind="stable")
        cumulated = scores[order].cumsum()
        shares = (cumulated - cumulated[0]) / (cumulated[-1] - cumulated[0])
        samples, first = reference - 1, max(tokens - reference, 0)
        heights = [shares[1] + (1 - shares[1]) * k / (samples - 1) for k in range(samples)]
        taken = sorted({first + int(np.abs(shares[first:] - height).argmin()) for height in heights})
        kept = [0, *(1 + order[taken])]
        there = np.arange(slots) < len(kept)
        kept += [-1] * (slots - len(kept))
        one = {
            "sorted_scores": scores[order],
            "sorted_indices": order,
            "kept_idx": kept,
            "n_kept": np.float32(there.sum()),
            "policy_out": there[:, None].astype(np.float32),
            "selected_x": case["raw_x"][i, kept] * there[:, None],
            "attn_v": attended[i, kept] * there[:, None],
        }
        for name, value in one.items():
            found.setdefault(name, []).append(value)
    expect("ats", case, attn=attention, **found)


@pytest.mark.parametrize(("tokens", "merges", "counts"), [(49, 6, [43, 37, 31]), (25, 100, [13, 7, 4, 2, 1, 1])])
def test_tinychart(tokens: int, merges: int, counts: list[int]) -> None:
    rng = np.random.default_rng(3)
    pictures, heads, width, eps = 2, 2, 8, 1e-6
    case: dict[str, object] = {"x_in": floats(rng, pictures, tokens, width)}
    case |= {"num_heads": heads, "num_layers": len(counts), "r": merges, "eps": np.float32(eps)}
    shapes = {"mlp__fc1": (12, width), "mlp__fc2": (width, 12)}
    shapes |= {f"self_attn__{part}_proj": (width, width) for part in ("q", "k", "v", "out")}
    shapes |= {"layer_norm1": (width,), "layer_norm2": (width,)}
    for layer in range(len(counts)):
        for name, shape in shapes.items():
            case[f"{layer}__{name}__weight"] = floats(rng, *shape) / 3 + (len(shape) == 1)
            case[f"{layer}__{name}__bias"] = floats(rng, shape[0]) / 9

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ case[f"{name}__weight"].T + case[f"{name}__bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return x * case[f"{name}__weight"] + case[f"{name}__bias"]

    found: dict[str, list[np.ndarray]] = {"x_out": [], "size_out": [], "source": []}
    for x in case["x_in"]:
        x, sizes, source = x.astype(np.float64), np.ones(tokens), np.eye(tokens)
        for layer in range(len(counts)):
            h = norm(x, f"{layer}__layer_norm1")
            q, k, v = (
                linear(h, f"{layer}__self_attn__{part}_proj").reshape(len(x), heads, -1).swapaxes(0, 1)
                for part in ("q", "k", "v")
            )
            weights = softmax(q @ k.swapaxes(1, 2) / math.sqrt(width // heads) + np.log(sizes))
            x = x + linear((weights @ v).swapaxes(0, 1).reshape(len(x), -1), f"{layer}__self_attn__out_proj")
            groups = paired(k.mean(0), merges)
            source = members(groups, len(x)) @ source
            x, sizes = averaged(x, groups, sizes)
            h = linear(norm(x, f"{layer}__layer_norm2"), f"{layer}__mlp__fc1")
            h = h / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
            x = x + linear(h, f"{layer}__mlp__fc2")
        for name, value in (("x_out", x), ("size_out", sizes[:, None]), ("source", source)):
            found[name].append(value)
    expect("tinychart", case, counts=counts, **found)


@pytest.mark.parametrize(
    ("tokens", "rounds", "keyed"),
    [(39, [19, 9, 4], False), (25, [100], False), (30, [15, 4], True), (15, [7, 3, 1], True)],
)
def test_aim(tokens: int, rounds: list[int], keyed: bool) -> None:
    rng = np.random.default_rng(4)
    case = {"x": floats(rng, 2, tokens, 4), "rounds": np.array(rounds)}
    case |= {"metric": floats(rng, 2, tokens, 6)} if keyed else {}
    expected: dict[str, object] = {}
    x, metric = list(case["x"]), list(case["metric"] if keyed else case["x"])
    for i, merges in enumerate(rounds):
        groups = [paired(m, merges) for m in metric]
        x = [averaged(one, g)[0] for one, g in zip(x, groups, strict=True)]
        metric = [averaged(one, g)[0] for one, g in zip(metric, groups, strict=True)]
        expected |= {f"out_{i}": np.stack(x)} | ({f"metric_out_{i}": np.stack(metric)} if keyed else {})
    expect("aim", case, **expected)


@pytest.mark.parametrize(("grid", "rounds"), [((5, 7), [17, 8]), ((4, 6), [12]), ((3, 5), [7, 3, 1])])
def test_aim_of_videos(grid: tuple[int, int], rounds: list[int]) -> None:
    rng = np.random.default_rng(5)
    case = {"features": floats(rng, 3, grid[0] * grid[1], 4), "grid": np.array(grid), "r_per_step": np.array(rounds)}
    frames, counts = list(case["features"]), []
    for merges in rounds:
        frames = [averaged(x, paired(x, merges))[0] for x in frames]
        counts.append(len(frames[0]))
    expect("aim", case, counts_after_step=counts, out=np.stack(frames))
