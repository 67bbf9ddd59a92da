# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The MLP of a decode step on the CPU: what the compiled kernels support, and how they are called."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .compilation import DTYPES, loads
from .torch_threads import run_in_torch_threads


BLOCK = 1536
"""Outputs whose sums stay in the L1 cache while the weights of the kept channels are read."""
LEAST_BLOCK, ROUND_TO = 16, 16


@dataclass(frozen=True)
class KeptChannels:
    """The input of an MLP after the selection of channels.

    Args:
        x (`torch.Tensor` of shape `(rows, ..., channels)`): The input, all but the largest channels set to zero.
        listed (`torch.IntTensor` of shape `(number,)`): Channels that any token keeps, ascending.
    """

    x: torch.Tensor
    listed: torch.Tensor


def has_numba() -> bool:
    """Whether numba, an optional dependency, is installed and can compile the kernels. The first call compiles."""
    return loads("numba_memory") and loads("numba_mlp")


def supports(x: torch.Tensor) -> bool:
    """Whether the kernels can work on a tensor."""
    return x.device.type == "cpu" and x.dtype in DTYPES and not x.requires_grad and has_numba()


def keep_top_channels(x: torch.Tensor, fraction: torch.Tensor) -> KeptChannels:
    """The same as [`channels.keep_top_channels`], to the bit, and the list of kept channels.

    Args:
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Input of an MLP.
        fraction (`torch.Tensor` of shape `(rows,)`): Fraction in (0, 1] per row.
    """
    from . import numba_mlp as kernel

    x, fraction = x.contiguous(), fraction.float().contiguous()
    channels, kept = x.shape[-1], torch.empty_like(x)
    lines = x.numel() // channels
    in_use, listed = torch.empty(channels, dtype=torch.uint8), torch.empty(channels + 1, dtype=torch.int32)
    run = kernel.keep_float32 if x.dtype == torch.float32 else kernel.keep_bfloat16
    number = run(
        x.data_ptr(),
        kept.data_ptr(),
        lines,
        channels,
        fraction.data_ptr(),
        lines // len(x),
        in_use.data_ptr(),
        listed.data_ptr(),
    )
    return KeptChannels(kept, listed[:number])


def fake_quantize(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """The same as [`quantizers.fake_quantize`], to the bit.

    Args:
        x (`torch.Tensor` of shape `(rows, ..., channels)`): Output of an MLP.
        bits (`torch.Tensor` of shape `(rows,)`): Bit-width in 2..16 per row.
    """
    from . import numba_mlp as kernel

    x, bits = x.contiguous(), bits.float().contiguous()
    quantized, lines = torch.empty_like(x), x.numel() // x.shape[-1]
    run = kernel.quantize_float32 if x.dtype == torch.float32 else kernel.quantize_bfloat16
    run(x.data_ptr(), quantized.data_ptr(), lines, x.shape[-1], bits.data_ptr(), lines // len(x))
    return quantized


def block_length(outputs: int) -> int:
    """Outputs in a block, at most `BLOCK`, such that all threads get the same number of blocks."""
    threads = torch.get_num_threads()
    blocks = -(-outputs // BLOCK)
    blocks = -(-blocks // threads) * threads
    return max(LEAST_BLOCK, -(-outputs // (blocks * ROUND_TO)) * ROUND_TO)


def blocks_of(weight: torch.Tensor, block: int) -> list[torch.Tensor]:
    """Views `(channels, block)` of the blocks in a `weight` `(width, channels)` that [`to_blocks`] has made."""
    width, channels = weight.shape
    ends = [(begin, min(begin + block, width)) for begin in range(0, width, block)]
    flat = weight.view(-1)
    return [flat[begin * channels : end * channels].view(channels, end - begin) for begin, end in ends]


def to_blocks(weight: torch.Tensor, block: int) -> torch.Tensor:
    """A copy of `weight` `(width, channels)`, each `block` of outputs input-major; it has the shape of `weight`."""
    copy = torch.empty(weight.shape, dtype=weight.dtype)
    for begin, lines in zip(range(0, len(weight), block), blocks_of(copy, block), strict=True):
        lines.copy_(weight[begin : begin + block].t())
    return copy


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def expand_kept(
    kept: KeptChannels,
    gate: torch.Tensor,
    up: torch.Tensor | None,
    block: int,
    biases: tuple[torch.Tensor | None, torch.Tensor | None],
    activation: str,
) -> torch.Tensor:
    """The neurons of an MLP whose first projections read the weights of the kept channels only.

    Args:
        kept ([`KeptChannels`]): Input.
        gate (`torch.Tensor` of shape `(width, channels)`): Weights before the activation, from [`to_blocks`].
        up (`torch.Tensor` of shape `(width, channels)`, *optional*): Weights of what the activation is multiplied by,
            from [`to_blocks`] too.
        block (`int`): Length of their blocks.
        biases (`tuple`): Biases of gate and up in float32, `None` for a projection without bias.
        activation (`str`): One of `numba_mlp.ACTIVATIONS`.

    Returns:
        `torch.Tensor` of shape `(rows, ..., width)`, in float32.
    """
    from . import numba_mlp as kernel

    x = kept.x.float().contiguous()
    sums = torch.empty(2, *x.shape[:-1], len(gate), dtype=torch.float32)
    a = _arguments(kept, x, gate, len(gate), block)
    a[kernel.UP], a[kernel.GATE_BIAS], a[kernel.UP_BIAS] = _address(up), _address(biases[0]), _address(biases[1])
    a[kernel.HIDDEN], a[kernel.UP_SUMS] = sums[0].data_ptr(), sums[1].data_ptr()
    a[kernel.ACTIVATION] = kernel.ACTIVATIONS.index(activation)
    _run(kernel.expand_float32 if gate.dtype == torch.float32 else kernel.expand_bfloat16, a)
    return sums[0]


def multiply_kept(
    kept: KeptChannels,
    gate: torch.Tensor,
    up: torch.Tensor | None,
    block: int,
    down: torch.Tensor,
    biases: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    activation: str,
) -> torch.Tensor:
    """An MLP whose first projections read the weights of the kept channels only.

    Args:
        kept ([`KeptChannels`]): Input.
        gate (`torch.Tensor` of shape `(width, channels)`): See [`expand_kept`].
        up (`torch.Tensor` of shape `(width, channels)`, *optional*): See [`expand_kept`].
        block (`int`): Length of their blocks.
        down (`torch.Tensor` of shape `(outputs, width)`): Weights of the last projection.
        biases (`tuple`): Biases of gate, up and down in float32, `None` for a projection without bias.
        activation (`str`): One of `numba_mlp.ACTIVATIONS`.

    Returns:
        `torch.Tensor` of shape `(rows, ..., outputs)`.
    """
    from . import numba_mlp as kernel

    hidden = expand_kept(kept, gate, up, block, biases[:2], activation)
    width, outputs = hidden.shape[-1], len(down)
    output = kept.x.new_empty(*kept.x.shape[:-1], outputs)
    a = [0] * kernel.HEADER
    a[kernel.LINES], a[kernel.WIDTH], a[kernel.HIDDEN] = hidden.numel() // width, width, hidden.data_ptr()
    a[kernel.DOWN : kernel.BLOCK] = down.data_ptr(), _address(biases[2]), output.data_ptr(), outputs
    a[kernel.BLOCK] = block_length(outputs)
    _run(kernel.contract_float32 if gate.dtype == torch.float32 else kernel.contract_bfloat16, a)
    return output


def project_kept(
    kept: KeptChannels, weight: torch.Tensor, bias: torch.Tensor | None, block: int | None
) -> torch.Tensor:
    """A projection that reads the weights of the kept channels only.

    Args:
        kept ([`KeptChannels`]): Input.
        weight (`torch.Tensor`): `(outputs, channels)` from [`to_blocks`], or `(channels, outputs)` in one piece.
        bias (`torch.Tensor` of shape `(outputs,)`, *optional*): In float32.
        block (`int`, *optional*): Length of the blocks; `None` for a weight in one piece.

    Returns:
        `torch.Tensor` of shape `(rows, ..., outputs)`.
    """
    from . import numba_mlp as kernel

    outputs = weight.shape[1] if block is None else weight.shape[0]
    x = kept.x.float().contiguous()
    output = x.new_empty(*x.shape[:-1], outputs)
    a = _arguments(kept, x, weight, outputs, block or block_length(outputs))
    a[kernel.GATE_BIAS], a[kernel.HIDDEN], a[kernel.OUTPUT] = _address(bias), output.data_ptr(), output.data_ptr()
    a[kernel.STRIDE] = outputs if block is None else 0
    _run(kernel.project_float32 if weight.dtype == torch.float32 else kernel.project_bfloat16, a)
    return output.to(kept.x.dtype)


def _arguments(kept: KeptChannels, x: torch.Tensor, weight: torch.Tensor, width: int, block: int) -> list[int]:
    """Arguments of a kernel for the product of the kept channels with a weight; `x` is the input in float32."""
    from . import numba_mlp as kernel

    channels, a = x.shape[-1], [0] * kernel.HEADER
    a[kernel.INPUT : kernel.LISTED] = x.data_ptr(), x.numel() // channels, channels, width
    a[kernel.LISTED : kernel.UP] = kept.listed.data_ptr(), kept.listed.shape[0], weight.data_ptr()
    a[kernel.BLOCK] = block
    return a


def _run(function: Any, arguments: list[int]) -> None:
    data = np.array(arguments, dtype=np.int64)
    run_in_torch_threads(function.address, data.ctypes.data)
