# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The front of a policy in a unit of `compute`, and under what it was measured.

net_keep   mean of the axes, as the table of the sweep says
bytes      bytes per token over those of a dense step, as the table says: KV refresh, index and policy included
time       median time per token over that of our own dense step, measured here, in turn
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...budget.bank import HORIZONS
from ...budget.budget import Budget
from ...budget.calibration import LOG_PERPLEXITY, NET_KEEP, point_keys
from ...budget.calibration_conditions import in_words
from ...episodes.step_settings import StepSettings
from ...execution.base_device import compute_device
from ...execution.machine import describe_machine
from ...modeling_sol import SOLForCausalLM
from ..speed import DENSE, measure_speed
from .calibration_file import save_calibration
from .entries import POLICY
from .fronts import pareto_front
from .table import read_table


EPISODES = 2
"""Episodes whose steps are timed, so that KV refreshes are part of the time."""
REPEATS = 3

Row = Mapping[str, Any]


@dataclass(frozen=True)
class DialSetting:
    """How a sweep was run whose front becomes a calibration table.

    Args:
        unit (`str`): What the table counts, one of [`UNITS`].
        context_length (`int`): Tokens of a block before its steps.
        hard (`bool`): Whether the budgets were enforced.
    """

    unit: str
    context_length: int
    hard: bool

    def conditions(self, model: SOLForCausalLM) -> dict[str, Any]:
        """Under what the table is true, for [`check_conditions`]; of net keep rates only what is unusual."""
        settings = StepSettings.of(model)
        unusual = self.hard and settings.budget_horizon != HORIZONS[0]
        named = {"budget_horizon": settings.budget_horizon} if unusual else {}
        if self.unit == NET_KEEP:
            return named | ({} if settings.bits_backend == "fake" else {"bits_backend": settings.bits_backend})
        found: dict[str, Any] = named | {
            "context_length": self.context_length,
            "dtype": str(model.base.dtype).removeprefix("torch."),
            "bits_backend": settings.bits_backend,
            "budget_mode": "hard" if self.hard else "soft",
            "kv_refresh": str(settings.kv_refresh),
        }
        return found | (describe_machine(compute_device(model.base)) if self.unit == "time" else {})


def save_dial(
    policy: str | os.PathLike,
    folder: str | os.PathLike,
    summary: Mapping[str, Any],
    model: SOLForCausalLM,
    blocks: torch.Tensor,
    setting: DialSetting,
) -> str:
    """Write the front of a sweep's policy into its config.

    Args:
        policy (`str` or `os.PathLike`): Folder of the policy.
        folder (`str` or `os.PathLike`): Folder of the sweep.
        summary (`Mapping[str, Any]`): From [`summarize_sweep`].
        model ([`SOLForCausalLM`]): The policy and its base.
        blocks (`torch.LongTensor` of shape `(blocks, length)`): The text of the sweep.
        setting ([`DialSetting`]): How it was run, and the unit.

    Returns:
        `str`: What there is now, in a sentence.
    """
    rows, unit = [dict(row) for row in read_table(folder) if row["controller"] == POLICY], setting.unit
    conditions = setting.conditions(model)
    points = save_calibration(policy, summary, unit, dial_points(rows, model, blocks, setting), conditions)
    words = in_words(unit, conditions)
    return f"{policy} now has a calibration table of {points} points: generate(compute=...) is a {words}."


def dial_points(
    rows: Sequence[Row], model: SOLForCausalLM, blocks: torch.Tensor, setting: DialSetting
) -> list[dict[str, float]]:
    """The front of a policy over the cost in a unit, by ascending cost, without points that cost as much as dense.

    Args:
        rows (`Sequence[Mapping]`): Rows of the policy in the table `sweep`.
        model ([`SOLForCausalLM`]): The policy and its base; steps are timed for `"time"`.
        blocks (`torch.LongTensor` of shape `(blocks, length)`): The text of the sweep; the first one is continued.
        setting ([`DialSetting`]): How the sweep was run, and the unit.

    Raises:
        ValueError: if no budget of the sweep costs less than a dense step.
    """
    axes, unit = model.action_space.axes, setting.unit
    if unit == NET_KEEP:
        costs = [row[NET_KEEP] for row in rows]
    elif unit == "bytes":
        costs = [row["bytes_per_token"] / row["dense_bytes_per_token"] for row in rows]
    else:
        controlled = [{x.name: row[x.name] for x in axes if row[x.name] != x.dense} for row in rows]
        budgets = [Budget.of(targets) for targets in controlled]  # as in the sweep, the other axes stay dense
        costs = _times(model, budgets, blocks[:1, : setting.context_length], setting.hard)
    losses = [row[LOG_PERPLEXITY] for row in rows]
    front = pareto_front(list(zip(costs, losses, strict=True)))
    points = [{**dict(rows[index]), unit: costs[index]} for index in front if costs[index] < 1]
    if not points and unit != NET_KEEP:
        raise ValueError(
            f"No budget of this sweep costs less than a dense step in `{unit}`: the cheapest takes {min(costs):.3f} "
            "of one. Sweep lower budgets, a longer context, or `--bits-backend nested`."
        )
    return [{key: float(point[key]) for key in point_keys(model.action_space, unit)} for point in points]


def _times(model: SOLForCausalLM, budgets: Sequence[Budget], prompt: Any, hard: bool) -> list[float]:
    """Time of a step at every budget over that of our own dense step, median of rounds in turn."""
    report = measure_speed(
        model,
        prompt.to(compute_device(model.base)),
        budgets,
        new_tokens=1 + EPISODES * model.config.episode_length,
        repeats=REPEATS,
        budget_mode="hard" if hard else "soft",
    )
    speeds = {row.name: row.tokens_per_second for row in report.rows}
    dense = speeds[DENSE]
    return [statistics.median(d / own for d, own in zip(dense, speeds[repr(x)], strict=True)) for x in budgets]
