# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`base.generate(custom_generate=POLICY, trust_remote_code=True, token_keep=0.5)`: transformers' way to other loops.

The base stays what it was: it is neither wrapped nor frozen when the call is over.
"""

import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput

from ..configuration_sol import SOLConfig
from ..modeling_sol import SOLForCausalLM
from ..modeling_sol_policy import SOLPolicyModel
from ..stored.files import find_file


_POLICIES: "weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple, SOLPolicyModel]]" = weakref.WeakKeyDictionary()
"""The policy that was last loaded for a base, by repository, revision and times of files."""


def generate_under_policy(
    base: PreTrainedModel,
    repository: str | os.PathLike,
    location: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> ModelOutput | torch.LongTensor:
    """One call of `generate` of a base, under the policy of a repository.

    Args:
        base (`PreTrainedModel`): A causal LM that the policy fits.
        repository (`str` or `os.PathLike`): Repository or folder of the policy.
        location (`Mapping[str, Any]`): `revision`, `token` and other Hub arguments for the policy.
        arguments (`Mapping[str, Any]`): Those of [`SOLForCausalLM.generate`]; `None` stands for one not given.

    Raises:
        ValueError: if the model has a policy already, the policy does not fit it, or a budget cannot be met.
    """
    if base.config.model_type == SOLConfig.model_type:
        raise ValueError(
            "This model has a policy already: call its `generate` without `custom_generate`, or load the base alone "
            "with AutoModelForCausalLM."
        )
    with _as_it_was(base):
        model = _model(base, str(repository), location)
        return model.generate(**{name: value for name, value in arguments.items() if value is not None})


def _model(base: PreTrainedModel, repository: str, location: Mapping[str, Any]) -> SOLForCausalLM:
    """The base under the policy, which is loaded once; from a folder, again when its files have changed."""
    known = _POLICIES.setdefault(base, {})
    files = sorted(Path(repository).iterdir()) if os.path.isdir(repository) else []
    key = (repository, str(sorted(location.items())), *((path, path.stat().st_mtime_ns) for path in files))
    if key not in known:
        model = SOLForCausalLM.from_pretrained(repository, base=base, **location)
        known.clear()
        known[key] = model.policy
        return model
    policy = known[key].to(SOLForCausalLM.policy_device(base))
    model = SOLForCausalLM(policy.config, base, policy).eval()
    path = find_file(repository, GENERATION_CONFIG_NAME, location)
    if path is not None:
        model.generation_config = model.with_stored_options(path)
    return model


@contextmanager
def _as_it_was(base: PreTrainedModel) -> Iterator[None]:
    """A model under a policy freezes its base and takes it out of training; here this is for one call."""
    trained = [parameter for parameter in base.parameters() if parameter.requires_grad]
    training = [module for module in base.modules() if module.training]
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
