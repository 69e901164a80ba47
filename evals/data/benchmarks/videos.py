"""Finding a benchmark's videos, wherever its zip files were unpacked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")


class VideoFolder:
    """The video files below some folders.

    Attributes:
        roots: The folders; a file of an earlier one is preferred.
        zips: Names of the zip files in them.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = roots
        self.zips: list[str] = []
        self._videos: dict[str, list[Path]] = {}
        for path in _walk(roots):
            if path.suffix.lower() in _SUFFIXES:
                self._videos.setdefault(path.stem, []).append(path)
            elif path.suffix.lower() == ".zip":
                self.zips.append(path.name)

    def find(self, wanted: str) -> Path | None:
        """The file whose path ends so, whatever its suffix if no other will do; None if there is none.

        Raises:
            ValueError: There are several.
        """
        path = PurePosixPath(wanted)
        folders = path.parent.parts
        fits = self._videos.get(path.stem, [])
        if folders:
            fits = [file for file in fits if file.parent.parts[-len(folders) :] == folders]
        fits = [file for file in fits if file.suffix == path.suffix] or fits
        for root in self.roots:
            here = [file for file in fits if file.is_relative_to(root)]
            if len(here) > 1:
                raise ValueError(f"there are several files for its video: {', '.join(map(str, here))}")
            if here:
                return here[0]
        return None


def _walk(roots: Sequence[Path]) -> Iterator[Path]:
    """Files below folders, and below what is linked into them; none that are hidden."""
    seen: set[str] = set()
    for root in roots:
        for folder, names, files in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                names.clear()
                continue
            seen.add(real)
            names[:] = sorted(name for name in names if not name.startswith("."))
            yield from (Path(folder, file) for file in sorted(files) if not file.startswith("."))
