# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Examples in docstrings: doctest takes the fence that closes one for expected output, so it is removed."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            for example in item.dtest.examples:
                example.want = example.want.removesuffix("```\n")
