# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The hidden state that the LM head of a base receives."""

from torch import nn

from .plan import ACTIVE


def capture_hidden_state(module: nn.Module, args: tuple) -> tuple | None:
    """Forward pre-hook of the LM head: store its input in the context of this thread's forward.

    If logits are not needed, the head gets an input without tokens, so that it computes nothing.
    """
    context = ACTIVE.get()
    if context is None:
        return None
    context.hidden_states = args[0]
    return (args[0][:, :0], *args[1:]) if context.skips_head else None
