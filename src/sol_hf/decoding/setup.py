# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Turns the options of a call into the settings of its steps, with all checks that need no compute."""

import dataclasses
import weakref

from transformers import PreTrainedModel

from ..cache.owner import CacheOwner
from ..cache.paged_layer import PagedLayer
from ..cache.sol_cache import SOLCache
from ..cache.stored_layer import StoredLayer
from ..configuration_sol import SOLConfig
from ..controllers.policy import PolicyController
from ..execution.base_device import compute_device
from ..execution.compiled_modules import check_not_compiled
from ..execution.forked_process import check_fork
from ..execution.instrumentation import Instrumentation
from ..modeling_sol_policy import SOLPolicyModel
from ..selection.kv_dtypes import stored_dtype
from .cache_use import refuse_used
from .controls import DecodeControls
from .options import DecodeOptions


def new_cache(base: PreTrainedModel, config: SOLConfig, kv_dtype: str | None = None) -> SOLCache:
    """An empty [`SOLCache`] for a base and the action space of a policy's config.

    Args:
        base (`PreTrainedModel`): The base.
        config ([`SOLConfig`]): The config.
        kv_dtype (`str`, *optional*): In which the cache keeps keys and values; by default that of the config.

    Raises:
        ValueError: if the base's keys and values cannot be kept in that dtype.
    """
    kv_dtype = kv_dtype or config.kv_dtype
    stored = stored_dtype(kv_dtype, base.dtype)
    cache = SOLCache(base.config, config.action_space, config.page_size, stored)
    if stored is not None and not any(isinstance(layer, StoredLayer) for layer in cache.layers):
        raise ValueError(
            f"`kv_dtype={kv_dtype!r}` has nothing to apply to: {type(base).__name__} has no layers with keys and "
            "values, full or within a window. Leave it out."
        )
    return cache


def check_kv_dtype_of(cache: SOLCache, base: PreTrainedModel, kv_dtype: str | None) -> None:
    """Raise a ValueError if a cache keeps keys and values in another dtype than a call needs."""
    held, needed = cache.kv_dtype or base.dtype, stored_dtype(kv_dtype, base.dtype) or base.dtype
    if held != needed:
        names = [str(dtype).removeprefix("torch.") for dtype in (held, needed)]
        raise ValueError(
            f"The cache keeps keys and values in {names[0]}, but the call needs them in {names[1]}: leave out "
            "`kv_dtype` (and `lossless`, whose text is that of keys in the dtype of the base), or begin with "
            f"`model.new_cache(kv_dtype={names[1]!r})`."
        )


def own_cache(cache: SOLCache, base: PreTrainedModel, config: SOLConfig) -> SOLCache:
    """A cache after a check that it belongs to a model, and is as the last call of that model left it.

    Raises:
        ValueError: if another call uses it, if it belongs to another model, or was changed by something else.
    """
    refuse_used(cache)
    if cache.owner is None:  # made by hand
        sizes = {layer.page_size for layer in cache.layers if isinstance(layer, PagedLayer)}
        if cache.action_space != config.action_space or sizes - {config.page_size}:
            raise ValueError(
                "The cache was made for another action space or page size than the model's: pass `model.new_cache()`."
            )
    settings = dataclasses.asdict(config.selection_rule)
    for name in ("sink_tokens", "window_tokens", "short_text_tokens"):
        del settings[name]  # what is cached does not depend on them
    settings |= {"episode_length": config.episode_length, **config.action_space.levels}
    last = _LAST_BASE.get(cache)
    cache.belong_to(CacheOwner.of(base, settings), is_same_base=last is not None and last() is base)
    _LAST_BASE[cache] = weakref.ref(base)
    cache.check_intact()
    return cache


def controls_for(
    options: DecodeOptions, base: PreTrainedModel, policy: SOLPolicyModel, config: SOLConfig, rows: int
) -> DecodeControls | None:
    """The settings of the decode steps of a call; `None` if the base itself is to run, since all would be dense.

    A call that asks for fast code has decode steps in any case.

    Args:
        options ([`DecodeOptions`]): Options of the call.
        base (`PreTrainedModel`): The frozen base.
        policy ([`SOLPolicyModel`]): The controller, unless the options contain another.
        config ([`SOLConfig`]): Action space, selection rule and episodes.
        rows (`int`): Rows of the input.

    Raises:
        BudgetError: for a budget that no schedule can meet.
        UnsupportedAxisError: if the base cannot be controlled on an axis that the budget sets.
        ValueError: for options that contradict each other or do not fit this base.
        RuntimeError: in a forked process whose threads torch would wait for.
    """
    check_fork()
    budget, space = options.budget, config.action_space
    if budget is not None:
        budget.check(options.spending(space), rows)
    if options.runs_base:
        return None
    check_not_compiled(base)
    if options.controller is None and not options.is_dense:
        policy.warn_if_fresh()
    if options.dial is not None and not options.is_dense:
        horizon = options.budget_horizon if options.budget_mode == "hard" else None
        options.dial.check(base, options.bits_backend, options.kv_refresh, horizon)
    instrumentation = Instrumentation.at_start(base)
    axes = [] if options.is_dense else options.controlled_axes(space)
    instrumentation.require(axes, options.bits_backend, options.max_plane_bytes)
    cache = new_cache(base, config, options.kv_dtype)
    instrumentation.require_cache(cache, axes, bool(axes) and options.kv_refresh)
    if options.cuda_graphs:
        instrumentation.require_graphs(cache, config.selection_rule)
    if options.is_dense:
        return options.dense_controls(config)
    device = compute_device(base)
    if policy.device.type != device.type:
        raise ValueError(f"The policy is on {policy.device}, the base on {device}.")
    controller = options.controller or PolicyController(policy)
    if controller.needs_budget and budget is None:
        raise ValueError(f"{type(controller).__name__} needs a budget.")
    return options.controls(controller, config)


_LAST_BASE: "weakref.WeakKeyDictionary[SOLCache, weakref.ref[PreTrainedModel]]" = weakref.WeakKeyDictionary()
"""The base of the last call over a cache. It is no part of the cache, which can be copied and pickled."""
