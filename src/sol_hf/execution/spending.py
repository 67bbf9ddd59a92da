# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the levels of an axis spend, where that depends on how the axis is carried out."""

from functools import lru_cache

from ..budget.action_space import ActionSpace
from ..budget.axes import BITS
from ..selection.nested_planes import width_read


@lru_cache(maxsize=16)
def space_under(bits_backend: str, space: ActionSpace) -> ActionSpace:
    """An action space with what its actions spend under a `bits_backend`.

    Under `"nested"`, weights can be read in 4, 5, 6, 8 or all bits: a level between two of these spends the next one.
    """
    if bits_backend != "nested" or BITS.name not in space.levels:
        return space
    return space.spending(BITS.name, lambda level: width_read(level) or BITS.dense)
