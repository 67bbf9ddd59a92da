# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Atomic checkpoints, from which a run can be resumed exactly.

A checkpoint is written to a folder inside `.unfinished`, and moved to its final path when it is complete. If a process
is killed while it writes, there is no incomplete checkpoint. The policy is stored in the format of the Hub. A
checkpoint between the updates on one batch of rollouts contains those rollouts, too.
"""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, rotate_checkpoints
from transformers.utils import PushInProgress

from ..hub import saving as hub
from ..hub.recipe import recipe_of


UNFINISHED = ".unfinished"
TRAINER_STATE = "trainer_state.json"
ROLLOUTS = "rollouts-{rank}.safetensors"
NOT_PUSHED = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*", f"{UNFINISHED}/*"]


class AtomicCheckpoints(Trainer):
    """Mixin of [`SOLGRPOTrainer`]: how its checkpoints are written and loaded."""

    push_in_progress: PushInProgress | None
    _is_writing = False

    def _get_output_dir(self, trial) -> str:
        run = super()._get_output_dir(trial)
        return os.path.join(run, UNFINISHED) if self._is_writing else run

    def _save_checkpoint(self, model, trial) -> None:
        run = Path(self._get_output_dir(trial))
        staged = run / UNFINISHED / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(run / UNFINISHED, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._is_writing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_writing = False
        self._save_rollouts(staged)
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent.name == UNFINISHED:  # in every process: all load the best one
            self.state.best_model_checkpoint = str(run / Path(best).name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(staged, run / staged.name)
            self._push_from_checkpoint(str(run / staged.name))
            rotate_checkpoints(
                output_dir=str(run),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self.accelerator.wait_for_everyone()

    def _publish(self, staged: Path, final: Path) -> None:
        """Move a complete checkpoint to its final path."""
        self.state.save_to_json(str(staged / TRAINER_STATE))
        for path in staged.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if final.exists():  # from an earlier run that was resumed from a step before it
            final.rename(staged.parent / f"replaced-{final.name}")
        staged.rename(final)
        shutil.rmtree(staged.parent)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As in `Trainer`, but after the checkpoint was moved to its final path, and without pickled arguments."""
        args, current = self.args, self.push_in_progress if self.args.push_to_hub else None
        is_busy = current is not None and not current.is_done() and not args.hub_always_push
        if self._is_writing or not args.push_to_hub or is_busy or args.hub_strategy == HubStrategy.END:
            return
        self.callback_handler.on_push_begin(args, self.state, self.control)
        self._save(args.output_dir)
        upload = partial(
            HfApi(token=args.hub_token).upload_folder,
            repo_id=self.hub_model_id,
            revision=args.hub_revision,
            commit_message=f"Training in progress, step {self.state.global_step}",
            run_as_future=True,
        )
        jobs = [upload(folder_path=args.output_dir, ignore_patterns=NOT_PUSHED)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = args.hub_strategy == HubStrategy.CHECKPOINT
            place = "last-checkpoint" if is_last else Path(checkpoint_folder).name
            jobs.append(upload(folder_path=checkpoint_folder, path_in_repo=place))
        self.push_in_progress = PushInProgress(jobs + (current.jobs if current is not None else []))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the policy in the format of the Hub, or its adapter, and the arguments as JSON."""
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self._note_recipe()
        hub.save_policy(self.sol, folder, self.hub_model_id)
        (folder / "training_args.json").write_text(self.args.to_json_string(), encoding="utf-8")

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """Write the card of a policy repository; an existing card is kept."""
        card = Path(self.args.output_dir, hub.CARD_NAME)
        if self.is_world_process_zero() and not card.exists():
            card.parent.mkdir(parents=True, exist_ok=True)
            self._note_recipe()
            hub.build_card(self.sol.config, self.hub_model_id, recipe=self.sol.training_recipe).save(card)

    def _note_recipe(self) -> None:
        """Tell the policy's card how it was made."""
        stage = recipe_of(self.args, updates=self.state.global_step)
        self.sol.training_recipe = {**(self.sol.training_recipe or {}), type(self).__name__: stage}

    def _save_rollouts(self, folder: Path) -> None:
        """Store the batch of rollouts of this process, if there are more updates on it."""
        if self._buffered_inputs is None or self._step % self._steps_per_batch() == 0:
            return
        tensors = {
            f"{number}.{name}": value.clone()
            for number, part in enumerate(self._buffered_inputs)
            for name, value in part.items()
        }
        save_file(tensors, folder / ROLLOUTS.format(rank=self.accelerator.process_index))

    def _steps_per_batch(self) -> int:
        return self.args.steps_per_generation * self.num_iterations

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = json.loads(Path(checkpoint, TRAINER_STATE).read_text(encoding="utf-8"))
        self._step = state["global_step"] * self.args.gradient_accumulation_steps
        path = Path(checkpoint, ROLLOUTS.format(rank=self.accelerator.process_index))
        if self._step % self._steps_per_batch():
            if not path.exists():
                raise ValueError(
                    f"{checkpoint} was written between two updates on one batch of rollouts, but {path.name} is "
                    "missing: resume with the number of processes that wrote it."
                )
            parts: list[dict[str, torch.Tensor]] = [{} for _ in range(self.args.steps_per_generation)]
            for name, value in load_file(path, device=str(self.accelerator.device)).items():
                number, _, key = name.partition(".")
                parts[int(number)][key] = value
            self._buffered_inputs = parts
