"""Chains as a visitor puts them together."""

from __future__ import annotations

import pytest

from vtprune.demo.work import chains
from vtprune.demo.work.parameters import parameters
from vtprune.methods import method_names


@pytest.mark.parametrize("name", method_names())
def test_a_chain_survives_being_written(name):
    given = {key: one.default for key, one in parameters(name).items() if not one.files}
    chain = [(name, given), ("random", {"seed": 3})]
    assert chains.read_chain(chains.write_chain(chain)) == chain


@pytest.mark.parametrize("name", method_names())
def test_what_is_at_its_default_is_not_written(name):
    defaults = {(0, key): one.default for key, one in parameters(name).items()}
    assert chains.write_chain(chains.set_values([(name, {})], defaults)) == name


def test_what_differs_is_written():
    chain = chains.set_values([("tome", {"keep": 0.5}), ("fastv", {})], {(1, "layer"): 3, (1, "hide"): False})
    assert chains.write_chain(chain) == "tome:keep=0.5+fastv:layer=3"


def test_one_token_is_not_the_whole_picture():
    assert chains.write_chain(chains.set_values([("spatten", {})], {(0, "values"): 1})) == "spatten:values=1"
    assert chains.write_chain(chains.set_budget([("tome", {})], 0, 1.0)) == "tome:keep=1.0"


@pytest.mark.parametrize(
    ("before", "names", "after"),
    [
        ([], ["divprune"], "divprune:keep=0.3"),
        ([("divprune", {"keep": 0.5})], ["fastv"], "fastv:keep=0.3"),
        ([("divprune", {"keep": 0.5})], ["divprune", "fastv"], "divprune:keep=0.5+fastv"),
        ([("divprune", {"keep": 0.5}), ("fastv", {"layer": 3})], ["fastv"], "fastv:layer=3,keep=0.3"),
        ([("divprune", {"keep": 0.5})], ["exit", "divprune"], "divprune:keep=0.5+exit"),
        ([("divprune", {})], [], ""),
    ],
)
def test_choosing_other_methods(before, names, after):
    assert chains.write_chain(chains.choose(before, names, 0.3)) == after


@pytest.mark.parametrize(
    ("written", "place", "keep"),
    [
        ("divprune", 0, 0.098),
        ("exit+divprune:keep=64", 1, 64),
        ("psigmoid:keep=1.0", 0, 1.0),
        ("tome+fastv", None, None),
        ("exit", None, None),
        ("snapkv:keep=[0.5,0.25]", None, None),
        ("divprune:keep=0.001", None, None),
    ],
)
def test_whose_budget_is_shown(written, place, keep):
    shown = chains.budget(chains.read_chain(written))
    assert (shown.place, shown.keep) == (place, keep)
    assert bool(shown.note) == (place is None)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "at least one method"),
        ("x" * 3000, "at most 2000 letters"),
        ("divprun", "Did you mean 'divprune'"),
        ("fastv:layr=2", "no parameter 'layr'"),
        ("fastv:keep=25", None),
        ("fastv:keep=25.0", "keep must be a ratio"),
        ("pyramiddrop:layers=(8", "is missing"),
        ("gsearch:schedule=/etc/passwd", "the demo reads no files"),
        ("yopo:heads='/etc/passwd'", "the demo reads no files"),
        ("divprune+dymu:thresholds=x.json", "the demo reads no files"),
        ("aim:iterations=1000000000", "at most 1000000"),
        ("ats:blocks=[1,10000000]", "at most 1000000"),
        ("quota:scorer=print", "in Python only"),
    ],
)
def test_what_is_wrong_is_said(written, said):
    assert said in chains.problem(written) if said else not chains.problem(written)


@pytest.mark.parametrize("name", method_names())
def test_no_parameter_about_a_file_takes_its_name(name):
    for key, one in parameters(name).items():
        if "file" in one.about:
            assert chains.problem(f"{name}:{key}=shadow.json")
