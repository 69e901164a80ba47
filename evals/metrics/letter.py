r"""Multiple choice by letter: the options are lettered in the prompt, and the letter is read out of the answer.

The benchmarks that ask so (MMBench, arXiv 2307.06281; ScienceQA, arXiv 2209.09513; Video-MME, arXiv 2405.21075) each
read answers by rules of their own, MMBench with the help of another model. Here the first of these rules that applies
decides:

1. The answer, or its first line, is a letter: "B", "(b)", "B.".
2. The answer is the text of an option, as `exact_match` sees it.
3. It begins with a lettered option: "B. red circle", "(b) red circle", "B: red circle", "B, because"; without such
   a mark if the option's own text is all that follows: "B red circle".
4. It states a letter: "The answer is B", "Answer: (B)", "the correct option is B", "\boxed{B}"; of several statements
   the last.
5. All options that it mentions, by a capital letter on its own or by the option's whole text, are the same one. Capital
   letters within such a text do not count, nor do texts of one character.

Only letters of the sample's options count. An "A" or "I" before a word is English, not a letter ("A cat", "I think"),
unless the word is "and", "as", "because", "is", "or", "since" or "which". From all else no option can be read, which
scores 0. A denial ("not B") is not understood.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vtprune.evals.data.choices import LETTERS, lettered, right_letters
from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics.base import Metric
from vtprune.evals.metrics.exact_match import plain
from vtprune.evals.metrics.likelihood import no_choices

_MARKS = re.compile(r"[*`\"“”]")  # of Markdown and quotation
_WHOLE = re.compile(r"[(\[]?([A-Za-z])[)\].:,]*")
_PAIR = re.compile(r"[(\[]?([A-Za-z])(?:[)\].:,]*|\s+-)\s+(.*)", re.DOTALL)
# What follows must be no further letter: "A. B.", "A) and B)".
_OPENING = re.compile(
    r"[(\[]?([A-Za-z])(?:[)\].:]+|\s+-|,(?=\s+[a-z]{2}))\s+(?!(?:and|or)\s|[(\[]?[A-Z](?:[)\].:,]|\s*$))"
)
_LATIN = "0-9A-Za-zÀ-ɏ_"  # Chinese has no spaces: "答案是B"
# A capital letter on its own, and no English word.
_CAPITAL = (
    rf"(?<![{_LATIN}'’-])(?:[B-HJ-Z]|[AI](?![ \t]+(?!(?:and|as|because|is|or|since|which)\b)\w))(?!['’-]?[{_LATIN}])"
)
_MENTIONED = re.compile(rf"({_CAPITAL})|\b(?i:option|choice)\s+([A-Z])(?!['’-]?[{_LATIN}])")
_STATED = re.compile(
    r"(?:\\boxed\{(?:\\text\{)?|"
    r"\b(?i:answer|(?:correct|right|best)\s+(?:option|choice))(?i:\s+is|\s+(?:should|would|must)\s+be)?"
    rf"\s*:?\s*(?i:option|choice)?\s*)[(\[]?({_CAPITAL})"
)


def chosen(answer: str, sample: Sample) -> str | None:
    """The letter of the option that an answer chooses; None if it chooses none, or several.

    Args:
        answer: What the model said.
        sample: Whose choices it was shown.

    Raises:
        ValueError: The sample has no choices, or more than 26.
    """
    options = lettered(sample)
    text = _MARKS.sub("", answer).strip()
    for part in (text, text.partition("\n")[0].strip()):
        whole = _WHOLE.fullmatch(part)
        if whole and whole[1].upper() in options:
            return whole[1].upper()
    if letter := _by_text(answer, options) or _by_text(text, options):
        return letter
    pair = _PAIR.match(text)
    if pair and plain(options.get(pair[1].upper(), "")) == plain(pair[2]):
        return pair[1].upper()
    opening = _OPENING.match(text)
    if opening and opening[1].upper() in options:
        return opening[1].upper()
    stated = [letter for letter in _STATED.findall(text) if letter in options]
    return stated[-1] if stated else _only_mentioned(text, options)


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    """The one option whose text this is."""
    same = [letter for letter, choice in options.items() if choice.strip() == text.strip()]
    same = same or [letter for letter, choice in options.items() if plain(choice) == plain(text)]
    return same[0] if len(same) == 1 else None


def _only_mentioned(text: str, options: Mapping[str, str]) -> str | None:
    """The one option that is mentioned."""
    plains = {letter: words for letter, choice in options.items() if len(words := plain(choice)) > 1}
    mentioned = set()
    if plains:
        # Longest first: "dark red" is no mention of "red".
        longest = sorted(set(plains.values()), key=len, reverse=True)
        texts = "|".join(r"\s+".join(map(re.escape, words.split())) for words in longest)
        pattern = re.compile(rf"(?<![\w-])(?<!\d[.,])(?:{texts})(?![\w-]|[.,]\d)", re.IGNORECASE)
        found = {plain(match) for match in pattern.findall(text)}
        mentioned = {letter for letter, words in plains.items() if words in found}
        text = pattern.sub("0", text)
    letters = {first or second for first, second in _MENTIONED.findall(text)}
    mentioned |= letters & options.keys()
    return mentioned.pop() if len(mentioned) == 1 else None


def _score(answer: str, sample: Sample) -> float:
    return float(chosen(answer, sample) in right_letters(sample))


def _details(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    unparsed = sum(chosen(answer, sample) is None for sample, answer in zip(samples, answers, strict=True))
    return {"unparsed": unparsed / len(samples)} if samples else {}


def _objection(sample: Sample) -> str | None:
    if len(sample.choices) > len(LETTERS):
        return f"has {len(sample.choices)} choices, more than there are letters"
    return no_choices(sample)


LETTER = Metric(
    name="letter",
    about="multiple choice: the letter in the answer is that of a right option (MMBench: arXiv 2307.06281)",
    score=_score,
    details=_details,
    asks="letters",
    objection=_objection,
)
