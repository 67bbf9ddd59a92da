# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A sliding-window layer that is written in place keeps what a list of all tokens says."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf.budget.action_space import ActionSpace
from sol_hf.cache.rollback import undone_if_interrupted
from sol_hf.cache.sol_cache import SOLCache
from sol_hf.cache.window_layer import WindowLayer
from support.bases import tiny_base


WINDOW = 6


def tokens(number: int, begin: int = 0, rows: int = 2) -> torch.Tensor:
    """Keys `(rows, 1, number, 2)`, each different."""
    place = torch.arange(begin, begin + number, dtype=torch.float32)
    return (place[:, None] + torch.tensor([0.0, 0.5]) + 100.0 * torch.arange(rows)[:, None, None])[:, None]


def window_layer(growth: int = 5) -> WindowLayer:
    layer = WindowLayer(WINDOW)
    layer.growth_slots = growth
    return layer


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("update"), st.integers(1, 9)),
            st.tuples(st.just("crop"), st.integers(1, 4)),
            st.tuples(st.just("forget"), st.just(0)),
            st.tuples(st.just("copy"), st.just(0)),
            st.tuples(st.just("rows"), st.just(0)),
        ),
        max_size=14,
    )
)
def test_drawn_changes(changes):
    layer, text, kept, made = window_layer(), tokens(0), 0, 0
    layer.update(text, -text)
    for change, number in changes:
        if change == "update":
            new, made = tokens(number, 1000 * made), made + 1
            text, kept = torch.cat([text, new], dim=2), kept + number
            keys, values = layer.update(new, -new)
            seen = text[:, :, -(WINDOW - 1 + number) :]
            assert torch.equal(keys, seen[:, :, -min(kept, seen.shape[2]) :]) and torch.equal(values, -keys)
        elif change == "crop" and kept - number >= min(text.shape[2] - number, WINDOW - 1) and text.shape[2] > number:
            layer.crop(-number)
            text, kept = text[:, :, :-number], kept - number
        elif change == "forget":
            layer.forget()
            kept = min(kept, WINDOW - 1)
        elif change == "copy":
            layer = copy.deepcopy(layer)
        elif change == "rows":
            layer.reorder_cache(torch.tensor([1, 0]))
            text = text[[1, 0]]
        assert layer.get_seq_length() == text.shape[2] and layer.keys.shape[2] == kept
        assert torch.equal(layer.keys, text[:, :, text.shape[2] - kept :]) and torch.equal(layer.values, -layer.keys)


def test_crops_of_more_than_is_kept_are_refused():
    layer = window_layer()
    layer.update(tokens(20), tokens(20))
    layer.crop(-3)
    layer.forget()
    with pytest.raises(ValueError, match="cannot be cropped by 2 tokens"):
        layer.crop(-2)


def test_storage_stays_small_however_long_the_text():
    layer = window_layer()
    layer.update(tokens(500), tokens(500))
    layer.forget()
    assert layer.stores()[0].shape[2] <= WINDOW + layer.growth_slots
    for step in range(200):
        layer.update(tokens(1, step), tokens(1, step))
        if step % 4 == 3:
            layer.forget()
    assert layer.stores()[0].shape[2] <= 2 * (WINDOW + 4 + layer.growth_slots)


@pytest.mark.parametrize("growth", [1, 100])
def test_a_refresh_that_is_interrupted_leaves_the_keys_of_the_steps(growth):
    """Whether the keys after the refresh are written over those before it, or to new storage."""
    base = tiny_base("mistral", sliding_window=WINDOW)
    cache = SOLCache(base.config, ActionSpace((1.0,), (1.0,), (16,)))
    for layer in cache.layers:
        layer.growth_slots = growth
        layer.update(tokens(10), -tokens(10))
    cache.processed = 10
    before = [layer.keys.clone() for layer in cache.layers]
    with pytest.raises(KeyboardInterrupt), undone_if_interrupted(cache) as rollback:
        for _ in range(3):
            rollback.keep_tail(4)
            cache.drop_tokens(4)
            for layer in cache.layers:
                layer.update(tokens(4, 70), -tokens(4, 70))
                layer.forget()
                layer.update(tokens(4, 90), -tokens(4, 90))
        raise KeyboardInterrupt
    for layer, keys in zip(cache.layers, before, strict=True):
        assert layer.get_seq_length() == 10
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, -keys)
