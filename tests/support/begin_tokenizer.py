# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A tokenizer that begins every text with BOS and ends it with EOS, as those of several families do."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast


BOS, EOS = 1, 2
TEXTS = [" ".join(f"w{(7 * index + place) % 90}" for place in range(40)) for index in range(30)]


def begin_tokenizer() -> PreTrainedTokenizerFast:
    """For texts of the words `w0` to `w89`."""
    vocabulary = {"<unk>": 0, "<s>": BOS, "</s>": EOS} | {f"w{index}": 3 + index for index in range(90)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
