"""Loading a model over what devices there are."""

from __future__ import annotations

import pytest
import torch

from vtprune.images import load_image
from vtprune.inputs import make_inputs
from vtprune.models import load_model, shipped_example


def test_a_model_that_accelerate_places_answers_the_same():
    path, question = shipped_example()
    answers = []
    for options in ({"device": "cpu"}, {"device_map": "auto"}):
        loaded = load_model("tiny-llava", **options)
        inputs = make_inputs(loaded, [load_image(path)], question)
        with torch.inference_mode():
            answers.append(loaded.model.generate(**inputs, do_sample=False, max_new_tokens=4).cpu())
    assert answers[0].equal(answers[1])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("tiny-llava", {"device_map": "all"}, "device_map must be one of auto"),
        ("tiny-llava", {"device_map": "auto", "device": "cpu"}, "device must be auto, got 'cpu'"),
        ("random:llava-1.5-7b@small", {"device_map": "auto"}, "random weights go to one device"),
    ],
)
def test_refusals(name, options, said):
    with pytest.raises(ValueError, match=said):
        load_model(name, **options)
