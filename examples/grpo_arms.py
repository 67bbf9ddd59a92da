# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""The runs of `compare_grpo.py`: an arm is trained for a time, unless its policy is in the folder."""

import argparse
import time
from pathlib import Path

from transformers import TrainerCallback

import train_grpo
from sol_hf.episodes.stored_files import read_json, write_json


PUBLISHED = {"budget_mode": "soft", "constraint": "penalty", "kl_reward_weight": 0, "gamma": 0.85, "temperature": 1.3}
PUBLISHED |= {"penalty_weights": (100, 100, 200), "entropy_coef": 0.05, "beta": 0, "num_iterations": 1}
PUBLISHED |= {"gradient_accumulation_steps": 4, "learning_rate": 1e-4, "warmup_steps": 0, "max_grad_norm": 2.0}
ARMS = {"start": {"max_steps": 0}, "published": PUBLISHED, "constraint": {}}


class TimeLimit(TrainerCallback):
    """Ends a training after so many seconds of processor time."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = time.process_time() - self.begin >= self.seconds


def train(options: argparse.Namespace, arm: str, seed: int) -> Path:
    """The policy of a run, which is trained unless it is in the folder; an error if that is of another run."""
    folder = options.out / (arm if arm == "start" else f"{arm}-{seed}")
    given = {"train_file": options.train_file, "output_dir": folder, "seed": seed, "max_steps": 100_000}
    given |= {"save_strategy": "no", **({} if options.base is None else {"base": options.base}), **ARMS[arm]}
    arguments = ["--config", options.config, *options.others]
    for name, value in given.items():
        arguments += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    settings, done = {"minutes": options.minutes, "arguments": arguments}, folder / "done.json"
    if done.exists() and read_json(done, f"delete {folder} to run it again")["settings"] != settings:
        raise ValueError(f"{folder} holds a run with other arguments: choose another --out.")
    if done.exists():
        return folder
    trainer = train_grpo.main(arguments, callbacks=[TimeLimit(options.minutes * 60)])
    write_json(done, {"settings": settings, "updates": trainer.state.global_step, "log": trainer.state.log_history})
    return folder
