"""What is run: the product of methods and budgets, once each."""

from __future__ import annotations

import pytest

from vtprune.evals.runner.configurations import Configuration, plan


@pytest.mark.parametrize(
    ("methods", "budgets", "names"),
    [
        ([], [], ["unpruned"]),
        (["divprune"], [], ["unpruned", "divprune"]),
        (["divprune", "random"], [0.5, 64], ["unpruned", "divprune@0.5", "divprune@64", "random@0.5", "random@64"]),
        (["divprune:keep=0.3", "random"], [0.5], ["unpruned", "divprune:keep=0.3", "random@0.5"]),
        (["tome+fastv:keep=0.5"], [0.2], ["unpruned", "tome+fastv:keep=0.5@0.2"]),
        (["divprune", "divprune"], [0.5, 0.5], ["unpruned", "divprune@0.5"]),
        (["exit", "random"], [0.5], ["unpruned", "exit", "random@0.5"]),
    ],
)
def test_the_product(methods, budgets, names):
    assert [one.name for one in plan(methods, budgets)] == names


def test_a_configuration_is_a_chain():
    first, second = Configuration("tome+fastv:keep=0.5", 0.2).chain()
    assert (first.name, first.keep, second.name, second.keep) == ("tome", 0.2, "fastv", 0.5)
    assert Configuration().chain() == []


@pytest.mark.parametrize(
    ("methods", "budgets", "said"),
    [
        (["divprun"], [], "divprun"),
        ([], [0.5], "keep=0.5 is for a method without a budget"),
        (["divprune:keep=0.3"], [0.5], "keep=0.5 is for a method without a budget"),
        (["tome+fastv"], [0.5], "several take it"),
        (["divprune"], [1.5], "keep"),
    ],
)
def test_refusals(methods, budgets, said):
    with pytest.raises(ValueError, match=said):
        plan(methods, budgets)
