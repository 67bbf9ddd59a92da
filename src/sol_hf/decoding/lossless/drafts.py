# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The steps of a draft: all at the same levels, or at those that a controller chooses under the budget of the call.

Nothing of a draft stays in the cache but the record of what it spent. Its keys and values are those of cheap steps,
and the check writes dense ones in their place.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...budget.action_space import ActionSpace
from ...budget.axes import AXES
from ...cache.sol_cache import SOLCache
from ...controllers.fixed import FixedController
from ...execution.plan import StepPlan, reads_all_keys
from ...selection.rule import SelectionRule
from ..captured import current_capture, is_captured, positions_of
from ..forward_inputs import ForwardInputs
from ..options import DecodeOptions
from ..session import DecodingSession
from ..step import decode_step, run_planned


@dataclass(frozen=True)
class DraftSteps:
    """Runs the steps of drafts.

    Args:
        levels (`Mapping[str, float]`, *optional*): The levels of all steps, in axis units, if they are the same. No
            controller is then asked, which would take a tenth of a step's time. Otherwise that of the call chooses.
    """

    levels: Mapping[str, float] | None = None

    @classmethod
    def of(cls, options: DecodeOptions, space: ActionSpace) -> "DraftSteps":
        """The steps of a call with a budget; without a controller if its schedule has nothing to choose."""
        budget = options.budget
        if budget is None or budget.rows is not None or type(options.controller) is not FixedController:
            return cls()
        targets = dict(zip(space.axis_names, space.largest, strict=True))
        targets |= {axis: float(getattr(budget, axis)) for axis in space.axis_names if axis in budget.controlled}
        levels = {}
        for axis, target in targets.items():
            spent = space.spent[axis]
            if target not in spent:
                return cls()
            levels[axis] = float(space.levels[axis][spent.index(target)])
        return cls(levels)

    @property
    def name(self) -> str:
        """What the times of these steps are remembered by."""
        return "controller" if self.levels is None else str(sorted(self.levels.items()))

    def __call__(self, session: DecodingSession, inputs: ForwardInputs, is_first: bool) -> torch.Tensor:
        """Process one token of every row, the first of a draft or a later one; logits `(rows, vocab_size)`."""
        if self.levels is None:
            return decode_step(session, inputs).logits[:, -1]
        controls, cache = session.require_controls(), session.cache
        levels = planned(self.levels, cache, controls.rule, inputs.tokens)
        if is_captured(session, inputs):
            values = [
                levels.get(axis.name, torch.full_like(inputs.tokens[:, 0], axis.dense, dtype=torch.float32))
                for axis in cache.action_space.axes
            ]
            return current_capture(session)(inputs.tokens, torch.stack(values, dim=1), positions_of(inputs))[0][:, -1]
        plan = StepPlan(cache, controls.rule, levels, controls.backend, controls.bits_backend, session.parts)
        return run_planned(session, inputs, plan, is_new=is_first)[0].logits[:, -1]


def planned(
    levels: Mapping[str, float], cache: SOLCache, rule: SelectionRule, tokens: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The levels `(rows,)` of a step over `tokens` `(rows, 1)`; short texts are read as a whole."""
    rows, device, plan = len(tokens), tokens.device, {}
    for axis, level in levels.items():
        if level < AXES[axis].dense:
            plan[axis] = torch.full((rows,), float(level), device=device)
    if "token_keep" in plan:
        seen = cache.get_seq_length() + 1
        count = torch.full((rows,), seen, device=device) if cache.padding is None else seen - cache.padding
        reads_all = rule.reads_all(count) | ~rule.is_controllable(count)
        plan["token_keep"] = plan["token_keep"].masked_fill(reads_all, 1.0)
        if device.type == "cpu" and reads_all_keys(cache, rule, plan["token_keep"]):
            del plan["token_keep"]
    return plan
