"""Correctness as equivalences: what an applied model computes equals a plain run with the same decisions."""

from __future__ import annotations

import pytest
import torch

import vtprune
from tests.reference import all_features, bare_run, decisions, embed
from tests.tiny import ENCODES_FIRST, PAD, TOKENS, batch, picture, prompt

CLOSE = dict(atol=1e-4, rtol=1e-4)


def row_reference(model, name, parameters, ids, pixels, masked=False):
    """Decisions, logits and left slots of one row: decided by the applied model, computed by the bare one."""
    with vtprune.applied(model, name, **parameters):
        model(input_ids=ids[None], pixel_values=pixels)
        features = all_features(model, pixels)
        decided = decisions(model, ids)
    logits, slots = bare_run(model, embed(model, ids, features), decided, masked=masked)
    return decided, features, logits, slots


@torch.no_grad()
def test_single_row(model, method):
    ids, pixels = prompt(5, 0, 7), picture()
    _, _, expected, slots = row_reference(model, *method, ids, pixels)
    with vtprune.applied(model, method[0], **method[1]):
        logits = model(input_ids=ids[None], pixel_values=pixels).logits
        report = vtprune.report(model)
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert report.visual_tokens_before == TOKENS
    assert report.visual_tokens_after == len(slots) - 12 < TOKENS


@torch.no_grad()
def test_removing_between_layers_equals_masking(model, method):
    ids, pixels = prompt(5, 0, 7), picture()
    decided, _, removed, slots = row_reference(model, *method, ids, pixels)
    if not decided.cuts or decided.compact_cuts:
        pytest.skip("removes nothing between decoder layers at original positions")
    _, _, masked, masked_slots = row_reference(model, *method, ids, pixels, masked=True)
    torch.testing.assert_close(removed, masked, **CLOSE)
    assert slots.tolist() == masked_slots.tolist()


@torch.no_grad()
def test_keeping_everything_changes_no_bit(model, method):
    name, parameters = method
    if "keep" not in parameters and name != "todre":
        pytest.skip("has no budget")
    if name == "todre":
        pytest.skip("its second stage removes all tokens")
    x = {**batch(prompt(5, 0, 7), prompt(3, 0, 2)), "pixel_values": picture(2)}
    expected = model(**x).logits
    with vtprune.applied(model, name, **{**parameters, "keep": 1.0}):
        assert torch.equal(model(**x).logits, expected)
        assert vtprune.report(model).visual_tokens_after == 2 * TOKENS


@torch.no_grad()
def test_padded_batch_equals_its_rows_alone(pruned):
    rows = [prompt(5, 0, 7, seed=1), prompt(9, seed=2), prompt(2, 0, 3, seed=3), prompt(1, 0, 2, 0, 4, seed=4)]
    pixels = picture(4)
    shown = [pixels[:1], None, pixels[1:2], pixels[2:]]
    x = {**batch(*rows), "pixel_values": pixels}
    together = pruned(**x).logits[:, -1]
    generated = pruned.generate(**x, max_new_tokens=5, do_sample=False)[:, x["input_ids"].shape[1] :]
    for i, (row, pictures) in enumerate(zip(rows, shown, strict=True)):
        alone = {"input_ids": row[None]} if pictures is None else {"input_ids": row[None], "pixel_values": pictures}
        torch.testing.assert_close(together[i], pruned(**alone).logits[0, -1], **CLOSE)
        answer = pruned.generate(**alone, max_new_tokens=5, do_sample=False)[0, len(row) :]
        assert generated[i].tolist() == answer.tolist()


@torch.no_grad()
def test_right_padded_batch_keeps_the_same_logits(pruned):
    rows = [prompt(5, 0, 7, seed=1), prompt(2, 0, 3, seed=3)]
    left = {**batch(*rows), "pixel_values": picture(2)}
    right = {**batch(*rows, side="right"), "pixel_values": picture(2)}
    torch.testing.assert_close(pruned(**left).logits[:, -1], pruned(**right).logits[:, -1], **CLOSE)


@torch.no_grad()
def test_two_pictures_in_one_prompt(model, method):
    ids, pixels = prompt(3, 0, 2, 0, 6), picture(2)
    _, _, expected, _ = row_reference(model, *method, ids, pixels)
    with vtprune.applied(model, method[0], **method[1]):
        torch.testing.assert_close(model(input_ids=ids[None], pixel_values=pixels).logits, expected, **CLOSE)
        assert [p.index for p in vtprune.report(model).pictures] == [0, 1]


@torch.no_grad()
def test_text_only_prompt_is_untouched(model, method):
    x = batch(prompt(9), prompt(4, seed=1))
    expected, answer = model(**x).logits, model.generate(**x, max_new_tokens=4, do_sample=False)
    with vtprune.applied(model, method[0], **method[1]):
        assert torch.equal(model(**x).logits, expected)
        assert torch.equal(model.generate(**x, max_new_tokens=4, do_sample=False), answer)


@torch.no_grad()
def test_cached_decoding_equals_recomputing(model, method):
    ids, pixels, new = prompt(5, 0, 7), picture(), 6
    name, parameters = method
    with vtprune.applied(model, name, **parameters):
        out = model.generate(
            input_ids=ids[None],
            pixel_values=pixels,
            max_new_tokens=new,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        decided = decisions(model, ids)
        features = all_features(model, pixels)
    sequence = out.sequences[0]
    assert len(sequence) == len(ids) + new
    after = torch.ones(new, dtype=torch.bool)
    decided.entered = torch.cat((decided.entered, after))
    decided.cuts = {layer: torch.cat((kept, after)) for layer, kept in decided.cuts.items()}
    expected, _ = bare_run(model, embed(model, sequence, features), decided)
    torch.testing.assert_close(torch.stack(out.logits, 1), expected[:, -new - 1 : -1], **CLOSE)
    assert out.past_key_values.get_seq_length() == len(sequence) - 1


@torch.no_grad()
def test_decoding_without_a_cache(pruned, method):
    if any(p.startswith("decoder") for p in _places(method)):
        pytest.skip("without a cache, every step decides again by its own last token, as the authors' code does")
    x = {"input_ids": prompt(5, 0, 7)[None], "pixel_values": picture(), "do_sample": False, "max_new_tokens": 5}
    assert torch.equal(pruned.generate(**x, use_cache=False), pruned.generate(**x))


@torch.no_grad()
def test_plain_forward_without_a_cache(pruned):
    x = {**batch(prompt(5, 0, 7), prompt(3, 0, 2)), "pixel_values": picture(2)}
    out = pruned(**x, use_cache=False)
    assert out.past_key_values is None
    torch.testing.assert_close(out.logits, pruned(**x).logits, **CLOSE)


@torch.no_grad()
def test_sampling_is_reproducible(pruned):
    x = {"input_ids": prompt(5, 0, 7)[None], "pixel_values": picture(), "max_new_tokens": 6, "do_sample": True}
    torch.manual_seed(3)
    first = pruned.generate(**x)
    torch.manual_seed(3)
    assert torch.equal(first, pruned.generate(**x))


@torch.no_grad()
def test_beam_search_equals_beam_search_without_a_cache_or_padding(pruned, method):
    rows = [prompt(5, 0, 7, seed=1), prompt(2, 0, 3, seed=3)]
    settings = dict(num_beams=3, num_return_sequences=2, max_new_tokens=5, do_sample=False)
    x = {**batch(*rows), "pixel_values": picture(2)}
    together = pruned.generate(**x, **settings)[:, -5:]
    assert together.shape[0] == 4
    for i, row in enumerate(rows):
        alone = {"input_ids": row[None], "pixel_values": picture(2)[i : i + 1]}
        assert torch.equal(together[2 * i : 2 * i + 2], pruned.generate(**alone, **settings)[:, -5:])
    if not any(p.startswith("decoder") for p in _places(method)):
        assert torch.equal(together, pruned.generate(**x, **settings, use_cache=False)[:, -5:])


@torch.no_grad()
def test_several_returned_sequences(pruned):
    # Older transformers mixes up the pictures of a row that has several, with or without vtprune.
    second = prompt(2, 0, 1, 0, 3) if ENCODES_FIRST else prompt(2, 0, 4)
    x = {**batch(prompt(5, 0, 7), second), "pixel_values": picture(3 if ENCODES_FIRST else 2)}
    torch.manual_seed(0)
    out = pruned.generate(**x, do_sample=True, num_return_sequences=3, max_new_tokens=4)
    assert out.shape == (6, x["input_ids"].shape[1] + 4)
    greedy = pruned.generate(**x, do_sample=True, top_k=1, num_return_sequences=3, max_new_tokens=4)
    for i in range(2):
        assert torch.equal(greedy[3 * i], greedy[3 * i + 1])
        assert torch.equal(greedy[3 * i], greedy[3 * i + 2])


@torch.no_grad()
@pytest.mark.parametrize("second_picture", [False, True], ids=["text", "picture"])
@pytest.mark.parametrize("padded", [False, True], ids=["even", "padded"])
def test_second_turn_on_the_kept_cache(model, method, second_picture, padded):
    """Both turns equal a bare run over the whole conversation with the decisions that the turns made."""
    name, parameters = method
    first = [prompt(5, 0, 7, seed=1)] + ([prompt(3, 0, 2, seed=2)] if padded else [])
    more = [(prompt(2, 0, 4, seed=5) if second_picture else prompt(6, seed=5))] + (
        [prompt(1, 0, 5, seed=6) if second_picture else prompt(6, seed=6)] if padded else []
    )
    rows, new = len(first), 3
    pixels, more_pixels = picture(rows), picture(rows, seed=9)
    with vtprune.applied(model, name, **parameters):
        x = batch(*first)
        out = model.generate(
            **x, pixel_values=pixels, max_new_tokens=new, do_sample=False, return_dict_in_generate=True
        )
        turn_one = [decisions(model, first[r], r) for r in range(rows)]
        features_one = [all_features(model, pixels[r : r + 1]) for r in range(rows)]
        ids = torch.cat((out.sequences, torch.stack(more)), dim=1)
        mask = torch.cat((x["attention_mask"], torch.ones(rows, new + len(more[0]), dtype=torch.long)), dim=1)
        assert out.past_key_values.get_seq_length() == out.sequences.shape[1] - 1
        extra = {"pixel_values": more_pixels} if second_picture else {}
        again = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=out.past_key_values,
            max_new_tokens=new,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **extra,
        )
        tail = [torch.cat((out.sequences[r, -1:], more[r])) for r in range(rows)]  # what the second turn feeds in
        turn_two = [decisions(model, tail[r], r) for r in range(rows)] if second_picture else None
        features_two = [all_features(model, more_pixels[r : r + 1]) for r in range(rows)]
    for r in range(rows):
        conversation = torch.cat((first[r], out.sequences[r, -new:], more[r], again.sequences[r, -new:]))
        features = torch.cat((features_one[r], features_two[r])) if second_picture else features_one[r]
        decided = turn_one[r]
        ones = lambda n: torch.ones(n, dtype=torch.bool)  # noqa: E731
        if turn_two is not None:
            decided.entered = torch.cat((decided.entered, ones(new - 1), turn_two[r].entered, ones(new)))
            layers = set(decided.cuts) | set(turn_two[r].cuts)
            decided.cuts = {
                i: torch.cat(
                    (
                        decided.cuts.get(i, ones(len(first[r]))),
                        ones(new - 1),
                        turn_two[r].cuts.get(i, ones(len(tail[r]))),
                        ones(new),
                    )
                )
                for i in layers
            }
        else:
            rest = ones(len(conversation) - len(first[r]))
            decided.entered = torch.cat((decided.entered, rest))
            decided.cuts = {i: torch.cat((kept, rest)) for i, kept in decided.cuts.items()}
        expected, _ = bare_run(model, embed(model, conversation, features), decided)
        torch.testing.assert_close(torch.stack(again.logits, 1)[r], expected[0, -new - 1 : -1], **CLOSE)


@torch.no_grad()
def test_plain_forward_on_the_kept_cache_counts_on(model, method):
    """Without position ids, a call on the cache goes on at the logical length, as generate does."""
    ids, more, pixels = prompt(5, 0, 7), prompt(4, seed=5), picture()
    with vtprune.applied(model, method[0], **method[1]):
        cache = model(input_ids=ids[None], pixel_values=pixels, use_cache=True).past_key_values
        assert cache.get_seq_length() == len(ids)
        logits = model(input_ids=more[None], past_key_values=cache).logits
        decided, features = decisions(model, ids), all_features(model, pixels)
        assert cache.get_seq_length() == len(ids) + len(more)
    ones = torch.ones(len(more), dtype=torch.bool)
    decided.entered = torch.cat((decided.entered, ones))
    decided.cuts = {i: torch.cat((kept, ones)) for i, kept in decided.cuts.items()}
    expected, _ = bare_run(model, embed(model, torch.cat((ids, more)), features), decided)
    torch.testing.assert_close(logits, expected[:, -len(more) :], **CLOSE)


def test_loss_is_the_loss_on_the_surviving_tokens(model, method):
    ids, pixels = prompt(5, 0, 7), picture()
    with torch.no_grad():
        _, _, expected, slots = row_reference(model, *method, ids, pixels)
    with vtprune.applied(model, method[0], **method[1]):
        for labels in (ids[None], ids[None].masked_fill(ids[None] == model.config.image_token_id, -100)):
            loss = model(input_ids=ids[None], pixel_values=pixels, labels=labels, use_cache=False).loss
            target = torch.nn.functional.cross_entropy(expected[0, :-1], labels[0, slots][1:])
            torch.testing.assert_close(loss, target, **CLOSE)


def test_loss_of_a_padded_batch_equals_its_rows(pruned):
    rows = [prompt(5, 0, 7, seed=1), prompt(2, 0, 3, seed=3)]
    for side in ("left", "right"):
        x = {**batch(*rows, side=side), "pixel_values": picture(2)}
        labels = x["input_ids"].masked_fill((x["input_ids"] == PAD) | (x["input_ids"] == 1), -100)
        loss = pruned(**x, labels=labels).loss
        total, count = 0.0, 0
        for i, row in enumerate(rows):
            label = row.masked_fill(row == 1, -100)[None]
            n = int((label[0, 1:] != -100).sum())
            total += float(pruned(input_ids=row[None], pixel_values=picture(2)[i : i + 1], labels=label).loss) * n
            count += n
        assert abs(float(loss) - total / count) < 1e-4


@torch.no_grad()
def test_logits_to_keep(pruned):
    x = {"input_ids": prompt(5, 0, 7)[None], "pixel_values": picture()}
    full = pruned(**x).logits
    last = len(x["input_ids"][0])
    torch.testing.assert_close(pruned(**x, logits_to_keep=3).logits, full[:, -3:], **CLOSE)
    some = torch.tensor([0, 2, last - 4, last - 1])
    torch.testing.assert_close(pruned(**x, logits_to_keep=some).logits, full[:, [0, 2, -4, -1]], **CLOSE)
    assert some.tolist() == [0, 2, last - 4, last - 1], "the caller's tensor is left alone"
    gone = set(range(5, 5 + TOKENS)) - {5 + t for t in vtprune.report(pruned).pictures[0].kept}
    with pytest.raises(ValueError, match="removed"):
        pruned(**x, logits_to_keep=torch.tensor([min(gone)]))


@torch.no_grad()
def test_output_hidden_states(pruned):
    x = {"input_ids": prompt(5, 0, 7)[None], "pixel_values": picture()}
    out = pruned(**x, output_hidden_states=True)
    assert len(out.hidden_states) == len(pruned.model.language_model.layers) + 1
    assert out.hidden_states[-1].shape[1] == out.logits.shape[1]
    torch.testing.assert_close(pruned.lm_head(out.hidden_states[-1]), out.logits, **CLOSE)


@torch.no_grad()
def test_inputs_embeds(pruned):
    ids, pixels = prompt(5, 0, 7), picture()
    embeds = pruned.get_input_embeddings()(ids[None])
    by_ids = pruned(input_ids=ids[None], pixel_values=pixels).logits
    torch.testing.assert_close(pruned(inputs_embeds=embeds, pixel_values=pixels).logits, by_ids, **CLOSE)
    settings = dict(pixel_values=pixels, max_new_tokens=4, do_sample=False)
    expected = pruned.generate(input_ids=ids[None], **settings)[:, len(ids) :]
    assert torch.equal(pruned.generate(inputs_embeds=embeds, **settings), expected)


@torch.no_grad()
def test_explicit_position_ids(model, method):
    """Positions that a caller shifts by a constant change nothing, as everywhere with rotary embeddings."""
    ids, pixels = prompt(5, 0, 7), picture()
    with vtprune.applied(model, method[0], **method[1]):
        plain = model(input_ids=ids[None], pixel_values=pixels).logits
        positions = torch.arange(len(ids))[None] + 11
        torch.testing.assert_close(
            model(input_ids=ids[None], pixel_values=pixels, position_ids=positions).logits, plain, **CLOSE
        )


def _places(method) -> list[str]:
    from vtprune.methods import get_method

    return [p.value for p in get_method(method[0]).places]
