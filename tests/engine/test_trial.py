"""Trial runs: what a stage is shown after one is what the bare model has there, and nothing of it stays."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.tiny import batch, picture, prompt, tiny_llava
from vtprune.compat import rotate
from vtprune.methods import Keep, Method, Place, Stage

CLOSE = dict(atol=1e-4, rtol=1e-4)
LAYER = 3
NAMES = ["llava-clip", "llava_next", "llava_onevision", "qwen2_5_vl", "qwen3_vl", "internvl"]


@dataclasses.dataclass(frozen=True)
class Peek(Method):
    """Keeps every other token and remembers what it was shown."""

    seen: list = dataclasses.field(default_factory=list)
    signals: frozenset = frozenset({"last_row_ahead", "last_query_ahead", "hidden", "text"})
    layers: tuple = (0,)
    trial: int = LAYER
    name = "peek"
    kind = "pruning"
    places = (Place.DECODER_LAYER,)

    def stages(self, model):
        return [Stage(Place.DECODER_LAYER, self.decide, self.layers, self.signals, trial=self.trial)]

    def decide(self, tokens):
        self.seen.append(tokens)
        return Keep(tokens.valid & (torch.arange(tokens.valid.shape[1]) % 2 == 0))


def bare(model, x, cache=None):
    """The input of a layer, its last query and its keys, and its attention, of the model without methods."""
    layer, found = model.model.language_model.layers[LAYER], {}

    def states(module, args, kwargs):
        found["hidden"] = args[0]

    def query(module, args, kwargs):
        hidden = kwargs["hidden_states"][:, -1:]
        heads = module.q_proj(hidden).unflatten(-1, (-1, module.head_dim))
        heads = getattr(module, "q_norm", torch.nn.Identity())(heads)
        cos, sin = (t[:, -1:] for t in kwargs["position_embeddings"])
        found["query"] = rotate(heads.transpose(1, 2), cos, sin)

    handles = [
        layer.register_forward_pre_hook(states, with_kwargs=True),
        layer.self_attn.register_forward_pre_hook(query, with_kwargs=True),
    ]
    out = model(**x, past_key_values=cache, use_cache=True)
    for handle in handles:
        handle.remove()
    return found["hidden"], found["query"], out.past_key_values.layers[LAYER].keys


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager", "vtprune"])
@pytest.mark.parametrize("name", NAMES)
def test_a_trial_shows_what_the_bare_model_has(name, attention):
    family = FAMILIES[name]
    model = family.model()
    model.set_attn_implementation({"text_config": attention})
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, IMAGE, 2, seed=2), family.row(4, seed=3)]
    if VIDEO in family.kinds:
        rows.append(family.row(3, VIDEO, 4, seed=4))
    x = family.inputs(*rows)
    hidden, query, keys = bare(model, x)
    peek = Peek()
    with vtprune.applied(model, peek):
        model(**x)
        report = vtprune.report(model)
    (tokens,) = peek.seen
    longest = x["input_ids"].shape[1]
    assert tokens.layer == LAYER
    for i, row in enumerate(rows):
        # Newlines are no candidates.
        maps = [sorted(t for m in p.maps for t in m.tokens) for p in report.pictures if p.row == i]
        starts = [sum(p.tokens for p in report.pictures if p.row == i and p.index < n) for n in range(len(maps))]
        numbers = [start + t for start, one in zip(starts, maps, strict=True) for t in one]
        at = longest - len(row.ids) + row.visual.nonzero()[:, 0][numbers]
        assert int(tokens.valid[i].sum()) == len(at)
        there = tokens.valid[i]
        torch.testing.assert_close(tokens.hidden[i][there], hidden[i, at], **CLOSE)
        torch.testing.assert_close(tokens.last_row.queries[i], query[i], **CLOSE)
        assert tokens.last_row.at[i][there].tolist() == at.tolist()
        torch.testing.assert_close(tokens.last_row.keys[i][:, longest - len(row.ids) :], keys[i][:, -len(row.ids) :])
        logits = query[i, :, 0, None] @ keys[i].repeat_interleave(query.shape[1] // keys.shape[1], 0).transpose(1, 2)
        logits = (logits[:, 0] * tokens.last_row.scale).masked_fill(x["attention_mask"][i] == 0, -torch.inf)
        torch.testing.assert_close(tokens.attention[i][there], logits.softmax(-1).mean(0)[at], **CLOSE)


@torch.no_grad()
def test_a_trial_in_a_further_turn_sees_the_earlier_one():
    """Also what an earlier picture has lost in deeper layers, which then hold fewer keys than the first."""
    first, second = prompt(4, 0, 2, seed=1), prompt(2, 0, 3, seed=2)
    model, peek = tiny_llava(), Peek(signals=frozenset({"last_row_ahead", "hidden"}))
    with vtprune.applied(model, "fastv:layer=2,keep=0.3"):
        cache = model(**batch(first), pixel_values=picture(), use_cache=True).past_key_values
        # Text alone, so that nothing but the first turn is pruned.
        whole = model(input_ids=prompt(5, seed=3)[None], past_key_values=cache, use_cache=True).past_key_values
        lengths = [layer.physical_length for layer in whole.layers]
    with vtprune.applied(model, [peek]):
        model(input_ids=second[None], pixel_values=picture(seed=4), past_key_values=cache)
    (tokens,) = peek.seen
    assert tokens.last_row.keys.shape[2] == lengths[LAYER] + len(second)
    assert [layer.physical_length for layer in cache.layers] == [n + len(second) - 18 for n in lengths]


@torch.no_grad()
def test_callers_and_their_hooks_see_the_real_run_only():
    model = tiny_llava(attention="eager")
    calls = []
    for i, layer in enumerate(model.model.language_model.layers):
        layer.register_forward_hook(lambda module, args, output, i=i: calls.append(i))
    vtprune.apply(model, Peek())
    out = model(
        **batch(prompt(5, 0, 7)),
        pixel_values=picture(),
        output_hidden_states=True,
        output_attentions=True,
        use_cache=True,
    )
    assert calls == [0, 1, 2, 3, 4]
    assert len(out.hidden_states) == 6
    assert len(out.attentions) == 5
    assert all(x.shape[-1] == 12 + 18 for x in out.attentions)
    assert [layer.physical_length for layer in out.past_key_values.layers] == [12 + 18] * 5


@torch.no_grad()
def test_a_trial_is_counted():
    model = tiny_llava()
    x = {**batch(prompt(5, 0, 7), prompt(3, 0, 2, seed=1)), "pixel_values": picture(2)}
    lengths, left = (48, 41), (30, 23)
    layer = model.model.language_model.layers[0]
    linear = sum(2 * m.weight.numel() for m in layer.modules() if isinstance(m, torch.nn.Linear))
    cost = lambda lengths: sum(n * linear + 4 * n * n * 48 for n in lengths)  # noqa: E731
    with vtprune.applied(model, Peek()):
        model(**x)
        report = vtprune.report(model)
    saved = 5 * (cost(lengths) - cost(left)) - LAYER * cost(lengths)
    assert report.prefill_flops_before - report.prefill_flops_after == saved
    assert "peek first ran 3 decoder layers on all 89 tokens of the prompt" in report.notes[0]
    with vtprune.applied(model, "gemfilter", keep=36):
        model(**x)
        report = vtprune.report(model)
    assert report.prefill_flops_after == report.prefill_flops_before
    assert report.notes == ("gemfilter removed nothing.",)


def test_gradients_flow_through_the_real_run():
    model = tiny_llava()
    vtprune.apply(model, "gemfilter", keep=0.5)
    model(**batch(prompt(5, 0, 7)), pixel_values=picture()).logits.sum().backward()
    assert all(layer.mlp.up_proj.weight.grad.any() for layer in model.model.language_model.layers)


def test_refusals():
    with pytest.raises(TypeError, match="only a stage at decoder layer 0"):
        vtprune.apply(tiny_llava(), Peek(layers=(1,)))
    with pytest.raises(ValueError, match="needs attention from the layer before"):
        vtprune.apply(tiny_llava(), Peek(signals=frozenset({"queries_keys"})))
    with pytest.raises(ValueError, match="trial must be a layer from 1 to 4"):
        vtprune.apply(tiny_llava(), Peek(trial=5))
