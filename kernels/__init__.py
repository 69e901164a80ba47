"""Operators behind the methods and the engine, each twice: a vectorised torch reference that runs on any device, and a
Triton kernel for GPUs.

`backend()` says which one runs; the environment variable VTPRUNE_KERNELS=torch|triton forces one.
"""

# transformers looks for a package "kernels" and, run at the root of this repository, finds this folder: it must then be
# able to import it, and to see that it is not the one.
if __name__ == "vtprune.kernels":
    from vtprune.kernels._dispatch import backend
    from vtprune.kernels._measured import attention_forward
    from vtprune.kernels.attention_column_mass import attention_column_mass
    from vtprune.kernels.attention_scores import attention_scores
    from vtprune.kernels.bipartite_merge import Matching, bipartite_matching, merge_by_owner, owner_map, unmerge
    from vtprune.kernels.flash_attention_with_scores import flash_attention_with_scores
    from vtprune.kernels.greedy_select import greedy_select
    from vtprune.kernels.quantise import Codes, channel_scale, dequantise, pack_codes, quantise, unpack_codes
    from vtprune.kernels.ragged_compact import compact_index, gather_rows, ragged_compact

    __all__ = [
        "Codes",
        "Matching",
        "attention_column_mass",
        "attention_forward",
        "attention_scores",
        "backend",
        "bipartite_matching",
        "channel_scale",
        "compact_index",
        "dequantise",
        "flash_attention_with_scores",
        "gather_rows",
        "greedy_select",
        "merge_by_owner",
        "owner_map",
        "pack_codes",
        "quantise",
        "ragged_compact",
        "unmerge",
        "unpack_codes",
    ]
