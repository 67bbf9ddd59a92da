# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Short hashes of models and texts, by which the results of one run are told from those of another."""

import hashlib
import json
from typing import Any

import torch
from transformers import PreTrainedConfig


SAMPLED = 256
NOT_COMPUTED_WITH = (
    "_name_or_path",
    "name_or_path",
    "base_model_name_or_path",
    "base_model_revision",
    "base_fingerprint",
    "_commit_hash",
    "transformers_version",
    "sol_hf_version",
    "calibration",
)
"""Values of a config that say where files are from, or what was measured, and do not change what is computed."""
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprint(module: torch.nn.Module) -> str:
    """A hash of a module's parameters: names, shapes, types, some numbers of each, and the sum of the bit patterns.

    Sums of whole numbers do not depend on the order, and so not on the number of threads. Of parameters that are
    offloaded only names, shapes and types count.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        if parameter.device.type == "meta" or not parameter.numel():
            continue
        flat = parameter.detach().flatten()
        places = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat)), dtype=torch.float64).long()
        some = flat[places.to(flat.device)].cpu().view(torch.uint8)
        digest.update(some.numpy().tobytes())
        digest.update(str(int(flat.view(WORDS[flat.element_size()]).sum(dtype=torch.int64))).encode())
    return digest.hexdigest()[:16]


def config_fingerprint(config: PreTrainedConfig) -> str:
    """A hash of all values of a config that change what is computed."""
    values = {name: value for name, value in config.to_dict().items() if name not in NOT_COMPUTED_WITH}
    return value_fingerprint(values)


def value_fingerprint(value: Any) -> str:
    """A hash of a value that consists of plain types; others count by their text."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def text_fingerprint(tokens: torch.Tensor) -> str:
    """A hash of token ids `(blocks, length)`."""
    shape = str(tuple(tokens.shape)).encode()
    return hashlib.sha256(shape + tokens.long().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def first_token(tokens: torch.Tensor) -> int | None:
    """The token that all blocks `(blocks, length)` begin with, such as BOS; `None` if they differ in it."""
    first = tokens[:, 0].unique()
    return int(first[0]) if len(first) == 1 else None
