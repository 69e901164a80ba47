"""The method picker: what a visitor chooses methods, a budget and parameters with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from vtprune.budget import Budget
from vtprune.demo.tabs.events import AT_ONCE, QUIET
from vtprune.demo.work import chains
from vtprune.demo.work.catalogue import catalogue, choices, offered, refusals
from vtprune.demo.work.parameters import Parameter, parameters
from vtprune.methods.parse import write_value
from vtprune.models import Loaded

SHARE, NUMBER = "share", "number"
# What is drawn anew on a change of state must be queued: Gradio tells the page of such changes only then.
_QUEUED: dict[str, Any] = {**QUIET, "concurrency_limit": None}


@dataclasses.dataclass(frozen=True)
class MethodPicker:
    """The components of a picker, as inputs for what is to be done with the method.

    Args:
        methods: What is chosen, a list of names.
        keep: The budget as a share of the visual tokens, where it is given as one; `written` has it too.
        written: The whole of it, budget included, as the command line writes it: what `chains.read_chain` takes.
        refused: Note on the methods that do not work on the model.
    """

    methods: gr.Dropdown
    keep: gr.Slider
    written: gr.Textbox
    refused: gr.HTML

    @property
    def fitted(self) -> list[gr.Dropdown | gr.HTML]:
        """The components that `fit` has updates for."""
        return [self.methods, self.refused]

    def fit(self, loaded: Loaded, video: bool) -> tuple[gr.Dropdown, str]:
        """Updates of `fitted` once another model is chosen, or a clip instead of a picture.

        Args:
            loaded: The model.
            video: Whether it is shown a clip.
        """
        return gr.Dropdown(choices=offered(loaded, video)), _refused(refusals(loaded, video))


def method_picker(
    label: str = "Method", value: str = "divprune", keep: float = 0.25, loaded: Loaded | None = None
) -> MethodPicker:
    """Lay out a picker inside the current Blocks.

    Args:
        label: Of the list of methods.
        value: What is chosen at first, as the command line writes it.
        keep: Its budget, a share of the visual tokens in [0.01, 1], where it takes one and has none.
        loaded: The model that is asked at first, about a picture; with none, no method is marked as unfit.

    Raises:
        ValueError: `value` is no chain of methods.
    """
    names = [name for name, _ in chains.read_chain(value)]
    first = chains.choose(chains.read_chain(value), names, keep)
    text = chains.write_chain(first)
    as_unit, as_share, as_tokens = _budget(chains.budget(first))
    as_share, as_tokens = {"value": keep, **as_share}, {"value": 64, **as_tokens}
    with gr.Row():
        with gr.Column(min_width=260):
            methods = gr.Dropdown(
                offered(loaded, video=False) if loaded else choices(),
                value=names,
                multiselect=True,
                label=label,
                info="One, or several that work together as a chain.",
                interactive=True,
            )
        with gr.Column(min_width=260):
            share = gr.Slider(chains.LEAST, 1, step=0.01, label="Budget", **as_share)
            tokens = gr.Number(precision=0, minimum=1, label="Budget", **as_tokens)
    about = gr.HTML(_about(first), elem_classes=["vtprune-flush", "vtprune-about"], apply_default_css=False)
    # What the controls of parameters were drawn from, and how many times they have been; what all controls say; what
    # was written when a visitor began to edit it.
    drawn, agreed, found = gr.State((0, text)), gr.State(text), gr.State(text)
    with gr.Accordion("Parameters", open=False):
        unit = gr.Radio([("share of the tokens", SHARE), ("number of tokens", NUMBER)], label="Budget as", **as_unit)
        area = gr.Column()
        written = gr.Textbox(
            text,
            label="Method as the command line writes it",
            info="Follows the controls, and they follow it.",
            max_length=chains.LONGEST,
            elem_classes="vtprune-written",
        )
    wrong = gr.HTML(elem_classes=["vtprune-flush", "vtprune-wrong"], apply_default_css=False)
    refused = gr.HTML(
        _refused(refusals(loaded, video=False)) if loaded else "",
        elem_classes=["vtprune-flush", "vtprune-refused"],
        apply_default_css=False,
    )
    budget: list[Any] = [unit, share, tokens]

    def chosen(names: list[str], before: str, drawn: tuple[int, str], *budget: Any) -> tuple[Any, ...]:
        chain = chains.parse_chain(before) if before else []
        if set(names) == {name for name, _ in chain}:
            return tuple(gr.skip() for _ in synced)
        chain = chains.choose(chain, names, _keep(*budget))
        return gr.skip(), *agree(chains.write_chain(chain), drawn)[1:]

    def edited(text: str, found: str | None, drawn: tuple[int, str]) -> tuple[Any, ...]:
        done = text == found or chains.problem(text)
        return tuple(gr.skip() for _ in synced) if done else agree(text, drawn)

    def agree(text: str, drawn: tuple[int, str]) -> tuple[Any, ...]:
        chain = chains.parse_chain(text) if text else []
        props = [gr.update(**one) for one in _budget(chains.budget(chain))]
        names = list(dict.fromkeys(name for name, _ in chain))
        return names, _about(chain), *props, (drawn[0] + 1, text), text, text

    def budgeted(before: str, *budget: Any) -> tuple[str, str]:
        chain = chains.parse_chain(before)
        place = chains.budget(chain).place
        text = before if place is None else chains.write_chain(chains.set_budget(chain, place, _keep(*budget)))
        return text, text

    synced = [methods, about, *budget, drawn, agreed, written]
    # Not `input`: that does not tell when all are removed at once.
    methods.change(chosen, [methods, agreed, drawn, *budget], synced, **_QUEUED)
    gr.on([written.focus, written.submit], lambda text: text, written, found, trigger_mode="multiple", **AT_ONCE)
    written.submit(lambda text, drawn: edited(text, None, drawn), [written, drawn], synced, **_QUEUED)
    written.blur(edited, [written, found, drawn], synced, **_QUEUED)
    written.change(_wrong, written, wrong, trigger_mode="always_last", **AT_ONCE)
    unit.input(_visible, unit, [share, tokens], **AT_ONCE)
    moved = [part.input for part in budget]
    gr.on(moved, budgeted, [agreed, *budget], [written, agreed], trigger_mode="always_last", **AT_ONCE)

    with area:
        # Only what is drawn here may be listened to here: Gradio would forget who else listens.
        @gr.render(drawn, show_progress="hidden")
        def draw(drawn: tuple[int, str]) -> None:
            chain = chains.parse_chain(drawn[1]) if drawn[1] else []
            place = chains.budget(chain).place
            controls = _draw(chain, place)

            def say(unit: str, share: float, tokens: int | None, *values: Any) -> tuple[str, str]:
                said = chains.set_values(
                    chain, {key: parameter.read(x) for (key, parameter, _), x in zip(controls, values, strict=True)}
                )
                if place is not None:
                    said = chains.set_budget(said, place, _keep(unit, share, tokens))
                text = chains.write_chain(said)
                return text, text

            parts = [control for _, _, control in controls]
            if parts:
                changed = [_edit(part) for part in parts]
                gr.on(changed, say, [*budget, *parts], [written, agreed], trigger_mode="always_last", **AT_ONCE)

    return MethodPicker(methods, share, written, refused)


def method_list(label: str, value: Sequence[str] = ("divprune", "random")) -> gr.Dropdown:
    """A list of methods to compare, each of its entries a method or a chain as the command line writes it.

    Args:
        label: Of the list.
        value: What is chosen at first.
    """
    return gr.Dropdown(
        choices(),
        value=list(value),
        multiselect=True,
        allow_custom_value=True,
        interactive=True,
        label=label,
        info="Pick some, or write one with parameters, or a chain (tome+fastv:layer=2), and press Enter.",
    )


def _keep(unit: str, share: float, tokens: int | None) -> Budget:
    if unit == SHARE:
        return float(share)
    if tokens is None:
        raise gr.Error("Give a number of tokens, at least 1.")
    return int(tokens)


def _budget(shown: chains.Shown) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Properties of the controls of the budget: how it is given, as a share, as a number."""
    active, number = shown.place is not None, isinstance(shown.keep, int)
    unit: dict[str, Any] = {"value": NUMBER if number else SHARE, "interactive": active}
    share: dict[str, Any] = {
        "visible": not number,
        "interactive": active,
        "info": shown.note or "Share of the visual tokens that stay.",
    }
    tokens: dict[str, Any] = {
        "visible": number,
        "interactive": active,
        "info": "Visual tokens that stay of each picture.",
    }
    if shown.keep is not None:
        (tokens if number else share)["value"] = shown.keep
    return unit, share, tokens


def _visible(unit: str) -> tuple[Any, Any]:
    return gr.update(visible=unit == SHARE), gr.update(visible=unit == NUMBER)


def _draw(chain: chains.Chain, place: int | None) -> list[tuple[tuple[int, str], Parameter, Any]]:
    """Lay out the controls of a chain's parameters, without the budget of the method at `place`."""
    controls = []
    for at, (name, given) in enumerate(chain):
        shown = [x for x in parameters(name).values() if x.name != "keep" or at != place]
        if len(chain) > 1 or not shown:
            head = f"<h4>{escape(name)}{'' if shown else ' has no further parameters'}</h4>"
            gr.HTML(head, elem_classes=["vtprune-flush", "vtprune-head"], apply_default_css=False)
        with gr.Row(elem_classes="vtprune-parameters"):
            for parameter in shown:
                value = parameter.show(given.get(parameter.name, parameter.default))
                controls.append(((at, parameter.name), parameter, _control(parameter, value)))
    return controls


def _control(parameter: Parameter, value: Any) -> Any:
    said: dict[str, Any] = {
        "label": parameter.name,
        "info": parameter.about or None,
        "interactive": True,
        "min_width": 160,
    }
    match parameter.kind:
        case "flag":
            return gr.Checkbox(value, **said)
        case "choice":
            return gr.Dropdown(list(parameter.choices), value=value, **said)
        case "text":
            return gr.Textbox(value, placeholder=write_value(parameter.default), max_length=chains.LONGEST, **said)
        case kind:
            return gr.Number(
                value, placeholder=str(parameter.default), precision=0 if kind == "whole" else None, **said
            )


def _edit(control: Any) -> Any:
    """The event of a visitor's change; a text box tells of keys only as such, and not of what is pasted or deleted."""
    return control.change if isinstance(control, gr.Textbox) else control.input


def _about(chain: chains.Chain) -> str:
    """What the chosen methods do."""
    said = [(name, catalogue()[name]["does"]) for name in dict.fromkeys(name for name, _ in chain)]
    return "".join(f"<p><strong>{escape(name)}</strong> {escape(does)}</p>" for name, does in said)


def _wrong(written: str) -> str:
    """What is wrong with what is written, where screen readers say it at once."""
    message = chains.problem(written)
    return f'<p role="alert">{escape(message)}</p>' if message else ""


def _refused(reasons: dict[str, str]) -> str:
    """Which methods do not suit the model, and why."""
    if not reasons:
        return ""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    lines = "".join(f"<li><b>{escape(', '.join(x))}</b>: {escape(reason)}</li>" for reason, x in names.items())
    return f"<details><summary>{len(reasons)} methods do not work here</summary><ul>{lines}</ul></details>"
