# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Takes back a forward that was interrupted, so that the cache is what it was before.

An interruption can come at any point: Ctrl-C, memory that runs out, an error in a hook. Layers that are written to in
place are treated as follows; for all others it suffices to keep what they referred to.

    a step appends        its slots lie after the restored length, and are written again later
    storage grows         what was stored is in the larger storage, too: see [`PagedLayer.mark`]
    a refresh overwrites  the keys and values of the episode are copied first, see [`Rollback.keep_tail`]
    rows are moved        the storage before is kept until all layers are done
    layers without crop   cannot be restored: the cache is not used again
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from transformers import Cache

from .paged_layer import PagedLayer
from .stored_layer import StoredLayer


class Rollback:
    """What a cache was before a forward. While the forward runs without an error, nothing is copied but references.

    Args:
        cache ([`SOLCache`]): The cache.
        moves_rows (`bool`, *optional*, defaults to `False`): Whether rows are moved in the storage of layers.
    """

    def __init__(self, cache: Cache, moves_rows: bool = False):
        self._cache: Any = cache
        self._moves_rows = moves_rows
        self._layers: list[tuple[Any, Any]] = [
            (layer, layer.mark() if self._marks(layer) else dict(vars(layer))) for layer in cache.layers
        ]
        self._state = dict(vars(cache))
        self._trace = len(cache.trace)
        self._ledger, self._episode = dict(vars(cache.ledger)), dict(vars(cache.episode))
        self._steps = list(cache.episode.steps)
        self._controller = {name: _kept(value) for name, value in cache.episode.controller_state.items()}
        self._tails: list[tuple[StoredLayer, int, torch.Tensor, torch.Tensor]] = []

    def _marks(self, layer: object) -> TypeGuard[PagedLayer]:
        return isinstance(layer, PagedLayer) and not self._moves_rows

    def keep_tail(self, number: int) -> None:
        """Copy the last `number` keys and values, which are about to be dropped and overwritten."""
        for layer in self._cache.layers:
            if isinstance(layer, StoredLayer) and number:
                keys, values = layer.keys[:, :, -number:].clone(), layer.values[:, :, -number:].clone()
                self._tails.append((layer, layer.get_seq_length() - number, keys, values))

    def restore(self) -> None:
        """Give the cache back the state that it had.

        Layers that cannot be restored make the cache unusable, see [`SOLCache.check_intact`].
        """
        cache = self._cache
        changed = [(layer, state) for layer, state in self._layers if not layer.is_croppable]
        for layer, state in self._layers:
            layer.take_back(state) if self._marks(layer) else _reset(layer, state)
        for layer, token, keys, values in self._tails:
            layer.write_back(token, keys, values)
        for layer, _ in self._layers:
            if isinstance(layer, PagedLayer):
                begins = [layer.slot_of(token) for owner, token, *_ in self._tails if owner is layer]
                layer.index_again(min([layer.length, *begins]))
        _reset(cache, self._state)
        del cache.trace[self._trace :]
        _reset(cache.ledger, self._ledger)
        controller_state = {name: _given_back(value) for name, value in self._controller.items()}
        _reset(cache.episode, {**self._episode, "steps": self._steps, "controller_state": controller_state})
        if changed and cache.get_seq_length():
            cache.broken_layers = sorted({type(layer).__name__ for layer, _ in changed})


@contextmanager
def undone_if_interrupted(cache: Cache, moves_rows: bool = False) -> Iterator[Rollback]:
    """Within the block, a change of a cache that any exception interrupts is taken back; see [`Rollback`]."""
    rollback = Rollback(cache, moves_rows)
    try:
        yield rollback
    except BaseException:
        rollback.restore()
        raise


def _kept(value: Any) -> Any:
    """A controller's state as it is now: tensors may be edited in place, layers of a cache refer to new tensors."""
    if isinstance(value, Cache):
        return value, list(value.layers), [dict(vars(layer)) for layer in value.layers]
    return value.clone() if isinstance(value, torch.Tensor) else value


def _given_back(kept: Any) -> Any:
    if not isinstance(kept, tuple) or not isinstance(kept[0], Cache):
        return kept
    cache, layers, states = kept
    cache.layers = layers
    for layer, state in zip(layers, states, strict=True):
        _reset(layer, state)
    return cache


def _reset(thing: object, state: dict[str, Any]) -> None:
    thing.__dict__.clear()
    thing.__dict__.update(state)
