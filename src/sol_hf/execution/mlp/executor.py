# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Base class of the executors of the MLP axes: the parts of every MLP of the base that carry an axis out."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import ClassVar

from transformers import PreTrainedModel

from ...cache.sol_cache import SOLCache
from ...errors import UnsupportedAxisError
from ..executors import AxisExecutor, Change
from ..step_part import StepPart
from .discovery import find_sites
from .sites import MLPPart


class MLPExecutor(AxisExecutor):
    """Replaces the forward of the module of every MLP at which the axis applies.

    Args:
        base (`PreTrainedModel`): The base.

    Class attributes:
        axis (`str`): The axis.
    """

    axis: ClassVar[str]

    def __init__(self, base: PreTrainedModel):
        self.sites = find_sites(base)
        try:
            self._own = tuple(site.part(self.axis) for site in self.sites)
        except UnsupportedAxisError as error:
            start = f"The axis `{self.axis}` cannot be controlled on {type(base).__name__}"
            raise UnsupportedAxisError(f"{start}: {error}") from error
        titles = zip(self._own, self.sites, strict=True)
        self._parts: dict[Hashable, str] = {part: site.title_of(self.axis) for part, site in titles}

    def changes(self) -> Iterable[Change]:
        return [Change(part.change_name, part.module, part.install) for part in self._own]

    def parts(self, cache: SOLCache) -> Mapping[Hashable, str]:
        return self._parts

    def layers(self, cache: SOLCache) -> Sequence[int]:
        return sorted({site.layer for site in self.sites})

    @property
    def step_parts(self) -> Sequence[StepPart | MLPPart]:
        return self._own
