# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Cases that broke a promise once, as simple as they were found."""

import pytest

from fuzz.campaign import describe
from fuzz.case import Case
from fuzz.examine import examine


FOUND = {
    "infinite scores": Case(
        budget={"token_keep": 0.5}, controller="infinite", options={"do_sample_actions": True}, turns=(2,)
    ),
    "no number": Case(budget={"token_keep": 0.5}, controller="not a number", options={"do_sample_actions": True}),
    "all ruled out": Case(
        budget={"token_keep": 0.5},
        processor="nothing",
        options={"do_sample_actions": True, "budget_mode": "soft"},
    ),
    "targets that are edited in place": Case(budget={"token_keep": 0.5}, controller="meddler", turns=(6,)),
    "a prompt that is interrupted": Case(budget={"token_keep": 0.5}, interrupt=0.05),
    "a step that is interrupted": Case(budget={"token_keep": 0.5}, turns=(6,), interrupt=0.6),
    "a KV refresh that is interrupted": Case(budget={"token_keep": 0.5}, turns=(8,), interrupt=0.88),
    "a later prompt that is interrupted": Case(
        budget={"token_keep": 0.5}, turns=(4, 4), added=(2,), lengths=(11, 13), interrupt=0.06
    ),
    "a level that is read as the dense one": Case(
        levels={"token_keep": [1.0], "mlp_keep": [0.37], "bits": [9, 16]},
        budget={"mlp_keep": 0.37},
        options={"bits_backend": "nested"},
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name):
    report = examine(FOUND[name])
    assert not report.violations, describe(report)
