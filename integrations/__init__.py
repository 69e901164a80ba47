"""One file per model family. `integrate(model)` finds the one that fits."""

from __future__ import annotations

from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from vtprune.integrations.base import EncoderBlock, EncoderCall, Grid, Integration, Kind, Map, PictureLayout
from vtprune.integrations.internvl import InternVLIntegration
from vtprune.integrations.llava import LlavaIntegration
from vtprune.integrations.llava_next import LlavaNextIntegration
from vtprune.integrations.llava_next_video import LlavaNextVideoIntegration
from vtprune.integrations.llava_onevision import LlavaOnevisionIntegration
from vtprune.integrations.qwen2_vl import Qwen2_5_VLIntegration, Qwen2VLIntegration
from vtprune.integrations.qwen3_vl import Qwen3VLIntegration
from vtprune.integrations.vipllava import VipLlavaIntegration

FAMILIES: tuple[type[Integration], ...] = (
    LlavaIntegration,
    VipLlavaIntegration,
    LlavaNextIntegration,
    LlavaNextVideoIntegration,
    LlavaOnevisionIntegration,
    Qwen2VLIntegration,
    Qwen2_5_VLIntegration,
    Qwen3VLIntegration,
    InternVLIntegration,
)

UNSUPPORTED = {
    "gemma3": "its decoder has sliding-window layers, and lets the tokens of a picture see one another",
    "glm4v": "its vision tower and its video prompts have not been worked out",
    "idefics3": "its pictures are split and resampled in ways that have not been worked out",
    "paligemma": "its decoder lets the whole prompt see itself, not only what came before",
    "smolvlm": "its pictures are split and resampled in ways that have not been worked out",
    "video_llava": "it has one tower for pictures and one for videos, which share their placeholders' order",
}
"""Model types that users may try, and why they are not supported."""

__all__ = [
    "FAMILIES",
    "UNSUPPORTED",
    "EncoderBlock",
    "EncoderCall",
    "Grid",
    "Integration",
    "Kind",
    "Map",
    "PictureLayout",
    "integrate",
    "supported_model_types",
    "unsupported",
]


def integrate(model: object) -> Integration:
    """The integration for a model, which may be wrapped (peft, torch.compile, DistributedDataParallel).

    Raises:
        TypeError: `model` is no torch module.
        ValueError: It is, or contains, no model of a supported family.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a transformers vision-language model, got {type(model).__name__}.")
    for module in model.modules():
        config = getattr(module, "config", None)
        for family in FAMILIES:
            # Wrappers and the inner model without a head carry the same config: only the one that generates will do.
            generates = isinstance(module, PreTrainedModel) and isinstance(module, GenerationMixin)
            if generates and getattr(config, "model_type", None) in family.model_types:
                return family(module)
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", None)
    if config is not None and not hasattr(config, "vision_config"):
        raise ValueError(
            f"{type(model).__name__} (model type {kind!r}) takes no pictures, so it has no visual tokens to save; "
            f"supported model types: {', '.join(supported_model_types())}."
        )
    if kind in supported_model_types():
        raise ValueError(
            f"{type(model).__name__} is a part of a model that cannot generate; give the whole "
            "...ForConditionalGeneration that it belongs to."
        )
    raise ValueError(f"{type(model).__name__} {unsupported(kind)}")


def supported_model_types() -> list[str]:
    """The model types of transformers that are supported."""
    return sorted(kind for family in FAMILIES for kind in family.model_types)


def unsupported(model_type: str | None) -> str:
    """What to tell about a model type that is not supported: that it is not, why, and what is."""
    reason = f": {UNSUPPORTED[model_type]}" if model_type in UNSUPPORTED else ""
    return f"(model type {model_type!r}) is not supported{reason}; supported: {', '.join(supported_model_types())}."
