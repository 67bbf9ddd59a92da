# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A run that is killed again and again, and resumed each time, until it is over.

    python tests/support/train_until_killed.py FOLDER KIND SEED

Every attempt is a child process that kills itself, without a chance to tidy up, at a drawn event: before an update,
or before or in the middle of an operation on files. Prints how many attempts were killed, and where.
"""

import itertools
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig

from sol_hf.training import checkpoint_record, checkpoints
from sol_hf.training.checkpoint_record import has_checkpoint
from sol_hf.training.grpo_trainer import SOLGRPOTrainer
from support.trainers import blocks, trainer_of


KINDS: dict[str, dict[str, Any]] = {
    "epochs": dict(steps_per_generation=3),
    "stream": dict(steps_per_generation=1),
    "adapter": dict(num_iterations=2, peft_config=LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.3)),
    "reference": dict(beta=0.1, sync_ref_model=True, ref_model_sync_steps=3, steps_per_generation=4),
}
STEPS, MOST_ATTEMPTS = 8, 60


def train(folder: Path, kind: str) -> None:
    torch.set_num_threads(1)
    texts = blocks(22).to_iterable_dataset() if kind == "stream" else blocks(22)
    arguments = dict(max_steps=STEPS, save_strategy="steps", save_steps=1, save_total_limit=2, learning_rate=1e-2)
    trainer = trainer_of(folder, train_dataset=texts, **arguments, **KINDS[kind])
    trainer.train(resume_from_checkpoint=has_checkpoint(folder))
    trainer.save_model()
    trainer.save_state()


def die_at(event: int, reached: int) -> None:
    """Count the events of this process, and kill it at number `event`; the name of the event goes to `reached`."""
    passed = itertools.count(1)

    def counted(owner: Any, name: str, in_the_middle: Callable | None = None) -> None:
        plain = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if next(passed) == event:
                os.write(reached, f"{name} ".encode())
                if in_the_middle is not None:
                    in_the_middle(*args)
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(*args, **kwargs)

        setattr(owner, name, wrapped)

    counted(SOLGRPOTrainer, "training_step")
    counted(torch, "save", lambda value, path: Path(path).write_bytes(b"PK"))
    counted(checkpoints, "save_file", lambda tensors, path: Path(path).write_bytes(b"{"))
    counted(safetensors.torch, "save_file")
    counted(checkpoints, "flush")
    counted(checkpoint_record.CheckpointRecord, "write", lambda self, folder: self_write(folder))
    counted(Path, "rename")
    counted(Path, "replace")
    counted(shutil, "rmtree", lambda folder, *rest: remove_some(Path(folder)))


def self_write(folder: Path) -> None:
    (folder / checkpoint_record.RECORD).write_text('{"number": 1,')


def remove_some(folder: Path) -> None:
    for path in sorted(file for file in folder.rglob("*") if file.is_file())[::2]:
        path.unlink()


def attempt(folder: Path, kind: str, event: int | None, reached: int) -> bool:
    """Train in a child; whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if event is not None:
                die_at(event, reached)
            train(folder, kind)
            code = 0
        finally:
            sys.stdout.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) != 0:
        raise SystemExit(f"An attempt ended with an error; it was to be killed at event {event}.")
    return os.WIFEXITED(status)


def main(folder: str, kind: str, seed: str) -> None:
    draw = random.Random(int(seed))
    reader, writer = os.pipe()
    assert attempt(Path(folder, "whole"), kind, None, writer)
    kills = 0
    while not attempt(Path(folder, "killed"), kind, draw.randint(1, 60), writer):
        kills += 1
        if kills == MOST_ATTEMPTS:
            raise SystemExit(f"The run was not over after {kills} attempts.")
    os.close(writer)
    sys.stdout.write(f"killed {kills} times, at {os.read(reader, 10_000).decode()}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
