"""Steps that several methods share, the slow way: plain NumPy in float64, one token after the other."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray
Groups = list[list[int]]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def unit(x: Array) -> Array:
    return x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=-1, keepdims=True)


def falling(scores: Array) -> Array:
    """Indices by falling score; of equal ones the lower index first."""
    return np.argsort(-np.asarray(scores, np.float64), kind="stable")


def probabilities(queries: Array, keys: Array) -> Array:
    """Attention of every query, (..., queries, keys)."""
    logits = queries.astype(np.float64) @ np.swapaxes(keys.astype(np.float64), -1, -2)
    return softmax(logits / math.sqrt(queries.shape[-1]))


def stitched(kept: list[set[int]], rows: int, columns: int, side: int) -> tuple[list[int], list[int]]:
    """Crop and token of what stays: the thumbnail's, then those of the canvas of tiles, in raster order."""
    order = [(0, token) for token in sorted(kept[0])]
    for y in range(rows * side):
        for x in range(columns * side):
            crop, token = 1 + y // side * columns + x // side, y % side * side + x % side
            if token in kept[crop]:
                order.append((crop, token))
    return [crop for crop, _ in order], [token for _, token in order]


def unpadded(rows: int, columns: int, width: int, height: int) -> Array:
    """What LLaVA's unpadding leaves of a canvas, bool (rows, columns)."""
    valid = np.ones((rows, columns), bool)
    if width / height > columns / rows:
        pad = (rows - int(height * (columns / width))) // 2
        valid[:pad] = valid[rows - pad :] = False
    else:
        pad = (columns - int(width * (rows / height))) // 2
        valid[:, :pad] = valid[:, columns - pad :] = False
    return valid


def bilinear(grid: Array, rows: int, columns: int) -> Array:
    """A map (rows, columns, ...) at another size; corners are not aligned."""
    for axis, new in ((0, rows), (1, columns)):
        old = grid.shape[axis]
        place = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
        low = np.floor(place).astype(int)
        shape = [1] * grid.ndim
        shape[axis] = new
        weight = (place - low).reshape(shape)
        high = grid.take(np.minimum(low + 1, old - 1), axis)
        grid = grid.take(low, axis) * (1 - weight) + high * weight
    return grid


def paired(metric: Array, merges: int, cls: int = 0, penalty: Array | None = None) -> Groups:
    """Groups after a step of bipartite merging: tokens at even places that stay alone, then those at odd places."""
    tokens, like = len(metric), unit(metric) @ unit(metric).T
    if tokens == 1:
        return [[0]]
    if penalty is not None:
        like = like - penalty[:, None]
    merges = min(merges, (tokens - cls) // 2)
    best = {a: max(range(1, tokens, 2), key=lambda b, a=a: like[a, b]) for a in range(0, tokens, 2)}
    order = sorted(best, key=lambda a: -math.inf if cls and a == 0 else like[a, best[a]], reverse=True)
    merging, alone = order[:merges], order[merges:]
    alone = sorted(alone) if cls else alone
    return [[a] for a in alone] + [[b, *(a for a in merging if best[a] == b)] for b in range(1, tokens, 2)]


def averaged(x: Array, groups: Groups, sizes: Array | None = None) -> tuple[Array, Array]:
    """Means of groups, weighed by size, (groups, channels), and their sizes, (groups,)."""
    sizes = np.ones(len(x)) if sizes is None else sizes.astype(np.float64)
    x = x.astype(np.float64)
    means = [(x[group] * sizes[group, None]).sum(0) / sizes[group].sum() for group in groups]
    return np.stack(means), np.array([sizes[group].sum() for group in groups])


def members(groups: Groups, tokens: int) -> Array:
    """Membership (groups, tokens), 0 or 1."""
    return np.array([[float(token in group) for token in range(tokens)] for group in groups])
