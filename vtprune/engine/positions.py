"""Position ids as if removed tokens had never been there."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_positions(positions: Tensor, gone: Tensor, picture: Tensor | None) -> tuple[Tensor, Tensor]:
    """Close the gaps that removed slots leave in position ids.

    With one coordinate per slot every removed slot is one position less for all that follow. With M-RoPE a picture that
    begins at position p and has h rows and w columns of tokens covers the rows p .. p + h - 1 and the columns
    p .. p + w - 1, and what follows begins at p + max(h, w): rows and columns that have become empty are taken out, as
    if the picture had been smaller. Times stay.

    Args:
        positions: (axes, rows, slots); 1 axis, or 3 (time, row, column), or 4 with a plain count before them.
        gone: Bool (rows, slots), slots that are removed.
        picture: (rows, slots), number of the slot's picture, -1 on text and padding; needed for 3 or 4 axes.

    Returns:
        Positions (axes, rows, slots) of all slots, meaningless on those that are gone; and by how much the positions
        of what follows the last slot are smaller, (rows,).
    """
    if len(positions) == 1 or picture is None:
        return positions - gone.long().cumsum(1), gone.sum(1)
    rows, slots = picture.shape
    visual = picture >= 0
    before = torch.nn.functional.pad(picture[:, :-1], (1, 0), value=-1)
    # Tokens of one picture in one piece; the frames of a video may stand apart, each with positions of its own.
    piece = ((visual & (picture != before)).flatten().cumsum(0) - 1).view(rows, slots)
    pieces = int(piece.max()) + 1
    numbers = torch.where(visual, piece, pieces)
    new = positions.clone()
    extents = []
    for axis in (-2, -1):
        at = positions[axis]
        start = torch.full((pieces + 1,), int(at.max()) + 1, device=at.device)
        start = start.scatter_reduce(0, numbers.flatten(), at.flatten(), "amin")
        offset = at - start[numbers]
        size = int(torch.where(visual, offset, 0).max()) + 1
        offset = torch.where(visual, offset, 0)
        left, had = (torch.zeros(pieces + 1, size, dtype=torch.bool, device=at.device) for _ in range(2))
        had[numbers, offset] = True
        stay = visual & ~gone
        left[numbers[stay], offset[stay]] = True
        rank = left.long().cumsum(1) - 1
        new[axis] = torch.where(visual, start[numbers] + rank[numbers, offset], at)
        extents.append((had.sum(1), left.sum(1)))
    smaller = torch.maximum(*[had for had, _ in extents]) - torch.maximum(*[left for _, left in extents])
    smaller[pieces] = 0
    # A piece counts for everything behind its last slot.
    behind = torch.nn.functional.pad(numbers[:, 1:], (0, 1), value=pieces)
    ends = torch.where(visual & (behind != numbers), smaller[numbers], 0)
    total = ends.cumsum(1)
    return new - (total - ends), total[:, -1]
