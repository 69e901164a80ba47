"""Kinds of golden cases of diversity, relevance, frames and time, made up here and computed the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.golden.slow import averaged, bilinear, falling, paired, softmax, unit
from tests.golden.test_generated_encoder import expect, floats


@pytest.mark.parametrize(("tokens", "ratio"), [(36, 0.33), (64, 1 / 64), (40, 0.9)])
def test_divprune(tokens: int, ratio: float) -> None:
    features = floats(np.random.default_rng(0), tokens, 16)
    distance = 1 - unit(features) @ unit(features).T
    np.fill_diagonal(distance, math.inf)
    picks = [int(distance.min(1).argmax())]
    while len(picks) < round(ratio * tokens):
        left = [token for token in range(tokens) if token not in picks]
        picks.append(max(left, key=lambda token: distance[token, picks].min()))
    expected = {"budget": len(picks), "selected_order": picks, "kept_sorted": sorted(picks)}
    expect("divprune", {"features": features, "ratio": np.float32(ratio)}, **expected)


@pytest.mark.parametrize(
    ("tokens", "dropped", "trade_off", "parallel"),
    [(144, 0.9, 0.5, 1), (96, 0.5, 0.8, 4), (64, 0.995, 0.5, 1), (36, 0.3, 0.0, 1), (36, 0.3, 1.0, 7)],
)
def test_idpruner(tokens: int, dropped: float, trade_off: float, parallel: int) -> None:
    rng = np.random.default_rng(1)
    features = floats(rng, tokens, 16)
    weights = {
        f"{x}_{part}": floats(rng, *shape) for x in "qk" for part, shape in (("weight", (8, 16)), ("bias", (8,)))
    }
    queries, keys = (features @ weights[f"{x}_weight"].T + weights[f"{x}_bias"] for x in "qk")
    raw = (queries @ keys.T).mean(1) / math.sqrt(8)
    count = max(round(tokens * (1 - dropped)), 1)
    importance = (raw.astype(np.float64) - raw.min()) / (raw.max() - raw.min() + 1e-6)
    likeness, picks = unit(features) @ unit(features).T, falling(importance)[: min(parallel, count)].tolist()
    while len(picks) < count:
        score = trade_off * importance - (1 - trade_off) * likeness[:, picks].max(1)
        score[picks] = -math.inf
        picks += falling(score)[: min(parallel, count - len(picks))].tolist()
    case = {"features": features, "raw_scores": raw, **weights}
    case["params"] = np.array([dropped, trade_off, parallel, count], np.float32)
    expect("idpruner", case, kept_sorted=sorted(picks), selected_order_fp64=picks)


@pytest.mark.parametrize(
    ("pictures", "tokens", "channels", "texts", "count"), [(1, 36, 48, 1, 12), (2, 64, 40, 3, 30), (1, 25, 24, 1, 1)]
)
def test_cdpruner(pictures: int, tokens: int, channels: int, texts: int, count: int) -> None:
    rng = np.random.default_rng(2)
    case = {"image_features": floats(rng, pictures, tokens, channels), "budget": count}
    case |= {"image_embeds": floats(rng, pictures, tokens, 16), "text_embeds": floats(rng, texts, 16)}
    relevance = -(unit(case["image_embeds"]) @ unit(case["text_embeds"]).T).mean(-1)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    order = []
    for features, weight in zip(case["image_features"], relevance, strict=True):
        kernel = weight[:, None] * (unit(features) @ unit(features).T) * weight
        picks: list[int] = []
        for _ in range(count):
            left = [token for token in range(tokens) if token not in picks]
            volumes = [np.linalg.slogdet(kernel[np.ix_([*picks, t], [*picks, t])])[1] for t in left]
            picks.append(left[int(np.argmax(volumes))])
        order.append(picks)
    expect("cdpruner", case, relevance=relevance, selected_order_fp64=order, kept_sorted=np.sort(order, 1))


@pytest.mark.parametrize(
    ("grid", "merge", "q", "seconds"),
    [((5, 8, 10), 2, 0.5, 0.7), ((6, 8, 8), 2, 0.99, 1.0), ((1, 8, 12), 2, 0.75, 1.0), ((4, 9, 6), 3, 0.1, 2.5)],
)
def test_evs(grid: tuple[int, int, int], merge: int, q: float, seconds: float) -> None:
    frames, rows, columns = grid[0], grid[1] // merge, grid[2] // merge
    features = floats(np.random.default_rng(3), frames * rows * columns, 8)
    x = unit(features).reshape(frames, rows * columns, -1)
    change = np.concatenate((np.full((1, rows * columns), 255.0), 1 - (x[1:] * x[:-1]).sum(-1))).ravel()
    kept = np.sort(falling(change)[: max(rows * columns, int(len(features) * (1 - q)))])
    places = np.array([(t, y, x, columns) for t in range(frames) for y in range(rows) for x in range(columns)])
    places[:, 0] = np.floor(places[:, 0].astype(np.float32) * np.float32(2) * np.float32(seconds))
    case = {"embeds": features, "thw_premerge": np.array(grid), "spatial_merge": merge, "q": q}
    case |= {"tokens_per_second": np.float32(2), "second_per_grid": np.float32(seconds)}
    mask = np.isin(np.arange(len(features)), kept).astype(int)
    expected = {"dissimilarity": change, "mask": mask, "kept_indices": kept}
    expect("evs", case, **expected, mrope_thw_and_width=places, mrope_kept=places[kept])


@pytest.mark.parametrize(
    ("grid", "base", "newline"),
    [((6, 6, 6), 0.25, 0), ((4, 13, 13), 0.25, 1), ((5, 4, 5), 0.95, 0), ((3, 3, 4), 0.01, 1), ((1, 5, 5), 0.3, 0)],
)
def test_vidcom2(grid: tuple[int, int, int], base: float, newline: int) -> None:
    rng = np.random.default_rng(4)
    frames, rows, columns = grid
    size = rows * columns
    scenes = np.repeat(floats(rng, frames, 16), size, 0) / 2
    features = (scenes + floats(rng, frames * size, 16) * rng.uniform(0.2, 2, 16)).astype(np.float32)
    case = {"features": features, "thw": np.array(grid), "base_scale": np.float32(base), "grid_newline": newline}
    channels = np.sort(np.argsort(features.astype(np.float64).var(0))[:8])
    x = unit(features[:, channels]).reshape(frames, size, -1)

    def likeness(centre: np.ndarray) -> np.ndarray:
        distance = ((x - centre) ** 2).sum(-1)
        return sum(np.exp(-distance / (2 * 2.0**power)) for power in range(-3, 2))

    of_video, of_frame = likeness(x.mean((0, 1))), likeness(x.mean(1, keepdims=True))
    extra = softmax(-of_video.mean(1) / 0.01)
    scales = np.minimum(base * (1 + extra - 1 / frames), 1)
    counts = [max(round(scale * size), 1) for scale in scales]
    kept = [np.sort(falling(-s)[:n]) for s, n in zip(of_video + of_frame, counts, strict=True)]
    source, line, order = features, size, kept
    if newline:
        maps = features.reshape(frames, rows, columns, -1)
        lines = np.broadcast_to(floats(rng, 16), (frames, rows, 1, 16))
        source, line = np.concatenate((maps, lines), 2).reshape(-1, 16), rows * (columns + 1)
        case["img_feat_with_newline"] = source
        order = [[*(n // columns * (columns + 1) + n % columns), *range(columns, line, columns + 1)] for n in kept]
    index = np.concatenate([frame * line + np.array(tokens) for frame, tokens in enumerate(order)])
    expect(
        "vidcom2",
        case,
        low_var_channels_sorted=channels,
        video_score=of_video,
        frame_score=of_frame,
        retention_scales=scales,
        counts=counts,
        local_indices_concat=np.concatenate(kept),
        global_indices=index,
        out=source[index],
    )


def merged_to(x: np.ndarray, count: int) -> np.ndarray:
    """Pairs of tokens merge until `count` are left."""
    while len(x) > count:
        x = averaged(x, paired(x, len(x) - count))[0]
    return x


@pytest.mark.parametrize("version", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(("frames", "side", "budget"), [(6, 9, 100), (8, 5, 130), (2, 3, 14), (3, 6, 16)])
def test_quota(version: int, frames: int, side: int, budget: int) -> None:
    rng = np.random.default_rng(5)
    features, scores = floats(rng, frames, side * side, 4), rng.random(frames) ** 2
    raw = (100 * scores) ** 2
    weights = raw / raw.sum()
    if version > 1:
        most = side * side / budget
        excess = np.maximum(weights - most, 0).sum()
        weights = np.minimum(weights, most)
        total = weights.sum()
        for i in range(frames):
            if excess > 0 and weights[i] < most:
                grown = weights[i] * (1 + excess / total)
                excess += max(grown - most, 0)
                weights[i] = min(grown, most)
    counts = [int(budget * weight) for weight in weights]
    sizes, out = [], []
    for x, count in zip(features.astype(np.float64), counts, strict=True):
        if not count:
            continue
        rows = columns = math.isqrt(count)
        rows += (rows + 1) * columns <= count
        grid = x.reshape(side, side, -1)
        if version == 1:
            new = bilinear(grid, rows, columns).reshape(rows * columns, -1)
        elif version == 2:
            cells = [(i * side // n, -(-(i + 1) * side // n)) for n in (rows, columns) for i in range(n)]
            new = np.stack([grid[a:b, c:d].mean((0, 1)) for a, b in cells[:rows] for c, d in cells[rows:]])
        elif version == 3:
            new = x[np.linspace(0, side * side - 1, count).astype(int)]
        elif version == 4:
            new = merged_to(x, count)
        else:
            narrow = np.stack([merged_to(row, columns) for row in grid])
            new = np.stack([merged_to(narrow[:, i], rows) for i in range(columns)], 1).reshape(rows * columns, -1)
        sizes.append([count, 0] if version in (3, 4) else [rows, columns])
        out.append(new)
    case = {"features": features, "grid": side, "prob_A": scores, "total": 1, "per": budget, "version": version}
    expect(
        "quota",
        case,
        raw_weights=raw,
        normalised_or_capped_weights=weights,
        tokens_per_frame=counts,
        kept_frames=np.flatnonzero(counts),
        out_hw=sizes,
        out=np.concatenate(out),
    )
