# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints that are damaged, half-written, moved, of another run, or written while the clock jumps."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sol_hf.training.checkpoint_record import UNFINISHED, newest_checkpoint
from support.adapters import LORA
from support.trainers import losses, trainer_of


SAVING = dict(save_strategy="steps", save_steps=1, max_steps=3, lr_scheduler_type="constant")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with three checkpoints; each is between two updates on one batch of rollouts."""
    folder = tmp_path_factory.mktemp("run")
    trainer_of(folder, **SAVING, num_iterations=4).train()
    return folder


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def resume(folder: Path, checkpoint: str | bool = True, **arguments):
    trainer = trainer_of(folder, **{**SAVING, "num_iterations": 4, "max_steps": 4, **arguments})
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


READ = [
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
    "rollouts-0.safetensors",
    "sol_checkpoint.json",
]


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_a_file_that_is_not_what_was_written_is_named(copied, damage):
    trainer = trainer_of(copied, **SAVING, num_iterations=4)
    for file in READ:
        path = copied / "checkpoint-3" / file
        whole = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(whole[: len(whole) // 2] if damage == "truncated" else bytes(reversed(whole)))
        with pytest.raises(ValueError, match=rf"checkpoint-3.*{file}.*(missing|damaged).*another"):
            trainer.train(resume_from_checkpoint=str(copied / "checkpoint-3"))
        path.write_bytes(whole)


@pytest.mark.parametrize("file", READ)
def test_an_incomplete_checkpoint_is_not_taken_up(copied, file):
    (copied / "checkpoint-3" / file).unlink()
    assert newest_checkpoint(copied) == copied / "checkpoint-2"


def test_a_run_goes_on_from_the_newest_complete_checkpoint(run, copied):
    (copied / "checkpoint-3" / "rng_state.pth").unlink()
    (copied / "checkpoint-7").mkdir()
    resumed = resume(copied)
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == [1, 2, 3, 4]
    whole = trainer_of(copied.parent / "whole", **{**SAVING, "max_steps": 4}, num_iterations=4)
    whole.train()
    assert losses(resumed) == losses(whole)


def test_without_a_complete_checkpoint(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(ValueError, match="no complete checkpoint in"):
        resume(tmp_path)
    with pytest.raises(ValueError, match="There is no checkpoint"):
        resume(tmp_path, str(tmp_path / "nowhere"))


@pytest.mark.slow
def test_a_checkpoint_that_a_killed_process_had_finished_is_put_back(copied):
    unfinished = copied / UNFINISHED
    unfinished.mkdir()
    (copied / "checkpoint-3").rename(unfinished / "replaced-checkpoint-3")
    shutil.copytree(copied / "checkpoint-2", unfinished / "checkpoint-4")
    (unfinished / "checkpoint-4" / "optimizer.pt").unlink()
    resumed = resume(copied)
    assert losses(resumed)[:3] == losses(trainer_at(copied / "checkpoint-3"))
    assert names(copied) == [f"checkpoint-{step}" for step in range(1, 5)] and not unfinished.exists()


def trainer_at(checkpoint: Path):
    from types import SimpleNamespace

    from transformers import TrainerState

    return SimpleNamespace(state=TrainerState.load_from_json(str(checkpoint / "trainer_state.json")))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["_save_rng_state", "_publish", "_save_rollouts"])
def test_a_run_that_is_interrupted_while_it_saves_keeps_the_last_checkpoint(copied, monkeypatch, place):
    trainer = trainer_of(copied, **{**SAVING, "max_steps": 5}, num_iterations=4)
    monkeypatch.setattr(trainer, place, lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(resume_from_checkpoint=True)
    assert names(copied) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert resume(copied, max_steps=5).state.global_step == 5


def test_a_full_disk_leaves_the_last_checkpoint(copied, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    trainer = trainer_of(copied, **{**SAVING, "max_steps": 4}, num_iterations=4)
    save = torch.save
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train(resume_from_checkpoint=True)
    monkeypatch.setattr(torch, "save", save)
    assert newest_checkpoint(copied) == copied / "checkpoint-3"
    assert resume(copied).state.global_step == 4


def test_the_clock_may_jump_back(tmp_path):
    arguments = dict(save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer_of(tmp_path, max_steps=2, **arguments).train()
    for path in tmp_path.glob("checkpoint-*"):
        os.utime(path, (4e9, 4e9))  # in the year 2096
    trainer_of(tmp_path, max_steps=4, **arguments).train(resume_from_checkpoint=True)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.slow
def test_a_new_run_in_the_folder_of_an_old_one_keeps_its_own_checkpoints(tmp_path):
    arguments = dict(save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer_of(tmp_path, max_steps=4, **arguments).train()
    trainer_of(tmp_path, max_steps=2, seed=7, **arguments).train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    trainer_of(tmp_path, max_steps=4, **arguments).train()
    trainer_of(tmp_path, max_steps=1, seed=7, **arguments).train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


@pytest.mark.slow
def test_a_checkpoint_of_a_run_of_another_kind_is_refused(copied, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="trained a policy, this one trains an adapter"):
        resume(copied, str(copied / "checkpoint-3"), peft_config=LORA)
    with pytest.raises(ValueError, match="run with `beta` 0, so it has no reference policy"):
        resume(copied, beta=0.1)
    with pytest.raises(ValueError, match=r"between two updates.*`num_iterations` \(4 → 2\)"):
        resume(copied, num_iterations=2)
    trainer_of(tmp_path / "light", **SAVING, save_only_model=True).train()
    with pytest.raises(ValueError, match="written with `save_only_model`"):
        resume(tmp_path / "light")


@pytest.mark.slow
def test_other_settings_between_batches_are_warned_about(tmp_path, caplog):
    trainer_of(tmp_path, **{**SAVING, "max_steps": 1}).train()
    with caplog.at_level("WARNING", logger="sol_hf"):
        resume(tmp_path, num_iterations=1, seed=5, max_steps=2)
    assert "`seed` (42 → 5)" in caplog.text and "not as it would have gone on" in caplog.text


@pytest.mark.slow
def test_a_run_that_was_moved_still_knows_its_best_policy(tmp_path):
    from support.trainers import blocks

    arguments = dict(
        save_strategy="steps",
        save_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        eval_blocks=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_gain",
    )
    first = trainer_of(tmp_path / "old", max_steps=1, eval_dataset=blocks(2), **arguments)
    first.train()
    (tmp_path / "old").rename(tmp_path / "new")
    moved = trainer_of(tmp_path / "new", max_steps=2, learning_rate=0.0, eval_dataset=blocks(2), **arguments)
    moved.train(resume_from_checkpoint=True)
    assert moved.state.best_model_checkpoint == str(tmp_path / "new" / "checkpoint-1")


def test_files_of_the_policy_are_whole_or_as_they_were(tmp_path, monkeypatch):
    from sol_hf.hub import saving

    trainer = trainer_of(tmp_path)
    trainer.save_model()
    (tmp_path / "README.md").write_text("mine")
    before = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        trainer.model.final_norm.weight.add_(1)
    save = saving.save_policy

    def die_after(*args, **kwargs):
        save(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "save_policy", die_after)
    with pytest.raises(KeyboardInterrupt):
        trainer.save_model()
    assert all(torch.equal(before[name], weight) for name, weight in load_file(tmp_path / "model.safetensors").items())
    monkeypatch.setattr(saving, "save_policy", save)
    trainer.save_model()
    after = load_file(tmp_path / "model.safetensors")
    assert not torch.equal(before["final_norm.weight"], after["final_norm.weight"])
    assert (tmp_path / "README.md").read_text() == "mine" and not (tmp_path / UNFINISHED).exists()
