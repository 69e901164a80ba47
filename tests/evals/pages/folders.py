"""Run folders as `vtprune eval` leaves them, of runs that never were."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vtprune.evals.pages.pareto import pareto
from vtprune.evals.runner.records import Record

KINDS = ("colour", "count", "relation")
COSTS = {"tokens": "visual_tokens_share", "flops": "prefill_flops_share", "ttft": "ttft_share"}
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
    metric: str = "exact",
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
    plan = [("unpruned", None, None), *((f"{m}@{k}", m, k) for m in methods for k in keeps)]
    tables: dict[str, list[Record]] = {configuration: [] for configuration, _, _ in plan}
    first: list[Record] = []
    skill = {method: rng.uniform(0.02, 0.25) for method in methods}
    for configuration, method, keep in plan:
        share = 1.0 if keep is None else keep if isinstance(keep, float) else keep / 256
        for index, own in enumerate(ids):
            chance = clean - (skill[method] * (1 - share) ** 2 / 0.6 if method else 0)
            right = bool(rng.uniform() < chance) if method is None or rng.uniform() < 0.3 else first[index].score == 1
            if method and first[index].score == 1 and rng.uniform() > chance / clean:
                right = False
            failed = configuration == plan[-1][0] and index < failing
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
            drawn = sum(one.picture is not None for one in tables[configuration])
            if record.agrees is False and drawn < pictures:
                picture = f"{plan.index((configuration, method, keep))}-{index}.jpg"
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
        "configurations": [configuration for configuration, _, _ in plan],
        "batch_size": 8,
        "seed": 0,
    }
    command = f"vtprune eval --model {model} --suite {name} --out {folder.name}"
    config = {"format": 1, "settings": settings, "environment": ENVIRONMENT, "started": STARTED, "command": command}
    (folder / "config.json").write_text(json.dumps(config))
    configurations = [_summary(tables[c], tables["unpruned"], c, m, k) for c, m, k in plan]
    for view, cost in COSTS.items():
        quality = [
            one["accuracy"] if judged else one["fidelity"]["agreement"] if one["fidelity"] else 1.0
            for one in configurations
        ]
        front = pareto([(one[cost], value) for one, value in zip(configurations, quality, strict=True)])
        for one, on in zip(configurations, front, strict=True):
            one.setdefault("pareto", {})[view] = on
    errors = [{"id": r.id, "configuration": r.configuration, "error": r.error} for r in rows if r.error][:20]
    summary = {
        "format": 1,
        "name": name,
        "model": model,
        "metric": metric,
        "settings": settings,
        "environment": ENVIRONMENT,
        "n": n,
        "failed": failing,
        "configurations": configurations,
        "errors": errors,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def draw(path: Path, seed: int) -> None:
    """Stripes where an overlay would be."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 255, (6, 8, 3)).astype("uint8")
    Image.fromarray(cells).resize((480, 360), Image.Resampling.NEAREST).save(path)


def _interval(values: Sequence[float]) -> list[float]:
    half = 1.96 * np.std(values) / max(len(values), 1) ** 0.5
    return [float(np.mean(values) - half), float(np.mean(values) + half)]


def _summary(records: list[Record], first: list[Record], name: str, method: str | None, keep: float | None) -> dict:
    scores = {one.id: one.score for one in records if one.score is not None}
    base = {one.id: one.score for one in first if one.score is not None}

    def judge(chosen: set[str]) -> dict:
        own = [score for one, score in scores.items() if one in chosen]
        both = [score - base[one] for one, score in scores.items() if one in chosen and one in base]
        against = {"difference": float(np.mean(both)), "interval": _interval(both), "n": len(both)} if both else None
        return {
            "n": len(own),
            "accuracy": float(np.mean(own)) if own else None,
            "interval": _interval(own) if own else None,
            "against_unpruned": against if method else None,
        }

    kinds = {kind: judge({one.id for one in records if one.kind == kind}) for kind in KINDS if scores}
    good = [one for one in records if one.error is None]
    agreeing = [float(one.agrees) for one in good if one.agrees is not None]
    before, after = 40.0, float(np.median([one.ttft_ms for one in good]))
    return {
        "name": name,
        "method": method,
        "keep": keep,
        **judge({one.id for one in records}),
        "failed": len(records) - len(good),
        "by_kind": {kind: of["accuracy"] for kind, of in kinds.items()},
        "kinds": kinds,
        "details": {},
        "answered": len(good),
        "fidelity": {
            "agreement": float(np.mean(agreeing)),
            "agreement_interval": _interval(agreeing),
            "kl": float(np.mean([one.kl for one in good])),
            "logit_error": float(np.mean([one.logit_error for one in good])),
        }
        if method
        else None,
        "visual_tokens_mean": float(np.mean([one.visual_tokens_after for one in good])),
        "visual_tokens_share": float(np.mean([one.visual_tokens_after for one in good])) / 256,
        "prefill_flops_mean": float(np.mean([one.flops_after for one in good])),
        "prefill_flops_share": float(np.mean([one.flops_after for one in good])) / 12.3e9,
        "kv_bytes_mean": float(np.mean([one.kv_bytes_after for one in good])),
        "kv_bytes_share": float(np.mean([one.kv_bytes_after for one in good])) / 3e6,
        "ttft_ms": after,
        "ttft_share": after / before if method else 1.0,
        "ttft_interval": [0.95 * after, 1.05 * after],
        "seconds_per_question": 0.06,
        "tokens_per_second": 33.0,
        "notes": [],
    }
