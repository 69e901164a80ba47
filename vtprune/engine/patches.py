"""What a vision block says about each patch: attention received, logits, keys."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vtprune.integrations.base import EncoderBlock, Integration
from vtprune.kernels import attention_column_mass, attention_scores


def patch_values(
    name: str, integration: Integration, block: EncoderBlock, queries: Tensor, keys: Tensor, bias: Tensor | None
) -> Tensor:
    """One `EncoderSignal` of a block, (sequences, tokens, channels); one channel but for "keys".

    Args:
        name: Of the signal.
        integration: The model's family.
        block: The block.
        queries: (sequences, heads, tokens, head_dim), as its attention uses them.
        keys: Likewise.
        bias: (sequences, tokens), what is added to the attention logits of each key; None for nothing. Minus infinity
            marks padding, which neither asks nor is seen.
    """
    queries, keys = queries.detach(), keys.detach()
    if name == "keys":
        return keys.transpose(1, 2).flatten(2).float()
    scale = integration.encoder_scale(block)
    from_cls = integration.has_cls and name != "received"
    there = None if bias is None else bias > -torch.inf
    if name == "logits":
        if from_cls:
            asking = queries[:, :, :1]
        elif there is None:
            asking = queries.mean(2, keepdim=True, dtype=torch.float32)
        else:
            shares = there.float() / there.sum(1, keepdim=True)
            asking = (queries.float() * shares[:, None, :, None]).sum(2, keepdim=True)
        return (asking.float() * scale @ keys.float().transpose(-1, -2)).mean(1).transpose(1, 2)
    if bias is not None:
        # As one more channel.
        one = queries.new_full((*queries.shape[:3], 1), 1 / scale)
        bias = bias.clamp_min(-1e4)[:, None, :, None].expand(-1, keys.shape[1], -1, 1)
        queries = torch.cat((queries, one), -1).float()
        keys = torch.cat((keys, bias.to(keys.dtype)), -1).float()
    if from_cls:
        return attention_scores(queries[:, :, :1], keys, scale=scale).unsqueeze(-1)
    return attention_column_mass(queries, keys, scale=scale, key_valid=there, row_mask=there).unsqueeze(-1)


@dataclasses.dataclass(frozen=True)
class Seen:
    """Values of the tokens that a block saw.

    Args:
        values: Batches of (sequences, tokens, channels).
        owner: (sequences, patches), the token that each patch was part of; None where nothing was merged.
    """

    values: list[Tensor]
    owner: Tensor | None

    def per_patch(self, name: str, owner: Tensor | None) -> list[Tensor]:
        """Values of all patches, batches of (sequences, patches, channels).

        Args:
            name: Of the signal.
            owner: (sequences, patches), what each patch has become part of in the end; None where nothing was merged.
        """
        if owner is None:
            return self.values
        (values,) = self.values
        before, owner = self.owner, owner.to(values.device)
        if before is None:
            before = torch.arange(values.shape[1], device=owner.device).expand_as(owner)
        before = before.clamp_min(0)
        if name in ("attention", "received"):
            # Attention adds up: every patch stands for all that its last group received; dropped ones for nothing.
            last = values.shape[1]
            end = torch.full(values.shape[:2], last, device=owner.device)
            end = end.scatter(1, before, torch.where(owner < 0, last, owner))
            values = values.new_zeros(len(values), last + 1, 1).scatter_add_(1, end[..., None], values)
            before = torch.where(owner < 0, last, owner)
        return [values.gather(1, before[..., None].expand(-1, -1, values.shape[2]))]
