"""`VisualLayout`: the one place that knows which slot of the input is which token of which picture."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from vtprune.integrations.base import Grid


@dataclasses.dataclass(frozen=True)
class VisualLayout:
    """Where the visual tokens of a batch stand.

    Args:
        picture: (rows, slots), number of the picture among all pictures of the batch; -1 on text and padding.
        token: (rows, slots), number of the token within its picture, in raster order; -1 on text and padding.
        source: (pictures,), which encoded picture each one shows (beams and returned sequences share them).
        first: (rows,), number of the row's first picture.
        grids: (frames, rows, columns) of every picture.
        most: Largest number of pictures in a row.
    """

    picture: Tensor
    token: Tensor
    source: Tensor
    first: list[int]
    grids: list[Grid]
    most: int


def lay_out(placeholders: Tensor, tokens: list[int], grids: list[Grid]) -> VisualLayout:
    """Match placeholders with the pictures that were encoded.

    Pictures fill placeholders in order, row by row. Where the batch holds each row several times (beam search, several
    returned sequences) it has that many times more pictures than were encoded.

    Args:
        placeholders: Bool (rows, slots).
        tokens: Number of tokens of each encoded picture.
        grids: Grid of each encoded picture.

    Raises:
        ValueError: Placeholders and pictures do not match.
    """
    per_row = placeholders.sum(1).tolist()
    device, total = placeholders.device, sum(tokens)
    copies, left = divmod(sum(per_row), total) if total else (0, sum(per_row))
    if left or copies == 0 or len(per_row) % copies:
        raise ValueError(
            f"the prompt has {sum(per_row)} image placeholders, but the pictures were encoded to {total} tokens."
        )
    source: list[int] = []
    first: list[int] = []
    start = 0
    for row, need in enumerate(per_row):
        first.append(len(source))
        end = start
        while sum(tokens[start:end]) < need:
            end += 1
        if sum(tokens[start:end]) != need:
            raise ValueError(
                f"row {row} has {need} image placeholders, which is no whole number of pictures "
                f"(the next ones have {tokens[start:end]} tokens)."
            )
        source.extend(range(start, end))
        if (row + 1) % copies == 0:  # the row's last copy: the next row begins with the next pictures
            start = end
    sizes = torch.tensor([tokens[i] for i in source], device=device)
    picture_of = torch.repeat_interleave(torch.arange(len(source), device=device), sizes)
    starts = torch.cumsum(sizes, 0) - sizes
    token_of = torch.arange(len(picture_of), device=device) - starts[picture_of]
    empty = torch.full(placeholders.shape, -1, device=device)
    return VisualLayout(
        picture=empty.masked_scatter(placeholders, picture_of),
        token=empty.masked_scatter(placeholders, token_of),
        source=torch.tensor(source, device=device),
        first=first,
        grids=[grids[i] for i in source],
        most=max(end - begin for begin, end in zip(first, [*first[1:], len(source)], strict=True)),
    )
