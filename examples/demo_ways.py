# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The ways in which `demo.py` continues a prompt: by transformers, densely, with drafts, and at budgets."""

import argparse
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from sol_hf import Budget, SOLConfig, SOLForCausalLM, budgets_within, make_controller
from sol_hf.controllers.registry import CONTROLLERS
from sol_hf.decoding.options import resolve_options
from sol_hf.figures.action_map import Action


COMPUTE, EXTREME = (0.8, 0.6), (0.45, 0.36)
"""Numbers for `compute=` of a policy; the latter with `--extreme`."""
BUDGETS: tuple[Action, ...] = ((0.8, 0.9, 12), (0.5, 0.7, 8))
EXTREME_BUDGETS: tuple[Action, ...] = ((0.3, 0.6, 7), (0.2, 0.5, 6))
"""Budgets of a policy without a calibration."""
FIXED: dict[float, dict[str, float]] = {
    0.8: dict(token_keep=0.9, bits=8),
    0.6: dict(token_keep=0.5, mlp_keep=0.925, bits=6),
}
EXTREME_FIXED: dict[float, dict[str, float]] = {
    0.45: dict(token_keep=0.3, mlp_keep=0.7375, bits=5),
    0.36: dict(token_keep=0.2, mlp_keep=0.63, bits=4),
}
"""Fixed settings by their net keep rates."""


@dataclass(frozen=True)
class Column:
    """A way to continue the prompt: `options` for `generate`, of the base itself if `is_base`."""

    title: str
    requested: Action | None = None
    options: dict[str, Any] = field(default_factory=dict)
    is_base: bool = False


def controller_spec(name: str, seed: int) -> str:
    """The name of a controller, with the seed if it takes one."""
    return f"{name}:{seed}" if CONTROLLERS[name].number == "seed" else name


def budget_columns(model: SOLForCausalLM, options: argparse.Namespace) -> list[Column]:
    """The columns of the budgets."""
    space, make = model.action_space, lambda: make_controller(controller_spec(options.controller, options.seed), model)
    columns = []
    if options.policy is None:
        for share, levels in {**FIXED, **(EXTREME_FIXED if options.extreme else {})}.items():
            asked = tuple(float(levels.get(axis.name, axis.dense)) for axis in space.axes)
            columns.append(
                Column(f"compute {share:g}", asked, {**levels, "bits_backend": "nested", "controller": make()})
            )
    elif model.config.calibration is not None and options.controller == "policy":
        for share in options.compute or COMPUTE + (EXTREME if options.extreme else ()):
            budget = resolve_options({"compute": share}, None, model.generation_config, model.config).budget
            asked = tuple(budget.targets(1)[0].mul(space.scales).tolist())
            columns.append(Column(f"compute {share}", asked, {"compute": share}))
    else:
        for asked in budgets_within(space, BUDGETS + (EXTREME_BUDGETS if options.extreme else ())):
            targets = dict(zip(space.axis_names, asked, strict=True))
            title = f"compute {Budget.of(targets).targets(1).mean():.2f}"
            columns.append(Column(title, asked, {**targets, "controller": make()}))
    return columns


def all_columns(model: SOLForCausalLM, options: argparse.Namespace) -> list[Column]:
    """transformers, our dense steps, drafts with dense checks, and the budgets.

    A budget that is stored with a policy enters no column with the text of transformers.
    """
    dense = Budget.of({axis.name: axis.dense for axis in model.action_space.axes})
    ours = Column("ours, dense", None, {"budget": dense, "backend": "fast"})
    checked = Column("lossless", None, {"lossless": True, "backend": "fast"})
    return [Column("transformers", is_base=True), ours, checked, *budget_columns(model, options)]


def fixed_model(base: PreTrainedModel, extreme: bool) -> SOLForCausalLM:
    """A model with the levels of the fixed settings."""
    settings = [*FIXED.values(), *(EXTREME_FIXED.values() if extreme else ())]
    levels: dict[str, list] = {"token_keep": [1.0], "mlp_keep": [1.0], "bits": [16]}
    for setting in settings:
        for axis, level in setting.items():
            levels[axis].append(level)
    levels = {axis: sorted(set(values)) for axis, values in levels.items()}
    return SOLForCausalLM.from_base(base, SOLConfig(**levels, criterion="sketch", selection="layer"))
