"""What a report says of FLOPs and bytes, beside torch's own counter and the tensors of the cache."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO
from vtprune.integrations import integrate
from vtprune.methods.base import Group, Method, Place, Stage


@dataclasses.dataclass(frozen=True)
class Halving(Method):
    """Merges neighbours in two vision blocks."""

    name = "halving"
    kind = "merging"
    places = (Place.ENCODER_LAYER,)

    after: bool = False

    def stages(self, model):
        return [Stage(Place.ENCODER_LAYER, self.decide, (0, 2), after_block=self.after)]

    def decide(self, tokens):
        number = torch.arange(tokens.keys.shape[1])
        owner = torch.where(number < tokens.protected, number, (number + tokens.protected) // 2)
        return Group(owner.expand(len(tokens.keys), -1), int(owner[-1]) + 1)


# Methods that multiply no matrices of their own, at every place that saves FLOPs.
CHAINS = {
    "nothing": ["random:keep=1.0"],
    "several cuts": ["random:keep=0.6", "exit:layer=3"],
    "merged": [Halving(), "random:keep=0.6", "exit:layer=4"],
    "merged behind": [Halving(after=True), "exit:layer=4"],
    "less work": ["random:keep=0.6", "ee_mllm:layer=2"],
    "no work": ["random:keep=0.6", "ee_mllm:layer=1,update=frozen"],
    "narrow": ["yopo:layer=4,mlp=4"],
    "smaller": ["resize:keep=0.5", "random:keep=0.6", "exit:layer=4"],
}


def counted(model, x):
    """FLOPs of the encoder's blocks, the projector and the decoder's layers, as torch counts them, and cached bytes."""
    parts = integrate(model)
    wanted = [*parts.all_encoder_layers, *parts.projectors, *parts.decoder_layers]
    names = {id(module): name for name, module in model.named_modules()}
    with FlopCounterMode(display=False, depth=99) as counter:
        cache = model(**x, use_cache=True).past_key_values
    flops = counter.get_flop_counts()
    root = type(model).__name__
    found = sum(sum(flops[f"{root}.{names[id(module)]}"].values()) for module in wanted)
    # Positions of layers that get fewer tokens; older transformers multiply matrices to rotate.
    rotary = sum(flops.get(f"{root}.{names[id(parts.language_model.rotary_emb)]}", {}).values())
    found = range(found - rotary, found + 1)
    return found, sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@torch.no_grad()
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("name", FAMILIES)
def test_as_torch_counts(name, chain):
    family = FAMILIES[name]
    model = family.model("eager")
    kinds = [(5, IMAGE, 7), (2, VIDEO, 3, IMAGE, 4)] if VIDEO in family.kinds else [(5, IMAGE, 7)]
    for parts in kinds:
        x = family.inputs(family.row(*parts, seed=1))
        before, held_before = counted(model, x)
        try:
            vtprune.apply(model, CHAINS[chain])
        except ValueError as refused:
            pytest.skip(str(refused))
        after, held = counted(model, x)
        report = vtprune.report(model)
        vtprune.remove(model)
        assert report.prefill_flops_before in before
        assert report.prefill_flops_after in after
        assert (report.kv_bytes_before, report.kv_bytes_after) == (held_before, held)
        saved = report.prefill_flops_before - report.prefill_flops_after
        assert sum(place.flops_saved for place in report.places) == saved
        assert sum(place.kv_bytes_saved for place in report.places) == held_before - held
