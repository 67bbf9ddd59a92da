# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""A callback of trainers that saves the policy at equal intervals of processor time, and then ends the training."""

import time
from pathlib import Path

from transformers import TrainerCallback


SNAPSHOTS = 3


class Snapshots(TrainerCallback):
    """Saves the policy at equal intervals of time, and ends the training when the time is over.

    Args:
        folder (`Path`): Gets one folder per snapshot, named by the milliseconds since the start.
        seconds (`float`): Total time from now on.
    """

    def __init__(self, folder: Path, seconds: float):
        self.folder, self.seconds, self.start = folder, seconds, time.process_time()
        self.marks = [seconds * (number + 1) / SNAPSHOTS for number in range(SNAPSHOTS)]

    def save(self, model) -> None:
        """Save the policy now."""
        model.save_pretrained(self.folder / f"{1000 * (time.process_time() - self.start):09.0f}")

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Save the policy before GRPO."""
        self.save(model)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Save when a mark has passed, stop after the last."""
        passed = [mark for mark in self.marks if time.process_time() - self.start >= mark]
        if passed:
            self.marks = self.marks[len(passed) :]
            self.save(model)
        control.should_training_stop = not self.marks
