"""Signals of the decoder layer that is about to run, of rows of text, and notes about layers: as the model has them.

The truth is the attention that the same model returns, run by "eager" with the same removals.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch

import vtprune
from tests.engine.test_signals import CLOSE
from tests.families import FAMILIES, IMAGE
from tests.tiny import batch, picture, prompt, tiny_llava
from vtprune.kernels import attention_scores
from vtprune.methods import Keep, Method, Observation, Place, Stage

LAYER = 2
CUT = "fastv:layer=2,keep=0.5"


@dataclasses.dataclass(frozen=True)
class Probe(Method):
    """Keeps everything and remembers what it was shown at the input of a layer."""

    name: ClassVar[str] = "probe"
    kind = "baseline"
    places = (Place.DECODER_LAYER,)

    signal: str = "last_query_ahead"
    layers: tuple[int, ...] = (LAYER,)
    observations: tuple[Observation, ...] = ()
    seen: list = dataclasses.field(default_factory=list)

    def stages(self, model):
        signals = frozenset({self.signal} if self.signal else ())
        return [Stage(Place.DECODER_LAYER, self.look, self.layers, signals, observations=self.observations)]

    def look(self, tokens):
        self.seen.append(tokens)


def truth(maps, ids, mask, kept, signal, token):
    """Per row, attention of its query rows to the visual tokens that `kept` names; rows are padded on the left."""
    found = []
    for row in range(len(ids)):
        left = torch.ones_like(ids[row], dtype=torch.bool)
        slots = (ids[row] == token).nonzero()[:, 0]
        left[slots] = False
        left[slots[kept[row]]] = True
        left &= mask[row].bool()
        now = ids[row][left]
        visual = now == token
        own = maps[row, -len(now) :, -len(now) :]
        rows = torch.zeros_like(visual)
        rows[-1] = True
        if not signal.startswith("last"):
            rows = ~visual & (visual.long().cumsum(0) > 0)
        found.append(own[rows][:, visual])
    return found


@torch.no_grad()
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("signal", ["last_query_ahead", "text_queries_ahead"])
@pytest.mark.parametrize("name", ["llava-clip", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_attention_ahead(name, signal, use_cache, cut):
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, IMAGE, 2, seed=2)]
    x = family.inputs(*rows)
    token = int(rows[0].ids[rows[0].visual][0])
    positions = "compact" if name == "llava-clip" else "original"
    methods = [f"{CUT},positions={positions}"] if cut else ["fastv:layer=2,keep=1.0"]
    model = family.model()
    model.set_attn_implementation("eager")
    with vtprune.applied(model, methods):
        maps = model(**x, output_attentions=True, use_cache=False).attentions[LAYER].mean(1)
        report = vtprune.report(model)
    kept: list[list[int]] = [[], []]
    offsets = [0, 0]
    for shown in report.pictures:
        kept[shown.row] += [offsets[shown.row] + i for i in shown.kept]
        offsets[shown.row] += shown.tokens
    model, probe = family.model(), Probe(signal=signal)
    vtprune.apply(model, [*methods, probe])
    model(**x, use_cache=use_cache)
    (tokens,) = probe.seen
    expected = truth(maps, x["input_ids"], x["attention_mask"], kept, signal, token)
    for i, one in enumerate(expected):
        torch.testing.assert_close(tokens.attention[i][tokens.valid[i]], one.mean(0), **CLOSE)


@torch.no_grad()
def test_attention_ahead_at_the_first_layer_and_in_a_second_turn():
    first, second = prompt(4, seed=1), prompt(2, 0, 3, seed=2)
    both = torch.cat((first, second))[None]
    eager = tiny_llava(attention="eager")
    maps = eager(input_ids=both, pixel_values=picture(), output_attentions=True).attentions
    model, probe = tiny_llava(), Probe(layers=(0, 3))
    vtprune.apply(model, probe)
    cache = model(input_ids=first[None], use_cache=True).past_key_values
    model(input_ids=second[None], pixel_values=picture(), past_key_values=cache)
    for tokens in probe.seen:
        expected = maps[tokens.layer].mean(1)[0, -1][both[0] == 1]
        torch.testing.assert_close(tokens.attention[0], expected, **CLOSE)
    assert [tokens.layer for tokens in probe.seen] == [0, 3]


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "vtprune"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_text_rows(attention, use_cache):
    """Row by row and head by head, with padding, a row without a picture and an earlier removal at the same layer."""
    rows = [prompt(5, 0, 7, seed=1), prompt(2, 0, 3, seed=2), prompt(4, seed=3)]
    x = {**batch(*rows), "pixel_values": picture(2)}
    maps = tiny_llava(attention="eager")(**x, output_attentions=True, use_cache=False).attentions[LAYER - 1]
    model, probe = tiny_llava(attention=attention), Probe(signal="text_rows")
    vtprune.apply(model, [CUT, probe])
    model(**x, use_cache=use_cache)
    kept = [list(p.kept) for p in vtprune.report(model).pictures]
    (tokens,) = probe.seen
    text = tokens.text_rows
    scores = attention_scores(
        text.queries,
        text.keys,
        scale=text.scale,
        row_mask=text.sees >= 0,
        row_positions=text.sees,
        key_valid=text.valid,
        reduce_rows=None,
        reduce_heads=None,
    )
    for i, n in ((0, 7), (1, 3)):
        visual = (x["input_ids"][i] == 1).nonzero()[:, 0][kept[i]]
        found = scores[i, :, -n:, text.at[i][tokens.valid[i]]]
        torch.testing.assert_close(found, maps[i, :, -n:, visual], **CLOSE)
        assert (text.sees[i] >= 0).sum() == n
        cos, sin = model.model.language_model.rotary_emb(text.queries, visual[None])
        torch.testing.assert_close(text.token_rotation[0][i][tokens.valid[i]], cos[0])
        torch.testing.assert_close(text.token_rotation[1][i][tokens.valid[i]], sin[0])
    assert not bool(tokens.valid[2].any())
    assert not bool((text.sees[2] >= 0).any())


def growth(given, output, valid):
    """How much longer the output is than the input."""
    return output.norm(dim=-1) / given.norm(dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("module", ["self_attn", "mlp", "mlp.down_proj"])
def test_observations(module):
    """What a part of a layer does, seen by a hook of the test's own; it follows removals."""
    rows = [prompt(5, 0, 7, seed=1), prompt(2, 0, 3, seed=2)]
    x = {**batch(*rows), "pixel_values": picture(2)}
    model = tiny_llava()
    probe = Probe(signal="", layers=(1, 4), observations=(Observation(module, (0, 2), growth),))
    pairs = {}

    def see(layer):
        def hook(part, args, kwargs, output):
            pairs[layer] = args[0] if args else kwargs["hidden_states"], output

        return hook

    for layer in (0, 2):
        part = model.model.language_model.layers[layer].get_submodule(module)
        part.register_forward_hook(see(layer), with_kwargs=True)
    vtprune.apply(model, [probe, CUT])
    model(**x)
    early, late = probe.seen
    assert set(early.observed) == {(module, 0)}
    assert set(late.observed) == {(module, 0), (module, 2)}
    kept = [list(p.kept) for p in vtprune.report(model).pictures]
    for i in range(2):
        visual = (x["input_ids"][i] == 1).nonzero()[:, 0]
        for tokens, layer, at in (
            (early, 0, visual),
            (late, 0, visual[kept[i]]),
            (late, 2, None),
        ):
            given, output = pairs[layer]
            output = output[0] if isinstance(output, tuple) else output
            values = growth(given, output, None)[i]
            if at is None:  # a shorter sequence: the kept tokens stand before the text behind them
                behind = len(visual) - len(kept[i])
                at = visual[0] - (x["input_ids"].shape[1] - len(values)) + torch.arange(len(kept[i])) + behind
            torch.testing.assert_close(tokens.observed[module, layer][i][tokens.valid[i]], values[at])


def test_observations_are_refused_with_a_reason():
    with pytest.raises(ValueError, match="layer from 0 to 4"):
        vtprune.apply(tiny_llava(), Probe(signal="", observations=(Observation("mlp", (5,), growth),)))
    with pytest.raises(ValueError, match="no part 'mixer'"):
        vtprune.apply(tiny_llava(), Probe(signal="", observations=(Observation("mixer", (1,), growth),)))
    model = tiny_llava()
    vtprune.apply(model, Probe(signal="", observations=(Observation("mlp", (1,), lambda a, b, v: b),)))
    with pytest.raises(TypeError, match="one number per slot"):
        model(**batch(prompt(2, 0, 3)), pixel_values=picture())


@torch.no_grad()
def test_text_states():
    """What the text after the picture is, at layer 0 its embeddings."""
    rows = [prompt(5, 0, 7, seed=1), prompt(2, 0, 3, seed=2)]
    x = {**batch(*rows), "pixel_values": picture(2)}
    model, probe = tiny_llava(), Probe(signal="text", layers=(0,))
    vtprune.apply(model, probe)
    model(**x)
    (tokens,) = probe.seen
    embeds = model.get_input_embeddings()(x["input_ids"])
    assert tokens.text_valid.sum(1).tolist() == [7, 3]
    for i, n in enumerate((7, 3)):
        torch.testing.assert_close(tokens.text[i][tokens.text_valid[i]], embeds[i, -n:])


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava-clip", "qwen3_vl", "internvl"])
def test_closing_text(name):
    """Behind the last picture, whatever has left; all text where there is no picture, none where nothing follows it."""
    family = FAMILIES[name]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, IMAGE, 2, seed=2), family.row(4, seed=3)]
    rows.append(family.row(3, IMAGE, seed=4))
    model, seen = family.model(), {}
    layer = model.model.language_model.layers[LAYER]
    layer.register_forward_pre_hook(lambda module, args: seen.setdefault("hidden", args[0]))
    everything, probe = Everything(), Probe(signal="closing_text")
    with vtprune.applied(model, [everything, probe]):
        model(**family.inputs(*rows))
    (tokens,) = probe.seen
    for i, row in enumerate(rows):
        visual = row.visual.nonzero().squeeze(1)
        wanted = len(row.ids) - (int(visual.max()) + 1 if len(visual) else 0)
        assert int(tokens.closing_valid[i].sum()) == wanted
        if wanted:
            torch.testing.assert_close(tokens.closing[i, -wanted:], seen["hidden"][i, -wanted:])


@dataclasses.dataclass(frozen=True)
class Everything(Method):
    """Lets all visual tokens leave at the layer, but of the last row's."""

    name: ClassVar[str] = "everything"
    kind = "exit"
    places = (Place.DECODER_LAYER,)

    def stages(self, model):
        return [Stage(Place.DECODER_LAYER, self.leave, (LAYER,))]

    def leave(self, tokens):
        keep = tokens.valid.clone()
        keep[:-1] = False
        return Keep(keep)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llava-clip", "qwen2_5_vl"])
def test_prediction(name, side):
    """What the model answers whose last layers were taken away."""
    family = FAMILIES[name]
    x = family.inputs(family.row(5, IMAGE, 7, seed=1), family.row(4, IMAGE, 2, seed=3), side=side)
    model, probe = family.model(), Probe(signal="prediction", layers=(1, 3))
    vtprune.apply(model, probe)
    model(**x)
    vtprune.remove(model)
    last = x["attention_mask"].shape[1] - 1 - x["attention_mask"].flip(1).argmax(1)
    for tokens in probe.seen:
        short = family.model()
        short.model.language_model.layers = short.model.language_model.layers[: tokens.layer]
        short.model.language_model.config.num_hidden_layers = tokens.layer
        logits = short(**x, use_cache=False).logits[torch.arange(2), last]
        torch.testing.assert_close(tokens.prediction, logits, **CLOSE)
