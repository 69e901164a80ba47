"""Where a benchmark's files are: in the user's folder, or on the Hub."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import constants

from vtprune.evals.data.benchmarks.base import Benchmark, Part, VideoFiles
from vtprune.evals.data.benchmarks.tables import JsonTable, ParquetTable, SavedTable, Table
from vtprune.files import reason
from vtprune.hub import hub_out_of_reach

FOLDER_VARIABLE = "VTPRUNE_DATA"
DEFAULT_FOLDER = "~/.cache/vtprune/data"

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=[-.])")


@dataclasses.dataclass(frozen=True)
class Place:
    """Where to read a benchmark.

    Args:
        benchmark: Which.
        root: The user's folder for it, where its videos are.
        tables: The folder that holds its tables; None for the Hub.
    """

    benchmark: Benchmark
    root: Path
    tables: Path | None

    def table(self, part: Part) -> Table:
        """A table; files that are missing, are there twice or that the Hub refuses are errors once they are read.

        Raises:
            FileNotFoundError: It is not there.
            ValueError: What `save_to_disk` wrote cannot be read.
        """
        if self.tables is None:
            files = _from_hub(self.benchmark, part, self.root)
        elif saved := _saved(self.benchmark, part, self.tables):
            return saved
        else:
            found = list(self.tables.glob(part.files))
            if not found:
                raise _missing(self.benchmark, self.root, part)
            files = _in_order(found, self.benchmark, self.root)
        return JsonTable(files) if part.files.endswith(".json") else ParquetTable(files)


def find(benchmark: Benchmark, folder: str | os.PathLike[str] | None) -> Place:
    """Where a benchmark is.

    Args:
        benchmark: Which.
        folder: That of all benchmarks, in which each has a folder of its own name. None: that of the environment
            variable VTPRUNE_DATA, or else ~/.cache/vtprune/data; and where it is not there, the Hub, or what the Hub's
            cache holds if the Hub is out of reach.

    Raises:
        FileNotFoundError: It is nowhere; the message says how to get it.
        ValueError: datasets is not installed.
    """
    _check_datasets()
    given = folder if folder is not None else os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER
    root = Path(given).expanduser() / benchmark.name
    if _holds(benchmark, root):
        return Place(benchmark, root, root)
    if folder is None:
        if not hub_out_of_reach():
            return Place(benchmark, root, None)
        for cached in in_hub_cache(benchmark):
            if _holds(benchmark, cached):
                return Place(benchmark, root, cached)
    raise _missing(benchmark, root, benchmark.parts[0], offline=folder is None)


def in_hub_cache(benchmark: Benchmark) -> list[Path]:
    """Copies of a benchmark's repository in the Hub's cache on this machine, whole or not, the newest first."""
    found: list[Path] = []
    for name in filter(None, (benchmark.repository, benchmark.formerly)):
        folder = Path(constants.HF_HUB_CACHE, f"datasets--{name.replace('/', '--')}")
        reference = folder / "refs" / benchmark.revision
        if reference.is_file():
            found.append(folder / "snapshots" / reference.read_text(encoding="utf-8").strip())
        if benchmark.revision == "main":  # datasets downloads by commit, and notes no branch
            found += sorted((folder / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    return [path for path in dict.fromkeys(found) if path.is_dir()]


def command(benchmark: Benchmark, root: str) -> str:
    """The command that downloads a benchmark.

    Args:
        benchmark: Which.
        root: Where to, as a shell understands it.
    """
    words = ["hf download", benchmark.repository, "--repo-type dataset", "--local-dir", root]
    if benchmark.revision != "main":
        words += ["--revision", benchmark.revision]
    if not isinstance(benchmark.media, VideoFiles):
        words += [f"--include {shlex.quote(pattern)}" for pattern in benchmark.files]
    return " ".join(words)


def how_to_get(benchmark: Benchmark, root: Path) -> str:
    """How to download a benchmark to where it is looked for; ends with a command that can be copied."""
    unpack = " (then unpack its zip files there, if any)" if isinstance(benchmark.media, VideoFiles) else ""
    return f"Get it with{unpack}: {command(benchmark, shlex.quote(str(root)))}"


def _check_datasets() -> None:
    try:
        import datasets  # noqa: F401
    except ImportError:
        raise ValueError("datasets is missing, which reads public benchmarks: pip install 'vtprune[eval]'.") from None


def _holds(benchmark: Benchmark, root: Path) -> bool:
    """Whether a folder holds some table of a benchmark."""
    return any(any(root.glob(part.files)) or _saved_in(benchmark, part, root) for part in benchmark.parts)


def _missing(benchmark: Benchmark, root: Path, part: Part, *, offline: bool = False) -> FileNotFoundError:
    also = ", and the Hub cannot be reached" if offline else ""
    return FileNotFoundError(
        f"{benchmark.name} is not there: no {part.files} in {str(root)!r}{also}. {how_to_get(benchmark, root)}"
    )


def _saved_in(benchmark: Benchmark, part: Part, root: Path) -> Path | None:
    """Where `save_to_disk` wrote a table: the folder of its configuration, or the benchmark's if it has one table."""
    alone = len(benchmark.files) == 1
    for folder in (root / part.config, *([root] if alone else [])):
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            return folder
    return None


def _saved(benchmark: Benchmark, part: Part, root: Path) -> SavedTable | None:
    import datasets

    folder = _saved_in(benchmark, part, root)
    if folder is None:
        return None
    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise ValueError(f"the data set in {str(folder)!r} cannot be read: {reason(error)}.") from None
    if isinstance(found, datasets.DatasetDict):
        if part.split not in found:
            raise ValueError(f"the data set in {str(folder)!r} has no split {part.split!r}, but {', '.join(found)}.")
        found = found[part.split]
    return SavedTable(found)


def _in_order(paths: Sequence[Path], benchmark: Benchmark, root: Path) -> Iterator[Path]:
    """The files of a table; those that are numbered must all be there."""
    numbered: dict[int, Path] = {}
    total = 0
    for path in sorted(paths):
        match = _SHARD.search(path.name)
        if match is None:
            yield path
            continue
        number = int(match.group(1))
        if number in numbered or total not in (0, int(match.group(2))):
            other = numbered.get(number, next(iter(numbered.values())))
            raise ValueError(f"two versions of a table, {other.name} and {path.name}, are in {str(path.parent)!r}.")
        numbered[number], total = path, int(match.group(2))
    for number in range(total):
        if number not in numbered:
            raise FileNotFoundError(
                f"{benchmark.name} is incomplete: of {total} files like {next(iter(numbered.values())).name} number "
                f"{number} is missing. {how_to_get(benchmark, root)}"
            )
        yield numbered[number]


def _from_hub(benchmark: Benchmark, part: Part, root: Path) -> Iterator[Path]:
    """The files of a table, each downloaded to the Hub's cache when it is needed."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(benchmark.repository, part.config, revision=benchmark.revision)
        urls = (builder.config.data_files or {})[part.split]
    except Exception as error:  # of datasets, huggingface_hub and the HTTP client below it
        raise _refused(benchmark, root, error) from error
    downloads = datasets.DownloadManager()
    for url in urls:
        try:
            path = Path(downloads.download(url))
        except Exception as error:
            raise _refused(benchmark, root, error) from error
        yield path


def _refused(benchmark: Benchmark, root: Path, error: Exception) -> OSError:
    said = f"{type(error).__name__}: {reason(error).splitlines()[0]}"
    return OSError(f"{benchmark.repository} cannot be read from the Hub ({said}). {how_to_get(benchmark, root)}")
