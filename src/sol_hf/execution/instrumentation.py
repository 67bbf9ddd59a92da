# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Changes a base while at least one generation under a budget runs, and undoes all changes after the last.

There is one [`Instrumentation`] per base, however many wrappers and threads use it. It counts the running generations.
Objects that several bases share, such as modules or a config, are changed once for all of them: see
`shared_changes.py`. Dense calls do not use it: see `watch.py`.
"""

import threading
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

from torch import nn
from transformers import PreTrainedModel

from ..cache.sol_cache import SOLCache
from ..errors import UnsupportedAxisError
from ..kernels.cuda import triton_support
from ..selection.rule import SelectionRule
from .cuda_graphs import check_capture
from .executors import AxisExecutor, Change
from .inventory import Inventory
from .linear.step_linear import StepLinear
from .norm import StepNorm
from .shared_changes import change_once
from .stack.stack import forget_programs
from .step_part import StepPart
from .watch import stop_training, watch_head


_INSTRUMENTATIONS: "weakref.WeakKeyDictionary[nn.Module, Instrumentation]" = weakref.WeakKeyDictionary()
_REGISTRY_LOCK = threading.Lock()


class Instrumentation:
    """Re-entrant, thread-safe context in which a base carries out the step plans of its callers.

    Args:
        base (`PreTrainedModel`): The frozen base model.
    """

    def __init__(self, base: PreTrainedModel):
        self._base = weakref.ref(base)
        self._inventory = Inventory(base)
        self._undo: dict[tuple[str, int], Callable[[], object]] = {}
        self._lock = threading.RLock()
        self._inside = 0

    @classmethod
    def of(cls, base: PreTrainedModel) -> "Instrumentation":
        """The one instrumentation of `base`."""
        with _REGISTRY_LOCK:
            if base not in _INSTRUMENTATIONS:
                _INSTRUMENTATIONS[base] = cls(base)
            return _INSTRUMENTATIONS[base]

    @classmethod
    def at_start(cls, base: PreTrainedModel) -> "Instrumentation":
        """The one instrumentation of `base`, for a call that begins: modules that were replaced are found anew."""
        instrumentation = cls.of(base)
        instrumentation.look_again()
        return instrumentation

    def look_again(self) -> None:
        """Find the parts of the base anew if its modules or configs have changed.

        If generations are running in other threads, new parts are changed now; their own plans keep the old parts.
        """
        with self._lock:
            if not self._inventory.is_current():
                self._inventory = Inventory(self.base)
                if self._inside:
                    self._install()

    @property
    def base(self) -> PreTrainedModel:
        """The base."""
        base = self._base()
        assert base is not None, "an instrumentation is only used while its base exists"
        return base

    def executor(self, axis: str) -> AxisExecutor:
        """The executor of an axis on this base.

        Raises:
            UnsupportedAxisError: if the axis has none, or cannot be controlled on this base.
        """
        return self._inventory.executor(axis)

    def unsupported(self, axis: str) -> UnsupportedAxisError | None:
        """The reason why an axis cannot be controlled on this base, `None` if it can."""
        return self._inventory.unsupported(axis)

    def require(self, axes: Iterable[str], bits_backend: str = "fake", max_plane_bytes: int | None = None) -> None:
        """Raise [`UnsupportedAxisError`] if the base cannot be controlled on one of `axes`, or with this backend.

        Planes of weights are made here, at most `max_plane_bytes` of them.
        """
        for axis in axes:
            self.executor(axis).check_backend(bits_backend, max_plane_bytes)

    def require_cache(self, cache: SOLCache, axes: list[str], kv_refresh: bool | str) -> None:
        """Raise [`UnsupportedAxisError`] if this kind of cache does not allow an axis, or cannot be rolled back."""
        name = type(self.base).__name__
        for axis in axes:
            self.executor(axis).check_cache(cache, name)
        if kv_refresh and not cache.is_croppable:
            kinds = sorted({type(layer).__name__ for layer in cache.layers if not layer.is_croppable})
            raise UnsupportedAxisError(
                f"The axes {', '.join(axes)} cannot be controlled on {name} with a KV refresh: {', '.join(kinds)} "
                "cannot be rolled back. Pass `kv_refresh=False`."
            )

    def require_graphs(self, cache: SOLCache, rule: SelectionRule) -> None:
        """Raise a ValueError if forwards of the base over a cache of this kind cannot run from CUDA graphs."""
        if self.base.device.type not in triton_support.DEVICES:
            raise ValueError(f"`cuda_graphs` needs a GPU, but the base is on {self.base.device}.")
        check_capture(self.base, cache, rule)

    def parts(self, cache: SOLCache, bits_backend: str = "fake") -> dict[str, Mapping[Hashable, str]]:
        """The parts that carry out each axis, for all axes of the cache's action space that can be controlled."""
        axes = (axis for axis in cache.action_space.axis_names if self.unsupported(axis) is None)
        return {axis: self.executor(axis).parts_under(bits_backend, cache) for axis in axes}

    @property
    def step_parts(self) -> list[StepPart]:
        """The parts that replace a module's forward, each once, also if it carries out several axes."""
        return self._inventory.step_parts

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copies of weights that fast paths, int8 and nested planes have made."""
        return sum(part.nbytes for part in self.step_parts)

    def drop_copies(self) -> None:
        """Free the copies of weights; they are made again when they are needed."""
        forget_programs(self.base)
        for part in self.step_parts:
            part.drop_copies()

    def __enter__(self) -> "Instrumentation":
        with self._lock:
            if self._inside == 0:
                self.look_again()
                self._install()
            self._inside += 1
        return self

    def __exit__(self, *exception) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo_down_to(0)

    def _install(self) -> None:
        """Make all changes that are not in force yet; none of them if one fails."""
        before = len(self._undo)
        try:
            for change in self._needed_changes():
                key = change.name, id(change.thing)
                if key not in self._undo:
                    self._undo[key] = change_once(change.name, change.thing, change.make)
        except BaseException:
            self._undo_down_to(before)
            raise

    def _undo_down_to(self, number: int) -> None:
        while len(self._undo) > number:
            self._undo.popitem()[1]()

    def _needed_changes(self) -> Iterator[Change]:
        base, inventory = self.base, self._inventory
        yield from stop_training(base)
        executors = list(inventory.executors())
        for linear in StepLinear.all_of(base):  # before the changes of executors, which may wrap them
            yield Change("linear", linear.module, linear.install)
        for norm in StepNorm.all_of(base):
            yield Change("norm", norm.module, norm.install)
        for executor in executors:
            yield from executor.changes()
        yield watch_head(inventory.head)
