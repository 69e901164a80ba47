"""What a benchmark's questions are about, read when it is looked at."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Protocol

from PIL import Image

from vtprune.evals.data.benchmarks.base import Benchmark, Pictures, PictureTable, Row, VideoFiles, value
from vtprune.evals.data.benchmarks.places import Place, how_to_get, in_hub_cache
from vtprune.evals.data.benchmarks.tables import Table
from vtprune.evals.data.benchmarks.videos import VideoFolder
from vtprune.evals.data.sample import Medium
from vtprune.files import reason
from vtprune.videos import load_video


class Show(Protocol):
    """Where pictures or videos come from."""

    def medium(self, table: Table, number: int, row: Row, name: str) -> Medium:
        """What a question is about.

        Args:
            table: Of the question.
            number: Of its row.
            row: Its columns.
            name: What to call the medium.

        Raises:
            ValueError: It is not there.
        """

    def used(self) -> list[Path]:
        """Files beside the questions' tables, once all media have been named.

        Raises:
            FileNotFoundError: Some are not there.
        """


class OwnPictures:
    """Pictures in the questions' table."""

    def __init__(self, media: Pictures) -> None:
        self._column = media.column

    def medium(self, table: Table, number: int, row: Row, name: str) -> Medium:
        """See `Show.medium`."""
        return _picture(table, number, self._column, name)

    def used(self) -> list[Path]:
        """See `Show.used`."""
        return []


class JoinedPictures:
    """Pictures in a table of their own."""

    def __init__(self, benchmark: Benchmark, media: PictureTable, place: Place) -> None:
        self._media = media
        self._table = place.table(media.part)
        try:
            keys = self._table.rows((media.key,), media.column)
            self._numbers = {row[media.key]: number for number, row in enumerate(keys)}
        except ValueError as error:
            raise ValueError(f"{benchmark.name}, {media.part.files}: {error}") from None

    def medium(self, table: Table, number: int, row: Row, name: str) -> Medium:
        """See `Show.medium`."""
        key = row[self._media.by]
        if key not in self._numbers:
            raise ValueError(f"it is about picture {key!r}, which {self._media.part.files} does not have")
        return _picture(self._table, self._numbers[key], self._media.column, name)

    def used(self) -> list[Path]:
        """See `Show.used`."""
        return self._table.files


class Videos:
    """Videos in files."""

    def __init__(
        self, benchmark: Benchmark, media: VideoFiles, place: Place, frames: int | None, fps: float | None
    ) -> None:
        self._folder = VideoFolder([place.root, *in_hub_cache(benchmark)])
        self._media = media
        self._load = functools.partial(load_video, frames=frames, fps=fps)
        self._found: dict[str, Path | None] = {}
        self._name = benchmark.name
        self._how = how_to_get(benchmark, place.root)

    def medium(self, table: Table, number: int, row: Row, name: str) -> Medium:
        """See `Show.medium`."""
        wanted = str(value(self._media.path, row))
        if wanted not in self._found:
            self._found[wanted] = self._folder.find(wanted)
        return Medium(name, "video", functools.partial(self._load, self._found[wanted] or wanted))

    def used(self) -> list[Path]:
        """See `Show.used`."""
        gone = [wanted for wanted, path in self._found.items() if path is None]
        if gone:
            said = f"{len(gone)} of {len(self._found)} videos are not in {str(self._folder.roots[0])!r}"
            zips = f" Unpack {', '.join(self._folder.zips)}." if self._folder.zips else ""
            raise FileNotFoundError(f"{self._name}: {said}, {gone[0]!r} for one.{zips} {self._how}")
        return [path for path in self._found.values() if path]


def show(
    benchmark: Benchmark, place: Place, frames: int | None = None, fps: float | None = None
) -> OwnPictures | JoinedPictures | Videos:
    """What a benchmark's questions are about.

    Args:
        benchmark: Which.
        place: Where it is.
        frames: Of a video, see `vtprune.videos.load_video`.
        fps: Frames per second, see there.
    """
    match benchmark.media:
        case VideoFiles() as media:
            return Videos(benchmark, media, place, frames, fps)
        case PictureTable() as media:
            return JoinedPictures(benchmark, media, place)
        case Pictures() as media:
            return OwnPictures(media)


def _picture(table: Table, number: int, column: str, name: str) -> Medium:
    return Medium(name, "image", functools.partial(_load, table, number, column, name))


def _load(table: Table, number: int, column: str, name: str) -> Image.Image:
    import datasets

    try:
        picture: Image.Image = datasets.Image(mode="RGB").decode_example(table.cell(number, column))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"picture {name!r} (row {number}) cannot be read: {reason(error)}.") from None
    return picture
