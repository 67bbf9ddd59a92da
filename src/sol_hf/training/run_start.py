# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What is checked before the first update of a run, so that nothing fails or goes wrong after hours of compute.

- No other run writes to the output folder.
- The policy can be saved there, and the disk has room for a checkpoint.
- A checkpoint to go on from is complete, undamaged, and of a run with the same processes.
"""

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..episodes.step_settings import HOW
from ..stored.folder_lock import folder_lock
from .checkpoint_record import UNFINISHED, CheckpointRecord, newest_checkpoint, put_back
from .checkpoints import REFERENCE, ROLLOUTS


logger = logging.get_logger(__name__)


class CheckedStart(Trainer):
    """Mixin of [`SOLGRPOTrainer`]: `train` with checks before, and none of it after the last update."""

    sol: Any
    beta: float
    batching: Callable[[], dict[str, Any]]
    _steps_per_batch: Callable[[], int]

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """Train, as in `Trainer`. What could fail at the first checkpoint is tried before.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): A checkpoint to go on from; `True` for the complete
                one that was written last to `output_dir`.
            args: For `Trainer.train`.
            kwargs: For `Trainer.train`.

        Raises:
            FolderInUseError: if another run writes to the same `output_dir`.
            ValueError: if a file of the checkpoint is missing or damaged, or it is of a run with other processes.
            OSError: if `output_dir` cannot be written to, or its disk has no room for a checkpoint.
        """
        run, writes = Path(self.args.output_dir), self.args.should_save
        with contextlib.ExitStack() as stack:
            self._in_all(lambda: stack.enter_context(folder_lock(run)) if writes else None)
            self._in_all(lambda: put_back(run) if writes else None)
            self._in_all(lambda: self._try_saving(run) if writes else None)
            checkpoint = self._in_all(lambda: self._checked_checkpoint(run, resume_from_checkpoint))
            return super().train(checkpoint, *args, **kwargs)

    def _in_all(self, action: Callable[[], Any]) -> Any:
        """Run an action in every process. An error in one is an error in all, so that none waits for it."""
        result, error = None, None
        try:
            result = action()
        except Exception as raised:
            error = raised
        failed = [message for message in gather_object([str(error) if error else None]) if message]
        if error is not None:
            raise error
        if failed:
            raise RuntimeError(failed[0])
        return result

    def _try_saving(self, run: Path) -> None:
        """Write the policy, as for a checkpoint, and remove it."""
        trial = run / UNFINISHED / "trial"
        try:
            self._save(str(trial))
            written = sum(path.stat().st_size for path in trial.rglob("*") if path.is_file())
            free = shutil.disk_usage(run).free
        except OSError as error:
            raise OSError(
                f"The policy cannot be saved in {run} ({error}): make room there, or choose another `output_dir`."
            ) from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"The policy cannot be saved in {run}, mend this first: {error}") from error
        finally:
            shutil.rmtree(run / UNFINISHED, ignore_errors=True)
        trained = sum(weight.numel() * weight.element_size() for weight in self.model.parameters())
        needed = written + 2 * trained  # the optimizer keeps two numbers per weight
        if free < needed:
            raise OSError(
                f"A checkpoint needs about {needed / 1e6:,.0f} MB, but the disk of {run} has {free / 1e6:,.0f} MB "
                "left: make room there, or choose another `output_dir`."
            )

    def _checked_checkpoint(self, run: Path, wanted: str | bool | None) -> str | None:
        """The checkpoint to go on from, after a look at all of its files."""
        if wanted is None or wanted is False:
            return None
        folder = newest_checkpoint(run) if wanted is True else Path(wanted)
        if folder is None:
            raise ValueError(f"There is no complete checkpoint in {run}: train without `resume_from_checkpoint`.")
        if not folder.is_dir():
            raise ValueError(f"There is no checkpoint {folder}: check the path, or give `True` for the newest one.")
        record = CheckpointRecord.read(folder)
        self._check_kind(folder, record)
        if self.args.should_save or self.args.world_size == 1:
            record.check_files(folder)
        self._check_batching(folder, record)
        return str(folder)

    def _check_kind(self, folder: Path, record: CheckpointRecord) -> None:
        if not record.can_be_resumed:
            raise ValueError(
                f"{folder} was written with `save_only_model`, so it has no state of the optimizer: start a new run "
                "from the policy in it."
            )
        if record.processes != self.args.world_size:
            raise ValueError(
                f"{folder} is of a run with {record.processes} processes, this one has {self.args.world_size}: launch "
                "as many, or start a new run from the policy in it."
            )
        adapter = hasattr(self.sol.policy, "peft_config")
        if record.trains_adapter != adapter:
            kinds = ("a policy", "an adapter")
            raise ValueError(
                f"{folder} is of a run that trained {kinds[record.trains_adapter]}, this one trains {kinds[adapter]}: "
                "make the trainer with the `peft_config` of that run."
            )
        if self.beta and REFERENCE not in record.files:
            raise ValueError(
                f"{folder} is of a run with `beta` 0, so it has no reference policy: leave `beta` at 0, or start a "
                "new run from the policy in it."
            )

    def _check_batching(self, folder: Path, record: CheckpointRecord) -> None:
        now = self.batching()
        before = record.batching
        names = [*now, *(name for name in HOW if name in before and name not in now)]
        changed = [name for name in names if before.get(name) != now.get(name)]
        other = [f"`{name}` ({_or_default(before, name)} → {_or_default(now, name)})" for name in changed]
        if not other:
            return
        if any(name.startswith(ROLLOUTS.partition("{")[0]) for name in record.files):
            raise ValueError(
                f"{folder} was written between two updates on one batch of rollouts, and this run has other settings: "
                f"{', '.join(other)}. Use those of that run, or start a new run from the policy in it."
            )
        logger.warning(
            f"The run that wrote {folder} had other settings: {', '.join(other)}. It goes on with the new ones, but "
            "not as it would have gone on without a stop."
        )

    def get_batch_samples(self, *args, **kwargs):
        """As in `Trainer`; nothing if the run has ended, which a run that is resumed may have."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)


def _or_default(settings: Mapping[str, Any], name: str) -> Any:
    """A setting of a run; those of `HOW` are only stored where they are not the defaults."""
    return settings.get(name, "the default" if name in HOW else None)
