"""Golden cases of methods that read the attention of single vision blocks, and of the tile methods."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtprune.kernels import compact_index, gather_rows
from vtprune.methods import ModelInfo, Pictures
from vtprune.methods.base import EncoderSignal
from vtprune.methods.vtc_cls import VTCCLS, ensemble, summed

Case = dict[str, Tensor]


def vtc_cls(case: Case) -> dict[str, Any]:
    features, layers, first = case["features"], int(case["num_layers"]), int(case["start_layer"])
    # The paper's encoder puts out what its last block but one makes.
    model = ModelInfo("llava", layers - 1, 1, True, attention_blocks=tuple(range(layers)), scored_block=layers - 2)
    rows = case["cls_rows"].mean(1)[:, None, 1:]
    signals = {EncoderSignal("attention", block): row for block, row in enumerate(rows)}
    (stage,) = VTCCLS(keep=int(case["token_num"]), layer=first).stages(model)
    index, _ = compact_index(stage.decide(Pictures(None, features, signals=signals)).mask)
    blocks = ensemble(model, first)
    return {
        "layers_used": blocks,
        "scores": summed([rows[block] for block in blocks])[0],
        "kept_indices": index[0],
        "kept_features": gather_rows(features, index),
    }


ADAPTERS = {"vtc_cls": vtc_cls}
INPUTS = {"vtc_cls": {"cls_rows", "features"}}
