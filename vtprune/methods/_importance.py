"""How much attention the tokens of a vision block receive: from [CLS], or from all tokens where there is none."""

from __future__ import annotations

import torch
from torch import Tensor

from vtprune.kernels import attention_column_mass
from vtprune.methods._select import given
from vtprune.methods.base import EncoderTokens


def received(tokens: EncoderTokens, method: str) -> Tensor:
    """Attention that each token receives, mean over heads, (pictures, tokens), float32; nearly 0 on padding.

    Args:
        tokens: Of a block with queries and keys.
        method: Who asks, for errors.
    """
    queries, keys = given(tokens.queries, method, "queries"), given(tokens.head_keys, method, "head_keys")
    queries, keys, bias = queries.detach().float(), keys.detach().float(), tokens.key_bias
    if tokens.protected:
        logits = queries[:, :, :1] @ keys.transpose(-1, -2) * tokens.scale
        if bias is not None:
            logits = logits + bias[:, None, None]
        return logits.softmax(-1).mean((1, 2))
    there = None
    if bias is not None:
        # What is added to logits, as one more channel; padding is hidden and does not ask.
        there = tokens.sizes > 0
        one = queries.new_full((*queries.shape[:3], 1), 1 / tokens.scale)
        more = bias.float().clamp_min(-1e4)[:, None, :, None].expand(-1, keys.shape[1], -1, 1)
        queries, keys = torch.cat((queries, one), -1), torch.cat((keys, more), -1)
    return attention_column_mass(queries, keys, scale=tokens.scale, key_valid=there, row_mask=there)
