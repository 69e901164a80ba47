"""zipvl with a sparse prefill: attention among the chosen tokens only equals a plain loop that masks the others."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.reference import feeding, positions_of, whole
from vtprune.compat import rotate
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


def plain(model, fed, positions, attending):
    """Logits of a loop over the layers, head by head; slots that are not listed get nothing from attention."""
    language_model = model.model.language_model
    hidden, length = fed.embeds, fed.embeds.shape[1]
    rotary = language_model.rotary_emb(hidden, position_ids=positions if len(positions) == 1 else positions[:, None])
    for i, layer in enumerate(language_model.layers):
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        q, k, v = (getattr(attention, f"{x}_proj")(normed).unflatten(-1, (-1, attention.head_dim)) for x in "qkv")
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        q, k = (rotate(x.transpose(1, 2), *rotary)[0] for x in (q, k))
        v, listed = v.transpose(1, 2)[0], torch.zeros(length, dtype=torch.bool)
        listed[attending[i]] = True
        seen = torch.ones(length, length, dtype=torch.bool).tril() & listed
        groups = attention.num_key_value_groups
        heads = []
        for h in range(len(q)):
            logits = (q[h] @ k[h // groups].T * attention.scaling).masked_fill(~seen, -1e30)
            heads.append((logits.softmax(-1) @ v[h // groups]) * listed[:, None])
        hidden = hidden + attention.o_proj(torch.cat(heads, -1))[None]
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if i < len(fed.deep):
            hidden = hidden + fed.deep[i]
    return model.lm_head(language_model.norm(hidden))


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("parameters", [{"keep": 0.3}, {"keep": 1.0, "tau": 0.7, "queries": "probes"}])
def test_prefill_equals_the_plain_loop(name, parameters):
    family = FAMILIES[name]
    model = family.model()
    rows = [family.row(5, IMAGE, 7), family.row(3, IMAGE, 2, IMAGE, 6, seed=1)]
    if VIDEO in family.kinds:
        rows.append(family.row(2, IMAGE, 3, VIDEO, 4, seed=2))
    for row in rows:
        method = Noted(build_method("zipvl", {"sparse_prefill": True, **parameters}))
        with vtprune.applied(model, method), feeding(model) as seen:
            logits = model(**family.inputs(row)).logits
            report = vtprune.report(model)
        fed = whole(model, row, [(torch.arange(len(row.ids)), seen[0])])
        expected = plain(model, fed, positions_of(model, family, row), method.attending)
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
