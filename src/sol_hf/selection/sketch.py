# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Keys in a few bits: small enough to be read for every token, and good enough to rank all keys.

Keys have channels that are far from zero in all tokens. So the mean over the first tokens of a text is taken away
first, per key-value head and channel. (It depends on the text alone, not on what of it was a prompt.) What is left is
rounded to whole numbers, with one scale per token and head:

    key - mean  =  code * scale,      code in -top..top,      top = 2^(bits - 1) - 1

The mean is the same for all keys of a head, so it adds the same to all scores of a query, and is not added back.

Packed codes hold `code + top`. A byte has several channels, `channels / parts` apart, so that code that reads whole
bytes gets neighbouring channels:

    4 bits      | 0, d/2 | 1, d/2 + 1 | ...                                 two channels a byte
    3 bits      two bits of each as with 2 bits, then the lowest bit of each as with 1 bit
"""

import torch


INDEX_BITS = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}
"""Numbers of bits that a code can have, and the widths of the parts that it is packed in, the highest bits first."""
MOST_IN_MEAN = 64
"""Tokens over which the mean is taken. Of a shorter text it is the largest power of two, so that it changes rarely."""

SMALLEST_SCALE = 1e-8
"""Scales are at least this large, and never below what their dtype can hold, so that codes are numbers."""


def tokens_in_mean(count: torch.Tensor) -> torch.Tensor:
    """Number of a row's first tokens over which the mean is taken, of the shape of `count`, its tokens.

    Example:

    ```python
    >>> tokens_in_mean(torch.tensor([1, 7, 63, 64, 1000])).tolist()
    [1, 4, 32, 64, 64]
    ```
    """
    powers = 2 ** torch.arange(MOST_IN_MEAN.bit_length(), device=count.device)
    return torch.where(powers <= count[..., None], powers, 1).amax(dim=-1)


def channel_means(keys: torch.Tensor, first_key: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Means over the first tokens of every row, `(rows, kv_heads, 1, head_dim)`, in float32.

    Args:
        keys (`torch.Tensor` of shape `(rows, kv_heads, slots, head_dim)`): Cached keys, at least those of which the
            means are taken; later ones only take time.
        first_key (`torch.Tensor` of shape `(rows,)`): First slot that holds a key of the row, not padding.
        tokens (`torch.Tensor` of shape `(rows,)`): Number of tokens, at least 1.
    """
    place = torch.arange(keys.shape[2], device=keys.device) - first_key[:, None]
    counted = (place >= 0) & (place < tokens[:, None])
    total = torch.where(counted[:, None, :, None], keys, 0).sum(dim=2, keepdim=True, dtype=torch.float64)
    return (total / tokens.view(-1, 1, 1, 1)).float()


def encode(keys: torch.Tensor, mean: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of keys, and their scales.

    Args:
        keys (`torch.Tensor` of shape `(rows, kv_heads, tokens, head_dim)`): Keys.
        mean (`torch.Tensor` of shape `(rows, kv_heads, 1, head_dim)`): From [`channel_means`].
        bits (`int`): Bits of a code.

    Returns:
        The codes, int8 of the shape of `keys`, and the scales, `(rows, kv_heads, tokens)`, in the dtype of `keys`.
    """
    top = 2 ** (bits - 1) - 1
    centred = keys.float() - mean
    smallest = max(SMALLEST_SCALE, torch.finfo(keys.dtype).smallest_normal)
    scale = (centred.abs().amax(dim=-1) * (1 / top)).clamp(min=smallest).to(keys.dtype)
    codes = (centred / scale[..., None].float()).round().clamp(-top, top)
    return codes.to(torch.int8), scale


def decode(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The keys that codes stand for, without the mean, in float32."""
    return codes.float() * scale[..., None].float()


def bytes_per_key(dim: int, bits: int) -> int:
    """Bytes of the packed codes of a key with `dim` channels."""
    return sum(_bytes(dim, width) for width in INDEX_BITS[bits])


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes `(..., channels)` as uint8 `(..., bytes_per_key(channels, bits))`."""
    values = codes.to(torch.int16) + 2 ** (bits - 1) - 1
    left, packed = bits, []
    for width in INDEX_BITS[bits]:
        left -= width
        part = (values >> left) & (2**width - 1)
        count, fields = _bytes(codes.shape[-1], width), 8 // width
        part = torch.nn.functional.pad(part, (0, count * fields - codes.shape[-1])).unflatten(-1, (fields, count))
        shifts = torch.arange(fields, device=codes.device, dtype=torch.int16)[:, None] * width
        packed.append((part << shifts).sum(dim=-2).to(torch.uint8))
    return torch.cat(packed, dim=-1)


def unpack(packed: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """The codes `(..., dim)`, int8, that were packed with [`pack`]."""
    values, left, begin = torch.zeros(*packed.shape[:-1], dim, dtype=torch.int16, device=packed.device), bits, 0
    for width in INDEX_BITS[bits]:
        left -= width
        count, fields = _bytes(dim, width), 8 // width
        part = packed[..., begin : begin + count].to(torch.int16)[..., None, :]
        shifts = torch.arange(fields, device=packed.device, dtype=torch.int16)[:, None] * width
        values += (((part >> shifts) & (2**width - 1)).flatten(-2)[..., :dim]) << left
        begin += count
    return (values - (2 ** (bits - 1) - 1)).to(torch.int8)


def _bytes(dim: int, width: int) -> int:
    return -(-dim * width // 8)
