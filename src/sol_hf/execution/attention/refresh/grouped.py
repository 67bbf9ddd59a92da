# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention in plain torch. Unlike that of many bases, it does not copy the keys for every query head."""

import functools
from typing import ClassVar

from ...dispatch import Implementation, Prepared
from ..grouped_queries import attend_grouped
from .operation import REFRESH_ATTENTION, RefreshAttention


class Grouped(Implementation[RefreshAttention]):
    """One call of torch's scaled dot product attention per layer."""

    order: ClassVar[int] = 0

    def prepare(self, call: RefreshAttention) -> Prepared | None:
        if (mask := call.group_mask) is None:
            return None
        return functools.partial(attend_grouped, call.query, call.key, call.value, mask, call.scaling)


REFRESH_ATTENTION.register("grouped", Grouped())
