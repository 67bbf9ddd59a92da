# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Embeddings, LM head and device of a model that consists of a base and a policy: those of the base."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .base_device import device_of


class EmbeddingsOfBase:
    """Methods of `PreTrainedModel` that are passed on to the base. The policy only depends on its hidden size."""

    base: PreTrainedModel
    policy: PreTrainedModel
    config: Any

    @property
    def device(self) -> torch.device:
        """Where the base computes, and prompts have to be; its weights may be elsewhere between two forwards."""
        return device_of(self.base)

    def get_input_embeddings(self) -> nn.Module:
        return self.base.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.base.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.base.set_output_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs) -> nn.Embedding:
        """Resize the embeddings of the base, as in transformers, and note the size of its vocabulary in the config."""
        embeddings = self.base.resize_token_embeddings(*args, **kwargs)
        weight: torch.Tensor = self.base.get_input_embeddings().weight
        for config in (self.config, self.policy.config):
            config.base_vocab_size = weight.shape[0]
        return embeddings
