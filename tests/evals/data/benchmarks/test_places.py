"""Where benchmarks are looked for: a folder, the Hub, its cache; and what is said where there is none of it."""

from __future__ import annotations

import dataclasses
import time

import pytest

pytest.importorskip("datasets")
pytest.importorskip("av")
pytest.importorskip("decord")

from huggingface_hub import constants

import vtprune.evals.data.benchmarks as module
from tests.evals.data.benchmarks.conftest import fields
from tests.evals.data.benchmarks.published import colour
from tests.evals.data.benchmarks.samples import PUBLISHED
from vtprune.evals.data.benchmarks import BENCHMARKS, places, read_benchmark

NAMES = sorted(BENCHMARKS)
PICTURES = [name for name in NAMES if PUBLISHED[name].pictures]
VIDEOS = [name for name in NAMES if PUBLISHED[name].videos]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_there_and_no_network(folder, name, monkeypatch):
    monkeypatch.undo()

    def no_net(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("vtprune.hub.getproxies", dict)
    monkeypatch.setattr("vtprune.hub.socket.create_connection", no_net)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
    monkeypatch.setenv("VTPRUNE_DATA", str(folder))
    start = time.monotonic()
    with pytest.raises(FileNotFoundError) as caught:
        read_benchmark(name)
    assert time.monotonic() - start < 5
    said, benchmark = str(caught.value), BENCHMARKS[name]
    assert said.startswith(f"{name} is not there: no {benchmark.parts[0].files} in '{folder / name}', and the Hub")
    command = f": hf download {benchmark.repository} --repo-type dataset --local-dir {folder / name}"
    if name in PICTURES:
        command += "".join(f" --include '{pattern}'" for pattern in benchmark.files)
    assert said.endswith(command + (" --revision video" if name == "mvbench" else ""))


def test_a_folder_that_was_asked_for_is_the_only_place(folder, tmp_path, monkeypatch):
    PUBLISHED["pope"].write(folder / "pope")
    monkeypatch.setattr(places, "hub_out_of_reach", lambda: False)
    with pytest.raises(FileNotFoundError, match="pope is not there") as caught:
        read_benchmark("pope", folder=tmp_path / "other")
    assert "Hub cannot" not in str(caught.value)
    assert read_benchmark("pope", folder=folder).samples == read_benchmark("pope").samples


@pytest.mark.parametrize("name", ["pope", "gqa"])
def test_from_the_hub(folder, tmp_path, name, monkeypatch):
    """A folder stands for the repository: datasets finds the tables of both in the same way."""
    there = PUBLISHED[name].write(tmp_path / "repository")
    cards = {
        part.config: f"- config_name: {part.config}\n  data_files:\n  - split: {part.split}\n    path: {part.files}\n"
        for part in (*BENCHMARKS[name].parts, *([BENCHMARKS[name].media.part] if name == "gqa" else []))
    }
    (there / "README.md").write_text(f"---\nconfigs:\n{''.join(cards.values())}---\n")
    monkeypatch.setattr(places, "hub_out_of_reach", lambda: False)
    monkeypatch.setitem(module.BENCHMARKS, name, dataclasses.replace(BENCHMARKS[name], repository=str(there)))
    found = read_benchmark(name)
    assert [fields(sample) for sample in found.samples] == PUBLISHED[name].expected
    assert found.samples[0].media[0].load().getpixel((0, 0)) == colour(PUBLISHED[name].pictures[0])
    PUBLISHED[name].write(folder / name)
    assert read_benchmark(name).source["fingerprint"] == found.source["fingerprint"]


def test_the_hub_refuses(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "hub_out_of_reach", lambda: False)
    monkeypatch.setitem(module.BENCHMARKS, "pope", dataclasses.replace(BENCHMARKS["pope"], repository=str(tmp_path)))
    with pytest.raises(OSError, match=r"cannot be read from the Hub \(.*\)\. Get it with: hf download .*'$"):
        read_benchmark("pope")


@pytest.mark.parametrize("name", ["lmms-lab-encoder/POPE", "lmms-lab/POPE"])
def test_from_the_cache_of_the_hub(tmp_path, name):
    cached = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}" / "snapshots" / "abc"
    PUBLISHED["pope"].write(cached)
    assert [fields(sample) for sample in read_benchmark("pope").samples] == PUBLISHED["pope"].expected


def test_branch_in_the_cache_of_the_hub(tmp_path):
    repository = tmp_path / "hub" / "datasets--OpenGVLab--MVBench"
    PUBLISHED["mvbench"].write(repository / "snapshots" / "abc")
    with pytest.raises(FileNotFoundError):
        read_benchmark("mvbench")  # it may be another branch
    (repository / "refs").mkdir()
    (repository / "refs" / "video").write_text("abc")
    assert [fields(sample) for sample in read_benchmark("mvbench").samples] == PUBLISHED["mvbench"].expected
