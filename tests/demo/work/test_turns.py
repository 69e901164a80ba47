"""One at a time, in the order of asking."""

from __future__ import annotations

import threading
import time

import pytest

from vtprune.demo.work.models import Models
from vtprune.demo.work.turns import Turns
from vtprune.models import Loaded


def test_turns_are_taken_in_the_order_of_asking():
    turns, order = Turns(), []

    def work(number):
        with turns.take():
            order.append(number)

    with turns.take():
        threads = []
        for number in range(5):
            threads.append(threading.Thread(target=work, args=(number,)))
            threads[-1].start()
            while len(turns._queue) < number + 2:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_who_asks_again_comes_behind_who_waits():
    turns, order, waiting = Turns(), [], threading.Event()

    def other():
        waiting.set()
        with turns.take():
            order.append("other")

    thread = threading.Thread(target=other)
    for step in range(3):
        with turns.take():
            order.append(step)
            if step == 0:
                thread.start()
                waiting.wait()
                while len(turns._queue) < 2:
                    time.sleep(0.001)
    thread.join()
    assert order == [0, "other", 1, 2]


def test_a_turn_ends_with_an_error():
    turns = Turns()
    with pytest.raises(KeyError), turns.take():
        raise KeyError
    with turns.take():
        pass


def test_only_models_that_were_named_can_be_had():
    models = Models([Loaded("one", object(), None), Loaded("two", object(), None)])
    assert models.names == ["one", "two"]
    with models.lease("two") as loaded:
        assert loaded.name == "two"
    with pytest.raises(ValueError, match="model must be one of one, two, got '/etc'"), models.lease("/etc"):
        pass


def test_who_asks_about_a_clip_is_told_which_model_takes_it(models):
    models.check_clips("tiny-qwen2.5-vl")
    with pytest.raises(ValueError, match=r"'tiny-llava' takes pictures only; for clips choose tiny-qwen2.5-vl\."):
        models.check_clips("tiny-llava")
    with pytest.raises(ValueError, match="no model of this page takes clips"):
        Models([models.get("tiny-llava")]).check_clips("tiny-llava")


@pytest.mark.parametrize("names", [[], ["one", "one"]])
def test_models_have_names_of_their_own(names):
    with pytest.raises(ValueError, match="each named once"):
        Models([Loaded(name, object(), None) for name in names])
