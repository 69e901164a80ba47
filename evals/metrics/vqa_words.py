"""What the VQA evaluation takes for the same answer: contractions, numbers, articles, punctuation.

The rules of the official processing, as https://visualqa.org/evaluation.html and the evaluation server state them:

1. Line ends and tabs are spaces.
2. A mark of `_MARKS` is dropped if a space stands before or after it anywhere in the answer, or if the answer holds a
   comma between digits; else it becomes a space.
3. A full stop is dropped unless a digit follows.
4. All is lower-case, "none" and the words from zero to ten are digits, articles are dropped.
5. A contraction that lacks one of its apostrophes gets it back.

Differs from the code of the server in two slips of it: there only the first 32 full stops are dropped, and "somebody'd"
loses its apostrophe.
"""

from __future__ import annotations

import re

_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)")
_ARTICLES = ("a", "an", "the")
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_CONTRACTIONS = """
    ain't aren't can't couldn't couldn't've could've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've shouldn't shouldn't've should've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've weren't we've what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't wouldn't
    wouldn't've would've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""


def _one_missing(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, character in enumerate(word) if character == "'"]


_WHOLE = {short: word for word in _CONTRACTIONS.split() for short in _one_missing(word)}


def same_words(answer: str) -> str:
    """An answer in the form in which answers are compared."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    thousands = _BETWEEN_DIGITS.search(text) is not None
    table = {ord(mark): "" if thousands or f"{mark} " in text or f" {mark}" in text else " " for mark in _MARKS}
    words = _FULL_STOP.sub("", text.translate(table)).lower().split()
    numbered = [_DIGITS.get(word, word) for word in words]
    return " ".join(_WHOLE.get(word, word) for word in numbered if word not in _ARTICLES)
