"""A smaller picture before the encoder: what the model computes is what it computes when given the smaller picture."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import vtprune
from tests.families import FAMILIES, IMAGE, VIDEO, Row
from vtprune.methods import Keep, Method, Place, Resize, Stage
from vtprune.methods._grids import fit_grid
from vtprune.methods.resize import Resizing

CLOSE = dict(atol=1e-4, rtol=1e-4)
NAMES = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
KEEP = 0.3
PATCH = 4


@pytest.fixture(params=NAMES)
def kind(request):
    return request.param, "sdpa"


def frames_of(patches, grid):
    """Patches as pictures (frames, 6, height, width), patch by patch, blocks of 2 x 2 in raster order."""
    frames, rows, columns = grid
    pictures = torch.zeros(frames, 6, rows * PATCH, columns * PATCH)
    place = iter(patches)
    for f in range(frames):
        for r in range(0, rows, 2):
            for c in range(0, columns, 2):
                for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    y, x = (r + i) * PATCH, (c + j) * PATCH
                    pictures[f, :, y : y + PATCH, x : x + PATCH] = next(place).view(6, PATCH, PATCH)
    return pictures


def patches_of(pictures):
    """The inverse."""
    found = []
    for picture in pictures:
        for r in range(0, picture.shape[1] // PATCH, 2):
            for c in range(0, picture.shape[2] // PATCH, 2):
                for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
                    y, x = (r + i) * PATCH, (c + j) * PATCH
                    found.append(picture[:, y : y + PATCH, x : x + PATCH].flatten())
    return torch.stack(found)


def smaller(row: Row) -> Row:
    """The prompt with smaller pictures: their pixels resampled, and as many placeholders."""
    items, pieces, rest = [], [], row.ids
    for item in row.items:
        names = {k.split("_")[-1]: k for k in item.data if "pixel" in k or "grid_thw" in k}
        pixels, grid_name = next(k for k in item.data if "pixel" in k), names["thw"]
        frames, rows, columns = item.data[grid_name][0].tolist()
        h, w = fit_grid(round(KEEP * frames * rows * columns / 4) / frames, rows // 2, columns // 2)
        pictures = frames_of(item.data[pixels], (frames, rows, columns))
        pictures = F.interpolate(pictures, (h * 2 * PATCH, w * 2 * PATCH), mode="bicubic", antialias=True)
        data = {**item.data, pixels: patches_of(pictures), grid_name: torch.tensor([[frames, h * 2, w * 2]])}
        runs, ids = [], item.ids
        visual = (ids == ids.mode().values).tolist()
        start = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or visual[end] != visual[start]:
                length = (end - start) * 4 * h * w // (rows * columns) if visual[start] else end - start
                runs.append(ids[start:end][:length])
                start = end
        items.append(dataclasses.replace(item, ids=torch.cat(runs), data=data))
        at = next(i for i in range(len(rest)) if torch.equal(rest[i : i + len(ids)], ids))
        pieces += [rest[:at], items[-1].ids]
        rest = rest[at + len(ids) :]
    return Row(torch.cat([*pieces, rest]), tuple(items))


def prompts(family):
    return [
        family.row(5, IMAGE, 7),
        family.row(3, IMAGE, 2, IMAGE, 6, seed=1),
        family.row(2, VIDEO, 5),
        family.row(2, IMAGE, 3, VIDEO, 4, seed=2),
    ]


def test_patches_and_pictures(model, family):
    """The test's own reading of patches is that of the integration."""
    from vtprune.integrations import integrate
    from vtprune.integrations.base import EncoderCall

    integration = integrate(model)
    for kind, name in ((IMAGE, "pixel_values"), (VIDEO, "pixel_values_videos")):
        x = family.inputs(family.row(1, kind, 2, kind, 1))
        call = EncoderCall(kind, {name: x[name], f"{kind}_grid_thw": x[f"{kind}_grid_thw"]})
        pixels = integration.pixels(call)
        sizes = x[f"{kind}_grid_thw"].prod(-1).tolist()
        for mine, patches, grid in zip(pixels, x[name].split(sizes), x[f"{kind}_grid_thw"].tolist(), strict=True):
            assert torch.equal(mine, frames_of(patches, grid))
        again = integration.with_pixels(call, pixels).arguments
        assert torch.equal(again[name], x[name])
        assert torch.equal(again[f"{kind}_grid_thw"], x[f"{kind}_grid_thw"])
        with pytest.raises(ValueError, match="multiples of 8 pixels"):
            integration.with_pixels(call, [torch.zeros(1, 6, 8, 12)])


@torch.no_grad()
def test_the_model_computes_what_it_would_on_the_smaller_picture(model, family):
    for row in prompts(family):
        bare = model(**family.inputs(smaller(row))).logits
        with vtprune.applied(model, "resize", keep=KEEP):
            torch.testing.assert_close(model(**family.inputs(row)).logits, bare, **CLOSE)
            report = vtprune.report(model)
        assert report.visual_tokens_after == smaller(row).tokens < row.tokens
        (place,) = {p.place for p in report.places}
        assert place == "encoder input"


@torch.no_grad()
def test_batches_of_several_sizes_generate_the_same(model, family):
    rows = [family.row(5, IMAGE, 7, seed=1), family.row(9, seed=2), *prompts(family)[1:]]
    settings = dict(max_new_tokens=5, do_sample=False)
    x = family.inputs(*(smaller(row) for row in rows))
    expected = model.generate(**x, **settings)[:, x["input_ids"].shape[1] :]
    beams = model.generate(**x, **settings, num_beams=2)[:, x["input_ids"].shape[1] :]
    with vtprune.applied(model, "resize", keep=KEEP):
        x = family.inputs(*rows)
        assert torch.equal(model.generate(**x, **settings)[:, x["input_ids"].shape[1] :], expected)
        assert torch.equal(model.generate(**x, **settings, num_beams=2)[:, x["input_ids"].shape[1] :], beams)


@torch.no_grad()
def test_the_report_counts_the_encoders_savings(model, family):
    row = family.row(5, IMAGE, 7)
    with vtprune.applied(model, "resize", keep=1.0):
        model(**family.inputs(smaller(row)))
        least = vtprune.report(model).prefill_flops_before
        model(**family.inputs(row))
        whole = vtprune.report(model)
    with vtprune.applied(model, "resize", keep=KEEP):
        model(**family.inputs(row))
        report = vtprune.report(model)
    assert (report.prefill_flops_before, report.prefill_flops_after) == (whole.prefill_flops_after, least)
    assert whole.places[0].note == "kept everything"


@torch.no_grad()
def test_later_methods_see_the_smaller_picture(model, family):
    """Divprune and fastervlm decide on the smaller picture's tokens as if it had been given."""
    row = family.row(5, IMAGE, 3, IMAGE, 7)
    for later in ("divprune", "fastervlm", "random", "fastv"):
        chain = [("resize", {"keep": KEEP, "positions": "compact"}), (later, {"keep": 0.5})]
        if later != "fastv":
            chain[1][1]["positions"] = "compact"
        with vtprune.applied(model, chain):
            logits = model(**family.inputs(row)).logits
            kept = vtprune.report(model).visual_tokens_after
        with vtprune.applied(model, [chain[1]]):
            torch.testing.assert_close(logits, model(**family.inputs(smaller(row))).logits, **CLOSE)
            assert vtprune.report(model).visual_tokens_after == kept


@torch.no_grad()
def test_features_of_every_token_are_put_out(model, family):
    x = family.inputs(family.row(1, IMAGE, 2))
    pixels, grid = x["pixel_values"], x["image_grid_thw"]
    with vtprune.applied(model, "resize", keep=KEEP):
        (features,) = model.get_image_features(pixels, grid).pooler_output
        assert len(features) == 36
        assert len(features.unique(dim=0)) == 9
        with pytest.raises(ValueError, match="return_dict"):
            model.get_image_features(pixels, grid, return_dict=False)


def test_gradients_reach_the_pixels(model, family):
    x = family.inputs(family.row(1, IMAGE, 2))
    x["pixel_values"].requires_grad_()
    with vtprune.applied(model, "resize", keep=KEEP):
        model(**x).logits.sum().backward()
    assert (x["pixel_values"].grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (["resize", "fourier"], "fourier needs every token"),
        (["resize", "showui"], "showui compares the pixels of neighbouring tokens, which resize replaces"),
        (["divprune", "resize"], "order of their places"),
    ],
)
def test_refused_chains(model, chain, message):
    with pytest.raises(ValueError, match=message):
        vtprune.apply(model, chain)


@dataclasses.dataclass(frozen=True)
class Odd(Method):
    """Returns whatever it is given."""

    decision: object = None
    name = "odd"
    places = (Place.ENCODER_INPUT,)

    def stages(self, model):
        return [Stage(Place.ENCODER_INPUT, lambda picture: self.decision)]


@torch.no_grad()
@pytest.mark.parametrize(
    ("decision", "error", "message"),
    [
        (Keep(torch.ones(1, 1)), TypeError, "must return Resize"),
        (Resize(torch.zeros(1, 6, 8, 9)), ValueError, "multiples of 8"),
        (Resize(torch.zeros(2, 6, 8, 8)), ValueError, "only become smaller"),
        (Resize(torch.zeros(1, 6, 8, 256)), ValueError, "only become smaller"),
    ],
)
def test_odd_decisions(model, family, decision, error, message):
    with vtprune.applied(model, Odd(decision)), pytest.raises(error, match=message):
        model(**family.inputs(family.row(1, IMAGE, 2)))


def test_models_of_one_size_refuse():
    model = FAMILIES["llava-clip"].model()
    with pytest.raises(ValueError, match="pictures of one size only"):
        vtprune.apply(model, Odd())
    assert [s.place for s in Resizing().stages(dataclasses.replace(_info(), any_size=False))] == [Place.ENCODER_OUTPUT]


def _info():
    from tests.methods.inputs import INFO

    return INFO
