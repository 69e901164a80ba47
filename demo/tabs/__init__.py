"""The tabs and the fields that they share: what Gradio lays out, and what happens when it is used."""
