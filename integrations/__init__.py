"""One file per model family. `integrate(model)` finds the one that fits."""

from __future__ import annotations

from torch import nn
from transformers import GenerationMixin, PreTrainedModel

from vtprune.integrations.base import EncoderBlock, EncoderCall, Grid, Integration, Kind, Map, PictureLayout
from vtprune.integrations.internvl import InternVLIntegration
from vtprune.integrations.llava import LlavaIntegration
from vtprune.integrations.llava_next import LlavaNextIntegration
from vtprune.integrations.llava_onevision import LlavaOnevisionIntegration
from vtprune.integrations.qwen2_vl import Qwen2_5_VLIntegration, Qwen2VLIntegration
from vtprune.integrations.qwen3_vl import Qwen3VLIntegration

FAMILIES: tuple[type[Integration], ...] = (
    LlavaIntegration,
    LlavaNextIntegration,
    LlavaOnevisionIntegration,
    Qwen2VLIntegration,
    Qwen2_5_VLIntegration,
    Qwen3VLIntegration,
    InternVLIntegration,
)

__all__ = [
    "FAMILIES",
    "EncoderBlock",
    "EncoderCall",
    "Grid",
    "Integration",
    "Kind",
    "Map",
    "PictureLayout",
    "integrate",
]


def integrate(model: object) -> Integration:
    """The integration for a model, which may be wrapped (peft, torch.compile, DistributedDataParallel).

    Raises:
        TypeError: `model` is no torch module.
        ValueError: It is, or contains, no model of a supported family.
    """
    supported = ", ".join(sorted(kind for family in FAMILIES for kind in family.model_types))
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
            f"supported model types: {supported}."
        )
    raise ValueError(f"{type(model).__name__} (model type {kind!r}) is not supported; supported: {supported}.")
