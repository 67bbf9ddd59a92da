# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The largest channels of a token: the `mlp_keep` axis as a pure function.

Tensors may have any number of dimensions between the rows and the channels. Settings are per row and on the device.
"""

import numpy as np
import torch


def kept_count(fraction: torch.Tensor, total: torch.Tensor | int) -> torch.Tensor:
    """`ceil(fraction * total)`, at least 1, corrected for the rounding error of `fraction`.

    In float32 `0.6 * 50` is 30.000002, whose ceiling would be 31. The relative slack of 1e-6 is larger than that
    error. The result is exact for every `total` up to 50,000; beyond that it is one too small for some fractions.
    """
    return torch.ceil(fraction * total * (1.0 - 1e-6)).clamp(min=1).long()


def per_row(setting: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A setting `(rows,)` in a shape that broadcasts against `x` `(rows, ...)`."""
    return setting.view(-1, *[1] * (x.dim() - 1))


def per_token(setting: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A setting `(rows,)` for each token of `x` `(rows, ..., channels)`, `(tokens,)`."""
    each = x.shape[1:-1].numel()
    return setting if each == 1 else setting.repeat_interleave(each)


def keep_top_channels(x: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Zero all but the `ceil(fraction * channels)` channels of largest magnitude of every token.

    Args:
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Input of an MLP.
        fraction (`torch.Tensor` of shape `(rows,)`): Fraction in (0, 1] per row.

    Returns:
        `torch.Tensor`: `x` with the other channels set to zero.
    """
    return torch.where(kept_channels(x, fraction), x, 0)


def kept_channels(x: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """The channels that [`keep_top_channels`] keeps, a mask of the shape of `x`."""
    return largest(x.detach().abs(), kept_count(fraction, x.shape[-1]))


def largest(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """A mask of the `count` largest values along the last dimension; of equal ones, the first. NaN counts as large.

    Args:
        values (`torch.Tensor` of shape `(rows, ..., n)`): Values to choose from.
        count (`torch.Tensor` of shape `(rows,)`): How many per row, in 1..n.

    Returns:
        `torch.BoolTensor` of the shape of `values`.
    """
    count = per_row(count, values)
    place = (values.shape[-1] - count).expand(*values.shape[:-1], 1)
    least = _sort(values).gather(-1, place)
    if values.device.type == "cpu":  # reading values costs no synchronization here; ties are rare
        keep = ~(values < least)
        if torch.equal(keep.sum(dim=-1, keepdim=True), count.expand_as(place)):
            return keep
    larger = ~(values <= least)
    equal = values == least
    return larger | (equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= count - larger.sum(dim=-1, keepdim=True)))


def _sort(x: torch.Tensor) -> torch.Tensor:
    """Ascending along the last dimension. On the CPU numpy sorts short vectors several times faster than torch."""
    if x.device.type != "cpu":
        return x.sort(dim=-1).values
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return torch.from_numpy(np.sort(wide.numpy(), axis=-1)).to(x.dtype)
