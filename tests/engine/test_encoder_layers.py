"""Between vision blocks: whatever a stage merges or drops, a batch equals its pictures alone, and padding is hidden."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.reference import reference, run
from vtprune.attention import NAME
from vtprune.methods.base import EncoderTokens, Group, Keep, Method, Place, Stage

CLOSE = dict(atol=1e-4, rtol=1e-4)
TILES = ("llava-clip", "llava-siglip", "llava_next")
MERGING = (*TILES, "llava_next_video", "llava_onevision", "internvl")


@dataclasses.dataclass(frozen=True)
class Toy(Method):
    """Drops or merges different numbers of tokens of every tile, by the sign of a channel of the residual stream."""

    name = "toy"
    kind = "pruning"
    places = (Place.ENCODER_LAYER,)

    way: str = "drop"  # "drop", "merge", or "both"
    layers: tuple[int, ...] = (0, 2)
    after_block: bool = False
    proportional: bool = False
    announced: bool = True

    def stages(self, model):
        return [
            Stage(
                Place.ENCODER_LAYER,
                self.decide,
                self.layers,
                proportional=self.proportional,
                after_block=self.after_block,
                prunes=self.announced and self.way != "merge",
                ragged=self.announced,
            )
        ]

    def decide(self, tokens: EncoderTokens):
        assert tokens.keys.shape[:2] == tokens.hidden.shape[:2] == tokens.sizes.shape
        assert tokens.head_keys is None or tokens.head_keys.shape[2] == tokens.sizes.shape[1]
        there = tokens.sizes > 0
        number = torch.arange(tokens.sizes.shape[1]).expand(tokens.sizes.shape)
        safe = number < tokens.protected + 2
        chosen = (tokens.hidden[..., tokens.layer] > 0) & there & ~safe
        if self.way == "drop":
            return Keep(~chosen)
        # All that are chosen join the second patch.
        alone = there & ~chosen
        owner = (alone.cumsum(1) - 1).masked_fill(~alone, tokens.protected + 1)
        keep = ~(chosen & (number % 2 == 0)) if self.way == "both" else None
        return Group(owner, int(alone.sum(1).max()), ragged=True, keep=keep)


WAYS = [
    Toy(way=way, after_block=after, proportional=weighs)
    for way in ("drop", "merge", "both")
    for after in (False, True)
    for weighs in (False, True)
]


def label(toy):
    return f"{toy.way}-{'behind' if toy.after_block else 'inside'}{'-proportional' if toy.proportional else ''}"


# Where several patches make a token, dropping patches is refused.
WORKING = [(name, toy) for name in MERGING for toy in WAYS if toy.way == "merge" or name in TILES]
IDS = [f"{name}-{label(toy)}" for name, toy in WORKING]


@torch.no_grad()
@pytest.mark.parametrize(("name", "toy"), WORKING, ids=IDS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_batch_equals_its_pictures_alone(name, attention, toy):
    family = FAMILIES[name]
    model = family.model(attention)
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(2, IMAGE, 3, IMAGE, 1, seed=3), family.row(4, IMAGE, 2)]
    if VIDEO in family.kinds:
        rows.append(family.row(2, VIDEO, 2, seed=6))
    with vtprune.applied(model, toy):
        together = model(**family.inputs(*rows)).logits[:, -1]
        kept = [(p.row, p.kept, p.owner) for p in vtprune.report(model).pictures]
        alone = []
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i], model(**family.inputs(row)).logits[0, -1], **CLOSE)
            alone += [(i, p.kept, p.owner) for p in vtprune.report(model).pictures]
    assert kept == alone
    if name in TILES:
        assert len({len(tokens) for _, tokens, _ in kept}) > 1, "the pictures keep equally many: nothing is tested"


@torch.no_grad()
@pytest.mark.parametrize(("name", "toy"), WORKING, ids=IDS)
def test_equals_the_bare_decoder(name, toy):
    family = FAMILIES[name]
    model = family.model()
    row = family.row(3, IMAGE, 2, IMAGE, 6, seed=1)
    (decided,), (fed,), logits, report = run(model, family, (toy, {}), row)
    expected, slots = reference(model, family, row, decided, fed)
    torch.testing.assert_close(logits, expected, **CLOSE)
    assert report.visual_tokens_after == len(slots) - row.text
    assert report.prefill_flops_after < report.prefill_flops_before


def tower_by_hand(model, toy, pixels):
    """Features of one picture, block by block in plain Python: patches are lists that leave or join."""
    tower = model.model.vision_tower
    cls = hasattr(tower, "pre_layrnorm")
    x = tower.embeddings(pixels)[0]
    x = tower.pre_layrnorm(x) if cls else x
    groups = [[i] for i in range(len(x))]
    layers = tower.encoder.layers
    for index, layer in enumerate(layers[:-1] if cls else layers):
        sizes = torch.tensor([float(len(g)) for g in groups])
        mask = sizes.log().expand(1, 1, len(x), -1) if toy.proportional else None
        out = layer.self_attn(layer.layer_norm1(x)[None], attention_mask=mask)[0][0]
        x = x + out
        if index in toy.layers and not toy.after_block:
            x, groups = step_by_hand(toy, index, x, groups, int(cls))
        x = x + layer.mlp(layer.layer_norm2(x))
        if index in toy.layers and toy.after_block:
            x, groups = step_by_hand(toy, index, x, groups, int(cls))
    return model.model.multi_modal_projector(x[int(cls) :][None])[0], groups[int(cls) :]


def step_by_hand(toy, index, x, groups, protected):
    new, members, join = [], [], []
    for i, group in enumerate(groups):
        if i >= protected + 2 and x[i, index] > 0:
            if toy.way == "merge" or (toy.way == "both" and i % 2):
                join.append(i)
        else:
            new.append(x[i])
            members.append(group)
    at = protected + 1
    total = len(groups[at])
    summed = x[at] * total
    for i in join:
        summed = summed + x[i] * len(groups[i])
        total += len(groups[i])
        members[at] = members[at] + groups[i]
    new[at] = summed / total
    return torch.stack(new), members


@torch.no_grad()
@pytest.mark.parametrize("toy", WAYS, ids=label)
@pytest.mark.parametrize("name", ["llava-clip", "llava-siglip"])
def test_equals_a_tower_run_by_hand(name, toy):
    """Features of every group, which patches it is made of, and which left the prompt."""
    family = FAMILIES[name]
    model = family.model()
    # Three pictures in a batch, so that some have padding; the reference runs one at a time.
    rows = [family.row(2, IMAGE, 3, seed=s) for s in (1, 2, 5)]
    protected = int(name == "llava-clip")
    _, fed, _, report = run(model, family, (toy, {}), *rows)
    for row, given, picture in zip(rows, fed, report.pictures, strict=True):
        features, groups = tower_by_hand(model, toy, row.items[0].data["pixel_values"])
        groups = [[patch - protected for patch in group] for group in groups]
        first = [min(group) for group in groups]
        assert sorted(first) == list(picture.kept)
        order = sorted(range(len(groups)), key=first.__getitem__)
        torch.testing.assert_close(given.embeds[0, 2 : 2 + len(groups)], features[order], **CLOSE)
        for group in groups:
            assert {picture.owner[patch] for patch in group} == {min(group)}


@pytest.mark.parametrize("name", sorted(set(MERGING) - set(TILES)))
def test_dropping_is_refused_where_several_patches_make_a_token(name):
    model = FAMILIES[name].model()
    with pytest.raises(ValueError, match=r"toy cannot work on .* it drops single patches .* use tome"):
        vtprune.apply(model, Toy())


@torch.no_grad()
@pytest.mark.parametrize("way", ["drop", "merge", "both"])
def test_what_was_not_announced(way):
    family = FAMILIES["llava-clip"]
    model = family.model()
    said = "ragged=True" if way == "merge" else "prunes=True"
    with (
        vtprune.applied(model, Toy(way=way, announced=False)),
        pytest.raises(TypeError, match=f"must say so by {said}"),
    ):
        model(**family.inputs(family.row(1, IMAGE, 1), family.row(1, IMAGE, 2, seed=1)))


@dataclasses.dataclass(frozen=True)
class SomeTiles(Toy):
    """Merges, but not in every tile."""

    def decide(self, tokens: EncoderTokens):
        group = super().decide(tokens)
        whole = tokens.hidden[:, -1:, 0] > 0
        itself = torch.arange(group.owner.shape[1]).expand_as(group.owner)
        owner = torch.where(whole, itself, group.owner)
        return Group(owner, int(owner.max()) + 1, ragged=True)


@torch.no_grad()
@pytest.mark.parametrize("name", MERGING)
def test_tiles_that_merge_beside_tiles_that_do_not(name):
    family = FAMILIES[name]
    model = family.model()
    rows = [family.row(2, IMAGE, 3, seed=seed) for seed in range(6)]
    with vtprune.applied(model, SomeTiles(way="merge", layers=(1,))):
        together = model(**family.inputs(*rows)).logits[:, -1]
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i], model(**family.inputs(row)).logits[0, -1], **CLOSE)


@dataclasses.dataclass(frozen=True)
class Shortest(Toy):
    """Drops as many tokens of every tile: those with the shortest keys."""

    def stages(self, model):
        return [dataclasses.replace(stage, ragged=False) for stage in super().stages(model)]

    def decide(self, tokens):
        length = tokens.keys.norm(dim=-1)
        assert length.shape == tokens.hidden.shape[:2] == tokens.sizes.shape
        length[:, : tokens.protected] = torch.inf
        return Keep(length.argsort(1).argsort(1) >= 3)


@torch.no_grad()
@pytest.mark.parametrize("name", TILES)
def test_methods_in_one_block_and_behind_it(name):
    """A merge before the MLP and a stage behind the block: the second sees the keys of what is left."""
    family = FAMILIES[name]
    model = family.model()
    rows = [family.row(2, IMAGE, 3, seed=1), family.row(2, IMAGE, 3, seed=2)]
    with vtprune.applied(model, ["tome:keep=0.7", Shortest(after_block=True)]):
        together = model(**family.inputs(*rows)).logits[:, -1]
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i], model(**family.inputs(row)).logits[0, -1], **CLOSE)


def test_a_method_that_needs_equal_numbers_beside_one_that_does_not():
    model = FAMILIES["llava-clip"].model()
    with pytest.raises(ValueError, match=r"tome needs equally many tokens of every tile, so it cannot act beside toy"):
        vtprune.apply(model, [Toy(), "tome:keep=0.7"])


@torch.no_grad()
@pytest.mark.parametrize("name", TILES)
@pytest.mark.parametrize("second", ["turbo:keep=0.5", "zero_tprune:keep=0.5", "diffrate:keep=0.5", "tome:keep=0.5"])
def test_two_methods_in_all_blocks(name, second):
    """The second one gets queries, keys and values of what the first one has left."""
    family = FAMILIES[name]
    model = family.model()
    rows = [family.row(2, IMAGE, 3, seed=1), family.row(2, IMAGE, 3, seed=2)]
    with vtprune.applied(model, ["tome:keep=0.7", second]):
        together = model(**family.inputs(*rows)).logits[:, -1]
        acted = {p.method for p in vtprune.report(model).places if p.tokens_after < p.tokens_before}
        assert acted == {"tome", second.split(":")[0]}
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i], model(**family.inputs(row)).logits[0, -1], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("settings", ["keep=0.4", "tau=0.0"])
@pytest.mark.parametrize("name", TILES)
def test_windows_merged_behind_a_block(name, settings):
    """A method that acts at the encoder's output by default, at its paper's place."""
    family = FAMILIES[name]
    model = family.model()
    rows = [family.row(2, IMAGE, 3, seed=1), family.row(2, IMAGE, 3, seed=2)]
    with vtprune.applied(model, f"mustdrop:block=0,window=2,{settings}"):
        together = model(**family.inputs(*rows)).logits[:, -1]
        assert vtprune.report(model).visual_tokens_after < vtprune.report(model).visual_tokens_before
        for i, row in enumerate(rows):
            torch.testing.assert_close(together[i], model(**family.inputs(row)).logits[0, -1], **CLOSE)
    with pytest.raises(ValueError, match="mustdrop needs every token of a picture, so it cannot follow tome"):
        vtprune.apply(model, ["tome:keep=0.7", "mustdrop:block=0"])


@torch.no_grad()
@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Toy(), "toy keeps different numbers of tokens per picture .* 'vtprune' cannot; load .*'sdpa'}.$"),
        ("dymu", "dymu keeps different numbers of tokens .*'sdpa'}.$"),
        ("tinychart:keep=0.5", "tinychart weighs keys by size .*'sdpa'}.$"),
        ("tome:keep=0.5", "tome weighs keys by size .*'sdpa'}, or set proportional=False.$"),
    ],
)
def test_attention_that_takes_no_bias_is_refused(method, words):
    family = FAMILIES["llava-clip"]
    model = family.model()
    config = model.model.vision_tower.config
    vtprune.apply(model, method)
    config._attn_implementation = NAME  # changed afterwards: said when pictures come
    with pytest.raises(ValueError, match=words):
        model(**family.inputs(*(family.row(2, IMAGE, 2, seed=seed) for seed in (1, 2, 3))))
    vtprune.remove(model)
    if not isinstance(method, Toy):  # which weighs no keys, and can run on pictures that keep equally many
        with pytest.raises(ValueError, match=words):
            vtprune.apply(model, method)
    vtprune.apply(model, "pitome:keep=0.5")
    config._attn_implementation = "sdpa"
