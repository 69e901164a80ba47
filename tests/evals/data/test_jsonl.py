"""Files of questions: every line is asked or reported by its number."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vtprune.evals.data.fields import FIELDS
from vtprune.evals.data.jsonl import read_jsonl


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for name in ("a.png", "pictures/b.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    (tmp_path / "clip.mp4").write_bytes(b"not looked into")
    (tmp_path / "empty.png").touch()
    return tmp_path


def write(folder, *lines):
    path = folder / "mine.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def line(**fields):
    return {"image": "a.png", "question": "What colour?", **fields}


def test_all_fields(folder):
    path = write(
        folder,
        line(answer="red"),
        {
            "id": 7,
            "videos": ["clip.mp4"],
            "images": ["pictures/b.png", str(folder / "a.png")],
            "question": "Which?",
            "answers": ["one", 2.50, True],
            "kind": "count",
        },
    )
    found = read_jsonl(path, frames=4)
    first, second = found.samples
    assert (first.id, first.question, first.answers, first.kind, first.choices) == (
        "1",
        "What colour?",
        ("red",),
        "",
        (),
    )
    assert (second.id, second.answers, second.kind) == ("7", ("one", "2.5", "yes"), "count")
    assert [(m.name, m.kind) for m in second.media] == [
        ("pictures/b.png", "image"),
        (str(folder / "a.png"), "image"),
        ("clip.mp4", "video"),
    ]
    assert [m.load().size for m in second.media[:2]] == [(4, 4)] * 2
    assert (found.name, found.metric, found.malformed) == ("mine", "exact_match", ())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.source == {"file": "mine.jsonl", "sha256": digest, "limit": None, "frames": 4, "fps": None}


def test_media_are_read_when_needed(folder):
    medium = read_jsonl(write(folder, {"video": "clip.mp4", "question": "?"}), frames=2).samples[0].media[0]
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        medium.load()


def test_paths_are_relative_to_the_file(folder, monkeypatch):
    write(folder, line(image="pictures/b.png"))
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder)
    medium = read_jsonl("mine.jsonl").samples[0].media[0]
    monkeypatch.chdir(folder / "elsewhere")
    assert medium.load().size == (4, 4)


def test_numbers_stay_as_they_are_written(folder):
    big = "9" * 5000
    path = write(folder, f'{{"image": "a.png", "question": "?", "answers": [0.50, 1e3, {big}]}}')
    assert read_jsonl(path).samples[0].answers == ("0.50", "1e3", big)


@pytest.mark.parametrize(
    ("answer", "choices", "right"),
    [
        ("cat", ["dog", "cat"], "cat"),
        ("B", ["dog", "cat"], "cat"),
        ("B", ["C", "A", "B"], "B"),
        (3, [1, 2, 3], "3"),
        (["A", "cat"], ["dog", "cat"], ("dog", "cat")),
    ],
)
def test_answers_are_choices(folder, answer, choices, right):
    sample = read_jsonl(write(folder, line(answer=answer, choices=choices))).samples[0]
    assert sample.answers == (right if isinstance(right, tuple) else (right,))


@pytest.mark.parametrize(
    ("lines", "metric"),
    [
        ([line(choices=["a", "b"]), line(choices=["c", "d"], answer="c")], "letter"),
        ([line(answer="Yes"), line(answer=False), line()], "yes_no"),
        ([line(answer="yes"), line(answer="red")], "exact_match"),
        ([line(), line()], "exact_match"),
    ],
)
def test_default_metric(folder, lines, metric):
    assert read_jsonl(write(folder, *lines)).metric == metric


def test_metrics_are_checked_early(folder):
    path = write(folder, line(choices=["a", "b"]), line(answer="red"))
    with pytest.raises(ValueError, match=r"1 of 2 questions have no choices, question '2' first"):
        read_jsonl(path)
    assert read_jsonl(path, metric="exact_match").metric == "exact_match"
    with pytest.raises(ValueError, match=r"'letter' does not suit 1 question\(s\): question '2' has no choices"):
        read_jsonl(path, metric="letter")
    with pytest.raises(ValueError, match=r"unknown metric 'leter'\. Did you mean 'letter'"):
        read_jsonl(folder / "absent.jsonl", metric="leter")
    many = write(folder, line(choices=[f"x{i}" for i in range(27)]))
    with pytest.raises(ValueError, match="27 choices, more than there are letters"):
        read_jsonl(many)


BAD = [
    ("{", "is no JSON: Expecting property name"),
    ("nonsense", "is no JSON: Expecting value"),
    ('{"question": "a", "question": "b"}', "has the field 'question' twice"),
    ("[1, 2]", "is a JSON list or the begin of one; write one object"),
    ('"text"', "must be an object {...}, got a text"),
    ("5", "must be an object {...}, got the number 5"),
    ("null", "must be an object {...}, got null"),
    ("[" * 100_000, "JSON list"),
    ('{"a":' * 100_000, "is nested too deeply"),
    ('{"image": "a.png", "question": "?", "answer": NaN}', "NaN is no number"),
    ({"image": "a.png"}, "has no 'question'"),
    ({"image": "a.png", "question": None}, "has no 'question'"),
    ({"question": "?"}, "has no picture and no video"),
    (line(anwser="red"), "has an unknown field 'anwser'; did you mean 'answer'?"),
    (line(zzz=1), "has an unknown field 'zzz'; known are image, images"),
    (line(question=5), "'question' must be a text, got the number 5"),
    (line(question=" "), "'question' is empty"),
    (line(question="\ud800"), "'question' holds half a character"),
    (line(image="absent.png"), "absent.png' does not exist"),
    (line(image="empty.png"), "is an empty file"),
    (line(image="pictures"), "is a folder"),
    (line(image="a\0.png"), "cannot be found"),
    (line(image="https://example.org/a.png"), "is a URL; download it"),
    (line(image="data:image/png;base64," + "A" * 1000), "..."),
    (line(image=["a.png", 3]), "'image' must be a text, got the number 3"),
    (line(image=[]), "'image' is an empty list"),
    (line(images=["a.png"]), "has both 'image' and 'images'"),
    (line(answer="a", answers=["a"]), "has both 'answer' and 'answers'"),
    (line(answers=[]), "'answers' is an empty list"),
    (line(answer={"a": 1}), "'answer' must be a text or a number, got an object"),
    (line(answer=""), "'answer' is empty"),
    (line(choices=["a"]), "must be a list of at least two texts, got 1"),
    (line(choices="ab"), "must be a list of at least two texts, got a text"),
    (line(choices=["a", "a"]), "'choices' has 'a' twice"),
    (line(choices=["a", True]), "'choices' must be a text or a number, got true"),
    (line(answer="kat", choices=["dog", "cat"]), "the answer 'kat' is none of the choices; did you mean 'cat'?"),
    (line(answer="C", choices=["dog", "cat"]), "the answer 'C' is none of the choices (give its text"),
    (line(kind=["a"]), "'kind' must be a text or a number, got a list"),
    (line(id="1"), "its id '1' is that of line 1 too"),
]


@pytest.mark.parametrize(("bad", "problem"), BAD, ids=range(len(BAD)))
def test_malformed_lines(folder, bad, problem):
    path = write(folder, line(), "", bad, line())
    with pytest.raises(ValueError, match=r"1 line of .*mine\.jsonl' cannot be used:\n  line 3: ") as error:
        read_jsonl(path)
    assert problem in str(error.value)
    assert len(str(error.value)) < 400 + len(str(path))
    found = read_jsonl(path, skip_malformed=True)
    assert [sample.id for sample in found.samples] == ["1", "4"]
    assert len(found.malformed) == 1
    assert problem in found.malformed[0]


def test_all_malformed_lines_are_counted(folder):
    path = write(folder, line(), *["{"] * 30)
    with pytest.raises(ValueError, match="30 lines") as error:
        read_jsonl(path)
    message = str(error.value).splitlines()
    assert [text.split(":")[0].strip() for text in message[1:21]] == [f"line {i}" for i in range(2, 22)]
    assert message[21:] == ["  and 10 more"]
    assert len(read_jsonl(path, skip_malformed=True).malformed) == 30
    with pytest.raises(ValueError, match="2 lines"):
        read_jsonl(write(folder, "{", "{"), skip_malformed=True)


def test_marks_and_ends_of_lines(folder):
    """A byte order mark, Windows line ends, blank lines and no last line end are all fine; other encodings are not."""
    path = folder / "mine.jsonl"
    text = json.dumps(line()).encode()
    path.write_bytes(b"\xef\xbb\xbf" + text + b"\r\n \r\n" + text + b"\n" + text.replace(b"What", b"\xe2\x80\xa8What"))
    assert [sample.id for sample in read_jsonl(path).samples] == ["1", "3", "4"]
    path.write_bytes(text + b"\n" + text.replace(b"W", b"\xe4"))
    with pytest.raises(ValueError, match=r"line 2: is not UTF-8 \(byte 33\)"):
        read_jsonl(path)


def test_limit(folder):
    path = write(folder, line(), "{", line(), "{")
    assert [sample.id for sample in read_jsonl(path, limit=1).samples] == ["1"]
    assert [sample.id for sample in read_jsonl(path, limit=2, skip_malformed=True).samples] == ["1", "3"]
    with pytest.raises(ValueError, match="1 line of"):
        read_jsonl(path, limit=2)


@pytest.mark.parametrize("content", [b"\n\n", b" ", b"\xef\xbb\xbf"])
def test_no_questions(folder, content):
    (folder / "mine.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="holds no questions"):
        read_jsonl(folder / "mine.jsonl")


def test_bad_arguments(folder):
    path = write(folder, line())
    for wrong, message in (({"limit": 0}, "limit"), ({"frames": 0}, "frames"), ({"fps": -1}, "fps")):
        with pytest.raises(ValueError, match=message):
            read_jsonl(path, **wrong)
    with pytest.raises(FileNotFoundError, match="question file"):
        read_jsonl(folder / "absent.jsonl")
    (folder / "none.jsonl").touch()
    with pytest.raises(ValueError, match="empty file"):
        read_jsonl(folder / "none.jsonl")


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text("aé\0\ud800 ", max_size=5) | st.just("a.png"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=3), inner, max_size=2),
    max_leaves=5,
)
OBJECTS = st.dictionaries(st.sampled_from(FIELDS), VALUES).map(lambda values: json.dumps(values).encode())


@settings(max_examples=100)
@given(st.lists(st.binary(max_size=30) | OBJECTS, min_size=1, max_size=4), st.booleans())
def test_any_bytes(lines, skip):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "any.jsonl"
        path.write_bytes(b"\n".join(lines))
        Image.new("RGB", (2, 2)).save(Path(name) / "a.png")
        try:
            found = read_jsonl(path, skip_malformed=skip)
        except ValueError as error:
            said = str(error)
        else:
            said = str(found.samples)
        said.encode()  # it can be printed
