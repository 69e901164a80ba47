"""Correctness as equivalences: what an applied model computes equals a plain run with the same decisions."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.asking import check_beams_alone, check_rows_alone, several_rows
from tests.cases import EAGER, everywhere, methods_twice, other_rules, over, paths_everywhere, position_rule
from tests.families import FAMILIES, IMAGE, PAD, VIDEO
from tests.layer_loop import prompts
from tests.reference import bare_run, decisions, feeding, positions_of, reference, run, whole
from tests.tiny import ENCODES_FIRST
from vtprune.methods import Place, get_method

CLOSE = dict(atol=1e-4, rtol=1e-4)
INSIDE = {Place.ATTENTION, Place.MLP, Place.CACHE}  # where no token leaves the prompt
VIDEOS = [name for name, family in FAMILIES.items() if VIDEO in family.kinds]
UNTYPED = [name for name, family in FAMILIES.items() if not family.typed]  # others need token ids for their positions


def needs_removal(pruned, row, family):
    """Skip a test about what removal does to padding, where nothing is removed and padding stays as it is."""
    pruned(**family.inputs(row))
    report = vtprune.report(pruned)
    if report.visual_tokens_after == report.visual_tokens_before:
        pytest.skip("nothing leaves the prompt")


def decides_again(method) -> bool:
    """Whether it decides by the text, which grows from step to step without a cache."""
    cls = get_method(method[0])
    return cls.needs_text or any(place.value.startswith("decoder") for place in cls.places)


@over([*everywhere(), *other_rules()], eager=methods_twice("prefill", EAGER))
@torch.no_grad()
def test_prefill_equals_the_bare_model(model, family, method):
    cls = get_method(method[0])
    for row in prompts(family):
        (decided,), (fed,), logits, report = run(model, family, method, row)
        expected, slots = reference(model, family, row, decided, fed)
        torch.testing.assert_close(logits, expected, **CLOSE)
        assert report.visual_tokens_before == row.tokens == sum(p.tokens for p in report.pictures)
        assert report.visual_tokens_after == len(slots) - row.text == sum(len(p.kept) for p in report.pictures)
        assert [p.index for p in report.pictures] == list(range(len(row.items)))
        assert [p.kind for p in report.pictures] == [item.kind for item in row.items]
        assert (decided.compact_door or decided.compact_cuts) == (position_rule(family.name, method) == "compact")
        # Where several patches make a token, a merge of patches only lets tokens go that have become equal.
        merges = Place.ENCODER_LAYER in cls.places
        equal_only = merges and family.name in ("internvl", "llava_next_video")
        left_alone = cls.needs_video and VIDEO not in [item.kind for item in row.items]
        if decided.owner is not None:  # tokens share hidden states
            assert report.visual_tokens_after == report.visual_tokens_before
            assert equal_only or len(decided.owner.unique()) < len(slots)
        elif not equal_only and not left_alone and not set(cls.places) <= INSIDE:
            assert report.visual_tokens_after < report.visual_tokens_before
        if cls.kind not in ("merging", "frequency") and not {Place.ENCODER_INPUT, Place.ENCODER_LAYER} & set(
            cls.places
        ):
            check_features_are_fed_as_they_are(model, family, row, decided, fed)
        receives = bool(decided.cuts) and min(decided.cuts) < len(fed.deep)  # masked slots get DeepStack features
        if decided.cuts and not decided.compact_cuts and not receives:
            masked, masked_slots = reference(model, family, row, decided, fed, masked=True)
            torch.testing.assert_close(expected, masked, **CLOSE)
            assert slots.tolist() == masked_slots.tolist()


def check_features_are_fed_as_they_are(model, family, row, decided, fed):
    """What a selection lets in is, bit for bit, a subset of what the untouched model feeds."""
    with feeding(model) as seen:
        model(**family.inputs(row))
    slots = decided.entered.nonzero().squeeze(1)
    assert torch.equal(fed.embeds, seen[0].embeds[:, slots])
    for level, untouched in zip(fed.deep, seen[0].deep, strict=True):
        assert torch.equal(level, untouched[:, slots])


@over(everywhere())
@torch.no_grad()
def test_keeping_everything_changes_no_bit(model, family, method):
    name, parameters = method
    if "keep" not in parameters and name != "todre":
        pytest.skip("has no budget")
    if name == "todre":
        pytest.skip("its second stage removes all tokens")
    rows = prompts(family)
    x = family.inputs(*rows)
    expected = model(**x).logits
    with vtprune.applied(model, name, **{**parameters, "keep": 1.0}):
        assert torch.equal(model(**x).logits, expected)
        assert vtprune.report(model).visual_tokens_after == sum(row.tokens for row in rows)


@over(everywhere(), eager=methods_twice("padding", EAGER))
@torch.no_grad()
def test_padded_batch_equals_its_rows_alone(pruned, family):
    check_rows_alone(pruned, family, several_rows(family))


@over(paths_everywhere("padding on the right"))
@torch.no_grad()
def test_right_padded_batch_keeps_the_same_logits(pruned, family):
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, seed=3)]
    needs_removal(pruned, rows[1], family)
    left, right = family.inputs(*rows), family.inputs(*rows, side="right")
    torch.testing.assert_close(pruned(**left).logits[:, -1], pruned(**right).logits[:, -1], **CLOSE)


@over(methods_twice("no pictures"))
@torch.no_grad()
def test_text_only_prompt_is_untouched(model, family, method):
    x = family.inputs(family.row(9), family.row(4, seed=1))
    expected, answer = model(**x).logits, model.generate(**x, max_new_tokens=4, do_sample=False)
    with vtprune.applied(model, method[0], **method[1]):
        assert torch.equal(model(**x).logits, expected)
        assert torch.equal(model.generate(**x, max_new_tokens=4, do_sample=False), answer)


@over([*everywhere(), *other_rules()], eager=methods_twice("decoding", EAGER))
@torch.no_grad()
def test_cached_decoding_equals_recomputing(model, family, method):
    new = 6
    for row in prompts(family)[:: 2 if VIDEO in family.kinds else 1]:
        with vtprune.applied(model, method[0], **method[1]), feeding(model) as seen:
            out = model.generate(
                **family.inputs(row),
                max_new_tokens=new,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            decided = decisions(model, row)
        assert out.sequences.shape[1] == len(row.ids) + new
        slots = decided.entered.nonzero().squeeze(1)
        conversation = row.then(out.sequences[0, len(row.ids) :])
        everything = whole(model, conversation, [(slots, seen[0])])
        positions = positions_of(model, family, conversation)
        expected, _ = bare_run(model, everything, positions, decided.extend(new))
        torch.testing.assert_close(torch.stack(out.logits, 1), expected[:, -new - 1 : -1], **CLOSE)
        assert out.past_key_values.get_seq_length() == len(conversation.ids) - 1


@over(methods_twice("no cache while decoding"))
@torch.no_grad()
def test_decoding_without_a_cache(pruned, family, method):
    if decides_again(method):
        pytest.skip("without a cache, every step decides again by its own text, as the authors' code does")
    x = {**family.inputs(family.row(5, IMAGE, 7)), "do_sample": False, "max_new_tokens": 5}
    assert torch.equal(pruned.generate(**x, use_cache=False), pruned.generate(**x))


@over(paths_everywhere("no cache"))
@torch.no_grad()
def test_plain_forward_without_a_cache(pruned, family):
    x = family.inputs(family.row(5, IMAGE, 7), family.row(3, IMAGE, 2, seed=1))
    out = pruned(**x, use_cache=False)
    assert out.past_key_values is None
    torch.testing.assert_close(out.logits, pruned(**x).logits, **CLOSE)


@over(methods_twice("sampling"))
@torch.no_grad()
def test_sampling_is_reproducible(pruned, family):
    x = {**family.inputs(family.row(5, IMAGE, 7)), "max_new_tokens": 6, "do_sample": True}
    torch.manual_seed(3)
    first = pruned.generate(**x)
    torch.manual_seed(3)
    assert torch.equal(first, pruned.generate(**x))


def mixes_up_tiles(family) -> None:
    if family.name == "internvl" and not ENCODES_FIRST:
        pytest.skip("this transformers repeats tile by tile instead of row by row, with or without vtprune")


@over(paths_everywhere("beams"))
@torch.no_grad()
def test_beam_search_equals_beam_search_without_a_cache_or_padding(pruned, family, method):
    mixes_up_tiles(family)
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, seed=3)]
    settings = dict(num_beams=3, num_return_sequences=2, max_new_tokens=5, do_sample=False)
    x = family.inputs(*rows)
    together = pruned.generate(**x, **settings)[:, -5:]
    assert together.shape[0] == 4
    for i, row in enumerate(rows):
        alone = pruned.generate(**family.inputs(row), **settings)
        assert torch.equal(together[2 * i : 2 * i + 2], alone[:, -5:])
    if not decides_again(method):
        assert torch.equal(together, pruned.generate(**x, **settings, use_cache=False)[:, -5:])


@over(methods_twice("beams over a video", VIDEOS))
@torch.no_grad()
def test_beam_search_over_a_video(pruned, family):
    rows = [family.row(2, VIDEO, 5, seed=1), family.row(2, IMAGE, 1, VIDEO, 3, seed=3)]
    check_beams_alone(pruned, family, rows, new=4, beams=2)


@over(methods_twice("several sequences"))
@torch.no_grad()
def test_several_returned_sequences(pruned, family):
    mixes_up_tiles(family)
    # Older transformers mixes up the pictures of a row that has several, with or without vtprune.
    second = (2, IMAGE, 1, IMAGE, 3) if ENCODES_FIRST else (2, IMAGE, 4)
    x = family.inputs(family.row(5, IMAGE, 7), family.row(*second, seed=1))
    torch.manual_seed(0)
    out = pruned.generate(**x, do_sample=True, num_return_sequences=3, max_new_tokens=4)
    assert out.shape == (6, x["input_ids"].shape[1] + 4)
    greedy = pruned.generate(**x, do_sample=True, top_k=1, num_return_sequences=3, max_new_tokens=4)
    for i in range(2):
        assert torch.equal(greedy[3 * i], greedy[3 * i + 1])
        assert torch.equal(greedy[3 * i], greedy[3 * i + 2])


@over(methods_twice("kept cache"))
@torch.no_grad()
def test_plain_forward_on_the_kept_cache_counts_on(model, family, method):
    """Without position ids, a call on the cache goes on at the logical length, as generate does."""
    row, more = family.row(5, IMAGE, 7), family.row(4, seed=5)
    with vtprune.applied(model, method[0], **method[1]), feeding(model) as seen:
        cache = model(**family.inputs(row), use_cache=True).past_key_values
        assert cache.get_seq_length() == len(row.ids)
        decided = decisions(model, row)
        logits = model(input_ids=more.ids[None], past_key_values=cache).logits
        assert cache.get_seq_length() == len(row.ids) + len(more.ids)
    conversation = row.then(more)
    everything = whole(model, conversation, [(decided.entered.nonzero().squeeze(1), seen[0])])
    positions = positions_of(model, family, conversation)
    expected, _ = bare_run(model, everything, positions, decided.extend(len(more.ids)))
    torch.testing.assert_close(logits, expected[:, -len(more.ids) :], **CLOSE)


@over(methods_twice("loss"))
def test_loss_is_the_loss_on_the_surviving_tokens(model, family, method):
    row = family.row(5, IMAGE, 7)
    with torch.no_grad():
        (decided,), (fed,), _, _ = run(model, family, method, row)
        expected, slots = reference(model, family, row, decided, fed)
    with vtprune.applied(model, method[0], **method[1]):
        for labels in (row.ids[None], row.ids[None].masked_fill(row.visual[None], -100)):
            loss = model(**family.inputs(row), labels=labels, use_cache=False).loss
            target = torch.nn.functional.cross_entropy(expected[0, :-1], labels[0, slots][1:])
            torch.testing.assert_close(loss, target, **CLOSE)


@over(methods_twice("loss of a batch"))
def test_loss_of_a_padded_batch_equals_its_rows(pruned, family):
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, seed=3)]
    needs_removal(pruned, rows[1], family)
    for side in ("left", "right"):
        x = family.inputs(*rows, side=side)
        hidden = (x["input_ids"] == PAD) | (x["input_ids"] == 1)
        loss = pruned(**x, labels=x["input_ids"].masked_fill(hidden, -100)).loss
        total, count = 0.0, 0
        for row in rows:
            label = row.ids.masked_fill(row.visual, -100)[None]
            n = int((label[0, 1:] != -100).sum())
            total += pruned(**family.inputs(row), labels=label).loss.item() * n
            count += n
        assert abs(loss.item() - total / count) < 1e-4


@over(methods_twice("logits to keep"))
@torch.no_grad()
def test_logits_to_keep(pruned, family):
    row = family.row(5, IMAGE, 7)
    x = family.inputs(row)
    full = pruned(**x).logits
    last = len(row.ids)
    torch.testing.assert_close(pruned(**x, logits_to_keep=3).logits, full[:, -3:], **CLOSE)
    some = torch.tensor([0, 2, last - 4, last - 1])
    torch.testing.assert_close(pruned(**x, logits_to_keep=some).logits, full[:, [0, 2, -4, -1]], **CLOSE)
    assert some.tolist() == [0, 2, last - 4, last - 1], "the caller's tensor is left alone"
    visual = row.visual.nonzero().squeeze(1).tolist()
    gone = set(visual) - {visual[t] for t in vtprune.report(pruned).pictures[0].kept}
    if gone:
        with pytest.raises(ValueError, match="removed"):
            pruned(**x, logits_to_keep=torch.tensor([min(gone)]))


@over(methods_twice("hidden states"))
@torch.no_grad()
def test_output_hidden_states(pruned, family):
    out = pruned(**family.inputs(family.row(5, IMAGE, 7)), output_hidden_states=True)
    hidden = out.hidden_states
    if family.name == "qwen3_vl":
        pytest.skip("transformers records none in its decoder")
    assert len(hidden) == len(pruned.model.language_model.layers) + 1
    assert hidden[-1].shape[1] == out.logits.shape[1]
    torch.testing.assert_close(pruned.lm_head(hidden[-1]), out.logits, **CLOSE)


@over(methods_twice("embeddings", UNTYPED))
@torch.no_grad()
def test_inputs_embeds(pruned, family):
    row = family.row(5, IMAGE, 7)
    x = family.inputs(row)
    ids = x.pop("input_ids")
    embeds = pruned.get_input_embeddings()(ids)
    by_ids = pruned(input_ids=ids, **x).logits
    torch.testing.assert_close(pruned(inputs_embeds=embeds, **x).logits, by_ids, **CLOSE)
    settings = dict(max_new_tokens=4, do_sample=False)
    expected = pruned.generate(input_ids=ids, **x, **settings)[:, len(row.ids) :]
    assert torch.equal(pruned.generate(inputs_embeds=embeds, **x, **settings), expected)


@over(paths_everywhere("positions"))
@torch.no_grad()
def test_explicit_position_ids(model, family, method):
    """Positions that a caller shifts by a constant change nothing, as everywhere with rotary embeddings."""
    row = family.row(5, IMAGE, 7)
    positions = positions_of(model, family, row)
    positions = positions if len(positions) == 1 else positions[:, None]
    with vtprune.applied(model, method[0], **method[1]):
        plain = model(**family.inputs(row)).logits
        torch.testing.assert_close(model(**family.inputs(row), position_ids=positions + 11).logits, plain, **CLOSE)
