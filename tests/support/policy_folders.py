# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Folders of policies and bases, and changes to their files."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sol_hf import SOLForCausalLM
from support.bases import tiny_base
from support.cases import control


def save_policy(folder: Path, **settings) -> Path:
    """A small policy for the tiny Llama, whose choices depend on its weights."""
    model = control(tiny_base("llama"), **settings)
    model.policy.float()
    for parameter in model.policy.parameters():
        parameter.data.mul_(3)
    model.save_pretrained(folder)
    return folder


def load(folder: Path, **kwargs) -> SOLForCausalLM:
    return SOLForCausalLM.from_pretrained(folder, base=tiny_base("llama"), **kwargs)


def change_json(path: Path, **values) -> None:
    """Set keys of a JSON file."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(stored | values))


def stored(folder: Path, name: str = "config.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 99 words with a chat template."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, **{f"w{i}": i for i in range(1, 99)}}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return tokenizer


@contextmanager
def warnings_of(name: str = "sol_hf") -> Iterator[list[str]]:
    """What this package and transformers warn about."""
    records: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(each) for each in (name, "transformers")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield records
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def files_with(folder: Path, text: str) -> list[str]:
    """Names of the files in a folder that contain a text."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes())
