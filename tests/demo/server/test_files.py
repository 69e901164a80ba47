"""Files: what may be sent and read, and what is said of the rest."""

from __future__ import annotations

import json
import os
import zipfile

import httpx
import pytest
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from tests.demo.serving import serve
from vtprune.demo.server.sweeping import sweep
from vtprune.demo.setting import Limits

META = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def browser(served):
    """Sends whatever it likes."""
    with httpx.Client(base_url=served.url, timeout=60) as one:
        yield one


@pytest.fixture(scope="module")
def uploaded(browser, picture):
    return browser.post("gradio_api/upload", files={"files": ("mine.png", picture.read_bytes())}).json()[0]


@pytest.fixture(scope="module")
def client(served):
    with served.program() as one:
        yield one


def _wrong_files(folder):
    whole = folder / "whole.jpg"
    Image.radial_gradient("L").save(whole)
    (folder / "cut.jpg").write_bytes(whole.read_bytes()[:2000])
    whole.unlink()
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "drawn.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        archive.writestr("a", "b")
    return sorted(folder.iterdir())


def _refused(client, **given):
    with pytest.raises(AppError) as error:
        client.predict(**given, api_name="/select")
    message = str(error.value)
    assert "\n" not in message
    assert "/" not in message, "a path of the server"
    assert len(message) < 900
    return message


def test_wrong_files_are_named(client, clip, tmp_path):
    for file in [*_wrong_files(tmp_path), clip]:
        assert repr(file.name) in _refused(client, picture=handle_file(file))


def test_wrong_clips_are_named(client, picture, tmp_path):
    (tmp_path / "text.mp4").write_text("no clip")
    for file in (tmp_path / "text.mp4", picture):
        assert repr(file.name) in _refused(client, model="tiny-qwen2.5-vl", clip=handle_file(file))


@pytest.mark.parametrize("kind", ["picture", "clip"])
@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ({"path": "OUTSIDE", "meta": META}, "have to be uploaded"),
        ({"path": "OUTSIDE"}, "have to be uploaded"),
        ({"path": "OUTSIDE", "meta": META, "is_stream": True}, "have to be uploaded"),
        ({"path": "UPLOADED/../../../../OUTSIDE", "meta": META}, "have to be uploaded"),
        ({"path": "LINK"}, "have to be uploaded"),
        ({"path": "pyproject.toml", "meta": META}, "have to be uploaded"),
        ({"path": "file:///etc/passwd", "meta": META}, "have to be uploaded"),
        ({"path": "data:image/png;base64,AAAA", "meta": META}, "have to be uploaded"),
        ({"path": "http://127.0.0.1:9/a.png", "meta": META}, "fetches nothing"),
        ({"path": None, "url": "http://127.0.0.1:9/a.png", "meta": META}, "have to be uploaded"),
        ({"url": "data:image/png;base64,AAAA", "meta": META}, "have to be uploaded"),
        ({"path": "\0", "meta": META}, "have to be uploaded"),
        ("/etc/passwd", "have to be uploaded"),
        (5, "have to be uploaded"),
    ],
)
def test_only_uploads_are_read(served, browser, uploaded, picture, tmp_path, payload, said, kind):
    (link := served.uploads / "link.png").unlink(missing_ok=True)
    link.symlink_to(picture)
    if isinstance(payload, dict) and payload.get("path"):
        path = payload["path"].replace("UPLOADED", uploaded).replace("OUTSIDE", str(picture)).replace("LINK", str(link))
        payload = {**payload, "path": path}
    files = [payload, None] if kind == "picture" else [None, payload]
    told = _call(browser, ["tiny-qwen2.5-vl", "What is shown?", "divprune", 0.25, *files])
    assert told["event"] == "error"
    assert said in told["data"]["error"]
    assert str(picture.parent) not in json.dumps(told)


def test_an_upload_is_read(browser, uploaded):
    mine = {"path": uploaded, "url": "http://127.0.0.1:9/", "meta": META}
    assert _call(browser, ["tiny-llava", "What is shown?", "divprune", 0.25, mine, None])["event"] == "complete"


def _call(browser, data):
    event = browser.post("gradio_api/call/select", json={"data": data}).json()["event_id"]
    lines = browser.get(f"gradio_api/call/select/{event}").text.split("\n")
    return {"event": lines[0].removeprefix("event: "), "data": json.loads(lines[1].removeprefix("data: "))}


def test_only_uploads_are_served(served, browser, uploaded, llava):
    secret = served.setting.scratch / "evaluation.json"
    secret.write_text("{}")
    assert browser.get(f"gradio_api/file={uploaded}").content
    for path in (secret, f"{served.uploads}/../evaluation.json", served.uploads, "/etc/passwd", "pyproject.toml"):
        assert browser.get(f"gradio_api/file={path}").status_code in (403, 404), path
    for path in ("static", "assets", "svelte", "gradio_api/file="):
        for up in ("../../routes.py", "..%2f..%2f..%2froutes.py", "/etc/passwd", "%2fetc%2fpasswd"):
            assert browser.get(f"{path}/{up}").status_code in (403, 404), (path, up)


def test_nothing_is_fetched_for_a_visitor(browser):
    for path in (
        "file=http://a.example/b",
        "file=https:/a.example",
        "proxy=http://a.example/",
        "proxy=https://a.hf.space/b",
    ):
        assert browser.get(f"gradio_api/{path}").status_code == 404, path


def test_what_the_page_does_not_need_is_closed(browser):
    for path in ("monitoring/summary", "gradio_api/deep_link?session_hash=a", "gradio_api/vibe-code", "openapi.json"):
        assert browser.get(path).status_code == 404, path
    for path in ("gradio_api/component_server", "gradio_api/process_recording", "gradio_api/vibe-code", "login"):
        assert browser.post(path, json={}).status_code == 404, path
    assert browser.put("gradio_api/upload").status_code == 404


def test_the_queue_cannot_be_passed_by(browser):
    assert browser.post("gradio_api/run/ask", json={"data": []}).status_code == 404


def test_large_uploads_leave_nothing(models, tmp_path):
    with serve(models, tmp_path, Limits(upload_mb=1)) as served, httpx.Client(base_url=served.url) as browser:
        before = _files(served.uploads)
        for size in (2**20 + 1, 2**22):
            told = browser.post("gradio_api/upload", files={"files": ("a.png", bytes(size))})
            assert (told.status_code, "at most 1 MB" in told.text or "maximum allowed size" in told.text) == (413, True)
        assert browser.post("gradio_api/queue/join", content=bytes(2**21)).status_code == 413
        assert browser.post("gradio_api/queue/join", content=iter([b"{}"])).status_code == 411
        assert _files(served.uploads) == before


def _files(folder):
    return {path for path in folder.rglob("*") if path.is_file()}


def test_uploads_and_results_are_deleted(models, picture, tmp_path):
    with serve(models, tmp_path, Limits(upload_minutes=2 / 60)) as served:
        shown = _files(served.uploads)
        with httpx.Client(base_url=served.url) as browser:  # who sends a file and asks nothing
            left = browser.post("gradio_api/upload", files={"files": ("left.png", picture.read_bytes())}).json()[0]
            assert os.path.exists(left)
        with served.program() as client:
            client.predict(api_name="/select")
        made = _files(served.uploads) - shown
        assert len(made) > 1
        _wait(lambda: not made & _files(served.uploads))
        assert _files(served.uploads) == shown, "the page's own pictures are gone"


def _wait(done, seconds=30):
    import time

    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_sweeping(tmp_path):
    for name in ("kept", "old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    sweep(tmp_path, 60, set())
    assert len(_files(tmp_path)) == 3
    sweep(tmp_path, -1, {str(tmp_path / "kept" / "file")})
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert _files(tmp_path) == {tmp_path / "kept" / "file"}
