"""Parameters of methods as controls, and back."""

from __future__ import annotations

import math

import pytest

from vtprune.demo.work.catalogue import catalogue
from vtprune.demo.work.parameters import Parameter, parameters
from vtprune.methods import build_method, get_method, method_names

KINDS = {
    "fastv": {"layer": "whole", "keep": "text", "hide": "flag", "seed": "whole", "positions": "choice"},
    "sparsevlm": {"version": "choice", "layers": "text", "rank_scale": "text", "merge": "whole", "heads": "text"},
    "tokenselect": {"reuse": "text", "scaled": "flag", "heads": "choice"},
    "corematching": {"elbow": "choice", "layer": "text", "neuron_layers": "text"},
    "gsearch": {"schedule": "text", "score": "choice"},
}


@pytest.mark.parametrize("name", KINDS)
def test_what_control_suits_a_parameter(name):
    assert {key: parameters(name)[key].kind for key in KINDS[name]} == KINDS[name]


def test_parameters_of_python_only_have_no_control():
    assert "scorer" in catalogue()["quota"]["parameters"]
    assert "scorer" not in parameters("quota")


def test_choices_are_written_as_on_the_command_line():
    assert parameters("corematching")["elbow"].choices == ("strict", "inclusive", "None")
    assert parameters("sparsevlm")["version"].choices == ("1", "2")
    assert parameters("psigmoid")["score"].choices[0] == "text_queries_ahead"


@pytest.mark.parametrize(
    ("name", "files"), [("dymu", "thresholds"), ("gsearch", "schedule"), ("fasa", "chunks"), ("yopo", "heads")]
)
def test_parameters_that_name_files_are_known(name, files):
    assert [key for key, one in parameters(name).items() if one.files] == [files]


@pytest.mark.parametrize("name", method_names())
def test_controls_show_and_read_defaults(name):
    found = parameters(name)
    read = {key: one.read(one.show(one.default)) for key, one in found.items()}
    assert repr(read) == repr({key: one.default for key, one in found.items()})
    assert build_method(name, read) == get_method(name)()


@pytest.mark.parametrize("name", method_names())
def test_every_choice_is_taken(name):
    for key, one in parameters(name).items():
        for choice in one.choices:
            build_method(name, {key: one.read(choice)})
            assert one.show(one.read(choice)) == choice


@pytest.mark.parametrize("value", [(8, 16), (8,), None, 0.5, 1, 1.0, "none", "1", "a,b", 1e-5, [1, [2]], math.inf])
def test_awkward_values_survive_a_text_box(value):
    one = Parameter("x", "", "a default", "text")
    assert repr(one.read(one.show(value))) == repr(value)


@pytest.mark.parametrize(
    ("kind", "default", "shown", "value"),
    [("whole", 3, None, 3), ("number", 1.0, 2, 2.0), ("flag", True, False, False), ("text", (1,), "", (1,))],
)
def test_what_a_control_holds(kind, default, shown, value):
    assert repr(Parameter("x", "", default, kind).read(shown)) == repr(value)
