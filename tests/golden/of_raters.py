"""Golden cases of SparseVLM: raters, rank, recycling, and whole prefills."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.golden.loop import Loop
from vtprune.kernels import compact_index
from vtprune.methods import TextRows, sparsevlm
from vtprune.methods._density import distances, peaks
from vtprune.methods._groups import average
from vtprune.methods._select import top_k_mask

Case = dict[str, Tensor]


def sparse_vlm(case: Case) -> dict[str, Any]:
    if "tokens" in case:
        x = case["tokens"][None]
        return {"merged": _merged(x, torch.ones(x.shape[:2], dtype=torch.bool), case["cluster_num"][None])}
    return _prefill(case) if "inputs_embeds" in case else _parts(case)


def _merged(x: Tensor, pool: Tensor, counts: Tensor) -> Tensor:
    """Means of the clusters of a pool, in the order of their centres' scores."""
    owner = sparsevlm.clustered(x, pool, counts, x.shape[1])
    inside = x[:, pool[0]]
    there = torch.ones(inside.shape[:2], dtype=torch.bool)
    order = peaks(distances(inside, there), counts, inside.shape[1], there)[0].argsort(descending=True, stable=True)
    centres = pool[0].nonzero()[:, 0][order[: int(counts)]]
    return average(x, owner)[0, centres]


def _visual(case: Case) -> tuple[int, int]:
    return int(case["sys_length"]), int(case["image_token_length"])


def _index(mask: Tensor) -> Tensor:
    return compact_index(mask)[0][0]


def _parts(case: Case) -> dict[str, Any]:
    first, count = _visual(case)
    embeds, text = case["hidden"][None], int(case["text_length"])
    visual, end = slice(first, first + count), first + count
    there, words = torch.ones(1, count, dtype=torch.bool), torch.ones(1, text, dtype=torch.bool)
    mean = sparsevlm.relevance(embeds[:, visual], embeds[:, end:], there, words)
    asking = sparsevlm.raters(mean, words)
    q, slots = case["q"][None], torch.arange(end + text)[None]
    nothing = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    scale = q.shape[-1] ** -0.5
    rows = TextRows(q[:, :, end:], case["k"][None], scale, slots[:, end:], None, slots[:, visual], nothing, nothing)
    relation = sparsevlm.attended(rows, asking)
    kept = top_k_mask(relation, min(int(case["budget"]), count - 1))
    values = sparsevlm.singular_values(rows, asking, there)
    ranks = sparsevlm.rank(values, asking.sum(1), there.sum(1))
    by_rank = sparsevlm.rank_counts(ranks, there.sum(1), float(case["rank_scale"]), float(case["rank_bias"]))
    pool = sparsevlm.recycled(relation, ~kept, 0.3)
    clusters = sparsevlm.clusters_of(pool, 10)
    inside = _index(pool)
    return {
        "rater_mean": mean[0],
        "rater_index": _index(asking),
        "relation": relation[0],
        "keep_index_visual": _index(kept),
        "rank": ranks,
        "rank_singular_values": values[0],
        "rank_keep_index_visual": _index(top_k_mask(relation, by_rank)),
        "recycle_index_visual": inside[relation[0, inside].argsort(descending=True, stable=True)],
        "cluster_num": clusters[0],
        "merged": _merged(case["layer_output_visual"][None], pool, clusters),
    }


def _prefill(case: Case) -> dict[str, Any]:
    first, count = _visual(case)
    loop = Loop(case, first, count)
    recycles = int(case["version"]) == 1
    there, words = (torch.ones(1, n, dtype=torch.bool) for n in (count, loop.x.shape[1] - first - count))
    mean = sparsevlm.relevance(loop.x[:, first : first + count], loop.x[:, first + count :], there, words)
    asking = sparsevlm.raters(mean, words)
    out: dict[str, Any] = {"rater_index": _index(asking)}
    cuts = {layer: stage for stage, layer in enumerate(case["prune_layers"].tolist())}
    for layer in range(len(loop.model.layers)):
        last = loop.positions[0]
        if layer not in cuts:
            loop.run(layer)
            continue
        stage, rows, there = cuts[layer], loop.text_rows(layer), torch.ones(1, loop.visual, dtype=torch.bool)
        loop.run(layer)
        if recycles:
            relation = sparsevlm.attended(rows, asking)
        else:
            relation = sparsevlm.attended_by_best_heads(rows, asking, 14, there)
        kept = top_k_mask(relation, min(int(case["budgets"][stage]), loop.visual - 1))
        x = loop.x[:, first : first + loop.visual]
        out |= {f"relation_{stage}": relation[0], f"keep_index_visual_{stage}": _index(kept)}
        if recycles:
            pool = sparsevlm.recycled(relation, ~kept, 0.3)
            merged = _merged(x, pool, sparsevlm.clusters_of(pool, 10))
            out[f"merged_{stage}"] = merged
            visual = torch.cat((x[0, kept[0]], merged))
            loop.replace(visual, torch.arange(loop.x.shape[1] - loop.visual + len(visual)))
        else:
            stays = torch.ones(loop.x.shape[1], dtype=torch.bool)
            stays[first : first + loop.visual] = kept[0]
            loop.replace(x[0, kept[0]], loop.positions[0, stays])
    return out | {"position_ids_last_layer": last, "last_hidden": loop.hidden()}


ADAPTERS = {"sparsevlm": sparse_vlm}
INPUTS = {
    "sparsevlm": {
        "hidden",
        "q",
        "k",
        "layer_output_visual",
        "tokens",
        "inputs_embeds",
        "prune_layers",
        "budgets",
    }
}
# With heads of 4 channels the rotary bias comes close to zero, and divisions by it are large.
ARRAY_TOLERANCE = {("sparsevlm", f"relation_{stage}"): (1e-4, 1e-2) for stage in range(8)}
