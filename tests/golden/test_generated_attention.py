"""Kinds of golden cases of attention and tile methods, on arrays made up here and results computed the slow way."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.golden.slow import bilinear, falling, probabilities, softmax, stitched, unit, unpadded
from tests.golden.test_generated_encoder import expect, floats


@pytest.mark.parametrize(("layers", "first", "keep"), [(24, 22, 16), (24, -4, 25), (24, 16, 1), (5, -2, 36)])
def test_vtc_cls(layers: int, first: int, keep: int) -> None:
    rng = np.random.default_rng(0)
    case = {
        "cls_rows": softmax(2 * floats(rng, layers, 3, 37)),
        "features": floats(rng, 1, 36, 4),
        **{"start_layer": first, "num_layers": layers, "token_num": keep},
    }
    used = list(range(layers))[first:-1]
    scores = sum(case["cls_rows"][layer].mean(0)[1:] for layer in used)
    kept = np.sort(falling(scores)[:keep])
    expected = {"layers_used": used, "scores": scores, "kept_indices": kept, "kept_features": case["features"][:, kept]}
    expect("vtc_cls", case, **expected)


def chosen_by_hiprune(objects: np.ndarray, deep: np.ndarray, count: int, anchors: int, width: int) -> set[int]:
    kept = {
        min(max(anchor + step, 0), len(deep) - 1)
        for anchor in falling(objects)[:anchors].tolist()
        for step in (0, -1, 1, -width, width)
    }
    lowered = deep.astype(np.float64)
    lowered[list(kept)] -= 1
    return kept | set(falling(lowered)[: count - len(kept)].tolist())


@pytest.mark.parametrize(
    ("columns", "rows", "retention", "alpha"), [(2, 2, 640, 0.1), (3, 1, 163, 0.4), (1, 2, 75, 1.0), (0, 0, 64, 0.3)]
)
def test_hiprune_of_scores(columns: int, rows: int, retention: int, alpha: float) -> None:
    """Crops share the budget; neighbours of anchors in the corners run on into the next row, and stop at the ends."""
    rng = np.random.default_rng(1)
    crops, side = 1 + rows * columns, 24
    scores = rng.random((2, crops, side * side)).astype(np.float32) / 500
    scores[0, 0, [0, side - 1, side * (side - 1), side * side - 1]] += [0.5, 0.6, 0.7, 0.8]
    case = {"object_score": scores[0], "deep_score": scores[1], "retention": retention, "num_crops": crops}
    case |= {"mode": 1, "alpha": np.float32(alpha), "object_layer": 9}
    count = retention // crops
    anchors = round(count * alpha / 5)
    kept = [chosen_by_hiprune(scores[0, i], scores[1, i], count, anchors, side) for i in range(crops)]
    mask = np.array([[int(token in tokens) for token in range(side * side)] for tokens in kept])
    expected: dict[str, object] = {"n_anchor": anchors, "kept_mask": mask}
    if crops > 1:
        case |= {"image_size_wh": np.array([330 * columns, 330 * rows]), "grid_wh": np.array([columns, rows])}
        expected["out_source_crop"], expected["out_source_token"] = stitched(kept, rows, columns, side)
    else:
        expected["kept_indices"] = sorted(kept[0])
    expect("hiprune", case, **expected)


def windowed(rows: int, columns: int) -> dict[str, np.ndarray]:
    """The order of the tokens of a Qwen picture, by windows of 4 x 4."""
    tokens = np.arange(rows * columns).reshape(rows, columns)
    windows = [tokens[y : y + 4, x : x + 4].ravel() for y in range(0, rows, 4) for x in range(0, columns, 4)]
    order = np.concatenate(windows)
    return {"window_index": order, "reverse_indices": np.argsort(order)}


def received(queries: np.ndarray, keys: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Sums of attention over queries, of groups of four patches, in raster order."""
    return probabilities(queries, keys).mean(0).sum(0).reshape(-1, 4).mean(1)[order]


@pytest.mark.parametrize(
    ("rows", "columns", "ratio", "alpha"), [(10, 14, 0.223, 0.5), (6, 9, 0.112, 0.7), (4, 4, 0.1, 0.1)]
)
def test_hiprune_of_qwen(rows: int, columns: int, ratio: float, alpha: float) -> None:
    rng = np.random.default_rng(2)
    tokens, before, after = rows * columns, 5, 3
    case: dict[str, object] = {
        f"{x}_{block}": 1.5 * floats(rng, 2, 4 * tokens, 6) for x in "qk" for block in ("object", "deep")
    }
    case |= windowed(rows, columns) | {"grid_thw": np.array([1, 2 * rows, 2 * columns])}
    case |= {"mode": 2, "retention_ratio": np.float32(ratio), "alpha": np.float32(alpha), "object_layer": 16}
    case |= {"n_text_before": before, "n_text_after": after}
    objects, deep = (received(case[f"q_{x}"], case[f"k_{x}"], case["reverse_indices"]) for x in ("object", "deep"))
    budget = round(tokens * ratio)
    anchors = round(budget * alpha / 5)
    kept = np.array(sorted(chosen_by_hiprune(objects, deep, budget, anchors, columns)))
    slots = before + tokens + after
    sequence = [*range(before), *(before + kept), *range(before + tokens, slots)]
    expected = {"budget": budget, "n_anchor": anchors, "object_score": objects, "deep_score": deep}
    expected |= {"kept_indices": kept, "num_kept": len(kept), "kept_sequence_positions": sequence}
    expect("hiprune", case, **expected, position_ids_out=np.arange(3 * slots).reshape(3, slots)[:, sequence])


def folded(metric: np.ndarray, x: np.ndarray, dominant: list[int], count: int) -> tuple[list[int], np.ndarray]:
    """VisionZip's targets among the other tokens, and what they become."""
    rest = [token for token in range(len(metric)) if token not in dominant]
    targets = rest[:: max(1, len(rest) // count)][:count]
    like = unit(metric) @ unit(metric[targets]).T
    members: list[list[int]] = [[] for _ in targets]
    for token in rest:
        if token not in targets:
            members[int(like[token].argmax())].append(token)
    x = x.astype(np.float64)
    return targets, np.stack([x[t] + (x[own].mean(0) if own else 0) for t, own in zip(targets, members, strict=True)])


@pytest.mark.parametrize(
    ("tokens", "dominant", "contextual"), [(64, 2, 1), (36, 20, 5), (30, 1, 7), (20, 15, 6), (16, 16, 1)]
)
def test_visionzip_of_clip(tokens: int, dominant: int, contextual: int) -> None:
    rng = np.random.default_rng(3)
    case = {"q_cls": floats(rng, 3, 2, 5), "keys": floats(rng, 3, 2, 1 + tokens, 5), "mode": 0}
    case |= {"hidden_states": floats(rng, 3, 1 + tokens, 4), "dominant": dominant, "contextual": contextual}
    row = probabilities(case["q_cls"][:, :, None], case["keys"])[:, :, 0]
    metric, scores = case["keys"].mean(1), row.sum(1)[:, 1:]
    chosen = [sorted({0, *(1 + falling(s)[: dominant - 1]).tolist()}) for s in scores]
    new = [
        np.concatenate((x[kept], folded(m, x, kept, contextual)[1]))
        for m, x, kept in zip(metric, case["hidden_states"], chosen, strict=True)
    ]
    expected = {"cls_attn_row": row, "metric": metric, "scores": scores, "dominant_indices_sorted": chosen}
    expect("visionzip", case, **expected, out_tokens=np.stack(new))


@pytest.mark.parametrize(("columns", "rows", "dominant", "contextual"), [(3, 1, 27, 5), (1, 2, 2, 1), (1, 1, 1, 1)])
def test_visionzip_of_crops(columns: int, rows: int, dominant: int, contextual: int) -> None:
    rng = np.random.default_rng(4)
    crops, side = rows * columns, 24
    chosen = np.stack([[0, *(1 + rng.permutation(side * side)[: dominant - 1])] for _ in range(crops)])
    case = {"crop_tokens": floats(rng, crops, dominant + contextual, 4), "keep_idx": chosen, "mode": 1}
    kept = [set(), *({token - 1 for token in row if token} for row in chosen.tolist())]
    places = zip(*stitched(kept, rows, columns, side), strict=True)
    order = [(crop - 1, sorted(chosen[crop - 1]).index(token + 1)) for crop, token in places]
    order += [(crop, 0) for crop in range(crops)]
    order += [(crop, dominant + i) for crop in range(crops) for i in range(contextual)]
    crop, slot = (list(x) for x in zip(*order, strict=True))
    expected = {"out_source_crop": crop, "out_source_slot": slot, "out_tokens": case["crop_tokens"][crop, slot]}
    expect("visionzip", case | {"grid_w": columns, "grid_h": rows}, **expected)


@pytest.mark.parametrize(
    ("rows", "columns", "ratios"), [(10, 14, (0.45, 0.05)), (6, 10, (0.1, 0.01)), (3, 5, (0.5, 0.5))]
)
def test_visionzip_of_qwen(rows: int, columns: int, ratios: tuple[float, float]) -> None:
    rng = np.random.default_rng(5)
    tokens, before, after = rows * columns, 5, 4
    case = {"q": floats(rng, 2, 4 * tokens, 6), "k": floats(rng, 2, 4 * tokens, 6), **windowed(rows, columns)}
    case |= {"inputs_embeds": floats(rng, before + tokens + after, 5), "mode": 2, "n_text_before": before}
    case |= {"grid_thw": np.array([1, 2 * rows, 2 * columns]), "n_text_after": after}
    case |= {"dominant_ratio": np.float32(ratios[0]), "contextual_ratio": np.float32(ratios[1])}
    score = received(case["q"], case["k"], case["reverse_indices"])
    metric = case["k"].reshape(2, tokens, 4, -1).mean((0, 2))[case["reverse_indices"]]
    dominant, contextual = int(ratios[0] * tokens), max(int(ratios[1] * tokens), 1)
    chosen = falling(score)[:dominant].tolist()
    x = case["inputs_embeds"].astype(np.float64)
    targets, new = folded(metric, x[before : before + tokens], chosen, contextual)
    x[np.array(targets) + before] = new
    slots = [*range(before), *(before + t for t in sorted(chosen + targets)), *range(before + tokens, len(x))]
    expected = {"score": score, "key_metric": metric, "dominant_num": dominant, "contextual_num": contextual}
    expect("visionzip", case, **expected, kept_sequence_positions=slots, out_embeds=x[slots])


@pytest.mark.parametrize(("tokens", "rate"), [(64, 0.05), (36, 0.5), (36, 1.0)])
def test_hired_without_tiles(tokens: int, rate: float) -> None:
    rows = softmax(floats(np.random.default_rng(6), 3, 1 + tokens))
    kept = np.sort(falling(rows.sum(0)[1:])[: int(tokens * rate)])
    mask = np.isin(np.arange(tokens), kept).astype(int)
    case = {"mode": 0, "cls_row_late": rows, "token_budget_rate": np.float32(rate)}
    expect("hired", case, kept_mask=mask, kept_indices=kept)


@pytest.mark.parametrize(
    ("pictures", "rate", "alpha"),
    [
        ([(750, 960, 2, 2)], 0.4, 0.5),
        ([(400, 250, 2, 1)], 0.2, 0.5),
        ([(300, 330, 2, 2)], 0.02, 0.5),
        ([(100, 300, 1, 3), (300, 100, 3, 1)], 0.3, 0.75),
    ],
)
def test_hired(pictures: list[tuple[int, int, int, int]], rate: float, alpha: float) -> None:
    """Tiles of one or several pictures; the authors' packing takes rows of tiles for columns."""
    rng = np.random.default_rng(7)
    side, tokens = 12, 144
    numbers = [1 + rows * columns for *_, rows, columns in pictures]
    early, late = (softmax(2 * floats(rng, sum(numbers), 2, 1 + tokens)) for _ in range(2))
    case = {"mode": 1, "cls_row_early": early, "cls_row_late": late, "num_crops": np.array(numbers)}
    case |= {"image_sizes_hw": np.array([x[:2] for x in pictures]), "pinpoints_hw": np.zeros((5, 2), int)}
    case |= {"grid_rows_cols_true": np.array([x[2:] for x in pictures]), "image_size": 168, "patch_size": 14}
    budgets, masks, order, start = [], [], [], 0
    for number, (height, width, columns, rows) in enumerate(pictures):
        crops = numbers[number]
        seen, scores = (x[start : start + crops].astype(np.float64).sum(1)[:, 1:] for x in (early, late))
        start += crops
        total = int(crops * tokens * rate)
        full = min(int(total * alpha), tokens)
        content = np.isin(np.arange(tokens), falling(seen[0])[: int(tokens * (1 - alpha))])
        counts = content.reshape(crops - 1, -1).sum(1).astype(np.float32)
        rest = np.float32(min(total - full, (crops - 1) * tokens))
        shares = [min(int(share * rest), tokens) for share in counts / counts.sum()]
        kept = [set(falling(s)[:n].tolist()) for s, n in zip(scores, [full, *shares], strict=True)]
        budgets += shares
        masks += [[int(token in one) for token in range(tokens)] for one in kept]
        valid = unpadded(rows * side, columns * side, width, height)
        for crop in range(1, crops):
            y, x = (side * n for n in divmod(crop - 1, columns))
            inside = valid[y : y + side, x : x + side].ravel()
            kept[crop] = {token for token in kept[crop] if inside[token]}
        order.append(stitched(kept, rows, columns, side))
    case |= {"token_budget_rate": np.float32(rate), "alpha": np.float32(alpha)}
    expect(
        "hired",
        case,
        sub_budgets=budgets,
        kept_mask=masks,
        out_image=np.concatenate([np.full(len(crop), float(i)) for i, (crop, _) in enumerate(order)]),
        out_source_crop=np.concatenate([crop for crop, _ in order]),
        out_source_token=np.concatenate([token for _, token in order]),
        feature_lens=[len(crop) for crop, _ in order],
    )


@pytest.mark.parametrize(
    ("side", "columns", "rows", "size", "ratio"),
    [
        (12, 2, 2, (300, 600), 0.25),
        (8, 1, 2, (300, 640), 0.1),
        (12, 1, 3, (200, 900), 0.25),
        (5, 3, 2, (500, 400), 1.0),
        (7, 4, 1, (900, 200), 0.05),
    ],
)
def test_globalcom2(side: int, columns: int, rows: int, size: tuple[int, int], ratio: float) -> None:
    """Padding at the sides or above and below, sides that tiles do not divide, and the extremes of the budget."""
    rng = np.random.default_rng(8)
    crops, tokens = rows * columns, side * side
    case = {"q_cls": floats(rng, 1 + crops, 2, 4), "keys": floats(rng, 1 + crops, 2, 1 + tokens, 4), "side": side}
    case |= {"features": floats(rng, 1 + crops, tokens, 3), "image_newline": floats(rng, 3)}
    case |= {"grid_wh": np.array([columns, rows]), "image_size_wh": np.array(size)}
    case |= {"retention_ratio": np.float32(ratio), "temperature": np.float32(10)}
    logits = np.einsum("phd,phnd->pn", case["q_cls"], case["keys"].astype(np.float64))[:, 1:] / 4
    thumbnail = logits[0].reshape(side, side)
    sums = []
    for row in range(rows):
        for column in range(columns):
            high, wide = side // rows, side // columns
            bottom = (row + 1) * high if row + 1 < rows else side
            right = (column + 1) * wide if column + 1 < columns else side
            sums.append(thumbnail[row * high : bottom, column * wide : right].sum())
    weights = softmax(np.array(sums) / 10)
    scales = np.minimum(1, ratio * (1 + weights - weights.mean()))
    valid = unpadded(rows * side, columns * side, *size)
    shown = np.zeros(valid.shape)
    shown[valid] = bilinear(thumbnail, valid.any(1).sum(), valid.any(0).sum()).ravel()
    sides, counts, guides, best, at = [], [], [], [], {}
    for crop in range(crops):
        y, x = (side * n for n in divmod(crop, columns))
        inside = valid[y : y + side, x : x + side]
        own, guide = logits[1 + crop][inside.ravel()], shown[y : y + side, x : x + side][inside]
        chosen = falling(unit(own) + unit(guide))[: int(len(own) * scales[crop])]
        sides.append([inside.any(0).sum(), inside.any(1).sum()])
        counts.append(len(chosen))
        guides.append(guide)
        best.append(chosen)
        # The authors put the n-th valid token on the n-th cell.
        at |= {(y + n // side, x + n % side): (1 + crop, np.flatnonzero(inside)[n]) for n in chosen}
    order = [(0, token) for token in falling(logits[0])[: int(tokens * ratio)]]
    for y in range(rows * side):
        order += [at[y, x] for x in range(columns * side) if (y, x) in at] + [(-1, -1)]
    crop, token = (np.array(x) for x in zip(*order, strict=True))
    expect(
        "globalcom2",
        case,
        cls_logits=logits,
        crop_scales=scales,
        crop_valid_wh=sides,
        crop_num_kept=counts,
        global_crop_scores_flat=np.concatenate(guides),
        crop_kept_valid_indices_desc_flat=np.concatenate(best),
        out_source_crop=crop,
        out_source_token=token,
        out_tokens=np.where(crop[:, None] < 0, case["image_newline"], case["features"][crop, token]),
    )


@pytest.mark.parametrize(
    ("side", "window", "tau", "share"), [(8, 2, 0.99, 0.08), (12, 3, 0.3, 0.08), (6, 3, -1.0, 0.5), (8, 4, 0.2, 1.0)]
)
def test_mustdrop(side: int, window: int, tau: float, share: float) -> None:
    """Two tiles that merge as many windows, none or all of them."""
    rng = np.random.default_rng(9)
    y, x = np.mgrid[:side, :side][..., None] * rng.random((2, 1, 1, 6)) * 1.5
    smooth = np.sin(x + y).reshape(1, side * side, 6)
    hidden = np.concatenate((floats(rng, 2, 1, 6), smooth + 0.4 * floats(rng, 2, side * side, 6)), 1).astype(np.float32)
    raster, windows = np.arange(side * side).reshape(side, side), []
    for top in range(0, side, window):
        for left in range(0, side, window):
            windows.append(raster[top : top + window, left : left + window].ravel())
    pairs = window**2 * (window**2 - 1)
    scores = []
    for patches in hidden[:, 1:]:
        likeness = unit(patches) @ unit(patches).T
        scores.append([(likeness[np.ix_(one, one)].sum() - window**2) / pairs for one in windows])
    merges = int((np.array(scores) >= tau).sum(1).min())
    merged, sizes = [], []
    for (cls, *patches), score in zip(hidden, scores, strict=True):
        chosen = [windows[i] for i in falling(score)[:merges]]
        gone = {token for one in chosen for token in one.tolist()}
        rest = [patch for token, patch in enumerate(patches) if token not in gone]
        merged.append([cls, *(np.mean([patches[token] for token in one], 0) for one in chosen), *rest])
        sizes.append([[1.0], *[[float(window**2)]] * merges, *[[1.0]] * len(rest)])
    attention = softmax(floats(rng, 2, 3, len(merged[0])))
    kept = math.ceil(share * (len(merged[0]) - 1))
    keys = [falling(row.mean(0)[1:])[:kept] for row in attention.astype(np.float64)]
    case = {"hidden": hidden, "cls_attn": attention}
    case["params"] = np.array([window, tau, share, 5, 6, 0.04, 0.05], np.float32)
    # The filter sees all tiles as one row of tokens.
    tokens = len(merged[0]) - 1
    marked = {tile * tokens + token for tile, row in enumerate(keys) for token in row}
    alive, filtered = list(range(2 * tokens)), {}
    for stage in range(4):
        rows = softmax(2 * floats(rng, 3, 4, 2 * tokens))
        case[f"base_attn_s{stage}"] = rows
        words = rows.astype(np.float64).mean(0)[:, alive]
        weak = (words.sum(0) < 0.04 * words.sum()) & (words.max(0) < 0.05)
        filtered[f"pass_filter_s{stage}"] = [place for place, low in enumerate(weak) if not low]
        alive = [token for token, low in zip(alive, weak, strict=True) if not low or token in marked]
        filtered[f"kept_global_s{stage}"] = alive
        filtered[f"key_pos_s{stage}"] = [place for place, token in enumerate(alive) if token in marked]
    expect("mustdrop", case, merged=merged, size=sizes, num_merged_windows=merges, key_idx=keys, **filtered)
