# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What an answer has spent: `metrics.sol` beside the usage of a response."""

from functools import lru_cache
from typing import Any

import torch

from ..cache.sol_cache import SOLCache
from ..costs.compute_costs import ComputeCosts
from ..decoding.options import DecodeOptions
from ..decoding.outputs import realised_means
from ..modeling_sol import SOLForCausalLM
from .row import Row


CONTEXT_STEP = 64
"""Contexts are rounded up to multiples of it, so that their costs are computed once."""


class Spending:
    """Counts what rows spend on a model.

    Args:
        model ([`SOLForCausalLM`]): The model.
    """

    def __init__(self, model: SOLForCausalLM):
        self._model = model
        self._costs = lru_cache(maxsize=64)(self._costs_of)

    def of_row(self, row: Row, index: int, cache: SOLCache | None, rows: int) -> dict[str, Any]:
        """The metrics of a row that has ended.

        Args:
            row ([`Row`]): The row.
            index (`int`): Its place in the batch.
            cache ([`SOLCache`], *optional*): With the steps of the batch as executed; `None` if all were dense.
            rows (`int`): Rows of the batch.
        """
        space, options = self._model.action_space, row.settings.options
        realised, share = torch.tensor(space.dense), 1.0
        if cache is not None and row.tokens:
            trace = cache.trace[: len(row.tokens)]
            actions = torch.stack([action[index] for action, _ in trace])[None]
            counted = torch.stack([flag[index] for _, flag in trace])[None]
            realised = realised_means(actions, counted, cache.action_space)[0].cpu()
            share = self._bytes_share(actions.cpu(), len(row.ids), options)
        found: dict[str, Any] = {
            "requested": _requested(row),
            "realised": dict(zip(space.axis_names, realised.tolist(), strict=True)),
            "net_keep": float((realised / space.scales.cpu()).mean()),
        }
        if options.compute_unit is not None:
            found["compute_unit"] = options.compute_unit
        if not options.lossless:
            found["bytes_share"] = share
        return found | {"batch_rows": rows, "waited_seconds": round(row.waited, 4)}

    def _bytes_share(self, actions: torch.Tensor, context: int, options: DecodeOptions) -> float:
        """Bytes that the steps `(1, steps)` read over those of dense ones, with policy and refresh, as of one row."""
        length, steps = self._model.config.episode_length, actions.shape[1]
        rounded = -(-context // CONTEXT_STEP) * CONTEXT_STEP
        costs = self._costs(rounded, options.bits_backend, options.kv_refresh)
        whole = actions[:, : max(1, steps // length) * length].reshape(-1, min(length, steps))
        counted = costs.per_token(whole, with_policy=options.controller is None)
        return counted["bytes_per_token"] / counted["dense_bytes_per_token"]

    def _costs_of(self, context: int, bits_backend: str, kv_refresh: bool | str) -> ComputeCosts:
        return ComputeCosts.of(self._model, context, bits_backend, kv_refresh)


def _requested(row: Row) -> dict[str, float]:
    budget = row.settings.options.budget
    if budget is None:
        return {}
    return {axis: float(getattr(budget, axis)) for axis in sorted(budget.controlled)}
