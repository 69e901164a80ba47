"""yopo on lists of slots; its heads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.methods.inputs import INFO, layer_slots
from tests.tiny import batch, picture, prompt, tiny_llava
from vtprune.calibration import load_heads, save_heads, yopo_heads
from vtprune.methods import Place, build_method
from vtprune.methods._heads import chosen, votes
from vtprune.methods._windows import window_blocks

FOUR = dataclasses.replace(INFO, decoder_layers=7, decoder_heads=4, decoder_kv_heads=2, decoder_channels=90)
HEADS = ((0, 1, 2, 3),) * 6 + ((1, 3),)


def stages(**parameters):
    return build_method("yopo", parameters).stages(FOUR)


def decided(slots, at=6, **parameters):
    (stage,) = [s for s in stages(**parameters) if s.place is Place.ATTENTION and at in s.layers]
    return stage.decide(slots).parts


def seen(part, slots, entries):
    """Bool (slots, entries), from the blocks of the first row and head."""
    found = torch.zeros(slots + 1, entries + 1, dtype=torch.bool)
    for asking, offered, sees in zip(part.slots[0, 0], part.entries[0, 0], part.sees[0, 0], strict=True):
        found[asking[:, None], offered] |= sees
    return found[:-1, :-1]


@pytest.mark.parametrize("side", [1, 3, 5])
@pytest.mark.parametrize(("text", "rows", "columns"), [(4, 7, 9), (0, 20, 3), (2, 1, 40), (3, 12, 12)])
def test_a_window_is_a_square_of_neighbours_and_the_text_before(side, text, rows, columns):
    slots = layer_slots(text=text, rows=rows, columns=columns, behind=3)
    length = text + rows * columns + 3
    found = seen(window_blocks(slots, side), length, length)
    for i in range(rows * columns):
        r, c = divmod(i, columns)
        for j in range(rows * columns):
            near = abs(j // columns - r) <= side // 2 and abs(j % columns - c) <= side // 2
            assert found[text + i, text + j] == near
    assert found[text : text + rows * columns, :text].all()
    assert not found[:, text + rows * columns :].any()


def test_a_window_makes_a_band_of_products_only():
    part = window_blocks(layer_slots(text=35, rows=24, columns=24, behind=60), 5)
    products = (part.slots >= 0).sum(-1) * (part.entries >= 0).sum(-1)
    assert int(products.sum()) < 0.31 * 576 * (576 + 95)


def test_heads_that_see_no_picture():
    slots = layer_slots(text=5, rows=2, columns=3, behind=4, heads=4, kv_heads=2)
    seeing, blind = decided(slots, heads=HEADS, layer=7)
    assert (seeing.heads, seeing.slots, blind.heads, blind.slots) == ((1, 3), None, (0, 2), None)
    assert torch.equal(blind.lost, slots.visual_entries)
    text, visual, *blind = decided(slots, heads=HEADS, layer=7, window=3)
    assert [x.heads for x in (text, visual, *blind)] == [(1, 3), (1, 3), (0, 2), (0, 2)]
    assert torch.equal(blind[0].slots, text.slots)
    assert all(torch.equal(x.lost, slots.visual_entries) for x in blind)
    *_, blind_text = decided(slots, heads=HEADS, layer=7, silent=True)
    assert blind_text.heads == (0, 2)
    assert torch.equal(blind_text.slots[:, 0], slots.text)
    *_, blind_text, blind = decided(slots, heads=HEADS, layer=7, head_softmax="renormalise")
    assert blind_text.entries.tolist() == [[slots.text[0].tolist()]]
    assert blind.entries.tolist() == [[list(range(5))]]


def test_decoding():
    slots = layer_slots(text=0, rows=0, columns=0, behind=1, past=9, heads=4, kv_heads=2)
    slots.visual_entries[..., 2:6] = True
    seeing, blind = decided(slots, heads=HEADS, layer=7)
    assert (seeing.heads, seeing.lost, blind.heads) == ((1, 3), None, (0, 2))
    assert torch.equal(blind.lost, slots.visual_entries)
    _, blind = decided(slots, heads=HEADS, layer=7, head_softmax="renormalise")
    assert blind.sees[0, 0, 0].tolist() == [True, True, *[False] * 4, *[True] * 4]
    assert [s.decide(slots) for s in stages(window=3, layer=7)] == [None] * 7


def test_late_layers_are_an_exit_or_lose_attention():
    assert [(s.place, s.layers) for s in stages()] == [(Place.DECODER_LAYER, (6,))]
    assert [(s.place, s.layers) for s in stages(layer=5, layer_softmax="zero")] == [
        (Place.ATTENTION, (5,)),
        (Place.ATTENTION, (6,)),
    ]
    (stage,) = stages(layer=7, mlp=4)
    assert (stage.place, stage.layers) == (Place.MLP, tuple(range(7)))
    text, visual = stage.decide(layer_slots(text=5, rows=2, columns=3, behind=4)).parts
    assert (text.channels, visual.channels) == (None, 90 // 4)


def test_votes_and_files(tmp_path):
    visual, other = torch.tensor([[[3.0, 1.0]] * 3] * 2), torch.tensor([[[2.0, 2.0]] * 3] * 2)
    assert votes(visual, other, 1.0, 1).tolist() == [[3, 3], [3, 0]]
    assert votes(visual, other, 1.5, 0).tolist() == [[0, 0], [0, 0]], "more than the threshold"
    heads = chosen(votes(visual, other, 1.0, 1) > 0)
    assert heads == ((0, 1), (0,))
    save_heads(tmp_path / "heads.json", heads)
    assert load_heads(tmp_path / "heads.json") == heads
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="heads must be a file written by save_heads"):
        build_method("yopo", {"heads": str(tmp_path / "other.json")}).stages(FOUR)


@torch.no_grad()
def test_calibration_goes_by_attention(tmp_path):
    """Ratios by hand, from eager attention: padding and prompts without pictures do not count."""
    model = tiny_llava(attention="eager")
    rows = [prompt(5, 0, 7), prompt(3, 0, 4), prompt(6)]
    x = {**batch(*rows), "pixel_values": picture(2)}
    attentions = model(**x, output_attentions=True).attentions
    ratios = torch.empty(5, 2, 4)
    for i, row in enumerate(rows[:2]):
        visual = row == 1
        for layer, attention in enumerate(attentions):
            mass = attention[i, :, -len(row) :, -len(row) :].sum(1)
            ratios[layer, i] = mass[:, visual].sum(1) / mass[:, ~visual].sum(1)
    model.set_attn_implementation("sdpa")
    cut = float(ratios[2:].median())
    expected = chosen(torch.cat((torch.ones(2, 4, dtype=torch.bool), (ratios[2:] > cut).sum(1) > 0)))
    assert yopo_heads(model, [x], threshold=cut, agree=0.4) == expected
    half = yopo_heads(model, [x], keep=0.5)
    assert sum(map(len, half[2:])) == 6
    worst = min(float(ratios[i, :, h].max()) for i in range(2, 5) for h in half[i])
    assert worst >= max(float(ratios[i, :, h].max()) for i in range(2, 5) for h in set(range(4)) - set(half[i]))
    last = yopo_heads(model, [x], decoding=True, keep=0.25)
    assert sum(map(len, last[2:])) == 3
    with pytest.raises(ValueError, match="must hold pictures"):
        yopo_heads(model, [batch(prompt(6))])
    vtprune.apply(model, "yopo", heads=half, layer=4)
    assert model(**x).logits.isfinite().all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"window": 4}, "window must be odd"),
        ({"window": 0}, "window must be a whole number >= 1"),
        ({"mlp": 0}, "mlp must be a whole number >= 1"),
        ({"layer": 0}, "layer must be a layer from 1 to 7"),
        ({"layer": 8}, "layer must be a layer from 1 to 7"),
        ({"heads": ((0,), (4,))}, "heads must name, for each of 7 decoder layers, some of its 4 heads; got 2 layers"),
        ({"layer_softmax": "half"}, "layer_softmax must be one of"),
    ],
)
def test_refuses(parameters, message):
    with pytest.raises(ValueError, match=message):
        stages(**parameters)
