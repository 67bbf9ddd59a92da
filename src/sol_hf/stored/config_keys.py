# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which keys of a stored config count.

A `config.json` can hold any field of transformers' configs. Those of a policy that have an effect are its own fields,
and the few below. All others are left out: an attention implementation or a quantization named there would be loaded,
and `return_dict` or `is_encoder_decoder` would change how the model behaves.
"""

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .fields import DTYPES, check_fields, shown


RENAMED = {"page_selection": "selection"}
"""Fields under the names that files of earlier versions have."""
FROM_TRANSFORMERS = ("model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "auto_map")
"""Fields of transformers that are read from a file."""
WITHOUT_EFFECT = {
    "return_dict": True,
    "output_hidden_states": False,
    "output_attentions": False,
    "is_encoder_decoder": False,
    "chunk_size_feed_forward": 0,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "problem_type": None,
    "_name_or_path": None,
    "name_or_path": None,
    "_commit_hash": None,
    "attn_implementation": None,
    "_attn_implementation": None,
    "experts_implementation": None,
    "per_layer_config": None,
    "num_labels": 2,
}
"""What transformers writes into every config, with the values that say nothing."""
_SILENT = frozenset({"_name_or_path", "name_or_path", "_commit_hash"})


def keys_that_count(stored: Mapping[str, Any], known: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The entries of a stored config that are read, and the sorted names of those that are ignored.

    Entries with which transformers says nothing are left out, too, but are not among the names.

    Args:
        stored (`Mapping[str, Any]`): Content of the file.
        known (`Iterable[str]`): The policy's own fields.
    """
    read = {*known, *FROM_TRANSFORMERS}
    kept = {key: value for key, value in stored.items() if key in read}
    ignored = [
        str(key)
        for key, value in stored.items()
        if key not in read and key not in _SILENT and not _says_nothing(key, value)
    ]
    return kept, sorted(ignored)


def check_common_fields(stored: Mapping[str, Any]) -> None:
    """Raise a ValueError if a field of transformers in a stored config has a value that it cannot have."""
    for key in ("dtype", "torch_dtype"):
        value = stored.get(key)
        if value is not None and str(value).removeprefix("torch.") not in DTYPES:
            raise ValueError(f"`{key}` must be one of {', '.join(DTYPES)}, got {shown(value)}.")
    version, names = stored.get("transformers_version"), stored.get("architectures")
    if version is not None and not isinstance(version, str):
        raise ValueError(f"`transformers_version` must be a string, got {shown(version)}.")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"`architectures` must be a list of strings, got {shown(names)}.")


def known_classes(auto_map: Any, known: Mapping[str, str]) -> dict[str, str]:
    """The entries of a stored `auto_map` that name this package's classes, without the name of a repository.

    A policy that is saved again is not to send its users to the code of another repository.

    Args:
        auto_map (`Any`): As stored.
        known (`Mapping[str, str]`): The classes of this package by Auto class.
    """
    if not isinstance(auto_map, Mapping):
        return {}
    return {name: place for name, place in known.items() if str(auto_map.get(name, "")).rpartition("--")[2] == place}


def _says_nothing(key: str, value: Any) -> bool:
    if key not in WITHOUT_EFFECT:
        return False
    if isinstance(value, Mapping):
        value = {str(name): label for name, label in value.items()}
    return value is None or value == WITHOUT_EFFECT[key]


def take_renamed(given: dict[str, Any], now: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Take fields under their former names out of `given`: their values by the names that they have now.

    Args:
        given (`dict[str, Any]`): Keywords.
        now (`Mapping[str, Any]`): Values by name.
        fields (`Mapping[str, dataclasses.Field]`): With the defaults.

    Raises:
        ValueError: if a value is not allowed, or both names were given with different values.
    """
    taken = {}
    for old in RENAMED.keys() & given.keys():
        name, value = RENAMED[old], given.pop(old)
        check_fields({name: value})
        if now[name] not in (fields[name].default, value):
            raise ValueError(f"`{old}` is the former name of `{name}`: give one of them.")
        taken[name] = value
    return taken


def config_file(source: str) -> str:
    """The file that a config came from, for messages."""
    return str(Path(source, "config.json")) if Path(source).is_dir() else f"{source} (config.json)"


def describe_unknown(unknown: list[str], known: frozenset[str]) -> str:
    """A message about unknown names of fields, with the nearest known ones."""
    parts = []
    for key in unknown:
        near = difflib.get_close_matches(key, sorted(known), n=1)
        parts.append(f"`{key}`" + (f" (did you mean `{near[0]}`?)" if near else ""))
    return f"SOLConfig has no field {', '.join(parts)}."
