"""Asking a model: an answer with its logits, a further turn on the kept cache, and a batch beside its rows alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.families import IMAGE, VIDEO, Family, Row
from tests.reference import positions_of

CLOSE = dict(atol=1e-4, rtol=1e-4)


def answer(model: Any, x: dict[str, Any], new: int, **settings: Any) -> tuple[Tensor, Tensor, Any]:
    """New tokens (rows, new), their logits (rows, new, vocabulary), and the cache; greedy."""
    settings |= dict(do_sample=False, output_logits=True, return_dict_in_generate=True)
    out = model.generate(**x, max_new_tokens=new, **settings)
    return out.sequences[:, x["input_ids"].shape[1] :], torch.stack(out.logits, 1), out.past_key_values


def further_turn(model: Any, family: Family, first: Row, more: Row) -> dict[str, Any]:
    """What a model is given, beside the cache of a first turn, to go on with more: new token ids at their positions."""
    both, begin = first.then(more), len(first.ids)
    x = family.inputs(both, new=(more,))
    positions = positions_of(model, family, both)[:, begin:]
    x |= {"position_ids": positions if len(positions) == 1 else positions[:, None]}
    return x | {name: x[name][:, begin:] for name in ("input_ids", "mm_token_type_ids") if name in x}


def several_rows(family: Family) -> list[Row]:
    """Of different lengths: with a picture, with none, with two, with a picture and a video if there are such."""
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(9, seed=2), family.row(1, IMAGE, 2, IMAGE, 4, seed=4)]
    return rows + ([family.row(1, VIDEO, 2, IMAGE, 2, seed=6)] if VIDEO in family.kinds else [])


def check_rows_alone(model: Any, family: Family, rows: list[Row], new: int = 5) -> None:
    """Rows of a padded batch are what they are alone, token by token."""
    tokens, logits, _ = answer(model, family.inputs(*rows), new)
    for i, row in enumerate(rows):
        expected = answer(model, family.inputs(row), new)
        assert torch.equal(tokens[i], expected[0][0])
        torch.testing.assert_close(logits[i], expected[1][0], **CLOSE)


def check_beams_alone(model: Any, family: Family, rows: list[Row], new: int = 5, beams: int = 3) -> None:
    """So are beams; with one picture or video per row, since older transformers mix up those of a row."""
    settings = dict(num_beams=beams, max_new_tokens=new, do_sample=False)
    together = model.generate(**family.inputs(*rows), **settings)[:, -new:]
    for i, row in enumerate(rows):
        assert torch.equal(together[i], model.generate(**family.inputs(row), **settings)[0, -new:])


def check_padding_and_beams(model: Any, family: Family) -> None:
    """Both, on `several_rows` and on two prompts with a picture."""
    check_rows_alone(model, family, several_rows(family))
    check_beams_alone(model, family, [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, seed=3)])
