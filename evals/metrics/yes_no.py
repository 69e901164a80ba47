"""Yes or no, with precision and recall: POPE.

Li et al. 2023, "Evaluating Object Hallucination in Large Vision-Language Models", arXiv 2305.10355.

The first sentence is read. It says what it begins with, "yes" or "no"; else "yes" if it holds that word and no denial,
"no" if it holds a denial ("no", "not", "cannot", a verb in "n't") and no "yes"; else nothing, which is never right.

Differs from the official `evaluate.py`: there all that holds no denial counts as "yes", be it empty or about
something else. lmms-eval takes nothing but the bare words, leaves other answers out of recall, and its yes ratio is
that of the right answers. Where every answer begins with "yes" or "no", the official numbers and ours are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vtprune.evals.data.sample import Sample
from vtprune.evals.metrics.base import Metric
from vtprune.evals.metrics.exact_match import plain

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_END = re.compile(r"[.!?\n]")


def said(answer: str) -> str | None:
    """What an answer says: "yes", "no", or None for neither."""
    sentences = [words for part in _END.split(answer.lower()) if (words := _WORD.findall(part))]
    words = sentences[0] if sentences else []
    if words and words[0] in ("yes", "no"):
        return words[0]
    yes = "yes" in words
    no = any(word in ("no", "not", "cannot") or word.endswith(("n't", "n’t")) for word in words)
    if yes == no:
        return None
    return "yes" if yes else "no"


def is_right(answer: str, sample: Sample) -> float:
    """1 if the answer says what a right one says, else 0."""
    word = said(answer)
    return float(word is not None and word in map(plain, sample.answers))


def objection(sample: Sample) -> str | None:
    """The objection to a sample whose right answer is another word."""
    other = [answer for answer in sample.answers if plain(answer) not in ("yes", "no")]
    return f"has the right answer {other[0]!r}, not yes or no" if other else None


def details(samples: Sequence[Sample], answers: Sequence[str]) -> dict[str, float]:
    """What POPE reports, "yes" being positive.

    Args:
        samples: Questions with right answers.
        answers: To them, in the same order.

    Returns:
        "precision", "recall" and "f1"; "yes_ratio", the share of answers that say yes; "unparsed", that of answers that
        say neither. An answer that says neither is no hit where yes is right. What is 0 / 0 is left out.
    """
    right = [said(sample.answers[0]) == "yes" for sample in samples]
    given = [said(answer) for answer in answers]
    hits = sum(word == "yes" and positive for word, positive in zip(given, right, strict=True))
    yes, positives, n = given.count("yes"), sum(right), len(given)
    parts = {
        "precision": (hits, yes),
        "recall": (hits, positives),
        "f1": (2 * hits, yes + positives),
        "yes_ratio": (yes, n),
        "unparsed": (given.count(None), n),
    }
    return {name: part / whole for name, (part, whole) in parts.items() if whole}


YES_NO = Metric(
    name="yes_no",
    about="the answer says yes or no, rightly; with precision, recall and F1 of yes (POPE: arXiv 2305.10355)",
    score=is_right,
    details=details,
    objection=objection,
)
