"""Overheads of methods, measured on a shrunken model."""

from __future__ import annotations

import json

import pytest

from tests.evals.small import small_family
from vtprune.bench.measuring import Settings
from vtprune.evals.export import export
from vtprune.evals.overheads import PHASES, main, measure_table
from vtprune.evals.rows import Row
from vtprune.evals.suite import scene_picture
from vtprune.evals.train_family import RECIPES
from vtprune.inputs import make_inputs
from vtprune.models import Loaded


def test_rows_are_measured_once(model, processor, tmp_path):
    inputs = make_inputs(Loaded("small", model, processor), [scene_picture(1)], "Where is the red star?")
    rows = [Row(), Row("random", 0.5), Row("random", 0.25), Row("evs", 0.5), Row("exit")]
    out, seen = tmp_path / "o.json", []
    options = dict(settings=Settings(1, 2, 0), about={"model": "small", "machine": "this one"})
    first = measure_table(model, inputs, rows[:2], out, **options)
    table = measure_table(model, inputs, rows, out, **options, on_method=seen.append)
    assert seen == ["random", "evs", "exit"]
    assert json.loads(out.read_text()) == table
    assert out.read_text().count("\n") == 4 + len(table["rows"]) + 1
    assert table["rows"]["random keep=0.5"] == first["rows"]["random keep=0.5"]
    assert table["rows"]["random keep=0.25"]["tokens_after"] == table["rows"]["random keep=0.25"]["tokens_before"] // 4
    assert "it acts on videos" in table["rows"]["evs keep=0.5"]["unsupported"]
    for phase in PHASES:
        figures = table["rows"]["exit"][phase]
        assert figures["overhead"] == pytest.approx(figures["method"]["median"] / figures["ideal"]["median"], rel=1e-3)
    measure_table(model, inputs, rows, out, **{**options, "about": {"model": "small", "machine": "another"}})
    with pytest.raises(ValueError, match="out must be a new file or hold figures with"):
        measure_table(model, inputs, rows, out, **{**options, "about": {"model": "other"}})


@pytest.mark.parametrize("clips", [False, True])
def test_command_line(clips, tmp_path):
    if clips:
        pytest.importorskip("decord")
    name = "tiny-qwen2.5-vl"
    export(small_family(name), tmp_path / "model", RECIPES[name][0].build_processor())
    arguments = ["--model", str(tmp_path / "model"), "--out", str(tmp_path / "o.json"), "--repeats", "1"]
    main([*arguments, "--methods", "vidcom2", "--keep", "0.5", *(["--clips"] if clips else [])])
    document = json.loads((tmp_path / "o.json").read_text())
    assert document["settings"]["about"] == ("clips" if clips else "pictures")
    assert set(document["rows"]) == {"vidcom2 keep=0.5"}
