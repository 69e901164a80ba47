"""What a stage may decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Resize:
    """Decision at the encoder's input: a smaller picture in the place of the picture.

    Args:
        pixels: (frames, channels, height, width), each side a whole multiple of a token's.
    """

    pixels: Tensor


@dataclasses.dataclass(frozen=True)
class Keep:
    """Decision: which visual tokens stay, and what becomes of their features.

    Args:
        mask: bool, (pictures or rows, tokens), True where a token stays.
        mix: New features of all tokens from the old ones, (pictures, tokens, channels) both, of which those that stay
            are used; differentiable, as DeepStack levels and gradients go through it too. At a decoder layer it gets
            hidden states, (rows, tokens, width), and features that DeepStack adds later are those of the tokens that
            stay. None leaves them as they are. The stage must say so by `mixes`.
        owner: (pictures, tokens), for every token the kept one that stands for it, itself if none does; None where
            features do not mix. For reports.
        marked: (pictures, tokens), at the encoder's output: which tokens the method's stages at decoder layers shall
            know again, or what numbers they shall have there, as `VisualTokens.marked`; None if there are none.
        keys: At the cache: new keys of all entries, (rows, kv_heads, entries, head_dim), of which those that stay are
            used; None leaves them as they are. The stage must say so by `mixes`.
        values: The same of the values, (rows, kv_heads, entries, value_dim).
    """

    mask: Tensor
    mix: Callable[[Tensor], Tensor] | None = None
    owner: Tensor | None = None
    marked: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Replace:
    """Decision: new features instead of the old ones.

    Args:
        features: (pictures, groups, channels), in reading order.
        owner: (pictures, tokens), for every old token the index of the group that stands for it.
        ragged: Whether pictures may have different numbers of groups; those that stand for no token are padding.
        again: The same for another level of features of these pictures, (pictures, tokens, channels), where the
            decision depends on the features; differentiable. None: `decide` is asked again.
    """

    features: Tensor
    owner: Tensor
    ragged: bool = False
    again: Callable[[Tensor], Tensor] | None = None


@dataclasses.dataclass(frozen=True)
class Group:
    """Decision between encoder layers: which tokens become one.

    Args:
        owner: (pictures, tokens), for every token the index of its group after this step; padding may own any.
        groups: Number of groups; of the picture that has most, if pictures have different numbers of them.
        weighted: Whether the mean of a group weighs tokens by their sizes.
        ragged: Whether pictures may have different numbers of groups; their groups then come first, 0, 1, 2, ...
        keep: bool, (pictures, tokens), False where a token leaves and belongs to no group; None if all stay. The stage
            must say so by `prunes`.
        sizes: (pictures, groups), sizes of the groups, above 0; None for the sums of the sizes of their tokens.
    """

    owner: Tensor
    groups: int
    weighted: bool = True
    ragged: bool = False
    keep: Tensor | None = None
    sizes: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Store:
    """Decision at the cache: in how many bits each entry is held from now on.

    Keys are rounded per channel, among the entries of a row that have as many bits, values per entry, after every
    channel was divided by the square root of its greatest magnitude. The n-th entries of all heads with as many bits
    share the least and the greatest number of a value. Entries that were rounded before stay as they are.

    Args:
        bits: (rows, kv_heads, entries), 2, 4 or 8; anything else leaves an entry as it is. All heads of a row must give
            equally many entries to each of these.
        again: Round all entries anew, those too that were rounded before, by `bits`.
    """

    bits: Tensor
    again: bool = False
