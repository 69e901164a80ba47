"""What letter an answer means, and where it means none."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evals.metrics.samples import sample
from vtprune.evals.metrics import get_metric
from vtprune.evals.metrics.letter import chosen

SHAPES = ("blue square", "red circle", "dark red circle", "green star")
PETS = ("dog", "cat")


@pytest.mark.parametrize(
    ("answer", "choices", "letter"),
    [
        # A letter.
        ("B", SHAPES, "B"),
        ("b", SHAPES, "B"),
        ("(B)", SHAPES, "B"),
        ("[b]", SHAPES, "B"),
        ("B.", SHAPES, "B"),
        (" B)\n", SHAPES, "B"),
        ("**B**", SHAPES, "B"),
        ('"B"', SHAPES, "B"),
        ("B\n\nThe blue square is not round.", SHAPES, "B"),
        ("A", PETS, "A"),
        ("a", PETS, "A"),
        # The text.
        ("red circle", SHAPES, "B"),
        ("Red circle.", SHAPES, "B"),
        ("dark red circle", SHAPES, "C"),
        ("It is the red circle.", SHAPES, "B"),
        ("It is the dark red circle.", SHAPES, "C"),
        ("red\ncircle", SHAPES, "B"),
        # Both.
        ("B. red circle", SHAPES, "B"),
        ("(B) red circle", SHAPES, "B"),
        ("b) red circle", SHAPES, "B"),
        ("B: red circle", SHAPES, "B"),
        ("B - red circle", SHAPES, "B"),
        ("B red circle", SHAPES, "B"),
        ("**B.** red circle", SHAPES, "B"),
        ("B, because the circle is red", SHAPES, "B"),
        ("B. It is not the blue square.", SHAPES, "B"),
        ("B, since A and C are wrong", SHAPES, "B"),
        ("B. A red thing", SHAPES, "B"),
        # A statement.
        ("The answer is B", SHAPES, "B"),
        ("The answer is: (B).", SHAPES, "B"),
        ("Answer: B", SHAPES, "B"),
        ("The correct option is B, not A.", SHAPES, "B"),
        ("The answer is option D.", SHAPES, "D"),
        ("It looks like A or C. The answer is C.", SHAPES, "C"),
        ("Is the answer A? No, the answer is D.", SHAPES, "D"),
        (r"A and C are red, so $\boxed{C}$", SHAPES, "C"),
        (r"\boxed{\text{B}}", SHAPES, "B"),
        ("The answer is A because it is blue", SHAPES, "A"),
        ("I think (B) is right", SHAPES, "B"),
        ("I would choose C", SHAPES, "C"),
        ("It's A.", SHAPES, "A"),
        ("Option A shows it", SHAPES, "A"),
        ("A is right", SHAPES, "A"),
        ("答案是B。", SHAPES, "B"),
        # English words are no letters.
        ("A cat", PETS, "B"),
        ("A Cat.", PETS, "B"),
        ("A dog", PETS, "A"),
        ("A bird", PETS, None),
        ("Answer: A cat", PETS, "B"),
        ("The answer is a cat", PETS, "B"),
        ("I think a cat", (*PETS, *"3456789"), "B"),
        ("I'd say so", (*PETS, *"3456789"), None),
        ("an X-ray of Plan-B", SHAPES, None),
        # Texts that look like letters or hold one another.
        ("B", ("C", "A", "B"), "B"),
        ("B. A", ("C", "A", "B"), "B"),
        ("A red circle", ("red circle", "A red circle"), "B"),
        ("A red circle", ("red circle", "blue square"), "A"),
        ("E. coli", ("salmonella", "E. coli"), "B"),
        ("It shows vitamin C.", ("vitamin B", "vitamin C", "vitamin A"), "B"),
        ("y", ("x", "y"), "B"),
        ("-5", ("5", "-5"), "B"),
        ("It is -5.", ("5", "-5"), "B"),
        ("It is 12.5", ("12", "13"), None),
        ("It costs $5", ("$5", "$6"), "A"),
        ("cats", PETS, None),
        ("Red", ("red", "Red"), "B"),
        ("RED", ("red", "Red"), None),
        ("a.b*c", ("a.b*c", "(x"), "A"),
        ("(x", ("a.b*c", "(x"), "B"),
        # Nothing, or too much.
        ("", SHAPES, None),
        (".", SHAPES, None),
        ("E", SHAPES, None),
        ("The answer is E", SHAPES, None),
        ("A, B", SHAPES, None),
        ("A or B", SHAPES, None),
        ("A, or maybe B", SHAPES, None),
        ("A, B, and C are", SHAPES, None),
        ("A) and B)", SHAPES, None),
        ("A. B. C. D.", SHAPES, None),
        ("the red circle or the blue square", SHAPES, None),
        ("I do not know", SHAPES, None),
    ],
)
def test_letters(answer, choices, letter):
    assert chosen(answer, sample(choices=choices)) == letter


@given(st.integers(0, 25), st.sampled_from(["{}", "({})", "{}.", "{}: x0y", "The answer is {}.", "Answer: ({})"]))
def test_every_letter(place, form):
    choices = [f"x{i}y" for i in range(26)]
    letter = string.ascii_uppercase[place]
    assert chosen(form.format(letter), sample(choices=choices)) == letter


def test_score_and_share_of_unparsed():
    questions = [sample("cat", choices=PETS)] * 3
    metric = get_metric("letter")
    assert [metric.score(answer, questions[0]) for answer in ("B", "A", "maybe")] == [1, 0, 0]
    assert metric.details(questions, ["B", "A", "maybe"]) == {"unparsed": 1 / 3}
    assert metric.score("A", sample("cat", "dog", choices=PETS)) == 1


def test_too_many_choices():
    with pytest.raises(ValueError, match=r"27 choices"):
        chosen("A", sample(choices=[str(i) for i in range(27)]))


def test_likelihood_takes_the_text():
    metric = get_metric("likelihood")
    assert metric.asks == "likelihood"
    assert [metric.score(answer, sample("cat", choices=PETS)) for answer in PETS] == [0, 1]
