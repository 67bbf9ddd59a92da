# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a prompt is: tensors, not a text, a list or the whole output of a tokenizer."""

from collections.abc import Mapping
from typing import Any

import torch


NAMES = ("input_ids", "inputs_embeds", "attention_mask")


def check_prompt_kinds(inputs: Any, arguments: Mapping[str, Any], method: str = "generate") -> None:
    """Raise a ValueError for a prompt that is no tensor.

    Args:
        inputs (`Any`): The first argument of a call.
        arguments (`Mapping[str, Any]`): The others, by their names.
        method (`str`): Name of what was called, for the message.
    """
    for name, value in (("inputs", inputs), *((name, arguments.get(name)) for name in NAMES)):
        if value is None or isinstance(value, torch.Tensor):
            continue
        if isinstance(value, Mapping) or hasattr(value, "input_ids"):  # a BatchEncoding is a UserDict
            raise ValueError(
                f"`{name}` is the whole output of a tokenizer: pass its parts, `{method}(**inputs)` with two stars."
            )
        kind = "a text" if isinstance(value, str) else type(value).__name__
        raise ValueError(
            f"`{name}` must be a tensor, got {kind}: pass `**tokenizer(text, return_tensors='pt')`, or "
            "`torch.tensor([[...]])` with one list of ids per row."
        )
