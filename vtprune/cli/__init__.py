"""The command line: one file per command."""

from vtprune.cli import bench, demo, eval, kernels, methods, report, run, schedule, search, train
from vtprune.cli.common import app

__all__ = ["app", "bench", "demo", "eval", "kernels", "main", "methods", "report", "run", "schedule", "search", "train"]


def main() -> None:
    """Entry point of the `vtprune` command."""
    app()
