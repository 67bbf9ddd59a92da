# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Whether the attention of a module is one that attention over selected keys can compute."""

from typing import Any

import torch

from ...errors import UnsupportedAxisError
from ..plan import StepPlan


UNSUPPORTED_ARGUMENTS = ("softcap", "s_aux", "position_bias")
HIDDEN = -1e4
"""A mask that adds at most this to the score of a key hides it."""


def is_plain(arguments: dict[str, Any]) -> bool:
    """Whether a module's attention is the softmax of scaled products and nothing else."""
    return all(arguments.get(name) is None for name in UNSUPPORTED_ARGUMENTS)


def only_hides(plan: StepPlan, mask: object) -> bool:
    """Whether an attention mask hides keys and does nothing else to their scores, as far as the host can see.

    This holds for any mask that is not a tensor of floats. The values of such a tensor are looked at on the CPU, once
    where all layers get the same mask. Elsewhere this would stall the device; there a mask is taken to hide if it does
    not differ between heads.
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
