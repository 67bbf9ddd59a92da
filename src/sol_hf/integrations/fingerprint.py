# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Short hashes of what a result depends on: weights, configs, tokenizers.

Two runs with equal hashes compute the same. What is hashed is found by walking over the object, so that nothing has to
be added here when a config or a model gets a new field.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase


PLACES = (
    "_name_or_path",
    "name_or_path",
    "base_model_name_or_path",
    "base_model_revision",
    "base_fingerprint",
    "_commit_hash",
)
"""Config values that say where files came from. The weights themselves are hashed."""
WRITERS = ("transformers_version", "sol_hf_version")
"""Config values that say who wrote the file."""


def weights_digest(module: torch.nn.Module) -> str:
    """A hash of the names, types, shapes and bytes of all parameters and buffers.

    Args:
        module (`torch.nn.Module`): A base or a policy, on any device, also quantized.

    Raises:
        ValueError: if weights are offloaded and cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in _tensors(module):
        for part, plain in _plain_parts(name, tensor):
            if plain.device.type == "meta":
                raise ValueError(
                    f"The weights of {part} are offloaded, so they cannot be compared with those of another run."
                )
            digest.update(f"{part} {plain.dtype} {tuple(plain.shape)}".encode())
            digest.update(_bytes(plain))
    return digest.hexdigest()


def values_of(config: PreTrainedConfig | GenerationConfig, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """All values of a config that change what is computed, as plain types.

    Args:
        config (`PreTrainedConfig` or `GenerationConfig`): The config.
        leave_out (`tuple[str, ...]`, *optional*): Further names to leave out.
    """
    ignored = {*PLACES, *WRITERS, *leave_out}
    return {name: plain(value) for name, value in sorted(config.to_dict().items()) if name not in ignored}


def digest_of(value: Any) -> str:
    """A hash of a value that consists of plain types."""
    text = json.dumps(plain(value), sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of the vocabulary, merges and settings of a tokenizer."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = tokenizer.get_vocab() if backend is None else backend.to_str()
    settings = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return digest_of([vocabulary, settings, tokenizer.chat_template, type(tokenizer).__name__])


def plain(value: Any) -> Any:
    """A value as JSON can hold it; an object that JSON has no form for becomes its type and its `repr`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype | torch.device):
        return str(value).removeprefix("torch.")
    return f"{type(value).__module__}.{type(value).__qualname__} {value!r}"


def package_versions() -> dict[str, str]:
    """Versions of the packages that compute."""
    return {name: version(name) for name in ("sol_hf", "torch", "transformers")}


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _plain_parts(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensor itself, or those that a tensor subclass (such as a quantized one) consists of."""
    if hasattr(tensor, "__tensor_flatten__"):
        inner, _ = tensor.__tensor_flatten__()
        for part in inner:
            yield from _plain_parts(f"{name}.{part}", getattr(tensor, part))
    else:
        yield name, tensor.detach()


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
