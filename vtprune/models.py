"""From a model's name to a model: a shipped one, a local folder, a checkpoint on the Hub, or random weights."""

from __future__ import annotations

import dataclasses
import difflib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtprune.hub import hub_out_of_reach

if TYPE_CHECKING:
    import torch

_RANDOM = "random:"
_EXAMPLE = "example:"
_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model, its processor, and the name it goes by."""

    name: str
    model: Any
    processor: Any


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    folder = resources.files("vtprune.evals") / "models"
    return sorted(f.name for f in folder.iterdir() if (f / "config.json").is_file()) if folder.is_dir() else []


def shipped_example(name: str | None = None) -> tuple[Path, str]:
    """A picture that comes with the package and a question about it.

    Raises:
        ValueError: There is no example of that name.
    """
    folder = Path(str(resources.files("vtprune.evals"))) / "examples"
    examples = json.loads((folder / "examples.json").read_text())
    chosen = [e for e in examples if name is None or e["file"] == name]
    if not chosen:
        names = ", ".join(dict.fromkeys(e["file"] for e in examples))
        raise ValueError(f"no shipped example {name!r}; there are {names}.")
    return folder / chosen[0]["file"], chosen[0]["question"]


def example_file(file: Path) -> Path:
    """The file itself, or the shipped example that `example:NAME` stands for.

    Raises:
        ValueError: There is no example of that name.
    """
    name = str(file)
    return shipped_example(name.removeprefix(_EXAMPLE))[0] if name.startswith(_EXAMPLE) else file


def resolve_model(name: str) -> str:
    """What `from_pretrained` is to be given for a model's name: a folder, or the name itself for the Hub.

    Raises:
        ValueError: It looks like a folder that is not there or holds no model.
    """
    if name in shipped_models():
        return str(resources.files("vtprune.evals") / "models" / name)
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"model folder {name!r} has no config.json.")
        return str(path)
    if path.is_file():
        raise ValueError(f"model {name!r} is a file; give the folder that save_pretrained wrote.")
    if path.is_absolute() or name.startswith((".", "~")):
        raise ValueError(f"model folder {name!r} does not exist.")
    if "/" not in name:
        raise ValueError(f"unknown model {name!r}.{_hint(name)}")
    return name


def load_model(
    name: str,
    *,
    device: str = "auto",
    device_map: str | None = None,
    dtype: str = "auto",
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load a vision-language model and its processor, ready to generate.

    Args:
        name: A shipped model, a folder, a Hub id, or `random:NAME` and `random:NAME@small` (see `vtprune.published`).
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
        device_map: "auto" spreads a model that is larger than one GPU over all of them, and what does not fit over the
            CPU's memory; also "balanced", "balanced_low_0" and "sequential", as accelerate has them. Takes the place of
            `device`. None: one device.
        dtype: "auto" (as saved; for random weights bfloat16, if small float32), "float32", "bfloat16", "float16".
        attention: Attention implementation ("sdpa", "eager", "flash_attention_2", ...); None: the model's own choice.
        trust_remote_code: Run code that comes with the checkpoint.

    Raises:
        ValueError: The model cannot be found, is no vision-language model, does not fit into memory (random weights
            only), or an argument is unknown.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    if dtype not in ("auto", "float32", "bfloat16", "float16"):
        raise ValueError(f"dtype must be auto, float32, bfloat16 or float16, got {dtype!r}.")
    if device_map is not None and device_map not in _MAPS:
        raise ValueError(f"device_map must be one of {', '.join(_MAPS)}, got {device_map!r}.")
    if device_map is not None and device != "auto":
        raise ValueError(f"device_map={device_map!r} chooses the devices; device must be auto, got {device!r}.")
    device = str(usable_device(device))
    if name.lower().startswith(_RANDOM):
        if device_map is not None:
            raise ValueError("device_map is for models that are loaded from files; random weights go to one device.")
        return _load_random(name, device, dtype, attention)
    source = resolve_model(name)
    shared = {"trust_remote_code": trust_remote_code, "local_files_only": Path(source).is_dir() or hub_out_of_reach()}
    try:
        config = AutoConfig.from_pretrained(source, **shared)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"model {name!r} cannot be loaded: {_first_line(error)}{_hint(name)}") from None
    if not hasattr(config, "vision_config") and not trust_remote_code:
        raise ValueError(f"model {name!r} (model type {config.model_type!r}) is no vision-language model.{_hint(name)}")
    _check_supported(name, config.model_type)  # said before gigabytes of weights are loaded
    settings: dict[str, Any] = {} if attention is None else {"attn_implementation": attention}
    if device_map is not None:
        settings["device_map"] = device_map
    try:
        processor = AutoProcessor.from_pretrained(source, **shared)
        model: Any = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype, **shared, **settings)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model {name!r} cannot be loaded: {_first_line(error)}") from None
    if device_map is None:
        model.to(device)
    elif model.device.type == "meta":  # where inputs go is where the first weights are
        raise ValueError(f"device_map={device_map!r} leaves no room for the first weights of {name!r} on any device.")
    return Loaded(name, model.eval(), processor)


def usable_device(name: str) -> torch.device:
    """The device of a name; "auto" is a GPU if there is one.

    Raises:
        ValueError: There is no such device here, or it holds no numbers.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _load_random(name: str, device: str, dtype: str, attention: str | None) -> Loaded:
    import torch

    from vtprune import published
    from vtprune.published.build import build

    architecture, small = published.parse(name)
    _check_supported(name, published.config(architecture.name, small).model_type)
    kind = None if dtype == "auto" else getattr(torch, dtype)
    try:
        model = build(architecture.name, small, device=device, dtype=kind, attention=attention)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"model {name!r} cannot be built: {_first_line(error)}") from None
    return Loaded(name, model, published.processor(architecture.name, small))


def _check_supported(name: str, model_type: str) -> None:
    from vtprune.integrations import supported_model_types, unsupported

    if model_type not in supported_model_types():
        raise ValueError(f"model {name!r} {unsupported(model_type)}")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _hint(name: str) -> str:
    shipped = shipped_models()
    near = difflib.get_close_matches(name, shipped, n=1, cutoff=0.4)
    start = f" Did you mean {near[0]!r}?" if near else ""
    others = f"or give a folder, a Hub id (owner/name) or {_RANDOM}NAME."
    return f"{start} Shipped models: {', '.join(shipped) or 'none'}; {others}"
