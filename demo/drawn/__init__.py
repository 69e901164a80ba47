"""What is shown: bars, cards, curves and overlays, as HTML and pictures."""
