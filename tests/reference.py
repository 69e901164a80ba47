"""What an engine must reproduce: a plain loop over decoder layers that drops slots by hand, one row, no cache."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import vtprune
from tests.families import Family, Row
from vtprune.engine.eviction import Evicted
from vtprune.engine.packing import Stored
from vtprune.methods.base import Place

NEVER = 10**9


@dataclasses.dataclass
class Decisions:
    """What a method decided for one row: slots that enter, slots left behind each cut, rules, and who shares."""

    entered: Tensor  # bool (slots,)
    cuts: dict[int, Tensor]  # layer -> bool (slots,)
    picture: Tensor  # (slots,), -1 on text
    compact_door: bool
    compact_cuts: bool = False
    owner: Tensor | None = None  # (slots,), the slot whose hidden state each slot shares
    evicted: dict[int, Tensor] = dataclasses.field(default_factory=dict)  # layer -> (kv_heads, slots), see `bare_run`
    changed: bool = False  # whether later queries see keys and values that were rounded or merged
    runs: dict[int, Tensor] = dataclasses.field(default_factory=dict)  # layer -> bool (slots,), False on what passes by
    frozen: int = NEVER  # first layer that leaves visual slots as they are

    def extend(self, *more: Decisions | int) -> Decisions:
        """The decisions for a longer prompt: numbers stand for so many text tokens, all kept."""
        if self.changed:
            pytest.skip("later queries see rounded or merged keys and values: test_packing.py, test_cache_methods.py")
        ones = lambda n: torch.ones(n, dtype=torch.bool)  # noqa: E731
        made = self
        for x in more:
            n = x if isinstance(x, int) else len(x.entered)
            later = Decisions(ones(n), {}, torch.full((n,), -1), False) if isinstance(x, int) else x
            cuts, runs = (
                {i: torch.cat((a.get(i, ones(len(made.entered))), b.get(i, ones(n)))) for i in set(a) | set(b)}
                for a, b in ((made.cuts, later.cuts), (made.runs, later.runs))
            )
            first = int(made.picture.max()) + 1
            picture = torch.cat((made.picture, torch.where(later.picture >= 0, later.picture + first, -1)))
            owner = made.owner
            if owner is not None:
                alone = torch.arange(n) if later.owner is None else later.owner
                owner = torch.cat((owner, alone + len(owner)))
            evicted = {}
            for i in set(made.evicted) | set(later.evicted):
                heads = len(made.evicted.get(i, later.evicted.get(i)))
                before = made.evicted.get(i, torch.full((heads, len(made.entered)), NEVER))
                behind = later.evicted.get(i, torch.full((heads, n), NEVER)) + len(made.entered)
                evicted[i] = torch.cat((before, behind), 1)
            made = dataclasses.replace(made, evicted=evicted, runs=runs)
            made = dataclasses.replace(
                made, entered=torch.cat((made.entered, later.entered)), cuts=cuts, picture=picture, owner=owner
            )
        return made


@dataclasses.dataclass
class Fed:
    """What the language model was given: embeddings (rows, slots, width) and DeepStack features on these slots."""

    embeds: Tensor
    deep: list[Tensor]

    def row(self, number: int, slots: int) -> Fed:
        """One row without its padding."""
        return Fed(self.embeds[number : number + 1, -slots:], [x[number : number + 1, -slots:] for x in self.deep])


@contextlib.contextmanager
def feeding(model: Any) -> Iterator[list[Fed]]:
    """Collects what the language model is given in every call; used after `vtprune.apply`, it sees what is left."""
    seen: list[Fed] = []

    def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("visual_pos_masks")
        deep = []
        for level in kwargs.get("deepstack_visual_embeds") or ():
            on_slots = torch.zeros_like(embeds)
            on_slots[mask] = level
            deep.append(on_slots)
        seen.append(Fed(embeds.clone(), deep))

    handle = model.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def decisions(model: Any, row: Row, number: int = 0) -> Decisions:
    """Read the decisions for a row of the last prefill from the report, and the position rules from the methods."""
    report = vtprune.report(model)
    chain = vtprune.api._engines[model].chain
    inside = [x for x in chain.stages if x.stage.place in (Place.ATTENTION, Place.MLP)]
    frozen = {x.method for x in inside} == {"ee_mllm"} and any(vars(x).get("update") == "frozen" for x in chain.methods)
    if chain.acts_inside and not frozen:
        pytest.skip("computes less inside decoder layers; tests/engine/test_sparse_methods.py has a loop of its own")
    visual = row.visual.nonzero().squeeze(1)
    entered, kept = torch.ones(len(row.ids), dtype=torch.bool), torch.ones(len(row.ids), dtype=torch.bool)
    picture = torch.full((len(row.ids),), -1)
    owner = torch.arange(len(row.ids))
    offset = 0
    for i, shown in enumerate(p for p in report.pictures if p.row == number):
        slots = visual[offset : offset + shown.tokens]
        entered[slots] = kept[slots] = False
        entered[slots[list(shown.entered)]] = True
        kept[slots[list(shown.kept)]] = True
        picture[slots] = i
        if shown.owner is not None:
            owner[slots] = slots[list(shown.owner)]
        offset += shown.tokens
    assert offset == len(visual)
    events = vtprune.api._engines[model].latest.events
    cuts = _cuts(events, entered, number)
    assert torch.equal(list(cuts.values())[-1] if cuts else entered, kept), "the report names what the last cut left"
    compact_cuts = any(s.positions == "compact" for s in chain.decoder_stages)
    sharing = owner if chain.shares else None
    runs = _runs(events, entered, cuts, number)
    evicted = _evicted(events, entered, cuts, runs, number)
    changed = any(isinstance(event, Stored) for event in events) or any(s.stage.mixes for s in chain.cache_stages)
    door = chain.door_positions == "compact"
    first = min(inside[0].layers) if frozen else NEVER
    return Decisions(entered, cuts, picture, door, compact_cuts, sharing, evicted, changed, runs, first)


def _cuts(events: Any, entered: Tensor, number: int) -> dict[int, Tensor]:
    """What each decoder layer that removes something leaves of a row: layer -> bool (slots,)."""
    cuts, left = {}, entered.nonzero().squeeze(1)
    for event in events:
        if event.stage.stage.place is Place.DECODER_LAYER:
            (before,), (after,) = event.before, event.after  # visual slots, of all slots that were there
            stays = (~before | after)[number, -len(left) :]  # rows are aligned at their ends
            if not stays.all():
                left = left[stays]
                cuts[event.layer] = torch.isin(torch.arange(len(entered)), left)
    return cuts


def _left_at(layer: int, entered: Tensor, cuts: dict[int, Tensor]) -> Tensor:
    """The slots of a row that arrive at a layer, (n,)."""
    left = entered.clone()
    for cut, stays in cuts.items():
        if cut <= layer:
            left &= stays
    return left.nonzero().squeeze(1)


def _runs(events: Any, entered: Tensor, cuts: dict[int, Tensor], number: int) -> dict[int, Tensor]:
    """What runs in each decoder layer that slots of a row pass by: layer -> bool (slots,)."""
    found = {}
    for event in events:
        if event.stage.stage.skips and event.layer is not None:
            slots = _left_at(event.layer, entered, cuts)
            (before,), (after,) = event.before, event.after
            found[event.layer] = torch.ones(len(entered), dtype=torch.bool)
            found[event.layer][slots] = (~before | after)[number, -len(slots) :]  # rows are aligned at their ends
    return found


def _evicted(
    events: Any, entered: Tensor, cuts: dict[int, Tensor], runs: dict[int, Tensor], number: int
) -> dict[int, Tensor]:
    """From which slot on the queries of a layer no longer see a slot: layer -> (kv_heads, slots)."""
    found = {}
    for event in events:
        if isinstance(event, Evicted):
            slots = _left_at(event.layer, entered, cuts)
            if event.layer in runs:
                slots = slots[runs[event.layer][slots]]
            kept = event.kept[number, :, -len(slots) :]  # rows are aligned at their ends
            since = torch.full((len(kept), len(entered)), NEVER)
            since[:, slots] = torch.where(kept, NEVER, len(entered))
            found[event.layer] = since
    return found


def positions_of(model: Any, family: Family, row: Row) -> Tensor:
    """(axes, slots): the positions that transformers gives a whole conversation."""
    if not family.typed:
        return torch.arange(len(row.ids))[None]
    x = family.inputs(row)
    given = {k: v for k, v in x.items() if k.endswith(("grid_thw", "grid_ts")) or k == "mm_token_type_ids"}
    return model.model.get_rope_index(x["input_ids"], **given)[0][:, 0]


def close_gaps(positions: Tensor, picture: Tensor, left: Tensor) -> Tensor:
    """Positions (axes, slots) as if the slots not `left` had never been: token by token, in plain Python."""
    if len(positions) == 1:
        return positions - (~left).long().cumsum(0)
    new, smaller, slot = positions.clone(), 0, 0
    while slot < len(picture):
        end = slot + 1
        while picture[slot] >= 0 and end < len(picture) and picture[end] == picture[slot]:
            end += 1
        new[:, slot:end] -= smaller
        if picture[slot] >= 0:
            had, kept = [], []
            for axis in (1, 2):
                at = positions[axis, slot:end]
                alive = sorted(set(at[left[slot:end]].tolist()))
                had.append(len(set(at.tolist())))
                kept.append(len(alive))
                for i in range(slot, end):
                    if left[i]:
                        new[axis, i] = at.min() - smaller + alive.index(int(positions[axis, i]))
            smaller += max(had) - max(kept)
        slot = end
    return new


def whole(model: Any, row: Row, parts: list[tuple[Tensor, Fed]]) -> Fed:
    """Embeddings of a conversation on all of its slots.

    Args:
        model: The model.
        row: The conversation.
        parts: Slots (n,) that were fed together, and what was fed on them.
    """
    embeds = model.get_input_embeddings()(row.ids[None]).clone()
    embeds[:, row.visual] = 0
    deep = [torch.zeros_like(embeds) for _ in parts[0][1].deep]
    for slots, fed in parts:
        text = ~row.visual[slots]
        assert torch.equal(embeds[:, slots[text]], fed.embeds[:, text]), "text embeddings are as they were"
        embeds[:, slots] = fed.embeds
        for level, values in zip(deep, fed.deep, strict=True):
            level[:, slots] = values
    return Fed(embeds, deep)


def bare_run(
    model: Any,
    fed: Fed,
    positions: Tensor,
    decided: Decisions | None = None,
    masked: bool = False,
    mix: Callable[[int, Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits (1, left, vocabulary) and the slots that are left, of the language model without any hook.

    Args:
        model: Without methods.
        fed: Embeddings on all slots.
        positions: (axes, slots).
        decided: What leaves; None for nothing.
        masked: Hide slots at the cuts from all later queries instead of removing them.
        mix: New hidden states at the input of a layer: from its number, the old ones, and the slots that they are of.
    """
    language_model = model.model.language_model
    slots = torch.arange(fed.embeds.shape[1])
    if decided is not None and decided.owner is not None:
        return _shared_run(model, fed, positions, decided.owner), slots
    if decided is not None:
        if decided.compact_door:
            positions = close_gaps(positions, decided.picture, decided.entered)
        slots = decided.entered.nonzero().squeeze(1)
    hidden = fed.embeds[:, slots]
    hidden_from = torch.zeros(len(slots), dtype=torch.bool)
    for i, layer in enumerate(language_model.layers):
        if mix is not None:
            hidden = mix(i, hidden, slots)
        if decided is not None and i in decided.cuts:
            stays = decided.cuts[i][slots]
            if masked:
                hidden_from = ~stays
            else:
                if decided.compact_cuts:
                    here = close_gaps(positions[:, slots], decided.picture[slots], stays)
                    positions = positions.clone()
                    positions[:, slots] = here
                hidden, slots, hidden_from = hidden[:, stays], slots[stays], hidden_from[stays]
        ran = torch.ones(len(slots), dtype=torch.bool)
        if decided is not None and i in decided.runs:
            ran = decided.runs[i][slots]
        here, length = slots[ran], int(ran.sum())
        mask = torch.ones(length, length, dtype=torch.bool).tril() & ~hidden_from[None, ran]
        mask = mask | torch.eye(length, dtype=torch.bool)  # hidden slots still see themselves, nobody looks at them
        mask = mask[None, None]
        if decided is not None and i in decided.evicted:  # head by head, from queries behind the prompt that it is of
            since = decided.evicted[i][:, here].repeat_interleave(layer.self_attn.num_key_value_groups, 0)
            mask = mask & (here[:, None] < since[:, None])[None]
        if language_model.config._attn_implementation == "eager":
            mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(hidden.dtype).min)
        at = positions[:, here]
        rotary = language_model.rotary_emb(hidden, position_ids=at if len(at) == 1 else at[:, None])
        out = layer(hidden[:, ran], attention_mask=mask, position_embeddings=rotary)
        if decided is not None and i >= decided.frozen:
            ran = ran & (decided.picture[slots] < 0)
            out = (out[0] if isinstance(out, tuple) else out)[:, decided.picture[here] < 0]
        hidden = hidden.clone()
        hidden[:, ran] = out[0] if isinstance(out, tuple) else out
        if i < len(fed.deep):
            hidden = hidden + fed.deep[i][:, slots]
    logits = model.lm_head(language_model.norm(hidden))
    return logits[:, ~hidden_from], slots[~hidden_from]


def _shared_run(model: Any, fed: Fed, positions: Tensor, owner: Tensor) -> Tensor:
    """Logits of all slots, where those with the same owner share one hidden state: group by group, in plain Python."""
    language_model = model.model.language_model
    groups: dict[int, list[int]] = {}
    for slot, first in enumerate(owner.tolist()):
        groups.setdefault(first, []).append(slot)
    at = torch.tensor([list(groups).index(first) for first in owner.tolist()])
    length = len(owner)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    if language_model.config._attn_implementation == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(fed.embeds.dtype).min)
    at_slots = positions if len(positions) == 1 else positions[:, None]
    rotary = language_model.rotary_emb(fed.embeds, position_ids=at_slots)
    states = fed.embeds[:, list(groups)]
    for i, layer in enumerate(language_model.layers):
        normed = layer.input_layernorm(states)[:, at]
        seen = layer.self_attn(hidden_states=normed, attention_mask=mask, position_embeddings=rotary)[0]
        states = states + torch.stack([seen[:, slots].mean(1) for slots in groups.values()], dim=1)
        states = states + layer.mlp(layer.post_attention_layernorm(states))
        if i < len(fed.deep):
            states = states + fed.deep[i][:, list(groups)]
    return model.lm_head(language_model.norm(states[:, at]))


def run(
    model: Any, family: Family, method: tuple[str, dict[str, Any]], *rows: Row
) -> tuple[list[Decisions], list[Fed], Tensor, Any]:
    """Run the model with a method; returns decisions and feed of every row, the logits and the report."""
    with vtprune.applied(model, method[0], **method[1]), feeding(model) as seen:
        logits = model(**family.inputs(*rows)).logits
        decided = [decisions(model, row, i) for i, row in enumerate(rows)]
        report = vtprune.report(model)
    fed = [seen[0].row(i, int(d.entered.sum())) for i, d in enumerate(decided)]
    return decided, fed, logits, report


def reference(
    model: Any, family: Family, row: Row, decided: Decisions, fed: Fed, masked: bool = False
) -> tuple[Tensor, Tensor]:
    """Logits and left slots of the bare model with these decisions."""
    everything = whole(model, row, [(decided.entered.nonzero().squeeze(1), fed)])
    return bare_run(model, everything, positions_of(model, family, row), decided, masked=masked)
