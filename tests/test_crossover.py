# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The choice by measured times works in any gradient mode, whichever mode it first ran in."""

import torch

from sol_hf import crossover


def test_a_first_call_in_inference_mode_does_not_spoil_later_ones(monkeypatch):
    monkeypatch.setattr(crossover, "MORE_THAN_CACHES_HOLD", 1024)
    monkeypatch.setattr(crossover, "_FASTEST", {})
    crossover._spare_memory.cache_clear()
    ways = {"a": lambda: 1, "b": lambda: 1}
    try:
        with torch.inference_mode():
            assert crossover.run_fastest("first", ways, cold=True) == 1
        assert crossover.run_fastest("second", ways, cold=True) == 1
    finally:
        crossover._spare_memory.cache_clear()
