"""Chains: a method of every place with methods of all others, as if each of them had been carried out by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

import vtprune
from tests.asking import answer, check_padding_and_beams
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.reference import bare_run, decisions, feeding, positions_of, whole

CLOSE = dict(atol=1e-4, rtol=1e-4)
NEW = 4

# One method for every place, in order.
PLACES = {
    "encoder input": ("resize", {"keep": 0.6}),
    "encoder layer": ("tome", {"keep": 0.6}),
    "encoder output": ("divprune", {"keep": 0.6}),
    "decoder layer": ("fastv", {"layer": 2, "keep": 0.5}),
    "decoder attention": ("ee_mllm", {"layer": 3, "update": "frozen"}),
    "decoder cache": ("snapkv", {"keep": 0.5}),
}
ANY_SIZE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
WITHOUT = {name: ["encoder layer" if name in ANY_SIZE else "encoder input"] for name in FAMILIES}
WITHOUT["vipllava"].append("encoder layer")

# What methods at decoder layers ask for, beside methods that evict from the very layers that they ask.
ASKING = [
    [("pyramiddrop", {"layers": (1, 2, 4), "keep": 0.2}), ("h2o", {"keep": 0.4})],  # the layer ahead
    [("transprune", {"layers": (2, 3), "keep": 0.3}), ("keyformer", {"keep": 0.4, "queries": "all"})],  # what was noted
    [("sparsevlm", {"layers": (1, 3), "keep": 0.3, "recycle": 0.0}), ("a2sf", {"keep": 0.4})],  # rows of text
    [("corematching", {}), ("h2o", {"keep": 0.4, "recent": 0.5})],  # neurons
    [("aim", {}), ("snapkv", {"keep": 0.4, "pool": "max"})],  # queries and keys
    [("todre", {}), ("snapkv", {"keep": 3})],  # everything leaves
    [("showui", {"keep": 0.3, "threshold": 70.0, "skip_layers": (1, 3)}), ("exit", {"layer": 4}), ("h2o", {})],
]
# What the plain loop does not do: reads of a part of the cache, entries in few bits, entries that merge.
BEYOND = [
    [("gemfilter", {"keep": 0.5}), ("zipvl", {})],
    [("fastv", {"layer": 2, "keep": 0.5}), ("tokenselect", {"keep": 0.5, "reuse": None})],
    [("transprune", {"keep": 0.5}), ("ee_mllm", {"layer": 3}), ("zipcache", {})],
    [("divprune", {"keep": 0.6}), ("yopo", {"window": 3, "layer": 4, "mlp": 4}), ("spatten", {"keep": 0.5})],
    [("pyramiddrop", {"keep": 0.3}), ("fasa", {}), ("ems", {"keep": 0.5})],
]
UNBOUNDED = ("todre", "corematching", "exit", "ee_mllm")  # there is no budget at which they change nothing
ASKED = ("llava_next", "qwen3_vl", "internvl")


def available(family):
    """The methods of a family's places."""
    return [method for place, method in PLACES.items() if place not in WITHOUT[family]]


def named(chain):
    return "+".join(name for name, _ in chain)


PAIRS = [(name, list(pair)) for name in FAMILIES for pair in itertools.combinations(available(name), 2)]
WHOLE = [(name, available(name)) for name in FAMILIES]
FURTHER = [(name, chain) for name in ASKED for chain in BEYOND]
SOME = WHOLE + [(name, chain) for name in ASKED for chain in ASKING]


def matrix(chains):
    return pytest.mark.parametrize(("name", "chain"), chains, ids=lambda x: x if isinstance(x, str) else named(x))


@pytest.fixture
def kind(name):
    return name, "sdpa"


@matrix(PAIRS + SOME)
@torch.no_grad()
def test_equals_a_plain_loop(model, family, chain):
    """A prompt with several pictures, its answer, and a second turn with a picture of its own."""
    row = family.row(3, IMAGE, 2, VIDEO if VIDEO in family.kinds else IMAGE, 6, seed=1)
    second = family.row(2, IMAGE, 4, seed=5)
    with vtprune.applied(model, chain), feeding(model) as seen:
        tokens, logits, cache = answer(model, family.inputs(row), NEW)
        decided = decisions(model, row)
        first = vtprune.report(model)
        conversation = row.then(tokens[0, :-1], second)
        positions = positions_of(model, family, conversation)
        start = len(conversation.ids) - len(second.ids)
        here = positions[:, None, start:] if len(positions) > 1 else positions[:, start:]
        x = {k: v for k, v in family.inputs(second).items() if k != "attention_mask"}
        again = model(**x, past_key_values=cache, position_ids=here, use_cache=True).logits
        later = decisions(model, second)
        calls = [seen[0], seen[-1]]
    parts = [(decided.entered.nonzero().squeeze(1), calls[0])]
    parts.append((later.entered.nonzero().squeeze(1) + start, calls[1]))
    everything = whole(model, conversation, parts)
    expected, _ = bare_run(model, everything, positions, decided.extend(NEW - 1, later))
    torch.testing.assert_close(again, expected[:, -again.shape[1] :], **CLOSE)
    end = expected.shape[1] - again.shape[1]
    torch.testing.assert_close(logits, expected[:, end - NEW : end], **CLOSE)
    assert {p.method for p in first.places} == {name for name, _ in chain}
    assert sum(p.flops_saved for p in first.places) == first.prefill_flops_before - first.prefill_flops_after
    assert sum(p.kv_bytes_saved for p in first.places) == first.kv_bytes_before - first.kv_bytes_after


@matrix([pair for pair in PAIRS if pair[0] in ASKED] + SOME + FURTHER)
@torch.no_grad()
def test_batch_equals_its_rows_alone(model, family, chain):
    """With padding on the left, a row without pictures, and beams."""
    with vtprune.applied(model, chain):
        check_padding_and_beams(model, family)


@matrix(SOME)
@torch.no_grad()
def test_keeping_everything_changes_no_bit(model, family, chain):
    rows = [family.row(5, IMAGE, 7), family.row(4, seed=2), family.row(3, IMAGE, 2, IMAGE, 6, seed=1)]
    x = family.inputs(*rows)
    expected = answer(model, x, NEW)
    budgets = [(name, parameters) for name, parameters in chain if name not in UNBOUNDED]
    everything = [(name, {**parameters, "keep": 1.0}) for name, parameters in budgets]
    with vtprune.applied(model, everything):
        found = answer(model, x, NEW)
        assert torch.equal(found[1], expected[1])
        report = vtprune.report(model)
        assert report.visual_tokens_after == report.visual_tokens_before
        assert report.kv_bytes_after == report.kv_bytes_before
        assert report.prefill_flops_after == report.prefill_flops_before
    with vtprune.applied(model, chain):
        assert not torch.equal(answer(model, x, NEW)[1], expected[1])
    assert torch.equal(answer(model, x, NEW)[1], expected[1])


@matrix(SOME + FURTHER)
def test_other_ways_of_running(model, family, chain):
    """Twice, without a cache, in inference mode, with a loss, by another attention implementation."""
    rows = [family.row(5, IMAGE, 7), family.row(3, IMAGE, 2, seed=1)]
    x = family.inputs(*rows)
    labels = x["input_ids"].masked_fill(x["input_ids"] < 10, -100)
    with vtprune.applied(model, chain):
        with torch.no_grad():
            expected = answer(model, x, NEW)
            assert torch.equal(answer(model, x, NEW)[1], expected[1])
            last = model(**x, use_cache=False).logits[:, -1]
            torch.testing.assert_close(last, expected[1][:, 0], **CLOSE)
        with torch.inference_mode():
            tokens, logits, cache = answer(model, x, NEW)
            assert torch.equal(logits, expected[1])
        with torch.no_grad():  # goes on with what was made in inference mode
            model(input_ids=tokens[:, -1:], past_key_values=cache)
        losses = [model(**x, labels=labels, use_cache=cached).loss for cached in (True, False)]
        torch.testing.assert_close(losses[0], losses[1])
        losses[0].backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        model.zero_grad()
        for attention in ("eager", "vtprune"):
            model.set_attn_implementation({"text_config": attention, "vision_config": "sdpa"})
            with torch.no_grad():
                torch.testing.assert_close(answer(model, x, NEW)[1], expected[1], **CLOSE)
        model.set_attn_implementation("sdpa")
