# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compiled code lists the tokens with the largest scores, and of equal scores the first."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf.kernels.cpu import compilation


pytestmark = pytest.mark.skipif(not compilation.loads("numba_tokens"), reason="numba is not installed")


@pytest.fixture(scope="module")
def choose():
    """Lists of the tokens that heads read together, `wanted` in all."""
    import numba

    from sol_hf.kernels.cpu.numba_memory import uint32_at
    from sol_hf.kernels.cpu.numba_token_choice import least_chosen, list_chosen

    @numba.njit
    def run(scores, heads, count, wanted, first, listed, numbers):
        least, ties = least_chosen(uint32_at(scores), heads * count, wanted)
        for head in range(heads):
            at = scores + 4 * head * count
            numbers[head], ties = list_chosen(at, count, least, ties, first, listed + 4 * head * count)

    def chosen(scores, wanted, first):
        heads, count = scores.shape
        listed, numbers = np.full((heads, count), -1, dtype=np.int32), np.zeros(heads, dtype=np.int64)
        run(scores.ctypes.data, heads, count, wanted, first, listed.ctypes.data, numbers)
        return [line[:number].tolist() for line, number in zip(listed, numbers, strict=True)]

    return chosen


@settings(max_examples=150, deadline=None)
@given(
    heads=st.integers(1, 3),
    count=st.integers(1, 70),
    share=st.floats(0, 1),
    first=st.integers(0, 40),
    values=st.sampled_from([[0.0], [0.5, 0.5], [0.0, 1e-30, 0.25, 3.0, np.inf], None]),
    seed=st.integers(0, 1000),
)
def test_the_first_of_equal_scores_are_listed(choose, heads, count, share, first, values, seed):
    random = np.random.default_rng(seed)
    scores = random.random((heads, count)) if values is None else random.choice(values, (heads, count))
    scores = np.ascontiguousarray(scores.astype(np.float32))
    wanted = max(1, round(share * heads * count))
    kept = np.zeros(heads * count, dtype=bool)
    kept[np.argsort(-scores.flatten(), kind="stable")[:wanted]] = True
    expected = [(first + np.flatnonzero(line)).tolist() for line in kept.reshape(heads, count)]
    assert choose(scores, wanted, first) == expected
