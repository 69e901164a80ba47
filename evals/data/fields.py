"""One line of a file of questions: from JSON to a `Sample`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from vtprune.evals.data.choices import LETTERS
from vtprune.evals.data.media import Folder
from vtprune.evals.data.sample import Medium, Sample

FIELDS = ("image", "images", "video", "videos", "question", "answer", "answers", "choices", "kind", "id")


class _Number(str):
    """A number as it is written: 0.50 stays what it is, and no number is too long."""


def parse_line(line: bytes) -> dict[str, Any]:
    """The fields of a line; those that are null are left out, as if they were not there.

    Raises:
        ValueError: It is no JSON object in UTF-8, has a field twice, or one that is unknown.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start + 1})") from None
    if text.lstrip().startswith("["):
        raise ValueError("is a JSON list or the begin of one; write one object {...} per line")
    try:
        values = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse, parse_int=_Number, parse_float=_Number
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"is no JSON: {error.msg} (character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(values, dict):
        raise ValueError(f"must be an object {{...}}, got {_described(values)}")
    for field in values:
        if field not in FIELDS:
            near = difflib.get_close_matches(field, FIELDS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(FIELDS)}"
            raise ValueError(f"has an unknown field {_short(field)}; {hint}")
    return {field: value for field, value in values.items() if value is not None}


def make_sample(values: dict[str, Any], default_id: str, folder: Folder) -> Sample:
    """The question that a line asks.

    Args:
        values: Fields of the line, see `parse_line`.
        default_id: What it is called if it has no field "id".
        folder: Where its pictures and videos are.

    Raises:
        ValueError: A field is missing, of the wrong type or empty; the right answer is none of the choices; or
            see `Folder.medium`.
        OSError: See `Folder.medium`.
    """
    if "question" not in values:
        raise ValueError("has no 'question'")
    question = _text("question", values["question"])
    media = (*_media(values, "image", folder), *_media(values, "video", folder))
    if not media:
        raise ValueError("has no picture and no video; give 'image' or 'video'")
    choices = _choices(values["choices"]) if "choices" in values else ()
    answers = _answers(values)
    return Sample(
        id=_text("id", values["id"], numbers=True) if "id" in values else default_id,
        question=question,
        media=media,
        answers=tuple(_choice(answer, choices) for answer in answers) if choices else answers,
        kind=_text("kind", values["kind"], numbers=True) if "kind" in values else "",
        choices=choices,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"has the field {_short(twice)} twice")
    return values


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"is no JSON: {constant} is no number that JSON knows")


def _described(value: Any) -> str:
    if isinstance(value, _Number):
        return f"the number {value[:20]}"
    if isinstance(value, bool):
        return "true" if value else "false"
    kinds = ((str, "a text"), (list, "a list"), (dict, "an object"))
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _text(field: str, value: Any, numbers: bool = False) -> str:
    """A value that is to be a text with something in it."""
    if not isinstance(value, str) or (isinstance(value, _Number) and not numbers):
        raise ValueError(f"{field!r} must be a text{' or a number' if numbers else ''}, got {_described(value)}")
    if not value.strip():
        raise ValueError(f"{field!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{field!r} holds half a character (a surrogate without the other)") from None
    return str(value)


def _either(values: dict[str, Any], one: str, many: str) -> tuple[str, list[Any]]:
    """What stands in one of two fields, as a list, and the field's name."""
    if one in values and many in values:
        raise ValueError(f"has both {one!r} and {many!r}; give one of them")
    field = many if many in values else one
    value = values.get(field, [])
    if field in values and value == []:
        raise ValueError(f"{field!r} is an empty list; leave the field out")
    return field, value if isinstance(value, list) else [value]


def _media(values: dict[str, Any], kind: Literal["image", "video"], folder: Folder) -> list[Medium]:
    field, names = _either(values, kind, f"{kind}s")
    return [folder.medium(kind, _text(field, name)) for name in names]


def _answers(values: dict[str, Any]) -> tuple[str, ...]:
    field, answers = _either(values, "answer", "answers")
    words = {True: "yes", False: "no"}
    return tuple(words[a] if isinstance(a, bool) else _text(field, a, numbers=True) for a in answers)


def _choices(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) < 2:
        got = f"{len(values)}" if isinstance(values, list) else _described(values)
        raise ValueError(f"'choices' must be a list of at least two texts, got {got}")
    choices = tuple(_text("choices", value, numbers=True) for value in values)
    if len(set(choices)) < len(choices):
        twice = next(choice for choice in choices if choices.count(choice) > 1)
        raise ValueError(f"'choices' has {_short(twice)} twice")
    return choices


def _choice(answer: str, choices: Sequence[str]) -> str:
    """The choice that a right answer means: by its text, else by its letter."""
    if answer in choices:
        return answer
    place = LETTERS.find(answer) if len(answer) == 1 else -1
    if 0 <= place < len(choices):
        return choices[place]
    near = difflib.get_close_matches(answer, choices, n=1)
    hint = f"; did you mean {_short(near[0])}?" if near else " (give its text or its capital letter)"
    raise ValueError(f"the answer {_short(answer)} is none of the choices{hint}")
