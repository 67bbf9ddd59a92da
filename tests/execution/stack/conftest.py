# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures of the tests of compiled steps."""

import pytest

from sol_hf.decoding import compiled_step


@pytest.fixture
def ran(monkeypatch):
    """What the steps that ran as programs have returned."""
    found, own = [], compiled_step.run_step

    def run(*arguments):
        output = own(*arguments)
        if output is not None:
            found.append(output)
        return output

    monkeypatch.setattr(compiled_step, "run_step", run)
    return found
