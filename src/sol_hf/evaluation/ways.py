# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Ways to decode with one base, to be compared: the base alone, dense on our cache, drafts that are checked, budgets.

The budgets of a policy are numbers for `compute=`, from its calibration. Without one they are settings that
docs/choosing.md recommends, with the fixed schedule: every step at the same levels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel

from ..budget.budget import Budget
from ..configuration_sol import SOLConfig
from ..controllers.fixed import FixedController
from ..decoding.options import resolve_options
from ..errors import BudgetError
from ..modeling_sol import SOLForCausalLM
from .speed import BASE


DENSE, LOSSLESS = "dense, ours", "lossless"
SAME_TEXT = (BASE, DENSE, LOSSLESS)
"""Ways that give the text of the base."""
COMPUTE = (0.8, 0.6, 0.4)
"""Numbers for `compute=`, where a calibration has them."""
SHORT_TEXT = 256
"""Tokens up to which a share of them would be too few."""
LEVELS: dict[str, Any] = dict(token_keep=[0.2, 1.0], mlp_keep=[1.0], bits=[6, 8, 16])
RULE: dict[str, Any] = dict(criterion="sketch", selection="layer", short_text_tokens=SHORT_TEXT)
NESTED: dict[str, Any] = dict(bits_backend="nested")
SETTINGS: dict[str, dict[str, Any]] = {
    "8 bits": dict(bits=8, **NESTED),
    "8 bits, keys .2": dict(bits=8, token_keep=0.2, kv_refresh="auto", **NESTED),
    "6 bits, keys .2": dict(bits=6, token_keep=0.2, kv_refresh="auto", **NESTED),
}
"""Settings of docs/choosing.md, from the one that changes least, as options of `generate`."""


@dataclass(frozen=True)
class Way:
    """A way to decode.

    Args:
        name (`str`): For people.
        options (`dict`): Options of [`SOLForCausalLM.generate`]; of the base's own `generate` if `is_base`.
        is_base (`bool`): Whether the base itself decodes.
        has_policy (`bool`): Whether a policy chooses the actions.
        calibrated (`float`, *optional*): Loss above dense in nats per token that the calibration says.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    is_base: bool = False
    has_policy: bool = False
    calibrated: float | None = None

    @property
    def is_dense(self) -> bool:
        """Whether it gives the text of the base."""
        return self.is_base or self.name in SAME_TEXT


def dense_ways(model: SOLForCausalLM) -> list[Way]:
    """The base alone, dense steps on our cache, and drafts that are checked densely.

    A budget that is stored with a policy enters the drafts only.
    """
    dense = Budget.of({axis.name: axis.dense for axis in model.action_space.axes})
    ours = Way(DENSE, dict(budget=dense, backend="fast"), calibrated=0.0)
    return [Way(BASE, is_base=True), ours, Way(LOSSLESS, dict(lossless=True, backend="fast"), calibrated=0.0)]


def ways_of_policy(model: SOLForCausalLM, compute: Sequence[float | str] | None = None) -> list[Way]:
    """The dense ways, and budgets by the calibration of a policy.

    Args:
        model ([`SOLForCausalLM`]): A model whose config has a calibration.
        compute (`Sequence[float]`, *optional*): Values for `compute=`; by default those of [`COMPUTE`] that the
            calibration has.
    """
    if compute is None:
        compute = [rate for rate in COMPUTE if _is_calibrated(model, rate)]
    ways = []
    for rate in compute:
        try:
            loss = model.config.expected_loss(rate)
        except ValueError:  # the table has no dense row; a rate that is not in it is refused by `generate`
            loss = None
        assert not isinstance(loss, list), "one rate has one loss"
        ways.append(Way(f"compute {rate}", dict(compute=rate), has_policy=True, calibrated=loss))
    return [*dense_ways(model), *ways]


def _is_calibrated(model: SOLForCausalLM, rate: float) -> bool:
    try:
        resolve_options({"compute": rate}, None, model.generation_config, model.config)
    except BudgetError:
        return False
    return True


def model_for_settings(base: PreTrainedModel) -> SOLForCausalLM:
    """A model with the levels of [`SETTINGS`]; its policy is small and not used."""
    sizes = dict(policy_hidden_size=4, policy_num_heads=1, action_embedding_size=1)
    return SOLForCausalLM.from_base(base, SOLConfig(**LEVELS, **RULE, **sizes))


def ways_of_settings(model: SOLForCausalLM) -> list[Way]:
    """The dense ways, and [`SETTINGS`] by the fixed schedule."""
    fixed = [Way(name, options | {"controller": FixedController()}) for name, options in SETTINGS.items()]
    return [*dense_ways(model), *fixed]
