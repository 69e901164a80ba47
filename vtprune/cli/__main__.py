"""`python -m vtprune.cli`."""

from vtprune.cli import main

main()
