# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Outputs of the parts of a forward, joined to what one forward over all tokens returns."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import pad
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput


APART = ("loss", "logits", "past_key_values")
"""Fields that are treated elsewhere."""


def join_outputs(outputs: Sequence[ModelOutput], lengths: Sequence[int], rows: int) -> ModelOutput:
    """Join what has an entry per token: hidden states, attention weights, logits of routers.

    What has none is taken from the only part that has it, such as the features of images. A number per part, such as
    an auxiliary loss, is left out.

    Args:
        outputs (`Sequence[ModelOutput]`): Of the parts, in the order of their tokens.
        lengths (`Sequence[int]`): Tokens of every part.
        rows (`int`): Number of rows.

    Returns:
        `ModelOutput`: Of the class of the first output, with logits of the last.
    """
    if len(outputs) == 1:
        return outputs[0]
    names = dict.fromkeys(name for output in outputs for name in output if name not in APART)
    joined = {name: _joined(name, [output.get(name) for output in outputs], lengths, rows) for name in names}
    kind = type(outputs[0]) if hasattr(outputs[0], "past_key_values") else CausalLMOutputWithPast  # some leave it out
    return kind(logits=outputs[-1].logits, past_key_values=getattr(outputs[-1], "past_key_values", None), **joined)


def last_tokens(output: ModelOutput, processed: int, wanted: int, rows: int) -> ModelOutput:
    """An output with the last `wanted` of `processed` tokens; its logits are not changed."""
    if processed == wanted:
        return output
    cut = {
        name: value if name in APART else _each(value, lambda x: _cut(x, processed, wanted, rows))
        for name, value in output.items()
    }
    return type(output)(**cut)


def _joined(name: str, values: list[Any], lengths: Sequence[int], rows: int) -> Any:
    given = [value for value in values if value is not None]
    if len(given) < 2:
        return given[0] if given else None
    if len(given) < len(values):
        return None
    if isinstance(given[0], tuple | list):
        layers = [_joined(name, list(layer), lengths, rows) for layer in zip(*given, strict=True)]
        return tuple(layers)
    if not isinstance(given[0], torch.Tensor):
        return None
    if name.endswith("attentions"):
        slots = given[-1].shape[-1]
        return torch.cat([pad(weights, (0, slots - weights.shape[-1])) for weights in given], dim=-2)
    along = [_token_dim(value, length, rows) for value, length in zip(given, lengths, strict=True)]
    if all(dim == 1 for dim in along):
        return torch.cat(given, dim=1)
    if all(dim == 0 for dim in along):  # rows and tokens in one dimension
        unfolded = [x.unflatten(0, (rows, length)) for x, length in zip(given, lengths, strict=True)]
        return torch.cat(unfolded, dim=1).flatten(0, 1)
    return None


def _token_dim(value: torch.Tensor, length: int, rows: int) -> int | None:
    """The dimension of the tokens; 0 if it is also that of the rows."""
    if value.dim() >= 2 and value.shape[:2] == (rows, length):
        return 1
    return 0 if value.dim() >= 2 and value.shape[0] == rows * length else None


def _cut(value: torch.Tensor, processed: int, wanted: int, rows: int) -> torch.Tensor:
    if value.dim() == 4 and value.shape[2] == processed:  # attention weights
        return value[:, :, -wanted:]
    dim = _token_dim(value, processed, rows)
    if dim == 1:
        return value[:, -wanted:]
    return value if dim is None else value.unflatten(0, (rows, processed))[:, -wanted:].flatten(0, 1)


def _each(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_each(item, function) for item in value)
    return function(value) if isinstance(value, torch.Tensor) else value
