"""Golden cases of dymu, by their kind: a merge, a calibration, two layers of a batch, unmerging, schedules."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.methods.inputs import INFO
from vtprune.calibration import DyMUCalibration
from vtprune.compat import rotate
from vtprune.engine.merging import Running
from vtprune.engine.sharing import Sharing
from vtprune.methods import EncoderTokens
from vtprune.methods.dymu import merge_above, removals

Case = dict[str, Tensor]


def _membership(owner: Tensor, groups: int) -> Tensor:
    return F.one_hot(owner, groups).transpose(1, 2).float()


def dymu(case: Case) -> dict[str, Any]:
    kinds = {0: _step, 1: _calibration, 2: _layers, 3: _unmerging, 4: _schedules}
    return kinds[int(case["kind"])](case)


def _step(case: Case) -> dict[str, Any]:
    x, running = case["x"], Running()
    running.sizes = case["size_in"].squeeze(-1)
    ratio, rate = round(float(case["max_r_per_instance_ratio"]), 6), int(case["r_cfg"])  # stored as float32
    group = None
    if rate > 0:
        most = int(ratio * rate) if ratio >= 0 else None
        group = merge_above(case["metric"], float(case["threshold"]), running.sizes > 0, int(case["class_token"]), most)
    (out,) = (x,) if group is None else running.follow(group, x)
    owner = torch.arange(x.shape[1])[None] if group is None else group.owner
    membership = _membership(owner, out.shape[1])
    return {
        "x_out": out,
        "size_out": running.sizes.unsqueeze(-1),
        "pos_out": (membership @ case["pos_in"].float()).long(),
        "n_merged": x.shape[1] - out.shape[1],
    }


def _of_batch(case: Case, name: str, number: int) -> Tensor | None:
    """An input of one batch, however the file names it."""
    for key in (f"batch{number}_{name}", f"{name}_{number}", f"{name}{number}"):
        if key in case:
            return case[key]
    return case[name][number] if name in case else None


def _calibration(case: Case) -> dict[str, Any]:
    rate = int(next(case[name] for name in ("r", "r_cfg", "r_layer") if name in case))
    cls = int(case["class_token"])
    found: dict[str, Any] = {"batch_threshold": [], "running_threshold": []}
    method = None
    for number in range(3):
        x, metric = _of_batch(case, "x", number), _of_batch(case, "metric", number)
        if metric is None:
            metric = x @ case["w"] if "w" in case else x
        x = metric if x is None else x
        there, patches = torch.ones(x.shape[:2]), x.shape[1] - cls
        if method is None:
            method = DyMUCalibration(patches - rate)
            method.stages(dataclasses.replace(INFO, encoder_layers=1))
        group, running = method.decide(EncoderTokens(0, metric, there, cls, patches, x)), Running()
        (out,) = running.follow(group, x)
        found["batch_threshold"].append(method.latest[0])
        found["running_threshold"].append(method.means[0])
        found[f"batch{number}_counts"] = (running.sizes > 0).sum(1)
        found[f"batch{number}_padded_len"] = out.shape[1]
        members = _membership(group.owner, group.groups)
        found |= {f"batch{number}_{name}": x for name, x in _rows(members, out, running.sizes).items()}
    return found


def _rows(members: Tensor, x: Tensor, sizes: Tensor) -> dict[str, Tensor]:
    """Rows of each picture without padding, by the first patch that they contain."""
    found: dict[str, Tensor] = {}
    for i, rows in enumerate(members):
        there = rows.any(1)
        order = rows[there].argmax(1).argsort()
        found |= {f"img{i}_pos": rows[there][order].long(), f"img{i}_x": x[i][there][order]}
        found[f"img{i}_size"] = sizes[i][there][order].unsqueeze(-1)
    return found


def _layers(case: Case) -> dict[str, Any]:
    """From the state between both layers, as stored: the order of its rows is the implementation's."""
    x, cls = case["x"], int(case["class_token"])
    first = Running()
    step = merge_above(x @ case["w1"], float(case["threshold_1"]), torch.ones(x.shape[:2]) > 0, cls)
    first.follow(step, x)
    running, there = Running(), case["padding_mid"] == 0
    running.sizes = case["size_mid"].squeeze(-1) * there
    group = merge_above(case["x_mid"] @ case["w2"], float(case["threshold_2"]), there, cls)
    (out,) = running.follow(group, case["x_mid"])
    members = (_membership(group.owner, group.groups) * there[:, None]) @ case["pos_mid"].float()
    counts = {"counts_1": (first.sizes > 0).sum(1), "counts_2": (running.sizes > 0).sum(1)}
    return counts | _rows(members, out, running.sizes)


def _unmerging(case: Case) -> dict[str, Any]:
    state, heads = case["mapping"][None], case["q_un"].shape[1]
    states = case["q_un"].shape[2]
    first = torch.tensor([[case["mapping"].tolist().index(number) for number in range(states)]])
    sharing = Sharing(first, state, [states])
    q, k, v = (sharing.spread(case[f"{name}_un"].transpose(1, 2)).transpose(1, 2) for name in "qkv")
    q, k = (rotate(x, case["cos"], case["sin"]) for x in (q, k))
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(2, 3) * case["scaling"]
    causal = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    out = scores.masked_fill(~causal, -torch.inf).softmax(-1) @ v
    remerged = sharing.average(out.transpose(1, 2).flatten(2)).unflatten(2, (heads, -1))
    return {"scores": scores, "out_full": out, "out_remerged": remerged}


def _schedules(case: Case) -> dict[str, Any]:
    found = {}
    for name in (n for n in case if n.startswith("rs_")):
        j = name.removeprefix("rs_")
        schedule = ("constant", "linear", "reverse")[int(case[f"schedule_{j}"])]
        found[name] = removals(int(case[f"r_total_{j}"]), int(case[f"L_{j}"]), schedule)
    return found


ADAPTERS = {"dymu": dymu}
_BATCHED = {name for j in range(3) for n in ("x", "metric") for name in (f"batch{j}_{n}", f"{n}_{j}", f"{n}{j}")}
INPUTS = {
    "dymu": {"metric", "x", "size_in", "pos_in", "w", "w1", "w2", "x_mid", "padding_mid", "size_mid", "pos_mid"}
    | {"q_un", "k_un", "v_un", "mapping", "cos", "sin"}
    | _BATCHED
}
SCALAR_OUTPUTS = {("dymu", "n_merged"), *(("dymu", f"batch{j}_padded_len") for j in range(3))}
# DyMU's code divides the sums of padded batches by size + 1e-4.
_IMAGES = [
    f"{batch}img{i}_{n}" for batch in ("", "batch0_", "batch1_", "batch2_") for i in range(8) for n in ("x", "size")
]
ARRAY_TOLERANCE = {("dymu", name): (2e-4, 2e-4) for name in _IMAGES}
TOLERANCE = {"dymu": 2e-4}
