"""Codes in few bits: packing loses nothing, rounding is that of a plain loop, and padding takes no part."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vtprune.kernels import channel_scale, dequantise, pack_codes, quantise, unpack_codes
from vtprune.kernels.quantise import WIDTHS

SHAPES = [(1, 1, 4), (2, 7, 24), (3, 63, 7), (1, 577, 16)]


def numbers(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expected(x: Tensor, bits: int, per: str) -> Tensor:
    """Group by group, number by number."""
    out, most = x.clone(), 2**bits - 1
    for row in out:
        for group in row.T if per == "channel" else row:
            low, high = float(group.min()), float(group.max())
            step = (high - low) / most or 1.0
            for i, value in enumerate(group.tolist()):
                group[i] = low + step * min(max(round((value - low) / step), 0), most)
    return out


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("channels", [1, 3, 4, 24, 30])
def test_packing_loses_nothing(bits: int, channels: int) -> None:
    codes = torch.randint(0, 2**bits, (2, 5, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (2, 5, math.ceil(channels * bits / 8))
    assert torch.equal(unpack_codes(packed, bits, channels), codes)


def test_order_of_codes_in_a_byte() -> None:
    """4 bits: halves of the channels, the first in the low bits; 2 bits: quarters."""
    codes = torch.tensor([[1, 2, 3, 0, 2, 1, 0, 3]], dtype=torch.uint8)
    assert pack_codes(codes, 4).tolist() == [[1 + 16 * 2, 2 + 16 * 1, 3, 16 * 3]]
    assert pack_codes(codes, 2).tolist() == [[1 + 4 * 3 + 16 * 2, 2 + 16 * 1 + 64 * 3]]
    assert pack_codes(codes, 8).tolist() == codes.tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("per", ["channel", "token"])
def test_rounding_equals_a_loop(shape: tuple[int, int, int], bits: int, per: str) -> None:
    x = numbers(shape)
    codes = quantise(x, bits, per)
    torch.testing.assert_close(dequantise(codes), expected(x, bits, per), atol=1e-5, rtol=1e-5)
    assert codes.low.shape == ((shape[0], 1, shape[2]) if per == "channel" else (shape[0], shape[1], 1))


def test_known_numbers() -> None:
    """From 0 to 3 in two bits every whole number is a code; halves go to the even one."""
    x = torch.tensor([[[0.0, 0.5, 1.5, 2.4, 3.0]]])
    codes = quantise(x, 2, "token")
    assert unpack_codes(codes.packed, 2, 5).tolist() == [[[0, 0, 2, 2, 3]]]
    assert dequantise(codes).tolist() == [[[0.0, 0.0, 2.0, 2.0, 3.0]]]


@pytest.mark.parametrize("per", ["channel", "token"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_padding_and_other_rows_take_no_part(per: str, bits: int) -> None:
    x = numbers((3, 9, 8))
    valid = torch.arange(9) >= torch.tensor([0, 4, 9])[:, None]
    poisoned = x.masked_fill(~valid[..., None], torch.nan)
    together = dequantise(quantise(poisoned, bits, per, valid))
    for i in range(2):
        alone = dequantise(quantise(x[i : i + 1, valid[i]], bits, per))
        assert torch.equal(together[i : i + 1, valid[i]], alone)


@pytest.mark.parametrize("per", ["channel", "token"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_equal_numbers_come_back(per: str, dtype: torch.dtype) -> None:
    x = torch.full((1, 5, 8), 0.7371, dtype=dtype)
    assert torch.equal(dequantise(quantise(x, 2, per)), x)
    assert torch.equal(dequantise(quantise(x[:, :0], 2, per)), x[:, :0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", WIDTHS)
def test_half_precision_is_off_by_half_a_step(bits: int, dtype: torch.dtype) -> None:
    """What is held in half precision makes the codes, so that its error does not come on top; but at the ends."""
    x = numbers((2, 64, 16)).to(dtype)
    codes = quantise(x, bits, "channel")
    assert codes.low.dtype == codes.step.dtype == dequantise(codes).dtype == dtype
    span = x.float().amax(1, keepdim=True) - x.float().amin(1, keepdim=True)
    error = (dequantise(codes).float() - x.float()).abs()
    assert (error <= span / (2**bits - 1) / 2 + 2 * torch.finfo(dtype).eps * x.float().abs().amax()).all()


def test_a_channel_of_its_own_size_spoils_no_token() -> None:
    """Divided by their scale, values of all channels are of one size: the error of the small ones falls."""
    x = numbers((1, 40, 16)) * torch.tensor([1.0] * 15 + [100.0])
    scale = channel_scale(x)
    torch.testing.assert_close(scale[0, 0], x[0].abs().amax(0).sqrt())
    plain = (dequantise(quantise(x, 4, "token")) - x)[..., :15].abs().mean()
    scaled = (dequantise(quantise(x, 4, "token", scale=scale), scale) - x)[..., :15].abs().mean()
    assert scaled < plain / 3
    assert torch.equal(channel_scale(torch.zeros(1, 3, 2)), torch.ones(1, 1, 2))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="bits must be one of 2, 4, 8, got 3"):
        quantise(torch.zeros(1, 1, 1), 3, "token")
    with pytest.raises(ValueError, match="rows, n, channels"):
        quantise(torch.zeros(1, 1), 2, "token")
