"""What programs may call: results are those of the library."""

from __future__ import annotations

import json

import pytest
from gradio_client import Client, handle_file

import vtprune.run
from vtprune.images import load_image

KEPT = "Which colour does the circle have?"


@pytest.fixture
def client(served, tmp_path):
    with_files = Client(served.url, download_files=str(tmp_path), verbose=False)
    yield with_files
    with_files.close()


def test_ask_is_what_the_library_says(client, llava, picture):
    said, drawn = client.predict(
        "tiny-llava", handle_file(picture), None, KEPT, "fastv:layer=2", 0.25, 8, api_name="/ask"
    )
    wanted = vtprune.run.compare(llava, [load_image(picture)], KEPT, "fastv:layer=2", 0.25, max_new_tokens=8)
    assert (said["answer"], said["baseline_answer"]) == (wanted.answer, wanted.baseline_answer)
    assert said["report"] == json.loads(json.dumps(wanted.report.to_dict()))
    assert load_image(drawn).size[0] > 0
