"""What there is to say about a method: read from its class, its docstrings, its stages and its source.

The command line and docs/methods.md both say no more than this.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from typing import Any, Literal

from vtprune.methods.base import EncoderSignal, Method, ModelInfo, Place, Stage

REFERENCE = ModelInfo(
    family="llava",
    encoder_layers=23,
    decoder_layers=32,
    has_cls=True,
    patches=576,
    attention_blocks=tuple(range(24)),
    scored_block=22,
    encoder_heads=16,
)
"""The model whose stages are described: LLaVA-1.5-7B."""

LETTERS = {
    "N": "visual tokens of a picture or video, before the method",
    "K": "those that it keeps",
    "n": "tokens that reach a block of the encoder",
    "C": "channels in the language model",
    "D": "channels in the encoder",
    "d": "channels of one of its attention heads",
    "F": "frames",
    "T": "tokens of text",
}
"""What the letters in `Method.cost` stand for."""

ALWAYS_THERE = {
    Place.ENCODER_INPUT: "pixels",
    Place.ENCODER_LAYER: "keys, queries and residual stream of the block",
    Place.ENCODER_OUTPUT: "features at the encoder's output",
    Place.DECODER_LAYER: "nothing",
    Place.ATTENTION: "which tokens are visual",
    Place.MLP: "which tokens are visual",
    Place.CACHE: "keys and values of the decoder layer",
}
WORDS = {
    "activations": "what the neurons of MLPs put out",
    "all_queries": "queries of all tokens in the decoder layer",
    "cells": "where visual tokens lie in their pictures",
    "closing_queries": "queries of the text after the pictures in the decoder layer",
    "closing_text": "hidden states of the text behind the pictures that enter the decoder layer",
    "encoder_attention": "attention from [CLS] in the encoder's last used block",
    "hidden": "hidden states that enter the decoder layer",
    "last_query": "attention of the last prompt token in the decoder layer before",
    "last_query_ahead": "attention of the last prompt token in the decoder layer that comes next",
    "last_row_ahead": "last prompt token's query and all keys of the decoder layer that comes next",
    "pixel_steps": "differences between the pixels of neighbouring tokens",
    "prediction": "what the model would answer if the decoder layer and all behind it were left out",
    "projected": "projected features",
    "queries_keys": "queries and keys of the decoder layer before",
    "queries_keys_values": "queries, keys and values of the decoder layer",
    "text": "embeddings of the prompt's text",
    "text_queries": "attention of all text tokens in the decoder layer before",
    "text_queries_ahead": "attention of all text tokens in the decoder layer that comes next",
    "text_rows": "queries of text and all keys of the decoder layer before",
    "values": "values of the block",
}
PARTS = {
    "mlp": "what the MLPs of decoder layers change",
    "mlp.down_proj": "neurons that are active in the MLP of the decoder layer before",
    "self_attn": "what the attention of decoder layers changes",
}
OF_BLOCKS = {
    "attention": "attention from [CLS]",
    "keys": "attention keys",
    "logits": "logits of [CLS]",
    "received": "attention received from all tokens",
}


def facts(method: type[Method]) -> dict[str, Any]:
    """What is known of a registered method, ready for JSON but for the defaults of its parameters.

    Returns:
        "name", "kind", "does" (two sentences), "places", "signals" (what it asks for on `REFERENCE`, in words; none
        if it refuses that), "cost", "needs_text", "needs_training", "needs_video", "adaptive", "paper", "arxiv" (its
        id, or None), "code" and "differs" (what the docstring says of the authors' code, and of differences from the
        paper, or None), "parameters" (defaults), "about_parameters" (the comments beside them; none where the source
        is not at hand) and "choices" (of those that take one of several values, these).
    """
    text = inspect.getdoc(inspect.getmodule(method)) or ""
    arxiv = re.search(r"arXiv (\d{4}\.\d{5})", method.paper)
    return {
        "name": method.name,
        "kind": method.kind,
        "does": does(text),
        "places": [place.value for place in method.places],
        "signals": signals(method),
        "cost": method.cost,
        "needs_text": method.needs_text,
        "needs_training": method.needs_training,
        "needs_video": method.needs_video,
        "adaptive": method.adaptive,
        "paper": method.paper,
        "arxiv": arxiv and arxiv[1],
        "code": _said(text, "Authors' code"),
        "differs": _said(text, "Differs from the paper in"),
        "parameters": {f.name: f.default for f in dataclasses.fields(method)},  # type: ignore[arg-type]
        "about_parameters": comments(method),
        "choices": choices(method),
    }


def describe_lines(method: dict[str, Any]) -> list[tuple[str, str]]:
    """What an entry of `vtprune.methods()` says besides what it does and its parameters, as headings and text."""
    needs = {
        "needs_video": "acts on videos, leaves pictures as they are",
        "needs_text": "reads the question",
        "adaptive": "the number of tokens follows from the content and meets the budget only roughly",
        "needs_training": "needs training",
    }
    code = method["code"] if method["code"] != "none" else None
    lines = [
        ("kind", "; ".join([method["kind"], *(said for name, said in needs.items() if method[name])])),
        ("place", ", ".join(method["places"])),
        ("looks at", "; ".join(method["signals"])),
        ("cost", method["cost"]),
        ("paper", method["paper"] or "none"),
        ("authors' code", code or ""),
        ("differs from the paper in", method["paper"] and (method["differs"] or "")),
        ("families", _families(method)),
    ]
    return [(name, said) for name, said in lines if said]


def _families(method: dict[str, Any]) -> str:
    """Where a method works, in words; on pictures and on videos."""
    pictures, videos, refused = (method[key] for key in ("families", "video_families", "refuses"))
    where = [] if method["needs_video"] else [f"pictures: {_all_but(pictures, refused)}"]
    return "; ".join([*where, f"videos: {', '.join(videos) or 'none'}"])


def _all_but(families: list[str], refused: dict[str, str]) -> str:
    if not refused:
        return "all"
    return f"all but {', '.join(sorted(refused))}" if len(refused) <= len(families) else ", ".join(families)


def does(text: str) -> str:
    """The first two sentences of a method's docstring, before it comes to papers."""
    prose = []
    for paragraph in text.split("\n\n"):
        if re.match(r"Paper:|Not from ", paragraph):
            break
        prose.append(" ".join(paragraph.split()))
    return " ".join(re.split(r"(?<=\.)\s+(?=[A-Z])", " ".join(prose))[:2])


def signals(method: type[Method]) -> list[str]:
    """What a method with its defaults looks at in LLaVA-1.5, in words."""
    try:
        stages = method().stages(REFERENCE)
    except ValueError:
        return []
    return list(dict.fromkeys(word for stage in stages for word in _asked(method, stage)))


def _asked(method: type[Method], stage: Stage) -> list[str]:
    words = sorted(WORDS.get(x, x) for x in stage.signals if isinstance(x, str))
    blocks: dict[str, list[int]] = {}
    for signal in stage.signals:
        if isinstance(signal, EncoderSignal):
            blocks.setdefault(signal.name, []).append(signal.block)
    for name, numbers in sorted(blocks.items()):
        numbers.sort()
        run = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1))
        listed = f"{numbers[0]} to {numbers[-1]}" if run else " and ".join(map(str, numbers))
        words.append(f"{OF_BLOCKS[name]} in the encoder's block{'s' if len(numbers) > 1 else ''} {listed}")
    words += sorted({PARTS[x.module] for x in stage.observations})
    blind = method.kind == "baseline" and not stage.needs_grid
    if stage.place is Place.ENCODER_LAYER or not (words or blind):
        words.insert(0, ALWAYS_THERE[stage.place])
    return words or ["nothing"]


def comments(method: type[Method]) -> dict[str, str]:
    """The comment beside each parameter, or above it: {name: comment}."""
    try:
        source = textwrap.dedent(inspect.getsource(method))
    except OSError:
        return {}
    notes = {
        token.start[0]: token.string.removeprefix("#").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    (body,) = ast.parse(source).body
    found = {}
    for field in body.body if isinstance(body, ast.ClassDef) else ():
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            beside = range(field.lineno, (field.end_lineno or field.lineno) + 1)
            above: list[str] = []
            line = field.lineno - 1
            while line in notes and not source.splitlines()[line - 1].split("#")[0].strip():
                above.insert(0, notes[line])
                line -= 1
            said = [notes[line] for line in beside if line in notes] or above
            if said:
                found[field.target.id] = " ".join(said)
    return found


def parameter_types(method: type[Method]) -> dict[str, tuple[Any, ...]]:
    """What each parameter may be: of a union, its members; nothing where the annotation says it with names unknown."""
    fields = {f.name for f in dataclasses.fields(method)}  # type: ignore[arg-type]
    try:
        hints = typing.get_type_hints(method)
    except NameError:
        return dict.fromkeys(fields, ())
    unions = (typing.Union, types.UnionType)
    return {
        name: typing.get_args(hint) if typing.get_origin(hint) in unions else (hint,)
        for name, hint in hints.items()
        if name in fields
    }


def choices(method: type[Method]) -> dict[str, list[Any]]:
    """The values of those parameters that take one of several, None among them where it is allowed."""
    found = {}
    for name, members in parameter_types(method).items():
        words = [x for member in members if typing.get_origin(member) is Literal for x in typing.get_args(member)]
        if words:
            found[name] = [*words, None] if types.NoneType in members else words
    return found


def _said(text: str, about: str) -> str | None:
    """What a docstring says behind a heading, up to the next one or the end of the paragraph."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    pattern = rf"{about}: (.+?)\.?(?= Authors' code:| Differs from the paper in:|$)"
    matches = (re.search(pattern, paragraph) for paragraph in paragraphs)
    return next((match[1] for match in matches if match), None)
