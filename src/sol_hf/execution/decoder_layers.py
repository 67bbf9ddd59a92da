# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Finds the decoder layers of any base."""

from torch import nn
from transformers import PreTrainedModel


def decoder_layers(base: PreTrainedModel) -> nn.ModuleList | None:
    """The list of decoder layers: the module list with as many entries as the config has hidden layers."""
    wanted = base.config.get_text_config(decoder=True).num_hidden_layers
    lists = [m for m in base.modules() if isinstance(m, nn.ModuleList) and len(m) == wanted]
    return lists[0] if lists else None
