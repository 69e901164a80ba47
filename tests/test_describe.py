"""What a method says about itself, and what is made of it."""

from __future__ import annotations

import dataclasses
import re
import typing

import pytest

import vtprune
from vtprune.describe import (
    ALWAYS_THERE,
    LETTERS,
    OF_BLOCKS,
    WORDS,
    choices,
    comments,
    describe_lines,
    does,
    facts,
    parameter_types,
)
from vtprune.engine.chain_stage import SIGNALS
from vtprune.methods import Method, Place, Stage, get_method, method_names
from vtprune.methods.base import EncoderSignal


@pytest.mark.parametrize("name", method_names())
def test_every_method_says_what_it_does_and_costs(name):
    said = facts(get_method(name))
    sentences = re.split(r"(?<=\.) (?=[A-Z])", said["does"])
    assert len(sentences) == 2, "the docstring of the file must begin with two sentences, before it names the paper"
    assert all(sentence.endswith(".") for sentence in sentences)
    assert said["cost"], "the class attribute `cost` is missing"
    assert set(re.findall(r"\b[A-Z]\b", said["cost"])) <= set(LETTERS)
    assert said["signals"] or said["needs_training"], "without what it was trained to do it has no stages"
    assert set(said["about_parameters"]) == set(said["parameters"]), "parameters want a comment with unit and range"
    assert bool(said["arxiv"]) == bool(said["paper"])
    assert (said["code"] is not None or said["differs"] is not None) >= bool(said["paper"])


def test_known_facts():
    (hired,) = vtprune.methods("hired")
    assert hired["signals"] == [
        "attention from [CLS] in the encoder's last used block",
        "attention from [CLS] in the encoder's block 0",
    ]
    assert hired["code"] == "github.com/hasanar1f/HiRED"
    assert hired["differs"].startswith("the budget counts the tokens of the unpadded picture")
    assert hired["adaptive"]
    assert facts(get_method("vtc_cls"))["signals"] == ["attention from [CLS] in the encoder's blocks 16 to 22"]
    assert facts(get_method("random"))["signals"] == ["nothing"]
    assert facts(get_method("resize"))["signals"] == ["features at the encoder's output"]
    lines = dict(describe_lines(vtprune.methods("tome")[0]))
    assert lines["families"].startswith("pictures: all but qwen2_5_vl, ")
    assert lines["paper"] == "ToMe, ICLR 2023, arXiv 2210.09461"
    assert dict(describe_lines(vtprune.methods("evs")[0]))["families"].startswith("videos: internvl, ")


def test_every_signal_has_words():
    assert set(WORDS) == frozenset().union(*SIGNALS.values())
    assert set(OF_BLOCKS) == set(typing.get_args(typing.get_type_hints(EncoderSignal)["name"]))
    assert set(ALWAYS_THERE) == set(Place)


def test_choices_of_parameters():
    assert facts(get_method("corematching"))["choices"] == {
        "elbow": ["strict", "inclusive", None],
        "reference": ["text", "core"],
        "positions": ["auto", "original", "compact"],
    }
    assert facts(get_method("gsearch"))["choices"]["score"][-2:] == ["encoder_attention", None]


@dataclasses.dataclass(frozen=True)
class Foreign(Method):
    """A method whose annotations are only there for the type checker."""

    what: Elsewhere = 1  # type: ignore[name-defined]  # noqa: F821


def test_types_that_cannot_be_resolved_are_unknown():
    assert parameter_types(Foreign) == {"what": ()}
    assert choices(Foreign) == {}


def test_two_sentences_before_the_paper():
    text = "Keeps some.\n\nIt is old, e.g. by\nyears. More.\n\nPaper: A Paper. Long ago."
    assert does("One.\n\nPaper: Two.") == "One."
    assert does(text) == "Keeps some. It is old, e.g. by years."


def test_comments_beside_and_above():
    @dataclasses.dataclass(frozen=True)
    class Toy(Method):
        plain: int = 1
        beside: int = 2  # in [0, 3]
        # Above it,
        # on two lines.
        above: str = "#"
        spread: tuple[int, ...] = (
            1,
            2,
        )  # behind

        def stages(self, model):
            inside: int = 3  # not a parameter
            return [Stage(Place.ENCODER_OUTPUT, lambda pictures: None, (inside,))]

    assert comments(Toy) == {"beside": "in [0, 3]", "above": "Above it, on two lines.", "spread": "behind"}
