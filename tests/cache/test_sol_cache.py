# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Caches whose rows share the prefix of their block."""

import pytest
import torch

from sol_hf.execution.plan import StepPlan
from support.cases import prompts, sol_model


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral"])
def test_no_rollout_measures_times(family):
    """Also not where all layers have a sliding window, and nothing can be shared."""
    model = sol_model(family)
    cache = model.new_cache()
    model(prompts(), past_key_values=cache)
    fanned = cache.fan_out(3, torch.zeros(2, 32))
    assert fanned.is_fanned_out and not cache.is_fanned_out
    rule = model.config.selection_rule
    assert StepPlan(cache, rule).is_timed and not StepPlan(fanned, rule).is_timed
