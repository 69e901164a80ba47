"""Kinds of golden cases that have no file here, on arrays made up here and results computed the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.golden.adapters import outputs


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_fastervlm_three_crops_in_one_row() -> None:
    rng = np.random.default_rng(0)
    side, keep, columns = 5, 9, 3
    case = {
        "q_cls": rng.normal(size=(4, 2, 4)).astype(np.float32),
        "keys": rng.normal(size=(4, 2, 26, 4)).astype(np.float32),
        "features": rng.normal(size=(4, 25, 3)).astype(np.float32),
        "visual_token_num": np.int64(keep),
        "grid_wh": np.array([columns, 1]),
    }
    out = outputs("fastervlm", case)
    attention = softmax(np.einsum("bhd,bhnd->bhn", case["q_cls"], case["keys"]) / 2)[..., 1:]
    top = [set(np.argsort(-row)[:keep]) for row in attention.mean(1)]
    order = [(0, n) for n in range(25) if n in top[0]]
    order += [
        (1 + crop, row * side + column)
        for row in range(side)
        for crop in range(columns)
        for column in range(side)
        if row * side + column in top[1 + crop]
    ]
    assert list(zip(out["out_source_crop"], out["out_source_token"], strict=True)) == order
    np.testing.assert_array_equal(out["out_tokens"], np.stack([case["features"][c, t] for c, t in order]))


@pytest.mark.parametrize("ortho", [0, 1])
@pytest.mark.parametrize(("grid", "small"), [((9, 7), (1, 1)), ((10, 6), (10, 6)), ((4, 6), (3, 2))])
def test_fourier(grid: tuple[int, int], small: tuple[int, int], ortho: int) -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(3, grid[0] * grid[1], 2)).astype(np.float32)
    case = {"features": features, "grid_hw": np.array(grid), "reserve_hw": np.array(small), "norm_ortho": ortho}
    out = outputs("fourier", {k: np.asarray(v) for k, v in case.items()})

    def cosines(n: int) -> np.ndarray:
        return np.array([[math.cos(math.pi * k * (2 * i + 1) / (2 * n)) for i in range(n)] for k in range(n)])

    def basis(n: int) -> np.ndarray:
        return cosines(n) * np.where(np.arange(n) == 0, math.sqrt(1 / n), math.sqrt(2 / n))[:, None]

    def forward(n: int) -> np.ndarray:
        return basis(n) if ortho else 2 * cosines(n)

    def inverse(n: int) -> np.ndarray:
        return basis(n).T if ortho else cosines(n).T * np.where(np.arange(n) == 0, 0.5, 1.0) / n

    maps = features.reshape(3, *grid, 2).astype(np.float64)
    down = inverse(small[0]) @ forward(grid[0])[: small[0]]
    across = inverse(small[1]) @ forward(grid[1])[: small[1]]
    expected = np.einsum("hH,wW,bHWc->bhwc", down, across, maps).reshape(3, -1, 2)
    np.testing.assert_allclose(out["out_float32"], expected, atol=1e-4)
    np.testing.assert_allclose(out["out_bf16_as_float32"], expected, rtol=2e-2, atol=2e-2 * np.abs(expected).max())


def test_tome_three_blocks() -> None:
    rng = np.random.default_rng(2)
    heads, width, merges = 4, 16, 3
    case = {
        "x": rng.normal(size=(2, 15, width)).astype(np.float32),
        "w_qkv": rng.normal(size=(3 * width, width)).astype(np.float32) / 4,
        "w_proj": rng.normal(size=(width, width)).astype(np.float32) / 4,
        "b_proj": rng.normal(size=width).astype(np.float32),
        "num_heads": np.int64(heads),
        "r": np.int64(merges),
    }
    out = outputs("tome", case)
    for picture in range(2):
        x, sizes = case["x"][picture].astype(np.float64), np.ones(15)
        members = [{i} for i in range(15)]
        for i in range(3):
            q, k, v = ((x @ w.T).reshape(len(x), heads, -1) for w in np.split(case["w_qkv"], 3))
            logits = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(width // heads) + np.log(sizes)
            x = (
                x
                + np.einsum("hqk,khd->qhd", softmax(logits), v).reshape(len(x), -1) @ case["w_proj"].T
                + case["b_proj"]
            )
            metric = k.mean(1)
            metric = metric / np.linalg.norm(metric, axis=1, keepdims=True)
            best = {a: max(range(1, len(x), 2), key=lambda b, a=a: metric[a] @ metric[b]) for a in range(2, len(x), 2)}
            gone = sorted(best, key=lambda a, best=best: -(metric[a] @ metric[best[a]]))[:merges]
            groups = [[a] for a in range(0, len(x), 2) if a not in gone]
            groups += [[b, *(a for a in gone if best[a] == b)] for b in range(1, len(x), 2)]
            x = np.stack([sum(x[t] * sizes[t] for t in g) / sizes[g].sum() for g in groups])
            sizes = np.array([sizes[g].sum() for g in groups])
            members = [set().union(*(members[t] for t in g)) for g in groups]
            np.testing.assert_allclose(out[f"x_{i}"][picture], x, atol=2e-4)
            np.testing.assert_allclose(out[f"size_{i}"][picture, :, 0], sizes)
        source = np.array([[float(t in group) for t in range(15)] for group in members])
        np.testing.assert_array_equal(out["source_2"][picture], source)


def test_tome_asks_for_more_than_half() -> None:
    rng = np.random.default_rng(3)
    case = {
        "metric": rng.normal(size=(2, 31, 4)).astype(np.float32),
        "x": rng.normal(size=(2, 31, 2)).astype(np.float32),
        "size_in": np.ones((2, 31, 1), np.float32),
        "r": np.int64(1000),
        "class_token": np.int64(0),
        "distill_token": np.int64(0),
    }
    out = outputs("tome", case)
    assert out["r_effective"] == 15
    assert out["x_out"].shape == (2, 16, 2)
    np.testing.assert_allclose(out["size_out"].sum(1), 31)


def test_fastv_cut_after_the_first_layer() -> None:
    rng = np.random.default_rng(4)
    layers, width, slots = 3, 8, 14
    case = {
        "inputs_embeds": rng.normal(size=(slots, width)).astype(np.float32),
        **{
            name: np.asarray(value)
            for name, value in {
                "num_heads": 2,
                "num_layers": layers,
                "K": 1,
                "sys_length": 2,
                "image_token_length": 9,
                "attention_rank": 4,
                "rms_norm_eps": 1e-6,
                "rope_theta": 1e4,
            }.items()
        },
        "w.norm.weight": np.ones(width, np.float32),
    }
    shapes = {"mlp.gate_proj": (12, width), "mlp.up_proj": (12, width), "mlp.down_proj": (width, 12)}
    shapes |= {f"self_attn.{p}_proj": (width, width) for p in "qkvo"}
    for i in range(layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            case[f"w.layers.{i}.{norm}.weight"] = np.ones(width, np.float32)
        for name, shape in shapes.items():
            case[f"w.layers.{i}.{name}.weight"] = rng.normal(size=shape).astype(np.float32)
    out = outputs("fastv", case)
    kept = out["keep_index"]
    assert kept.tolist() == sorted({0, 1, 11, 12, 13} | {2 + i for i in np.argsort(-out["image_score"])[:4]})
    np.testing.assert_array_equal(out["position_ids_after"], kept)
    np.testing.assert_allclose(out["last_hidden_mask"][kept], out["last_hidden_inplace"], atol=1e-4)
    assert np.abs(out["last_hidden_mask"]).max() > 0.1
