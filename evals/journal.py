"""What a search has found out so far, one line of JSON per evaluation, so that it goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Journal:
    """Evaluations by name, in memory and in a file that grows.

    Args:
        path: The file, JSON lines; None to keep nothing.
        settings: What the evaluations depend on; stands in the first line.

    Raises:
        ValueError: The file holds evaluations under other settings, or is no journal.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        self.found: dict[str, Any] = {}
        self.known = 0  # how many were asked for again
        if path is None:
            return
        if path.exists():
            self._read(path, settings)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write({"settings": settings})

    def _read(self, path: Path, settings: dict[str, Any]) -> None:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        if text and not text.endswith("\n"):  # the last line was being written when the run ended
            lines.pop()
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        try:
            head, *entries = map(json.loads, lines)
            held = head["settings"]
            self.found = {entry["name"]: entry["value"] for entry in entries}
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{str(path)!r} holds no evaluations of a search; remove it, or use another --out."
            ) from None
        if held != settings:
            differ = sorted(key for key in {*held, *settings} if held.get(key) != settings.get(key))
            raise ValueError(
                f"{str(path)!r} holds evaluations with other settings ({', '.join(differ)}); remove it, or use another "
                "--out."
            )

    def _write(self, line: dict[str, Any]) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")

    def get(self, name: str, evaluate: Callable[[], Any]) -> Any:
        """What is known under a name, else what `evaluate` says, which is noted; a value that JSON can hold."""
        if name in self.found:
            self.known += 1
        else:
            self.found[name] = evaluate()
            self._write({"name": name, "value": self.found[name]})
        return self.found[name]


def journal_of(out: Path) -> Path:
    """Where the evaluations behind a result are kept."""
    return out.with_name(f"{out.stem}.evaluations.jsonl")
