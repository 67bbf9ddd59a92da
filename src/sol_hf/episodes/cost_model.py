# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The expected cost of every level at a step, given the inputs of a policy, and the allocation that follows from it.

Measured costs are noisy: of two steps with similar inputs, one may cost ten times as much as the other. A policy can
only learn the mean cost given its inputs. [`CostModel`] estimates this mean from [`Counterfactuals`].

If steps were independent, the schedule of least cost at a given mean would take at every step the level that minimizes
`cost + price * level`, with one price per axis for all steps. [`Allocation`] finds the price that meets a budget.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..budget.action_space import ActionSpace
from ..budget.axes import Axis
from .counterfactuals import Probes
from .step_inputs import Rows


LOWEST_COST = 1e-4
"""Measured costs below this value, in nats, are rounding errors."""
FALL_PER_UNIT = math.log(4)
"""Fall of the log-cost per unit of an axis of whole numbers: one more bit halves the step of a quantizer, and divides
the variance of its error by 4."""
FALL_TO_DENSE = 3.0
"""Fall of the log-cost of any other axis, from the largest probe to the largest level."""
PRICES = 96
CHUNK = 8192
"""Steps that are in float32 at the same time."""


class CostModel(nn.Module):
    """Mean cost of every probe, from the LM's hidden state, the embedding of the token to process and its position in
    its page.

    The loss is the negative log-likelihood of an exponential distribution. Its minimum is the conditional mean, for
    any distribution of the costs. It depends on relative errors, so that probes of high and of low cost have the same
    weight.

    Args:
        inputs (`torch.Tensor` or [`Rows`] of shape `(steps, features)`): Inputs, whose mean and spread are used for
            normalization.
        costs (`torch.Tensor` of shape `(steps, probes)`): Costs, whose mean is the initial prediction.
        places (`int`): Positions in a page; 1 without pages.
        width (`int`, *optional*, defaults to 384): Hidden units.
        dropout (`float`, *optional*, defaults to 0.4): Dropout rate of inputs and of hidden units.
    """

    mean: torch.Tensor
    spread: torch.Tensor
    mean_cost: torch.Tensor

    def __init__(self, inputs: Rows, costs: torch.Tensor, places: int, width: int = 384, dropout: float = 0.4):
        super().__init__()
        mean, spread = _mean_and_spread(inputs)
        self.register_buffer("mean", mean)
        self.register_buffer("spread", spread.clamp(min=1e-6))
        self.register_buffer("mean_cost", costs.clamp(min=LOWEST_COST).mean(dim=0))
        self.first = nn.Sequential(nn.Dropout(dropout / 2), nn.Linear(len(mean), width))
        self.place = nn.Embedding(places, width)
        last = nn.Linear(width // 2, len(costs[0]))
        self.network = nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width // 2), nn.GELU(), last)
        self.place_cost = nn.Embedding(places, len(costs[0]))
        for part in (last.weight, last.bias, self.place_cost.weight):
            nn.init.zeros_(part)

    def forward(self, inputs: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """Logarithms of the mean costs, relative to those of all steps.

        Args:
            inputs (`torch.Tensor` of shape `(..., features)`): State and embedding.
            places (`torch.LongTensor` of shape `(...)`): Position of the token in its page.

        Returns:
            `torch.Tensor` of shape `(..., probes)`.
        """
        seen = self.first((inputs - self.mean) / self.spread) + self.place(places)
        return self.network(seen) + self.place_cost(places)

    def loss(self, inputs: torch.Tensor, places: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood. It is 1 for a model that predicts the mean over all steps."""
        predicted = self(inputs, places)
        return (costs.clamp(min=LOWEST_COST) / self.mean_cost * (-predicted).exp() + predicted).mean()

    @torch.no_grad()
    def costs(self, inputs: Rows, places: torch.Tensor) -> torch.Tensor:
        """Mean costs in nats, `(steps, features)` and `(steps,)` to `(steps, probes)`."""
        device = self.mean.device
        parts = [self(inputs[some], places[some].to(device)).exp() * self.mean_cost for some in _chunks(len(inputs))]
        return torch.cat(parts)


@dataclass(frozen=True)
class SelectedRows:
    """Some rows of others.

    Args:
        inputs ([`Rows`]): The others.
        chosen (`torch.LongTensor` of shape `(n,)`): Indices of the rows.
    """

    inputs: Rows
    chosen: torch.Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        return self.inputs[self.chosen[rows]]


def _chunks(rows: int) -> Iterator[torch.Tensor]:
    """Indices of all rows, some at a time."""
    yield from torch.arange(rows).split(CHUNK)


def _mean_and_spread(inputs: Rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the columns of `inputs`, `(features,)` each."""
    number = len(inputs)
    sums = [inputs[some].double().sum(dim=0) for some in _chunks(number)]
    mean = torch.stack(sums).sum(dim=0) / number
    squares = [(inputs[some].double() - mean).square().sum(dim=0) for some in _chunks(number)]
    return mean.float(), (torch.stack(squares).sum(dim=0) / (number - 1)).sqrt().float()


def fit_cost_model(
    inputs: Rows, places: torch.Tensor, costs: torch.Tensor, held_out: torch.Tensor, seed: int = 0, **fit
) -> tuple[CostModel, float]:
    """Fit a [`CostModel`], and keep the state with the lowest loss on held-out steps.

    Args:
        inputs (`torch.Tensor` or [`Rows`] of shape `(steps, features)`): Hidden states and embeddings. The model is
            where these are.
        places (`torch.LongTensor` of shape `(steps,)`): Position of the token in its page.
        costs (`torch.Tensor` of shape `(steps, probes)`): Measured costs in nats.
        held_out (`torch.BoolTensor` of shape `(steps,)`): Steps that the model is not fitted to.
        seed (`int`, *optional*, defaults to 0): Seed of weights and batches.
        fit: `steps` (600), `batch_size` (1024), `learning_rate` (1e-3), `weight_decay` (0.1), and `advance`, a
            function that is called after every step.

    Returns:
        The model, and its loss on the held-out steps: below 1 if the costs can be predicted from the inputs.
    """
    steps, batch_size = fit.get("steps", 600), fit.get("batch_size", 1024)
    peak, decay = fit.get("learning_rate", 1e-3), fit.get("weight_decay", 0.1)
    advance = fit.get("advance", lambda: None)
    fitted, other = (~held_out).nonzero().squeeze(1), held_out.nonzero().squeeze(1)
    device = inputs[fitted[:1]].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = CostModel(SelectedRows(inputs, fitted), costs[fitted], int(places.max()) + 1).to(device)
        optimizer = _optimizer(model, decay)

        def loss_on(rows: torch.Tensor) -> torch.Tensor:
            return model.loss(inputs[rows], places[rows].to(device), costs[rows].to(device))

        best, state = math.inf, model.state_dict()
        for step in range(steps):
            for group in optimizer.param_groups:
                shape = min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
                group["lr"] = peak * group["factor"] * shape
            some = fitted[torch.randint(len(fitted), (batch_size,))]
            optimizer.zero_grad()
            model.train()
            loss_on(some).backward()
            optimizer.step()
            advance()
            if (step + 1) % 50 == 0 or step + 1 == steps:
                model.eval()
                with torch.no_grad():
                    now = sum(loss_on(part).item() * len(part) for part in other.split(CHUNK)) / len(other)
                if now < best:
                    best, state = now, {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval(), best


def _optimizer(model: CostModel, weight_decay: float) -> torch.optim.Optimizer:
    """The parameters per position in a page have a larger learning rate, since their input has no noise."""
    of_places = list(model.place_cost.parameters())
    others = [p for name, p in model.named_parameters() if not name.startswith("place_cost")]
    return torch.optim.AdamW(
        [
            {"params": others, "weight_decay": weight_decay, "factor": 1},
            {"params": of_places, "weight_decay": 0.0, "factor": 10},
        ]
    )


def level_costs(costs: torch.Tensor, probes: Probes, space: ActionSpace) -> list[torch.Tensor]:
    """Costs of all levels of every axis, from those of the probed ones.

    Logarithms of costs are interpolated linearly between probes. Below the smallest one they go on by the same line,
    if it rises. Above the largest probe they decrease linearly, by [`fall_above`]. The cost of the largest level is 0.

    Args:
        costs (`torch.Tensor` of shape `(..., probes)`): Costs of the probes, in nats.
        probes ([`Probes`]): The probes.
        space ([`ActionSpace`]): The levels.

    Returns:
        Per axis a `torch.Tensor` of shape `(..., levels)`.

    Raises:
        ValueError: if an axis has several levels, of which none was probed.
    """
    tables = []
    for number, axis in enumerate(space.axes):
        levels = _spent(space, axis)
        if len(levels.unique()) == 1:
            tables.append(torch.zeros(*costs.shape[:-1], len(levels), device=costs.device))
            continue
        highest = float(levels.max())
        mine = {level: index for index, level in enumerate(probes.levels) if probes.axes[index] == number}
        below = sorted((level, index) for level, index in mine.items() if level < highest - 1e-6)
        if not below:
            raise ValueError(f"No level of {axis.name} was measured: add some to the probes.")
        known = torch.tensor([level for level, _ in below] + [highest], dtype=torch.float64)
        measured = costs[..., [index for _, index in below]].clamp(min=LOWEST_COST).log()
        fall = fall_above(axis, float(known[-1] - known[-2]))
        measured = torch.cat([measured, measured[..., -1:] - fall], dim=-1)
        lower = (torch.searchsorted(known, levels, right=True) - 1).clamp(0, len(known) - 2)
        share = ((levels - known[lower]) / (known[lower + 1] - known[lower])).clamp(max=1).to(measured)
        table = (measured[..., lower] * (1 - share) + measured[..., lower + 1] * share).exp()
        is_below = (levels < known[0]).to(table.device)
        table = torch.where(is_below, table.maximum(measured[..., :1].exp()), table)
        tables.append(torch.where(levels.to(table.device) == levels.max(), 0.0, table))
    return tables


def _spent(space: ActionSpace, axis: Axis) -> torch.Tensor:
    """What the levels of an axis spend, `(levels,)` in ratio units and float64; some may spend the same."""
    return torch.tensor(space.spent[axis.name], dtype=torch.float64) / axis.scale


def fall_above(axis: Axis, distance: float) -> float:
    """By how much the logarithm of the cost falls from the largest probe to the largest level of an axis.

    Args:
        axis ([`Axis`]): The axis. If its levels are whole numbers they are bits, each of which reduces the error.
        distance (`float`): Distance between the two levels, in ratio units.
    """
    return FALL_PER_UNIT * (distance * axis.scale) if axis.is_integral else FALL_TO_DENSE


class Allocation:
    """Levels that minimize `cost + price * level`, at the price for which their mean over all steps has a given value.

    Args:
        tables (`Sequence[torch.Tensor]`): Per axis the costs `(steps, levels)` of many steps.
        space ([`ActionSpace`]): The levels.
    """

    def __init__(self, tables: Sequence[torch.Tensor], space: ActionSpace):
        self.levels = [
            torch.tensor(space.spent[axis.name], device=table.device) / axis.scale
            for axis, table in zip(space.axes, tables, strict=True)
        ]
        self.means, self.prices = [], []
        for table, levels in zip(tables, self.levels, strict=True):
            prices = torch.logspace(-5, 3, PRICES, device=table.device)
            means = torch.stack([levels[(table + price * levels).argmin(dim=-1)].mean() for price in prices])
            self.means.append(means.flip(0).cummax(0).values.contiguous())  # ascending
            self.prices.append(prices.log().flip(0).contiguous())

    def choose(self, tables: Sequence[torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
        """Indices of levels `(rows, axes)`, from costs per axis, `(rows, levels)`, and wanted means `(rows, axes)`."""
        prices = self.prices_for(wanted)
        pairs = enumerate(zip(tables, self.levels, strict=True))
        return torch.stack(
            [(table + prices[:, axis, None] * levels).argmin(-1) for axis, (table, levels) in pairs], -1
        )

    def prices_for(self, wanted: torch.Tensor) -> torch.Tensor:
        """Prices `(rows, axes)` in nats per unit of ratio, for which the mean levels are `wanted` `(rows, axes)`."""
        return torch.stack([self._price(axis, wanted[:, axis]) for axis in range(len(self.levels))], dim=-1)

    def _price(self, axis: int, wanted: torch.Tensor) -> torch.Tensor:
        """The price for which the mean level is `wanted`, interpolated; 0 if that is at least the largest level."""
        means, prices = self.means[axis], self.prices[axis]
        upper = torch.searchsorted(means, wanted.contiguous()).clamp(1, len(means) - 1)
        low, high = means[upper - 1], means[upper]
        share = ((wanted - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)
        price = (prices[upper - 1] * (1 - share) + prices[upper] * share).exp()
        return torch.where(wanted >= self.levels[axis].max(), 0.0, price)
