# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""An evaluation that processes share: `torchrun --nproc_per_node 2 tests/support/evaluate_tiny.py FOLDER`.

Every process writes what it found to a file of its own.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState

from sol_hf.evaluation.policy_evaluation import budgets_within, evaluate_budgets
from support.bases import tiny_base
from support.cases import SETTINGS, control


CONTEXT, BLOCKS, BATCH = 20, 7, 2


def main(folder: str) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    model = control(tiny_base("llama"), budget_prior=True)
    length = CONTEXT + SETTINGS["episode_length"] + 1
    blocks = torch.randint(1, 99, (BLOCKS, length), generator=torch.Generator().manual_seed(0))
    found = evaluate_budgets(model, blocks, CONTEXT, budgets_within(model.action_space), batch_size=BATCH, dense=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    path = Path(folder, f"{state.process_index}.json")
    path.write_text(json.dumps([asdict(evaluation) for evaluation in found]), encoding="utf-8")
    state.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
