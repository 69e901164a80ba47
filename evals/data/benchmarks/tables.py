"""Tables on disk: their questions read in order, their pictures one at a time, when they are shown."""

from __future__ import annotations

import bisect
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vtprune.files import reason

if TYPE_CHECKING:
    import datasets
    import pyarrow

_BATCH = 1000
_KEPT_GROUPS = 2


class Table(Protocol):
    """A table of questions or pictures.

    Attributes:
        files: What has been read of it.
    """

    files: list[Path]

    def rows(self, columns: Sequence[str], picture: str | None = None) -> Iterator[dict[str, Any]]:
        """The rows in order, no more of them than are taken.

        Args:
            columns: What to read.
            picture: A column of pictures, which must be there and full, but is not read.

        Raises:
            ValueError: A column is missing, a row has no picture, or the file is damaged.
        """

    def cell(self, number: int, column: str) -> Any:
        """One value of a row that `rows` has given."""


class ParquetTable:
    """Parquet files, read where they lie: neither copied nor converted.

    Pictures are stored in groups of rows (100 as a rule), and a group is read as a whole: those last used are kept.

    Args:
        files: In their order; each is asked for when its rows are.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files: list[Path] = []
        self._left = iter(files)
        self._starts: list[int] = []  # number of the first row of each group
        self._groups: list[tuple[Path, int]] = []

    def rows(self, columns: Sequence[str], picture: str | None = None) -> Iterator[dict[str, Any]]:
        """See `Table.rows`; only once."""
        number = 0
        for path in self._left:
            file = _parquet(path)
            _check_columns(path.name, file.schema_arrow, columns, picture)
            self.files.append(path)
            for group in range(file.metadata.num_row_groups):
                empty = _empty(file, path, group, picture) if picture else set()
                self._starts.append(number)
                self._groups.append((path, group))
                for batch in file.iter_batches(_BATCH, row_groups=[group], columns=list(columns)):
                    for row in batch.to_pylist():
                        if number - self._starts[-1] in empty:
                            raise _no_picture(number)
                        yield row
                        number += 1

    def cell(self, number: int, column: str) -> Any:
        """See `Table.cell`."""
        place = bisect.bisect_right(self._starts, number) - 1
        return _column(*self._groups[place], column)[number - self._starts[place]].as_py()


class SavedTable:
    """A data set that `save_to_disk` wrote, memory-mapped.

    Args:
        dataset: As `load_from_disk` gives it.
    """

    def __init__(self, dataset: datasets.Dataset) -> None:
        self.files = [Path(file["filename"]) for file in dataset.cache_files]
        self._dataset = dataset.with_format("arrow")

    def rows(self, columns: Sequence[str], picture: str | None = None) -> Iterator[dict[str, Any]]:
        """See `Table.rows`."""
        _check_columns("the data set", self._dataset.features.arrow_schema, columns, picture)
        number = 0
        for batch in self._dataset.iter(_BATCH):
            empty = _nulls(batch[picture]) if picture else set()
            for place, row in enumerate(batch.select(list(columns)).to_pylist()):
                if place in empty:
                    raise _no_picture(number)
                yield row
                number += 1

    def cell(self, number: int, column: str) -> Any:
        """See `Table.cell`."""
        return self._dataset[number][column][0].as_py()


class JsonTable:
    """A JSON file that holds a list of objects.

    Args:
        files: One file.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)

    def rows(self, columns: Sequence[str], picture: str | None = None) -> Iterator[dict[str, Any]]:
        """See `Table.rows`; without pictures."""
        for path in self.files:
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise ValueError(f"{str(path)!r} cannot be read: {reason(error)}.") from None
            if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
                raise ValueError(f"{str(path)!r} must hold a list of objects.")
            for row in found:
                _check_names(path.name, list(row), columns)
                yield {column: row[column] for column in columns}

    def cell(self, number: int, column: str) -> Any:
        """There are no pictures in such files."""
        raise ValueError("a JSON file holds no pictures.")


def _check_columns(name: str, schema: pyarrow.Schema, columns: Sequence[str], picture: str | None) -> None:
    from pyarrow import types

    _check_names(name, schema.names, [*columns, *([picture] if picture else [])])
    if picture:
        kind = schema.field(picture).type
        if not types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise ValueError(f"column {picture!r} of {name} holds no pictures, but {kind}.")


def _check_names(name: str, found: Sequence[str], wanted: Sequence[str]) -> None:
    missing = [column for column in wanted if column not in found]
    if missing:
        raise ValueError(
            f"{name} has no column {', '.join(map(repr, missing))}, but {', '.join(found)}; is it another data set?"
        )


def _no_picture(number: int) -> ValueError:
    return ValueError(f"row {number} has no picture.")


def _parquet(path: Path) -> pyarrow.parquet.ParquetFile:
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is no parquet file that can be read: {reason(error)}.") from None


def _empty(file: pyarrow.parquet.ParquetFile, path: Path, group: int, picture: str) -> set[int]:
    """Rows of a group without a picture; the pictures are not read if the file's footer says that there are none."""
    info = file.metadata.row_group(group)
    leaves = [info.column(place) for place in range(info.num_columns)]
    wanted = [leaf for leaf in leaves if leaf.path_in_schema == f"{picture}.bytes"]
    if wanted and wanted[0].statistics is not None and wanted[0].statistics.null_count == 0:
        return set()
    return _nulls(_column(path, group, picture))


def _nulls(pictures: pyarrow.ChunkedArray) -> set[int]:
    from pyarrow import compute

    nulls = compute.is_null(compute.struct_field(pictures, "bytes"))
    return {place for place, null in enumerate(nulls.to_pylist()) if null}


@functools.lru_cache(maxsize=_KEPT_GROUPS)
def _column(path: Path, group: int, column: str) -> pyarrow.ChunkedArray:
    return _parquet(path).read_row_group(group, columns=[column])[column]
