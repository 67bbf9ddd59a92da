# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Weights as a base stores them: plain, of which a step can leave some out, or as another library keeps them.

Libraries of quantization keep the weights of a linear layer as a tensor of a class of their own, as a packed tensor of
integers, or as several buffers. Their products read all of it, whatever is kept of the input. Offloaded weights are
moved as a whole. What such a library keeps outside of parameters and buffers, as the scales of bitsandbytes, is not
counted.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..execution.mlp.discovery import input_size, is_projection, output_size


def is_plain(weight: object) -> bool:
    """Whether a weight is a tensor of floats in memory, of 16 bits or more, so that a step can read a part of it."""
    if not isinstance(weight, torch.Tensor) or type(weight) not in (nn.Parameter, torch.Tensor):
        return False
    return weight.dtype.is_floating_point and weight.dtype.itemsize > 1 and weight.device.type != "meta"


def stored_bytes(weight: torch.Tensor) -> int:
    """Bytes of a tensor, those of its parts if it is of a class that consists of others."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    if flatten is None or isinstance(weight, DTensor):  # of all processes
        return weight.nbytes
    parts = (getattr(weight, name) for name in flatten()[0])
    return sum(stored_bytes(part) for part in parts if isinstance(part, torch.Tensor))


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of any library, without parts."""
    return is_projection(module) and next(module.children(), None) is None


def is_packed(module: nn.Module) -> bool:
    """Whether a linear layer has its weight in another shape than its own, as packed integers."""
    if not is_linear(module):
        return False
    weight = getattr(module, "weight", None)
    shape = output_size(module), input_size(module)
    return not isinstance(weight, torch.Tensor) or weight.shape not in (shape, shape[::-1])


def stored_tensors(module: nn.Module) -> list[torch.Tensor]:
    """What a module keeps of weights: its parameters, and of a linear layer without a plain one its buffers too."""
    own: list[torch.Tensor] = list(module.parameters(recurse=False))
    is_quantized = is_linear(module) and not is_plain(getattr(module, "weight", None))
    return [*own, *module.buffers(recurse=False)] if is_quantized else own


def weights_in(module: nn.Module) -> int:
    """Number of weights of one module, without those of its parts; of a packed linear layer as they are unpacked."""
    if not is_packed(module):
        return sum(p.numel() for p in module.parameters(recurse=False))
    bias, inputs, outputs = getattr(module, "bias", None), input_size(module), output_size(module)
    assert inputs is not None and outputs is not None
    return inputs * outputs + (outputs if isinstance(bias, torch.Tensor) else 0)
