# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Fake quantization of activations: the `bits` axis as a pure function."""

import torch

from .channels import per_row


def fake_quantize(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Symmetric per-token quantization to `bits` bits and back, in float32; 16 bits is the identity.

    Args:
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Output of an MLP.
        bits (`torch.Tensor` of shape `(rows,)`): Bit-width in 2..16 per row.

    Returns:
        `torch.Tensor`: The quantized values, in the dtype of `x`.
    """
    bits = per_row(bits, x).float()
    limit = torch.exp2(bits - 1) - 1
    values = x.float()
    scale = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / limit
    quantized = torch.round(values / scale).clamp(-limit, limit) * scale
    return torch.where(bits >= 16, x, quantized.to(x.dtype))
