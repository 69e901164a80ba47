"""Methods and chains written as text."""

from __future__ import annotations

import dataclasses
import math

import pytest

from vtprune.api import build_chain
from vtprune.methods import get_method, method_names
from vtprune.methods.parse import parse_method, parse_value, split_methods, write_method, write_value


@pytest.mark.parametrize(
    ("text", "methods"),
    [
        ("tome", ["tome"]),
        ("tome+fastv:layer=2,keep=0.5+snapkv", ["tome", "fastv:layer=2,keep=0.5", "snapkv"]),
        (" tome:keep=0.5 + fastv : layer=2 ", ["tome:keep=0.5", "fastv : layer=2"]),
        ("x:scale=1e+5", ["x:scale=1e+5"]),
        ("x:scale=+3+tome", ["x:scale=+3", "tome"]),
        ("x:file=a+b.json,keep=0.5", ["x:file=a+b.json,keep=0.5"]),
        ("x:file=c+/d+e/f.json+tome", ["x:file=c+/d+e/f.json", "tome"]),
        ("x:file='a+b'+tome", ["x:file='a+b'", "tome"]),
        ("x:names=[a+b+c]+tome", ["x:names=[a+b+c]", "tome"]),
    ],
)
def test_chains(text, methods):
    assert split_methods(text) == methods


@pytest.mark.parametrize(
    ("text", "said"),
    [("+tome", "missing beside a plus sign"), ("tome++fastv", r"unknown method 'tome\+'"), ("tome+", r"'tome\+'")],
)
def test_a_plus_sign_has_a_method_on_either_side(text, said):
    with pytest.raises(ValueError, match=said):
        build_chain(text, None, {})


@pytest.mark.parametrize("text", ["fastv:layer=2;keep=0.5", "fastv:layer=2,keep=0.5", "fastv: layer = 2 ;keep=0.5"])
def test_parameters_are_separated_by_commas_or_semicolons(text):
    assert parse_method(text) == ("fastv", {"layer": 2, "keep": 0.5})


def test_separators_inside_brackets_and_quotes_belong_to_the_value():
    assert parse_method("x:a=[1,2];b='c;d'") == ("x", {"a": [1, 2], "b": "c;d"})


def test_one_text_is_the_same_chain_as_a_list():
    whole = build_chain("tome:keep=0.5+fastv:layer=2;keep=0.5+snapkv", 0.25, {})
    assert whole == build_chain(["tome:keep=0.5", ("fastv", {"layer": 2, "keep": 0.5}), "snapkv"], 0.25, {})
    assert whole == build_chain(["tome:keep=0.5+fastv:layer=2,keep=0.5", "snapkv"], 0.25, {})


def test_an_unknown_method_inside_a_chain_is_named():
    with pytest.raises(ValueError, match=r"unknown method 'fatsv'\. Did you mean 'fastv'"):
        build_chain("tome:keep=0.5+fatsv", None, {})


def test_parameters_beside_a_chain_are_refused():
    with pytest.raises(ValueError, match="write them with their method"):
        build_chain("tome+fastv", None, {"layer": 2})


@pytest.mark.parametrize("name", method_names())
def test_defaults_survive_being_written(name):
    defaults = {field.name: field.default for field in dataclasses.fields(get_method(name))}
    assert parse_method(write_method(name, defaults)) == (name, defaults)


AWKWARD = [
    (True, "True"),
    (None, "None"),
    (1, "1"),
    (1.0, "1.0"),
    (1e-5, "1e-05"),
    (1e20, "1e+20"),
    (-math.inf, "-inf"),
    ((8,), "(8,)"),
    ((), "()"),
    ([8, 16], "[8,16]"),
    ((None, 0.5, -math.inf), "(None,0.5,-1e999)"),
    (((1, 2), ("a", "b,c")), "((1,2),('a','b,c'))"),
    ("mean", "mean"),
    ("/data/a-b.json", "/data/a-b.json"),
    ("C:\\files\\x", "C:\\files\\x"),
    ("none", "'none'"),
    ("1", "'1'"),
    ("", "''"),
    (" a ", "' a '"),
    ("a,b;c=d", "'a,b;c=d'"),
    ("a+tome", "'a+tome'"),
    ("(", "'('"),
    ("it's", '"it\'s"'),
    ('it\'s "so"', "'it\\x27s \"so\"'"),
    ("a\\'\"", "'a\\\\\\x27\"'"),
    ("line\nbreak", "'line\\nbreak'"),
]


@pytest.mark.parametrize(("value", "text"), AWKWARD)
def test_awkward_values_survive_being_written(value, text):
    assert write_value(value) == text
    found = parse_value(text)
    assert (found, type(found)) == (value, type(value))
    chain = f"{write_method('x', {'a': value, 'b': value})}+tome"
    first, second = split_methods(chain)
    assert parse_method(first) == ("x", {"a": value, "b": value})
    assert second == "tome"


def test_nan_is_written_by_itself_only():
    assert math.isnan(parse_value(write_value(math.nan)))
    with pytest.raises(ValueError, match="nan cannot be written inside"):
        write_value((1.0, math.nan))


@pytest.mark.parametrize("value", [object(), {1}, lambda: None])
def test_what_cannot_be_written(value):
    with pytest.raises(TypeError, match="can be written, got"):
        write_value(value)
