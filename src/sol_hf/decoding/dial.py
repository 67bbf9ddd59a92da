# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`compute=`: a budget from the calibration of a policy, and whether that holds for a call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import logging

from ..budget.budget import AxisTarget, Budget
from ..budget.calibration import NET_KEEP, budget_for
from ..configuration_sol import SOLConfig
from ..execution.base_device import compute_device
from ..execution.machine import describe_machine


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Dial:
    """Where the budget of a call is from.

    Args:
        unit (`str`): What `compute` counts, one of [`UNITS`].
        conditions (`Mapping[str, Any]`): Under what the table was measured, as far as it is known.
    """

    unit: str
    conditions: Mapping[str, Any]

    @classmethod
    def turn(cls, compute: AxisTarget, unit: str | None, config: SOLConfig | None) -> "tuple[Dial, Budget]":
        """The dial of a call, and the budget that it sets.

        Args:
            compute (`float` or one per row): Share of the compute.
            unit (`str`, *optional*): What that counts; by default what the config says.
            config ([`SOLConfig`], *optional*): Has the calibration.

        Raises:
            ValueError: without a table in this unit.
            BudgetError: for a number outside of the table's range.
        """
        unit = unit or (None if config is None else config.compute_unit)
        budget = budget_for(compute, None if config is None else config.calibration, unit)
        stored = (None if config is None else config.calibration_conditions) or {}
        return cls(unit or NET_KEEP, stored.get(unit or NET_KEEP, {})), budget

    def check(
        self, base: PreTrainedModel, bits_backend: str, kv_refresh: bool | str, horizon: str | None = None
    ) -> None:
        """Compare the conditions of the table with those of a call; a warning names what differs in degree.

        Args:
            base (`PreTrainedModel`): The base that is run.
            bits_backend (`str`): Of the call.
            kv_refresh (`bool` or `"auto"`): Of the call.
            horizon (`str`, *optional*): Over what the call keeps its budget, if it does.

        Raises:
            ValueError: if the call computes `bits` in another way.
        """
        measured = self.conditions.get("bits_backend", bits_backend)
        if measured != bits_backend:
            raise ValueError(
                f"The calibration of this policy in `{self.unit}` was measured with `bits_backend='{measured}'`, and "
                f"does not hold with {bits_backend!r}: pass `bits_backend='{measured}'`, or set "
                "`model.generation_config.bits_backend`."
            )
        here: dict[str, Any] = {} if horizon is None else {"budget_horizon": horizon}
        if self.unit != NET_KEEP:
            here |= {"dtype": str(base.dtype).removeprefix("torch."), "kv_refresh": str(kv_refresh)}
        here |= describe_machine(compute_device(base)) if self.unit == "time" else {}
        other = [f"{name} {value}, here {here[name]}" for name, value in self._differing(here).items()]
        if other:
            logger.warning_once(
                f"The calibration of this policy in `{self.unit}` was measured otherwise ({'; '.join(other)}): the "
                "share of a dense step that `compute` asks for is true of that. Make one for this with `sol-hf "
                f"pareto POLICY --data FILE --out DIR --save --unit {self.unit}`."
            )

    def _differing(self, here: Mapping[str, Any]) -> dict[str, Any]:
        return {name: x for name, x in self.conditions.items() if name in here and x != here[name]}
