# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A short warmup that processes share: `torchrun --nproc_per_node 2 tests/support/warm_up_tiny.py FOLDER`.

Every process writes the policy that it ends with to `FOLDER/RANK.safetensors`.
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file

from sol_hf.training.warmup import CounterfactualWarmup
from sol_hf.training.warmup_config import CounterfactualWarmupConfig
from support.bases import tiny_base
from support.cases import control


SETTINGS = dict(
    warmup_blocks=23,
    warmup_context_length=12,
    warmup_steps_per_block=12,
    warmup_token_keep=[0.2],
    warmup_mlp_keep=[0.4],
    warmup_bits=[3],
    warmup_updates=6,
    warmup_episodes=8,
    warmup_cost_models=2,
    warmup_practice_rounds=1,
    warmup_practice_episodes=8,
)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    torch.manual_seed(0)
    model = control(tiny_base("llama", torch.float32), observe_page_fill=True)
    starter = CounterfactualWarmup(model, CounterfactualWarmupConfig(warmup_dir=f"{folder}/measured", **SETTINGS))
    starter.run(torch.randint(3, 99, (23, starter.block_length), generator=torch.Generator().manual_seed(2)))
    save_file(model.policy.state_dict(), Path(folder, f"{state.process_index}.safetensors"))


if __name__ == "__main__":
    main(*sys.argv[1:])
