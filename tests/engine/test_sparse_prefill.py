"""zipvl with a sparse prefill: attention among the chosen tokens only equals a plain loop that masks the others."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE
from tests.layer_loop import Rule, layer_loop, prompts
from tests.reference import feeding, positions_of, whole
from vtprune.methods import Method, Place, build_method

CLOSE = dict(atol=1e-4, rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class Noted(Method):
    """zipvl, whose choices are written down: layer -> slots that attend, and entries that stay."""

    name = "zipvl"
    kind = "cache"
    places = (Place.ATTENTION, Place.CACHE)

    inner: Method
    attending: dict = dataclasses.field(default_factory=dict)
    staying: dict = dataclasses.field(default_factory=dict)

    def stages(self, model):
        one, other = self.inner.stages(model)
        return [dataclasses.replace(one, decide=self.attend), dataclasses.replace(other, decide=self.decide)]

    def attend(self, slots):
        decision = self.inner.attend(slots)
        self.attending[slots.layer] = decision.parts[0].slots[0, 0]
        return decision

    def decide(self, entries):
        decision = self.inner.decide(entries)
        self.staying[entries.layer] = (decision.mask | ~entries.candidate)[0, 0].nonzero().squeeze(1)
        return decision


class Listed(Rule):
    """Slots attend to the listed ones, and get something, only if they are listed themselves."""

    def __init__(self, visual, listed):
        super().__init__(visual)
        self.listed = listed

    def given(self, layer):
        return torch.zeros(self.length, dtype=torch.bool).index_fill(0, self.listed[layer], True)

    def sees(self, layer, head):
        return super().sees(layer, head) & self.given(layer)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("parameters", [{"keep": 0.3}, {"keep": 1.0, "tau": 0.7, "queries": "probes"}])
def test_prefill_equals_the_plain_loop(name, parameters):
    family = FAMILIES[name]
    model = family.model()
    for row in prompts(family):
        method = Noted(build_method("zipvl", {"sparse_prefill": True, **parameters}))
        with vtprune.applied(model, method), feeding(model) as seen:
            logits = model(**family.inputs(row)).logits
            report = vtprune.report(model)
        fed = whole(model, row, [(torch.arange(len(row.ids)), seen[0])])
        expected = layer_loop(model, fed, positions_of(model, family, row), Listed(row.visual, method.attending))
        torch.testing.assert_close(logits, expected, **CLOSE)
        assert report.prefill_flops_after < report.prefill_flops_before
        assert report.kv_bytes_after < report.kv_bytes_before
        for layer, attending in method.attending.items():
            assert method.staying[layer].tolist() == attending.tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["zipvl:keep=0.3,sparse_prefill=true", "zipvl:keep=0.5,tau=0.7,sparse_prefill=true"])
def test_padding_beams_and_a_second_turn(name, method):
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(9, seed=2), family.row(1, IMAGE, 2, IMAGE, 4, seed=4)]
    with vtprune.applied(family.model(), method) as model:
        together = model(**family.inputs(*rows)).logits[:, -1]
        settings = dict(max_new_tokens=5, do_sample=False)
        answers = model.generate(**family.inputs(*rows), **settings)[:, -5:]
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i], model(**family.inputs(row)).logits[0, -1], **CLOSE)
            assert torch.equal(answers[i], model.generate(**family.inputs(row), **settings)[0, -5:])
        settings = dict(num_beams=3, max_new_tokens=5, do_sample=False)
        beams = model.generate(**family.inputs(rows[0], rows[2]), **settings)[:, -5:]
        for i, row in enumerate((rows[0], rows[2])):
            assert torch.equal(beams[i], model.generate(**family.inputs(row), **settings)[0, -5:])
        cache = model(**family.inputs(rows[0]), use_cache=True).past_key_values
        more = {k: v for k, v in family.inputs(family.row(2, IMAGE, 3, seed=3)).items() if k != "attention_mask"}
        out = model(**more, past_key_values=cache, use_cache=True)
        assert out.logits.isfinite().all()
        assert out.past_key_values.get_seq_length() == len(rows[0].ids) + more["input_ids"].shape[1]
