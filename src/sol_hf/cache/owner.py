# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which model a cache belongs to: keys and values mean nothing to another one."""

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


NOT_COMPARED = frozenset(
    "name_or_path architectures transformers_version dtype torch_dtype use_cache output_attentions "
    "output_hidden_states return_dict vocab_size pad_token_id bos_token_id eos_token_id tie_word_embeddings".split()
)
"""Fields of a base's config that may change without any effect on the keys and values of a text."""
WEIGHTS = "the weights of the base"
SAMPLED_PARAMETERS, SAMPLED_VALUES = 64, 4


@dataclass(frozen=True)
class CacheOwner:
    """A description of a model by which its caches are recognized, also in another process.

    Args:
        facts (`Mapping[str, Any]`): What has to be the same, by the words of the error message.
    """

    facts: Mapping[str, Any]

    @classmethod
    def of(cls, base: PreTrainedModel, settings: Mapping[str, Any]) -> "CacheOwner":
        """The description of a model.

        Args:
            base (`PreTrainedModel`): The base. A sample of the weights of its layers is read.
            settings (`Mapping[str, Any]`): Settings of the policy that a running episode depends on.
        """
        config = base.config.get_text_config(decoder=True)
        fields = {
            name: repr(value)
            for name, value in vars(config).items()
            if not name.startswith("_") and name not in NOT_COMPARED
        }
        base_facts = {
            "the class of the base": type(base).__name__,
            "the config of the base": _digest(sorted(fields.items())),
            "the dtype of the base": str(base.dtype),
            WEIGHTS: _digest(sample_weights(base)),
            "the active adapters of the base": _digest(active_adapters(base)),
        }
        return cls({**base_facts, **{f"`{name}`": value for name, value in settings.items()}})

    def differences(self, other: "CacheOwner") -> list[str]:
        """The names of the facts in which two models differ."""
        names = dict.fromkeys([*self.facts, *other.facts])
        return [name for name in names if self.facts.get(name) != other.facts.get(name)]


def sample_weights(base: PreTrainedModel) -> list[float]:
    """A few values of the weights between the embeddings and the LM head.

    Weights that are not plain tensors in memory, such as quantized or offloaded ones, are left out.
    """
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    left_out = {id(weight) for module in ends if module is not None for weight in module.parameters()}
    weights = [weight for weight in base.parameters() if id(weight) not in left_out and _is_plain(weight)]
    if len(weights) > SAMPLED_PARAMETERS:
        weights = random.Random(0).sample(weights, SAMPLED_PARAMETERS)
    samples: dict[tuple[torch.device, torch.dtype], list[torch.Tensor]] = {}
    for weight in weights:
        flat = weight.detach().flatten()
        stride = max(1, len(flat) // SAMPLED_VALUES)
        samples.setdefault((flat.device, flat.dtype), []).append(flat[::stride][:SAMPLED_VALUES])
    return [value for found in samples.values() for value in torch.cat(found).tolist()]


def active_adapters(base: PreTrainedModel) -> list[str]:
    """The adapters (PEFT) that take part, as layers with adapters name them."""
    layers: Iterable[Any] = (
        x for x in base.modules() if isinstance(getattr(type(x), "disable_adapters", None), property)
    )
    return sorted({f"{layer.active_adapters}, off: {layer.disable_adapters}" for layer in layers})


def _is_plain(weight: torch.Tensor) -> bool:
    return (
        type(weight) in (nn.Parameter, torch.Tensor)
        and weight.is_floating_point()
        and weight.device.type != "meta"
        and weight.numel() > 0
    )


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
