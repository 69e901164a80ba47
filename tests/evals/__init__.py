"""Tests of the evals."""

# Before transformers, which looks for a package "kernels" and would find the folder of that name at the root.
import vtprune  # noqa: F401
