"""ee_mllm and yopo inside a model: what it computes is what a plain loop over its layers computes."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.asking import further_turn
from tests.families import FAMILIES, IMAGE, SORTS
from tests.layer_loop import Rule, check_answer, prompts
from vtprune.integrations import integrate

CLOSE = dict(atol=1e-4, rtol=1e-4)
HEADS = ((0, 1, 2, 3), (1, 2), (), (0, 3), (2, 3))


class Composite(Rule):
    """ee_mllm."""

    def __init__(self, row, layout, layer, update="ffn", prefix=False):
        super().__init__(row)
        self.layer, self.update, self.prefix = layer, update, prefix

    def sees(self, layer, head):
        seen = super().sees(layer, head)
        if layer >= self.layer and self.update == "vo":
            seen[self.visual] = torch.eye(self.length, dtype=torch.bool)[self.visual]
        if layer >= self.layer and self.prefix:
            seen[self.visual] &= ~self.visual
        return seen

    def given(self, layer):
        some = layer < self.layer or self.update == "vo" or self.prefix
        return super().given(layer) if some else ~self.visual

    def channels(self, layer, most):
        return torch.where(self.visual & (layer >= self.layer and self.update == "frozen"), 0, most)


class Fewer(Rule):
    """yopo, its cut without renormalisation."""

    def __init__(self, row, layout, layer, window=None, heads=None, silent=False, mlp=1, **softmax):
        super().__init__(row)
        self.layer, self.heads, self.silent, self.mlp = layer, heads or [(0, 1, 2, 3)] * 5, silent, mlp
        self.softmax = softmax.get("head_softmax", "zero")
        self.layout, self.window = layout, window

    def cut(self, layer, head):
        return layer >= self.layer or head not in self.heads[layer]

    def sees(self, layer, head):
        seen = super().sees(layer, head)
        if self.window is not None:
            both = self.visual[:, None] & self.visual
            near = torch.zeros_like(both)
            cells = [(slot, *cell) for slot, cell in self.layout.items()]
            for slot, map_, frame, row, column in cells:
                for other, *place in cells:
                    apart = max(abs(row - place[2]), abs(column - place[3]))
                    near[slot, other] = place[:2] == [map_, frame] and apart <= self.window // 2
            seen = torch.where(both, near, seen)
        if self.softmax == "renormalise" and layer < self.layer and self.cut(layer, head):
            seen = seen & ~self.visual
        return seen

    def factor(self, layer, head):
        factor = super().factor(layer, head)
        if self.cut(layer, head):
            factor[:, self.visual] = 0
        if self.silent and head not in self.heads[layer]:
            factor[self.visual] = 0
        return factor

    def channels(self, layer, most):
        return torch.where(self.visual, most // self.mlp, most)


def cells_of(model, row, report):
    """By slot, map, frame, row and column, newlines behind the token before them; from the report alone."""
    found, visual = {}, row.visual.nonzero().squeeze(1).tolist()
    for number, picture in enumerate(report.pictures):
        slots, visual = visual[: picture.tokens], visual[picture.tokens :]
        for i, one in enumerate(picture.maps):
            _, rows, columns = one.grid
            for n, token in enumerate(one.tokens):
                place = n // (rows * columns), n // columns % rows, n % columns
                # InternVL's frames are maps of one picture.
                found[slots[token]] = ((number, i), *place)
        for slot in slots:
            if slot not in found:
                map_, frame, line, column = found[slot - 1]
                found[slot] = map_, frame, line, column + 1
    return found


CASES = [
    ("ee_mllm", Composite, dict(layer=0)),
    ("ee_mllm", Composite, dict(layer=2, update="vo")),
    ("ee_mllm", Composite, dict(layer=1, update="frozen")),
    ("ee_mllm", Composite, dict(layer=1, prefix=True)),
    ("yopo", Fewer, dict(layer=3, window=3, heads=HEADS, silent=True, mlp=2, layer_softmax="zero")),
    ("yopo", Fewer, dict(layer=0, window=1, mlp=4, layer_softmax="zero")),
    ("yopo", Fewer, dict(layer=4, heads=HEADS, layer_softmax="zero")),
    ("yopo", Fewer, dict(layer=5, heads=HEADS, window=3, head_softmax="renormalise")),
]
IDS = ["ffn", "vo", "frozen", "prefix", "llava", "itself", "heads", "renormalised"]


@pytest.fixture(params=SORTS)
def kind(request):
    return request.param, "sdpa"


@torch.no_grad()
@pytest.mark.parametrize(("name", "rule", "parameters"), CASES, ids=IDS)
def test_prefill_and_decoding_equal_the_plain_loop(model, family, name, rule, parameters):
    for row in prompts(family):

        def ruled(visual, report):
            return rule(visual, cells_of(model, row, report), **parameters)  # noqa: B023

        report, _ = check_answer(model, family, row, [(name, parameters)], ruled, new=3)
        assert report.visual_tokens_after == report.visual_tokens_before
        # Heads that lose attention, but go on asking, save nothing.
        saves = not (parameters.get("heads") and len(parameters) == 3)
        assert (report.prefill_flops_after < report.prefill_flops_before) == saves


@torch.no_grad()
@pytest.mark.parametrize(("name", "rule", "parameters"), CASES, ids=IDS)
def test_a_second_turn_with_a_picture_equals_the_whole_conversation(model, family, name, rule, parameters):
    first, more = family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 4, seed=3)
    with vtprune.applied(model, name, **parameters):
        cache = model(**family.inputs(first), use_cache=True).past_key_values
        logits = model(**further_turn(model, family, first, more), past_key_values=cache).logits
        expected = model(**family.inputs(first.then(more))).logits
        torch.testing.assert_close(logits[0, -1], expected[0, -1], **CLOSE)


@torch.no_grad()
def test_late_layers_with_renormalisation_are_an_exit(built):
    family = FAMILIES["qwen2_5_vl"]
    model, x = built[family.name, "sdpa"], family.inputs(family.row(5, IMAGE, 7), family.row(4, seed=1))
    with vtprune.applied(model, "exit", layer=3):
        expected = model.generate(**x, max_new_tokens=5, do_sample=False)
    with vtprune.applied(model, "yopo", layer=3):
        assert torch.equal(model.generate(**x, max_new_tokens=5, do_sample=False), expected)


@torch.no_grad()
def test_flops_are_those_of_the_products(built):
    """Counted by hand: 36 visual tokens, 12 of text; 4 heads of 12 channels, MLPs of 64, in 5 layers of width 48."""
    family, n, text = FAMILIES["llava-clip"], 36, 12
    model, x = built[family.name, "sdpa"], family.inputs(family.row(5, IMAGE, 7))
    integration = integrate(model)
    assert (integration.decoder_heads, integration.decoder_kv_heads, integration.decoder_channels) == (4, 2, 64)

    def saved(name, **parameters):
        with vtprune.applied(model, name, **parameters):
            model(**x)
            report = vtprune.report(model)
        return report.prefill_flops_before - report.prefill_flops_after

    query, products, mlp = 2 * 48 * 48, 4 * n * (n + text) * 48, 2 * 3 * 48 * 64
    assert saved("ee_mllm", layer=2) == 3 * (2 * n * query + products)
    assert saved("ee_mllm", layer=2, update="vo") == 3 * (n * query + products)
    assert saved("ee_mllm", layer=4, update="frozen") == 2 * n * query + products + n * mlp
    assert saved("yopo", layer=5, mlp=4) == 5 * n * mlp * 3 // 4
    assert saved("yopo", layer=5, heads=HEADS[:1] * 4 + ((1,),), silent=True) == products * 3 // 4
