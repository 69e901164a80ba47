"""The optimizers of a phase: Muon for the matrices of the layers and the projector, AdamW for everything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vtprune.evals.phases import Phase
from vtprune.evals.student import Student

_MUON_DECAY = 0.05
_MATRICES = (".layers.", ".layer.", ".blocks.", "multi_modal_projector", ".merger.")
"""What the names of layers and projectors have in them."""


def build_optimizers(student: Student, phase: Phase) -> list[Optimizer]:
    """The optimizers of a phase; weights that it does not train are frozen.

    Every parameter group carries a "factor", by which `set_rate` multiplies the learning rate.
    """
    tower = {id(p) for p in student.tower_parameters()}
    matrices: dict[float, list[nn.Parameter]] = {}
    others: dict[float, list[nn.Parameter]] = {}
    for name, parameter in student.named_parameters():
        factor = phase.tower_factor if id(parameter) in tower else float(phase.questions > 0)
        parameter.requires_grad_(factor > 0)
        if factor > 0:
            inside = any(part in name for part in _MATRICES)
            chosen = matrices if parameter.ndim == 2 and inside else others
            chosen.setdefault(factor, []).append(parameter)
    rate = phase.learning_rate
    return [
        torch.optim.Muon(_groups(matrices), lr=rate, weight_decay=_MUON_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(_groups(others), lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def trained(optimizers: Iterable[Optimizer]) -> list[nn.Parameter]:
    """All weights that the optimizers train."""
    return [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]


def set_rate(optimizers: Iterable[Optimizer], rate: float) -> None:
    """Set the learning rate of the next step."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]


def gathered(optimizers: Iterable[Optimizer], student: Student) -> dict[str, Tensor]:
    """What the optimizers have gathered (momentum and the like), as tensors named "weight/quantity"."""
    names: dict[Any, str] = {parameter: name for name, parameter in student.named_parameters()}
    return {
        f"{names[parameter]}/{quantity}": torch.as_tensor(value)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for quantity, value in state.items()
    }


def restore(optimizers: Iterable[Optimizer], student: Student, tensors: Mapping[str, Tensor]) -> None:
    """Give back to optimizers what `gathered` took; tensors of weights that they do not train are left out."""
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, quantity = key.rpartition("/")
        states.setdefault(name, {})[quantity] = value
    names: dict[Any, str] = {parameter: name for name, parameter in student.named_parameters()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if names[parameter] in states:
                    # AdamW keeps its step count on the CPU.
                    optimizer.state[parameter] = {
                        quantity: value.clone() if quantity == "step" else value.to(parameter.device, copy=True)
                        for quantity, value in states[names[parameter]].items()
                    }


def _groups(by_factor: Mapping[float, list[nn.Parameter]]) -> list[dict[str, Any]]:
    return [{"params": parameters, "factor": factor} for factor, parameters in by_factor.items()]
