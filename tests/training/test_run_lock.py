# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Two runs that are started with one output folder."""

import os

import pytest
from transformers import TrainerCallback

from sol_hf.stored.folder_lock import HOLDER, FolderInUseError, folder_lock
from support.trainers import trainer_of


def test_two_trainers_in_one_process(tmp_path):
    second = trainer_of(tmp_path)

    class StartAnother(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            with pytest.raises(FolderInUseError, match=f"process {os.getpid()}"):
                second.train()
            assert second.state.global_step == 0

    first = trainer_of(tmp_path, max_steps=1)
    first.add_callback(StartAnother())
    first.train()
    second.train()
    assert second.state.global_step == 2
    assert not (tmp_path / HOLDER).exists()


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ValueError, match="no complete checkpoint"):
        trainer_of(tmp_path).train(resume_from_checkpoint=True)
    with folder_lock(tmp_path):
        pass
