"""The engine: hooks, compaction, masks, positions and caches. It knows no method and no model family by name."""
