"""vtprune makes Hugging Face vision-language models faster by spending fewer visual tokens."""

from vtprune import attention
from vtprune.api import applied, apply, methods, remove, report
from vtprune.methods import Method, register
from vtprune.report import Report

__version__ = "0.1.0"

__all__ = [
    "Method",
    "Report",
    "__version__",
    "applied",
    "apply",
    "attention",
    "methods",
    "register",
    "remove",
    "report",
]
