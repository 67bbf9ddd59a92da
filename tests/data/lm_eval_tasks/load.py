# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Load the tiny tasks from the files beside this one."""

from functools import partial
from pathlib import Path

from datasets import load_dataset


def load(name, **kwargs):
    return load_dataset("json", data_files={"test": str(Path(__file__).parent / f"{name}.jsonl")})


tiny_choices = partial(load, "tiny_choices")
tiny_texts = partial(load, "tiny_texts")
