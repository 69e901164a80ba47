"""Pictures and videos that a file of questions names."""

from __future__ import annotations

import dataclasses
import functools
import re
from pathlib import Path
from typing import Literal

from vtprune.evals.data.sample import Medium
from vtprune.files import check_file
from vtprune.images import load_image
from vtprune.videos import load_video

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+:/|data:")


@dataclasses.dataclass(frozen=True)
class Folder:
    """The folder that paths are relative to.

    Args:
        path: The folder.
        frames: How many frames of a video are taken, see `vtprune.videos.load_video`.
        fps: How many frames per second of a video are taken.
    """

    path: Path
    frames: int | None = None
    fps: float | None = None
    _found: set[Path] = dataclasses.field(default_factory=set, init=False, repr=False)

    def medium(self, kind: Literal["image", "video"], name: str) -> Medium:
        """A picture or video that will be read when it is needed.

        Args:
            kind: "image" or "video".
            name: Its path, from the folder or absolute.

        Raises:
            ValueError: It is a URL, an empty file or no regular file.
            OSError: There is no such file, it is a folder, or it may not be read.
        """
        what = "picture" if kind == "image" else "video"
        if _URL.match(name):
            shown = name if len(name) <= 60 else f"{name[:57]}..."
            raise ValueError(f"{what} {shown!r} is a URL; download it and give the file.")
        path = self.path / name
        if path not in self._found:
            check_file(path, what)
            self._found.add(path)
        if kind == "image":
            return Medium(name, kind, functools.partial(load_image, path))
        return Medium(name, kind, functools.partial(load_video, path, frames=self.frames, fps=self.fps))
