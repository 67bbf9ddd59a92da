# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Weights as planes of one 8-bit code, which can be read as 8, 6, 5 or 4 bits.

A group of 64 input channels of an output has a scale `s = largest |w| / 128`, rounded up to bfloat16. The code of a
weight is the number of its cell, `q = floor(w / s) + 128`, in 0..255. Its first `b` bits, `t = q >> (8 - b)`, are the
number of a cell that is `2^(8 - b)` times as wide, and a weight is read as the middle of its cell:

    w_b = s * 2^(8 - b) * (t + 1/2 - 2^(b - 1))        |w_b - w| <= s * 2^(7 - b)

So to read `b` bits is to round to the symmetric grid of `2^b` values that has no zero, for each `b` alike. (A grid
with a zero, of `2^b - 1` values, is no better at 8 bits, and worse from 6 bits on.) A group of zeros is read as zeros.

If it is known how large the inputs of the channels are, a scale is chosen instead that makes the squared error of the
outputs smallest. The few weights beyond the largest cell are then read as its middle.

The bits of a code are stored apart: the first 4, the next, the next, the last 2. Reading 5 bits leaves out the last
two of these *planes*. Each plane is stored for 16 outputs and 32 channels at a time, as a compiled kernel reads it:

    plane of p bits   (tiles, blocks, p, 16), int32      nibble j of word k of an output has p bits each of 4 / p
                                                         channels: 8 * (k * 4 / p + i) + j, those of i = 0 lowest
    scales            (tiles, groups, 16), bfloat16

Outputs are filled up to a multiple of 16, channels to one of 32. What fills them up is never used.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional


PLANES = (4, 1, 1, 2)
"""Bits of the planes, those of greatest weight first."""
WIDTHS = (4, 5, 6, 8)
"""Numbers of bits that can be read."""
CODE_BITS, MIDDLE = 8, 128
GROUP = 64
"""Channels that share a scale: fewer bytes for the same error than 32 or 128, see docs/performance.md."""
SCALES_TRIED = tuple(share / 25 for share in range(16, 27))
"""Shares of the scale that reaches the largest weight, from which one is chosen by the inputs."""
OUTPUTS, CHANNELS = 16, 32
"""Outputs and channels whose words are stored together."""


@dataclass(frozen=True)
class NestedPlanes:
    """The planes of a weight `(outputs, channels)`.

    Args:
        planes (`tuple[torch.IntTensor, ...]`): Words of every plane, `(tiles, blocks, bits, 16)`.
        scales (`torch.BFloat16Tensor` of shape `(tiles, groups, 16)`): Width of a cell of the full code.
        outputs (`int`): Outputs of the weight.
        channels (`int`): Its input channels.
    """

    planes: tuple[torch.Tensor, ...]
    scales: torch.Tensor
    outputs: int
    channels: int

    @property
    def nbytes(self) -> int:
        """Bytes of all planes and scales."""
        return sum(plane.nbytes for plane in self.planes) + self.scales.nbytes


def width_read(bits: int | float) -> int | None:
    """The number of bits in which a level of `bits` is read: the next of `WIDTHS`, `None` for more than 8."""
    return next((width for width in WIDTHS if width >= bits), None)


def widths_read(bits: torch.Tensor, dense: float) -> torch.Tensor:
    """[`width_read`] of every number of a tensor, `dense` where it is above 8."""
    read = torch.full_like(bits, dense)
    for width in reversed(WIDTHS):
        read = torch.where(bits <= width, torch.full_like(bits, width), read)
    return read


def plane_bytes(outputs: int, channels: int, bits: int = CODE_BITS) -> int:
    """Bytes that reading `bits` bits of a weight `(outputs, channels)` takes, those of its scales included."""
    tiles, blocks, groups = -(-outputs // OUTPUTS), -(-channels // CHANNELS), -(-channels // GROUP)
    return tiles * OUTPUTS * (blocks * CHANNELS * bits // 8 + 2 * groups)


def encode(weight: torch.Tensor, importance: torch.Tensor | None = None) -> NestedPlanes:
    """The planes of a weight, on its device.

    Args:
        weight (`torch.Tensor` of shape `(outputs, channels)`): The weight, of any float dtype.
        importance (`torch.Tensor` of shape `(channels,)`, *optional*): Mean square of the inputs of every channel, by
            which the scales are chosen.

    Raises:
        ValueError: for a weight that is not finite.
    """
    outputs, channels = weight.shape
    slices = [
        _encode_rows(rows, importance)
        for rows in weight.detach().split(max(OUTPUTS, (1 << 22) // channels // 16 * 16))
    ]
    planes = tuple(torch.cat(parts) for parts in zip(*(part for part, _ in slices), strict=True))
    return NestedPlanes(planes, torch.cat([scales for _, scales in slices]), outputs, channels)


def _encode_rows(weight: torch.Tensor, importance: torch.Tensor | None) -> tuple[list[torch.Tensor], torch.Tensor]:
    outputs, channels = weight.shape
    values = functional.pad(weight.float(), (0, -channels % GROUP, 0, -outputs % OUTPUTS))
    grouped = values.view(len(values), -1, GROUP)
    scales = _rounded_up(grouped.abs().amax(dim=-1) / MIDDLE)
    if not bool(scales.isfinite().all()):
        raise ValueError("A weight that is not finite has no planes: pass `bits_backend='fake'`, or mend the weights.")
    if importance is not None:
        weights = functional.pad(importance.to(values), (0, -channels % GROUP)).view(-1, GROUP)
        scales = _best_scales(grouped, scales, weights)
    codes = _codes(grouped, scales).int().flatten(1)
    codes = codes[:, : channels + -channels % CHANNELS]
    tiled = codes.view(-1, OUTPUTS, codes.shape[1] // CHANNELS, CHANNELS).transpose(1, 2)  # (tiles, blocks, 16, 32)
    planes, left = [], CODE_BITS
    for bits in PLANES:
        left -= bits
        part = (tiled >> left) & (2**bits - 1)
        planes.append(_packed(part, bits))
    return planes, scales.view(-1, OUTPUTS, scales.shape[1]).transpose(1, 2).bfloat16().contiguous()


def _codes(grouped: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Codes of weights `(outputs, groups, 64)`, as floats."""
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))[..., None]
    return ((grouped / steps).floor() + MIDDLE).clamp(0, 2**CODE_BITS - 1)


def _best_scales(grouped: torch.Tensor, largest: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """The scales `(outputs, groups)` of least weighted squared error, over 8, 6 and 5 bits together.

    Errors grow fourfold with every bit less, and count as much less: so no width loses much for another.

    Args:
        grouped (`torch.Tensor` of shape `(outputs, groups, 64)`): Weights.
        largest (`torch.Tensor` of shape `(outputs, groups)`): Scales that reach the largest weight.
        importance (`torch.Tensor` of shape `(groups, 64)`): Weights of squared errors.
    """
    best, least = largest, torch.full_like(largest, float("inf"))
    for share in SCALES_TRIED:
        scales = _rounded_up(largest * share)
        codes, error = _codes(grouped, scales), torch.zeros_like(largest)
        for bits in (8, 6, 5):
            wide = 2 ** (CODE_BITS - bits)
            read = scales[..., None] * ((codes / wide).floor() * wide + wide / 2 - MIDDLE)
            error += ((read - grouped).square() * importance).sum(dim=-1) / wide**2
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return best


def _rounded_up(scales: torch.Tensor) -> torch.Tensor:
    """The next bfloat16 at or above non-negative float32 numbers, as float32."""
    return ((scales.view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)


def _packed(parts: torch.Tensor, bits: int) -> torch.Tensor:
    """Words `(tiles, blocks, bits, 16)` of numbers of `bits` bits, `(tiles, blocks, 16, 32)`."""
    places = _places(bits, parts.device)
    words = (parts.long().view(*parts.shape[:3], bits, *places.shape) << places).sum(dim=(-2, -1))
    return words.transpose(2, 3).contiguous().int()


def _unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of [`_packed`]."""
    parts = (words.transpose(2, 3)[..., None, None] >> _places(bits, words.device)) & (2**bits - 1)
    return parts.flatten(3)


def _places(bits: int, device: torch.device) -> torch.Tensor:
    """Where the numbers of `bits` bits begin in a word, by their place in a nibble and the nibble, `(4 / bits, 8)`."""
    nibble, place = torch.arange(8, device=device), torch.arange(4 // bits, device=device)
    return (4 * nibble + bits * place[:, None]).int()


def decode(planes: NestedPlanes, bits: int) -> torch.Tensor:
    """The weight `(outputs, channels)` that is read in `bits` bits, one of `WIDTHS`; exact in float32.

    Raises:
        ValueError: for another number of bits.
    """
    if bits not in WIDTHS:
        raise ValueError(f"Planes are read in {', '.join(map(str, WIDTHS))} bits, not in {bits}: see `width_read`.")
    left, codes = CODE_BITS, torch.zeros((), dtype=torch.int32, device=planes.scales.device)
    for words, size in zip(planes.planes, PLANES, strict=True):
        left -= size
        if CODE_BITS - left <= bits:
            codes = codes | (_unpacked(words, size) << left)
    middles = codes.float() + (2 ** (CODE_BITS - bits) / 2 - MIDDLE)  # (tiles, blocks, 16, 32)
    middles = middles.transpose(1, 2).flatten(0, 1).flatten(1)[: planes.outputs, : planes.channels]
    scales = planes.scales.float().transpose(1, 2).flatten(0, 1)[: planes.outputs]
    return middles * scales.repeat_interleave(GROUP, dim=1)[:, : planes.channels]


def product(
    x: torch.Tensor, planes: NestedPlanes, bits: Sequence[int] | int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The product of an input with the weights that are read, in plain torch: the reference of compiled kernels.

    Args:
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Input.
        planes ([`NestedPlanes`]): The weight.
        bits (`int` or one per row): Numbers of bits to read, of `WIDTHS`.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): Added to the product.

    Returns:
        `torch.Tensor` of shape `(rows, ..., outputs)`, in the dtype of `x`; sums are in float32, or in float64 if
        that is the dtype of `x`.
    """
    if not isinstance(bits, int):
        widths, output = torch.tensor(bits), x.new_empty(*x.shape[:-1], planes.outputs)
        for width in sorted(set(bits)):
            rows = (widths == width).nonzero()[:, 0].to(x.device)
            output.index_copy_(0, rows, product(x.index_select(0, rows), planes, width, bias))
        return output
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight = decode(planes, bits).to(dtype)
    return functional.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype)).to(x.dtype)
