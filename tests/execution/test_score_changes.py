# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention over selected keys with soft caps and sinks: that of transformers' eager functions over the same keys."""

from types import SimpleNamespace

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as with_soft_cap
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as with_sinks

from sol_hf.execution.attention.grouped_queries import attend_grouped
from sol_hf.execution.attention.score_changes import ScoreChanges, attend


ROWS, HEADS, KV_HEADS, KEYS, DIM = 2, 6, 2, 9, 8


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64) * 3


@pytest.mark.parametrize("change", ["soft cap", "sinks"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_changed_scores_are_those_of_eager_attention(change, dtype):
    query, key, value = drawn(ROWS, HEADS, 1, DIM), drawn(ROWS, KV_HEADS, KEYS, DIM), drawn(ROWS, KV_HEADS, KEYS, 5)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    selected = drawn(ROWS, 1, 1, KEYS) > 0
    selected[..., -1] = True
    mask = torch.zeros(selected.shape, dtype=dtype).masked_fill(~selected, -1e30)
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, sinks=drawn(HEADS).to(dtype), training=False)
    if change == "sinks":
        changes = ScoreChanges(sinks=module.sinks)
        expected, _ = with_sinks(module, query, key, value, mask, 0.3)
    else:
        changes = ScoreChanges(soft_cap=1.5)
        expected, _ = with_soft_cap(module, query, key, value, mask, scaling=0.3, softcap=1.5)
    masked = attend_grouped(query, key, value, selected, 0.3, changes)
    grouped = query.view(ROWS, KV_HEADS, HEADS // KV_HEADS, DIM)
    gathered = attend(grouped, key, value, selected, 0.3, changes).view(ROWS, 1, HEADS, -1)
    for found in (masked, gathered):
        torch.testing.assert_close(found, expected, atol=0.1 if dtype == torch.bfloat16 else 1e-6, rtol=0)


def test_bases_without_changes_run_as_before():
    assert ScoreChanges.of({"scaling": 2.0, "softcap": None}).is_none
    assert not ScoreChanges.of({"softcap": 30.0}).is_none and not ScoreChanges.of({"s_aux": drawn(2)}).is_none
