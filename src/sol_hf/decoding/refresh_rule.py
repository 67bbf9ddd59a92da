# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""When the KV refresh runs, for which rows, and in how many bits it reads weights.

All of it follows from what the steps of the running episode spent, which the host knows on a CPU only. What a row gets
does not depend on other rows.
"""

import torch

from ..budget.action_space import ActionSpace
from ..budget.axes import AXES, BITS
from ..cache.sol_cache import SOLCache
from ..execution.executors import EXECUTORS
from ..selection.nested_planes import CODE_BITS
from ..selection.rule import SelectionRule
from .session import DecodingSession


LEAST_GAIN = 0.025
"""Nats per token that a refresh has to gain under `kv_refresh="auto"`: see docs/performance.md."""
ROUNDING = 1e-9


def needs_refresh(session: DecodingSession) -> bool:
    """Whether the running episode has to be refreshed, for some row at least; never one without sparse steps."""
    wanted = True if session.controls is None else session.controls.kv_refresh
    return bool(wanted) and session.cache.episode.polluted and bool(rows_to_refresh(session).any())


def spares_rows(session: DecodingSession) -> bool:
    """Whether a refresh of the running episode leaves some rows as they are."""
    return not bool(rows_to_refresh(session).all())


def rows_to_refresh(session: DecodingSession) -> torch.Tensor:
    """The rows `(rows,)` that a refresh of a sparse episode is for, or a single entry that stands for all.

    With `kv_refresh="auto"`, those where it is expected to gain at least `LEAST_GAIN`. Otherwise all; but where planes
    are read, only rows that have read fewer bits than the refresh would, or left out something else: for others it
    would compute the same again. All rows if the actions are known on an accelerator only.
    """
    cache, controls = session.cache, session.controls
    if controls is None or cache.ledger.total_counts.device.type != "cpu":
        return torch.ones(1, dtype=torch.bool)
    values, space = _levels_so_far(cache), cache.action_space
    if controls.kv_refresh == "auto":
        return expected_gain(values, space, controls.rule, controls.bits_backend) >= LEAST_GAIN - ROUNDING
    if not weights_read(session):
        return torch.ones(1, dtype=torch.bool)
    restored = [CODE_BITS if axis is BITS else axis.dense for axis in space.axes]
    return (values < torch.tensor(restored)).any(dim=-1).any(dim=-1)


def expected_gain(values: torch.Tensor, space: ActionSpace, rule: SelectionRule, bits_backend: str) -> torch.Tensor:
    """Nats per token that later text is expected to lose less if an episode is refreshed, `(rows,)`.

    It is the mean over the steps of what was measured at their levels, added up over the axes. What is measured stands
    with each axis: see [`AxisExecutor.refresh_gain`].

    Args:
        values (`torch.Tensor` of shape `(rows, steps, axes)`): What every step spent, in axis units.
        space ([`ActionSpace`]): The axes.
        rule ([`SelectionRule`]): How keys are selected.
        bits_backend (`str`): See [`StepPlan`].
    """
    gains = torch.zeros(values.shape[:2], dtype=torch.float64)
    for axis, levels in space.by_axis(values).items():
        gains += EXECUTORS[axis].refresh_gain(rule, bits_backend)(levels)
    return gains.mean(dim=1)


def _levels_so_far(cache: SOLCache) -> torch.Tensor:
    """What the steps of the running episode spent, `(rows, steps, axes)` in axis units, on their device."""
    steps, space = cache.episode.steps, cache.action_space
    ratios = [space.ratios_on(x.action.device)[x.action] if x.spent is None else x.spent for x in steps]
    return torch.stack(ratios, dim=1) * space.scales.to(ratios[0].device)


def weights_read(session: DecodingSession) -> dict[str, torch.Tensor]:
    """In how many bits a refresh of the running episode reads weights, as the levels of a [`RefreshPlan`].

    Rows that read planes in a step of the episode read them again, in all of their bits.
    """
    controls, cache = session.require_controls(), session.cache
    if controls.bits_backend != "nested" or "bits" not in cache.action_space.levels or "bits" in controls.dense_axes:
        return {}
    read = cache.action_space.by_axis(_levels_so_far(cache))["bits"]
    in_planes = (read <= CODE_BITS).any(dim=1)
    if read.device.type == "cpu" and not bool(in_planes.any()):
        return {}
    return {"bits": torch.where(in_planes, float(CODE_BITS), AXES["bits"].dense)}
