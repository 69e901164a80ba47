"""Made-up inputs of stages inside decoder layers: prompts, and tokens decoded after them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vtprune.methods import Cells, LayerSlots, Where

HEADS, GROUPS, DIM = 4, 2, 8


def floats(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _list(mask: Tensor) -> Tensor:
    """Where rows (rows, n) are True, -1 in front of shorter ones."""
    found = [row.nonzero()[:, 0] for row in mask]
    longest = max(map(len, found))
    return torch.stack([torch.cat((torch.full((longest - len(x),), -1), x)) for x in found])


def layer_slots(rows: list[tuple[int, ...]], seed: int = 0, alone: int | None = None) -> LayerSlots:
    """Prompts of text and visual tokens in turn, so many of each; padding first. One of them alone on demand."""
    longest = max(map(sum, rows))
    valid = torch.stack([torch.arange(longest) >= longest - sum(row) for row in rows])
    visual = torch.zeros_like(valid)
    maps = torch.full(valid.shape, -1)
    for r, row in enumerate(rows):
        at = longest - sum(row)
        for i, n in enumerate(row):
            if i % 2:
                visual[r, at : at + n] = True
                maps[r, at : at + n] = 10 * r + i
            at += n
    q, k, v = (floats(len(rows), heads, longest, DIM, seed=seed + i) for i, heads in enumerate((HEADS, GROUPS, GROUPS)))
    if alone is not None:
        here = slice(alone, alone + 1), slice(longest - sum(rows[alone]), None)
        valid, visual, maps = (x[here] for x in (valid, visual, maps))
        q, k, v = (x[here[0], :, here[1]] for x in (q, k, v))
    listed = _list(visual)
    cell = maps.gather(1, listed.clamp_min(0)).masked_fill(listed < 0, -1)
    return LayerSlots(
        layer=0,
        past=0,
        heads=HEADS,
        kv_heads=GROUPS,
        text=_list(valid & ~visual),
        visual=listed,
        visual_entries=visual[:, None].expand(-1, GROUPS, -1),
        valid=None if bool(valid.all()) else valid,
        memory={},
        held={},
        where=Where(Cells(*[cell] * 5), 0, listed[:, :0]),
        queries=q,
        keys=k,
        values=v,
        scale=DIM**-0.5,
    )


def decoded(slots: LayerSlots, queries: Tensor | None = None, seed: int = 50) -> LayerSlots:
    """The same layer when one more token is decoded: its queries (rows, heads, dim), random ones if None."""
    rows, _, entries, _ = slots.keys.shape
    new = floats(1, GROUPS, 1, DIM, seed=seed + entries).expand(rows, -1, -1, -1)
    if queries is None:
        queries = floats(1, HEADS, DIM, seed=seed + 1000 + entries).expand(rows, -1, -1)
    there = slots.valid
    return dataclasses.replace(
        slots,
        past=entries,
        text=torch.zeros(rows, 1, dtype=torch.long),
        visual=torch.empty(rows, 0, dtype=torch.long),
        visual_entries=torch.nn.functional.pad(slots.visual_entries, (0, 1)),
        valid=None if there is None else torch.nn.functional.pad(there, (0, 1), value=True),
        memory={},
        where=None,
        queries=queries[:, :, None],
        keys=torch.cat((slots.keys, new), 2),
        values=torch.cat((slots.values, new), 2),
    )


def read(slots: LayerSlots, decision: object, row: int = 0) -> list[set[int]]:
    """Which entries each list of a row names; everything that is no padding if nothing was decided."""
    if decision is None:
        entries = slots.keys.shape[2]
        there = torch.ones(entries, dtype=torch.bool) if slots.valid is None else slots.valid[row]
        return [set(there.nonzero()[:, 0].tolist())]
    (part,) = decision.parts
    lists = part.entries[row].tolist()
    for found in lists:
        real = [x for x in found if x >= 0]
        assert len(set(real)) == len(real)
        assert found == sorted(found)
        assert part.padded or len(real) == len(found)
    return [{x for x in found if x >= 0} for found in lists]


def split(slots: LayerSlots, found: set[int], row: int = 0) -> tuple[set[int], set[int]]:
    """Visual entries and other ones among those found."""
    visual = set(slots.visual_entries[row, 0].nonzero()[:, 0].tolist())
    return found & visual, found - visual
