# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Whatever cuts text into blocks begins them as the tokenizer begins texts: training, warmup, evaluations, sweeps."""

import argparse
import json

import pytest
import torch
from datasets import Dataset

from sol_hf.cli.inputs import read_blocks
from sol_hf.episodes.text_blocks import pack_blocks
from sol_hf.evaluation.sweep.folder import describe
from sol_hf.figures.action_map import map_actions
from sol_hf.training.warmup import CounterfactualWarmup, warmup_blocks
from sol_hf.training.warmup_config import CounterfactualWarmupConfig
from support.bases import tiny_base
from support.begin_tokenizer import BOS, EOS, TEXTS, begin_tokenizer
from support.cases import control
from support.trainers import trainer_of


@pytest.fixture(scope="module")
def model():
    return control(tiny_base("llama"))


def assert_blocks_begin_with_bos(blocks) -> None:
    """BOS at the begin of every block and nowhere else; EOS between documents only, none before a BOS."""
    blocks = torch.as_tensor(blocks)
    assert (blocks[:, 0] == BOS).all() and not (blocks[:, 1:] == BOS).any()
    assert 0 < (blocks == EOS).sum() <= len(TEXTS)


def test_blocks_of_evaluations_and_sweeps(model, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    options = argparse.Namespace(texts=str(texts), text_column="text", blocks=20, context_length=20)
    found = read_blocks(options, model, begin_tokenizer(), model.config.episode_length)
    assert_blocks_begin_with_bos(found.tokens)
    assert found.documents.tolist() == sorted(found.documents.tolist()) and len(set(found.documents.tolist())) > 9
    assert describe(model, found.tokens)["first_token"] == BOS


def test_blocks_of_training(tmp_path):
    texts = Dataset.from_dict({"text": TEXTS})
    trainer = trainer_of(tmp_path, train_dataset=texts, eval_dataset=texts, processing_class=begin_tokenizer())
    assert_blocks_begin_with_bos(trainer.train_dataset["input_ids"][:])
    assert_blocks_begin_with_bos(trainer.eval_dataset["input_ids"][:])


def test_blocks_of_the_warmup(model, tmp_path):
    config = CounterfactualWarmupConfig(
        warmup_dir=str(tmp_path / "measured"),
        warmup_blocks=4,
        warmup_context_length=12,
        warmup_steps_per_block=12,
        warmup_token_keep=[0.2],
        warmup_mlp_keep=[0.4],
        warmup_bits=[3],
    )
    starter = CounterfactualWarmup(model, config)
    blocks = warmup_blocks(
        pack_blocks(Dataset.from_dict({"text": TEXTS}), begin_tokenizer(), starter.block_length), config
    )
    assert_blocks_begin_with_bos(blocks)
    starter.store.fill(model, blocks)
    assert json.loads((tmp_path / "measured" / "settings.json").read_text())["first_token"] == BOS


def test_the_text_of_an_action_map_has_no_end_token(model):
    found = map_actions(model, begin_tokenizer(), TEXTS[0], (0.6, 0.7, 8))
    assert len(found.tokens) == 41 - 17  # BOS and 40 words, less the context and the first processed token
    assert found.tokens[-1].text.strip() == TEXTS[0].split()[-1]


def test_the_text_of_an_action_map_may_end_with_an_end_token_of_its_own(model):
    found = map_actions(model, begin_tokenizer(), f"{TEXTS[0]} </s>", (0.6, 0.7, 8))
    assert len(found.tokens) == 42 - 17


def test_an_action_map_leaves_an_axis_dense_as_the_tables_do(model):
    for mode in ("soft", "hard"):
        found = map_actions(model, begin_tokenizer(), TEXTS[0], (0.6, 1.0, 16), budget_mode=mode)
        assert found.requested == (0.6, 1.0, 16) and found.realised[1:] == (1.0, 16.0)
