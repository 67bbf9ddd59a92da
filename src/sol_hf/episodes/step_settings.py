# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How the steps of an episode are computed: as `generate` does by the options that the model stores.

What is trained, measured and swept is then what is used. `model.generation_config.bits_backend = "nested"`, which is
saved with the policy, makes rollouts, counterfactuals, evaluations and sweeps read planes of the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ..budget.action_space import ActionSpace
from ..budget.axes import AXES
from ..budget.bank import HORIZONS
from ..decoding.options import stored_options
from ..errors import UnsupportedAxisError
from ..execution.instrumentation import Instrumentation
from ..execution.spending import space_under
from ..modeling_sol import SOLForCausalLM


HOW = ("backend", "bits_backend", "kv_dtype")
"""Settings that change what is computed. Files that are compared have them only where they are not the defaults."""


@dataclass(frozen=True)
class StepSettings:
    """How steps are computed where no call says otherwise.

    Args:
        space ([`ActionSpace`]): The actions, with what they spend: under `"nested"` bits are rounded up to planes.
        backend (`str`, *optional*, defaults to `"auto"`): See [`StepPlan`].
        bits_backend (`str`, *optional*, defaults to `"fake"`): See [`StepPlan`].
        kv_dtype (`str`, *optional*): In which caches keep keys and values, where the config does not say it.
        max_plane_bytes (`int`, *optional*): Most bytes that planes of the weights may take.
        kv_refresh (`bool` or `"auto"`, *optional*, defaults to `True`): Which episodes are refreshed; there is no
            refresh within an episode.
        budget_horizon (`str`, *optional*, defaults to `"generation"`): Over what hard budgets are kept, one of
            `HORIZONS`. A block is a generation of its own: its bank begins with the allowance.
        budget_mode (`str`, *optional*, defaults to `"hard"`): Whether `generate` enforces budgets.
    """

    space: ActionSpace
    backend: str = "auto"
    bits_backend: str = "fake"
    kv_dtype: str | None = None
    max_plane_bytes: int | None = None
    kv_refresh: bool | str = True
    budget_horizon: str = HORIZONS[0]
    budget_mode: str = "hard"

    @classmethod
    def of(cls, model: SOLForCausalLM) -> "StepSettings":
        """Those of the generation config of a model.

        Raises:
            ValueError: for a stored value that is not allowed.
        """
        stored = stored_options(model.generation_config)
        named = {field.name: stored[field.name] for field in fields(cls) if field.name != "space"}
        return cls(space_under(named["bits_backend"], model.action_space), **named)

    @property
    def unusual(self) -> dict[str, Any]:
        """Those of `HOW` that are not the defaults."""
        usual = StepSettings(self.space)
        return {name: getattr(self, name) for name in HOW if getattr(self, name) != getattr(usual, name)}

    @property
    def free_axes(self) -> tuple[str, ...]:
        """The axes on which some step may be less than dense."""
        return tuple(axis.name for axis in self.space.axes if min(self.space.spent[axis.name]) < axis.dense)

    def prepare(self, model: SOLForCausalLM, axes: Sequence[str] | None = None) -> None:
        """Check that the base can carry the steps out, and make what they need, such as planes of the weights.

        Args:
            model ([`SOLForCausalLM`]): Its base.
            axes (`Sequence[str]`, *optional*): Axes that are controlled; by default those of [`free_axes`] that can
                be controlled on this base.

        Raises:
            UnsupportedAxisError: if the base cannot be controlled on one of `axes`, or has no planes.
            ValueError: if planes would take more than `max_plane_bytes`.
        """
        instrumentation = Instrumentation.at_start(model.base)
        if axes is None:
            axes = [axis for axis in self.free_axes if instrumentation.unsupported(axis) is None]
        for axis in axes:
            reason = instrumentation.unsupported(axis)
            if reason is not None:
                raise UnsupportedAxisError(
                    f"{reason} Leave `{axis}` dense, in every budget ({AXES[axis].dense:g}) or by an action space "
                    f"without other levels (`SOLConfig({axis}=[{AXES[axis].dense:g}])`)."
                )
        instrumentation.require(axes, self.bits_backend, self.max_plane_bytes)
