"""Every visual slot is known: map, tile, frame, row, column and time, against plain loops over the pictures."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO
from vtprune.engine.layout import VisualLayout
from vtprune.integrations import integrate
from vtprune.integrations.layout import Map, PictureLayout


def attention_of(run) -> list[torch.Tensor]:
    """What a run noted of the attention that each slot received, unit by unit."""
    (values,) = run.signals.values()
    return values


def layout_of(family, model, *rows) -> VisualLayout:
    with vtprune.applied(model, "fastv", keep=0.5), torch.no_grad():
        model(**family.inputs(*rows))
        return vtprune.api._engines[model].latest.layout


@pytest.mark.parametrize("name", FAMILIES)
def test_which_families_take_videos(name):
    family = FAMILIES[name]
    assert integrate(family.model()).takes_videos == (VIDEO in family.kinds)


@pytest.mark.parametrize("name", FAMILIES)
def test_slots_tokens_and_pictures(name):
    """Rows with different pictures: the same placeholders as in the prompt, pictures in their order."""
    family = FAMILIES[name]
    parts = (1, VIDEO, 2, IMAGE, 2, IMAGE, 1) if VIDEO in family.kinds else (1, IMAGE, 2, IMAGE, 2, IMAGE, 1)
    rows = [family.row(5, IMAGE, 7), family.row(3), family.row(*parts, seed=1)]
    layout = layout_of(family, family.model(), *rows)
    longest = max(len(row.ids) for row in rows)
    assert layout.first == [0, 1, 1]
    assert layout.most == 3
    for i, row in enumerate(rows):
        picture = layout.picture[i, longest - len(row.ids) :]
        assert torch.equal(picture >= 0, row.visual)
        expected = [layout.first[i] + k for k, item in enumerate(row.items) for _ in range(item.tokens)]
        assert picture[row.visual].tolist() == expected
        tokens = [t for item in row.items for t in range(item.tokens)]
        assert layout.token[i, longest - len(row.ids) :][row.visual].tolist() == tokens
    kinds = [item.kind for row in rows for item in row.items]
    assert [layout.pictures[s].layout.kind for s in layout.source] == kinds


def test_tiled_picture_cell_by_cell():
    """LLaVA-NeXT: thumbnail, then the unpadded canvas row by row, a newline behind each row."""
    family = FAMILIES["llava_next"]
    model = family.model()
    for number, (tiles, size) in enumerate([((2, 2), (50, 64)), ((1, 2), (24, 61)), ((2, 1), (63, 20))]):
        row = family.row(2, IMAGE, 1, seed=number)
        (picture,) = layout_of(family, model, row).pictures
        down, across = tiles[0] * 4, tiles[1] * 4
        if size[1] / size[0] > across / down:
            top, left = (down - int(size[0] * across / size[1])) // 2, 0
        else:
            top, left = 0, (across - int(size[1] * down / size[0])) // 2
        expected = [(0, 0, 0, r, c) for r in range(4) for c in range(4)]
        for r in range(down - 2 * top):
            for c in range(across - 2 * left):
                tile = (r + top) // 4 * tiles[1] + (c + left) // 4
                expected.append((1, tile, 0, r, c))
            expected.append((-1,) * 5)
        cells = picture.layout.cells
        assert len(cells) == len(expected)
        # Tiles are numbered among those that are left: unpadding may take whole tiles away.
        numbers = sorted({e[1] for e in expected[16:] if e[0] == 1})
        expected = [(m, 1 + numbers.index(t) if m == 1 else t, f, r, c) for m, t, f, r, c in expected]
        assert [tuple(x) for x in cells.tolist()] == expected
        assert picture.layout.newlines.tolist() == [e[0] < 0 for e in expected]


def test_a_newline_leaves_with_its_line():
    layout = PictureLayout("image", (Map("thumbnail", (1, 2, 2)), Map("canvas", (1, 2, 3), start=4, gap=1)), 12)
    assert layout.newlines.nonzero().flatten().tolist() == [7, 11]
    assert layout.lines.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    family = FAMILIES["llava_next"]
    model, row = family.model(), family.row(2, IMAGE, 1)
    with vtprune.applied(model, "fastv", keep=3), torch.no_grad():
        model(**family.inputs(row))
        (report,) = vtprune.report(model).pictures
    known = layout_of(family, model, row).pictures[0].layout
    tokens = [t for t in report.kept if not known.newlines[t]]
    assert len(tokens) == 3
    alive = {int(known.lines[t]) for t in tokens}
    newlines = known.newlines.nonzero().flatten().tolist()
    assert [t for t in report.kept if known.newlines[t]] == [t for t in newlines if int(known.lines[t]) in alive]


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if VIDEO in f.kinds])
def test_frames_and_times(name):
    family = FAMILIES[name]
    row = family.row(2, VIDEO, 3)
    (video,) = layout_of(family, family.model(), row).pictures
    (one,) = video.layout.maps
    assert one.name == "video"
    frames, rows, columns = one.grid
    cells = video.layout.cells[one.slots()]
    assert cells[:, 2].tolist() == [f for f in range(frames) for _ in range(rows * columns)]
    assert cells[:, 3].tolist() == [r for _ in range(frames) for r in range(rows) for _ in range(columns)]
    assert cells[:, 4].tolist() == list(range(columns)) * (rows * frames)
    assert video.layout.seconds == (0.5 if name == "qwen2_5_vl" else None)
    assert frames > 1


def test_internvl_tells_tiles_pictures_and_frames_apart():
    family = FAMILIES["internvl"]
    model = family.model()
    for parts, expected in [
        ((2, VIDEO, 3), [("video", 3)]),
        ((2, IMAGE, 3), [("image", 3)]),
        ((2, IMAGE, 0, IMAGE, 3), [("image", 3), ("image", 1)]),
        ((2, VIDEO, 1, VIDEO, 3), [("video", 3), ("video", 3)]),
        ((2, IMAGE, 1, VIDEO, 2, IMAGE), [("image", 3), ("video", 3), ("image", 2)]),
        ((2, VIDEO, 0, VIDEO, 3), [("video", 3), ("video", 3)]),
    ]:
        layout = layout_of(family, model, family.row(*parts))
        found = [(p.layout.kind, len(p.units)) for p in layout.pictures]
        assert found == expected, parts


@torch.no_grad()
def test_scores_of_tiles_reach_their_slots():
    """Attention of [CLS] in each tile, cell by cell on the canvas."""
    family = FAMILIES["llava_next"]
    model, row = family.model("eager"), family.row(2, IMAGE, 1)
    x = family.inputs(row)
    maps = model.model.vision_tower(x["pixel_values"][0], output_attentions=True).attentions[2].mean(1)[:, 0, 1:]
    (run,) = _runs(family, model, row)
    cells = run.units[0].cells
    top = (8 - int(50 * 8 / 64)) // 2
    for slot, (which, _, _, r, c) in enumerate(cells.tolist()):
        if which == 0:
            expected = maps[0, r * 4 + c]
        elif which == 1:
            expected = maps[1 + (r + top) // 4 * 2 + c // 4, (r + top) % 4 * 4 + c % 4]
        else:
            continue
        torch.testing.assert_close(attention_of(run)[0][slot], expected)


@torch.no_grad()
def test_scores_of_shuffled_pixels_are_means_of_four_patches():
    family = FAMILIES["internvl"]
    model, row = family.model("eager"), family.row(2, IMAGE, 1)
    pixels = family.inputs(row)["pixel_values"]
    maps = model.model.vision_tower(pixels, output_attentions=True).attentions[3].mean(1)[:, 0, 1:]
    (run,) = _runs(family, model, row)
    for tile in range(len(pixels)):
        for token in range(9):
            r, c = token // 3 * 2, token % 3 * 2
            patches = [maps[tile, (r + i) * 6 + c + j] for i in range(2) for j in range(2)]
            torch.testing.assert_close(attention_of(run)[tile][token], torch.stack(patches).mean())


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_scores_of_packed_patches(name):
    """Qwen: attention received within a frame, in the last block with full attention, on raster order."""
    family = FAMILIES[name]
    model, row = family.model(), family.row(2, IMAGE, 1, VIDEO, 2)
    seen = {}
    block = model.model.visual.blocks[3]

    def look(module, args, kwargs):
        seen.setdefault("calls", []).append(
            (args[0] if args else kwargs["hidden_states"], kwargs["position_embeddings"])
        )

    handle = block.attn.register_forward_pre_hook(look, with_kwargs=True)
    runs = _runs(family, model, row)
    handle.remove()
    x = family.inputs(row)
    for run, (hidden, (cos, sin)), grid in zip(
        runs, seen["calls"], (x["image_grid_thw"][0], x["video_grid_thw"][0]), strict=True
    ):
        frames, rows, columns = grid.tolist()
        q, k, _ = block.attn.qkv(hidden).view(len(hidden), 3, 4, -1).unbind(1)

        def turn(v, cos=cos, sin=sin):
            half = v.shape[-1] // 2
            return v * cos[:, None] + torch.cat((-v[..., half:], v[..., :half]), -1) * sin[:, None]

        q, k = turn(q), turn(k)
        received = []
        for frame in range(frames):
            here = slice(frame * rows * columns, (frame + 1) * rows * columns)
            weights = torch.einsum("qhd,khd->hqk", q[here], k[here]) * block.attn.scaling
            received.append(weights.softmax(-1).mean((0, 1)))
        tokens = torch.cat(received).view(-1, 4).mean(1)
        if name == "qwen2_5_vl":  # windows of 2 x 2 tokens run one after the other
            order = []
            for frame in range(frames):
                numbers = torch.arange(rows * columns // 4).view(rows // 2, columns // 2) + frame * rows * columns // 4
                for r in range(0, rows // 2, 2):
                    for c in range(0, columns // 2, 2):
                        order += numbers[r : r + 2, c : c + 2].flatten().tolist()
            tokens = torch.empty_like(tokens).index_copy(0, torch.tensor(order), tokens)
        torch.testing.assert_close(attention_of(run)[0], tokens)


def _runs(family, model, row):
    """The encoder runs of a prompt's pictures and videos, with the attention signal."""
    x = family.inputs(row)
    calls = {
        "image": ("pixel_values", "image_sizes", "image_grid_thw"),
        "video": ("pixel_values_videos", "video_grid_thw"),
    }
    runs = []
    with vtprune.applied(model, "fastervlm", keep=0.5), torch.no_grad():
        for kind, names in calls.items():
            if names[0] in x:
                encode = getattr(model.model, f"get_{kind}_features")
                runs.append(encode(**{n: x[n] for n in names if n in x}, return_dict=True).vtprune_run)
    return runs


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_finished_prefill_keeps_no_pixels_and_no_features(name):
    family = FAMILIES[name]
    model = family.model()
    with vtprune.applied(model, "fourier", keep=0.5):
        x = family.inputs(family.row(2, IMAGE, 1))
        pixels = weakref.ref(x["pixel_values"])
        model(**x)
        del x
        gc.collect()
        assert pixels() is None
        latest = vtprune.api._engines[model].latest
        assert all(run.encoded is None and not run.signals for run in latest.runs)
        assert all(one.levels is None for one in latest.selected)
        assert vtprune.report(model).prefill_flops_after > 0


@torch.no_grad()
@pytest.mark.parametrize("size", [(3, 900), (900, 3)], ids=["wide", "tall"])
def test_pictures_so_thin_that_their_canvas_vanishes(size):
    """The untouched model runs on them, with a thumbnail and at most newlines."""
    family = FAMILIES["llava_next"]
    model = family.model()
    x = family.inputs(family.row(2, IMAGE, 1, seed=1))
    x["image_sizes"] = torch.tensor([size])
    tiles = torch.randn(1, 3, 3, 32, 32)
    features = model.model.get_image_features(tiles, x["image_sizes"], return_dict=True).pooler_output
    x["pixel_values"] = tiles
    x["input_ids"] = torch.cat((torch.tensor([20, 21]), torch.full((len(features[0]),), 1), torch.tensor([22])))[None]
    x["attention_mask"] = torch.ones_like(x["input_ids"])
    expected = model(**x).logits
    with vtprune.applied(model, "uniform", keep=1.0):
        assert torch.equal(model(**x).logits, expected)
    with vtprune.applied(model, "uniform", keep=4):
        logits = model(**x).logits
        kept = vtprune.report(model).visual_tokens_after
    assert logits.shape[1] == 3 + kept
    assert 4 <= kept < len(features[0])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("keep", [2, 7, 11, 19])
def test_a_number_of_tokens_is_shared_out_exactly(name, keep):
    family = FAMILIES[name]
    model = family.model()
    rows = [family.row(2, part, 1) for part in family.kinds]
    for row in rows:
        for method in ("fastervlm", "divprune"):
            with vtprune.applied(model, method, keep=keep), torch.no_grad():
                model(**family.inputs(row))
                (picture,) = vtprune.report(model).pictures
            tokens = {t for one in picture.maps for t in one.tokens}
            assert len(tokens & set(picture.kept)) == min(keep, len(tokens))
