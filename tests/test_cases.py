"""The lists that the engine's tests run over leave nothing out."""

from __future__ import annotations

import dataclasses

import pytest

from tests.cases import (
    CARRIED_OUT,
    DECIDED_BY,
    METHODS,
    everywhere,
    methods_twice,
    other_rules,
    path,
    paths,
    paths_everywhere,
    position_rule,
    works,
)
from tests.families import FAMILIES, VIDEO
from vtprune.methods import get_method, method_names
from vtprune.methods.base import Stage

WAYS = ("beams", "bf16", "gradients", "positions")


def names(pairs):
    return {(family, name) for family, (name, _) in pairs}


def test_everywhere_is_every_method_on_every_family():
    working = {(family, name) for family in FAMILIES for name in method_names() if works(name, family)}
    assert names(everywhere()) == working
    assert len(everywhere()) == len(working) > 0.85 * len(FAMILIES) * len(METHODS)


@pytest.mark.parametrize("way", WAYS)
def test_every_method_and_every_family_occurs_in_every_way(way):
    for pairs in (methods_twice(way), paths_everywhere(way)):
        assert {name for _, name in names(pairs)} == set(method_names())
        assert {family for family, _ in names(pairs)} == set(FAMILIES)
        assert names(pairs) <= names(everywhere())
        for videos in (False, True):
            sort = {family for family in FAMILIES if (VIDEO in FAMILIES[family].kinds) is videos}
            able = {name for name in METHODS if any(works(name, family) for family in sort)}
            assert {name for family, name in names(pairs) if family in sort} == able


@pytest.mark.parametrize("way", WAYS)
def test_every_path_meets_every_family(way):
    met = {(family, path(name)) for family, name in names(paths_everywhere(way))}
    assert met == {(family, path(name)) for family, name in names(everywhere())}


def test_position_rules():
    assert position_rule("llava-clip", ("divprune", {})) == position_rule("llava_next", ("divprune", {})) == "compact"
    assert position_rule("qwen2_5_vl", ("divprune", {})) == "original"
    assert position_rule("qwen2_5_vl", ("fourier", {})) == "compact"
    assert position_rule("llava-clip", ("fastv", {"positions": "original"})) == "original"
    assert position_rule("llava-clip", ("snapkv", {})) is None


def test_every_path_with_a_position_rule_meets_the_other_one_on_every_family():
    ruled = {name for name in METHODS if hasattr(get_method(name)(), "positions")}
    met = {(family, path(name)) for family, name in names(other_rules())}
    assert met >= {(family, path(name)) for family, name in names(everywhere()) if name in ruled}
    assert {given["positions"] for _, (_, given) in other_rules()} == {"original", "compact"}


def test_pairs_turn_from_way_to_way():
    assert paths_everywhere("beams") == paths_everywhere("beams")
    together = [names(paths_everywhere(f"way {i}")) for i in range(40)]
    assert set().union(*together) == names(everywhere())
    assert len(together[0]) < 0.6 * len(everywhere())


def test_methods_of_one_path_act_at_the_same_places():
    assert sorted(name for group in paths() for name in group) == sorted(method_names())
    for group in paths():
        acts = [{place for place, _, _ in path(name)} for name in group]
        assert acts == acts[:1] * len(group)
    together = {name: group for group in paths() for name in group}
    assert "divprune" in together["fastervlm"]
    assert "snapkv" in together["h2o"]
    for name, other in (("tome", "pitome"), ("fastv", "gemfilter"), ("snapkv", "zipcache"), ("divprune", "visionzip")):
        assert other not in together[name]


def test_whether_a_property_of_stages_makes_a_path_of_its_own_is_decided():
    """A new one has to be put into `CARRIED_OUT` or into `DECIDED_BY`."""
    assert {field.name for field in dataclasses.fields(Stage)} - {"place"} == set(CARRIED_OUT) | set(DECIDED_BY)
    assert not set(CARRIED_OUT) & set(DECIDED_BY)
