# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Atomic checkpoints, from which a run can be resumed exactly.

A checkpoint is written to a folder inside `.unfinished`, and moved to its final path when it is complete. If a process
is killed while it writes, there is no incomplete checkpoint. The policy is stored in the format of the Hub. A
checkpoint between the updates on one batch of rollouts contains those rollouts, too. A [`CheckpointRecord`] says what
is in it.
"""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase, Trainer, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy
from transformers.utils import PushInProgress, logging

from ..episodes.step_settings import StepSettings
from ..hub import saving as hub
from ..hub.adapter_saving import load_beneath
from ..hub.owned_files import owned_files
from ..hub.recipe import recipe_of
from ..hub.staging import staged
from ..stored.hub_names import without_paths
from .checkpoint_record import UNFINISHED, CheckpointRecord, next_number, remove_old


logger = logging.get_logger(__name__)

TRAINER_STATE = "trainer_state.json"
ROLLOUTS = "rollouts-{rank}.safetensors"
REFERENCE = "reference.safetensors"
LOCAL_ARGUMENTS = frozenset("output_dir logging_dir run_name resume_from_checkpoint".split())
"""Arguments that are paths of this machine, which are not written; nor are paths in other arguments."""
NOT_PUSHED = ["_*", f"{PREFIX_CHECKPOINT_DIR}-*", f"{UNFINISHED}*"]


class AtomicCheckpoints(Trainer):
    """Mixin of [`SOLGRPOTrainer`]: how its checkpoints are written and loaded."""

    push_in_progress: PushInProgress | None
    sol: Any
    ref_model: torch.nn.Module | None
    num_generations: int
    num_iterations: int
    _step: int
    _buffered_inputs: list[dict[str, torch.Tensor]] | None
    _text_tokenizer: object
    save_multipliers: Callable[[Path], None]
    load_multipliers: Callable[[Path], None]
    _is_writing = False

    def _get_output_dir(self, trial) -> str:
        run = super()._get_output_dir(trial)
        return os.path.join(run, UNFINISHED) if self._is_writing else run

    def _save_checkpoint(self, model, trial) -> None:
        run = Path(self._get_output_dir(trial))
        stage = run / UNFINISHED / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(run / UNFINISHED, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._is_writing = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._is_writing = False
        self._save_rollouts(stage)
        best = self.state.best_model_checkpoint
        if best is not None and Path(best).parent.name == UNFINISHED:  # in every process: all load the best one
            self.state.best_model_checkpoint = str(run / Path(best).name)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self._publish(stage, run / stage.name)
            self._push_from_checkpoint(str(run / stage.name))
            best = self.state.best_model_checkpoint
            keep = [run / stage.name, *([Path(best)] if best is not None else [])]
            remove_old(run, self.args.save_total_limit, keep)
        self.accelerator.wait_for_everyone()

    def _publish(self, stage: Path, final: Path) -> None:
        """Move a complete checkpoint to its final path."""
        if self.ref_model is not None:
            save_file(self._reference_weights(), stage / REFERENCE)
        self.save_multipliers(stage)
        self.state.save_to_json(str(stage / TRAINER_STATE))
        record = CheckpointRecord(
            number=next_number(final.parent),
            forward_passes=self._step,
            processes=self.args.world_size,
            trains_adapter=hasattr(self.sol.policy, "peft_config"),
            can_be_resumed=not self.args.save_only_model,
            batching=self.batching(),
        )
        record.write(stage)
        for path in [*stage.rglob("*"), stage, stage.parent]:
            flush(path)
        if final.exists():  # from an earlier run that was resumed from a step before it
            final.rename(stage.parent / f"replaced-{final.name}")
        stage.rename(final)
        flush(final.parent)
        shutil.rmtree(stage.parent)

    def batching(self) -> dict[str, Any]:
        """Settings that say which blocks are in which batch, in which order, and how their steps are computed."""
        names = "per_device_train_batch_size gradient_accumulation_steps steps_per_generation num_iterations".split()
        names += ["num_generations", "seed", "shuffle_dataset", "context_length"]
        blocks = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        settings = {name: getattr(self.args, name) for name in names} | {"blocks": blocks}
        return settings | StepSettings.of(self.sol).unusual

    def _reference_weights(self) -> dict[str, torch.Tensor]:
        weights = self.accelerator.unwrap_model(self.ref_model).state_dict()
        return {name: weight.detach().cpu().clone() for name, weight in weights.items()}

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
            delete_patterns=list(owned_files()),
        )
        jobs = [upload(folder_path=args.output_dir, ignore_patterns=NOT_PUSHED)]
        if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            is_last = args.hub_strategy == HubStrategy.CHECKPOINT
            place = "last-checkpoint" if is_last else Path(checkpoint_folder).name
            jobs.append(upload(folder_path=checkpoint_folder, path_in_repo=place))
        self.push_in_progress = PushInProgress(jobs + (current.jobs if current is not None else []))

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Write the policy in the format of the Hub, or its adapter, and the arguments as JSON.

        The files replace those of the folder when all of them are whole; a card that is there is kept.
        """
        if not self.args.should_save:
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        if UNFINISHED in folder.parts:  # a checkpoint, which is moved when it is whole
            folder.mkdir(parents=True, exist_ok=True)
            return self._write_policy(folder)
        with staged(folder, owned_files(), keep=(hub.CARD_NAME,)) as stage:
            self._write_policy(stage)

    def _write_policy(self, folder: Path) -> None:
        self._note_recipe()
        tokenizer = self._text_tokenizer if isinstance(self._text_tokenizer, PreTrainedTokenizerBase) else None
        hub.save_policy(self.sol, folder, self.hub_model_id, tokenizer)
        arguments = without_paths({k: v for k, v in self.args.to_dict().items() if k not in LOCAL_ARGUMENTS})
        (folder / "training_args.json").write_text(json.dumps(arguments, indent=2), encoding="utf-8")

    def create_model_card(self, model_name=None, dataset_name=None, tags=None) -> None:
        """Write the card of a policy repository; an existing card is kept."""
        card = Path(self.args.output_dir, hub.CARD_NAME)
        if self.is_world_process_zero() and not card.exists():
            card.parent.mkdir(parents=True, exist_ok=True)
            self._note_recipe()
            stored = dict(
                recipe=self.sol.training_recipe, bits_backend=getattr(self.sol.generation_config, "bits_backend", None)
            )
            hub.build_card(self.sol.config, self.hub_model_id, **stored).save(card)

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

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """As in `Trainer`; with an adapter, also the policy beneath it if the checkpoint has that."""
        model = self.model if model is None else model
        if not isinstance(model, PeftModel):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        model.load_adapter(resume_from_checkpoint, model.active_adapters[0], is_trainable=True)
        load_beneath(model, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        folder, device = Path(checkpoint), str(self.accelerator.device)
        record = CheckpointRecord.read(folder)
        self._step = record.forward_passes
        if self.ref_model is not None:
            self.accelerator.unwrap_model(self.ref_model).load_state_dict(load_file(folder / REFERENCE, device=device))
        if self._step % self._steps_per_batch():
            parts: list[dict[str, torch.Tensor]] = [{} for _ in range(self.args.steps_per_generation)]
            path = folder / ROLLOUTS.format(rank=self.accelerator.process_index)
            for name, value in load_file(path, device=device).items():
                number, _, key = name.partition(".")
                parts[int(number)][key] = value
            self._buffered_inputs = parts
        self.load_multipliers(folder)
        self._find_best(folder)

    def _find_best(self, checkpoint: Path) -> None:
        """The best checkpoint so far is where it was, or beside the one that is resumed if the run was moved."""
        stored = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE))
        if stored.best_model_checkpoint is None or self.state.best_model_checkpoint is not None:
            return
        beside = checkpoint.parent / Path(stored.best_model_checkpoint).name
        if beside.is_dir():
            self.state.best_model_checkpoint = str(beside)
        else:
            logger.warning(f"The best of the evaluations after {checkpoint} counts as the best of the run.")
            self.state.best_metric = self.state.best_global_step = None

    def _issue_warnings_after_load(self, load_result) -> None:
        """Loading a checkpoint into another policy is an error, not a warning."""
        names = [f"missing {name}" for name in load_result.missing_keys]
        names += [f"unexpected {name}" for name in load_result.unexpected_keys]
        if names:
            raise ValueError(
                f"The checkpoint is of another policy than the trainer's: {', '.join(names[:4])}"
                f"{', ...' if len(names) > 4 else ''}. Make the trainer with the policy and `peft_config` of that run."
            )


def flush(path: Path) -> None:
    """Have the operating system write a file, or the names in a folder, to the disk."""
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
