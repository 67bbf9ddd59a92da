# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The settings of a call of `generate(lossless=True)`, and the checks that need no compute.

With a budget, drafts are steps under it. Without one, they read all weights in 8 bits and, in long texts, a fifth of
the keys: of the settings of docs/choosing.md the one that gave the most tokens a second, see docs/lossless.md.
"""

import dataclasses
import weakref
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from ...budget.action_space import ActionSpace
from ...budget.axes import PUBLISHED_AXES
from ...cache.paged_layer import PagedLayer
from ...cache.window_layer import WindowLayer
from ...configuration_sol import SOLConfig
from ...errors import UnsupportedAxisError
from ...execution.forked_process import check_fork
from ...execution.instrumentation import Instrumentation
from ...modeling_sol_policy import SOLPolicyModel
from ..controls import DecodeControls
from ..options import DecodeOptions
from ..row_ends import RowEnds
from ..setup import controls_for, new_cache
from .agreement import Agreement
from .drafts import DraftSteps
from .look_ahead import LookAhead
from .pace import LONGEST, Costs, Known, Pace
from .reach import Reach


LEVELS = {"token_keep": 0.2, "bits": 8}
"""Of drafts without a budget, on the axes that the base has."""
SHORT_TEXT = 1024
"""Tokens up to which such drafts read all keys."""
RULE: dict[str, Any] = dict(criterion="sketch", selection="layer", index_bits=4, short_text_tokens=SHORT_TEXT)


def lossless_controls(
    options: DecodeOptions, base: PreTrainedModel, policy: SOLPolicyModel, config: SOLConfig, rows: int
) -> tuple[DecodeControls, DraftSteps]:
    """The settings of drafts, and how their steps run.

    Args:
        options ([`DecodeOptions`]): Of the call, with `lossless`.
        base (`PreTrainedModel`): The frozen base.
        policy ([`SOLPolicyModel`]): The controller under a budget, unless the options contain another.
        config ([`SOLConfig`]): Action space, selection rule and episodes.
        rows (`int`): Rows of the input.

    Raises:
        UnsupportedAxisError: if the base has no axis to draft on, or a cache whose tokens cannot be dropped.
        ValueError: for a budget that is dense, and as [`controls_for`].
    """
    check_cache(base, config, options.kv_dtype)
    options = dataclasses.replace(options, asks_kv_dtype=True)  # a cache that is given must have the base's dtype, too
    if options.is_empty:
        return default_controls(options, base, config)
    if options.is_dense:
        raise ValueError(
            "`lossless` drafts under the budget of the call, but this one is dense: pass a smaller one, or none, for "
            "which there is a default."
        )
    controls = controls_for(options, base, policy, config, rows)
    assert controls is not None, "only calls that are all dense have none"
    steps = DraftSteps.of(options, controls.action_space or config.action_space)
    return dataclasses.replace(controls, kv_refresh=True), steps


def default_controls(
    options: DecodeOptions, base: PreTrainedModel, config: SOLConfig
) -> tuple[DecodeControls, DraftSteps]:
    """The settings of drafts without a budget, on the axes of [`LEVELS`] that the base has.

    Raises:
        UnsupportedAxisError: if it has none of them.
    """
    check_fork()
    instrumentation = Instrumentation.at_start(base)
    reasons = {axis: instrumentation.unsupported(axis) for axis in LEVELS}
    levels = {axis: level for axis, level in LEVELS.items() if reasons[axis] is None}
    try:
        instrumentation.require(levels, "nested", options.max_plane_bytes)
    except UnsupportedAxisError as error:
        reasons["bits"] = error
        levels.pop("bits", None)
    if not levels:
        raise UnsupportedAxisError(
            f"`lossless` has nothing to draft with: {' '.join(str(reason) for reason in reasons.values())} Leave "
            "`lossless` out: `backend='fast'` is dense, too."
        )
    rule = dataclasses.replace(config.selection_rule, **RULE)
    if options.cuda_graphs:
        instrumentation.require_graphs(new_cache(base, config, options.kv_dtype), rule)
    controls = dataclasses.replace(
        options.dense_controls(config),
        rule=rule,
        kv_refresh=True,
        backend="fast" if options.cuda_graphs else options.backend,
        bits_backend="nested",
        dense_axes=frozenset(),
        action_space=space_of(levels),
    )
    return controls, DraftSteps(levels)


def space_of(levels: Mapping[str, float]) -> ActionSpace:
    """The action space of steps at these levels and of dense ones."""
    both: dict[str, Any] = {axis.name: {axis.dense, levels.get(axis.name, axis.dense)} for axis in PUBLISHED_AXES}
    return ActionSpace(**{name: sorted(values) for name, values in both.items()})


def check_cache(base: PreTrainedModel, config: SOLConfig, kv_dtype: str | None) -> None:
    """Raise an error if a call's cache does not allow the base's own text.

    Raises:
        UnsupportedAxisError: if tokens that were processed cannot be taken back and given again.
        ValueError: if keys and values are kept in fewer bits, with which the dense text would be another one.
    """
    cache = new_cache(base, config, kv_dtype)
    if cache.kv_dtype is not None:
        name = str(base.dtype).removeprefix("torch.")
        raise ValueError(
            f"`lossless` gives the text of the base, which keys and values in {str(cache.kv_dtype)[6:]} would change: "
            f"pass `kv_dtype={name!r}`, or leave out `lossless`."
        )
    kinds = {type(layer) for layer in cache.layers}
    other = sorted(kind.__name__ for kind in kinds - {PagedLayer, WindowLayer})
    if other or not kinds:
        raise UnsupportedAxisError(
            f"`lossless` cannot run on {type(base).__name__}: {', '.join(other) or 'a cache without layers'} cannot "
            "take tokens back and give them again. Leave it out."
        )


def look_ahead_of(
    options: DecodeOptions, controls: DecodeControls, steps: DraftSteps, base: PreTrainedModel, row_ends: RowEnds
) -> LookAhead:
    """What processes the forwards of a call; see [`LookAhead`]."""
    longest = LONGEST if steps.levels is not None else min(LONGEST, controls.episode_length)
    length = None if options.lossless is True else int(options.lossless)
    known = _KNOWN.setdefault(base, Known())
    name = f"{steps.name}, {controls.backend}, {controls.bits_backend}"

    def pace(rows: int, context: int) -> Pace:
        return known.pace(name, rows, context, length, longest)

    return LookAhead(steps, pace, Reach.of(base), row_ends)


def known_of(base: PreTrainedModel, rows: int, context: int) -> tuple[Costs, Agreement]:
    """What the last calls have found out about drafts after a context of about so many tokens."""
    known = _KNOWN.get(base, Known())
    found = [(name, costs) for (name, *key), costs in known.costs.items() if key == [rows, context.bit_length()]]
    return (found[-1][1], known.agreements[found[-1][0]]) if found else (Costs(), Agreement())


_KNOWN: "weakref.WeakKeyDictionary[PreTrainedModel, Known]" = weakref.WeakKeyDictionary()
"""Times and agreement of earlier calls."""
