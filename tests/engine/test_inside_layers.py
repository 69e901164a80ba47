"""Stages inside decoder layers: what the model computes is what a plain loop over its layers computes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import vtprune
from tests.asking import further_turn
from tests.families import FAMILIES, IMAGE, SORTS
from tests.layer_loop import Rule, check_answer, prompts
from tests.tiny import BEAMS
from vtprune.engine.parts import attend
from vtprune.methods import Attend, Feed, Method, Part, Place, Stage, Width

CLOSE = dict(atol=1e-4, rtol=1e-4)
LAYERS = (0, 1, 4)
CHANNELS = 16


@dataclasses.dataclass(frozen=True)
class Quiet(Method):
    """Visual tokens ask in heads 0 and 2 only and use a quarter of the MLPs; text loses, in heads 2 and 3, visual ones.

    With `late` it decides once queries are there, else before; with `silent` visual tokens ask in no head.
    """

    late: bool = False
    silent: bool = False
    layers: tuple = LAYERS
    name = "quiet"
    kind = "pruning"
    places = (Place.ATTENTION, Place.MLP)

    def stages(self, model):
        signals = frozenset({"queries_keys_values"} if self.late else ())
        return [
            Stage(Place.ATTENTION, self.attend, self.layers, signals, decodes=True),
            Stage(Place.MLP, self.feed, self.layers),
        ]

    def attend(self, slots):
        assert (slots.queries is not None) == self.late
        text, visual = slots.text[:, None], slots.visual[:, None]
        asking = () if self.silent else (Part(visual, heads=(0, 2)),)
        return Attend((*asking, Part(text, heads=(0, 1)), Part(text, heads=(2, 3), lost=slots.visual_entries)))

    def feed(self, slots):
        return Feed((Width(slots.text), Width(slots.visual, CHANNELS)))


@dataclasses.dataclass(frozen=True)
class Reads(Method):
    """Decoding reads every third visual entry of the first key-value head, others of the second, and all text."""

    layers: tuple = LAYERS
    name = "reads"
    kind = "cache"
    places = (Place.ATTENTION,)

    def stages(self, model):
        signals = frozenset({"queries_keys_values"})
        return [Stage(Place.ATTENTION, self.attend, self.layers, signals, decodes=True)]

    def attend(self, slots):
        if slots.visual.shape[1]:
            return None
        read = read_by_heads(slots.visual_entries.expand(-1, slots.kv_heads, -1))
        number = torch.where(read, torch.arange(read.shape[2]), -1)
        return Attend((Part(entries=number.sort(2).values),))


def read_by_heads(visual):
    """Bool (rows, kv_heads, entries): the n-th visual entry of a row is left to head h where (n + h) % 3 == 0."""
    number = visual.cumsum(2) + torch.arange(visual.shape[1])[:, None]
    return ~visual | (number % 3 == 0)


@pytest.fixture(params=SORTS)
def kind(request):
    return request.param, "sdpa"


class Ruled(Rule):
    """What the methods above leave of layers."""

    def __init__(self, visual, method, prompt):
        super().__init__(visual)
        self.quiet = method if isinstance(method, Quiet) else None
        self.prompt = prompt

    def sees(self, layer, head):
        seen = super().sees(layer, head)
        if self.quiet is None and layer in LAYERS:
            seen[self.prompt :] &= read_by_heads(self.visual.expand(1, 2, -1))[0, head // 2]
        return seen

    def factor(self, layer, head):
        factor = super().factor(layer, head)
        if self.quiet is not None and layer in LAYERS:
            factor[self.visual] *= head in (0, 2) and not self.quiet.silent
            if head >= 2:
                factor[~self.visual] *= ~self.visual
        return factor

    def channels(self, layer, most):
        return torch.where(self.visual & (self.quiet is not None and layer in LAYERS), CHANNELS, most)


METHODS = [Quiet(), Quiet(late=True), Quiet(silent=True), Reads()]


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS, ids=["early", "late", "silent", "reads"])
def test_prefill_and_decoding_equal_the_plain_loop(model, family, method):
    for row in prompts(family):
        prompt = len(row.ids)
        report, _ = check_answer(model, family, row, method, lambda visual, _: Ruled(visual, method, prompt))  # noqa: B023
        assert report.visual_tokens_after == report.visual_tokens_before
        assert report.kv_bytes_after == report.kv_bytes_before
        saves = isinstance(method, Quiet)
        assert (report.prefill_flops_after < report.prefill_flops_before) == saves


@torch.no_grad()
@pytest.mark.parametrize("method", [Quiet(), Quiet(silent=True), Reads()], ids=["early", "silent", "reads"])
def test_padded_batches_and_beams_equal_their_rows_alone(model, family, method):
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(9, seed=2), *prompts(family)[1:]]
    settings = dict(max_new_tokens=5, do_sample=False)
    with vtprune.applied(model, method):
        for side in ("left", "right"):
            x = family.inputs(*rows, side=side)
            together = model(**x).logits
            ends = [-1 if side == "left" else len(row.ids) - 1 for row in rows]
            for i, row in enumerate(rows):
                alone = model(**family.inputs(row)).logits[0, -1]
                torch.testing.assert_close(together[i, ends[i]], alone, **CLOSE)
        x = family.inputs(*rows)
        answers = model.generate(**x, **settings)[:, x["input_ids"].shape[1] :]
        beams = model.generate(**x, **settings, num_beams=BEAMS)[:, x["input_ids"].shape[1] :]
        for i, row in enumerate(rows):
            alone = family.inputs(row)
            assert torch.equal(answers[i], model.generate(**alone, **settings)[0, len(row.ids) :])
            assert torch.equal(beams[i], model.generate(**alone, **settings, num_beams=BEAMS)[0, len(row.ids) :])


@torch.no_grad()
def test_a_second_turn_equals_the_whole_conversation(model, family):
    first, more = family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 4, seed=3)
    with vtprune.applied(model, Quiet()):
        cache = model(**family.inputs(first), use_cache=True).past_key_values
        logits = model(**further_turn(model, family, first, more), past_key_values=cache).logits
        expected = model(**family.inputs(first.then(more))).logits
        torch.testing.assert_close(logits[0, -1], expected[0, -1], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa", "vtprune"])
def test_every_attention_implementation_gives_the_same(attention):
    family = FAMILIES["qwen2_5_vl"]
    model, row = family.model(), family.row(5, IMAGE, 7)
    with vtprune.applied(model, [("fastv", {"layer": 2, "keep": 0.5}), Quiet()]):
        expected = model(**family.inputs(row)).logits
    model.set_attn_implementation(attention)
    before = [vars(layer.self_attn) for layer in model.model.language_model.layers]
    before = [dict(x) for x in before]
    plain_logits = model(**family.inputs(row)).logits
    with vtprune.applied(model, [("fastv", {"layer": 2, "keep": 0.5}), Quiet()]):
        assert model.model.language_model.layers[0].self_attn.config._attn_implementation == attention
        torch.testing.assert_close(model(**family.inputs(row)).logits, expected, **CLOSE)
    assert [vars(layer.self_attn) for layer in model.model.language_model.layers] == before
    assert torch.equal(model(**family.inputs(row)).logits, plain_logits)


@torch.no_grad()
@pytest.mark.parametrize("chain", ["divprune before", "fastv before", "skipping", "snapkv behind", "exit", "trial"])
def test_beside_methods_that_remove_tokens(built, chain):
    family, model = FAMILIES["qwen2_5_vl"], built["qwen2_5_vl", "sdpa"]
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(3, IMAGE, 2, IMAGE, 6, seed=1), family.row(4)]
    others = {
        "divprune before": [("divprune", {"keep": 0.6}), Quiet()],
        "fastv before": [("fastv", {"layer": 2, "keep": 0.5}), Quiet()],
        "skipping": [("showui", {"keep": 0.3, "threshold": 70.0, "skip_layers": (1, 3)}), Quiet()],
        "snapkv behind": [Quiet(), ("snapkv", {"keep": 0.5})],
        "exit": [("exit", {"layer": 3}), Quiet()],
        "trial": [("gemfilter", {"keep": 0.5, "layer": 3}), Quiet()],
    }
    x, settings = family.inputs(*rows), dict(max_new_tokens=5, do_sample=False)
    with vtprune.applied(model, others[chain]):
        answers = model.generate(**x, **settings)[:, x["input_ids"].shape[1] :]
        beams = model.generate(**x, **settings, num_beams=2)[:, x["input_ids"].shape[1] :]
        for i, row in enumerate(rows):
            alone = family.inputs(row)
            assert torch.equal(answers[i], model.generate(**alone, **settings)[0, len(row.ids) :])
            assert torch.equal(beams[i], model.generate(**alone, **settings, num_beams=2)[0, len(row.ids) :])


def test_gradients_flow():
    family = FAMILIES["llava-clip"]
    model = family.model().train()
    x = family.inputs(family.row(2, IMAGE, 3))
    with vtprune.applied(model, Quiet()):
        model(**x).logits.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "language_model.layers" in n)


@torch.no_grad()
def test_a_compiled_model_gives_the_same():
    family = FAMILIES["qwen3_vl"]
    model, x = family.model(), family.inputs(family.row(5, IMAGE, 7))
    settings = dict(max_new_tokens=4, do_sample=False)
    with vtprune.applied(model, ["divprune:keep=0.5", "fastv:layer=2,keep=0.5", Quiet()]):
        expected, answer = model(**x).logits, model.generate(**x, **settings)
        torch.testing.assert_close(torch.compile(model, backend="eager")(**x).logits, expected, **CLOSE)
        model.forward = torch.compile(model.forward, backend="eager")
        assert torch.equal(model.generate(**x, **settings), answer)
    torch.compiler.reset()


@torch.no_grad()
def test_offloaded_weights():
    from accelerate import cpu_offload

    family = FAMILIES["llava-clip"]
    model, x = family.model(), family.inputs(family.row(5, IMAGE, 7))
    with vtprune.applied(model, Quiet()):
        expected = model(**x).logits
    with vtprune.applied(cpu_offload(model, execution_device="cpu"), Quiet()):
        torch.testing.assert_close(model(**x).logits, expected, **CLOSE)


def test_checkpointing_is_refused():
    family = FAMILIES["llava-clip"]
    model = family.model().train()
    model.gradient_checkpointing_enable()
    vtprune.apply(model, Quiet())
    with pytest.raises(ValueError, match=r"quiet.*gradient checkpointing"):
        model(**family.inputs(family.row(5, IMAGE, 7)))


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([Quiet(), Reads((3, 4))], "quiet and reads both act at the decoder attention of layer 4"),
        ([Quiet(), ("fastv", {"layer": 3})], "order of their places"),
        ([("corematching", {}), Quiet(layers=(0, 1, 2, 3))], "corematching looks at MLPs of decoder layers that quiet"),
    ],
)
def test_refuses(built, chain, message):
    with pytest.raises(ValueError, match=message):
        vtprune.apply(built["llava-clip", "sdpa"], chain)


def slow(queries, keys, values, parts, valid):
    """What `attend` says, number by number."""
    rows, heads, slots, dim = queries.shape
    group, entries = heads // keys.shape[1], keys.shape[2]
    past = entries - slots
    out = torch.zeros(rows, slots, heads, values.shape[-1])
    for part, r in itertools.product(parts, range(rows)):
        for i, h in enumerate(range(heads) if part.heads is None else part.heads):
            for b, (asking, offered) in enumerate(lists(part, r, i, h // group, slots, entries)):
                for a, s in enumerate(asking):
                    seen = []
                    for c, e in enumerate(offered):
                        sees = e == s + past if part.itself else e <= s + past
                        if part.sees is not None:
                            sees = part.sees.expand(rows, heads, -1, -1, -1)[r, h, b, a, c]
                        if e >= 0 and sees and (valid is None or valid[r, e]):
                            seen.append(e)
                    if s < 0 or not seen:
                        continue
                    weights = (keys[r, h // group, seen] @ queries[r, h, s] * dim**-0.5).softmax(0)
                    if part.lost is not None:
                        weights = weights * ~part.lost[r, (h // group) % part.lost.shape[1], seen]
                    out[r, s, h] += weights @ values[r, h // group, seen]
    return out


def lists(part, r, head, kv_head, slots, entries):
    """Slots and entries of a row and head, block by block."""
    asking, offered = part.slots, part.entries
    asking = torch.arange(slots).view(1, 1, 1, -1) if asking is None else asking
    offered = torch.arange(entries).view(1, 1, 1, -1) if offered is None else offered
    asking, offered = (x if x.ndim == 4 else x.unsqueeze(2) for x in (asking, offered))
    per_head = offered.shape[1] == (asking.shape[1] if part.heads is None else len(part.heads))
    mine = asking[r % len(asking), head % asking.shape[1]].tolist()
    theirs = offered[r % len(offered), (head if per_head else kv_head) % offered.shape[1]].tolist()
    return zip(mine, theirs * (len(mine) // len(theirs)), strict=True)


def ascending(generator, *shape, of, length):
    """Lists (*shape, length) of numbers below `of`."""
    return torch.rand(*shape, of, generator=generator).argsort(-1)[..., :length].sort(-1).values


def test_attend_computes_what_it_says():
    generator = torch.Generator().manual_seed(0)
    slots, entries = 6, 9
    queries, keys, values = (torch.randn(2, n, m, 8, generator=generator) for n, m in ((4, 6), (2, 9), (2, 9)))
    valid = torch.ones(2, entries, dtype=torch.bool)
    valid[1, :2] = False
    first = torch.tensor([[-1, 0, 2], [0, 1, 3]])[:, None]
    rest = torch.tensor([[1, 3, 4, 5], [-1, 2, 4, 5]])[:, None]
    by_head = ascending(generator, 2, 4, of=slots, length=3)
    by_kv = ascending(generator, 2, 2, of=entries, length=4)
    blocks = torch.tensor([[0, 1, 2], [3, 4, 5]]).expand(2, 1, 2, 3)
    bands = torch.tensor([[0, 3, 4, 5], [-1, 6, 7, 8]]).expand(2, 1, 2, 4)
    sees = torch.rand(1, 1, 2, 3, 4, generator=generator) < 0.6
    lost = torch.rand(2, 2, entries, generator=generator) < 0.5
    cases = [
        (Part(),),
        (Part(lost=lost),),
        (Part(first), Part(rest, itself=True)),
        (Part(first, heads=(1, 2)), Part(rest, heads=(0, 1), lost=lost[:, :1]), Part(heads=(3,))),
        (Part(by_head, by_head),),
        (Part(by_head, by_kv),),
        (Part(entries=by_kv),),
        (Part(entries=by_kv[:, :1], heads=(2, 3)),),
        (Part(blocks, bands, sees=sees),),
        (Part(blocks, sees=torch.rand(2, 4, 2, 3, entries, generator=generator) < 0.6),),
    ]
    for parts, there in itertools.product(cases, (valid, None)):
        found = attend(queries, keys, values, parts, valid=there)
        torch.testing.assert_close(found, slow(queries, keys, values, parts, there))
    without_padding = dataclasses.replace(cases[4][0], padded=False)
    for parts in ((Part(),), cases[2], cases[4], (without_padding,)):  # no earlier entries
        found = attend(queries, keys[:, :, 3:], values[:, :, 3:], parts)
        torch.testing.assert_close(found, slow(queries, keys[:, :, 3:], values[:, :, 3:], parts, None))
    last = queries[:, :, -1:]
    for part in (Part(), Part(entries=by_kv, padded=False), Part(entries=by_kv[:, :1], lost=lost)):
        torch.testing.assert_close(attend(last, keys, values, (part,)), slow(last, keys, values, (part,), None))
