# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How many tokens a base can process at once as if they came one by one."""

import pytest

from sol_hf.decoding.lossless.reach import NO_LIMIT, Reach
from support.bases import tiny_base


def test_up_to_the_last_position():
    reach = Reach.of(tiny_base("gpt2", max_position_embeddings=40))
    assert [reach.ahead_of(length) for length in (10, 38, 39)] == [29, 1, 0]


def test_not_over_the_length_at_which_embeddings_change():
    reach = Reach(longest=4096, switch=100)
    assert [reach.ahead_of(length) for length in (90, 99, 100, 101)] == [9, 0, 3995, 3994]


def test_not_where_embeddings_change_at_every_token():
    reach = Reach(longest=100, moves_beyond=100)
    assert [reach.ahead_of(length) for length in (90, 99, 100, 500)] == [9, 0, 0, 0]


@pytest.mark.parametrize("kind", ["default", "linear", "llama3"])
def test_embeddings_that_never_change_set_no_limit(kind):
    factors = dict(factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64)
    rope = {"rope_type": kind, "rope_theta": 10_000.0, **({} if kind == "default" else factors)}
    reach = Reach.of(tiny_base("llama", rope_parameters=rope))
    assert reach.switch == reach.moves_beyond == NO_LIMIT
