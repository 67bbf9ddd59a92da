# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a plan says about the axes, and which parts of the base have carried it out."""

from collections.abc import Hashable, Mapping
from functools import cached_property

import torch

from ..errors import PlanNotExecutedError
from ..selection.nested_planes import width_read


Parts = Mapping[str, Mapping[Hashable, str]]
"""Per axis the parts of a base that carry it out: the key of each for `mark_done`, and its name for messages."""


class AxisPlan:
    """Base class of [`StepPlan`] and [`RefreshPlan`].

    Attributes:
        levels (`Mapping[str, torch.Tensor]`): Per axis that is not dense for all rows the levels `(rows,)`, in axis
            units, on the device.
        backend (`str`): `"reference"`, `"fast"`, or `"auto"` for the one that is expected to be the fastest.
        bits_backend (`str`): `"fake"` quantizes MLP outputs and back, `"int8"` multiplies in int8 at 8 bits and below,
            `"nested"` reads the weights of all linear layers in that many bits.
        parts (`Parts`): The parts that have to carry out each axis; those of axes that are left out are not checked.
        done (`dict[str, set[Hashable]]`): The parts that have carried out each axis.
    """

    levels: Mapping[str, torch.Tensor]
    backend: str
    bits_backend: str
    parts: Parts
    done: dict[str, set[Hashable]]

    @cached_property
    def reads_planes(self) -> bool:
        """Whether linear layers read planes of their weights."""
        return self.bits_backend == "nested" and "bits" in self.levels

    @cached_property
    def widths(self) -> tuple[int | None, ...]:
        """The bits of a weight that every row reads, `None` for the original weights; read by the host."""
        return tuple(width_read(bits) for bits in self.levels["bits"].tolist())

    def mark_done(self, axis: str, part: Hashable) -> None:
        """Record that a part carries out an axis."""
        self.done.setdefault(axis, set()).add(part)

    def check_done(self) -> None:
        """Raise [`PlanNotExecutedError`] if a part of a planned axis did not carry it out; the message names them."""
        planned = [axis for axis in self.levels if axis in self.parts]
        if all(self.parts[axis].keys() <= self.done.get(axis, frozenset()) for axis in planned):
            return
        left = {
            axis: [name for part, name in self.parts[axis].items() if part not in self.done.get(axis, ())]
            for axis in planned
        }
        raise PlanNotExecutedError({axis: names for axis, names in left.items() if names})
