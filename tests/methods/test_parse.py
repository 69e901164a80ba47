"""Methods and chains written as text."""

from __future__ import annotations

import pytest

from vtprune.api import build_chain
from vtprune.methods.parse import parse_method, split_methods


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
