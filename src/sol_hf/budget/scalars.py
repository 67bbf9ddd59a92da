# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The scalar inputs of a policy before a step, and their columns.

With the published three axes:

    column   0          1               2 3 4            5 6 7                  8
             progress   controllable    target of axis   drift from target      page fill
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class ScalarColumns:
    """Columns of [`Observation.scalars`], for an action space with a given number of axes.

    Args:
        axes (`int`): Number of axes.
    """

    axes: int

    @property
    def progress(self) -> slice:
        """The share of the episode that is finished after this step; one column."""
        return slice(0, 1)

    @property
    def targets(self) -> slice:
        """The target of every axis."""
        return slice(2, 2 + self.axes)

    @property
    def drift(self) -> slice:
        """The mean so far minus the target, of every axis."""
        return slice(2 + self.axes, 2 + 2 * self.axes)

    @property
    def page_fill(self) -> int:
        """How full the page of the token to process will be; also the number of columns before it."""
        return 2 + 2 * self.axes
