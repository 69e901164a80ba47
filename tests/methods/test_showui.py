"""What is special about showui: components, the subsample of each, and what every family says of a token's pixels."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO
from tests.methods.inputs import pictures
from vtprune.engine.pixels import steps_on_map
from vtprune.integrations.layout import Map
from vtprune.methods.showui import OFFICIAL_VALUES, ShowUI, components, distances, neighbours, spaced, subsample


def numbered(rows, links):
    """Components of pictures of 3 columns; links are pairs of neighbouring tokens."""
    grid = (1, rows, 3)
    near = torch.zeros(len(links), rows * 3, 2, dtype=torch.bool)
    for i, pairs in enumerate(links):
        for a, b in pairs:
            near[i, a, int(b == a + 3)] = True
    return components(near, neighbours(pictures(len(links), grid).cells)).tolist()


def test_components_are_numbered_by_first_appearance_and_chain():
    snake = [(2, 5), (5, 8), (7, 8), (6, 7), (3, 6)]  # joins the ends of the picture from behind
    assert numbered(3, [[], snake, [(0, 3), (1, 4)]]) == [
        [0, 1, 2, 3, 4, 5, 6, 7, 8],
        [0, 1, 2, 2, 3, 2, 2, 2, 2],
        [0, 1, 2, 0, 1, 3, 4, 5, 6],
    ]


def test_neighbours_stay_on_their_frame_and_among_what_is_left():
    cells = pictures(1, (2, 2, 2)).cells
    assert neighbours(cells)[0, :, 0].tolist() == [1, 1, 3, 3, 5, 5, 7, 7]
    assert neighbours(cells)[0, :, 1].tolist() == [2, 3, 2, 3, 6, 7, 6, 7]
    left = type(cells)(*(x[:, [0, 2, 3, 5, 6, 7]] for x in cells))  # without 1 and 4
    assert neighbours(left)[0].tolist() == [[0, 1], [2, 1], [2, 2], [3, 5], [5, 4], [5, 5]]


@pytest.mark.parametrize(("size", "skipped", "kept"), [(5, 0.5, 3), (7, 0.5, 3), (4, 1.0, 1), (1, 1.0, 1), (9, 0.0, 9)])
def test_halves_are_rounded_to_even_and_one_token_stays(size, skipped, kept):
    assert subsample(torch.zeros(1, size, dtype=torch.long), skipped).sum() == kept


def test_subsample_of_scattered_components():
    component = torch.tensor([[0, 1, 0, 0, 1, 0, 0, 2], [0, 0, 0, 0, 0, 0, 0, 0]])
    marked = subsample(component, 0.6)
    # Of five tokens two stay, of two one, of eight three: 0, 3 and 7.
    assert marked.int().tolist() == [[1, 1, 0, 0, 0, 0, 1, 1], [1, 0, 0, 1, 0, 0, 0, 1]]


def test_spacing_is_that_of_float32_linspace():
    for size in (2, 17, 29, 33, 200, 1369):
        for count in range(2, size + 1, 1 + size // 100):
            number = torch.arange(count)
            expected = torch.linspace(0, size - 1, count).long()
            assert torch.equal(spaced(torch.tensor(size), torch.tensor(count), number), expected)
    # Exact arithmetic would have another token here.
    assert spaced(torch.tensor(29), torch.tensor(27), torch.arange(27)).tolist() != [i * 28 // 26 for i in range(27)]


def test_threshold_is_strict_and_in_units_of_the_official_cell():
    at = 1 / OFFICIAL_VALUES**0.5
    steps = torch.tensor([[0.99 * at, 1.01 * at, 0.99 * at, float("inf")]]).unsqueeze(2).expand(1, 4, 2)
    batch = dataclasses.replace(pictures(1, (1, 1, 4)), pixel_steps=steps)
    assert ShowUI(keep=0.01).decide(batch).mask.tolist() == [[True, False, True, False]]
    # A CLIP patch has 588 numbers: its L2 distance is smaller by sqrt(8) at the same RMS.
    assert distances(torch.tensor(at), 14 * 14 * 3) == pytest.approx(1 / 8**0.5)
    equal = dataclasses.replace(batch, pixel_steps=torch.full((1, 4, 2), 2.0**-10))
    limit = 2.0**-10 * OFFICIAL_VALUES**0.5
    assert ShowUI(keep=0.01, threshold=limit).decide(equal).mask.all()


def test_a_count_becomes_a_share_of_every_component():
    batch = dataclasses.replace(pictures(1, (1, 2, 4)), pixel_steps=torch.zeros(1, 8, 2))
    assert torch.equal(ShowUI(keep=2).decide(batch).mask, ShowUI(keep=0.25).decide(batch).mask)
    assert ShowUI(keep=100).decide(batch).mask.all()


def test_steps_are_root_mean_squares_within_frames():
    pixels = torch.arange(8.0)[:, None] * torch.tensor([[1.0, 7.0]])  # 2 frames of 2 x 2 tokens, two numbers each
    steps = steps_on_map(Map("video", (2, 2, 2)), pixels)
    inf = float("inf")
    assert steps.tolist() == 2 * [[5.0, 10.0], [inf, 10.0], [5.0, inf], [inf, inf]]


def test_refuses_a_bad_threshold():
    with pytest.raises(ValueError, match="threshold"):
        ShowUI(threshold=0)


# Screenshots on every family.

BLANK = [(name, kind) for name, family in FAMILIES.items() for kind in family.kinds]


@pytest.fixture(scope="module")
def models():
    return {}


def kept(models, name, row):
    """Kept tokens of the first picture, and its report, of one token per component."""
    family = FAMILIES[name]
    model = models.setdefault(name, family.model())
    with vtprune.applied(model, "showui", keep=0.001), torch.no_grad():
        model(**family.inputs(row))
        report = vtprune.report(model)
    return list(report.pictures[0].kept), report.pictures[0]


def blank(name, kind, paint=None):
    """A prompt with a picture of one colour, in which a few numbers may be changed in place."""
    row = FAMILIES[name].row(3, kind, 4)
    (item,) = row.items
    data = {k: torch.full_like(v, 0.7) if "pixel" in k else v for k, v in item.data.items()}
    if paint is not None:
        paint(next(v for k, v in data.items() if "pixel" in k))
    return dataclasses.replace(row, items=(dataclasses.replace(item, data=data),))


@pytest.mark.parametrize(("name", "kind"), BLANK)
def test_a_blank_picture_is_one_component_per_map_and_frame(models, name, kind):
    if name == "vipllava":
        pytest.skip("this family refuses: see test_support.py")
    found, report = kept(models, name, blank(name, kind))
    size = [m.grid[1] * m.grid[2] for m in report.maps]
    first = [m.tokens[f * n] for m, n in zip(report.maps, size, strict=True) for f in range(m.grid[0])]
    newlines = set(range(report.tokens)) - {token for m in report.maps for token in m.tokens}
    assert set(found) - newlines == set(first)


def patch(rows, columns):
    """Paints pixels of the last tile, picture or frame."""

    def paint(pixels):
        pixels.view(-1, *pixels.shape[-3:])[-1, :, rows, columns] += 0.5

    return paint


def of_tokens(first, *tokens):
    """Paints numbers of patches that are given in rows, (patches, numbers)."""

    def paint(pixels):
        for token in tokens:
            pixels[4 * token + first, 5] += 3.0

    return paint


@pytest.mark.parametrize(
    ("name", "paint", "expected"),
    [
        ("llava-clip", patch(slice(9, 11), slice(17, 19)), [0, 8]),  # patches of 8 pixels, 6 in a row
        ("llava-siglip", patch(47, 0), [0, 30]),
        ("internvl", patch(20, 40), [0, 9, 18, 23]),  # three tiles of 3 x 3 tokens of 16 pixels
        ("qwen2_vl", of_tokens(3, 8), [0, 8]),  # 2 x 2 patches in a row make a token; 6 x 6 tokens
        ("qwen2_5_vl", of_tokens(0, 8, 20), [0, 8, 20]),  # in raster order, whatever the windows
        ("qwen3_vl", of_tokens(2, 35), [0, 35]),
    ],
)
def test_what_stands_out_stays(models, name, paint, expected):
    assert kept(models, name, blank(name, IMAGE, paint))[0] == expected


def test_components_cross_the_tiles_of_a_canvas(models):
    """The last tile of 2 x 2 lies at the lower right; a stripe through it and the one beside it divides the canvas."""

    def paint(pixels):
        pixels[0, 3:5, :, 8:16] += 1.0  # the second row of patches of the two lower tiles, 4 x 4 patches each

    found, report = kept(models, "llava_next", blank("llava_next", IMAGE, paint))
    thumbnail, canvas = report.maps
    rows, columns = canvas.grid[1:]
    at = {token: divmod(i, columns) for i, token in enumerate(canvas.tokens)}
    assert found[0] == thumbnail.tokens[0]
    striped = next(r for r, c in (at[t] for t in found if t in at) if r)
    assert [at[t] for t in found if t in at] == [(0, 0), (striped, 0), (striped + 1, 0)]
    assert 0 < striped < rows - 1


def test_frames_of_a_video_are_divided_by_themselves(models):
    found, report = kept(models, "qwen2_vl", blank("qwen2_vl", VIDEO, of_tokens(0, 21)))
    assert report.grid == (3, 4, 5)
    assert found == [0, 20, 21, 40]
