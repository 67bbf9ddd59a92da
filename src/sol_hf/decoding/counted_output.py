# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What an output says of the bytes that a call has read. They are counted when they are asked for."""

from collections.abc import Callable
from typing import Any

import torch


class CountsBytes:
    """Base class of outputs with `bytes_share`."""

    _counting: Any = None

    def count_bytes_by(self, count: Callable[[], torch.Tensor]) -> None:
        """Set how bytes are counted: a function that returns the share of every row, `(rows,)`."""
        object.__setattr__(self, "_counting", count)

    def __getstate__(self) -> dict[str, Any]:
        """The state without what would count, which knows the whole model; a share that was counted stays."""
        return {name: value for name, value in vars(self).items() if name != "_counting" or not callable(value)}

    @property
    def bytes_share(self) -> torch.Tensor | None:
        """The share of the bytes of as many dense steps at its context that every row has read, `(rows,)`.

        KV refreshes and the policy are counted, see [`ComputeCosts`]. `None` after `lossless`, whose drafts and checks
        are not counted, and for an output that was pickled or copied before it was asked.
        """
        if callable(self._counting):
            object.__setattr__(self, "_counting", self._counting())
        return self._counting
