# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The rotary embeddings of a base: one for all layers, or one for layers with full attention and one for windows."""

import inspect
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ..decoder_layers import text_config


ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embeddings whose tables do not depend on the length of the text."""
Tables = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines `(positions, rotated)`, float32."""


@dataclass(frozen=True, eq=False)
class RotaryTables:
    """Makes the tables of the rotary embeddings.

    Args:
        module (`nn.Module`): Computes cosines and sines of positions.
        kinds (`tuple` of `str`): What the module has to be told for each layer: its type; empty if it is nothing.
        dtype (`torch.dtype`): In which the base takes its tables.
    """

    module: nn.Module
    kinds: tuple[str, ...]
    dtype: torch.dtype

    def kind_of(self, layer: int) -> str | None:
        """The kind of the tables of a layer."""
        return self.kinds[layer] if self.kinds else None

    def tables(self, kind: str | None, number: int) -> Tables:
        """Tables of the first `number` positions."""
        x, further = torch.empty(1, 1, dtype=self.dtype), () if kind is None else (kind,)
        cos, sin = self.module(x, torch.arange(number)[None], *further)
        return cos[0].float().contiguous(), sin[0].float().contiguous()

    def rotated(self, layer: int) -> int:
        """Numbers of a head that are rotated in a layer."""
        return self.tables(self.kind_of(layer), 1)[0].shape[1]


def find_rotary(base: PreTrainedModel, module: object, dtype: torch.dtype) -> RotaryTables | None:
    """The rotary embeddings of a base; `None` if its tables do not follow from positions and the type of a layer."""
    if not isinstance(module, nn.Module):
        return None
    arguments, types = list(inspect.signature(type(module).forward).parameters), getattr(module, "rope_type", None)
    if arguments == ["self", "x", "position_ids"] and types in ROTATIONS:
        return RotaryTables(module, (), dtype)
    if arguments != ["self", "x", "position_ids", "layer_type"] or not isinstance(types, dict):
        return None
    kinds = tuple(getattr(text_config(base), "layer_types", None) or ())
    known = bool(kinds) and all(types.get(kind) in ROTATIONS for kind in kinds)
    return RotaryTables(module, kinds, dtype) if known else None
