"""Pictures that matplotlib drew, made fit to stand within a page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

_SVG = "http://www.w3.org/2000/svg"
_LINK = "http://www.w3.org/1999/xlink"
_LETTERS = "Helvetica, Arial, 'Liberation Sans', sans-serif"


def finish_svg(drawn: str, key: str, title: str, description: str) -> str:
    """An `<svg>` element without a head, metadata and rules that would reach the page around it.

    Args:
        drawn: What matplotlib wrote, with `svg.fonttype` "none".
        key: What all ids begin with.
        title: What it is called, for those who cannot see it.
        description: What it shows.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    root = ElementTree.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _own_ids(element, key)
        if "style" in element.attrib:
            element.set("style", re.sub(r"font-family:[^;]*;?|(?<=px) '[^;]*(?=;|$)", "", element.attrib["style"]))
    root.attrib.pop("id", None)
    for name, text in (("desc", description), ("title", title)):
        told = ElementTree.Element(f"{{{_SVG}}}{name}", {"id": f"{key}-{name}"})
        told.text = text
        root.insert(0, told)
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-desc")
    root.set("style", f"stroke-linejoin: round; stroke-linecap: butt; font-family: {_LETTERS}")
    return ElementTree.tostring(root, encoding="unicode")


def _own_ids(element: ElementTree.Element, key: str) -> None:
    for name, value in element.attrib.items():
        if name == "id":
            element.set(name, f"{key}-{value}")
        elif name == f"{{{_LINK}}}href" and value.startswith("#"):
            element.set(name, f"#{key}-{value[1:]}")
        elif "url(#" in value:
            element.set(name, value.replace("url(#", f"url(#{key}-"))
