"""Pictures that matplotlib drew, made fit to stand within a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from vtprune.evals.pages.tips import RULES, Point, Tip, draw_tips

_SVG = "http://www.w3.org/2000/svg"
_LINK = "http://www.w3.org/1999/xlink"
_LETTERS = "Helvetica, Arial, 'Liberation Sans', sans-serif"


def finish_svg(drawn: str, key: str, title: str, description: str, tips: Mapping[str, Tip]) -> str:
    """An `<svg>` element without a head, metadata and rules that would reach the page around it.

    Args:
        drawn: What matplotlib wrote, with `svg.fonttype` "none".
        key: What all ids begin with.
        title: What it is called, for those who cannot see it.
        description: What it shows.
        tips: What is told of a dot when it is pointed at or reached by the keyboard, by the dot's id in `drawn`.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    layer = draw_tips([(_place(root, name), tip) for name, tip in tips.items()], _size(root))
    for element in layer.iter():
        element.tag = f"{{{_SVG}}}{element.tag}"
    for element in root.iter():
        _own_ids(element, key)
        if "style" in element.attrib:
            element.set("style", re.sub(r"font-family:[^;]*;?|(?<=px) '[^;]*(?=;|$)", "", element.attrib["style"]))
    _describe(root, key, title, description)
    root.append(layer)
    return ElementTree.tostring(root, encoding="unicode")


def _describe(root: Element, key: str, title: str, description: str) -> None:
    """The drawing is one picture with a text, in a group with its dots; a `<title>` would show up as a second tip."""
    picture = Element(f"{{{_SVG}}}g", {"role": "img", "aria-labelledby": f"{key}-desc"})
    picture.extend(list(root))
    for child in list(root):
        root.remove(child)
    told = ElementTree.SubElement(root, f"{{{_SVG}}}desc", {"id": f"{key}-desc"})
    told.text = description
    ElementTree.SubElement(root, f"{{{_SVG}}}style").text = RULES
    root.append(picture)
    root.attrib.pop("id", None)
    root.set("role", "group")
    root.set("aria-label", title)
    root.set("style", f"stroke-linejoin: round; stroke-linecap: butt; font-family: {_LETTERS}")


def _place(root: Element, name: str) -> Point:
    """Where the mark of a line with one dot stands."""
    mark = root.find(f".//*[@id='{name}']//{{{_SVG}}}use")
    if mark is None:
        raise ValueError(f"tips must be of dots that are drawn, and there is no {name!r}.")
    return float(mark.attrib["x"]), float(mark.attrib["y"])


def _size(root: Element) -> Point:
    width, height = root.attrib["viewBox"].split()[2:]
    return float(width), float(height)


def _own_ids(element: Element, key: str) -> None:
    for name, value in element.attrib.items():
        if name == "id":
            element.set(name, f"{key}-{value}")
        elif name == f"{{{_LINK}}}href" and value.startswith("#"):
            element.set(name, f"#{key}-{value[1:]}")
        elif "url(#" in value:
            element.set(name, value.replace("url(#", f"url(#{key}-"))
