# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which families of transformers' causal language models can be controlled: a sweep over tiny random models.

`tiny_configs.py` builds them, `examination.py` tries one, `sweep.py` tries all, and `page.py` writes what was found.
"""
