# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Types and ranges of the fields of a config.

The upper limits are far above what a policy needs. They are there for files that somebody else wrote: a page of 10⁹
keys or an episode of 10⁹ steps would be allocated before the first error.
"""

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


MOST_PARAMETERS = 1_000_000_000
"""Parameters of a policy. The default policy for a base of width 576 has 4.7 million."""
MOST_CALIBRATION_POINTS = 1_000
DTYPES = ("float32", "float16", "bfloat16", "float64")

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def shown(value: object) -> str:
    """A value in a message: its `repr`, shortened."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    return _REPR.repr(value) if isinstance(value, list | tuple | dict | str) else str(value)[:80]


def is_number(value: object) -> bool:
    """Whether a value is a number that a float can hold; NaN and infinity are."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or value.bit_length() <= 1000


@dataclass(frozen=True)
class Whole:
    """A whole number in a range."""

    lowest: int
    highest: int

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; `None` if nothing is."""
        if isinstance(value, bool) or not isinstance(value, int):
            return "must be a whole number"
        if value < self.lowest:
            return f"must be at least {self.lowest}" if self.lowest else "cannot be negative"
        return f"must be at most {self.highest:,}" if value > self.highest else None


@dataclass(frozen=True)
class Real:
    """A finite number in a range. The lower end belongs to it only with `includes_lowest`."""

    highest: float
    includes_lowest: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; `None` if nothing is."""
        if not is_number(value):
            return "must be a number"
        if not math.isfinite(value):
            return "must be finite"
        if value < 0 or (value == 0 and not self.includes_lowest):
            return "cannot be negative" if self.includes_lowest else "must be positive"
        return f"must be at most {self.highest:g}" if value > self.highest else None


@dataclass(frozen=True)
class Text:
    """A short text."""

    longest: int = 1000

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; `None` if nothing is."""
        if not isinstance(value, str):
            return "must be a string"
        return f"must have at most {self.longest:,} characters" if len(value) > self.longest else None


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; `None` if nothing is."""
        return None if isinstance(value, bool) else "must be true or false"


@dataclass(frozen=True)
class Many:
    """A list of a limited length, whose items are of one type."""

    of: type
    longest: int

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; `None` if nothing is."""
        if not isinstance(value, list | tuple) or not all(isinstance(item, self.of) for item in value):
            return f"must be a list of {'strings' if self.of is str else 'objects'}"
        return f"must have at most {self.longest:,} entries" if len(value) > self.longest else None


@dataclass(frozen=True)
class Entries:
    """An object of a limited size."""

    most: int

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value, as the end of a sentence; `None` if nothing is."""
        if not isinstance(value, dict):
            return "must be an object"
        return f"must have at most {self.most:,} entries" if len(value) > self.most else None


Check = Whole | Real | Text | Flag | Many | Entries

CHECKS: dict[str, Check] = {
    "axes": Many(str, 16),
    "criterion": Text(),
    "page_size": Whole(1, 1024),
    "selection": Text(),
    "anchor_pages": Flag(),
    "index_bits": Whole(2, 8),
    "short_text_tokens": Whole(0, 2**20),
    "kv_dtype": Text(),
    "sink_tokens": Whole(0, 1024),
    "window_tokens": Whole(0, 1024),
    "episode_length": Whole(1, 16_384),
    "policy_hidden_size": Whole(1, 16_384),
    "policy_num_layers": Whole(1, 128),
    "policy_num_heads": Whole(1, 1024),
    "policy_mlp_ratio": Real(64),
    "action_embedding_size": Whole(1, 16_384),
    "action_head": Text(),
    "budget_prior": Flag(),
    "observe_page_fill": Flag(),
    "calibration": Many(dict, MOST_CALIBRATION_POINTS),
    "calibration_unit": Text(),
    "calibration_conditions": Entries(8),
    "place_costs": Entries(16),
    "initializer_range": Real(10, includes_lowest=True),
    "sol_hf_version": Text(),
    "base_model_name_or_path": Text(),
    "base_model_revision": Text(),
    "base_fingerprint": Entries(32),
    "base_hidden_size": Whole(1, 2**20),
    "base_embedding_size": Whole(1, 2**20),
    "base_vocab_size": Whole(1, 2**24),
    "base_max_position_embeddings": Whole(1, 2**31),
}
"""The check of every field of [`SOLConfig`] except for the levels of the axes."""
OPTIONAL = frozenset(
    "kv_dtype axes calibration calibration_unit calibration_conditions place_costs sol_hf_version "
    "base_model_name_or_path base_model_revision base_fingerprint base_hidden_size base_embedding_size "
    "base_vocab_size base_max_position_embeddings".split()
)
"""Fields that may be `None`."""


def check_fields(values: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the first field with a value that is not allowed.

    Args:
        values (`Mapping[str, Any]`): Values by field; other names than those of `CHECKS` are not looked at.
    """
    for name, value in values.items():
        if name not in CHECKS or (value is None and name in OPTIONAL):
            continue
        problem = CHECKS[name].problem(value)
        if problem is not None:
            raise ValueError(f"`{name}` {problem}, got {shown(value)}.")
