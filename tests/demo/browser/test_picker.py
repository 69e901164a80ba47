"""Methods, budgets and parameters as visitors put them together."""

from __future__ import annotations

import re

import pytest


@pytest.fixture
def expect():
    return pytest.importorskip("playwright.sync_api").expect


@pytest.fixture
def opened(visit, expect):
    """Visit the page and open the parameters; `says` waits until the method is written so."""

    def call():
        visitor = visit()
        visitor.locator("#tabs button", has_text="Parameters").first.click()
        written = visitor.get_by_label("Method as the command line writes it").first
        expect(written).to_be_visible()
        return visitor, written, lambda text: expect(written).to_have_value(text, timeout=30_000)

    return call


def control(visitor, name, role="textbox"):
    return visitor.locator(".vtprune-parameters").get_by_role(role, name=re.compile(rf"^{name}\b"))


def write(written, text):
    written.fill(text)
    written.press("Enter")


def test_controls_follow_what_is_written_and_it_follows_them(opened, expect):
    visitor, written, says = opened()
    write(written, "sparsevlm:keep=0.5,layers=(1,2)")
    expect(control(visitor, "layers")).to_have_value("(1,2)", timeout=30_000)
    control(visitor, "version", "combobox").click()
    visitor.get_by_role("option", name="2", exact=True).click()
    says("sparsevlm:keep=0.5,version=2,layers=(1,2)")
    control(visitor, "layers").fill("(1,")
    alert = visitor.get_by_role("alert").filter(has_text="layers must be a whole number >= 1 or a sequence of them")
    alert.wait_for()
    control(visitor, "layers").fill("")
    says("sparsevlm:keep=0.5,version=2")
    alert.wait_for(state="detached")
    control(visitor, "recycle", "spinbutton").fill("0.00001")
    says("sparsevlm:keep=0.5,version=2,recycle=1e-05")
    visitor.get_by_label("number of tokens").check()
    says("sparsevlm:keep=64,version=2,recycle=1e-05")
    visitor.get_by_role("spinbutton", name="Budget").fill("32")
    says("sparsevlm:keep=32,version=2,recycle=1e-05")
    visitor.locator(".token-remove.remove-all").first.click()
    says("")
    visitor.get_by_role("alert").filter(has_text="at least one method").wait_for()


def test_every_method_of_a_chain_has_controls_of_its_own(opened, expect):
    visitor, written, says = opened()
    write(written, "random+random:place=cache")
    expect(control(visitor, "seed", "spinbutton")).to_have_count(2, timeout=30_000)
    control(visitor, "seed", "spinbutton").nth(1).fill("4")
    says("random+random:seed=4,place=cache")


def test_visitors_do_not_change_one_anothers_methods(opened, expect):
    (one, one_written, one_says), (other, other_written, other_says) = opened(), opened()
    write(one_written, "fastv")
    write(other_written, "tokenselect")
    expect(control(one, "hide", "checkbox")).to_be_visible(timeout=30_000)
    control(other, "scaled", "checkbox").check()
    control(one, "hide", "checkbox").check()
    other_says("tokenselect:keep=0.25,scaled=True")
    one_says("fastv:keep=0.5,hide=True")
