"""Run folders as `vtprune eval` leaves them, of runs that never were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vtprune.evals.data.sample import Medium, Sample
from vtprune.evals.metrics.exact_match import EXACT_MATCH
from vtprune.evals.runner.configurations import Configuration
from vtprune.evals.runner.folder import FORMAT
from vtprune.evals.runner.records import Record
from vtprune.evals.runner.summary import summarise

KINDS = ("colour", "count", "relation")
STARTED = "2026-11-22T22:00:00+00:00"
ENVIRONMENT = {
    "vtprune": "0.1.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "cpu": "Example CPU",
    "gpu": None,
    "cores": 8,
}


def write_folder(
    folder: Path,
    methods: Sequence[str] = ("divprune", "fastv:layer=2"),
    keeps: Sequence[float | int] = (0.5, 0.25, 0.1),
    n: int = 40,
    *,
    name: str = "scenes",
    model: str = "tiny-llava",
    metric: str = "exact_match",
    source: dict | None = None,
    judged: bool = True,
    failing: int = 0,
    pictures: int = 3,
    question: str = "What colour is the large square?",
    answer: str = "red",
    seed: int = 0,
    ids: Sequence[str] | None = None,
    clean: float = 0.92,
) -> Path:
    """Write the folder of a run; everything is drawn from `seed`.

    Args:
        folder: Where.
        methods: As `--method` takes them.
        keeps: Budgets.
        n: Questions.
        name: Of the question set.
        model: Its name.
        metric: Its name.
        source: Of the question set.
        judged: Whether right answers are known.
        failing: How many questions fail, each under the last configuration.
        pictures: Overlays of each configuration, at most.
        question: What is asked.
        answer: Right answer.
        seed: Of everything.
        ids: Of the questions.
        clean: Accuracy of the unpruned model.
    """
    rng = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True)
    ids = ids or [f"q{index}" for index in range(n)]
    plan = [Configuration(), *(Configuration(method, keep) for method in methods for keep in keeps)]
    tables: dict[str, list[Record]] = {one.name: [] for one in plan}
    first: list[Record] = []
    skill = {method: rng.uniform(0.02, 0.25) for method in methods}
    for number, one in enumerate(plan):
        configuration, method, keep = one.name, one.method, one.keep
        share = 1.0 if keep is None else keep if isinstance(keep, float) else keep / 256
        for index, own in enumerate(ids):
            chance = clean - (skill[method] * (1 - share) ** 2 / 0.6 if method else 0)
            right = bool(rng.uniform() < chance) if method is None or rng.uniform() < 0.3 else first[index].score == 1
            if method and first[index].score == 1 and rng.uniform() > chance / clean:
                right = False
            failed = configuration == plan[-1].name and index < failing
            text = answer if right else "something else"
            flops = 0.35 + 0.65 * share + 0.05 * rng.uniform()
            record = Record(
                id=own,
                index=index,
                configuration=configuration,
                batch=index // 8,
                kind=KINDS[index % 3],
                group=f"scene {index // 3}",
                media=(f"scene {index // 3}",),
                question=question,
                answers=(answer,) if judged else (),
                answer=None if failed else text,
                score=None if failed or not judged else float(right),
                error="ValueError: the picture is <broken> & has 0 pixels" if failed else None,
                visual_tokens_before=256,
                visual_tokens_after=round(256 * share),
                flops_before=12.3e9,
                flops_after=12.3e9 * (flops if method else 1),
                kv_bytes_before=3e6,
                kv_bytes_after=3e6 * (0.2 + 0.8 * share),
                ttft_ms=40 * (flops + 0.1 if method else 1) * rng.uniform(0.95, 1.05),
                time_ms=60.0,
                new_tokens=2,
                agrees=None if failed or not method else text == first[index].answer,
                kl=None if failed or not method else float(rng.uniform(0, 1 - share)),
                logit_error=None if failed or not method else float(rng.uniform(0, 2)),
            )
            drawn = sum(other.picture is not None for other in tables[configuration])
            if record.agrees is False and drawn < pictures:
                picture = f"{number}-{index}.jpg"
                draw(folder / "pictures" / picture, int(rng.integers(1 << 30)))
                record = Record.from_dict({**record.to_dict(), "picture": picture})
            tables[configuration].append(record)
        first = first or tables["unpruned"]
    rows = sorted((one for table in tables.values() for one in table), key=lambda x: x.index)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row.to_dict()) + "\n" for row in rows))
    settings = {
        "model": model,
        "weights": "0123456789abcdef",
        "dtype": "float32",
        "questions": name,
        "source": source or {"suite": name, "seed": 0, "limit": n},
        "metric": metric,
        "configurations": [one.name for one in plan],
        "batch_size": 8,
        "seed": 0,
    }
    command = f"vtprune eval --model {model} --suite {name} --out {folder.name}"
    config = {"format": 1, "settings": settings, "environment": ENVIRONMENT, "started": STARTED, "command": command}
    (folder / "config.json").write_text(json.dumps(config))
    samples = [
        Sample(r.id, r.question, (Medium(r.media[0], "image", Image.Image),), r.answers, r.kind)
        for r in tables["unpruned"]
    ]
    summary = {
        "format": FORMAT,
        "name": name,
        "model": model,
        "metric": metric,
        "settings": settings,
        "environment": ENVIRONMENT,
        "malformed": [],
        **summarise(rows, samples, EXACT_MATCH, plan),
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def draw(path: Path, seed: int) -> None:
    """Stripes where an overlay would be."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (6, 8, 3)).astype("uint8")
    Image.fromarray(cells).resize((480, 360), Image.Resampling.NEAREST).save(path)
