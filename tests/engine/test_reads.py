"""Methods that read a part of the cache, inside a model: what a decoded token gets is what a plain loop computes."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.asking import check_padding_and_beams, further_turn
from tests.families import FAMILIES, IMAGE, SORTS
from tests.layer_loop import Rule, check_answer, prompts
from vtprune.engine import attending

CLOSE = dict(atol=1e-4, rtol=1e-4)
METHODS = [
    "tokenselect:keep=0.3",
    "tokenselect:keep=5,first=1,last=2,kernel=3,reuse=0.5",
    "tidaldecode:keep=0.3,first=1,second=2",
    "tidaldecode:keep=0.3,first=0,second=3,share=head",
    "fasa:keep=0.3",
    "token_sparse_attention:keep=0.3,coverage=0.5,layers=(0, 1, 4)",
]

SOME = ("llava-clip", "qwen2_5_vl", "internvl")


@pytest.fixture(params=SORTS)
def kind(request):
    return request.param, "sdpa"


@pytest.fixture
def decided(monkeypatch):
    """What stages decide from now on: layer, what they were shown, and the parts."""
    found = []
    decide = attending._decided

    def noting(stage, layer, step, shown):
        parts = decide(stage, layer, step, shown)
        found.append((layer, shown, parts))
        return parts

    monkeypatch.setattr(attending, "_decided", noting)
    return found


class Decided(Rule):
    """Queries see what the stages named, of one row; heads bring nothing to slots that they did not name."""

    def __init__(self, visual, decided):
        super().__init__(visual)
        self.decided = decided

    def sees(self, layer, head):
        seen = super().sees(layer, head)
        for at, shown, parts in self.decided:
            if at == layer and parts is not None:
                (part,) = parts
                entries = part.entries[0, head * part.entries.shape[1] // shown.heads]
                named = torch.zeros(self.length, dtype=torch.bool).index_fill(0, entries[entries >= 0], True)
                slots = torch.arange(shown.past, shown.past + shown.queries.shape[2])
                seen[slots] &= named
                if part.slots is not None:
                    left_out = slots[~torch.isin(slots - shown.past, part.slots[0, head])]
                    seen[left_out] = False
        return seen


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS)
def test_answers_equal_the_plain_loop(model, family, method, decided):
    for row in prompts(family):
        decided.clear()
        ruled = lambda visual, _: Decided(visual, decided)  # noqa: E731
        _, (tokens, logits, _) = check_answer(model, family, row, method, ruled, new=5)
        acted = {shown.past > 0 for _, shown, parts in decided if parts is not None}
        assert acted == {"token_sparse" not in method}
        dense = model(**family.inputs(row.then(tokens[0]))).logits
        assert (logits[:, -1] - dense[:, -2]).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("kind", SOME, indirect=True)
@pytest.mark.parametrize("method", METHODS)
def test_padded_batches_and_beams_equal_their_rows_alone(model, family, method):
    with vtprune.applied(model, method):
        check_padding_and_beams(model, family)


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS[:5])
def test_a_second_turn_chooses_from_all_pictures(model, family, method, decided):
    """Prompts read everything, so that what precedes the second answer is as without a method."""
    first, more = family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 4, seed=3)
    both = first.then(more)
    with vtprune.applied(model, method):
        cache = model(**family.inputs(first), use_cache=True).past_key_values
        inputs = further_turn(model, family, first, more)
        logits = model(**inputs, past_key_values=cache).logits
        torch.testing.assert_close(logits[:, -1], whole_logits(model, family, both), **CLOSE)
        decided.clear()
        follow = {"position_ids": inputs["position_ids"][..., -1:] + 1, "past_key_values": cache}
        model(input_ids=torch.tensor([[9]]), attention_mask=torch.ones(1, len(both.ids) + 1), **follow)
        visual = both.visual.nonzero()[:, 0]
        read = [part.entries[part.entries >= 0] for _, _, parts in decided if parts is not None for part in parts]
        assert read
        for entries in read:
            chosen = entries[torch.isin(entries, visual)]
            assert 0 < len(chosen.unique()) < len(visual)
            assert len(entries.unique()) - len(chosen.unique()) == len(both.ids) - len(visual) + 1


def whole_logits(model, family, row):
    engine = vtprune.api._engines.pop(model)
    engine.detach()
    logits = model(**family.inputs(row)).logits[:, -1]
    engine.attach()
    vtprune.api._engines[model] = engine
    return logits


@torch.no_grad()
@pytest.mark.parametrize("kind", SOME, indirect=True)
@pytest.mark.parametrize("chain", ["divprune:keep=0.5", "fastv:layer=1,keep=0.5", "random:keep=0.4"])
@pytest.mark.parametrize("method", METHODS)
def test_other_methods_before_them(model, family, method, chain):
    """What left the prompt is not chosen from, and a batch still equals its rows."""
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 9, seed=2)]
    settings = dict(max_new_tokens=4, do_sample=False)
    if "first=0" in method and "fastv" in chain:
        with pytest.raises(ValueError, match="let tokens leave at layer 0 or before"):
            vtprune.apply(model, [chain, method])
        return
    with vtprune.applied(model, [chain, method]):
        x = family.inputs(*rows)
        answers = model.generate(**x, **settings)[:, x["input_ids"].shape[1] :]
        for i, row in enumerate(rows):
            assert torch.equal(answers[i], model.generate(**family.inputs(row), **settings)[0, len(row.ids) :])
        alone = vtprune.report(model)
        assert alone.visual_tokens_after < alone.visual_tokens_before


@torch.no_grad()
def test_heads_read_what_an_eviction_has_left():
    family = FAMILIES["llava-clip"]
    model, row = family.model(), family.row(5, IMAGE, 7)
    settings = dict(max_new_tokens=6, do_sample=False, output_logits=True, return_dict_in_generate=True)
    logits = {}
    for chain in (["snapkv:keep=0.5"], ["fasa:keep=0.5", "snapkv:keep=0.5"], ["fasa:keep=1.0", "snapkv:keep=0.5"]):
        with vtprune.applied(model, chain):
            logits[chain[0]] = torch.stack(model.generate(**family.inputs(row), **settings).logits, 1)
            assert vtprune.report(model).kv_bytes_after < vtprune.report(model).kv_bytes_before
    assert torch.equal(logits["fasa:keep=1.0"], logits["snapkv:keep=0.5"])
    assert torch.equal(logits["fasa:keep=0.5"][:, 0], logits["snapkv:keep=0.5"][:, 0])
    assert (logits["fasa:keep=0.5"] - logits["snapkv:keep=0.5"])[:, 1:].abs().max() > 1e-3


@torch.no_grad()
def test_a_cropped_cache_is_counted_again():
    family = FAMILIES["llava-clip"]
    model, row = family.model(), family.row(5, IMAGE, 7)
    with vtprune.applied(model, "tokenselect:keep=0.3"):
        cache = model(**family.inputs(row), use_cache=True).past_key_values
        for token in (9, 10, 11):
            model(input_ids=torch.tensor([[token]]), past_key_values=cache)
        cache.crop(-20)
        short = model(input_ids=torch.tensor([[9]]), past_key_values=cache).logits
        again = model(**family.inputs(row), use_cache=True).past_key_values
        again.crop(-17)
        torch.testing.assert_close(model(input_ids=torch.tensor([[9]]), past_key_values=again).logits, short, **CLOSE)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (["tokenselect", "snapkv"], "tokenselect reads the same entries in several heads, but snapkv lets each head"),
        (["tidaldecode", "h2o"], "fasa, which reads head by head"),
        (["fastv:layer=3", "tidaldecode:first=1"], "fastv these hold different ones from layer 3 on"),
        (["showui:skip_layers=(2, 4)", "tidaldecode:first=1"], "showui these hold different ones from layer 2 on"),
        (["tokenselect", "token_sparse_attention"], "both act at the decoder attention of layer 2"),
    ],
)
def test_refuses_what_would_read_other_entries(chain, message):
    family = FAMILIES["llava-clip" if "showui" not in chain[0] else "qwen2_5_vl"]
    with pytest.raises(ValueError, match=message):
        vtprune.apply(family.model(), chain)


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "saves", "note"),
    [
        ("tokenselect", False, "tokenselect may read less of the cache from the second token of an answer on."),
        ("token_sparse_attention", True, "token_sparse_attention: 3 of 5 decoder layers compute"),
    ],
)
def test_the_report_says_what_is_saved_and_when(method, saves, note):
    family = FAMILIES["llava-clip"]
    model = family.model()
    with vtprune.applied(model, method):
        model(**family.inputs(family.row(5, IMAGE, 7)))
        report = vtprune.report(model)
    assert report.kv_bytes_after == report.kv_bytes_before
    assert (report.prefill_flops_after < report.prefill_flops_before) == saves
    assert len(report.notes) == 1
    assert report.notes[0].startswith(note)


def test_takes_what_leaves_before():
    model = FAMILIES["llava-clip"].model()
    for chain in (["fastv:layer=2", "tidaldecode"], ["tidaldecode:first=3,second=3", "h2o"], ["fasa", "snapkv"]):
        if chain[-1] == "h2o":
            with pytest.raises(ValueError, match="the layers \\[3, 4\\]"):
                vtprune.apply(model, chain)
            continue
        vtprune.apply(model, chain)
