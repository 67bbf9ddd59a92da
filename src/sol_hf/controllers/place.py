# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The static schedule that knows the place in a page, without a policy: what a policy has to beat on pages."""

from typing import Any

import torch

from ..budget.action_space import ActionSpace
from ..budget.axes import Axis
from ..budget.place_costs import PlaceCosts, levels_by_place
from ..selection.criterion import CRITERIA
from .base import Controller, Observation
from .fixed import FixedController, half_between
from .levels import closeness
from .registry import HasPolicy, register_controller


PLACE = "fixed:place"


class PlaceController(Controller):
    """At every place of a page the levels of least measured cost whose mean over a page is the target.

    Every axis and place that lies between two levels takes them in turn, from page to page. The schedule of a row does
    not depend on other rows. A hard budget cuts it off where a text begins with dear places.

    Args:
        costs ([`PlaceCosts`]): Measured costs, see [`measure_places`].
    """

    rows_are_independent = True

    def __init__(self, costs: PlaceCosts):
        self.costs = costs
        self._known: tuple[torch.Tensor, ActionSpace, tuple[torch.Tensor, ...]] | None = None
        """The targets of the last step, its action space, and the plan."""

    def __call__(self, observation: Observation) -> torch.Tensor:
        targets, space, places = observation.require_targets(), observation.action_space, self.costs.places
        if self._known is None or self._known[0] is not targets or self._known[1] is not space:
            self._known = targets, space, self.plan(targets, space)
        low, high, share = self._known[2]
        place = (observation.page_fill * places).round().long().to(low.device) - 1
        chosen = place.clamp(0, places - 1)[:, None, None].expand(-1, low.shape[1], 1)
        lower, upper, part = (x.gather(2, chosen).squeeze(2) for x in (low, high, share))
        turn = observation.total_step // places  # steps follow one another, so that a place comes once a page
        half = half_between(lower, upper)
        is_high = torch.ceil(part * (turn + 1) - half) > torch.ceil(part * turn - half)
        return closeness(torch.where(is_high, upper, lower).to(targets), space)

    def plan(self, targets: torch.Tensor, space: ActionSpace) -> tuple[torch.Tensor, ...]:
        """Lower level, upper level and share of the upper one, each `(rows, axes, places)`.

        Args:
            targets (`torch.Tensor` of shape `(rows, axes)`): In ratio units.
            space ([`ActionSpace`]): The levels.
        """
        known: dict[tuple[float, ...], list[torch.Tensor]] = {}
        rows = [tuple(row) for row in targets.double().tolist()]
        for row in rows:
            if row not in known:
                pairs = zip(space.axes, row, strict=True)
                parts = [levels_by_place(*self._costs_of(axis, space), mean) for axis, mean in pairs]
                known[row] = [torch.stack(part) for part in zip(*parts, strict=True)]
        return tuple(torch.stack(part).to(targets.device) for part in zip(*(known[row] for row in rows), strict=True))

    def _costs_of(self, axis: Axis, space: ActionSpace) -> tuple[torch.Tensor, torch.Tensor]:
        levels = torch.tensor(space.spent[axis.name], dtype=torch.float64) / axis.scale
        return torch.tensor(self.costs.costs[axis.name], dtype=torch.float64), levels


def depends_on_place(model: HasPolicy) -> bool:
    """Whether the criterion of a model chooses pages. Of others, which choose single tokens, no place is special."""
    return CRITERIA[model.policy.config.criterion].chooses_pages


def make_place_controller(model: HasPolicy, number: int = 0) -> Controller:
    """The controller `fixed:place` of a model, by the costs that its config has.

    With a criterion that chooses single tokens it equals the fixed schedule of a row, which it then is.

    Raises:
        ValueError: if the config has no costs by place.
    """
    config: Any = model.policy.config
    if not depends_on_place(model):
        return FixedController(carry=config.action_space.axis_names, across_rows=False)
    if config.place_costs is None:
        raise ValueError(
            f"`{PLACE}` needs the costs of levels by the place in a page, which this config lacks: measure them with "
            "`python examples/measure_places.py POLICY TEXTS --save`, or set `model.config.place_costs = "
            "measure_places(model, blocks, context_length).to_json()`."
        )
    return PlaceController(PlaceCosts.from_json(config.place_costs, config.action_space, config.page_size))


register_controller(PLACE, make_place_controller)
