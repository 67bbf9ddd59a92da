# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""By what a base is recognised: its sizes, and a few of its weights.

Two models of equal sizes fit the same policy, but the policy has learned about one of them. The sizes must be equal.
Of the weights, 16 numbers of the input embeddings and 16 of the last layer are compared:

    equal up to rounding       the same weights, in any float dtype
    correlated                 a quantized, fine-tuned or merged copy
    neither                    another model
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..stored.fingerprint import SAMPLE_KEYS, SHAPE_KEYS


logger = logging.get_logger(__name__)

SAMPLES = 16
ROUNDING, RELATED = 0.01, 0.9
"""Largest difference, as a share of the largest number, between equal weights; smallest correlation of a copy's."""


def fingerprint_of(base: PreTrainedModel) -> dict[str, Any]:
    """The fingerprint of a base, as plain numbers.

    Weights that are not plain tensors of floats in memory, such as quantized or sharded ones, are left out.
    """
    config = base.config.get_text_config()
    shape = {key: getattr(config, key, None) for key in SHAPE_KEYS}
    sizes = {key: value if isinstance(value, str | int) else None for key, value in shape.items()}
    samples = dict(zip(SAMPLE_KEYS, _weights_of(base), strict=True))
    return sizes | {name: _sample(weight) for name, weight in samples.items()}


def check_fingerprint_of(base: PreTrainedModel, expected: dict[str, Any] | None, named: str | None) -> None:
    """Compare a base with the fingerprint in a policy's config.

    Args:
        base (`PreTrainedModel`): The base to check.
        expected (`dict`, *optional*): As stored; files of earlier versions have none, and are not checked.
        named (`str`, *optional*): The base that the policy names, for messages.

    Raises:
        ValueError: if a size differs. Weights that differ are a warning.
    """
    if expected is None:
        return
    found, this = fingerprint_of(base), base.config.name_or_path or type(base).__name__
    theirs = f"the base that it was made with{f', {named},' if named else ''}"
    differing = [
        f"`{key}` is {found[key]}, not {expected[key]}"
        for key in SHAPE_KEYS
        if expected.get(key) is not None and found[key] is not None and found[key] != expected[key]
    ]
    if differing:
        raise ValueError(
            f"The policy was made for another base: of {this}, {'; '.join(differing)}. Load {theirs} or pass "
            "`check_base=False`."
        )
    pairs = [(expected.get(key), found[key]) for key in SAMPLE_KEYS]
    kinds = [_compare(left, right) for left, right in pairs if left and right]
    if "other" in kinds:
        logger.warning(
            f"The weights of {this} are those of another model than {theirs}. The policy has not learned about this "
            "model: within a budget, its choices may be no better than random ones. Load the right base, or train a "
            "policy for this one with SOLForCausalLM.from_base."
        )
    elif "related" in kinds:
        logger.warning(
            f"The weights of {this} differ a little from those of {theirs}, as those of a quantized or fine-tuned "
            "copy do. What was measured for the policy may not hold for this copy."
        )


def _weights_of(base: PreTrainedModel) -> Iterator[torch.Tensor | None]:
    """The input embeddings, and the last matrix of the decoder layers."""
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    outer = {id(parameter) for module in (embeddings, head) for parameter in _parameters(module)}
    matrices = [
        parameter
        for name, parameter in base.named_parameters()
        if id(parameter) not in outer and parameter.dim() == 2 and "lora_" not in name
    ]
    yield getattr(embeddings, "weight", None)
    yield matrices[-1] if matrices else None


def _parameters(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())


@torch.no_grad()
def _sample(weight: torch.Tensor | None) -> list[float] | None:
    """Some numbers of a matrix, at places that a longer vocabulary does not move, with 5 digits."""
    if weight is None or type(weight) not in (nn.Parameter, torch.Tensor):
        return None
    if weight.dim() != 2 or not weight.numel() or weight.is_meta or not weight.is_floating_point():
        return None
    rows, columns = min(len(weight), 4096), weight.shape[1]
    row = torch.tensor([(17 + 37 * place) % rows for place in range(SAMPLES)], device=weight.device)
    column = torch.tensor([(5 + 13 * place) % columns for place in range(SAMPLES)], device=weight.device)
    values = weight.detach()[row, column].float().tolist()
    return [float(f"{value:.5g}") for value in values] if all(map(math.isfinite, values)) else None


def _compare(left: list[float], right: list[float]) -> str:
    """Whether two samples are `"equal"`, `"related"` or of `"other"` models."""
    if len(left) != len(right):
        return "other"
    largest = max(map(abs, [*left, *right]))
    if max(abs(a - b) for a, b in zip(left, right, strict=True)) <= ROUNDING * largest:
        return "equal"
    product = sum(a * b for a, b in zip(left, right, strict=True))
    norms = math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))
    return "related" if norms and product / norms >= RELATED else "other"
