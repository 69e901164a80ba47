"""Operators behind the methods and the engine: vectorised torch references that run on any device."""

from vtprune.kernels.attention_scores import attention_column_mass, attention_scores
from vtprune.kernels.bipartite_merge import Matching, bipartite_matching, merge_by_owner, owner_map, unmerge
from vtprune.kernels.greedy_select import farthest_points
from vtprune.kernels.ragged_compact import compact_index, gather_rows

__all__ = [
    "Matching",
    "attention_column_mass",
    "attention_scores",
    "bipartite_matching",
    "compact_index",
    "farthest_points",
    "gather_rows",
    "merge_by_owner",
    "owner_map",
    "unmerge",
]
