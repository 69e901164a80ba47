"""What is asked about: model, picture or clip, and question; shared by the tabs."""

from __future__ import annotations

import dataclasses
from typing import Any

import gradio as gr

from vtprune.demo.server.uploads import Clip, Picture
from vtprune.demo.setting import Setting
from vtprune.demo.tabs.events import QUIET
from vtprune.demo.work.examples import Example, examples
from vtprune.demo.work.media import Question, read_question
from vtprune.videos import load_video

PICTURE, CLIP = "Picture", "Clip"


@dataclasses.dataclass(frozen=True)
class Panel:
    """Its fields."""

    model: gr.Dropdown
    kind: gr.Radio
    picture: Picture
    clip: Clip
    question: gr.Textbox

    @property
    def fields(self) -> list[Any]:
        """What handlers are given, in this order."""
        return [self.model, self.kind, self.picture, self.clip, self.question]


def question_panel(setting: Setting) -> Panel:
    """Lay out the fields; with an example filled in, so that the first click shows something."""
    first = examples()[0]
    model = gr.Dropdown(
        setting.models.names, value=setting.models.names[0], label="Model", interactive=True, filterable=False
    )
    with gr.Column(elem_classes="about"):
        kind = gr.Radio([PICTURE, CLIP], value=PICTURE, label="Ask about a")
        picture = Picture(
            str(first.file),
            label="Picture",
            sources=["upload", "webcam", "clipboard"],
            type="filepath",
            image_mode=None,
            height=260,
            buttons=["fullscreen"],
            alt_text="the picture that is asked about",
        )
        clip = Clip(label="Clip", sources=["upload", "webcam"], visible=False, buttons=[])
        question = gr.Textbox(
            first.questions[0],
            label="Question",
            info="Type one, or pick one.",
            lines=2,
            max_lines=6,
            max_length=setting.limits.prompt,
            elem_id="question",
        )
        ideas = gr.Dataset(
            components=[gr.Textbox(visible=False)],
            samples=_samples(first),
            show_label=False,
            elem_id="ideas",
            type="values",
        )
        shown = gr.Gallery(
            [_thumbnail(one) for one in examples()],
            label="Examples",
            columns=4,
            height="auto",
            allow_preview=False,
            object_fit="cover",
            interactive=False,
            buttons=[],
            elem_id="examples",
            format="png",
        )
    panel = Panel(model, kind, picture, clip, question)
    kind.change(_show_kind, kind, [picture, clip], **QUIET)
    shown.select(_pick, None, [kind, picture, clip, question, ideas], **QUIET)
    ideas.click(lambda picked: picked[0], ideas, question, **QUIET)
    return panel


def read_panel(
    setting: Setting, model: str, kind: str, picture: str | None, clip: str | None, question: str
) -> Question:
    """What is asked: of picture and clip only the one that is in sight.

    Raises:
        ValueError: As `vtprune.demo.work.media.read_question`, or the model takes no clips.
    """
    if kind != CLIP:
        return read_question(question, picture, None, setting.limits)
    setting.models.check_clips(model)
    return read_question(question, None, clip, setting.limits)


def _thumbnail(example: Example) -> Any:
    if not example.is_video:
        return str(example.file)
    from PIL import Image

    return Image.fromarray(load_video(example.file, frames=2).frames[-1])


def _show_kind(kind: str) -> tuple[Any, Any]:
    return gr.update(visible=kind == PICTURE), gr.update(visible=kind == CLIP)


def _samples(example: Example) -> list[list[str]]:
    return [[question] for question in example.questions]


def _pick(event: gr.SelectData) -> tuple[Any, Any, Any, str, Any]:
    example = examples()[event.index]
    file, other = gr.update(value=str(example.file), visible=True), gr.update(visible=False)
    kind, media = (CLIP, (other, file)) if example.is_video else (PICTURE, (file, other))
    return kind, *media, example.questions[0], gr.Dataset(samples=_samples(example))
