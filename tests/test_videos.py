"""Frames of a file: the right ones, at the right times, without holding the others; and what cannot be read."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import vtprune.videos
from vtprune.evals.clips import draw_clip, make_clip, write_clip
from vtprune.evals.make_examples import FOLDER
from vtprune.videos import load_video

av = pytest.importorskip("av")
pytest.importorskip("decord")

BITS = 13


def numbered(number: int, height: int = 32, width: int = 16 * BITS) -> np.ndarray:
    """A frame that shows its number as a row of black and white squares."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        frame[:, bit * 16 : bit * 16 + 12] = 255 * (number >> bit & 1)
    return frame


def number_of(frame: np.ndarray) -> int:
    return sum(int(frame[16, bit * 16 + 6].mean() > 128) << bit for bit in range(BITS))


def write(path, count, *, codec="libx264", rate=25, milliseconds=None, options=None, container=None, frame=numbered):
    """Write frames that show their numbers, at an even rate or at the given times."""
    with av.open(str(path), "w", options=container or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frame(0).shape[:2], "yuv420p"
        if milliseconds is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for number in range(count):
            picture = av.VideoFrame.from_ndarray(frame(number))
            if milliseconds is not None:
                picture.pts, picture.time_base = int(milliseconds[number]), Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """100 frames, 4 seconds, with frames that depend on later ones."""
    return write(tmp_path_factory.mktemp("videos") / "hundred.mp4", 100, options={"bf": "3", "g": "40"})


def shown(video):
    return [number_of(frame) for frame in video.frames]


@pytest.mark.parametrize("frames", [1, 2, 3, 7, 50, 99, 100, 1000])
def test_evenly_spaced(hundred, frames):
    video = load_video(hundred, frames=frames)
    count = min(frames, 100)
    assert video.frames.shape == (count, 32, 16 * BITS, 3)
    assert video.frames.dtype == np.uint8
    assert shown(video) == list(video.indices)
    assert len(set(video.indices)) == count
    if count > 1:
        assert (video.indices[0], video.indices[-1]) == (0, 99)
        gaps = np.diff(video.indices)
        assert gaps.max() - gaps.min() <= 1
    else:
        assert video.indices == (49,)
    assert video.times == tuple(index / 25 for index in video.indices)
    assert (video.fps, video.total_frames, video.duration) == (25.0, 100, 4.0)


@pytest.mark.parametrize(("fps", "step"), [(25, 1), (100, 1), (12.5, 2), (5, 5), (1, 25), (0.25, 100), (1e300, 1)])
def test_by_rate(hundred, fps, step):
    video = load_video(hundred, fps=fps)
    assert video.indices == tuple(range(0, 100, step))
    assert shown(video) == list(video.indices)


def test_rate_that_does_not_divide(hundred):
    video = load_video(hundred, fps=3)
    assert video.indices == tuple(math.floor(25 * tick / 3 + 1e-9) for tick in range(12))


def test_rate_with_a_cap(hundred):
    assert load_video(hundred, fps=5, frames=20).indices == tuple(range(0, 100, 5))
    assert load_video(hundred, fps=5, frames=4).indices == (0, 30, 65, 95)


def test_default(hundred):
    assert load_video(hundred).indices == load_video(hundred, frames=32).indices
    assert len(load_video(hundred).indices) == 32
    short = load_video(FOLDER / "clip-1.mp4")
    assert len(short.frames) == short.total_frames == 8
    assert short.fps == 4


def test_pixels_are_those_of_the_clip(tmp_path):
    frames = draw_clip(make_clip(5))
    write_clip(frames, tmp_path / "clip.mp4")
    video = load_video(str(tmp_path / "clip.mp4"))
    assert np.abs(video.frames.astype(int) - frames).mean() < 4
    again = load_video(tmp_path / "clip.mp4")
    assert np.array_equal(video.frames, again.frames)
    assert video.size == (112, 112)
    assert video.to_dict()["total_frames"] == len(frames)


@pytest.mark.parametrize("name", ["uneven.mp4", "uneven.mkv"])
def test_varying_frame_rate(tmp_path, name):
    """Ten frames a second, then one: a rate asks for moments, not for every nth frame."""
    milliseconds = [100 * n for n in range(10)] + [1000 + 1000 * n for n in range(5)]
    write(tmp_path / name, 15, milliseconds=milliseconds)
    video = load_video(tmp_path / name, frames=100)
    assert video.times == pytest.approx([m / 1000 for m in milliseconds], abs=1e-3)
    assert shown(video) == list(range(15))
    assert video.fps == pytest.approx(15 / video.duration)
    assert 5 <= video.duration <= 6.1
    assert load_video(tmp_path / name, fps=1, frames=4).indices[:1] == (0,)
    assert load_video(tmp_path / name, fps=1).indices[:5] == (0, 10, 11, 12, 13)


def test_first_frame_is_at_zero(tmp_path):
    write(tmp_path / "late.mkv", 10, milliseconds=[5000 + 100 * n for n in range(10)])
    assert load_video(tmp_path / "late.mkv").times[:2] == pytest.approx((0.0, 0.1), abs=1e-3)


@pytest.mark.parametrize(("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.mkv", "libx264"), ("a.mov", "mpeg4")])
def test_other_formats(tmp_path, name, codec):
    try:
        write(tmp_path / name, 30, codec=codec, options={"crf": "10"} if codec != "mpeg4" else {"qscale": "2"})
    except av.error.FFmpegError as error:  # seen from time to time with libvpx on a busy machine
        pytest.skip(f"the test file cannot be written here: {error}")
    video = load_video(tmp_path / name, frames=7)
    assert shown(video) == list(video.indices)


def test_turned_upright(tmp_path):
    """A phone's film: stored lying, with a note that it is to be turned."""
    half = np.zeros((32, 64, 3), np.uint8)
    half[:, :32] = (250, 20, 20)
    path = write(tmp_path / "phone.mp4", 5, frame=lambda number: half)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    one = 0x10000
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 0x40000000)
    path.write_bytes(content)
    video = load_video(path)
    assert video.size == (32, 64)
    assert video.frames[0, 8, 16, 0] > 200 > 50 > video.frames[0, 56, 16, 0]


def test_one_frame(tmp_path):
    video = load_video(write(tmp_path / "one.mp4", 1), fps=2)
    assert (shown(video), video.times, video.total_frames) == ([0], (0.0,), 1)


def test_long_video_is_not_held_in_memory(tmp_path):
    """Of 6000 frames that would take 240 MB only the sampled ones are there, wherever they are."""
    path = write(tmp_path / "long.mp4", 6000, options={"preset": "ultrafast"}, frame=lambda n: numbered(n, 64))
    program = (
        "import resource, sys, vtprune.cli, vtprune.inputs; from vtprune.videos import load_video\n"
        "assert 'decord' not in sys.modules\n"  # it is imported only when needed
        "from tests.test_videos import shown\n"
        "load_video(sys.argv[1], frames=1)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "video = load_video(sys.argv[1], frames=24)\n"
        "assert shown(video) == list(video.indices) and video.indices[-1] == 5999\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < 60  # megabytes
    assert 6000 * 64 * 16 * BITS * 3 / 2**20 > 200


def test_too_many_pixels(hundred, monkeypatch):
    monkeypatch.setattr(vtprune.videos, "MAX_PIXELS", 10 * 32 * 16 * BITS)
    assert len(load_video(hundred, frames=10).frames) == 10
    with pytest.raises(ValueError, match=r"11 frames of 208 x 32 pixels are too many"):
        load_video(hundred, frames=11)


@pytest.mark.parametrize("frames", [0, -1, 2.5, True, math.nan, "3"])
def test_bad_frames(hundred, frames):
    with pytest.raises(ValueError, match="frames must be a whole number"):
        load_video(hundred, frames=frames)


@pytest.mark.parametrize("fps", [0, -1.0, True, math.nan, math.inf, "3"])
def test_bad_fps(hundred, fps):
    with pytest.raises(ValueError, match="fps must be a number above 0"):
        load_video(hundred, fps=fps)


def damaged(path, kind, hundred):
    """Files that people have, and that are no whole videos."""
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no video\n" * 100)
    elif kind in ("JPEG", "PNG", "GIF"):
        Image.new("RGB", (40, 30), "red").save(path, format=kind)
    elif kind == "half":  # the index, which comes last, is missing
        path.write_bytes(hundred.read_bytes()[: hundred.stat().st_size // 2])
    elif kind in ("half of the frames", "noise for frames"):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        write(path, 40, container={"movflags": "+faststart"}, frame=lambda n: np.roll(noise, n, axis=1))
        content = path.read_bytes()
        middle = (content.index(b"mdat") + len(content)) // 2
        rest = np.random.default_rng(1).bytes(len(content) - middle) if kind.startswith("noise") else b""
        path.write_bytes(content[:middle] + rest)
    elif kind == "sound":
        with av.open(str(path), "w", format="mp4") as file:
            stream = file.add_stream("aac", rate=16000)
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            silence.rate = 16000
            file.mux(stream.encode(silence))
            file.mux(stream.encode())
    elif kind == "no frames":
        with av.open(str(path), "w", format="mp4") as file:
            stream = file.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
            file.start_encoding()
    return path


BAD = {
    "missing": (FileNotFoundError, "does not exist"),
    "folder": (IsADirectoryError, "is a folder"),
    "empty": (ValueError, "empty file"),
    "text": (ValueError, "no video in a format that can be read"),
    "JPEG": (ValueError, "is a picture; use --image"),
    "PNG": (ValueError, "is a picture; use --image"),
    "GIF": (ValueError, "is a picture; use --image"),
    "half": (ValueError, "truncated or damaged"),
    "half of the frames": (ValueError, "truncated or damaged"),
    "noise for frames": (ValueError, "truncated or damaged"),
    "sound": (ValueError, "only sound, no frames, or an unknown codec"),
    "no frames": (ValueError, "only sound, no frames, or an unknown codec"),
}


@pytest.mark.parametrize("name", ["clip.mp4", "clip.dat"])
@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read(tmp_path, hundred, kind, name, capfd):
    path = tmp_path / name
    if kind in ("half of the frames", "noise for frames") and name == "clip.dat":
        damaged(tmp_path / "clip.mp4", kind, hundred).rename(path)
    else:
        damaged(path, kind, hundred)
    capfd.readouterr()
    with pytest.raises(BAD[kind][0], match=BAD[kind][1]) as error:
        load_video(path, frames=20)
    assert type(error.value) is BAD[kind][0]
    assert str(path) in str(error.value)
    for foreign in ("\n", ".cc:", "0x", "Stack trace", "decord"):
        assert foreign not in str(error.value)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.parametrize("url", ["https://example.org/clip.mp4", "http:/example.org/clip.mp4", "rtsp://host/1"])
def test_url(url):
    with pytest.raises(ValueError, match="is a URL"):
        load_video(url)


def test_without_decord(hundred, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ImportError, match="pip install decord"):
        load_video(hundred)


def test_standard_error_works_again(hundred, capfd):
    load_video(hundred, frames=1)
    print("still here", file=sys.stderr)
    assert capfd.readouterr().err == "still here\n"


def test_tensors_instead_of_arrays(hundred):
    """Other code in the process may have told decord to give out tensors."""
    bridge = pytest.importorskip("decord").bridge
    bridge.set_bridge("torch")
    try:
        video = load_video(hundred, frames=3)
    finally:
        bridge.reset_bridge()
    assert type(video.frames) is np.ndarray
    assert shown(video) == [0, 50, 99]
