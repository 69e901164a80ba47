"""Training steps, stops and goes on as if it had never stopped; all on a shrunken model."""

from __future__ import annotations

import itertools
import json

import pytest
import torch

from tests.evals.small import small_llava
from vtprune.evals import held_out, training
from vtprune.evals.auxiliary import Heads, auxiliary_loss, centre_accuracy, scene_targets
from vtprune.evals.checkpoints import latest
from vtprune.evals.dense import IGNORED, make_item
from vtprune.evals.losses import total_loss
from vtprune.evals.phases import Phase
from vtprune.evals.relations import relation_loss
from vtprune.evals.scenes import CHARACTERS, COLOURS, QUADRANTS, SHAPES, make_scene
from vtprune.evals.student import Student
from vtprune.evals.tiny_llava import EOS_ID
from vtprune.evals.train_tiny_llava import train

SECOND = 1 / 60
PHASES = (
    Phase("tower", 2 * SECOND, pictures=1, learning_rate=1e-2, questions=0, warmup=1),
    Phase("few", 2 * SECOND, pictures=1, learning_rate=1e-2, questions=2, visual_tokens=32, tower_factor=0.3, warmup=1),
    Phase("all", 3 * SECOND, pictures=1, learning_rate=1e-2, questions=2, goes_on=True, warmup=1),
)


@pytest.fixture(autouse=True)
def quick_tests(monkeypatch):
    """Held-out tests on a single picture."""
    real = held_out.held_out_accuracy
    quick = lambda student, device, questions: real(student, device, pictures=1, questions=min(questions, 2))  # noqa: E731
    monkeypatch.setattr(training, "held_out_accuracy", quick)


def run(out, **options):
    """Train with a clock by which every step takes a second."""
    return train(out, phases=PHASES, model=small_llava(), workers=0, clock=itertools.count(0.0).__next__, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "held_out_accuracy", lambda *_, **__: {"mean": 0.0})
        out = tmp_path_factory.mktemp("whole")
        return run(out), out


def weights(folder):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


def test_a_resumed_run_ends_as_an_unstopped_one(whole, tmp_path):
    for stop in (1, 1, 1, 2):
        assert run(tmp_path, resume=True, steps=stop) is None
    exported = run(tmp_path, resume=True)
    expected, found = weights(whole[0]), weights(exported)
    start = small_llava().state_dict()
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    moved = [name for name, value in expected.items() if not torch.equal(value, start[name])]
    assert any("vision_tower" in name for name in moved)
    assert any("language_model" in name for name in moved)


def test_log_and_checkpoint(whole):
    lines = [json.loads(line) for line in (whole[1] / "log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["tower", "few", "all"]
    assert all("held_out" in line for line in lines)
    names = {path.name for path in latest(whole[1] / "checkpoints").iterdir()}
    assert names == {"weights.safetensors", "optimizers.safetensors", "progress.json"}


def test_a_run_is_not_overwritten(whole):
    with pytest.raises(ValueError, match="resume"):
        run(whole[1])


def test_held_out_accuracy_counts_whole_answers():
    student = Student(small_llava())
    found = held_out.held_out_accuracy(student, torch.device("cpu"), pictures=2, questions=3)
    assert set(found) == {"patch colour", "patch shape", "patch character", *held_out.KINDS, "mean"}
    assert all(0 <= value <= 1 for value in found.values())


def test_targets_agree_with_the_scene():
    scene = make_scene(11)
    targets = scene_targets(scene)
    assert int(targets.centre.sum()) == len(scene.objects)
    for obj in scene.objects:
        patch = int(obj.y // 14) * 16 + int(obj.x // 14)
        colour, shape, character = targets.words[patch].tolist()
        assert list(COLOURS)[colour - 1] == obj.colour
        assert SHAPES[shape - 1] == obj.shape
        assert (CHARACTERS[character - 2] if character > 1 else None) == obj.character
        assert torch.allclose(targets.position[patch], torch.tensor([obj.x, obj.y]) / 112 - 1)


def test_relations_agree_with_the_scene():
    scene = make_scene(11)
    targets = scene_targets(scene)
    for obj in scene.objects:
        quadrant, shape, colour, total = targets.relations[int(obj.y // 14) * 16 + int(obj.x // 14)].tolist()
        assert (QUADRANTS[quadrant - 1] if quadrant else None) == obj.quadrant
        assert shape == sum(other.shape == obj.shape for other in scene.objects)
        assert colour == sum(other.colour == obj.colour for other in scene.objects)
        assert total == len(scene.objects)
    background = targets.words[:, 0] == 0
    assert (targets.relations[background, :3] == 0).all()


def test_every_part_of_the_loss_counts():
    batch = torch.utils.data.default_collate([make_item(seed, characters=0.6, questions=4) for seed in range(2)])
    output = Student(small_llava())(batch)
    base = dict(name="x", minutes=1, pictures=2, learning_rate=1e-3)
    plain, watched = total_loss(output, batch, Phase(**base))
    with_relations, same = total_loss(output, batch, Phase(**base, relations=0.5))
    assert watched == same
    assert plain > watched
    related = relation_loss(output.relations, batch.targets.relations, batch.targets.position)
    torch.testing.assert_close(with_relations, plain + 0.5 * related)
    weighted, answers = total_loss(output, batch, Phase(**base, token_weights=(("</s>", 0.0),)))
    wanted = batch.labels[batch.labels != IGNORED]
    losses = torch.nn.functional.cross_entropy(output.scores, wanted, reduction="none")
    torch.testing.assert_close(answers, losses[wanted != EOS_ID].mean())
    assert weighted > answers


def test_auxiliary_loss_falls_when_followed():
    targets = torch.utils.data.default_collate([scene_targets(make_scene(seed)) for seed in range(2)])
    torch.manual_seed(0)
    states = torch.randn(2, 257, 64, requires_grad=True)
    heads = Heads(64)
    optimizer = torch.optim.Adam([states, *heads.parameters()], lr=0.1)
    first = auxiliary_loss(heads(states), targets).item()
    for _ in range(40):
        loss = auxiliary_loss(heads(states), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < first / 5
    assert min(centre_accuracy(heads(states), targets).values()) == 1.0


def test_phase_checks():
    with pytest.raises(ValueError, match=r"visual_tokens must be in 1 \.\. 256, got 300"):
        Phase("x", 1, pictures=1, learning_rate=1e-3, visual_tokens=300)
    with pytest.raises(ValueError, match="minutes"):
        Phase("x", 0, pictures=1, learning_rate=1e-3)
    phase = Phase("x", 1, pictures=1, learning_rate=2.0, warmup=4, final=0.5)
    assert phase.rate(0, 0) == 0.5
    assert phase.rate(3, 0) == 2.0
    assert phase.rate(100, 1) == 1.0
