# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Criteria as another package would register them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sol_hf.selection.channels import kept_count
from sol_hf.selection.criterion import CRITERIA, Criterion, register_criterion
from sol_hf.selection.page_criterion import PageCriterion
from sol_hf.selection.ranking import top_ranked
from sol_hf.selection.rule import Selection


class LongKeys(Criterion):
    """Reads the step's own key, and the longest of the others, the same for the query heads of a group."""

    heads_may_differ = False

    def select(self, candidates, token_keep, rule):
        keys, first_key = candidates.keys, candidates.first_key
        slot = torch.arange(candidates.slots, device=keys.device)
        length = keys.norm(dim=-1).masked_fill((slot < first_key[:, None])[:, None], -torch.inf)
        length[..., -1] = torch.inf
        order, in_use = top_ranked(length, kept_count(token_keep, candidates.slots - first_key))
        return Selection(order - candidates.page_origin[:, None, None], in_use)


class MiddlePages(PageCriterion):
    """Reads the pages whose middle, halfway between maximum and minimum, has the highest product with the query."""

    def page_queries(self, query):
        return query / 2, query / 2


@contextmanager
def registered(name: str, criterion: Criterion) -> Iterator[None]:
    """A criterion is known within the block, and no longer after it."""
    register_criterion(name, criterion)
    try:
        yield
    finally:
        CRITERIA.unregister(name)
