# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The paged cache layer: equal to transformers' `DynamicLayer` to the bit, with a page index that is up to date."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from sol_hf.cache.paged_layer import PagedLayer


HEADS, DIM, VALUE_DIM = 2, 3, 5


def naive_page_index(keys: torch.Tensor, page_size: int, padding: list[int]):
    """Maximum and minimum of every page that has keys, by row and page; `keys` is `(rows, heads, length, dim)`."""
    index = {}
    for row, first in enumerate(padding):
        for page, begin in enumerate(range(first, keys.shape[2], page_size)):
            of_page = keys[row, :, begin : begin + page_size]
            index[row, page] = of_page.amax(1), of_page.amin(1)
    return index


def assert_index_is_right(layer: PagedLayer, keys: torch.Tensor, padding: list[int], known: tuple[int, int]) -> None:
    upper, lower = layer.page_index(torch.tensor(padding), known)
    expected = naive_page_index(keys, layer.page_size, padding)
    assert upper.shape == lower.shape == (len(padding), HEADS, upper.shape[2], DIM)
    assert upper.shape[2] > max(page for _, page in expected)
    for (row, page), (most, least) in expected.items():
        assert torch.equal(upper[row, :, page], most), (row, page)
        assert torch.equal(lower[row, :, page], least), (row, page)


class Pair:
    """The layer under test, transformers' own, and the padding of the rows, all going through the same operations."""

    def __init__(self, page_size: int, padding: list[int], seed: int):
        self.paged, self.plain, self.padding = PagedLayer(page_size), DynamicLayer(), padding
        self.known = (min(padding), max(padding))
        self.generator = torch.Generator().manual_seed(seed)

    def update(self, tokens: int) -> None:
        shape = (len(self.padding), HEADS, tokens)
        key = torch.randn(*shape, DIM, generator=self.generator)
        value = torch.randn(*shape, VALUE_DIM, generator=self.generator)
        got, expected = self.paged.update(key, value), self.plain.update(key, value)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))

    def crop(self, tokens: int) -> None:
        # Padding is never cropped away, and transformers' layer does not survive being emptied by a crop.
        tokens = min(tokens, self.plain.get_seq_length() - self.known[1] - 1)
        for layer in (self.paged, self.plain):
            layer.crop(-tokens)

    def rows(self, method: str, argument, chosen: list[int]) -> None:
        for layer in (self.paged, self.plain):
            getattr(layer, method)(argument)
        self.padding = [self.padding[row] for row in chosen]

    def reorder(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(self.padding), (len(self.padding),), generator=generator)
        self.rows("reorder_cache", chosen, chosen.tolist())

    def repeat(self, times: int) -> None:
        if len(self.padding) * times <= 6:
            chosen = [row for row in range(len(self.padding)) for _ in range(times)]
            self.rows("batch_repeat_interleave", times, chosen)

    def select(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = 1 + seed % len(self.padding)
        chosen = torch.randperm(len(self.padding), generator=generator)[:size]
        self.rows("batch_select_indices", chosen, chosen.tolist())

    def reset(self, tokens: int) -> None:
        for layer in (self.paged, self.plain):
            layer.reset()
        assert self.paged.get_seq_length() == self.plain.get_seq_length() == 0
        self.update(self.known[1] + tokens)

    def assert_index(self, _: int = 0) -> None:
        assert_index_is_right(self.paged, self.plain.keys, self.padding, self.known)

    def assert_layers_agree(self) -> None:
        assert torch.equal(self.paged.keys, self.plain.keys)
        assert torch.equal(self.paged.values, self.plain.values)
        assert self.paged.get_seq_length() == self.plain.get_seq_length()
        assert self.paged.get_mask_sizes(3) == self.plain.get_mask_sizes(3)
        assert self.paged.get_max_length() == self.plain.get_max_length()
        keys, values, stride = self.paged.flat_store()
        for row in range(len(self.padding)):
            for head in range(HEADS):
                slot = (row * HEADS + head) * stride + self.paged.length - 1
                assert torch.equal(keys[slot], self.plain.keys[row, head, -1])
                assert torch.equal(values[slot], self.plain.values[row, head, -1])


OPERATIONS = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 12)),
    st.tuples(st.just("update"), st.just(1)),
    st.tuples(st.just("crop"), st.integers(0, 20)),
    st.tuples(st.just("reorder"), st.integers(0, 1000)),
    st.tuples(st.just("repeat"), st.integers(1, 3)),
    st.tuples(st.just("select"), st.integers(0, 1000)),
    st.tuples(st.just("reset"), st.integers(1, 12)),
    st.tuples(st.just("assert_index"), st.just(0)),
    st.tuples(st.just("assert_index"), st.just(0)),
)


@settings(max_examples=300, deadline=None)
@given(
    page_size=st.integers(1, 9),
    padding=st.lists(st.integers(0, 11), min_size=1, max_size=4),
    equal=st.booleans(),
    prefill=st.integers(1, 30),
    operations=st.lists(OPERATIONS, max_size=25),
    seed=st.integers(0, 10**6),
)
def test_any_sequence_of_operations(page_size, padding, equal, prefill, operations, seed):
    pair = Pair(page_size, [padding[0]] * len(padding) if equal else padding, seed)
    pair.update(pair.known[1] + prefill)
    for name, argument in operations:
        getattr(pair, name)(argument)
        pair.assert_layers_agree()
    pair.assert_index()


@pytest.mark.parametrize("page_size", [1, 3, 8])
@pytest.mark.parametrize("padding", [[0, 0], [5, 5], [0, 7]])
def test_index_after_every_single_token(page_size, padding):
    pair = Pair(page_size, padding, seed=0)
    pair.update(max(padding) + 4)
    for _ in range(40):
        pair.assert_index()
        pair.update(1)
    pair.assert_index()


@pytest.mark.parametrize("removed", range(1, 13))
def test_a_cropped_key_no_longer_counts(removed):
    layer = PagedLayer(4)
    keys = torch.zeros(1, 1, 14, 1)
    keys[0, 0, -removed:] = 9.0
    layer.update(keys, keys)
    assert layer.page_index(torch.tensor([0]), (0, 0))[0].max() == 9
    layer.crop(-removed)
    layer.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    assert layer.page_index(torch.tensor([0]), (0, 0))[0].max() == 0


def test_storage_grows_ahead_and_keeps_its_place():
    layer = PagedLayer(8)
    layer.update(torch.randn(1, HEADS, 10, DIM), torch.randn(1, HEADS, 10, VALUE_DIM))
    places = [layer.keys.data_ptr()]
    for _ in range(PagedLayer.growth_slots):
        layer.update(torch.randn(1, HEADS, 1, DIM), torch.randn(1, HEADS, 1, VALUE_DIM))
        places.append(layer.keys.data_ptr())
    assert len(set(places)) == 1
    assert layer.get_seq_length() == 10 + PagedLayer.growth_slots


def test_storage_grows_by_a_quarter_once_it_is_large():
    layer, length = PagedLayer(8), 4 * PagedLayer.growth_slots * 2
    layer.update(torch.randn(1, 1, length, 1), torch.randn(1, 1, length, 1))
    assert layer.flat_store()[2] == length + length // 4


def test_growing_copies_what_is_there():
    layer, plain = PagedLayer(8), DynamicLayer()
    for tokens in (1, PagedLayer.growth_slots + 5, 1, PagedLayer.growth_slots, 700):
        key, value = torch.randn(2, HEADS, tokens, DIM), torch.randn(2, HEADS, tokens, VALUE_DIM)
        layer.update(key, value)
        plain.update(key, value)
    assert torch.equal(layer.keys, plain.keys)
    assert torch.equal(layer.values, plain.values)
    assert_index_is_right(layer, plain.keys, [0, 3], (0, 3))


def test_a_token_moves_no_other_token():
    layer = PagedLayer(8)
    layer.update(torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1))
    view = layer.keys
    layer.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    assert layer.keys.data_ptr() == view.data_ptr()
    assert view.shape[2] == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_is_that_of_the_keys(dtype):
    layer = PagedLayer(2)
    keys, values = layer.update(torch.randn(1, 1, 5, 2).to(dtype), torch.randn(1, 1, 5, 2).to(dtype))
    upper, lower = layer.page_index(torch.tensor([0]), (0, 0))
    assert {keys.dtype, values.dtype, upper.dtype, lower.dtype} == {dtype}


def test_crop_takes_negative_numbers_only():
    layer = PagedLayer(2)
    layer.update(torch.randn(1, 1, 5, 2), torch.randn(1, 1, 5, 2))
    with pytest.raises(ValueError, match="negative number: 3"):
        layer.crop(3)
    layer.crop(0)
    assert layer.get_seq_length() == 5
    layer.crop(-9)
    assert layer.get_seq_length() == 0


def test_operations_before_the_first_update_do_nothing():
    layer = PagedLayer(2)
    layer.crop(-1)
    layer.reorder_cache(torch.tensor([0]))
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([0]))
    assert layer.get_seq_length() == 0
    assert not layer.is_initialized
