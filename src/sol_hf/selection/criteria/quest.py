# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The criterion `quest`: pages with the highest upper bound of `q . k` over their keys."""

from typing import ClassVar

import torch

from ..criterion import register_criterion
from ..page_criterion import PageCriterion
from ..pages import split_by_sign
from ..refresh_gain import RefreshGain
from ..rule import SelectionRule


GAIN_WITH_ANCHORS = RefreshGain(((0.1, 0.075), (0.2, 0.022), (0.5, 0.003), (1.0, 0.0)))
"""Measured, see docs/performance.md."""


class Quest(PageCriterion):
    """Reads the pages that may hold the keys with the highest `q . k`.

    The upper bound of a page is the sum over channels of max(q * maximum, q * minimum).
    """

    has_kernels: ClassVar[bool] = True

    def page_queries(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return split_by_sign(query)

    def refresh_gain(self, rule: SelectionRule) -> RefreshGain:
        return GAIN_WITH_ANCHORS if rule.anchor_pages else super().refresh_gain(rule)


register_criterion("quest", Quest())
