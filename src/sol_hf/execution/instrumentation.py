# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Changes a base while at least one generation runs, and undoes all changes after the last.

There is one [`Instrumentation`] per base, however many wrappers and threads use it. It counts the running generations.
Objects that several bases share, such as modules or a config, are changed once for all of them: see
`shared_changes.py`.
"""

import contextlib
import functools
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
from .executors import EXECUTORS, AxisExecutor, Change
from .linear.step_linear import StepLinear
from .lm_head import capture_hidden_state
from .norm import StepNorm
from .shared_changes import change_once, is_changed
from .step_part import StepPart


_INSTRUMENTATIONS: "weakref.WeakKeyDictionary[nn.Module, Instrumentation]" = weakref.WeakKeyDictionary()
_REGISTRY_LOCK = threading.Lock()


class Instrumentation:
    """Re-entrant, thread-safe context in which a base carries out the step plans of its callers.

    Args:
        base (`PreTrainedModel`): The frozen base model.
    """

    def __init__(self, base: PreTrainedModel):
        self._base = weakref.ref(base)
        self._changes = contextlib.ExitStack()
        self._head = base.get_output_embeddings()
        if self._head is None:
            raise UnsupportedAxisError(f"{type(base).__name__} has no output embeddings, so no hidden state to read.")
        self._executors: dict[str, AxisExecutor] = {}
        self._reasons: dict[str, str] = {}
        self._lock = threading.Lock()
        self._inside = 0

    @classmethod
    def of(cls, base: PreTrainedModel) -> "Instrumentation":
        """The one instrumentation of `base`."""
        with _REGISTRY_LOCK:
            if base not in _INSTRUMENTATIONS:
                _INSTRUMENTATIONS[base] = cls(base)
            return _INSTRUMENTATIONS[base]

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
        reason = self._reason_against(axis)
        if reason is not None:
            raise UnsupportedAxisError(reason)
        return self._executors[axis]

    def unsupported(self, axis: str) -> UnsupportedAxisError | None:
        """The reason why an axis cannot be controlled on this base, `None` if it can."""
        reason = self._reason_against(axis)
        return None if reason is None else UnsupportedAxisError(reason)

    def _reason_against(self, axis: str) -> str | None:
        """Message of the error for an axis that cannot be controlled.

        Only the message is kept. An error keeps the frames that it has passed, and with them the base.
        """
        if axis not in EXECUTORS:  # one may be registered later
            return f"The axis `{axis}` has no executor: register one with `register_executor`."
        if axis not in self._executors and axis not in self._reasons:
            try:
                self._executors[axis] = EXECUTORS[axis](self.base)
            except UnsupportedAxisError as error:
                self._reasons[axis] = str(error)
        return self._reasons.get(axis)

    def executors(self) -> Iterator[AxisExecutor]:
        """Executors of all axes that can be controlled on this base."""
        return (self.executor(axis) for axis in EXECUTORS if self.unsupported(axis) is None)

    def require(self, axes: Iterable[str], bits_backend: str = "fake") -> None:
        """Raise [`UnsupportedAxisError`] if the base cannot be controlled on one of `axes`, or with this backend."""
        for axis in axes:
            self.executor(axis).check_backend(bits_backend)

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

    def parts(self, cache: SOLCache) -> dict[str, Mapping[Hashable, str]]:
        """The parts that carry out each axis, for all axes of the cache's action space that can be controlled."""
        axes = (axis for axis in cache.action_space.axis_names if self.unsupported(axis) is None)
        return {axis: self.executor(axis).parts(cache) for axis in axes}

    @property
    def step_parts(self) -> list[StepPart]:
        """The parts that replace a module's forward, each once, also if it carries out several axes."""
        parts = [part for executor in self.executors() for part in executor.step_parts]
        return list({id(part): part for part in parts}.values())

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copies of weights that fast paths and int8 have made."""
        return sum(part.nbytes for part in self.step_parts)

    def drop_copies(self) -> None:
        """Free the copies of weights; they are made again when they are needed."""
        for part in self.step_parts:
            part.drop_copies()

    def __enter__(self) -> "Instrumentation":
        with self._lock:
            if self._inside == 0:
                self._install()
            self._inside += 1
        return self

    def __exit__(self, *exception) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._changes.close()

    def _install(self) -> None:
        try:
            for change in self._needed_changes():
                self._changes.callback(change_once(change.name, change.thing, change.make))
        except BaseException:
            self._changes.close()
            raise

    def _needed_changes(self) -> Iterator[Change]:
        base = self.base
        for module in base.modules():
            if module.training or is_changed("training", module):
                yield Change("training", module, functools.partial(_stop_training, module))
        for executor in self.executors():
            yield from executor.changes()
        for linear in StepLinear.all_of(base):
            yield Change("linear", linear.module, linear.install)
        for norm in StepNorm.all_of(base):
            yield Change("norm", norm.module, norm.install)
        yield Change("head", self._head, self._watch_head)

    def _watch_head(self) -> Callable[[], None]:
        return self._head.register_forward_pre_hook(capture_hidden_state).remove


def _stop_training(module: nn.Module) -> Callable[[], None]:
    module.training = False
    return lambda: setattr(module, "training", True)
