# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The model of a case: a tiny base under a small policy."""

import contextlib
import functools
import json
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from fuzz.case import Case
from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.evaluation.families.tiny_configs import family_base
from support.bases import FAMILIES, tiny_base
from support.cases import SETTINGS
from support.fourth_axis_runs import fourth_axis


@functools.lru_cache(maxsize=256)
def _base(family: str, dtype: str, overrides: str) -> PreTrainedModel:
    if family in FAMILIES:
        base = tiny_base(family, getattr(torch, dtype), **json.loads(overrides))
    else:
        base = family_base(family).to(getattr(torch, dtype))
    return base.requires_grad_(False)


def base_of(case: Case) -> PreTrainedModel:
    """The base of a case. Cases share it, as wrappers share a base: whatever one leaves behind, others find."""
    return _base(case.family, case.dtype, json.dumps(case.base, sort_keys=True))


def model_of(case: Case, base: PreTrainedModel | None = None) -> SOLForCausalLM:
    """A policy with large random weights on the base, in float64, so that rounding does not change its choices."""
    model = SOLForCausalLM.from_base(
        base_of(case) if base is None else base, SOLConfig(**{**SETTINGS, **case.levels, **case.settings})
    )
    generator = torch.Generator().manual_seed(case.seed)
    model.policy.double()
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


@contextlib.contextmanager
def axes_of(case: Case) -> Iterator[None]:
    """Within the block, the axes of a case are registered, and no longer after it."""
    with fourth_axis() if "mlp_noise" in case.levels else contextlib.nullcontext():
        yield
