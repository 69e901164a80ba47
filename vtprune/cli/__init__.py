"""The command line: one file per command."""

from vtprune.cli import bench, eval, kernels, methods, report, run, schedule, search, train
from vtprune.cli.common import app

__all__ = ["app", "bench", "eval", "kernels", "main", "methods", "report", "run", "schedule", "search", "train"]


def main() -> None:
    """Entry point of the `vtprune` command."""
    app()
