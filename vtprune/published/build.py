"""Building a model with random weights, once and where it shall stay."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedConfig

from vtprune.published import config as make_config
from vtprune.published import find
from vtprune.published.memory import available_memory


def build(
    name: str,
    small: bool = False,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    seed: int = 0,
) -> Any:
    """A model of a published architecture with random weights, in evaluation mode, with greedy decoding as default.

    Weights are drawn from a normal distribution, mostly of the published standard deviation 0.02; the small model's is
    0.08, of llava-1.5-7b 0.045, which makes up for its width. By default it writes words and the token that ends an
    answer, nothing else.

    Args:
        name: A published model, such as "qwen2.5-vl-7b".
        small: Whether to build the small one.
        device: Where to build it.
        dtype: None: bfloat16 for the full size, float32 for the small one.
        attention: Attention implementation; None: the model's own choice.
        seed: Same seed, same weights (on one kind of device). The global random state is left alone.

    Raises:
        ValueError: There is no such model, or less memory than it needs.
    """
    published = find(name)
    config = make_config(name, small)
    device = torch.device(device)
    dtype = dtype or (torch.float32 if small else torch.bfloat16)
    if not small and device.type != "meta":
        _check_memory(published.name, config, dtype, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = _construct(config, dtype, device, attention)
    text = config.get_text_config()
    model.generation_config = GenerationConfig(
        do_sample=False,
        bos_token_id=text.bos_token_id,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.pad_token_id,
        suppress_tokens=published.sized(small).unspoken(),
    )
    return model.eval()


def _construct(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, attention: str | None) -> Any:
    settings = {} if attention is None else {"attn_implementation": attention}
    with device:
        return AutoModelForImageTextToText.from_config(config, dtype=dtype, **settings)


def _check_memory(name: str, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
    available = available_memory(device)
    if available is None:
        return
    model = _construct(config, dtype, torch.device("meta"), None)
    needed = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    if needed > available:
        raise ValueError(
            f"the weights of {name!r} need {needed / 2**30:.1f} GiB, and {device} has {available / 2**30:.1f} GiB "
            f"free; 'random:{name}@small' needs far less."
        )
