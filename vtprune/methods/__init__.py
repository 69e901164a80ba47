"""All methods, one idea per file. `vtprune.methods.<name>` holds the method `<name>` and its pure functions."""

from vtprune.methods.base import (
    Cells,
    EncoderTokens,
    Group,
    Keep,
    Method,
    ModelInfo,
    Pictures,
    Pixels,
    Place,
    Positions,
    Replace,
    Resize,
    Stage,
    Tiles,
    VisualTokens,
    check_layer,
)
from vtprune.methods.registry import build_method, get_method, method_names, register

__all__ = [
    "Cells",
    "EncoderTokens",
    "Group",
    "Keep",
    "Method",
    "ModelInfo",
    "Pictures",
    "Pixels",
    "Place",
    "Positions",
    "Replace",
    "Resize",
    "Stage",
    "Tiles",
    "VisualTokens",
    "build_method",
    "check_layer",
    "get_method",
    "method_names",
    "register",
]
