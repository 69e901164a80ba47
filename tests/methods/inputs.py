"""Made-up inputs of stages."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import save_file
from torch import Tensor

from vtprune.engine.merging import Running
from vtprune.methods import (
    CacheEntries,
    Cells,
    EncoderTokens,
    Group,
    Keep,
    LayerSlots,
    ModelInfo,
    Pictures,
    VisualTokens,
    Where,
)
from vtprune.methods._inputs import Module
from vtprune.methods.base import EncoderSignal, QueriesKeys, TextRows

INFO = ModelInfo(
    family="llava",
    encoder_layers=23,
    decoder_layers=32,
    has_cls=True,
    patches=576,
    attention_blocks=tuple(range(24)),
    scored_block=22,
    encoder_heads=16,
)


def pictures(
    count: int = 2,
    grid: tuple[int, int, int] = (1, 6, 8),
    channels: int = 12,
    seed: int = 0,
    signals: frozenset[str | EncoderSignal] = frozenset(),
) -> Pictures:
    """Pictures with all signals, those of single blocks as far as they are asked for."""
    g = torch.Generator().manual_seed(seed)
    tokens = grid[0] * grid[1] * grid[2]
    raster = torch.arange(tokens)
    zero = torch.zeros_like(raster)
    where = zero, zero, raster // (grid[1] * grid[2]), raster // grid[2] % grid[1], raster % grid[2]
    encoded = torch.randn(count, tokens, channels, generator=g)
    projected = torch.randn(count, tokens, channels + 4, generator=g)
    attention = torch.rand(count, tokens, generator=g)
    text = torch.randn(count, 5, channels + 4, generator=g)
    pixel_steps = 0.03 * torch.rand(count, tokens, 2, generator=torch.Generator().manual_seed(seed + 1))
    asked = sorted((s for s in signals if isinstance(s, EncoderSignal)), key=lambda s: (s.block, s.name))
    return Pictures(
        grid,
        encoded,
        projected,
        attention,
        Cells(*(x.expand(count, -1) for x in where)),
        signals={
            s: torch.randn(count, tokens, 16, generator=g)
            if s.name == "keys"
            else torch.rand(count, tokens, generator=g)
            for s in asked
        },
        text=text,
        text_valid=(torch.arange(5) >= torch.arange(count)[:, None] % 4),
        pixel_steps=pixel_steps,
    )


def row(batch: Pictures, i: int) -> Pictures:
    """One picture of a batch, alone."""

    def one(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[i : i + 1]

    names = ("encoded", "projected", "attention", "text", "text_valid", "pixel_steps")
    parts = {name: one(getattr(batch, name)) for name in names}
    cells = None if batch.cells is None else Cells(*(x[i : i + 1] for x in batch.cells))
    signals = {signal: x[i : i + 1] for signal, x in batch.signals.items()}
    return dataclasses.replace(batch, cells=cells, signals=signals, **parts)


def encoder_tokens(
    layer: int = 0, patches: int = 48, protected: int = 1, count: int = 2, seed: int = 0
) -> EncoderTokens:
    """Unmerged tokens of an encoder layer, with everything that a stage may ask for."""
    g = torch.Generator().manual_seed(seed)
    n = patches + protected
    keys = torch.randn(count, n, 8, generator=g)
    return EncoderTokens(
        layer,
        keys,
        torch.ones(count, n),
        protected,
        patches,
        hidden=torch.randn(count, n, 12, generator=g),
        queries=torch.randn(count, 2, n, 8, generator=g),
        head_keys=keys[:, None] + 0.5 * torch.randn(count, 2, n, 8, generator=g),
        values=torch.randn(count, n, 16, generator=g),
        scale=8**-0.5,
    )


def followed(tokens: EncoderTokens, running: Running, decision: Group | Keep, proportional: bool) -> EncoderTokens:
    """What a decision leaves of the tokens, as the engine carries it out."""
    heads = [x.transpose(1, 2).flatten(2) for x in (tokens.queries, tokens.head_keys)]
    keys, hidden, queries, head_keys, values = running.follow(
        decision, tokens.keys, tokens.hidden, *heads, tokens.values
    )
    return dataclasses.replace(
        tokens,
        keys=keys,
        sizes=running.sizes,
        hidden=hidden,
        queries=queries.unflatten(2, (2, -1)).transpose(1, 2),
        head_keys=head_keys.unflatten(2, (2, -1)).transpose(1, 2),
        values=values,
        key_bias=running.key_bias(proportional),
    )


def one_of(tokens: EncoderTokens, i: int) -> EncoderTokens:
    """One picture of a batch without its padding."""
    there = int((tokens.sizes[i] > 0).sum())
    cut = {n: getattr(tokens, n)[i : i + 1, :there] for n in ("keys", "sizes", "hidden", "values")}
    heads = {n: getattr(tokens, n)[i : i + 1, :, :there] for n in ("queries", "head_keys")}
    bias = None if tokens.key_bias is None else tokens.key_bias[i : i + 1, :there]
    return dataclasses.replace(tokens, **cut, **heads, key_bias=bias)


def visual_tokens(
    attention: Tensor, arrived: list[list[int]], layer: int = 2, memory: dict | None = None
) -> VisualTokens:
    """Visual tokens of rows with so many tokens per picture, padded on the right as far as `attention` goes.

    Hidden states, queries and keys, and what was noted of layers, follow from each token's attention alone; the text is
    the same in every row.
    """
    picture = torch.full(attention.shape, -1)
    for r, counts in enumerate(arrived):
        numbers = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        picture[r, : len(numbers)] = numbers
    hidden = (attention.unsqueeze(-1) * torch.arange(1, 17) * 97).sin()
    heads = hidden.unflatten(-1, (2, 8)).transpose(1, 2)
    rows, tokens = attention.shape
    at = torch.arange(tokens).expand_as(picture)
    turned = 0.1 * torch.arange(8)
    query_rotation = turned.cos().expand(rows, 3, -1), turned.sin().expand(rows, 3, -1)
    token_rotation = turned.sin().expand(rows, tokens, -1), turned.cos().expand(rows, tokens, -1)
    text = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(8)).expand(rows, -1, -1)
    asking = text.unflatten(-1, (2, 8)).transpose(1, 2)
    sees = torch.full((rows, 3), tokens - 1)
    last = TextRows(asking[:, :, -1:], heads, 8**-0.5, sees[:, -1:], picture >= 0, at, query_rotation, token_rotation)
    noted = {(module, i): attention * (i + 1 + 0.1 * len(module)) for module in get_args(Module) for i in range(layer)}
    return VisualTokens(
        layer,
        picture >= 0,
        picture,
        torch.tensor(arrived),
        attention,
        {} if memory is None else memory,
        hidden,
        QueriesKeys(heads, heads.flip(1), 8**-0.5, picture >= 0, at),
        TextRows(asking, heads, 8**-0.5, sees, picture >= 0, at, query_rotation, token_rotation),
        text,
        torch.ones(rows, 3, dtype=torch.bool),
        noted,
        last_row=last,
        closing=text,
        closing_valid=torch.ones(rows, 3, dtype=torch.bool),
        prediction=torch.randn(1, 7, generator=torch.Generator().manual_seed(layer)).expand(rows, -1),
    )


def cache_entries(
    rows: list[tuple[int, int, int]],
    *,
    text: bool = False,
    alone: int | None = None,
    seed: int = 0,
    layer: int = 3,
) -> CacheEntries:
    """What a layer holds of prompts of so much text, so many visual tokens, and text; one of them alone on demand.

    With `text`, all of a prompt are candidates. Eight heads in two groups, all queries, padding first.
    """
    g = torch.Generator().manual_seed(seed)
    longest = max(map(sum, rows))
    queries = torch.randn(len(rows), 8, longest, 4, generator=g)
    keys, values = (torch.randn(len(rows), 2, longest, 4, generator=g) for _ in range(2))
    valid = torch.stack([torch.arange(longest) >= longest - sum(row) for row in rows])
    starts = torch.tensor([longest - row[1] - row[2] for row in rows])[:, None]
    ends = torch.tensor([longest - row[2] for row in rows])[:, None]
    visual = (torch.arange(longest) >= starts) & (torch.arange(longest) < ends)
    new = valid if text else visual
    at = torch.arange(longest).expand(len(rows), -1)
    found = slice(None) if alone is None else slice(alone, alone + 1)
    last = slice(0 if alone is None else longest - sum(rows[alone]), None)
    return CacheEntries(
        layer=layer,
        queries=queries[found, :, last],
        query_at=at[found, : at[:, last].shape[1]],
        query_valid=valid[found, last],
        keys=keys[found, :, last],
        values=values[found, :, last],
        scale=0.5,
        valid=valid[found, last],
        candidate=new[found, None, last].expand(-1, 2, -1),
        picture=(visual.long() - 1)[found, last],
        arrived=new.sum(1, keepdim=True)[found],
        memory={},
        slot=at[found, : at[:, last].shape[1]],
        fed=at[:, last].shape[1],
    )


def layer_slots(
    *, text: int, rows: int, columns: int, behind: int, past: int = 0, heads: int = 1, kv_heads: int = 1
) -> LayerSlots:
    """Text, one picture, and text behind it, in one row; without rows and columns text alone."""
    slot, end = torch.arange(text + rows * columns + behind)[None], text + rows * columns
    visual = slot[:, text:end]
    raster, same = visual - text, torch.zeros_like(visual)
    entry = slot[0, -1] + past + 1 if slot.shape[1] else past
    numbers = torch.arange(int(entry)) - past
    return LayerSlots(
        layer=0,
        past=past,
        heads=heads,
        kv_heads=kv_heads,
        text=torch.cat((slot[:, :text], slot[:, end:]), 1),
        visual=visual,
        visual_entries=((numbers >= text) & (numbers < end))[None, None],
        valid=None,
        memory={},
        held={},
        where=Where(
            Cells(same, same, same, raster // max(columns, 1), raster % max(columns, 1)),
            columns,
            slot[:, :text] if rows else slot[:, :0],
        ),
    )


def router_file(layers: int, width: int) -> str:
    """Path of a file with random routers for a decoder of so many layers; it is made once per process.

    Of the first two layers they say no to nearly everything, and from layer 3 on yes, so that all rows exit.
    """
    path = Path(FILES.name) / f"routers-{layers}-{width}.safetensors"
    if not path.exists():
        g = torch.Generator().manual_seed(1)
        w1, w2 = torch.randn(layers, 8, 2 * width, generator=g), torch.randn(layers, 2, 8, generator=g)
        no = torch.tensor([1.0, -1.0])[:, None]
        w2[:2], w2[3:] = w2[:2].abs() * no, w2[3:].abs() * -no
        save_file({"w1": w1, "w2": w2}, path)
    return str(path)


FILES = tempfile.TemporaryDirectory()
REQUIRED = {"dyvte": {"routers": router_file(INFO.decoder_layers, 16)}}
"""Parameters without which a method refuses to work, for `INFO`."""
