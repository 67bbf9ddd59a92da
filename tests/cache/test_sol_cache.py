# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Caches whose rows share the prefix of their block."""

import pytest
import torch

from support.cases import prompts, sol_model


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral"])
def test_a_cache_knows_that_it_was_fanned_out(family):
    model = sol_model(family)
    cache = model.new_cache()
    model(prompts(), past_key_values=cache)
    fanned = cache.fan_out(3, torch.zeros(2, 32))
    assert fanned.is_fanned_out and not cache.is_fanned_out
