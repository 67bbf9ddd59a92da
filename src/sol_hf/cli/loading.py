# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The model that a command names: a policy on its base, or a base with the fixed schedule."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from ..budget.axes import AXES
from ..budget.calibration import QUALITY
from ..configuration_sol import SOLConfig
from ..controllers.base import Controller
from ..controllers.fixed import FixedController
from ..integrations.packaged_bases import base_source
from ..modeling_sol import SOLForCausalLM
from ..stored.hub_names import hub_id
from .inputs import load_policy


LEVELS: dict[str, list] = dict(
    token_keep=[0.1, 0.2, 0.3, 0.5, 0.7, 1.0], mlp_keep=[0.5, 0.6, 0.7, 0.8, 0.9, 1.0], bits=[4, 5, 6, 8, 16]
)
"""What a base without a policy can be asked for."""
RULE = dict(criterion="sketch", selection="layer", short_text_tokens=256)
SMALL = dict(policy_hidden_size=4, policy_num_heads=1, action_embedding_size=1)


@dataclass(frozen=True)
class Loaded:
    """A model, and what spends its budgets.

    Args:
        model ([`SOLForCausalLM`]): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        name (`str`): What it is called.
        controller ([`Controller`], *optional*): The fixed schedule, for a base without a policy.
    """

    model: SOLForCausalLM
    tokenizer: PreTrainedTokenizerBase
    name: str
    controller: Controller | None = None


def load_any(source: str, base: str | None = None, dtype: str = "auto", bits_backend: str | None = None) -> Loaded:
    """A policy on its base, or a base.

    Args:
        source (`str`): Folder or Hub id of a policy or of a base, or `smollm2-135m`.
        base (`str`, *optional*): Folder or Hub id of the base of a policy, if it is not the one that it names.
        dtype (`str`, *optional*, defaults to `"auto"`): Of the base.
        bits_backend (`str`, *optional*): How `bits` is computed, where a call does not say so; that which a policy
            has stored by default, `"nested"` for a base.

    Raises:
        ValueError: if there is no such model.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes a moment, and a command says what it does
    folder = base_source(source)
    if not Path(folder).is_dir() and hub_id(folder) is None:
        raise ValueError(f"{source}: there is no such folder, and it is no id of a repository on the Hub.")
    name = source if hub_id(source) is not None and not Path(source).is_dir() else Path(source).name
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if AutoConfig.from_pretrained(folder).model_type == "sol":
        model, tokenizer = load_policy(argparse.Namespace(policy=folder, base=base, dtype=dtype))
        found = Loaded(model.to(device), tokenizer, name)
    else:
        if base is not None:
            raise ValueError(f"{source} is a base, no policy: leave out --base.")
        whole = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        model = SOLForCausalLM.from_base(whole, SOLConfig(**LEVELS, **RULE, **SMALL)).to(device)
        controller = FixedController(carry=list(LEVELS), across_rows=False)
        bits_backend = bits_backend or "nested"
        found = Loaded(model, AutoTokenizer.from_pretrained(folder), name, controller)
    if bits_backend is not None:
        model.generation_config.bits_backend = bits_backend
    return found


def given_budget(**values: float | str | None) -> dict[str, float | str]:
    """The options of a command that were given."""
    found = {name: value for name, value in values.items() if value is not None}
    if "compute" in found:
        found["compute"] = compute_of(str(found["compute"]))
    return found


def compute_of(text: str) -> float | str:
    """A share of dense from `.4`, or a quality from `quality:.02`, which is checked where it is used.

    Raises:
        ValueError: for anything else.
    """
    if text.startswith(f"{QUALITY}:"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no budget: write a share of dense such as `.4`, a quality such as `{QUALITY}:.02`, or axes "
            "such as `token_keep=.5 bits=8`."
        ) from error


def axes_of(text: str) -> dict[str, float | str]:
    """A budget from `token_keep=.5 bits=8`, commas allowed.

    Raises:
        ValueError: for anything else.
    """
    found: dict[str, float | str] = {}
    for part in text.replace(",", " ").split():
        name, equals, value = part.partition("=")
        if not equals or name not in (*AXES, "compute"):
            raise ValueError(f"{part!r} is not part of a budget: write e.g. `.4`, or `token_keep=.5 bits=8`.")
        found[name] = compute_of(value) if name == "compute" else _number(value)
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a number.") from error
