"""Keeps the tokens of a video that differ from the token at the same place one frame earlier; the first frame stays.

What stands still is told once, however long the video; the tokens that changed most are kept, of all frames together.

Paper: "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference", arXiv 2510.14624.
Authors' code: in vLLM (github.com/vllm-project/vllm, multimodal/evs.py).
Differs from the paper in: similarities are float32 (there: the model's type, in which static places tie); where a
model has plain positions, "auto" keeps the original ones, except on LLaVA; position ids and what follows the video
are those of the installed transformers. Pictures are left as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from vtprune.budget import Budget
from vtprune.methods._frames import frames_of
from vtprune.methods._select import check_number, given, top_k_mask
from vtprune.methods.base import Keep, Method, ModelInfo, Pictures, Place, Positions, Stage
from vtprune.methods.registry import register

FIRST_FRAME = 255.0
"""Dissimilarity of the first frame's tokens: above the largest possible one, which is 2."""


@register("evs")
@dataclasses.dataclass(frozen=True)
class EVS(Method):
    """Temporal redundancy pruning of videos at the encoder's output.

    The budget is one for the whole video: frames in which much changes keep more tokens than others. The first frame
    always stays whole, so no budget is smaller than a frame.
    """

    kind = "pruning"
    places = (Place.ENCODER_OUTPUT,)
    paper = "EVS, arXiv 2510.14624"
    cost = "N C"
    needs_video = True
    adaptive = True

    keep: Budget = 0.25  # ratio in (0, 1] or tokens per video, at least those of one frame; without effect with `q`
    q: float | None = None  # the paper's pruning rate, share of tokens that leave, in [0, 1); its count is rounded down
    positions: Positions = "auto"  # position ids after the removal: "original", "compact" or "auto"

    def __post_init__(self) -> None:
        """Check the parameters."""
        super().__post_init__()
        if self.q is not None:
            check_number("q", self.q, 0, 1)
            if self.q == 1:
                raise ValueError("q must be a number in [0, 1), got 1; for the first frame alone write 0.99.")

    def stages(self, model: ModelInfo) -> Sequence[Stage]:
        """One selection at the encoder's output, on projected features."""
        asked = frozenset({"projected"})
        return [Stage(Place.ENCODER_OUTPUT, self.decide, signals=asked, positions=self.positions, needs_all=True)]

    def decide(self, pictures: Pictures) -> Keep | None:
        """Keep the first frame, and of the others what changed most."""
        projected = given(pictures.projected, self.name, "projected")
        frames, tokens = frames_of(pictures, self.name), pictures.tokens
        if frames == 1:
            return None
        count = pictures.count(self.keep) if self.q is None else int(tokens * (1 - self.q))
        return Keep(top_k_mask(dissimilarity(projected, frames), max(count, tokens // frames)))


def dissimilarity(features: Tensor, frames: int) -> Tensor:
    """How much each token differs from the one at its place a frame earlier: 1 - cosine, `FIRST_FRAME` in the first.

    Computed as half the squared distance of unit rows, which is exactly 0 where nothing changes.

    Args:
        features: (videos, frames * tokens, channels), frame by frame.
        frames: Number of frames.

    Returns:
        (videos, frames * tokens), float32.
    """
    x = F.normalize(features.detach().float(), dim=-1, eps=1e-8).unflatten(1, (frames, -1))
    change = (x[:, 1:] - x[:, :-1]).square().sum(-1) / 2  # (videos, frames - 1, tokens)
    return F.pad(change, (0, 0, 1, 0), value=FIRST_FRAME).flatten(1)
