# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Counted bytes and operations, against numbers worked out from the sizes of a tiny model."""

import pytest
import torch

from sol_hf.costs.axis_costs import Weights
from sol_hf.costs.compute_costs import ComputeCosts, keys_read
from sol_hf.selection.nested_planes import plane_bytes
from sol_hf.selection.rule import SelectionRule
from support.bases import FAMILIES, SIZES, tiny_base
from support.cases import ACTIONS, control


WIDTH, INNER, LAYERS, VOCAB = 32, 64, 2, 99
CONTEXT, KEYS = 20, 20 + 3  # episodes of 6 steps see 21..26 keys
MLP = 3 * WIDTH * INNER
ATTENTION = WIDTH * (4 * 8 + 2 * 2 * 8) + 4 * 8 * WIDTH
TOTAL = LAYERS * (MLP + ATTENTION + 2 * WIDTH) + WIDTH + VOCAB * WIDTH + WIDTH
KEY_AND_VALUE = 2 * 2 * 8  # per layer


def test_the_weights_of_a_llama():
    weights = Weights.of(control(tiny_base("llama")))
    assert weights == Weights(
        mlp_input=LAYERS * 2 * WIDTH * INNER,
        mlp_last=LAYERS * WIDTH * INNER,
        mlp=LAYERS * MLP,
        head=VOCAB * WIDTH,
        total=TOTAL,
        itemsize=4,
    )
    assert SIZES["hidden_size"] == WIDTH and SIZES["intermediate_size"] == INNER
    assert Weights.of(control(tiny_base("llama", torch.bfloat16))).itemsize == 2


def test_a_tied_head_is_read_whole():
    tied, untied = (Weights.of(control(tiny_base("llama", tie_word_embeddings=tie))) for tie in (True, False))
    assert tied == untied


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_counted(family):
    model = control(tiny_base(family))
    weights, costs = Weights.of(model), ComputeCosts.of(model, CONTEXT)
    assert weights.mlp >= weights.mlp_input + weights.mlp_last
    assert weights.mlp_input >= LAYERS * WIDTH * INNER and weights.mlp_last == LAYERS * WIDTH * INNER
    assert weights.total < sum(p.numel() for p in model.base.parameters())
    dense = model.action_space.dense_id
    assert float(costs.bytes[dense]) == costs.dense_bytes and float(costs.flops[dense]) == costs.dense_flops
    assert float(costs.bytes.min()) < 0.9 * costs.dense_bytes and float(costs.flops.min()) < 0.9 * costs.dense_flops


def test_a_dense_step_by_hand():
    costs = ComputeCosts.of(control(tiny_base("llama")), CONTEXT)
    assert costs.dense_bytes == 4 * (TOTAL + LAYERS * KEYS * KEY_AND_VALUE)
    assert costs.dense_flops == 2 * TOTAL + LAYERS * 4 * KEYS * 4 * 8
    assert costs.refresh_bytes == costs.refresh_bytes_in_planes
    assert costs.refresh_bytes == pytest.approx((costs.dense_bytes - 4 * VOCAB * WIDTH) / 6)
    assert costs.refresh_flops == pytest.approx(costs.dense_flops - 2 * VOCAB * WIDTH)


@pytest.mark.parametrize("selection, moved", [("head", 16 + 6), ("group", 8 + 6)])
def test_a_sparse_step_by_hand(selection, moved):
    model = control(tiny_base("llama"), selection=selection)
    costs, action = ComputeCosts.of(model, CONTEXT), model.action_space.index(0.2, 0.4, 3)
    skipped = 0.6 * LAYERS * 2 * WIDTH * INNER
    # of 23 keys 5 are wanted: 2 pages of 4, for each of the two heads that share; the index has 6 pages
    kv = LAYERS * moved * KEY_AND_VALUE
    assert float(costs.bytes[action]) == pytest.approx(4 * (TOTAL - skipped + kv))
    nominal = TOTAL - skipped - (LAYERS * MLP - skipped) * 13 / 16
    assert float(costs.nominal_bytes[action]) == pytest.approx(4 * (nominal + kv))
    flops = 2 * (TOTAL - skipped) + LAYERS * (4 * 8 + 2 * 12) * 4 * 8
    assert float(costs.flops[action]) == pytest.approx(flops)


def test_bits_alone_save_nothing_but_nominally():
    model = control(tiny_base("llama"))
    costs, action = ComputeCosts.of(model, CONTEXT), model.action_space.index(*ACTIONS["bits"])
    assert float(costs.bytes[action]) == costs.dense_bytes and float(costs.flops[action]) == costs.dense_flops
    assert float(costs.nominal_bytes[action]) < costs.dense_bytes


def test_planes_and_scales_are_counted():
    model = control(tiny_base("llama"), bits=[5, 7, 9, 16])
    costs, space = ComputeCosts.of(model, CONTEXT, "nested"), model.action_space
    shapes = [(64, 32), (64, 32), (32, 64)], [(32, 32), (16, 32), (16, 32), (32, 32)]
    for level, in_mlps, elsewhere in ((5, 5, 6), (7, 8, 8)):
        planes = LAYERS * sum(plane_bytes(*shape, in_mlps) for shape in shapes[0])
        planes += LAYERS * sum(plane_bytes(*shape, elsewhere) for shape in shapes[1])
        planes += plane_bytes(VOCAB, WIDTH, elsewhere)
        linear = LAYERS * (MLP + ATTENTION) + VOCAB * WIDTH
        action = space.index(1.0, 1.0, level)
        expected = costs.dense_bytes - 4 * linear + planes
        assert float(costs.bytes[action]) == pytest.approx(expected)
        assert float(costs.nominal_bytes[action]) == pytest.approx(expected)
        assert float(costs.flops[action]) == costs.dense_flops
    assert float(costs.bytes[space.index(1.0, 1.0, 9)]) == costs.dense_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_planes_are_smaller_in_every_family(family):
    model = control(tiny_base(family), bits=[4, 6, 8, 16])
    costs, space = ComputeCosts.of(model, CONTEXT, "nested"), model.action_space
    read = [float(costs.bytes[space.index(1.0, 1.0, bits)]) for bits in (4, 6, 8, 16)]
    assert read == sorted(read) and read[0] < read[1] < read[2] < 0.6 * read[3] == 0.6 * costs.dense_bytes


def test_refresh_and_policy_count_where_they_run():
    model = control(tiny_base("llama"))
    space, costs = model.action_space, ComputeCosts.of(model, CONTEXT)
    actions = torch.full((4, 6), space.dense_id)
    dense = costs.per_token(actions, with_policy=False)
    assert dense["refresh_overhead"] == 0 and dense["bytes_per_token"] == dense["dense_bytes_per_token"]
    actions[1, 2] = space.index(*ACTIONS["bits"])
    sparse = costs.per_token(actions, with_policy=True)
    assert sparse["refresh_overhead"] == 0.25
    extra = costs.refresh_bytes / 4 + costs.policy_bytes
    assert sparse["bytes_per_token"] == pytest.approx(dense["bytes_per_token"] + extra)
    assert costs.policy_flops / 2 <= sum(p.numel() for p in model.policy.parameters())


def test_a_refresh_reads_planes_after_steps_that_read_planes():
    model = control(tiny_base("llama"), bits=[5, 8, 9, 16])
    costs, space = ComputeCosts.of(model, CONTEXT, "nested"), model.action_space
    shapes = [(64, 32), (64, 32), (32, 64), (32, 32), (16, 32), (16, 32), (32, 32)]
    planes = LAYERS * sum(plane_bytes(*shape) for shape in shapes)
    others = 4 * (LAYERS * (2 * WIDTH + KEYS * KEY_AND_VALUE) + 2 * WIDTH)
    assert costs.refresh_bytes_in_planes == pytest.approx((planes + others) / 6)
    assert costs.refresh_bytes == pytest.approx((costs.dense_bytes - 4 * VOCAB * WIDTH) / 6)
    actions = torch.full((4, 6), space.index(1.0, 1.0, 9))  # read as 16 bits, so that nothing is lost
    assert costs.per_token(actions, with_policy=False)["refresh_overhead"] == 0
    actions[0, 3] = space.index(1.0, 1.0, 8)  # the refresh would read the same
    assert costs.per_token(actions, with_policy=False)["refresh_overhead"] == 0
    actions[1, 2], actions[2, 2] = space.index(0.2, 1.0, 9), space.index(1.0, 1.0, 5)
    counted = costs.per_token(actions, with_policy=False)
    assert counted["refresh_overhead"] == 0.5
    extra = counted["bytes_per_token"] - float(costs.bytes[actions].mean())
    assert extra == pytest.approx((costs.refresh_bytes + costs.refresh_bytes_in_planes) / 4)


def test_steps_that_read_all_keys_need_no_refresh():
    model = control(tiny_base("llama"), page_size=32)
    costs, short = ComputeCosts.of(model, 80), ComputeCosts.of(model, CONTEXT)
    actions = torch.full((1, 6), model.action_space.index(0.2, 1.0, 16))
    assert short.per_token(actions, with_policy=False)["refresh_overhead"] == 0
    assert costs.per_token(actions, with_policy=False)["refresh_overhead"] == 1


@pytest.mark.parametrize(
    ("criterion", "keep", "expected"),
    [("quest", 0.2, 24), ("quest", 1.0, 100), ("quest", 0.99, 100), ("recency", 0.5, 7 + 47), ("relevancy", 0.5, 54)],
)
def test_keys_read(criterion, keep, expected):
    assert keys_read(SelectionRule(criterion), keep, 100) == expected
