# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks whether attention over selected keys can compute the attention of a module."""

from typing import Any

import torch

from ...errors import UnsupportedAxisError
from ..plan import ForwardContext


UNSUPPORTED_ARGUMENTS = ("position_bias", "sinks")
SCORE_CHANGES = ("softcap", "s_aux")
"""Arguments that attention over selected keys can carry out, see [`ScoreChanges`]."""
HIDDEN = -1e4
"""A key is hidden if the mask adds this value or less to its score."""


def is_plain(arguments: dict[str, Any]) -> bool:
    """Whether a module's attention is a plain softmax of scaled products."""
    return all(arguments.get(name) is None for name in (*UNSUPPORTED_ARGUMENTS, *SCORE_CHANGES))


PLAIN, HIDES, ADDS = "plain", "hides", "adds"
"""What a mask does: hide padding only, hide further keys too, change the scores of visible keys."""


def kind_of_mask(context: ForwardContext, mask: object, padding: torch.Tensor | None = None, dropped: int = 0) -> str:
    """What an attention mask does in a step or a KV refresh: [`PLAIN`], [`HIDES`] or [`ADDS`].

    On the CPU its values are checked, once if all layers get the same mask. On other devices this would stall the
    device. There a mask of floats per head is assumed to add, and any other mask to hide padding and later tokens
    only if transformers has made it and the model has not changed it.

    Args:
        context ([`ForwardContext`]): The running forward.
        mask (`object`): What the base passes to its attention; no tensor if there is nothing to hide.
        padding (`torch.Tensor` of shape `(rows,)`, *optional*): Slots with padding on the left of every row.
        dropped (`int`, *optional*, defaults to 0): Slots that have left the window of the layer.
    """
    if not isinstance(mask, torch.Tensor) or mask.dim() < 4:
        return PLAIN
    if mask.device.type != "cpu":
        if mask.is_floating_point() and mask.shape[1] > 1:
            return ADDS
        storage = mask.untyped_storage().data_ptr()
        return PLAIN if any(storage == other.untyped_storage().data_ptr() for other in context.masks) else HIDES
    known = next((kind for seen, kind in context.mask_kinds if seen is mask), None)
    if known is None:
        known = _kind_by_values(mask, None if padding is None else (padding.cpu() - dropped).clamp(min=0))
        context.mask_kinds.append((mask, known))
    return known


def _kind_by_values(mask: torch.Tensor, first_key: torch.Tensor | None) -> str:
    visible = mask
    if mask.is_floating_point():
        visible = mask > HIDDEN
        if not bool((mask.eq(0) | ~visible).all()):
            return ADDS
    elif mask.dtype != torch.bool:
        visible = mask != 0
    queries, slots = mask.shape[-2:]
    expected = torch.arange(slots - queries + 1, slots + 1)
    if first_key is not None:
        expected = (expected - first_key.view(-1, 1, 1)).clamp(min=0)
    return PLAIN if bool((visible.sum(dim=-1) == expected).all()) else HIDES


def refuse_unsupported(module: torch.nn.Module, arguments: dict[str, Any], kind: str, implementation: str) -> None:
    """Raise [`UnsupportedAxisError`] if a module's attention needs something that ours does not compute.

    Args:
        module (`torch.nn.Module`): The attention.
        arguments (`dict[str, Any]`): Further arguments that it passes.
        kind (`str`): What its mask does, from [`kind_of_mask`].
        implementation (`str`): The base's own attention. Only eager attention caps scores and reads sinks.
    """
    start = f"The axis `token_keep` cannot be controlled on {type(module).__name__}: its attention"
    if kind == ADDS:
        raise UnsupportedAxisError(
            f"{start} mask adds to the scores of visible keys, which attention over selected keys does not support."
        )
    if kind == HIDES:
        raise UnsupportedAxisError(
            f"{start} mask hides keys that are not padding: the base selects the keys of a token itself, and cannot "
            "select among them again."
        )
    own = () if implementation == "eager" else SCORE_CHANGES
    for name in (*UNSUPPORTED_ARGUMENTS, *own):
        if arguments.get(name) is not None:
            raise UnsupportedAxisError(
                f"{start} uses `{name}`, which attention over selected keys does not support with {implementation!r}."
            )
