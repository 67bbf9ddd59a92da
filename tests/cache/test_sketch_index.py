# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The index of single tokens is the one that a fresh layer of the same text has, whatever was done to the layer."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cache.test_paged_layer import OPERATIONS, Pair
from sol_hf.cache import sketch_index
from sol_hf.cache.paged_layer import PagedLayer
from sol_hf.selection.sketch import MOST_IN_MEAN, channel_means, encode


def expected(keys: torch.Tensor, first: int, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of one row without its padding, with the mean over a power of two of its tokens, at most 64."""
    alone = keys[None, :, first:]
    tokens = max(power for power in (1, 2, 4, 8, 16, 32, 64) if power <= alone.shape[2])
    return encode(alone, channel_means(alone, torch.tensor([0]), torch.tensor([tokens])), bits)


@settings(max_examples=150, deadline=None)
@given(
    padding=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    prefill=st.integers(1, 90),
    bits=st.sampled_from([2, 3, 4, 8]),
    operations=st.lists(st.one_of(OPERATIONS, st.tuples(st.just("assert_index"), st.just(0))), max_size=12),
)
def test_the_index_is_that_of_a_fresh_layer(padding, prefill, bits, operations):
    pair = Pair(4, padding, seed=prefill)
    pair.update(max(padding) + prefill)
    for name, argument in [*operations, ("update", 1)]:
        getattr(pair, name)(argument)
        layer, known = pair.paged, (min(pair.padding), max(pair.padding))
        index = layer.sketch(bits, torch.tensor(pair.padding), known)
        codes = index.codes(layer.keys.shape[-1])
        for row, first in enumerate(pair.padding):
            wanted, scale = expected(layer.keys[row], first, bits)
            assert torch.equal(codes[row, :, first:], wanted[0])
            assert torch.equal(index.scale[row, :, first : layer.length], scale[0])


def filled(tokens: int, seed: int = 0) -> PagedLayer:
    layer, generator = PagedLayer(8), torch.Generator().manual_seed(seed)
    layer.update(*(torch.randn(2, 2, tokens, 8, generator=generator) for _ in range(2)))
    return layer


def step(layer: PagedLayer, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    layer.update(*(torch.randn(2, 2, 1, 8, generator=generator) for _ in range(2)))
    return layer.sketch(4, torch.zeros(2, dtype=torch.long), (0, 0)).codes(8)


def test_an_index_is_made_again_after_loading():
    layer = filled(20)
    step(layer, 1)
    copied, loaded = copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))
    expected = step(layer, 2)
    assert torch.equal(step(copied, 2), expected) and torch.equal(step(loaded, 2), expected)
    assert len(pickle.dumps(layer)) < 1.2 * len(pickle.dumps(filled(22)))


@pytest.mark.parametrize(("tokens", "is_kept"), [(70, True), (40, True), (31, False)])
def test_codes_are_made_again_only_if_the_mean_has_changed(tokens, is_kept):
    layer = filled(tokens - 1)
    step(layer, 1)
    index = layer._sketch
    index.packed[:, :, :10] = 0
    step(layer, 2)
    assert layer._sketch is index and bool((index.packed[:, :, :10] == 0).all()) is is_kept
    assert (index.packed[:, :, tokens] != 0).any()


def test_keys_of_the_mean_that_are_written_again_make_another_one():
    layer = filled(20)
    step(layer, 1)
    layer.keys[:, :, 3] += 5
    layer.index_again(3)
    assert torch.equal(step(layer, 2), step(copy.deepcopy(layer), 3)[:, :, :-1])


def test_means_look_at_the_first_tokens_only(monkeypatch):
    """In a long text, to go through all keys would take as long as several steps."""
    seen = []

    def means(keys, *further):
        seen.append(keys.shape[2])
        return channel_means(keys, *further)

    monkeypatch.setattr(sketch_index, "channel_means", means)
    layer = PagedLayer(4)
    layer.update(*torch.randn(2, 2, 3, 900, 8))
    found = layer.sketch(4, torch.tensor([0, 9]), (0, 9))
    assert seen == [MOST_IN_MEAN + 9]
    for row, first in enumerate((0, 9)):
        codes, _ = expected(layer.keys[row], first, 4)
        assert torch.equal(found.codes(8)[row, :, first:], codes[0])
