"""The profile of an evaluation: parts that do not overlap and make up the whole."""

from __future__ import annotations

import json

from tests.evals.small import small_llava
from vtprune.evals import harness
from vtprune.evals.export import export
from vtprune.evals.runner import asking, preparing


def test_parts_make_up_the_whole(tmp_path, capsys):
    export(small_llava(layers=2), tmp_path / "small")
    before = asking.answer, preparing.make_batch
    words = ["--model", str(tmp_path / "small"), "--limit", "6", "--batch-size", "3", "--out", str(tmp_path / "h.json")]
    harness.main(words)
    found = json.loads((tmp_path / "h.json").read_text())
    assert abs(sum(found["seconds"].values()) - found["wall"]) < 0.01
    assert min(found["seconds"].values()) >= 0
    assert all(found["seconds"][part] > 0 for part in ("model", "processor", "methods on and off", "plots and page"))
    assert 0 < found["harness_share"] < 1
    assert "| model |" in capsys.readouterr().out
    assert (asking.answer, preparing.make_batch) == before
