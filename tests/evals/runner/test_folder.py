"""The folder of a run: what counts as done, what is refused, and that nothing is lost."""

from __future__ import annotations

import json

import pytest

from vtprune.evals.runner.batches import Batch
from vtprune.evals.runner.folder import RunFolder, read_records
from vtprune.evals.runner.records import Record

BATCHES = [Batch(0, (0, 1)), Batch(1, (2,))]
NAMES = ["unpruned", "divprune@0.5"]


def records(batch, answer="red"):
    return [
        Record(f"q{index}", index, name, batch.number, "", "g", ("m",), "x?", ("red",), answer)
        for index in batch.indices
        for name in NAMES
    ]


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim()
    yield folder
    folder.release()


def test_records_come_back(folder):
    folder.append(records(BATCHES[1]))
    folder.append(records(BATCHES[0]))
    found = folder.gather(BATCHES, NAMES)
    assert [(record.index, record.configuration) for record in found] == [(i, name) for i in range(3) for name in NAMES]
    assert found == [*records(BATCHES[0]), *records(BATCHES[1])]
    assert read_records(folder.path / "questions.jsonl") == found


@pytest.mark.parametrize("left", range(4))
def test_a_batch_counts_when_all_of_it_is_there(folder, left):
    folder.append(records(BATCHES[0])[:left])
    folder.append(records(BATCHES[1]))
    assert {record.batch for record in folder.gather(BATCHES, NAMES)} == {1}
    assert len(read_records(folder.path / "questions.jsonl")) == 2


def test_a_line_that_was_being_written_is_left_out(folder):
    folder.append(records(BATCHES[0]))
    path = folder.path / "questions.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert folder.gather(BATCHES, NAMES) == []
    folder.append(records(BATCHES[1]))
    assert len(folder.gather(BATCHES, NAMES)) == 2
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(ValueError, match="line 1 is damaged"):
        folder.gather(BATCHES, NAMES)


def test_files_of_other_processes_are_put_together(folder):
    second = RunFolder(folder.path, rank=1)
    second.append(records(BATCHES[1]))
    folder.append(records(BATCHES[0]))
    folder.append(records(BATCHES[1], "blue"))  # asked twice: one of them counts
    assert len(folder.gather(BATCHES, NAMES)) == 6
    assert [path.name for path in folder.path.glob("*.jsonl")] == ["questions.jsonl"]


def test_the_same_settings_or_none(folder):
    settings = {"model": "a", "configurations": NAMES}
    folder.check(settings)
    folder.begin({"settings": settings})
    folder.check(dict(settings))
    with pytest.raises(ValueError, match=r"other settings \(model: 'a', now 'b'\)"):
        folder.check({**settings, "model": "b"})
    config = folder.path / "config.json"
    config.write_text(json.dumps({"format": 99, "settings": settings}))
    with pytest.raises(ValueError, match="another version"):
        folder.check(settings)
    config.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        folder.check(settings)


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match="holds other files"):
        RunFolder(tmp_path).check({})
    with pytest.raises(ValueError, match="is a file"):
        RunFolder(tmp_path / "thesis.txt").check({})


def test_starting_anew_removes_what_a_run_left_and_nothing_else(folder):
    folder.begin({"settings": {}})
    folder.append(records(BATCHES[0]))
    folder.pictures.mkdir()
    (folder.pictures / "x.jpg").touch()
    (folder.path / "notes.txt").write_text("mine")
    folder.clear()
    assert {path.name for path in folder.path.iterdir()} == {"notes.txt", ".lock-0"}


def test_one_run_at_a_time(folder):
    with pytest.raises(ValueError, match="another process is working"):
        RunFolder(folder.path).claim()
