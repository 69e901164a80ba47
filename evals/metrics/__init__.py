"""How answers are judged, by name."""
