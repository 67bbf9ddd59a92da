# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Adapters, and a text under a budget."""

import torch
from peft import LoraConfig

from sol_hf import SOLForCausalLM
from support.cases import HALF, prompts


LORA = LoraConfig(target_modules=["q_proj", "v_proj"])


PROMPT = prompts(rows=2, length=20)


PADDED = torch.tensor([[0] * 7 + [1] * 13, [1] * 20])


def continuation(model: SOLForCausalLM) -> torch.Tensor:
    return model.generate(PROMPT, attention_mask=PADDED, max_new_tokens=8, budget_mode="soft", **HALF)
