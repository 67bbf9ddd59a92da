# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The hidden state that the LM head of a base receives."""

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UnsupportedAxisError
from .plan import ACTIVE


def lm_head_of(base: PreTrainedModel) -> nn.Module:
    """The LM head of a base, as it is now: heads are replaced when embeddings are resized or adapters are added.

    Raises:
        UnsupportedAxisError: if the base has none.
    """
    head = base.get_output_embeddings()
    if head is None:
        raise UnsupportedAxisError(f"{type(base).__name__} has no output embeddings, so no hidden state to read.")
    return head


def capture_hidden_state(module: nn.Module, args: tuple) -> tuple | None:
    """Forward pre-hook of the LM head: store its input in the context of this thread's forward.

    If logits are not needed, a plain head gets an input without tokens, so that it computes nothing. A quantized head
    may not accept one; it gets the last token.
    """
    context = ACTIVE.get()
    if context is None:
        return None
    context.hidden_states = args[0]
    if not context.skips_head:
        return None
    is_plain = type(module) is nn.Linear and type(module.weight) in (nn.Parameter, torch.Tensor)
    return (args[0][:, :0] if is_plain else args[0][:, -1:], *args[1:])
