# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Short hashes of models, configs and texts, by which stored results of one run are told from those of another.

What is hashed is found by walking over the object, so that nothing has to be added here when a config or a model gets
a new field. Of a model these are the tensors that it saves: parameters and persistent buffers. A tensor subclass, such
as a quantized weight, is hashed as the plain tensors that it consists of.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig


DIGITS = 16
SAMPLED = 256
"""Numbers of a tensor that a sample has."""
NOT_COMPUTED_WITH = (
    "_name_or_path",
    "name_or_path",
    "base_model_name_or_path",
    "base_model_revision",
    "base_fingerprint",
    "_commit_hash",
    "transformers_version",
    "sol_hf_version",
    "calibration",
    "calibration_unit",
    "calibration_conditions",
)
"""Values of a config that do not change what is computed: where files are from, who wrote them, and the calibration
table. From the table comes only the budget of a call with `compute`; where results depend on a budget, it counts
itself, as the targets that were found."""
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_digest(module: torch.nn.Module) -> str:
    """A hash of all that a module saves: names, types, shapes and bytes.

    Args:
        module (`torch.nn.Module`): A base or a policy, on any device, also quantized.

    Raises:
        ValueError: if weights are offloaded and cannot be read.
    """
    digest = hashlib.sha256()
    for name, tensor in _plain_tensors(module):
        if tensor.is_meta:
            raise ValueError(
                f"The weights of {name} are offloaded, so they cannot be compared with those of another run."
            )
        digest.update(_header(name, tensor))
        digest.update(_bytes(tensor))
    return digest.hexdigest()[:DIGITS]


def sampled_digest(module: torch.nn.Module) -> str:
    """A hash of all that a module saves: names, types, shapes, some numbers, and the sum of the bit patterns.

    Sums of whole numbers do not depend on the order, and so not on the number of threads. They are made where the
    weights are. Of tensors that are offloaded only names, types and shapes count.

    Args:
        module (`torch.nn.Module`): A base or a policy, on any device, also quantized.
    """
    digest = hashlib.sha256()
    for name, tensor in _plain_tensors(module):
        digest.update(_header(name, tensor))
        if tensor.is_meta or not tensor.numel():
            continue
        flat = tensor.flatten()
        places = torch.linspace(0, len(flat) - 1, min(SAMPLED, len(flat)), dtype=torch.float64).long()
        digest.update(_bytes(flat[places.to(flat.device)]))
        digest.update(str(int(_words(flat).sum(dtype=torch.int64))).encode())
    return digest.hexdigest()[:DIGITS]


def text_digest(tokens: torch.Tensor) -> str:
    """A hash of token ids `(blocks, length)`."""
    shape = str(tuple(tokens.shape)).encode()
    return hashlib.sha256(shape + tokens.long().cpu().contiguous().numpy().tobytes()).hexdigest()[:DIGITS]


def value_digest(value: Any) -> str:
    """A hash of a value that consists of plain types; see [`plain`] for others."""
    text = json.dumps(plain(value), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:DIGITS]


def config_digest(config: PreTrainedConfig | GenerationConfig, leave_out: tuple[str, ...] = ()) -> str:
    """A hash of [`config_values`]."""
    return value_digest(config_values(config, leave_out))


def config_values(config: PreTrainedConfig | GenerationConfig, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """All values of a config that change what is computed, as plain types.

    Args:
        config (`PreTrainedConfig` or `GenerationConfig`): The config.
        leave_out (`tuple[str, ...]`, *optional*): Further names to leave out.
    """
    ignored = {*NOT_COMPUTED_WITH, *leave_out}
    return {name: plain(value) for name, value in sorted(config.to_dict().items()) if name not in ignored}


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


def _plain_tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The plain tensors that a module saves, by name, in the order of the names; a tied one once.

    Buffers that are not saved follow from the config, and some of them (such as those of a dynamic RoPE) from the
    longest text so far.
    """
    seen, saved = set(), {}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            saved[name] = value
    for name, value in sorted(saved.items()):
        yield from _parts(name, value)


def _parts(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """A plain tensor itself, or those that a tensor subclass or a packed weight consists of."""
    if hasattr(value, "__tensor_flatten__"):
        for part in value.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{part}", getattr(value, part))
    elif isinstance(value, torch.Tensor):
        yield name, value.detach().dequantize() if value.is_quantized else value.detach()
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(f"{name}.{key}", item)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _parts(f"{name}.{place}", item)


def _header(name: str, tensor: torch.Tensor) -> bytes:
    return f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode()


def _words(flat: torch.Tensor) -> torch.Tensor:
    """The bit patterns of a flat tensor as whole numbers; of complex ones, of their parts."""
    flat = torch.view_as_real(flat).flatten() if flat.is_complex() else flat
    return flat.view(WORDS[flat.element_size()])


def _bytes(tensor: torch.Tensor) -> Any:
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()
