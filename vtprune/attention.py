"""`attn_implementation="vtprune"`: attention as `sdpa` computes it, which can be asked how important each key was.

    model = AutoModelForImageTextToText.from_pretrained(name, attn_implementation="vtprune")

works for decoders and vision towers, in training too. Which forward runs, torch's scaled dot product attention or our
Triton kernel, is a matter of measurement: `vtprune.kernels.attention_forward()` says which, and why.

    with attention.collecting({layer.self_attn: Request(rows=last)}) as found:
        model(**inputs)
    scores = found[layer.self_attn][0].scores

has that layer's attention call say what its keys received; nothing is computed where nobody asks. In hooks, `request`
before the call and `take` after it do the same.
"""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from vtprune.kernels import attention_column_mass, attention_forward, attention_scores, flash_attention_with_scores
from vtprune.kernels._attention import last_keys, triton_refusal

NAME = "vtprune"


@dataclasses.dataclass(frozen=True)
class Request:
    """What to tell about the keys of an attention call: the mean attention that they receive.

    Attributes:
        rows: From which query rows: None: all; int, (batch or 1, n), their numbers in the call, -1 for none; bool,
            (batch or 1, rows).
        reduce_heads: "mean", or None to keep heads apart.
    """

    rows: Tensor | None = None
    reduce_heads: Literal["mean"] | None = "mean"


@dataclasses.dataclass(frozen=True)
class Received:
    """What the keys of one attention call received.

    Attributes:
        scores: float32, (batch, keys), or (batch, heads, keys).
        lse: float32, (batch, heads, rows), natural log-sum-exp of the masked logits, where it was a by-product:
            with our own forward; with torch's if all rows were asked for and no dense mask was used. Else None.
    """

    scores: Tensor
    lse: Tensor | None


class _Local(threading.local):
    def __init__(self) -> None:
        self.open: weakref.WeakKeyDictionary[nn.Module, tuple[Request, list[Received]]] = weakref.WeakKeyDictionary()


_local = _Local()


def request(module: nn.Module, asked: Request | None = None) -> None:
    """Ask the coming attention calls of a module, in this thread, what their keys receive, until `take`.

    Args:
        module: The attention module, as transformers passes it to attention functions; its model must run with
            `attn_implementation="vtprune"`.
        asked: What is asked for; None: `Request()`. It replaces an earlier request to the same module.
    """
    _local.open[module] = (Request() if asked is None else asked, [])


def take(module: nn.Module) -> list[Received]:
    """End a request, and get what was found: one entry per attention call.

    Packed vision towers (Qwen) call attention once per sequence, and all others once per forward call.

    Raises:
        ValueError: Nothing was asked.
        RuntimeError: No attention call answered.
    """
    entry = _local.open.pop(module, None)
    if entry is None:
        raise ValueError(f"nothing was asked of this {type(module).__name__}; call request first.")
    if not entry[1]:
        raise RuntimeError(
            f"this {type(module).__name__} made no attention call that could answer: it did not run, was compiled, or "
            f"its attention implementation is not {NAME!r}."
        )
    return entry[1]


@contextmanager
def collecting(requests: Mapping[nn.Module, Request]) -> Iterator[dict[nn.Module, list[Received]]]:
    """`request` for every module; the dict that is returned is filled at the end of the block.

    Raises:
        RuntimeError: At the end of the block: a module made no attention call that could answer.
    """
    for module, asked in requests.items():
        request(module, asked)
    found: dict[nn.Module, list[Received]] = {}
    try:
        yield found
        found.update({module: take(module) for module in requests})
    finally:
        for module in requests:
            _local.open.pop(module, None)


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls: (batch, heads, rows, dim) in, (batch, rows, heads, dim) out.

    Args:
        module: The attention module.
        query: (batch, heads, rows, dim).
        key: (batch, kv_heads, keys, dim).
        value: (batch, kv_heads, keys, dim of the values).
        attention_mask: From `mask`: bool, (batch, keys), False on padding, of a causal model whose rows are the last;
            or dense, (batch, 1 or heads, rows, keys), bool or to be added; or None.
        dropout: Its probability.
        scaling: Factor on the logits, 1 / sqrt(dim) if None.
        is_causal: Whether, without a mask, rows see no later keys; None: as `module.is_causal` says.
        **kwargs: Passed on to `sdpa`. A sliding window acts through the mask, as there.

    Raises:
        ValueError: An argument that would change the result and is not supported.
    """
    for name in ("softcap", "s_aux", "cache"):
        if kwargs.get(name) is not None:
            raise ValueError(f"attn_implementation={NAME!r} does not support {name}; use another implementation.")
    rows, keys = query.shape[2], key.shape[2]
    padding = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
    causal = padding is not None
    if attention_mask is None and rows > 1:
        causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
        if causal and keys > rows:  # the first keys of a static cache; what follows is still empty
            key, value = key[:, :, :rows], value[:, :, :rows]
    entry = None if torch.compiler.is_compiling() else _local.open.get(module)
    rest = {"position_bias": kwargs.get("position_bias")}
    if entry is not None and rest["position_bias"] is not None:
        raise ValueError("keys' importance cannot be told where a position_bias is added to the logits.")
    if (attention_mask is None or padding is not None) and _own_forward(query, key, value, dropout, rest):
        asked = None if entry is None else _rows(entry[0], len(query), query.device)
        out, lse, scores = flash_attention_with_scores(
            query,
            key,
            value,
            scale=scaling,
            causal=causal,
            key_valid=padding,
            scores=entry is not None,
            score_rows=asked,
            reduce_heads="mean" if entry is None else entry[0].reduce_heads,
        )
        if entry is not None and scores is not None:
            entry[1].append(Received(_widen(scores, keys), lse))
        return out.transpose(1, 2).contiguous(), None
    mask = attention_mask if padding is None else _dense(padding, rows)
    out, _ = sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **kwargs
    )
    if entry is not None:
        scores, found = _receive(entry[0], query, key, scaling, causal, padding, attention_mask)
        entry[1].append(Received(_widen(scores, keys), found))
    return out, None


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: Any = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The mask of `sdpa`; but where our own forward runs, of a plain causal model, its padding only, (batch, keys).

    Arguments are those that transformers gives to mask functions.
    """
    plain = (
        allow_is_causal_skip
        and mask_function is causal_mask_function
        and kwargs.get("local_size") is None
        and isinstance(q_offset, int)
        and isinstance(kv_offset, int)
        and q_offset + q_length == kv_offset + kv_length
        and (attention_mask is None or attention_mask.shape == (batch_size, kv_length))
    )
    if plain and not torch.compiler.is_compiling() and attention_forward(device).forward == "triton":
        if attention_mask is not None:
            return attention_mask.bool()
        if q_length not in (1, kv_length):
            return torch.ones((batch_size, kv_length), dtype=torch.bool, device=device)
        return None
    return sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=allow_is_causal_skip,
        device=device,
        **kwargs,
    )


def _own_forward(query: Tensor, key: Tensor, value: Tensor, dropout: float, rest: Mapping[str, Any]) -> bool:
    if dropout or torch.compiler.is_compiling() or any(x is not None for x in rest.values()):
        return False
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return False
    if value.shape != key.shape or triton_refusal(query, key, value) is not None:
        return False
    return attention_forward(query.device).forward == "triton"


def _receive(
    asked: Request,
    query: Tensor,
    key: Tensor,
    scaling: float | None,
    causal: bool,
    padding: Tensor | None,
    given_mask: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Scores, and the log-sum-exp where it comes for nothing, of a call that torch's own attention has computed."""
    query, key = query.detach(), key.detach()
    batch, _, rows, _ = query.shape
    chosen = _rows(asked, batch, query.device)
    numbers = None if chosen is None or chosen.dtype == torch.bool else chosen
    counted = chosen if numbers is None else numbers >= 0
    dense = given_mask if padding is None else None
    if dense is not None and dense.dtype != torch.bool:
        dense = dense > torch.finfo(dense.dtype).min / 2
    if dense is None and numbers is None:
        return attention_column_mass(
            query,
            key,
            scale=scaling,
            causal=causal,
            key_valid=padding,
            row_mask=counted,
            reduce_heads=asked.reduce_heads,
            return_lse=True,
        )
    positions = None
    if numbers is not None:
        index = numbers.clamp_min(0)[:, None, :, None]
        query = query.take_along_dim(index, 2)
        if dense is not None and dense.shape[2] > 1:
            dense = dense.expand(batch, -1, -1, -1).take_along_dim(index, 2)
        if causal:
            positions = numbers + (key.shape[2] - rows)
    scores = attention_scores(
        query,
        key,
        scale=scaling,
        mask=dense,
        row_mask=counted,
        row_positions=positions,
        key_valid=padding,
        reduce_heads=asked.reduce_heads,
    )
    return scores, None


def _rows(asked: Request, batch: int, device: torch.device) -> Tensor | None:
    if asked.rows is None:
        return None
    rows = asked.rows.to(device)
    return (rows if rows.dtype == torch.bool else rows.long()).expand(batch, -1)


def _dense(valid: Tensor, rows: int) -> Tensor:
    """Dense mask of a causal model whose rows are the last ones, (batch, 1, rows, keys)."""
    keys = valid.shape[1]
    numbers = torch.arange(keys, device=valid.device)
    return (numbers <= last_keys(rows, keys, valid.device)[:, None]) & valid[:, None, None]


def _widen(scores: Tensor, keys: int) -> Tensor:
    return nn.functional.pad(scores, (0, keys - scores.shape[-1]))


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)
