"""Runs lmms-eval on tasks of a folder, in a process of its own: `python lmms_run.py plan.json results.json`.

lmms-eval changes libraries for the whole process, so that it must not run inside the tests'.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(plan: dict[str, Any]) -> list[dict[str, Any]]:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("WARNING", include_path=plan["tasks"], include_defaults=False, model_name="vtprune")
    found = []
    for run in plan["runs"]:
        told = simple_evaluate("vtprune", task_manager=manager, batch_size=8, bootstrap_iters=0, device="cpu", **run)
        samples = {name: [one["filtered_resps"] for one in lines] for name, lines in told["samples"].items()}
        found.append({"results": told["results"], "samples": samples, "throughput": told.get("throughput", {})})
    return found


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text())), default=str))
