"""Chat templates of the published forms, as Jinja text."""

from __future__ import annotations

import json

_CONTENT = (
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'video' %}VIDEO"
    "{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
)


def template(before: str, after: str, generation: str, image: str, video: str = "") -> str:
    """A chat template that writes one message after the other.

    Args:
        before: Jinja text before a message `m`.
        after: Jinja text after it.
        generation: What the answer begins with.
        image: What a picture is written as.
        video: What a video is written as.
    """
    content = _CONTENT.replace("IMAGE", literal(image)).replace("VIDEO", literal(video))
    end = "{% if add_generation_prompt %}" + literal(generation) + "{% endif %}"
    return "{% for m in messages %}" + before + content + after + "{% endfor %}" + end


def chatml(image: str, video: str, system: str | None = None) -> str:
    """Qwen's form.

    Args:
        image: What a picture is written as.
        video: What a video is written as.
        system: The system message of a conversation that begins without one; None: none is added.
    """
    before = literal("<|im_start|>") + "{{ m['role'] }}" + literal("\n")
    if system is not None:
        added = literal(f"<|im_start|>system\n{system}<|im_end|>\n")
        before = "{% if loop.first and m['role'] != 'system' %}" + added + "{% endif %}" + before
    return template(before, literal("<|im_end|>\n"), "<|im_start|>assistant\n", image, video)


def literal(text: str) -> str:
    """Jinja that writes `text` as it is; bare line ends after a tag would be trimmed."""
    return "{{ " + json.dumps(text) + " }}" if text else ""
