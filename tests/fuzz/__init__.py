# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Drawn cases: random calls on random tiny bases, each checked against everything that is promised.

    drawing.py  ->  Case  ->  conversation.py  ->  Conversation  ->  oracles/  ->  violations
    a strategy      data      runs it              what came out     what must hold

`test_fuzz.py` runs 200 cases, `python -m fuzz` (`make fuzz`) thousands. A case prints as the expression that
makes it, so that one which fails can be pasted into `test_found.py`.
"""
