"""What reproduces a result: a line of Python and a command; and the result itself as JSON."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, ClassVar

from vtprune.demo.work.asking import Asked
from vtprune.demo.work.chosen import Chosen
from vtprune.demo.work.media import Question

_FLAGS = {
    "device": "--device",
    "dtype": "--dtype",
    "attention": "--attn",
    "device_map": "--device-map",
    "trust_remote_code": "--trust-remote-code",
}


def flags(loading: Mapping[str, str | bool]) -> list[str]:
    """How a model is loaded, as words of a command line.

    Args:
        loading: What else than its name it is loaded with, by argument of `vtprune.models.load_model`.
    """
    pairs = [[_FLAGS[name]] if value is True else [_FLAGS[name], str(value)] for name, value in loading.items()]
    return [word for pair in pairs for word in pair]


@dataclasses.dataclass(frozen=True)
class Request:
    """All that was asked for.

    Args:
        model: Name of the model.
        loading: What else it was loaded with.
        question: What was asked.
        chain: The methods.
        new_tokens: Where answers are cut off.
        frames: How many frames are taken of a clip, at most.
    """

    model: str
    loading: Mapping[str, str | bool]
    question: Question
    chain: Chosen
    new_tokens: int
    frames: int

    def command(self) -> str:
        """The command line; a medium that was uploaded goes by its name."""
        question = self.question
        file = f"example:{question.file}" if question.shipped else question.file
        words = ["vtprune", "run", "--model", self.model]
        words += ["--video" if question.is_video else "--image", file]
        if question.is_video:
            words += ["--frames", str(self.frames)]
        words += ["--prompt", question.text, "--method", self.chain.written]
        if self.chain.keep is not None:
            words += ["--keep", str(self.chain.keep)]
        words += ["--max-new-tokens", str(self.new_tokens)]
        return shlex.join([*words, *flags(self.loading)])

    imports: ClassVar[str] = "import vtprune.images, vtprune.models, vtprune.run, vtprune.videos"

    def python(self) -> str:
        """A line of Python, below what it needs to import."""
        return f"{self.imports}\n\n{self.call()}"

    def call(self) -> str:
        """The line of Python."""
        question = self.question
        loading = "".join(f", {name}={value!r}" for name, value in self.loading.items())
        file = f"vtprune.models.shipped_example({question.file!r})[0]" if question.shipped else repr(question.file)
        if question.is_video:
            shown, videos = "[]", f", videos=[vtprune.videos.load_video({file}, frames={self.frames})]"
        else:
            shown, videos = f"[vtprune.images.load_image({file})]", ""
        keep = "" if self.chain.keep is None else f", keep={self.chain.keep!r}"
        return (
            f"print(vtprune.run.compare(vtprune.models.load_model({self.model!r}{loading}), {shown}, "
            f"{question.text!r}, {self.chain.written!r}{keep}, max_new_tokens={self.new_tokens}{videos}))"
        )

    def document(self, asked: Asked) -> dict[str, Any]:
        """The result, ready for JSON."""
        times = asked.times or (None, None)
        return {
            "model": self.model,
            "question": self.question.text,
            "file": self.question.file,
            "method": self.chain.written,
            "keep": self.chain.keep,
            "max_new_tokens": self.new_tokens,
            "answer": asked.pruned.text,
            "baseline_answer": asked.unpruned.text,
            "stopped": asked.stopped,
            "times": None if times[1] is None else dataclasses.asdict(times[1]),
            "baseline_times": None if times[0] is None else dataclasses.asdict(times[0]),
            "report": None if asked.report is None else asked.report.to_dict(),
            "command": self.command(),
            "python": self.python(),
            "versions": {name: version(name) for name in ("vtprune", "torch", "transformers")},
        }
