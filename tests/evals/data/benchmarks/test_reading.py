"""Public benchmarks: small samples in the published layouts, read back."""

from __future__ import annotations

import ast
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("datasets")
pytest.importorskip("av")
pytest.importorskip("decord")

import datasets
import pyarrow.parquet

import vtprune.evals.data.benchmarks as module
from tests.evals.data.benchmarks.conftest import fields
from tests.evals.data.benchmarks.published import colour, picture
from tests.evals.data.benchmarks.samples import PUBLISHED
from vtprune.evals.data.benchmarks import BENCHMARKS, read_benchmark, tables
from vtprune.evals.data.benchmarks.page import page
from vtprune.evals.data.benchmarks.videos import VideoFolder
from vtprune.evals.metrics import get_metric

NAMES = sorted(BENCHMARKS)
PICTURES = [name for name in NAMES if PUBLISHED[name].pictures]
VIDEOS = [name for name in NAMES if PUBLISHED[name].videos]


def rewrite(path: Path, change):
    """Change the rows of a parquet file."""
    old = datasets.Dataset.from_parquet(str(path), cache_dir=str(path.parent / "cache"))
    old = old.cast_column("image", datasets.Image(decode=False)) if "image" in old.features else old
    rows = old.to_list()
    change(rows)
    new = datasets.Dataset.from_list(rows, old.features)
    path.unlink()
    new.to_parquet(path)


@pytest.mark.parametrize("name", NAMES)
def test_read(folder, name):
    published = PUBLISHED[name]
    published.write(folder / name)
    found = read_benchmark(name)
    assert [fields(sample) for sample in found.samples] == published.expected
    assert (found.name, found.metric) == (name, published.metric)
    get_metric(found.metric).check(found.samples)
    for sample, number in zip(found.samples, published.pictures, strict=False):
        assert sample.media[0].kind == "image"
        image = sample.media[0].load()
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (8, 6), colour(number))
    for sample, file in zip(found.samples, published.videos, strict=False):
        assert sample.media[0].kind == "video"
        shade = 60 * list(dict.fromkeys(published.videos)).index(file)
        assert abs(sample.media[0].load().frames.mean() - shade) < 8


@pytest.mark.parametrize("name", NAMES)
def test_every_declared_column_must_be_there(folder, name):
    PUBLISHED[name].write(folder / name)
    path = next(folder.joinpath(name).glob(BENCHMARKS[name].parts[0].files))
    if path.suffix == ".json":
        path.write_text('[{"video": "a.mp4", "question": "?", "options": ["1"], "answer": "1"}]')
        with pytest.raises(
            ValueError, match=r"action_antonym\.json has no column 'candidates', but video, question, opt"
        ):
            read_benchmark(name)
        return
    whole = pyarrow.parquet.read_table(path)
    own = [] if name in VIDEOS or name == "gqa" else ["image"]
    for column in [*BENCHMARKS[name].columns, *own]:
        pyarrow.parquet.write_table(whole.drop_columns([column]), path)
        with pytest.raises(
            ValueError, match=f"^{name}, .*: {path.name} has no column '{column}', but .*other data set"
        ):
            read_benchmark(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_save_to_disk_wrote(folder, name):
    published = PUBLISHED[name]
    published.write(folder / name)
    before = read_benchmark(name)
    for file in published.tables:
        path = folder / name / file
        if path.suffix == ".parquet":
            saved = datasets.Dataset.from_parquet(str(path), cache_dir=str(folder / "cache"))
            several = len(BENCHMARKS[name].files) > 1
            config = Path(file).parts[0]
            if not several or "-00000-" in file:
                saved.save_to_disk(str(folder / name / config) if several else str(folder / name / "saved"))
            path.unlink()
    if name in ("mvbench", "vqav2"):  # JSON files are read as they are; one of two files is no whole
        return
    if (folder / name / "saved").is_dir():
        for file in (folder / name / "saved").iterdir():
            file.rename(folder / name / file.name)
    after = read_benchmark(name)
    assert after.samples == before.samples
    for old, new in zip(PUBLISHED[name].pictures, after.samples, strict=False):
        assert new.media[0].load().getpixel((0, 0)) == colour(old)


def test_saved_splits(folder):
    PUBLISHED["pope"].write(folder / "raw")
    whole = datasets.Dataset.from_parquet(str(next(folder.glob("raw/data/*"))), cache_dir=str(folder / "cache"))
    datasets.DatasetDict({"test": whole}).save_to_disk(str(folder / "pope"))
    assert [fields(sample) for sample in read_benchmark("pope").samples] == PUBLISHED["pope"].expected
    shutil.rmtree(folder / "pope")
    datasets.DatasetDict({"train": whole}).save_to_disk(str(folder / "pope"))
    with pytest.raises(ValueError, match="has no split 'test', but train"):
        read_benchmark("pope")


def test_limit_reads_no_more_files_than_it_needs(folder):
    PUBLISHED["vqav2"].write(folder / "vqav2")
    (folder / "vqav2/data/validation-00001-of-00002.parquet").unlink()
    found = read_benchmark("vqav2", limit=1)
    assert [fields(sample) for sample in found.samples] == PUBLISHED["vqav2"].expected[:1]
    with pytest.raises(
        FileNotFoundError, match=r"vqav2 is incomplete: of 2 files like .* number 1 is missing\. Get it with: hf"
    ):
        read_benchmark("vqav2")


def test_limit_is_shared_by_tables(folder):
    PUBLISHED["mvbench"].write(folder / "mvbench")
    path = folder / "mvbench/json/action_count.json"
    path.write_text(path.read_text()[:-1] + "," + path.read_text()[1:])
    assert [sample.id for sample in read_benchmark("mvbench").samples] == [
        "action_count-0",
        "action_count-1",
        "moving_count-0",
    ]
    assert [sample.id for sample in read_benchmark("mvbench", limit=2).samples] == ["action_count-0", "moving_count-0"]


@pytest.mark.parametrize("group", [1, 2, 100])
def test_pictures_of_many_groups_and_files(folder, group):
    """Each question is about its own picture, wherever groups of rows and files end."""
    data = folder / "chartqa" / "data"
    data.mkdir(parents=True)
    PUBLISHED["chartqa"].write(folder / "raw")
    row = datasets.Dataset.from_parquet(str(next(folder.glob("raw/data/*"))), cache_dir=str(folder / "cache"))[0]
    features = datasets.Features({**dict.fromkeys(("type", "question", "answer"), datasets.Value("string"))})
    for shard, numbers in enumerate(([0, 1, 2], [3, 4])):
        rows = [{**row, "image": picture(number), "answer": str(number)} for number in numbers]
        whole = datasets.Dataset.from_list(rows, datasets.Features({**features, "image": datasets.Image()}))
        whole.to_parquet(data / f"test-0000{shard}-of-00002.parquet", batch_size=group)
    found = read_benchmark("chartqa").samples
    for number in (4, 0, 3, 1, 2, 4):
        assert found[number].answers == (str(number),)
        assert found[number].media[0].load().getpixel((0, 0)) == colour(number)


def test_pictures_are_read_when_they_are_looked_at(folder, monkeypatch):
    PUBLISHED["pope"].write(folder / "pope")
    path = next(folder.glob("pope/data/*"))
    rewrite(path, lambda rows: rows[1].update(image={"bytes": b"no picture", "path": None}))
    with monkeypatch.context() as patch:
        patch.setattr(tables, "_column", None)  # what reads pictures
        found = read_benchmark("pope")
    assert found.samples[0].media[0].load().size == (8, 6)
    with pytest.raises(ValueError, match=r"picture 'pope/COCO_val2014_000000310196' \(row 1\) cannot be read"):
        found.samples[1].media[0].load()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("pope", dict(image=None), "row 1 has no picture"),
        ("pope", dict(answer=None), "row 1: it has no answer"),
        ("pope", dict(question=" \n"), "row 1: it has no question"),
        ("vqav2", dict(answers=None), r"row 0: TypeError: "),
        ("vqav2", dict(answers=[]), r"row 0: it has no answer"),
        ("scienceqa", dict(answer=3), "row 1: its answer is none of its 3 choices"),
        ("scienceqa", dict(answer=-1), "row 1: its answer is none of its 3 choices"),
        ("mmbench", dict(answer="C"), "row 1: its answer 'C' is no option"),
        ("mmbench", dict(answer="Z"), "row 1: its answer 'Z' is no option"),
        ("gqa", dict(imageId="n9"), "row 2: it is about picture 'n9', which testdev_balanced_images/"),
        ("videomme", dict(answer="E"), "row 1: its answer is none of its 4 choices"),
        ("videomme", dict(answer=""), "row 1: its answer is none of its 4 choices"),
        ("mlvu", dict(answer="red"), "row 1: its answer is none of its 2 choices"),
        ("nextqa", dict(answer=5), "row 1: its answer is none of its 5 choices"),
        ("egoschema", dict(answer=None), "row 0: TypeError: "),
    ],
)
def test_rows_that_cannot_be_asked(folder, name, change, said):
    PUBLISHED[name].write(folder / name)
    path = next(folder.joinpath(name).glob(BENCHMARKS[name].parts[0].files))
    rewrite(path, lambda rows: rows[-1].update(change))
    with pytest.raises(ValueError, match=f"^{name}, .*{said}"):
        read_benchmark(name)


def test_saved_row_without_a_picture(folder):
    PUBLISHED["pope"].write(folder / "raw")
    path = next(folder.glob("raw/data/*"))
    rewrite(path, lambda rows: rows[1].update(image=None))
    datasets.Dataset.from_parquet(str(path), cache_dir=str(folder / "other")).save_to_disk(str(folder / "pope"))
    assert len(read_benchmark("pope", limit=1).samples) == 1
    with pytest.raises(ValueError, match="row 1 has no picture"):
        read_benchmark("pope")


@pytest.mark.parametrize(
    ("content", "said"), [(b"version https://git-lfs.github.com/spec/v1", "no parquet file"), (b"", "no parquet file")]
)
def test_files_that_are_no_tables(folder, content, said):
    PUBLISHED["pope"].write(folder / "pope")
    next(folder.glob("pope/data/*")).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        read_benchmark("pope")


def test_pictures_in_another_form(folder):
    PUBLISHED["chartqa"].write(folder / "chartqa")
    path = next(folder.glob("chartqa/data/*"))
    whole = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(whole.set_column(3, "image", [[b"1", b"2"]]), path)
    with pytest.raises(ValueError, match=r"column 'image' of .* holds no pictures, but binary"):
        read_benchmark("chartqa")


@pytest.mark.parametrize("content", ["{}", "[1]", "[", '"text"'])
def test_json_of_another_form(folder, content):
    PUBLISHED["mvbench"].write(folder / "mvbench")
    (folder / "mvbench/json/action_count.json").write_text(content)
    with pytest.raises(ValueError, match=r"mvbench, json/action_count.json: .*(must hold a list|cannot be read)"):
        read_benchmark("mvbench")


def test_two_versions_of_a_table(folder):
    PUBLISHED["mme"].write(folder / "mme")
    path = next(folder.glob("mme/data/*"))
    shutil.copy(path, path.with_name("test-00000-of-00001-cdf94cd33feeb309.parquet"))
    with pytest.raises(
        ValueError, match=r"two versions of a table, test-00000-of-00001-a25.* and test-00000-of-00001-cdf"
    ):
        read_benchmark("mme")


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_that_are_not_there(folder, name):
    published = PUBLISHED[name]
    published.write(folder / name)
    (folder / name / published.videos[-1]).unlink()
    (folder / name / "videos_1.zip").write_bytes(b"PK")
    total = len(set(published.videos))
    with pytest.raises(FileNotFoundError, match=f"{name}: 1 of {total} videos are not in") as caught:
        read_benchmark(name)
    assert "Unpack videos_1.zip." in str(caught.value)
    assert f"hf download {BENCHMARKS[name].repository}" in str(caught.value)


def test_videos_wherever_they_were_unpacked(folder):
    root = PUBLISHED["mvbench"].write(folder / "mvbench")
    (root / "unpacked").mkdir()
    (root / "perception").rename(root / "unpacked" / "perception")
    (root / "clevrer").rename(folder / "elsewhere")
    (root / "clevrer").symlink_to(folder / "elsewhere")
    (root / "unpacked" / "round").symlink_to(root)
    found = read_benchmark("mvbench", frames=2)
    assert [len(sample.media[0].load().frames) for sample in found.samples] == [2, 2]
    assert (found.source["frames"], found.source["fps"]) == (2, None)


def test_video_folder(tmp_path):
    for file in ("a/x.mp4", "b/x.mp4", "b/y.MKV", ".hidden/z.mp4", "c/w.mp4", "d/c/w.mp4"):
        (tmp_path / "one" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / file).touch()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "x.mp4").touch()
    found = VideoFolder([tmp_path / "one", tmp_path / "two"])
    assert found.find("a/x.mp4") == tmp_path / "one/a/x.mp4"
    assert found.find("y.mp4") == tmp_path / "one/b/y.MKV"
    assert found.find("z.mp4") is None
    with pytest.raises(ValueError, match="several files"):
        found.find("x.mp4")
    with pytest.raises(ValueError, match="several files"):
        found.find("c/w.mp4")
    assert VideoFolder([tmp_path / "two", tmp_path / "one"]).find("x.mp4") == tmp_path / "two/x.mp4"


def test_source(folder):
    PUBLISHED["gqa"].write(folder / "gqa")
    source = read_benchmark("gqa", limit=2).source
    fingerprint = source.pop("fingerprint")
    assert source == {
        "benchmark": "gqa",
        "split": "testdev",
        "repository": "lmms-lab-encoder/GQA",
        "revision": "main",
        "limit": 2,
    }
    assert read_benchmark("gqa", limit=2).source["fingerprint"] == fingerprint
    path = next(folder.glob("gqa/testdev_balanced_images/*"))
    rewrite(path, lambda rows: rows.append(dict(rows[0], id="n8")))
    assert read_benchmark("gqa", limit=2).source["fingerprint"] != fingerprint


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("popes", {}, "unknown benchmark 'popes'; there are gqa, .* Did you mean 'pope'"),
        ("pope", dict(limit=0), "limit must be a whole number >= 1, got 0"),
        ("pope", dict(limit=True), "limit must be"),
        ("pope", dict(limit=1.5), "limit must be"),
        ("pope", dict(frames=4), "frames and fps are for videos; pope shows pictures"),
        ("pope", dict(fps=1.0), "frames and fps are for videos"),
        ("mlvu", dict(frames=0), "frames must be"),
        ("mlvu", dict(fps=-1), "fps must be"),
    ],
)
def test_bad_arguments(name, arguments, said):
    with pytest.raises(ValueError, match=said):
        read_benchmark(name, **arguments)


def test_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"datasets is missing.*vtprune\[eval\]"):
        read_benchmark("pope")


def test_imports_no_datasets():
    """Not before a benchmark is read: it is an extra."""
    for file in Path(module.__file__).parent.glob("*.py"):
        imports = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not {"datasets", "pyarrow"} & {ast.unparse(node).split()[1].split(".")[0] for node in imports}, file


def test_page():
    kept = Path(__file__).parents[4] / "docs" / "benchmarks-data.md"
    assert kept.read_text(encoding="utf-8") == page(), "python -m vtprune.evals.data.benchmarks.page > " + str(kept)
