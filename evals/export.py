"""Save a tiny model as transformers saves checkpoints: weights, configuration, processor, generation defaults."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from vtprune.evals.tiny_llava import BOS_ID, EOS_ID, PAD_ID
from vtprune.evals.vocabulary import build_processor


def export(model: Any, folder: Path, processor: Any = None) -> None:
    """Save a model with its processor so that `AutoProcessor` and `AutoModelForImageTextToText` load it.

    The files are written beside `folder` and moved there when complete; a folder that is there already is replaced as
    a whole, and stays as it is if anything goes wrong before that.

    Args:
        model: The model; it is saved as float32 safetensors and stays as it is.
        folder: Where it goes.
        processor: Its processor; None for tiny-llava's.

    Raises:
        ValueError: If `folder` exists and does not hold a model (no config.json), lest something else be deleted.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "config.json").is_file() and any(folder.iterdir()):
        raise ValueError(f"folder must be new, empty or an exported model (with a config.json), got {str(folder)!r}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fresh = scratch / "new"
        _save(model, fresh, build_processor() if processor is None else processor)
        if folder.exists():
            folder.rename(scratch / "old")
        fresh.rename(folder)
    finally:
        if not folder.exists() and (scratch / "old").exists():
            (scratch / "old").rename(folder)
        shutil.rmtree(scratch, ignore_errors=True)


def _save(model: Any, folder: Path, processor: Any) -> None:
    # A fresh configuration: the one of a model in training may name attention functions that nobody else has.
    copy = type(model)(type(model.config).from_dict(model.config.to_dict()))
    copy.load_state_dict({name: value.to(torch.float32) for name, value in model.state_dict().items()})
    copy.generation_config = GenerationConfig(
        bos_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID, max_new_tokens=16, do_sample=False
    )
    copy.save_pretrained(folder)
    processor.save_pretrained(folder)
    for file in folder.iterdir():
        # safetensors writes files that only their owner can read.
        file.chmod(0o644)
