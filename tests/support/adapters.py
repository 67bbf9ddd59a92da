# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Adapters, and a text under a budget."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from sol_hf import SOLForCausalLM
from support.cases import HALF, prompts
from support.policy_folders import load


LORA = LoraConfig(target_modules=["q_proj", "v_proj"])


PROMPT = prompts(rows=2, length=20)


PADDED = torch.tensor([[0] * 7 + [1] * 13, [1] * 20])


def continuation(model: SOLForCausalLM) -> torch.Tensor:
    return model.generate(PROMPT, attention_mask=PADDED, max_new_tokens=8, budget_mode="soft", **HALF)


def adapted(folder: Path) -> SOLForCausalLM:
    """The policy in a folder with an adapter that changes what it does."""
    model = load(folder)
    torch.manual_seed(2)
    model.policy = get_peft_model(model.policy, LORA)
    for name, parameter in model.policy.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    model.policy.eval()
    return model
