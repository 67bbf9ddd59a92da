# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which layers of a base each axis reaches."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..cache.sol_cache import SOLCache
from ..errors import UnsupportedAxisError
from .decoder_layers import layer_count
from .instrumentation import Instrumentation
from .stack.stack import BaseStack


@dataclass(frozen=True)
class Coverage:
    """Which decoder layers each axis reaches on a base; printed, it is a table.

    Args:
        base (`str`): Class of the base.
        layer_count (`int`): Decoder layers of the base.
        layers (`dict[str, tuple[int, ...]]`): Per axis the layers that it reaches.
        reasons (`dict[str, str]`): The reason, for every axis that reaches no layer.
        copied_bytes (`int`, *optional*, defaults to 0): Memory of the copies of weights that were made so far, for
            fast paths, int8 and nested planes. `model.drop_copies()` frees it.
        compiled_steps (`bool`, *optional*): Whether decode steps on the CPU can run as one compiled program; `None` if
            no step has needed to know so far, see [`SOLForCausalLM.warmup`].
        kv_dtype (`str`, *optional*): In which caches keep keys and values, if that is not the dtype of the base.
    """

    base: str
    layer_count: int
    layers: dict[str, tuple[int, ...]]
    reasons: dict[str, str]
    copied_bytes: int = 0
    compiled_steps: bool | None = None
    kv_dtype: str | None = None

    @classmethod
    def of(cls, base: PreTrainedModel, cache: SOLCache) -> "Coverage":
        """The coverage of a base, for the axes of the cache's action space.

        Args:
            base (`PreTrainedModel`): The base.
            cache ([`SOLCache`]): An empty cache for it.
        """
        instrumentation, name = Instrumentation.at_start(base), type(base).__name__
        layers: dict[str, tuple[int, ...]] = {}
        reasons = {}
        for axis in cache.action_space.axis_names:
            try:
                executor = instrumentation.executor(axis)
                executor.check_cache(cache, name)
                layers[axis] = tuple(executor.layers(cache))
            except UnsupportedAxisError as error:
                layers[axis], reasons[axis] = (), str(error)
        count, copied = layer_count(base) or 0, instrumentation.copied_bytes
        kv_dtype = None if cache.kv_dtype is None else str(cache.kv_dtype).removeprefix("torch.")
        return cls(name, count, layers, reasons, copied, BaseStack.is_recognised(base), kv_dtype)

    def __str__(self) -> str:
        width = max(len(axis) for axis in self.layers)
        lines = [f"{self.base}, {self.layer_count} decoder layers"]
        for axis, reached in self.layers.items():
            what = f"{len(reached)} of {self.layer_count} layers: {ranges(reached)}" if reached else "no layer"
            reason = f" ({self.reasons[axis]})" if axis in self.reasons else ""
            lines.append(f"{axis:<{width}}  {what}{reason}")
        if self.compiled_steps is not None:
            way = (
                "one compiled program"
                if self.compiled_steps
                else "the modules of the base, whose structure is another"
            )
            lines.append(f"decode steps on the CPU: {way}")
        if self.kv_dtype is not None:
            lines.append(f"keys and values are kept in {self.kv_dtype}")
        if self.copied_bytes:
            lines.append(f"copies of weights: {self.copied_bytes:,} bytes, which `model.drop_copies()` frees")
        return "\n".join(lines)

    __repr__ = __str__


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text, with ranges shortened: `0-3, 7, 9-10`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)
