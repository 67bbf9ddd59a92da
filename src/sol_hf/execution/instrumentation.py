# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Puts hooks and attention twin on a base while at least one generation runs, and takes them off after the last.

One [`Instrumentation`] exists per base, whatever number of wrappers and threads use it; it counts who is inside. What
bases have in common, as modules or a config, is changed once for all of them.
"""

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterable

from torch import nn
from transformers import PreTrainedModel

from ..cache.sol_cache import SOLCache
from ..errors import UnsupportedAxisError
from ..kernels.cuda import triton_support
from ..selection.rule import SelectionRule
from .attention.interface import register_attention
from .attention.support import check_attention
from .cuda_graphs import check_capture
from .linear import StepLinear
from .lm_head import capture_hidden_state
from .mlp.discovery import find_mlps
from .mlp.elastic_mlp import ElasticMLP
from .norm import StepNorm
from .shared_changes import change_once, is_changed


_INSTRUMENTATIONS: "weakref.WeakKeyDictionary[nn.Module, Instrumentation]" = weakref.WeakKeyDictionary()


_REGISTRY_LOCK = threading.Lock()


class Instrumentation:
    """Re-entrant, thread-safe context in which a base obeys the step plans of its callers.

    Args:
        base (`PreTrainedModel`): The frozen base model.
    """

    def __init__(self, base: PreTrainedModel):
        self._base = weakref.ref(base)
        self._changes = contextlib.ExitStack()
        self._head = base.get_output_embeddings()
        self._config = base.config.get_text_config(decoder=True)
        if self._head is None:
            raise UnsupportedAxisError(f"{type(base).__name__} has no output embeddings, so no hidden state to read.")
        self._mlps: tuple[ElasticMLP, ...] = ()
        self.unsupported: dict[str, UnsupportedAxisError] = {}
        try:
            self._mlps = tuple(ElasticMLP.of(mlp) for mlp in find_mlps(base))
        except UnsupportedAxisError as error:
            self.unsupported.update(mlp_keep=error, bits=error)
        try:
            check_attention(base)
        except UnsupportedAxisError as error:
            self.unsupported.update(token_keep=error)
        self._lock = threading.Lock()
        self._inside = 0

    def require(self, axes: Iterable[str]) -> None:
        """Raise [`UnsupportedAxisError`] if the base cannot be controlled on one of `axes`."""
        for axis in axes:
            if axis in self.unsupported:
                raise self.unsupported[axis]

    def require_int8(self) -> None:
        """Raise [`UnsupportedAxisError`] if the MLPs cannot run in int8."""
        for mlp in self._mlps:
            mlp.int8_copy()

    def require_graphs(self, cache: SOLCache, rule: SelectionRule) -> None:
        """Raise a ValueError if forwards of the base over a cache of this kind cannot run from CUDA graphs."""
        base = self._base()
        assert base is not None, "an instrumentation is only reached through its base"
        if base.device.type not in triton_support.DEVICES:
            raise ValueError(f"`cuda_graphs=True` needs a GPU, but the base is on {base.device}.")
        check_capture(base, cache, rule)

    @property
    def copied_bytes(self) -> int:
        """Memory of the copies of MLP weights that fast paths and int8 have made."""
        return sum(mlp.nbytes for mlp in self._mlps)

    def drop_copies(self) -> None:
        """Free the copies of MLP weights; they are made again when they are needed."""
        for mlp in self._mlps:
            mlp.drop_copies()

    def require_cache(self, cache: SOLCache, axes: list[str], kv_refresh: bool | str) -> None:
        """Raise [`UnsupportedAxisError`] if the cache has no layer to read sparsely, or one cannot be rolled back."""
        name = type(self._base()).__name__
        if "token_keep" in axes and not cache.sparse_layers:
            raise UnsupportedAxisError(
                f"The axis `token_keep` cannot be controlled on {name}: none of its cache layers holds all keys."
            )
        if kv_refresh and not cache.is_croppable:
            kinds = sorted({type(layer).__name__ for layer in cache.layers if not layer.is_croppable})
            raise UnsupportedAxisError(
                f"The axes {', '.join(axes)} cannot be controlled on {name} with a KV refresh: {', '.join(kinds)} "
                "cannot be rolled back. Pass `kv_refresh=False`."
            )

    @classmethod
    def of(cls, base: PreTrainedModel) -> "Instrumentation":
        """The one instrumentation of `base`."""
        with _REGISTRY_LOCK:
            if base not in _INSTRUMENTATIONS:
                _INSTRUMENTATIONS[base] = cls(base)
            return _INSTRUMENTATIONS[base]

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
                self._remove()

    def _install(self) -> None:
        base = self._base()
        assert base is not None, "an instrumentation is only reached through its base"
        try:
            if "token_keep" not in self.unsupported:
                self._hold("attention", self._config, self._exchange_attention)
            for module in base.modules():
                if module.training or is_changed("training", module):
                    self._hold("training", module, functools.partial(_stop_training, module))
            for mlp in self._mlps:
                self._hold("forward", mlp.module, mlp.install)
            for linear in StepLinear.all_of(base):
                self._hold("linear", linear.module, linear.install)
            for norm in StepNorm.all_of(base):
                self._hold("norm", norm.module, norm.install)
            self._hold("head", self._head, self._watch_head)
        except BaseException:
            self._remove()
            raise

    def _hold(self, name: str, thing: object, make: Callable[[], Callable[[], object]]) -> None:
        self._changes.callback(change_once(name, thing, make))

    def _remove(self) -> None:
        self._changes.close()

    def _exchange_attention(self) -> Callable[[], None]:
        config, own = self._config, self._config._attn_implementation
        config._attn_implementation = register_attention(own)
        return lambda: setattr(config, "_attn_implementation", own)

    def _watch_head(self) -> Callable[[], None]:
        return self._head.register_forward_pre_hook(capture_hidden_state).remove


def _stop_training(module: nn.Module) -> Callable[[], None]:
    module.training = False
    return lambda: setattr(module, "training", True)
