# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks whether attention over selected keys can compute the attention of a module."""

from typing import Any

import torch

from ...errors import UnsupportedAxisError
from ..plan import StepPlan


UNSUPPORTED_ARGUMENTS = ("softcap", "s_aux", "position_bias")
HIDDEN = -1e4
"""A key is hidden if the mask adds this value or less to its score."""


def is_plain(arguments: dict[str, Any]) -> bool:
    """Whether a module's attention is a plain softmax of scaled products."""
    return all(arguments.get(name) is None for name in UNSUPPORTED_ARGUMENTS)


def only_hides(plan: StepPlan, mask: object) -> bool:
    """Whether an attention mask only hides keys, and does not change the scores of visible ones.

    This holds for any mask that is not a tensor of floats. On the CPU the values of such a tensor are checked, once if
    all layers get the same mask. On other devices this would stall the device. There a mask is assumed to hide keys
    only if it is the same for all heads.
    """
    if not isinstance(mask, torch.Tensor) or not mask.is_floating_point():
        return True
    if mask.device.type != "cpu":
        return mask.dim() < 4 or mask.shape[1] == 1
    seen = plan.shared.hiding_masks
    if not any(mask is other for other in seen):
        if not bool(((mask == 0) | (mask <= HIDDEN)).all()):
            return False
        seen.append(mask)
    return True


def refuse_unsupported(module: torch.nn.Module, arguments: dict[str, Any], plan: StepPlan, mask: object) -> None:
    """Raise [`UnsupportedAxisError`] if a module's attention needs something that ours does not compute."""
    if not only_hides(plan, mask):
        raise UnsupportedAxisError(
            f"The axis `token_keep` cannot be controlled on {type(module).__name__}: its attention mask adds to the "
            "scores of visible keys, which attention over selected keys does not support."
        )
    for name in UNSUPPORTED_ARGUMENTS:
        if arguments.get(name) is not None:
            raise UnsupportedAxisError(
                f"The axis `token_keep` cannot be controlled on {type(module).__name__}: its attention uses `{name}`, "
                "which attention over selected keys does not support."
            )
