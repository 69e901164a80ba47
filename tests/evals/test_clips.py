"""Clips follow from their seeds, show what they say, and survive being written as a video."""

from __future__ import annotations

import numpy as np
import pytest

from vtprune.evals.clips import (
    CLIP_SIZE,
    DIRECTIONS,
    FRAMES,
    LEAST_TRAVEL,
    Clip,
    draw_clip,
    make_clip,
    write_clip,
)
from vtprune.evals.scenes import SIZE, TEST_SEED_START

SEEDS = range(150)


def test_a_seed_is_a_clip():
    for seed in (0, 7, TEST_SEED_START + 3):
        one, two = make_clip(seed), make_clip(seed)
        assert one == two
        frames = draw_clip(one)
        assert np.array_equal(frames, draw_clip(two))
        assert frames.shape == (one.frames, CLIP_SIZE, CLIP_SIZE, 3)
        assert frames.dtype == np.uint8
    assert make_clip(0) != make_clip(1)


def test_tracks():
    clips = [make_clip(seed) for seed in SEEDS]
    assert {len(clip.tracks) for clip in clips} == {1, 2, 3, 4}
    assert {clip.frames for clip in clips} == set(range(FRAMES[0], FRAMES[1] + 1))
    assert {track.direction for clip in clips for track in clip.tracks} == {None, *DIRECTIONS}
    for clip in clips:
        assert len({track.name for track in clip.tracks}) == len(clip.tracks)
        for track in clip.tracks:
            assert 0 <= track.first <= track.end - 2 <= clip.frames - 2
            assert 12 <= track.start.radius * CLIP_SIZE / SIZE <= 18
            start, stop = track.at(track.first), track.at(track.end - 1)
            assert track.at(track.first - 1) is None
            assert track.at(track.end) is None
            moved = (stop.x - start.x, stop.y - start.y)
            steps = DIRECTIONS[track.direction] if track.direction else (0, 0)
            assert tuple(np.sign(np.round(moved, 6))) == steps
            assert track.direction is None or max(map(abs, moved)) >= LEAST_TRAVEL - 1e-6


def test_objects_lie_inside_and_apart():
    for seed in SEEDS:
        clip = make_clip(seed)
        for frame in range(clip.frames):
            shown = [obj for track in clip.tracks if (obj := track.at(frame))]
            if clip.needle and clip.needle.card and clip.needle.first <= frame < clip.needle.end:
                shown.append(clip.needle.card)
            for place, obj in enumerate(shown):
                assert obj.radius < min(obj.x, obj.y, SIZE - obj.x, SIZE - obj.y)
                for other in shown[:place]:
                    assert max(abs(obj.x - other.x), abs(obj.y - other.y)) > obj.radius + other.radius


def test_needles_are_short():
    needles = [(clip, clip.needle) for clip in map(make_clip, SEEDS) if clip.needle]
    assert {needle.end - needle.first for _, needle in needles} == {1, 2}
    assert {needle.card is None for _, needle in needles} == {True, False}
    for clip, needle in needles:
        assert (needle.track is None) == (needle.card is not None)
        alive = clip.tracks[needle.track] if needle.card is None else None
        assert (alive.first if alive else 0) <= needle.first < needle.end <= (alive.end if alive else clip.frames)


def test_frames_show_the_tracks():
    def colour_at(frames: np.ndarray, number: int, x: float, y: float) -> np.ndarray:
        return frames[number, int(y * CLIP_SIZE / SIZE), int(x * CLIP_SIZE / SIZE)].astype(int)

    for seed in range(20):
        clip = make_clip(seed)
        bare = Clip(clip.seed, clip.frames, clip.background, clip.tracks, None)
        frames, without = draw_clip(clip), draw_clip(bare)
        empty = draw_clip(Clip(clip.seed, clip.frames, clip.background, (), None))
        assert (empty == empty[0]).all()
        for number in range(clip.frames):
            for track in clip.tracks:
                obj = track.at(number)
                if obj is not None:
                    assert np.abs(colour_at(without, number, obj.x, obj.y) - obj.rgb).max() <= 2
        changed = np.flatnonzero((frames != without).any(axis=(1, 2, 3)))
        assert list(changed) == (list(range(clip.needle.first, clip.needle.end)) if clip.needle else [])


@pytest.mark.parametrize("fps", [4.0, 2.5])
def test_a_written_clip_is_the_same_clip(tmp_path, fps):
    av = pytest.importorskip("av")
    clip = make_clip(9)
    frames = draw_clip(clip)
    path = tmp_path / "clip.mp4"
    write_clip(frames, path, fps)
    assert path.stat().st_size < 60_000
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == pytest.approx(fps)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(stream)])
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 4


def test_decord_reads_the_frames_that_were_written(tmp_path):
    pytest.importorskip("av")
    decord = pytest.importorskip("decord")
    for seed in range(5):
        frames = draw_clip(make_clip(seed))
        write_clip(frames, tmp_path / "clip.mp4")
        reader = decord.VideoReader(str(tmp_path / "clip.mp4"), num_threads=1)
        decoded = reader.get_batch(range(len(reader))).asnumpy()
        assert decoded.shape == frames.shape
        assert reader.get_avg_fps() == 4
        assert np.abs(decoded.astype(int) - frames).mean() < 4


@pytest.mark.parametrize(
    ("frames", "fps"),
    [
        (np.zeros((0, 8, 8, 3), np.uint8), 4),
        (np.zeros((2, 8, 8, 3), np.float32), 4),
        (np.zeros((2, 7, 8, 3), np.uint8), 4),
        (np.zeros((8, 8, 3), np.uint8), 4),
        (np.zeros((2, 8, 8, 3), np.uint8), 0),
        (np.zeros((2, 8, 8, 3), np.uint8), float("nan")),
    ],
)
def test_what_cannot_be_written(tmp_path, frames, fps):
    with pytest.raises(ValueError, match="must be"):
        write_clip(frames, tmp_path / "clip.mp4", fps)
    assert not (tmp_path / "clip.mp4").exists()
