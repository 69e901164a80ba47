"""What a finished run looks like: plots, a page, and runs beside one another."""
