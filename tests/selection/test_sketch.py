# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Keys in a few bits, and the criterion that ranks tokens by them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selection.test_criteria import padding_of, problems, ranks_read, select
from sol_hf import SOLConfig
from sol_hf.selection.criterion import CRITERIA
from sol_hf.selection.rule import SelectionRule
from sol_hf.selection.sketch import INDEX_BITS, bytes_per_key, channel_means, decode, encode, pack, unpack
from support.naive_criteria import naive_sketch


BITS = st.sampled_from(list(INDEX_BITS))


@given(bits=BITS, dim=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_codes_are_packed_without_loss(bits, dim, seed):
    top = 2 ** (bits - 1) - 1
    codes = torch.randint(-top, top + 1, (2, 3, 5, dim), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes.to(torch.int8), bits)
    assert packed.dtype == torch.uint8 and packed.shape == (2, 3, 5, bytes_per_key(dim, bits))
    assert torch.equal(unpack(packed, bits, dim).long(), codes)


@pytest.mark.parametrize(("bits", "size"), [(2, 16), (3, 24), (4, 32), (8, 64)])
def test_a_key_takes_its_bits(bits, size):
    assert bytes_per_key(64, bits) == size


@given(bits=BITS, seed=st.integers(0, 10**6), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_decoded_key_is_within_half_a_step(bits, seed, dtype):
    keys = torch.randn(2, 3, 20, 8, generator=torch.Generator().manual_seed(seed)).to(dtype)
    mean = channel_means(keys, torch.tensor([0, 4]), torch.tensor([20, 16]))
    codes, scale = encode(keys, mean, bits)
    error = (decode(codes, scale) + mean - keys.float()).abs()
    assert scale.dtype == dtype
    slack = 1e-5 if dtype == torch.float32 else 2 ** (bits - 1) / 128  # the scale itself is rounded
    assert (error <= scale.float()[..., None] * (0.5 + slack)).all()


def test_means_are_those_of_the_first_tokens_of_each_row():
    keys = torch.arange(24.0).view(2, 1, 12, 1)
    mean = channel_means(keys, torch.tensor([0, 5]), torch.tensor([3, 4]))
    assert mean.flatten().tolist() == [1.0, 12 + 6.5]


@settings(max_examples=100, deadline=None)
@given(problem=problems("sketch", dims=(8,)))
def test_sketch_is_the_naive_one(problem):
    query, keys, counts, keep, rule = problem
    padding = padding_of(keys, counts)
    selection = select(query, keys, padding, padding, keep, rule)
    for row, count in enumerate(counts):
        alone = keys[row, :, keys.shape[2] - count :]
        assert ranks_read(selection, row, counts) == naive_sketch(query[row, :, 0], alone, keep[row], rule)


@pytest.mark.parametrize(("selection", "heads"), [("head", 6), ("group", 2)])
def test_every_head_reads_its_share(selection, heads):
    query, keys, zero = torch.randn(1, 6, 1, 8), torch.randn(1, 2, 50, 8), torch.tensor([0])
    chosen = select(query, keys, zero, zero, [0.4], SelectionRule("sketch", selection=selection))
    assert chosen.in_use.sum(dim=-1).tolist() == [[20] * heads]


def test_the_heads_of_a_layer_share_their_number():
    torch.manual_seed(0)
    query, keys, zero = torch.randn(1, 6, 1, 8) * 40, torch.randn(1, 2, 50, 8), torch.tensor([0])
    query[:, :3] /= 1000  # the first key-value head does not care, so the second reads more
    read = ranks_read(select(query, keys, zero, zero, [0.4], SelectionRule("sketch", selection="layer")), 0, [50])
    assert len(read[0]) + len(read[1]) == 40 and len(read[0]) > 20 > len(read[1])
    assert all({0, 1, 2, 3, 46, 47, 48, 49} <= keys_of for keys_of in read)


def test_costs_count_the_whole_index():
    rule, criterion = SelectionRule("sketch", index_bits=4), CRITERIA["sketch"]
    cost = criterion.cost(rule, 0.1, 1000, 3)
    assert (cost.attended, cost.scored, cost.index_bits, cost.index_values) == (100, 1000, 4000, 1000)
    assert cost.moved == 300 and criterion.cost(SelectionRule("sketch", selection="layer"), 0.1, 1000, 3).moved == 100
    assert criterion.keys_read(rule, 0.01, 100) == 8, "sink and window are read in any case"
    dense = criterion.cost(rule, 1.0, 1000, 3)
    assert (dense.moved, dense.index_bits) == (1000, 0)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="`index_bits` must be one of 2, 3, 4, 8, got 5"):
        SOLConfig(criterion="sketch", index_bits=5)
    with pytest.raises(ValueError, match="`selection` must be one of head, group with the criterion `quest`"):
        SOLConfig(selection="layer")
    assert SOLConfig(criterion="sketch", selection="layer", index_bits=2).selection_rule.index_bits == 2
