"""Conversations on the kept cache equal a bare run over the whole conversation with the decisions of their turns."""

from __future__ import annotations

import torch

import vtprune
from tests.cases import EAGER, everywhere, methods_twice, other_rules, over, paths_everywhere
from tests.families import IMAGE, Row
from tests.reference import bare_run, decisions, feeding, positions_of, whole

CLOSE = dict(atol=1e-4, rtol=1e-4)
NEW = 3


def turn(model, family, rows, asked, cache):
    """Answer what the conversations end with, the first prompt or more text and pictures on the kept cache."""
    x = family.inputs(*rows, new=asked)
    if family.typed and cache is not None:
        # transformers computes positions from all pictures of a conversation, but is only given the new ones.
        slots = x["input_ids"].shape[1]
        positions = torch.zeros(3, len(rows), slots, dtype=torch.long)
        for i, row in enumerate(rows):
            positions[:, i, -len(row.ids) :] = positions_of(model, family, row)
        x["position_ids"] = positions
    return model.generate(
        **x,
        past_key_values=cache,
        max_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )


@over([*everywhere(), *other_rules()], eager=methods_twice("turns", EAGER))
@torch.no_grad()
def test_three_turns_of_a_padded_batch(model, family, method):
    three_turns(model, family, method, [family.row(5, IMAGE, 7, seed=1), family.row(3, IMAGE, 2, seed=3)])


@over(paths_everywhere("turns of one row"))
@torch.no_grad()
def test_three_turns_of_one_row(model, family, method):
    three_turns(model, family, method, [family.row(5, IMAGE, 7, seed=1)])


def three_turns(model, family, method, rows):
    """A picture, a second one on the kept cache, and text."""
    # What is added must be equally long in all rows: padding between turns is nobody's business.
    second = [family.row(2, IMAGE, 4, seed=5), family.row(2, IMAGE, 4, seed=5)][: len(rows)]
    third = [family.row(6, seed=6), family.row(6, seed=7)][: len(rows)]
    numbers = range(len(rows))
    with vtprune.applied(model, method[0], **method[1]):
        with feeding(model) as seen:
            out = turn(model, family, rows, tuple(rows), None)
        decided = [decisions(model, row, i) for i, row in enumerate(rows)]
        parts = [
            [(d.entered.nonzero().squeeze(1), seen[0].row(i, int(d.entered.sum())))] for i, d in enumerate(decided)
        ]
        so_far = [row.then(out.sequences[i, -NEW:], second[i]) for i, row in enumerate(rows)]

        # The last answered token has not been fed yet: it goes in with what is added.
        added = [Row(torch.cat((out.sequences[i, -1:], second[i].ids)), second[i].items) for i in numbers]
        with feeding(model) as seen:
            out = turn(model, family, so_far, tuple(second), out.past_key_values)
        later = [decisions(model, row, i) for i, row in enumerate(added)]
        for i in numbers:
            slots = later[i].entered.nonzero().squeeze(1) + len(so_far[i].ids) - len(added[i].ids)
            parts[i].append((slots, seen[0].row(i, len(slots))))
            decided[i] = decided[i].extend(NEW - 1, later[i])

        whole_rows = [row.then(out.sequences[i, -NEW:], third[i]) for i, row in enumerate(so_far)]
        out = turn(model, family, whole_rows, (), out.past_key_values)
    for i, row in enumerate(whole_rows):
        conversation = row.then(out.sequences[i, -NEW:])
        everything = whole(model, conversation, parts[i])
        rest = len(conversation.ids) - len(decided[i].entered)
        positions = positions_of(model, family, conversation)
        expected, _ = bare_run(model, everything, positions, decided[i].extend(rest))
        torch.testing.assert_close(torch.stack(out.logits, 1)[i], expected[0, -NEW - 1 : -1], **CLOSE)


@over(methods_twice("a turn of text"))
@torch.no_grad()
def test_a_second_turn_of_text(model, family, method):
    row, more = family.row(5, IMAGE, 7, seed=1), family.row(6, seed=5)
    with vtprune.applied(model, method[0], **method[1]), feeding(model) as seen:
        out = turn(model, family, [row], (row,), None)
        decided = decisions(model, row)
        conversation = row.then(out.sequences[0, -NEW:], more)
        assert out.past_key_values.get_seq_length() == len(row.ids) + NEW - 1
        again = turn(model, family, [conversation], (), out.past_key_values)
    conversation = conversation.then(again.sequences[0, -NEW:])
    everything = whole(model, conversation, [(decided.entered.nonzero().squeeze(1), seen[0])])
    positions = positions_of(model, family, conversation)
    expected, _ = bare_run(model, everything, positions, decided.extend(len(conversation.ids) - len(row.ids)))
    torch.testing.assert_close(torch.stack(again.logits, 1), expected[:, -NEW - 1 : -1], **CLOSE)
