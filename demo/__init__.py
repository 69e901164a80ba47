"""The demo: speed and quality trade off, in a browser. `vtprune demo` starts it."""
