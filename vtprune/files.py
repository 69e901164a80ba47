"""Checks of a file that a person named, before a library opens it and complains in its own words."""

from __future__ import annotations

import stat
from pathlib import Path


def check_file(path: Path, what: str) -> None:
    """Check that there is a file with something in it.

    Args:
        path: The file.
        what: How messages call it, "picture" say.

    Raises:
        FileNotFoundError: There is no such file.
        IsADirectoryError: It is a folder.
        PermissionError: It may not be read.
        ValueError: It is empty, or no regular file.
    """
    try:
        info = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{what} {str(path)!r} does not exist.") from None
    except PermissionError:
        raise PermissionError(f"{what} {str(path)!r} may not be read.") from None
    except (OSError, ValueError) as error:  # a name too long, a null byte, a file where a folder should be
        raise FileNotFoundError(f"{what} {str(path)!r} cannot be found: {reason(error)}.") from None
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(f"{what} {str(path)!r} is a folder.")
    if not stat.S_ISREG(info.st_mode):
        raise ValueError(f"{what} {str(path)!r} is no regular file.")
    if info.st_size == 0:
        raise ValueError(f"{what} {str(path)!r} is an empty file.")


def reason(error: BaseException) -> str:
    """An error's words without a full stop; its kind if it has none."""
    return (str(getattr(error, "strerror", None) or error) or type(error).__name__).rstrip(".")
