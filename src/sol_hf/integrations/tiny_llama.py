# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A random Llama of two layers with a tokenizer of bytes: tries code in seconds, without a download."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that makes one token of every byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", padding_side="left"
    )


def tiny_base(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A random Llama of two layers of width 32; its text has no meaning.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Gives the size of the vocabulary and the special tokens.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.25,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config).eval()


def save_tiny_base(folder: str | Path) -> str:
    """Save that base and its tokenizer to a folder; returns the folder, as a name to load it by."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_base(tokenizer).save_pretrained(folder)
    return str(folder)


def save_tiny_texts(path: str | Path, count: int = 12) -> str:
    """Write short texts to a file; returns its name.

    Args:
        path (`str` or `Path`): A file that ends in `.jsonl`, which has a text of about 600 characters a line.
        count (`int`, *optional*, defaults to 12): Number of texts.
    """
    sentences = "The tide comes in twice a day, and goes out {0} times in {1} days. Boat number {0} waits for it. "
    texts = [sentences.format(number + 2, number // 2 + 1) * 6 for number in range(count)]
    Path(path).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)
