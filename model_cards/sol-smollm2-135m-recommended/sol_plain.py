# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The code of sol_hf 0.1.0.dev0 that runs a policy, in one file, for machines where the package is not installed.

It was written by sol_hf.hub.remote_code from the modules of the package, one after the other; a heading names each.
Please change those, not this file. It needs transformers and torch, and nothing else. It opens files of the policy and
of its base through transformers and huggingface_hub, and writes files in `save_pretrained` and `push_to_hub` only.
Compiled code for CPUs and GPUs, training and evaluation are not in it: pip install sol_hf.
"""

import transformers

if not (5, 18) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 24):
    raise ImportError(
        f"This policy needs transformers>=5.18,<5.24, but {transformers.__version__} is installed: "
        "install one of these, or a newer sol_hf, whose code is then used instead of this file."
    )

import bisect
import contextlib
import copy
import dataclasses
import difflib
import errno
import functools
import hashlib
import huggingface_hub
import importlib.util
import inspect
import json
import math
import numpy as np
import os
import pkgutil
import platform
import random
import re
import reprlib
import shutil
import statistics
import tempfile
import threading
import time
import torch
import weakref
import yaml
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache, partial
from huggingface_hub import (
    HfApi,
    ModelCard,
    ModelCardData,
    constants,
    file_exists,
    hf_hub_download,
    try_to_load_from_cache,
)
from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    StrictDataclassError,
)
from huggingface_hub.utils import validate_repo_id
from importlib import import_module
from itertools import pairwise, product
from pathlib import Path
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from statistics import median
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.nn.functional import cosine_similarity, pad, scaled_dot_product_attention
from torch.nn.modules.conv import _ConvNd
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    initialization as init,
)
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import (
    CandidateGenerator,
    EarlyExitCandidateGenerator,
    GenerationMode,
    logits_process,
    utils as transformers_loop,
)
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.pytorch_utils import Conv1D
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput, SAFE_WEIGHTS_NAME, cached_file, logging
from types import CodeType
from typing import Any, ClassVar, Generic, NamedTuple, NoReturn, Protocol, Self, TypeGuard, TypeVar


logger = logging.get_logger(__name__)


def left_out(part: str) -> NoReturn:
    """Raise the error for a part of the package that is not in this file."""
    raise ModuleNotFoundError(f"{part} is not in the code of a policy's repository: pip install sol_hf.")


# =====================================================================================================================
# errors.py
#
# Errors that a user can act on, each a subclass of a built-in one, and the message for a missing package.
# =====================================================================================================================


EXTRAS: dict[str, tuple[str, ...]] = {
    "train": ("trl", "peft", "datasets", "pyarrow"),
    "eval": ("evaluate", "lm_eval", "matplotlib", "datasets", "pyarrow"),
    "demo": ("gguf", "rich"),
    "serve": ("fastapi", "openai", "uvicorn", "starlette"),
    "fast": ("numba",),
    "cuda": ("triton",),
}
"""Packages of every extra, by the name under which they are imported; pyarrow comes with datasets."""


class BudgetError(ValueError):
    """A budget that no schedule of the action space can satisfy, or that is malformed."""


class UnsupportedAxisError(ValueError):
    """A base cannot be controlled on an axis; the message names the axis and the reason."""


class PlanNotExecutedError(RuntimeError):
    """A decode step was not computed as planned: parts of the base that had to carry out an axis did not."""

    def __init__(self, left_out: Mapping[str, Sequence[str]]):
        self.left_out = {axis: list(names) for axis, names in left_out.items()}
        listed = "; ".join(f"`{axis}` in {_shorten(names)}" for axis, names in self.left_out.items())
        super().__init__(
            f"A decode step was not computed under its budget: the base did not carry out {listed}. Its modules were "
            "replaced, run in another thread, or do not use the cache that they were given. Replace modules before "
            "the first call, or leave these axes out of the budget. `model.coverage()` shows what each axis reaches."
        )

    def __reduce__(self) -> tuple:
        return type(self), (self.left_out,)


def _shorten(names: Sequence[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def missing_extra(user: str, error: ModuleNotFoundError, preferred: str | None = None) -> ModuleNotFoundError:
    """The error for a missing package, which names the extra to install."""
    package = (error.name or "").partition(".")[0]
    names = [extra for extra, packages in EXTRAS.items() if package in packages]
    if not names:
        return error
    commands = [f"pip install 'sol_hf[{extra}]'" for extra in names if preferred not in names or extra == preferred]
    return ModuleNotFoundError(f"{user} needs {package}: {' or '.join(commands)}", name=error.name)


# =====================================================================================================================
# registry.py
#
# Objects that are found by name: axes, criteria, controllers, fast paths.
#
# There is one [`Registry`] per kind of object. Every member has a file of its own, which registers it. A registry with a
# `package` imports all modules of that package at the first lookup, so no list has to be changed for a new file. Members
# from other packages register themselves when they are imported.
# =====================================================================================================================


T = TypeVar("T")


class Registry(Generic[T]):
    """Members of one kind by name, in the order in which they were registered."""

    def __init__(self, kind: str, package: str | None = None):
        self.kind, self._package = kind, package
        self._members: dict[str, T] = {}

    def register(self, name: str, member: T) -> T:
        """Add a member, and return it."""
        if name in self._members and self._members[name] is not member:
            raise ValueError(f"The {self.kind} {name!r} exists already: choose another name.")
        self._members[name] = member
        return member

    def registered(self, name: str) -> Callable[[type], type]:
        """Decorator that registers a class under `name`."""

        def decorate(member: type) -> type:
            self.register(name, member)  # type: ignore[arg-type]
            return member

        return decorate

    def unregister(self, name: str) -> None:
        """Remove a member, as tests do."""
        del self._members[name]

    def __getitem__(self, name: str) -> T:
        """The member of a name."""
        if self._package is not None:
            self._import_modules()
        if name not in self._members:
            raise self.unknown(name)
        return self._members[name]

    def unknown(self, name: object, also: tuple[str, ...] = ()) -> ValueError:
        """The error for an unknown name. `also` lists names that are valid for the caller but are not members."""
        known = [*self, *also]
        near = difflib.get_close_matches(str(name), known, n=2, cutoff=0.5)
        hint = f" Did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
        return ValueError(f"Unknown {self.kind} {name!r}: it must be one of {', '.join(known)}.{hint}")

    def __contains__(self, name: object) -> bool:
        self._import_modules()
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        self._import_modules()
        return iter(list(self._members))

    def __len__(self) -> int:
        self._import_modules()
        return len(self._members)

    def items(self) -> list[tuple[str, T]]:
        """Names and members."""
        self._import_modules()
        return list(self._members.items())

    def _import_modules(self) -> None:
        if self._package is None:
            return
        package, self._package = import_module(self._package), None
        for module in pkgutil.iter_modules(package.__path__):
            import_module(f"{package.__name__}.{module.name}")


# =====================================================================================================================
# budget/axes.py
#
# The axes: along which quantities a decode step can be made cheaper.
#
# An [`Axis`] describes an axis without reference to a model: its name, its values and how they count. How an axis is
# applied to a base is defined by its executor, see `execution/executors.py`. Levels are in *axis units* (`bits`
# is a number of bits) where people read or write them, and in *ratio units* (value / scale, in (0, 1]) where compute is
# counted.
#
# All axes are in the registry `AXES`. The config of a policy names those of its action space.
# =====================================================================================================================


@dataclass(frozen=True)
class Axis:
    """One quantity that a budget can limit."""

    name: str
    dense: float
    lowest: float
    meaning: str
    default_levels: tuple[float, ...]
    letter: str
    budget_range: tuple[float, float]
    scale: float = 1.0
    includes_lowest: bool = False
    is_integral: bool = False
    penalty_weight: float = 100.0
    mean_over_largest: bool = False

    def __post_init__(self):
        if not self.name.isidentifier():
            raise ValueError(f"The name of an axis is used as a keyword, so {self.name!r} cannot be one.")
        if not 0 < self.dense / self.scale <= 1:
            raise ValueError(f"The dense value of `{self.name}` must be in (0, 1] in ratio units.")

    @property
    def interval(self) -> str:
        """The range of values as text: `(0, 1]`, `2..16`."""
        if self.is_integral:
            return f"{self.lowest:g}..{self.dense:g}"
        return f"{'[' if self.includes_lowest else '('}{self.lowest:g}, {self.dense:g}]"

    def contains(self, value: float) -> bool:
        """Whether a number is in the range of this axis; it need not be whole, since targets are averages."""
        above = value >= self.lowest if self.includes_lowest else value > self.lowest
        return math.isfinite(value) and above and value <= self.dense

    def check_values(self, values: Iterable[float]) -> None:
        """Raise [`BudgetError`] for a number outside of the range of this axis."""
        for value in values:
            if not self.contains(value):
                raise BudgetError(f"`{self.name}` must lie in {self.interval}, got {value}.")

    def check_levels(self, levels: Sequence[float]) -> None:
        """Raise a ValueError if these cannot be the levels of an action space."""
        if not levels:
            raise ValueError(f"`{self.name}` needs at least one level.")
        if len(set(levels)) != len(levels):
            raise ValueError(f"`{self.name}` has a repeated level: {list(levels)}.")
        self.check_values(levels)
        if self.is_integral and any(value != int(value) for value in levels):
            raise ValueError(f"`{self.name}` must be whole numbers, got {list(levels)}.")

    def tag(self, value: float) -> str:
        """Short name of a level, e.g. `k050` or `q08`."""
        return f"{self.letter}{int(value):02d}" if self.is_integral else f"{self.letter}{round(value * 100):03d}"


AXES_in_axes: Registry[Axis] = Registry("axis")
"""All axes by name, the published three first."""


def register_axis(axis: Axis) -> Axis:
    """Register an axis. Its name is then a keyword of `SOLConfig`, `Budget` and `generate`."""
    return AXES_in_axes.register(axis.name, axis)


def axes_named(names: Iterable[str]) -> tuple[Axis, ...]:
    """The axes with the given names, in the same order."""
    return tuple(AXES_in_axes[name] for name in names)


TOKEN_KEEP = register_axis(
    Axis(
        name="token_keep",
        dense=1.0,
        lowest=0.0,
        meaning="share of the cached tokens that attention reads",
        default_levels=tuple(percent / 100 for percent in range(10, 101, 10)),
        letter="k",
        budget_range=(0.1, 1.0),
    )
)
MLP_KEEP = register_axis(
    Axis(
        name="mlp_keep",
        dense=1.0,
        lowest=0.0,
        meaning="share of the MLP input channels that are kept",
        default_levels=tuple(percent / 100 for percent in range(40, 101, 5)),
        letter="s",
        budget_range=(0.4, 1.0),
        mean_over_largest=True,
    )
)
BITS = register_axis(
    Axis(
        name="bits",
        dense=16.0,
        lowest=2.0,
        includes_lowest=True,
        is_integral=True,
        scale=16.0,
        meaning="bit-width of the MLP outputs",
        default_levels=tuple(range(5, 17)),
        letter="q",
        budget_range=(5.0, 16.0),
        penalty_weight=200.0,
    )
)
NEURON_KEEP = register_axis(
    Axis(
        name="neuron_keep",
        dense=1.0,
        lowest=0.0,
        meaning="share of the MLP neurons that are kept",
        default_levels=tuple(percent / 100 for percent in range(30, 101, 10)),
        letter="n",
        budget_range=(0.4, 1.0),
    )
)
"""Not published: an action space has it only if levels of it are given."""
PUBLISHED_AXES = (TOKEN_KEEP, MLP_KEEP, BITS)
"""The axes of the published method, in the order of its action space."""


# =====================================================================================================================
# budget/action_space.py
#
# The action space: a finite table of the actions that a decode step can take.
#
# An *action* is one point of a Cartesian grid over the axes of its space, in their order, the last varying fastest:
#
#     token_keep [.2, 1] x mlp_keep [.6, 1] x bits [8, 16]      id 0 = (.2, .6, 8), 1 = (.2, .6, 16), 2 = (.2, 1, 8) ...
#
# Compute is counted in ratio units. Values that people read or write are in axis units: see [`Axis`].
# =====================================================================================================================


MOST_LEVELS, MOST_ACTIONS = 1_000, 65_536
"""Limits of an action space, which is a table in memory. The published grid has 1,560 actions."""


class ActionSpace:
    """The actions: the Cartesian product of the levels of some axes, the last axis varying fastest."""

    def __init__(
        self,
        token_keep: Sequence[float],
        mlp_keep: Sequence[float],
        bits: Sequence[int],
        **further: Sequence[float],
    ):
        given = dict(zip((axis.name for axis in PUBLISHED_AXES), (token_keep, mlp_keep, bits), strict=True)) | further
        self.axes: tuple[Axis, ...] = axes_named(given)
        check_size({axis.name: len(given[axis.name]) for axis in self.axes})
        self.levels = {axis.name: tuple(given[axis.name]) for axis in self.axes}
        self.spent = dict(self.levels)
        """What a step at each level spends, by which budgets are kept: the level, unless changed by `spending`."""
        for axis in self.axes:
            axis.check_levels(self.levels[axis.name])
        self.table = tuple(product(*self.levels.values()))
        self.values = torch.tensor(self.table, dtype=torch.float32)
        self.scales = torch.tensor([axis.scale for axis in self.axes])
        self.ratios = self.values / self.scales
        self._on_device: dict[tuple[torch.device, str], torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionSpace) and tuple(self.levels.items()) == tuple(other.levels.items())

    def __hash__(self) -> int:
        return hash(tuple(self.levels.items()))

    def __copy__(self) -> "ActionSpace":
        """A space with tables of its own, for code that may edit them."""
        space = object.__new__(type(self))
        vars(space).update(vars(self), levels=dict(self.levels), spent=dict(self.spent))
        space.values, space.scales, space.ratios = self.values.clone(), self.scales.clone(), self.ratios.clone()
        space._on_device = {key: table.clone() for key, table in self._on_device.items()}
        return space

    def __reduce__(self) -> tuple:
        return type(self).of, (self.levels, self.spent)  # the tables are made again, on the CPU

    def __repr__(self) -> str:
        return "ActionSpace({})".format(", ".join(f"{name}={list(levels)}" for name, levels in self.levels.items()))

    @property
    def axis_names(self) -> tuple[str, ...]:
        """Names of the axes, in the order of the columns of `values` and `ratios`."""
        return tuple(self.levels)

    def spending(self, axis: str, spent: Callable[[float], float]) -> "ActionSpace":
        """The same actions in a computation in which an axis spends `spent(level)` at each of its levels."""
        return type(self).of(self.levels, {**self.spent, axis: tuple(spent(level) for level in self.levels[axis])})

    @property
    def level_counts(self) -> tuple[int, ...]:
        """Number of levels of every axis."""
        return tuple(len(levels) for levels in self.levels.values())

    @cached_property
    def level_ratios(self) -> tuple[np.ndarray, ...]:
        """Per axis what its levels spend in ratio units, `(levels,)`, as in `ratios`."""
        columns = zip(self.spent.values(), self.scales.unbind(), strict=True)
        return tuple((torch.tensor(spent, dtype=torch.float32) / scale).numpy() for spent, scale in columns)

    @property
    def mean_divisors(self) -> tuple[float, ...]:
        """Per axis the divisor of the mean that the policy sees: its largest ratio if `mean_over_largest`, else 1."""
        return tuple(max(self.spent[axis.name]) / axis.scale if axis.mean_over_largest else 1.0 for axis in self.axes)

    @property
    def dense(self) -> tuple[float, ...]:
        """The dense value of every axis, in axis units; it need not be a level."""
        return tuple(axis.dense for axis in self.axes)

    @property
    def has_dense(self) -> bool:
        """Whether the dense value of every axis is one of its levels."""
        return self.largest == self.dense

    @property
    def largest(self) -> tuple[float, ...]:
        """What the largest level of every axis spends, in axis units."""
        return tuple(max(spent) for spent in self.spent.values())

    @cached_property
    def dense_id(self) -> int:
        """Id of the dense action; in a space that has none, of the largest level of every axis."""
        return self.table.index(tuple(max(levels) for levels in self.levels.values()))

    def index(self, *levels: float, **by_name: float) -> int:
        """Id of the action with exactly these levels, in the order of the axes or by name."""
        wanted = dict(zip(self.levels, levels, strict=False))
        if len(levels) > len(self.levels) or wanted.keys() & by_name.keys():
            raise ValueError(f"Give every axis one level: {', '.join(self.levels)}.")
        wanted |= by_name
        if wanted.keys() != self.levels.keys():
            raise ValueError(f"An action has a level of every axis ({', '.join(self.levels)}), got {wanted}.")
        for name, value in wanted.items():
            if value not in self.levels[name]:
                raise ValueError(f"{value} is not a level of `{name}`; the levels are {list(self.levels[name])}.")
        return self.table.index(tuple(wanted[name] for name in self.levels))

    def tag(self, action_id: int) -> str:
        """Short name of an action, e.g. `k050-s070-q08`."""
        return "-".join(axis.tag(value) for axis, value in zip(self.axes, self.table[action_id], strict=True))

    def column(self, axis: str) -> int:
        """Index of an axis among the columns of `values` and `ratios`."""
        return self.axis_names.index(axis)

    def by_axis(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The columns of `values` `(..., axes)` by axis name, each of shape `(...)`."""
        return dict(zip(self.levels, values.unbind(dim=-1), strict=True))

    def level_indices(self, action_ids: torch.Tensor) -> torch.Tensor:
        """Per axis the index of an action's level: ids `(...)` to indices `(..., axes)`."""
        indices = []
        for count in reversed(self.level_counts):
            indices.append(action_ids % count)
            action_ids = torch.div(action_ids, count, rounding_mode="floor")
        return torch.stack(indices[::-1], dim=-1)

    def ids_of(self, level_indices: torch.Tensor) -> torch.Tensor:
        """Ids of actions from the indices of their levels, `(..., axes)` to `(...)`."""
        strides = [math.prod(self.level_counts[place + 1 :]) for place in range(len(self.level_counts))]
        return (level_indices * torch.tensor(strides, device=level_indices.device)).sum(dim=-1)

    def min_ratio(self) -> torch.Tensor:
        """Smallest level of every axis, in ratio units, of shape `(axes,)`."""
        return self.ratios.amin(0)

    def max_ratio(self) -> torch.Tensor:
        """Largest level of every axis, in ratio units, of shape `(axes,)`."""
        return self.ratios.amax(0)

    def values_on(self, device: torch.device) -> torch.Tensor:
        """The table in axis units on `device`, of shape `(n_actions, axes)`; copied there once."""
        return self._table_on(device, "values")

    def ratios_on(self, device: torch.device) -> torch.Tensor:
        """The table in ratio units on `device`, of shape `(n_actions, axes)`; copied there once."""
        return self._table_on(device, "ratios")

    def levels_on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The levels of every axis in ratio units on `device`, ascending, each `(levels,)`; copied there once."""
        for name, column in zip(self.levels, self.ratios.unbind(dim=-1), strict=True):
            if (device, f"levels of {name}") not in self._on_device:
                self._on_device[device, f"levels of {name}"] = column.unique().to(device)
        return tuple(self._on_device[device, f"levels of {name}"] for name in self.levels)

    def _table_on(self, device: torch.device, name: str) -> torch.Tensor:
        key = (device, name)
        if key not in self._on_device:
            self._on_device[key] = getattr(self, name).to(device)
        return self._on_device[key]

    @classmethod
    def of(
        cls, levels: Mapping[str, Sequence[float]], spent: Mapping[str, tuple[float, ...]] | None = None
    ) -> "ActionSpace":
        """The action space of levels by axis name; the published axes must be among them."""
        space = cls(**levels)  # type: ignore[arg-type]
        if spent is not None and dict(spent) != space.levels:
            space.spent = dict(spent)
            space.values = torch.tensor(tuple(product(*space.spent.values())), dtype=torch.float32)
            space.ratios = space.values / space.scales
        return space


def check_size(counts: Mapping[str, int]) -> None:
    """Raise a ValueError if an action space with these numbers of levels per axis would be too large."""
    for name, count in counts.items():
        if count > MOST_LEVELS:
            raise ValueError(f"`{name}` must have at most {MOST_LEVELS:,} levels, got {count:,}.")
    actions = math.prod(counts.values())
    if actions > MOST_ACTIONS:
        numbers = ", ".join(f"{count:,} of `{name}`" for name, count in counts.items())
        raise ValueError(
            f"The action space would have {actions:,} actions ({numbers} levels), but at most {MOST_ACTIONS:,} are "
            "allowed: give fewer levels."
        )


@lru_cache(maxsize=16)
def shared_action_space(levels: tuple[tuple[Axis, tuple[float, ...]], ...]) -> ActionSpace:
    """The action space of levels by axis. Its tables are made once: every call asks a config for them."""
    return ActionSpace.of({axis.name: values for axis, values in levels})


# =====================================================================================================================
# budget/budget.py
#
# A budget: the average that each axis may reach, per row.
# =====================================================================================================================


AxisTarget = float | int | Sequence[float] | torch.Tensor | None


class Budget:
    """Targets for the average of every axis over a call, or over an episode. A budget does not change once it is made."""

    __slots__ = ("_targets",)
    _targets: dict[str, tuple[float, ...]]

    def __init__(
        self,
        token_keep: AxisTarget = None,
        mlp_keep: AxisTarget = None,
        bits: AxisTarget = None,
        **further: AxisTarget,
    ):
        given = dict(zip((axis.name for axis in PUBLISHED_AXES), (token_keep, mlp_keep, bits), strict=True)) | further
        targets = {}
        for name, value in given.items():
            axis = AXES_in_axes[name]  # without a target, too: the name may be misspelt
            if value is not None:
                targets[name] = _as_tuple(name, value)
                axis.check_values(targets[name])
        rows = {len(values) for values in targets.values()} - {1}
        if len(rows) > 1:
            raise BudgetError(f"The axes of a budget have different numbers of rows: {sorted(rows)}.")
        object.__setattr__(self, "_targets", targets)

    @classmethod
    def of(cls, targets: Mapping[str, AxisTarget]) -> "Budget":
        """The budget of targets by the names of the axes."""
        return cls(**targets)

    def __getattr__(self, name: str) -> float | tuple[float, ...] | None:
        """The target of an axis: one number, one per row, or `None`."""
        if name.startswith("_") or name not in AXES_in_axes:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        values = self._targets.get(name)
        return values[0] if values is not None and len(values) == 1 else values

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"A budget does not change once it is made: make another instead of setting {name!r}.")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("A budget does not change once it is made.")

    def __reduce__(self) -> tuple:
        return type(self).of, (self._targets,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Budget) and self._targets == other._targets

    def __hash__(self) -> int:
        return hash(frozenset(self._targets.items()))

    def __repr__(self) -> str:
        return "Budget({})".format(", ".join(f"{name}={getattr(self, name)}" for name in self._targets))

    @property
    def rows(self) -> int | None:
        """Number of rows that the budget was given for, `None` if it fits any number."""
        return next((len(values) for values in self._targets.values() if len(values) > 1), None)

    @property
    def controlled(self) -> frozenset[str]:
        """The axes that have a target."""
        return frozenset(self._targets)

    @property
    def is_dense(self) -> bool:
        """Whether every axis of every row is at its dense value (or not set)."""
        return all(value == AXES_in_axes[name].dense for name, values in self._targets.items() for value in values)

    def leaves_dense(self, axis: str) -> bool:
        """Whether an axis is not set, or at its dense value in every row."""
        return all(value == AXES_in_axes[axis].dense for value in self._targets.get(axis, ()))

    def check(self, space: ActionSpace, rows: int | None = None) -> None:
        """Raise [`BudgetError`] if no schedule over `space` can meet this budget for `rows` rows."""
        if rows is not None and self.rows not in (None, rows):
            raise BudgetError(f"The budget has {self.rows} rows, but the input has {rows}.")
        strange = self.controlled - set(space.levels)
        if strange:
            raise BudgetError(
                f"The action space has no axis {', '.join(f'`{name}`' for name in sorted(strange))}: its axes are "
                f"{', '.join(space.levels)}."
            )
        for axis in space.axes:
            levels, values = space.levels[axis.name], self._targets.get(axis.name)
            if values is None and max(levels) != axis.dense:
                raise BudgetError(
                    f"`{axis.name}` is not set, so it would stay dense ({axis.dense:g}), but the largest level of the "
                    f"action space is {max(levels):g}: set `{axis.name}`, or add the level {axis.dense:g}."
                )
            least = min(space.spent[axis.name])
            if values is not None and min(values) < least:
                what = "the smallest level of the action space"
                if least != min(levels):
                    what = f"what {what} ({min(levels):g}) is carried out with"
                raise BudgetError(f"`{axis.name}`={min(values):g} is below {what}, {least:g}.")

    def targets(self, rows: int, device: torch.device | str = "cpu", space: ActionSpace | None = None) -> torch.Tensor:
        """Targets in ratio units, dense where an axis is not set, of shape `(rows, axes)`."""
        columns = []
        for axis in PUBLISHED_AXES if space is None else space.axes:
            values = self._targets.get(axis.name, (axis.dense,))
            column = torch.tensor(values, dtype=torch.float32, device=device) / axis.scale
            if rows % len(column):
                raise BudgetError(f"The budget has {len(column)} rows, but the input has {rows}.")
            columns.append(column.repeat_interleave(rows // len(column)))
        return torch.stack(columns, dim=-1)


def _as_tuple(name: str, value: Any) -> tuple[float, ...]:
    if hasattr(value, "tolist"):  # tensors, NumPy arrays and NumPy scalars
        value = value.tolist()
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if not values or any(isinstance(x, bool) or not isinstance(x, int | float) for x in values):
        raise BudgetError(f"`{name}` must be a number, or one number per row, got {value!r}.")
    return tuple(values)


# =====================================================================================================================
# budget/calibration.py
#
# One number instead of one per axis: the best budget for a share of the compute, from a table that was measured.
#
# A table holds the front of a policy, by ascending cost; `compute` is interpolated between two of its points:
#
#     net_keep     .36        .54         .71          1 (dense)
#                   ├──────────┼───────────┼───────────┤
#     budget       (.2,.5,6)  (.5,.7,8)   (.8,.8,9)    (1,1,16)        compute=.45: half way between the first two
#     loss         +.9        +.2         +.05         0               in nats per token, above dense
#
# The cost is in one of three [`UNITS`], which every point names. A calibration has a table in one of them, or in
# several. The dense budget always belongs to a cost of 1. Tables from before the *dense row* was stored say nothing of
# its log-perplexity, and so nothing of the loss.
# =====================================================================================================================


NET_KEEP, LOG_PERPLEXITY = "net_keep", "log_perplexity"
ROUNDING_in_calibration = 1e-9
QUALITY = "quality"
"""`compute="quality:0.02"` asks for the cheapest setting that loses at most 0.02 nats per token."""
UNITS = {
    NET_KEEP: "net keep rate, the mean of the axes",
    "bytes": "share of the bytes of a dense step",
    "time": "share of the time of a dense step",
}
"""What `compute` can count, and what that is in words."""

Points = Sequence[dict[str, float]]


def point_keys(space: ActionSpace, unit: str = NET_KEEP) -> tuple[str, ...]:
    """Keys of a point of a calibration table: cost in its unit, the axes of the action space, log-perplexity."""
    return (unit, *space.axis_names, LOG_PERPLEXITY)


def unit_of(point: Any) -> str:
    """The unit of a point's cost; net keep for one that names none, which [`check_calibration`] refuses."""
    return next((unit for unit in UNITS if isinstance(point, dict) and unit in point), NET_KEEP)


def units_of(points: Points | None) -> tuple[str, ...]:
    """The units of the tables of a calibration, in the order of its points."""
    return tuple(dict.fromkeys(map(unit_of, points or ())))


def check_unit(unit: Any, name: str = "compute_unit") -> None:
    """Raise a ValueError for a unit that there is not; `name` is that of the argument."""
    if unit not in UNITS:
        raise ValueError(f"`{name}` must be one of {', '.join(UNITS)}, got {reprlib.repr(unit)}.")


def table_in(unit: str | None, points: Points | None) -> Points | None:
    """The points of a calibration whose cost is in a unit, of the first one if that is `None`."""
    if unit is not None:
        check_unit(unit)
    if points is None:
        return None
    there = units_of(points)
    unit = unit or there[0]
    if unit not in there:
        words = " and ".join(f"`{other}` ({UNITS[other]})" for other in there)
        raise ValueError(
            f"The calibration of this policy has no table in `{unit}`, only in {words}: pass "
            f'`compute_unit="{there[0]}"`, or make one with `sol-hf pareto POLICY --data FILE --out DIR --save '
            f"--unit {unit}`."
        )
    return [point for point in points if unit_of(point) == unit]


def check_calibration(points: Sequence[Any], space: ActionSpace) -> None:
    """Raise a ValueError if a calibration is no front over an action space in each of its units."""
    if not points:
        raise ValueError("`calibration` is empty: give it points, or leave it `None`.")
    for point in points:
        _check_point(point, space)
    for unit in units_of(points):
        table = [point for point in points if unit_of(point) == unit]
        for left, right in zip(table, table[1:], strict=False):
            falls = left[LOG_PERPLEXITY] > right[LOG_PERPLEXITY] or right[unit] == 1  # cheap steps may beat dense ones
            if not (left[unit] < right[unit] and falls):
                raise ValueError(
                    f"`calibration` must be a front, `{unit}` ascending and `log_perplexity` descending from point to "
                    f"point; {left!r} and {right!r} are not."
                )


def _check_point(point: Any, space: ActionSpace) -> None:
    unit = unit_of(point)
    keys = point_keys(space, unit)
    if not isinstance(point, dict) or set(point) != set(keys):
        others = " or ".join(f"`{other}`" for other in UNITS if other != unit)
        raise ValueError(
            f"A point of `calibration` has the keys {', '.join(keys)}, got {reprlib.repr(point)}. Instead of `{unit}` "
            f"it may have {others}."
        )
    numbers = [point[key] for key in keys]
    if any(isinstance(x, bool) or not isinstance(x, int | float) or not -1e300 < x < 1e300 for x in numbers):
        raise ValueError(f"A point of `calibration` consists of finite numbers, got {reprlib.repr(point)}.")
    if not 0 < point[unit] <= 1:
        raise ValueError(f"`{unit}` in `calibration` must lie in (0, 1], got {point[unit]}.")
    Budget.of({axis: point[axis] for axis in space.axis_names}).check(space)


def dense_row(space: ActionSpace, log_perplexity: float, unit: str = NET_KEEP) -> dict[str, float]:
    """The point of a calibration table at a cost of 1."""
    dense = {axis.name: float(axis.dense) for axis in space.axes}
    return {unit: 1.0, **dense, LOG_PERPLEXITY: log_perplexity}


def budget_for(compute: AxisTarget, points: Points | None, unit: str | None = None) -> Budget:
    """The budget for a share of the compute, interpolated linearly between the two nearest points of a front."""
    table = table_in(unit, points)
    rates = _rates(compute, table)
    if table is None and set(rates) == {1}:
        return Budget.of({axis.name: [axis.dense] * len(rates) for axis in PUBLISHED_AXES})
    table = _require_range(table, rates)
    targets = [_targets_for(rate, table) for rate in rates]
    return Budget.of({axis: [row[axis] for row in targets] for axis in targets[0]})


def expected_loss(compute: AxisTarget, points: Points | None, unit: str | None = None) -> float | list[float]:
    """What a share of the compute costs: log-perplexity above that of the base alone, interpolated linearly."""
    found = table_in(unit, points)
    rates = _rates(compute, found)
    table = _require_range(found, rates)
    _check_dense_row(table)
    losses = []
    for rate in rates:
        right = _right_of(rate, table)
        share, left = _share_between(rate, table, right), table[max(right - 1, 0)]
        losses.append(left[LOG_PERPLEXITY] + share * (table[right][LOG_PERPLEXITY] - left[LOG_PERPLEXITY]))
    above = [loss - table[-1][LOG_PERPLEXITY] for loss in losses]
    is_sequence = isinstance(_plain_in_calibration(compute), list | tuple)
    return above if is_sequence else above[0]


HOW_TO_MAKE = "`sol-hf pareto POLICY --data FILE --out DIR --save` writes it into the config of a policy."


def _require_range(table: Points | None, rates: Sequence[float]) -> Points:
    """A calibration table whose range holds all rates."""
    if table is None:
        raise ValueError(
            "`compute` needs a calibration table, which this policy's config lacks: make one with `sol-hf pareto "
            "POLICY --data FILE --out DIR --save`, or pass targets such as `token_keep`, `mlp_keep` and `bits`."
        )
    unit = unit_of(table[0])
    lowest = table[0][unit]
    for rate in rates:
        if not lowest <= rate <= 1:
            raise BudgetError(
                f"`compute` must lie in {lowest:.3g}..1 for this policy, in `{unit}` ({UNITS[unit]}), got {rate}."
            )
    return table


def _check_dense_row(table: Points) -> None:
    if table[-1][unit_of(table[0])] < 1:
        raise ValueError(
            "The calibration table of this policy has no dense row, so it does not say what a budget costs: make it "
            f"again. {HOW_TO_MAKE}"
        )


def rate_within(quality: str, table: Points | None) -> float:
    """The cheapest cost whose calibrated loss above dense stays within a limit, such as `"quality:0.02"`."""
    word, _, number = quality.partition(":")
    try:
        most = float(number)
    except ValueError:
        most = math.nan
    if word.strip() != QUALITY or not (math.isfinite(most) and most >= 0):
        raise BudgetError(
            f"`compute` must be a number, one number per row, or `{QUALITY}:` and nats per token, such as "
            f"`{QUALITY}:0.02`, got {reprlib.repr(quality)}."
        )
    table = _require_range(table, [])
    _check_dense_row(table)
    *measured, dense = table
    unit = unit_of(dense)
    losses = [point[LOG_PERPLEXITY] - dense[LOG_PERPLEXITY] for point in measured]
    most += ROUNDING_in_calibration
    if not losses or losses[-1] > most:
        best = f"the best measured one loses {losses[-1]:.3g} at {unit}={measured[-1][unit]:.3g}" if losses else "none"
        raise BudgetError(
            f"No setting of this policy's calibration stays within {float(number):g} nats of dense ({best}): ask for "
            f"`{QUALITY}:` and more, pass `compute` as a share of dense, which is 1, or sweep larger budgets. "
            f"{HOW_TO_MAKE}"
        )
    right = next(place for place, loss in enumerate(losses) if loss <= most)
    if right == 0:
        return measured[0][unit]
    share = (losses[right - 1] - most) / (losses[right - 1] - losses[right])
    return measured[right - 1][unit] + share * (measured[right][unit] - measured[right - 1][unit])


def _plain_in_calibration(compute: AxisTarget) -> Any:
    """A number or a list of numbers, also for tensors, NumPy arrays and NumPy scalars."""
    return getattr(compute, "tolist", lambda: compute)()


def _rates(compute: AxisTarget, table: Points | None) -> list[float]:
    """The numbers of `compute`; for a quality the cost that has it."""
    plain = _plain_in_calibration(compute)
    rates = list(plain) if isinstance(plain, list | tuple) else [plain]
    rates = [rate_within(x, table) if isinstance(x, str) and x.startswith(QUALITY) else x for x in rates]
    if not rates or any(isinstance(x, bool) or not isinstance(x, int | float) for x in rates):
        raise BudgetError(
            f"`compute` must be a number, or one number per row, or `{QUALITY}:` and nats per token, got {compute!r}."
        )
    return rates


def _targets_for(rate: float, table: Points) -> dict[str, float]:
    """The target of every axis of the table at a cost."""
    axes, unit = axes_named(key for key in table[0] if key not in (*UNITS, LOG_PERPLEXITY)), unit_of(table[0])
    dense = {axis.name: float(axis.dense) for axis in axes}
    table = [point for point in table if point[unit] < 1]
    right = _right_of(rate, table)
    after = table[right] if right < len(table) else dense
    share = _share_between(rate, table, right)
    if share == 1:
        return {axis: float(after[axis]) for axis in dense}
    left = table[right - 1]
    return {axis: left[axis] + share * (after[axis] - left[axis]) for axis in dense}


def _right_of(rate: float, table: Points) -> int:
    """Place of the first point whose cost is not below `rate`."""
    return bisect_left([point[unit_of(point)] for point in table], rate)


def _share_between(rate: float, table: Points, right: int) -> float:
    """Where a rate lies between a point at `right` and the one before it: 1 at the former. After the last comes 1."""
    if right == 0:
        return 1.0
    unit = unit_of(table[0])
    below, above = table[right - 1][unit], table[right][unit] if right < len(table) else 1.0
    return (rate - below) / (above - below)


# =====================================================================================================================
# budget/calibration_conditions.py
#
# Under what a calibration table was measured: a share of bytes or time is true of a context, a dtype, a machine.
# =====================================================================================================================


CONDITIONS: dict[str, type] = {
    "context_length": int,
    "dtype": str,
    "bits_backend": str,
    "budget_mode": str,
    "budget_horizon": str,
    "kv_refresh": str,
    "machine": str,
    "threads": int,
}
"""What is stored of a table, and the types of the values."""
LONGEST_in_calibration_conditions = 200


def check_conditions(conditions: Any) -> None:
    """Raise a ValueError for stored conditions with an unknown unit or name, or a value that it cannot have."""
    for unit, named in conditions.items():
        if unit not in UNITS or not isinstance(named, Mapping):
            raise ValueError(
                f"`calibration_conditions` has an object for each of {', '.join(UNITS)}, got {reprlib.repr(unit)}: "
                f"{reprlib.repr(named)}."
            )
        for name, value in named.items():
            kind = CONDITIONS.get(name)
            if kind is None or isinstance(value, bool) or not isinstance(value, kind) or len(str(value)) > LONGEST_in_calibration_conditions:
                raise ValueError(
                    f"`calibration_conditions` has {', '.join(CONDITIONS)}, whole numbers or short strings, got "
                    f"{reprlib.repr(name)}: {reprlib.repr(value)}."
                )


def in_words(unit: str, conditions: Mapping[str, Any] | None = None) -> str:
    """A unit and the conditions of its table, such as `share of the bytes of a dense step (dtype float32)`."""
    if not conditions:
        return UNITS[unit]
    return f"{UNITS[unit]} ({', '.join(f'{name} {value}' for name, value in sorted(conditions.items()))})"


# =====================================================================================================================
# budget/named_axes.py
#
# The axes that a config names, or has levels of.
# =====================================================================================================================


def find_axes(
    names: Iterable[str] | None, given: Mapping[str, Any], taken_names: Callable[[], Set[str]]
) -> tuple[Axis, ...]:
    """The axes of an action space: `names` if given, else the published axes and all others that have levels."""
    published = [axis.name for axis in PUBLISHED_AXES]
    further = [name for name, levels in given.items() if levels is not None and name not in published]
    names = [*published, *further] if names is None else list(names)
    for name in names:
        if name not in AXES_in_axes:
            raise ValueError(
                f"The action space of this config has the axis `{name}`, which is not registered: import the package "
                "that registers it first (see `register_axis`)."
            )
    if names[: len(published)] != published or len(set(names)) != len(names):
        raise ValueError(f"`axes` must begin with {', '.join(published)} and name every axis once, got {names}.")
    unnamed = set(further) - set(names)
    if unnamed:
        raise ValueError(
            f"There are levels of {', '.join(sorted(unnamed))}, but `axes` names only {', '.join(names)}."
        )
    added = names[len(published) :]
    taken = taken_names() if added else frozenset()
    for name in added:
        if name in taken:
            raise ValueError(
                f"An axis cannot be named `{name}`: SOLConfig, Budget or `generate` use that name for something else."
            )
    return tuple(AXES_in_axes[name] for name in names)


# =====================================================================================================================
# budget/place_costs.py
#
# What the levels of every axis cost at every place of a page, and the levels of least cost at a mean.
#
#     place in the page     0     1     2   ...    7           a page with few keys is often not read, so that a step
#     cost at level .2     .9    .5    .3         .1           which has just begun one loses more
#
# At a mean over the places, the level of each follows from the lower convex hull of its costs: what is left of the mean
# goes where it lowers costs most. One place at most lies between two levels, which it takes in turn.
# =====================================================================================================================


MOST_PLACES = 4096


@dataclass(frozen=True)
class PlaceCosts:
    """Measured costs by the place in a page; small, and stored as JSON."""

    costs: Mapping[str, Sequence[Sequence[float]]]

    @classmethod
    def of(cls, space: ActionSpace, tables: Sequence[torch.Tensor]) -> "PlaceCosts":
        """From one tensor `(places, levels)` per axis."""
        return cls({axis: table.tolist() for axis, table in zip(space.axis_names, tables, strict=True)})

    @classmethod
    def from_json(cls, values: Any, space: ActionSpace, page_size: int) -> "PlaceCosts":
        """From what [`PlaceCosts.to_json`] returned."""
        shapes = {axis: (page_size, len(levels)) for axis, levels in space.levels.items()}
        if not isinstance(values, Mapping) or set(values) != set(shapes):
            raise ValueError(f"`place_costs` names the axes {', '.join(shapes)}, got {_brief(values)}.")
        for axis, (places, levels) in shapes.items():
            table = values[axis]
            rows = [table] if not isinstance(table, list | tuple) else list(table)
            if len(rows) != places or any(not _is_row(row, levels) for row in rows):
                raise ValueError(
                    f"`place_costs` of `{axis}` are {places} lists (`page_size`) of {levels} numbers, 0 or more (one "
                    f"for each level), got {_brief(table)}."
                )
        return cls({axis: tuple(tuple(map(float, row)) for row in values[axis]) for axis in shapes})

    def to_json(self) -> dict[str, list[list[float]]]:
        """Values for JSON."""
        return {axis: [[float(f"{x:.6g}") for x in row] for row in table] for axis, table in self.costs.items()}

    @property
    def places(self) -> int:
        """Places of a page."""
        return len(next(iter(self.costs.values())))


def _is_row(row: Any, levels: int) -> bool:
    if not isinstance(row, list | tuple) or len(row) != levels:
        return False
    return all(isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < 1e30 for x in row)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def levels_by_place(
    costs: torch.Tensor, levels: torch.Tensor, mean: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels of least cost at a mean over the places."""
    order = levels.double().argsort()
    sizes = levels.double()[order]
    low = torch.full((len(costs),), float(sizes[0]), dtype=torch.float64)
    high, share = low.clone(), torch.zeros_like(low)
    left = (min(max(mean, float(sizes[0])), float(sizes[-1])) - float(sizes[0])) * len(costs)
    segments = [
        (slope, place, begin, end)
        for place, row in enumerate(costs.double()[:, order].cummin(dim=1).values)
        for slope, begin, end in _hull(sizes.tolist(), row.tolist())
    ]
    for _, place, begin, end in sorted(segments):  # the steepest fall first; those of a place in their order
        if left <= 1e-9:
            break
        taken = min(1.0, left / (end - begin))
        left -= taken * (end - begin)
        low[place], high[place], share[place] = (end, end, 0.0) if taken == 1 else (begin, end, taken)
    return low, high, share


def _hull(sizes: Sequence[float], costs: Sequence[float]) -> list[tuple[float, float, float]]:
    """Segments of the lower convex hull of costs over levels: slope, beginning and end of each."""
    points: list[tuple[float, float]] = []
    for point in zip(sizes, costs, strict=True):
        if points and point[0] - points[-1][0] < 1e-9:  # levels that spend the same
            continue
        while len(points) > 1 and _slope(points[-2], points[-1]) >= _slope(points[-1], point):
            points.pop()
        points.append(point)
    return [(_slope(a, b), a[0], b[0]) for a, b in zip(points, points[1:], strict=False)]


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])


# =====================================================================================================================
# selection/channels.py
#
# The largest channels of a token: the `mlp_keep` axis as a pure function.
#
# Tensors may have any number of dimensions between the rows and the channels. Settings are per row and on the device.
# =====================================================================================================================


def kept_count(fraction: torch.Tensor, total: torch.Tensor | int) -> torch.Tensor:
    """`ceil(fraction * total)`, at least 1, corrected for the rounding error of `fraction`."""
    return torch.ceil(fraction * total * (1.0 - 1e-6)).clamp(min=1).long()


def per_row(setting: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A setting `(rows,)` in a shape that broadcasts against `x` `(rows, ...)`."""
    return setting.view(-1, *[1] * (x.dim() - 1))


def per_token(setting: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A setting `(rows,)` for each token of `x` `(rows, ..., channels)`, `(tokens,)`."""
    each = x.shape[1:-1].numel()
    return setting if each == 1 else setting.repeat_interleave(each)


def keep_top_channels_in_channels(x: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """Zero all but the `ceil(fraction * channels)` channels of largest magnitude of every token."""
    return torch.where(kept_channels(x, fraction), x, 0)


def kept_channels(x: torch.Tensor, fraction: torch.Tensor) -> torch.Tensor:
    """The channels that [`keep_top_channels`] keeps, a mask of the shape of `x`."""
    return largest(x.detach().abs(), kept_count(fraction, x.shape[-1]))


def largest(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """A mask of the `count` largest values along the last dimension; of equal ones, the first. NaN counts as large."""
    count = per_row(count, values)
    place = (values.shape[-1] - count).expand(*values.shape[:-1], 1)
    least = _sort(values).gather(-1, place)
    if values.device.type == "cpu":  # reading values costs no synchronization here; ties are rare
        keep = ~(values < least)
        if torch.equal(keep.sum(dim=-1, keepdim=True), count.expand_as(place)):
            return keep
    larger = ~(values <= least)
    equal = values == least
    return larger | (equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= count - larger.sum(dim=-1, keepdim=True)))


def _sort(x: torch.Tensor) -> torch.Tensor:
    """Ascending along the last dimension. On the CPU numpy sorts short vectors several times faster than torch."""
    if x.device.type != "cpu":
        return x.sort(dim=-1).values
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return torch.from_numpy(np.sort(wide.numpy(), axis=-1)).to(x.dtype)


# =====================================================================================================================
# selection/rule.py
#
# The settings of a selection, and its result.
# =====================================================================================================================


@dataclass(frozen=True)
class SelectionRule:
    """The settings of a selection that do not change from step to step."""

    criterion: str = "quest"
    page_size: int = 8
    selection: str = "head"
    sink_tokens: int = 4
    window_tokens: int = 2
    anchor_pages: bool = False
    index_bits: int = 4
    short_text_tokens: int = 0

    @property
    def recent_tokens(self) -> int:
        """The last tokens, a step's own included, that are always read by criteria which keep a window."""
        return self.window_tokens + 2

    def is_controllable(self, count: Any) -> Any:
        """Whether a step that sees `count` keys (its own included), a number or a tensor, is controllable."""
        return count > self.sink_tokens + self.window_tokens + 1

    def reads_all(self, count: torch.Tensor) -> torch.Tensor:
        """Whether a step that sees `count` keys (its own included) reads them all, of the shape of `count`."""
        return count <= self.short_text_tokens

    def check_levels(self, token_keep: Sequence[float]) -> None:
        """Raise a ValueError if a step cannot read all keys under these levels of `token_keep`, but may have to."""
        if self.short_text_tokens and max(token_keep) < 1:
            raise ValueError(
                f"`short_text_tokens` ({self.short_text_tokens}) lets steps read all tokens: `token_keep` needs the "
                f"level 1.0, got {list(token_keep)}: add it, or set `short_text_tokens=0`."
            )

    def refuse_short_text(self, context_length: int) -> None:
        """Raise a ValueError if `token_keep` has no effect on the first step after a context."""
        if context_length < self.short_text_tokens:
            raise ValueError(
                f"After a context of {context_length} tokens `token_keep` has no effect: steps that see up to "
                f"{self.short_text_tokens} tokens read all of them (`short_text_tokens`). Give a context of "
                f"{self.short_text_tokens} tokens or more, or measure with `SOLConfig(short_text_tokens=0)`."
            )

    def page_fill(self, count: Any) -> Any:
        """Filled share of the page that a step's own token is in, that token included; `count` may be a tensor."""
        return ((count - 1) % self.page_size + 1) / self.page_size


@dataclass(frozen=True)
class Selection:
    """The keys that a step reads."""

    ranks: torch.Tensor
    in_use: torch.Tensor


# =====================================================================================================================
# selection/ranking.py
#
# Helpers of criteria: queries by key-value head, and the highest scores of every row.
# =====================================================================================================================


def group_queries(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Query heads of one token by key-value head: `(rows, heads, 1, dim)` to `(rows, kv_heads, group, dim)`."""
    rows, heads, _, dim = query.shape
    return query.reshape(rows, kv_heads, heads // kv_heads, dim)


def share_scores(scores: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """`(rows, kv_heads, group, n)` to `(rows, H, n)`, summed over the group with `selection="group"`."""
    return scores.sum(dim=2) if rule.selection == "group" else scores.flatten(1, 2)


def top_ranked(scores: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the `wanted` `(rows,)` highest of `scores` `(rows, H, n)`, and a mask of the indices that are wanted."""
    total = scores.shape[-1]
    most = min(int(wanted.max()), total) if scores.device.type == "cpu" else total
    order = scores.topk(most, dim=-1).indices
    place = torch.arange(most, device=scores.device)
    return order, (place < wanted[:, None, None]).expand_as(order)


# =====================================================================================================================
# selection/pages.py
#
# Pages of keys: their bounds, their scores for a query, and the choice of pages.
#
# A page is `page_size` consecutive keys, counted from the first key of a batch row. Its *bounds* are the maximum and the
# minimum of every channel over its keys.
# =====================================================================================================================


def page_bounds(
    keys: torch.Tensor, page_size: int, page_origin: torch.Tensor, first_key: torch.Tensor, pages: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The bounds of every page, computed from its keys."""
    rows, heads, slots, dim = keys.shape
    slot = page_origin[:, None] + torch.arange(pages * page_size, device=keys.device)
    valid = (slot >= first_key[:, None]) & (slot < slots)
    index = slot.clamp(0, slots - 1)[:, None, :, None].expand(rows, heads, -1, dim)
    paged = keys.gather(2, index).view(rows, heads, pages, page_size, dim)
    valid = valid.view(rows, 1, pages, page_size, 1)
    empty = ~valid.any(dim=3)
    upper = paged.masked_fill(~valid, float("-inf")).amax(dim=3).masked_fill(empty, 0)
    lower = paged.masked_fill(~valid, float("inf")).amin(dim=3).masked_fill(empty, 0)
    return upper, lower


def split_by_sign(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The positive and the negative part of queries; their sum is the query."""
    return query.clamp(min=0), query.clamp(max=0)


def page_scores(query: torch.Tensor, upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """Upper bound of `q . k` over the keys of every page: the sum over channels of max(q * max, q * min)."""
    positive, negative = split_by_sign(query)
    return positive @ upper.transpose(-1, -2) + negative @ lower.transpose(-1, -2)


def choose_pages(
    scores: torch.Tensor,
    token_keep: torch.Tensor,
    page_origin: torch.Tensor,
    first_key: torch.Tensor,
    slots: int,
    rule: SelectionRule,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pages with the highest scores, and a mask of those to read."""
    pages = scores.shape[-1]
    has_keys = torch.arange(pages, device=scores.device) * rule.page_size < (slots - page_origin)[:, None]
    scores = share_scores(scores, rule).masked_fill(~has_keys[:, None], float("-inf"))
    scores = with_anchors(scores, slots - page_origin, rule)
    wanted = pages_to_read(token_keep, slots - first_key, rule, slots - page_origin)
    # A window that begins within a page spans one page more than its keys would fill.
    return top_ranked(
        scores, torch.where(kept_count(token_keep, slots - first_key) >= slots - first_key, pages, wanted)
    )


def with_anchors(scores: torch.Tensor, count: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """Scores of pages `(rows, H, pages)` with the highest of all for those that `anchor_pages` always reads."""
    if not rule.anchor_pages:
        return scores
    seen = scores > float("-inf")
    page = seen.cumsum(dim=-1) - 1
    is_anchor = seen & ((page == 0) | (page >= recent_page(count, rule)[:, None, None]))
    return scores.masked_fill(is_anchor, float("inf"))


def recent_page(count: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """The first of the pages that hold the last tokens of `count`."""
    return torch.div((count - rule.recent_tokens).clamp(min=0), rule.page_size, rounding_mode="floor")


def pages_to_read(
    token_keep: torch.Tensor | None, count: torch.Tensor, rule: SelectionRule, from_page: torch.Tensor | None = None
) -> torch.Tensor:
    """Number of pages that [`choose_pages`] reads, `(rows,)`."""
    wanted = pages_for(count if token_keep is None else kept_count(token_keep, count), rule)
    if not rule.anchor_pages:
        return wanted
    return torch.maximum(wanted, anchors(count if from_page is None else from_page, rule))


def anchors(count: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """Number of the pages that `anchor_pages` always reads, of the shape of `count`, the keys from page 0 on."""
    recent = recent_page(count, rule)
    return pages_for(count, rule) - recent + (recent > 0)


def pages_for(tokens: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """Number of pages that `tokens` keys occupy, `(rows,)`; the last one may not be full."""
    return torch.div(tokens + (rule.page_size - 1), rule.page_size, rounding_mode="floor")


def keep_for_anchors(token_keep: torch.Tensor, count: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
    """The least `token_keep` `(rows,)` from the given one on whose pages include those that are always read."""
    if not rule.anchor_pages:
        return token_keep
    keys_before_last = (anchors(count, rule) - 1) * rule.page_size
    return torch.maximum(token_keep, (keys_before_last + 0.5) / count)


# =====================================================================================================================
# selection/sketch.py
#
# Keys in a few bits: small enough to be read for every token, and good enough to rank all keys.
#
# Keys have channels that are far from zero in all tokens. So the mean over the first tokens of a text is taken away
# first, per key-value head and channel. (It depends on the text alone, not on what of it was a prompt.) What is left is
# rounded to whole numbers, with one scale per token and head:
#
#     key - mean  =  code * scale,      code in -top..top,      top = 2^(bits - 1) - 1
#
# The mean is the same for all keys of a head, so it adds the same to all scores of a query, and is not added back.
#
# Packed codes hold `code + top`. A byte has several channels, `channels / parts` apart, so that code that reads whole
# bytes gets neighbouring channels:
#
#     4 bits      | 0, d/2 | 1, d/2 + 1 | ...                                 two channels a byte
#     3 bits      two bits of each as with 2 bits, then the lowest bit of each as with 1 bit
# =====================================================================================================================


INDEX_BITS = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}
"""Numbers of bits that a code can have, and the widths of the parts that it is packed in, the highest bits first."""
MOST_IN_MEAN = 64
"""Tokens over which the mean is taken. Of a shorter text it is the largest power of two, so that it changes rarely."""

SMALLEST_SCALE = 1e-8
"""Scales are at least this large, and never below what their dtype can hold, so that codes are numbers."""


def tokens_in_mean(count: torch.Tensor) -> torch.Tensor:
    """Number of a row's first tokens over which the mean is taken, of the shape of `count`, its tokens."""
    powers = 2 ** torch.arange(MOST_IN_MEAN.bit_length(), device=count.device)
    return torch.where(powers <= count[..., None], powers, 1).amax(dim=-1)


def channel_means(keys: torch.Tensor, first_key: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Means over the first tokens of every row, `(rows, kv_heads, 1, head_dim)`, in float32."""
    place = torch.arange(keys.shape[2], device=keys.device) - first_key[:, None]
    counted = (place >= 0) & (place < tokens[:, None])
    total = torch.where(counted[:, None, :, None], keys, 0).sum(dim=2, keepdim=True, dtype=torch.float64)
    return (total / tokens.view(-1, 1, 1, 1)).float()


def encode_in_sketch(keys: torch.Tensor, mean: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of keys, and their scales."""
    top = 2 ** (bits - 1) - 1
    centred = keys.float() - mean
    smallest = max(SMALLEST_SCALE, torch.finfo(keys.dtype).smallest_normal)
    scale = (centred.abs().amax(dim=-1) * (1 / top)).clamp(min=smallest).to(keys.dtype)
    codes = (centred / scale[..., None].float()).round().clamp(-top, top)
    return codes.to(torch.int8), scale


def decode_in_sketch(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The keys that codes stand for, without the mean, in float32."""
    return codes.float() * scale[..., None].float()


def bytes_per_key(dim: int, bits: int) -> int:
    """Bytes of the packed codes of a key with `dim` channels."""
    return sum(_bytes(dim, width) for width in INDEX_BITS[bits])


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes `(..., channels)` as uint8 `(..., bytes_per_key(channels, bits))`."""
    values = codes.to(torch.int16) + 2 ** (bits - 1) - 1
    left, packed = bits, []
    for width in INDEX_BITS[bits]:
        left -= width
        part = (values >> left) & (2**width - 1)
        count, fields = _bytes(codes.shape[-1], width), 8 // width
        part = torch.nn.functional.pad(part, (0, count * fields - codes.shape[-1])).unflatten(-1, (fields, count))
        shifts = torch.arange(fields, device=codes.device, dtype=torch.int16)[:, None] * width
        packed.append((part << shifts).sum(dim=-2).to(torch.uint8))
    return torch.cat(packed, dim=-1)


def unpack(packed: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """The codes `(..., dim)`, int8, that were packed with [`pack`]."""
    values, left, begin = torch.zeros(*packed.shape[:-1], dim, dtype=torch.int16, device=packed.device), bits, 0
    for width in INDEX_BITS[bits]:
        left -= width
        count, fields = _bytes(dim, width), 8 // width
        part = packed[..., begin : begin + count].to(torch.int16)[..., None, :]
        shifts = torch.arange(fields, device=packed.device, dtype=torch.int16)[:, None] * width
        values += (((part >> shifts) & (2**width - 1)).flatten(-2)[..., :dim]) << left
        begin += count
    return (values - (2 ** (bits - 1) - 1)).to(torch.int8)


def _bytes(dim: int, width: int) -> int:
    return -(-dim * width // 8)


# =====================================================================================================================
# selection/candidates.py
#
# The input of a criterion: the queries of a step and the cached keys that they may read.
# =====================================================================================================================


class Candidates:
    """The keys of one layer that the queries of a step may read."""

    def __init__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        page_origin: torch.Tensor,
        first_key: torch.Tensor,
        page_size: int,
        scaling: float | None = None,
    ):
        self.query, self.page_origin, self.first_key, self.page_size = query, page_origin, first_key, page_size
        self.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        self._keys = keys

    @property
    def keys(self) -> torch.Tensor:
        """Cached keys, `(rows, kv_heads, slots, head_dim)`."""
        return self._keys

    @property
    def stored_keys(self) -> torch.Tensor:
        """The keys in the dtype in which they are stored, from which codes are made."""
        return self._keys

    @property
    def slots(self) -> int:
        """Number of slots, those of padding included."""
        return self._keys.shape[2]

    @property
    def counts(self) -> torch.Tensor:
        """Number of keys of every row, `(rows,)`."""
        return self.slots - self.first_key

    @property
    def places(self) -> torch.Tensor:
        """Place of every slot in the text of its row, `(rows, slots)`; negative where there is no key of the row."""
        return torch.arange(self.slots, device=self.first_key.device) - self.first_key[:, None]

    def slots_at(self, places: torch.Tensor) -> torch.Tensor:
        """The slots of some places in the text of every row, `(rows, n)` both."""
        return places + self.first_key[:, None]

    def exact_scores(self) -> torch.Tensor:
        """`q . k` of every query head and slot, `(rows, kv_heads, group, slots)`."""
        return self.query @ self.keys.transpose(2, 3)

    def coded_scores(self, bits: int) -> torch.Tensor:
        """`q . k` with the keys in a few bits, `(rows, kv_heads, group, slots)`, in float32."""
        keys = self.stored_keys
        mean = channel_means(keys, self.first_key, tokens_in_mean(self.slots - self.first_key))
        return self.query.float() @ decode_in_sketch(*encode_in_sketch(keys, mean, bits)).transpose(2, 3)

    def page_bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Channel-wise maximum and minimum of every page, each `(rows, kv_heads, pages, head_dim)`."""
        pages = self.slots // self.page_size + 2
        return page_bounds(self.keys, self.page_size, self.page_origin, self.first_key, pages)

    def slots_of(self, selection: Selection) -> tuple[torch.Tensor, torch.Tensor]:
        """Slots of a selection `(rows, H, m)`, and a mask of the same shape, true for the slots to read."""
        slot = selection.ranks + self.page_origin[:, None, None]
        return slot, selection.in_use & (slot >= self.first_key[:, None, None]) & (slot < self.slots)

    def mask_of(self, selection: Selection) -> torch.Tensor:
        """A selection as a mask `(rows, H, slots)`."""
        slot, in_use = self.slots_of(selection)
        # Unused entries may name a slot that is in use. They are written to one extra column, which is cut off.
        index = torch.where(in_use, slot, self.slots)
        mask = torch.zeros(*index.shape[:2], self.slots + 1, dtype=torch.bool, device=index.device)
        return mask.scatter_(2, index, True)[..., : self.slots]


# =====================================================================================================================
# selection/refresh_gain.py
#
# What a KV refresh gains after steps at the levels of an axis: a curve through measured points.
# =====================================================================================================================


@dataclass(frozen=True)
class RefreshGain:
    """By how much later tokens lose less if an episode is refreshed, measured with all of its steps at one level."""

    points: tuple[tuple[float, float], ...] = ()

    def __call__(self, levels: torch.Tensor) -> torch.Tensor:
        """The gains at `levels` in axis units, in float64, of the same shape."""
        levels = levels.double()
        gains = torch.full_like(levels, self.points[0][1] if self.points else 0.0)
        for (low, gain), (high, next_gain) in pairwise(self.points):
            way = ((levels - low) / (high - low)).clamp(max=1.0)
            gains = torch.where(levels > low, gain + (next_gain - gain) * way, gains)
        return gains


# =====================================================================================================================
# selection/criterion.py
#
# The base class of criteria, and the registry of all criteria by name.
#
# A [`Criterion`] defines how keys are selected, what that costs, and whether the fast paths compute the same selection.
# Its name is the value of `SOLConfig(criterion=...)`.
# =====================================================================================================================


ROUNDING_in_criterion = 1e-6
"""Tolerance in `ceil(token_keep * keys)`, so that a rounding error of `token_keep` does not add a key."""

GAIN_OF_QUEST = RefreshGain(((0.1, 0.28), (0.2, 0.1), (0.3, 0.066), (0.5, 0.021), (1.0, 0.0)))
"""Of `quest` as published, which loses most; measured, see docs/performance.md."""


@dataclass(frozen=True)
class SelectionCost:
    """How much one layer reads of its cache for one token, and how much it computes."""

    attended: int
    moved: float
    scored: float = 0.0
    index_bits: float = 0.0
    index_values: float = 0.0
    index_means: float = 0.0


class Criterion:
    """How a step selects the cached keys that it reads."""

    chooses_pages: ClassVar[bool] = False
    has_kernels: ClassVar[bool] = False
    ranks_codes: ClassVar[bool] = False
    heads_may_differ: ClassVar[bool] = True
    selections: ClassVar[tuple[str, ...]] = ("head", "group")
    prefix_to_stagger: ClassVar[int | None] = None

    def check(self, rule: SelectionRule) -> None:
        """Raise a ValueError for settings that this criterion cannot be used with."""
        if rule.selection not in self.selections:
            raise ValueError(
                f"`selection` must be one of {', '.join(self.selections)} with the criterion `{rule.criterion}`, got "
                f"{rule.selection!r}."
            )
        if rule.anchor_pages and not self.chooses_pages:
            raise ValueError(
                f"`anchor_pages` needs pages, as criterion `quest` has, got {rule.criterion!r}, which always reads "
                "`sink_tokens` and `window_tokens`."
            )

    def select(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> Selection:
        """The keys that a step reads: a pure function of its arguments."""
        raise NotImplementedError

    def mask(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
        """The selection of [`Criterion.select`] as a mask `(rows, H, slots)`."""
        return candidates.mask_of(self.select(candidates, token_keep, rule))

    def has_token_kernel(self, rule: SelectionRule) -> bool:
        """Whether the compiled CPU kernel for single tokens selects the same keys under these settings."""
        return False

    def tokens_wanted(self, rule: SelectionRule, token_keep: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        """Number of keys `(rows,)` that a key-value head reads on average, for that kernel."""
        raise NotImplementedError

    def keys_read(self, rule: SelectionRule, token_keep: float, keys: int) -> int:
        """How many of `keys` keys (its own included) a query head reads; by default `ceil(token_keep * keys)`."""
        return min(keys, max(1, math.ceil(token_keep * keys - ROUNDING_in_criterion)))

    def reads_all(self, rule: SelectionRule, token_keep: float, keys: int) -> bool:
        """Whether a step reads all of its `keys` keys, as all steps of a short text may."""
        return keys <= rule.short_text_tokens or self.keys_read(rule, token_keep, keys) >= keys

    def refresh_gain(self, rule: SelectionRule) -> RefreshGain:
        """What a KV refresh gains after steps at the levels of `token_keep`; by default as much as with `quest`."""
        return GAIN_OF_QUEST

    def cost(self, rule: SelectionRule, token_keep: float, keys: int, group: int) -> SelectionCost:
        """How much a layer reads and computes for one token; by default the selection itself costs nothing."""
        attended = self.keys_read(rule, token_keep, keys)
        choices = group if self.heads_may_differ and rule.selection == "head" else 1
        return SelectionCost(attended, moved=min(keys, attended * choices))


CRITERIA: Registry[Criterion] = Registry("criterion")
"""All criteria by name."""


def register_criterion(name: str, criterion: Criterion) -> Criterion:
    """Register a criterion, so that decoding, rollouts, sweeps and costs can use `SOLConfig(criterion=name)`."""
    if not isinstance(criterion, Criterion):
        raise TypeError(f"A criterion is an instance of `Criterion`, got {criterion!r}.")
    return CRITERIA.register(name, criterion)


# =====================================================================================================================
# selection/kv_dtypes.py
#
# In which dtype a cache keeps keys and values: that of the base, or a smaller one.
# =====================================================================================================================


KV_DTYPES = ("bfloat16", "float32")
"""Values of `kv_dtype`; `None` is the dtype of the base."""


def check_kv_dtype(value: Any) -> None:
    """Raise a ValueError for a value of `kv_dtype` that there is not."""
    if value is not None and (not isinstance(value, str) or value not in KV_DTYPES):
        raise ValueError(
            f"`kv_dtype` must be one of {', '.join(KV_DTYPES)}, or None for the dtype of the base, got "
            f"{reprlib.repr(value)}."
        )


def stored_dtype(kv_dtype: str | None, base_dtype: torch.dtype) -> torch.dtype | None:
    """The dtype of the storage of a cache; `None` if it is that of the base."""
    check_kv_dtype(kv_dtype)
    wanted = None if kv_dtype is None else getattr(torch, kv_dtype)
    if wanted in (None, base_dtype):
        return None
    if base_dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"`kv_dtype={kv_dtype!r}` is for bases in float32, whose keys and values it keeps in fewer bits. This "
            f"base is in {str(base_dtype).removeprefix('torch.')}: leave `kv_dtype` out, or load the base with "
            "`dtype=torch.float32`."
        )
    return wanted


# =====================================================================================================================
# stored/fields.py
#
# Types and ranges of the fields of a config.
#
# The upper limits are far above what a policy needs. They are there for files that somebody else wrote: a page of 10⁹
# keys or an episode of 10⁹ steps would be allocated before the first error.
# =====================================================================================================================


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
    """Raise a ValueError that names the first field with a value that is not allowed."""
    for name, value in values.items():
        if name not in CHECKS or (value is None and name in OPTIONAL):
            continue
        problem = CHECKS[name].problem(value)
        if problem is not None:
            raise ValueError(f"`{name}` {problem}, got {shown(value)}.")


# =====================================================================================================================
# stored/config_keys.py
#
# Which keys of a stored config count.
#
# A `config.json` can hold any field of transformers' configs. Those of a policy that have an effect are its own fields,
# and the few below. All others are left out: an attention implementation or a quantization named there would be loaded,
# and `return_dict` or `is_encoder_decoder` would change how the model behaves.
# =====================================================================================================================


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
    """The entries of a stored config that are read, and the sorted names of those that are ignored."""
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
    """The entries of a stored `auto_map` that name this package's classes, without the name of a repository."""
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
    """Take fields under their former names out of `given`: their values by the names that they have now."""
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


# =====================================================================================================================
# stored/fingerprint.py
#
# The form of a base's fingerprint in a config; `hub/fingerprint.py` takes and compares it.
# =====================================================================================================================


SHAPE_KEYS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
"""What must be the same in another copy of a base."""
SAMPLE_KEYS = ("embedding", "last_layer")
"""Weights of which a few are stored. They differ a little in quantized, fine-tuned and cast copies."""
MOST_SAMPLES = 64


def check_fingerprint(fingerprint: Mapping[str, Any]) -> None:
    """Raise a ValueError if an entry of a fingerprint does not have its form; unknown keys are not looked at."""
    for key in SHAPE_KEYS:
        value, check = fingerprint.get(key), Text(100) if key == "model_type" else Whole(0, 2**31)
        problem = None if value is None else check.problem(value)
        if problem is not None:
            raise ValueError(f"`{key}` in `base_fingerprint` {problem}, got {shown(value)}.")
    for key in SAMPLE_KEYS:
        values = fingerprint.get(key)
        if values is not None and not (
            isinstance(values, list)
            and len(values) <= MOST_SAMPLES
            and all(is_number(value) and math.isfinite(value) for value in values)
        ):
            raise ValueError(
                f"`{key}` in `base_fingerprint` must be a list of up to {MOST_SAMPLES} finite numbers, got "
                f"{shown(values)}."
            )


# =====================================================================================================================
# stored/hub_names.py
#
# Which names are those of repositories, and not paths of this machine.
#
# Only the former are written to files. A path means nothing elsewhere, and tells about the machine it is from. The
# folder of a repository in the Hub's cache counts as that repository:
#
#     .../models--org--name/snapshots/0123abc...      org/name at commit 0123abc...
# =====================================================================================================================


_SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?$")


def hub_id(name: str | os.PathLike | None) -> str | None:
    """The id of the repository that a name or path stands for; `None` for a local folder, and for no name."""
    name = os.fspath(name) if name else ""
    snapshot = _SNAPSHOT.search(name)
    if snapshot is not None:
        return snapshot[1].replace("--", "/", 1)
    if not name or name.startswith((".", "~")) or os.path.isabs(name) or os.path.exists(name):
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def without_paths(value: Any) -> Any:
    """A value of plain types in which every absolute or existing path, at any depth, is `None`."""
    if isinstance(value, dict):
        return {name: without_paths(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(entry) for entry in value]
    is_path = isinstance(value, str) and os.sep in value and (os.path.isabs(value) or os.path.exists(value))
    return None if is_path else value


def snapshot_commit(name: str | os.PathLike | None) -> str | None:
    """The commit of a folder in the Hub's cache; `None` for any other name or path."""
    snapshot = _SNAPSHOT.search(os.fspath(name) if name else "")
    return None if snapshot is None else snapshot[2]


# =====================================================================================================================
# stored/json_files.py
#
# JSON files of a policy: read with a limit on their size, and with errors that name the file.
# =====================================================================================================================


MOST_BYTES = 8 * 2**20
"""Size of a JSON file of a policy. With a calibration of 1,000 points a config has 200 KB."""


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """The object in a JSON file."""
    size = os.path.getsize(path)
    if size > MOST_BYTES:
        raise ValueError(f"{path} has {size:,} bytes; at most {MOST_BYTES:,} are read.")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # also not UTF-8, and numbers of thousands of digits
        raise ValueError(f"{path} is truncated or damaged: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds a {type(content).__name__}.")
    return content


# =====================================================================================================================
# stored/policy_size.py
#
# How large a policy may be, by the fields of its config, before anything is allocated.
# =====================================================================================================================


def check_policy_size(config: Any, actions: int) -> None:
    """Raise a ValueError if a policy would have too many parameters."""
    size, observed = config.policy_hidden_size, (config.base_hidden_size or 0) + (config.base_embedding_size or 0)
    parameters = (
        (actions + 1) * config.action_embedding_size
        + (observed + config.action_embedding_size) * size
        + config.policy_num_layers * int(size * size * (4 + 2 * config.policy_mlp_ratio))
        + (actions + config.episode_length + config.page_size) * size
    )
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"The policy would have about {parameters:,} parameters, but at most {MOST_PARAMETERS:,} are allowed: "
            "choose smaller values of `policy_hidden_size`, `policy_num_layers`, `policy_mlp_ratio`, "
            "`action_embedding_size` or `episode_length`, or fewer levels."
        )


# =====================================================================================================================
# configuration_sol.py
#
# Configuration of a policy and of the wrapped model: base, action space, selection rule, policy sizes.
# =====================================================================================================================


ACTION_HEADS = ("joint", "factored")
AUTO_MAP = {
    "AutoConfig": "sol_remote.SOLConfig",
    "AutoModel": "sol_remote.SOLPolicyModel",
    "AutoModelForCausalLM": "sol_remote.SOLForCausalLM",
}
"""The classes of this package, in the stub file that every policy repository has."""
_WRITTEN_BY_TRANSFORMERS = frozenset(
    "name_or_path _name_or_path _commit_hash output_attentions attn_implementation experts_implementation "
    "per_layer_config auto_map model_type transformers_version torch_dtype".split()
)

_COMMON = frozenset(field.name for field in dataclasses.fields(PreTrainedConfig))

_ARGUMENTS_OF_GENERATE = frozenset(
    "compute compute_unit budget budget_mode budget_horizon exact controller action_processors kv_refresh "
    "action_temperature do_sample_actions backend bits_backend max_plane_bytes kv_dtype cuda_graphs "
    "lossless measure_agreement input_ids inputs_embeds attention_mask position_ids past_key_values "
    "context_length return_logits".split()
)

_BASE = "_config_of_base"
_LEFT_OUT = ("axes", "base_fingerprint", "calibration_unit", "calibration_conditions", "kv_dtype", "place_costs")
"""Fields that files leave out if they are `None`."""


@strict
class SOLConfig(PreTrainedConfig):
    """
    Configuration of a [`SOLPolicyModel`] and of the [`SOLForCausalLM`] that it controls."""

    model_type = "sol"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "vocab_size": "base_vocab_size",
        "max_position_embeddings": "base_max_position_embeddings",
        **RENAMED,
    }

    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_fingerprint: dict | None = None
    token_keep: list[float | int] | tuple[float | int, ...] | None = None
    mlp_keep: list[float | int] | tuple[float | int, ...] | None = None
    bits: list[int] | tuple[int, ...] | None = None
    axes: list[str] | tuple[str, ...] | None = None
    criterion: str = "quest"
    page_size: int = 8
    selection: str = "head"
    sink_tokens: int = 4
    window_tokens: int = 2
    anchor_pages: bool = False
    index_bits: int = 4
    short_text_tokens: int = 0
    kv_dtype: str | None = None
    episode_length: int = 16
    policy_hidden_size: int = 512
    policy_num_layers: int = 1
    policy_num_heads: int = 4
    policy_mlp_ratio: float | int = 4.0
    action_embedding_size: int = 32
    action_head: str = "joint"
    budget_prior: bool = False
    observe_page_fill: bool = False
    calibration: list[dict] | None = None
    calibration_unit: str | None = None
    calibration_conditions: dict | None = None
    place_costs: dict | None = None
    base_hidden_size: int | None = None
    base_embedding_size: int | None = None
    base_vocab_size: int | None = None
    base_max_position_embeddings: int | None = None
    initializer_range: float = 0.02
    sol_hf_version: str | None = None

    def __new__(cls, *args, **fields):
        """Check the fields before `@strict` does, whose errors are not ValueErrors."""
        _check_given(fields)
        return super().__new__(cls)

    def __post_init__(self, **kwargs):
        for name, value in take_renamed(kwargs, vars(self), type(self).__dataclass_fields__).items():
            setattr(self, name, value)
        unknown = sorted(set(kwargs) - set(AXES_in_axes) - _WRITTEN_BY_TRANSFORMERS)
        if unknown:
            raise ValueError(describe_unknown(unknown, self.known_keys()))
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in AXES_in_axes}
        given |= {axis.name: getattr(self, axis.name) for axis in PUBLISHED_AXES}
        axes = find_axes(self.axes, given, _taken_names)
        self.axes = None if axes == PUBLISHED_AXES else [axis.name for axis in axes]
        for axis in axes:
            setattr(self, axis.name, _as_levels(axis, given.get(axis.name)))
        super().__post_init__(**kwargs)
        self.check()
        self.calibration_unit = self.compute_unit

    def check(self) -> None:
        """Raise a ValueError that names the first field with a value that is not allowed."""
        check_fields({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        names = self.axes or [axis.name for axis in PUBLISHED_AXES]
        check_size({name: len(getattr(self, name) or ()) for name in names})
        space = self.action_space
        if self.calibration is not None:
            check_calibration(self.calibration, space)
        if self.calibration_unit is not None:
            check_unit(self.calibration_unit, "calibration_unit")
            table_in(self.calibration_unit, self.calibration)
        check_conditions(self.calibration_conditions or {})
        if self.place_costs is not None:
            PlaceCosts.from_json(self.place_costs, space, self.page_size)
        if self.base_fingerprint is not None:
            check_fingerprint(self.base_fingerprint)
        if self.criterion not in CRITERIA:
            raise CRITERIA.unknown(self.criterion)
        CRITERIA[self.criterion].check(self.selection_rule)
        check_kv_dtype(self.kv_dtype)
        self.selection_rule.check_levels(space.levels["token_keep"])
        if self.action_head not in ACTION_HEADS:
            raise ValueError(f"`action_head` must be one of {', '.join(ACTION_HEADS)}, got {self.action_head!r}.")
        if self.observe_page_fill and not CRITERIA[self.criterion].chooses_pages:
            raise ValueError(f"`observe_page_fill` needs pages, as criterion `quest` has, got {self.criterion!r}.")
        if self.policy_hidden_size % self.policy_num_heads:
            raise ValueError(
                f"`policy_hidden_size` ({self.policy_hidden_size}) must be a multiple of `policy_num_heads` "
                f"({self.policy_num_heads})."
            )
        self._check_sizes(space)

    def _check_sizes(self, space: ActionSpace) -> None:
        """Raise a ValueError if the policy would be too large, or no step of any text would be controllable."""
        longest, kept = self.base_max_position_embeddings, self.sink_tokens + self.window_tokens
        if longest is not None and kept + 1 >= longest:
            raise ValueError(
                f"No step would be controllable: `sink_tokens` and `window_tokens` are {kept} together, and the "
                f"longest text of the base has {longest} tokens (`base_max_position_embeddings`)."
            )
        check_policy_size(self, len(space))

    @classmethod
    def known_keys(cls) -> frozenset[str]:
        """Names of all fields, inherited ones and the registered axes included."""
        return (
            frozenset(field.name for field in dataclasses.fields(cls)) | frozenset(AXES_in_axes) | RENAMED.keys()
        )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Build a config from a loaded file: keys that this version does not know are dropped with one warning."""
        source = kwargs.get("name_or_path")
        where = f"{config_file(source)}: " if source else ""
        if not isinstance(config_dict, Mapping):
            raise ValueError(f"{where}A config must be a JSON object, got {shown(config_dict)}.")
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"{where}This is the config of a model of type {shown(model_type)}, not of a policy. To control that "
                "model, load it with AutoModelForCausalLM and use SOLForCausalLM.from_base(model)."
            )
        try:
            _check_given(config_dict)
            check_common_fields(config_dict)
            find_axes(config_dict.get("axes"), {}, _taken_names)
            stored, ignored = keys_that_count(config_dict, cls.known_keys() - _COMMON)
            if "auto_map" in stored:
                stored["auto_map"] = known_classes(given := stored.pop("auto_map"), AUTO_MAP)
                ignored += ["auto_map"] if given and len(stored["auto_map"]) < len(given) else []
            result = super().from_dict(stored, **kwargs)
            config = result[0] if isinstance(result, tuple) else result
            config.check()
        except (ValueError, StrictDataclassError) as error:
            raise ValueError(f"{where}{error}") from error
        if ignored:
            writer = config_dict.get("sol_hf_version")
            logger.warning(
                f"Ignoring keys of the configuration that this version of sol_hf does not know: {ignored}"
                + (f" (the file was written by sol_hf {writer})." if writer else ".")
            )
        return result

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of the stored config, and the arguments that are left."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return config_dict, {"name_or_path": str(pretrained_model_name_or_path), **kwargs}

    @classmethod
    def _dict_from_json_file(cls, json_file) -> dict[str, Any]:
        return cls._decode_special_floats(read_json_object(json_file))

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> None:
        """Write `config.json`; the name of the base only if it is a Hub id."""
        self.check()
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to register: a saved folder names its classes in its own `sol_remote.py`."""

    def to_dict(self) -> dict[str, Any]:
        """All values as plain types, without local paths."""
        output = super().to_dict()
        output.pop(_BASE, None)
        for name in _LEFT_OUT:
            if output.get(name) is None:
                output.pop(name, None)
        if output.get("_name_or_path") and not hub_id(output["_name_or_path"]):
            output["_name_or_path"] = ""
        output["base_model_name_or_path"] = hub_id(output.get("base_model_name_or_path"))
        return output

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The config of the text model; with `decoder=True` that of the base, from which transformers makes caches."""
        if _BASE in vars(self) and decoder and not encoder:
            return vars(self)[_BASE].get_text_config(decoder=True)
        return super().get_text_config(decoder=decoder, encoder=encoder)

    def describe_base(self, base: PreTrainedConfig) -> None:
        """Remember the config of the base, for [`SOLConfig.get_text_config`]. It is not written to files."""
        self.__dict__[_BASE] = base

    @property
    def action_space(self) -> ActionSpace:
        """The [`ActionSpace`] of the levels of all axes."""
        names = self.axes or [axis.name for axis in PUBLISHED_AXES]
        return shared_action_space(tuple((AXES_in_axes[name], tuple(getattr(self, name) or ())) for name in names))

    @property
    def compute_unit(self) -> str | None:
        """What `generate(compute=...)` counts by default, one of [`UNITS`]; `None` without a table."""
        return self.calibration_unit or next(iter(units_of(self.calibration)), None)

    def expected_loss(self, compute: AxisTarget, compute_unit: str | None = None) -> float | list[float]:
        """What `generate(compute=...)` costs: log-perplexity above that of the base alone, in nats per token."""
        return expected_loss(compute, self.calibration, compute_unit or self.compute_unit)

    @property
    def selection_rule(self) -> SelectionRule:
        """The [`SelectionRule`] of the fields that say how cached keys are selected."""
        return SelectionRule(**{field.name: getattr(self, field.name) for field in dataclasses.fields(SelectionRule)})


def _taken_names() -> frozenset[str]:
    """Names that are keywords or attributes already where the name of an axis becomes one."""
    fields = {field.name for field in dataclasses.fields(SOLConfig)}
    arguments = inspect.signature(GenerationMixin.generate).parameters.keys() | _ARGUMENTS_OF_GENERATE
    columns = {LOG_PERPLEXITY, *UNITS}
    return frozenset(fields | vars(GenerationConfig()).keys() | arguments | set(dir(Budget)) | columns)


def _as_levels(axis: Axis, levels: Any) -> list[float]:
    """Levels as a list of numbers; the axis's own for `None`."""
    if levels is None:
        levels = axis.default_levels
    if not isinstance(levels, list | tuple) or not all(is_number(level) for level in levels[: MOST_LEVELS + 1]):
        raise ValueError(f"`{axis.name}` must be a list of numbers, got {shown(levels)}.")
    check_size({axis.name: len(levels)})
    return list(levels) if axis.is_integral else [float(level) for level in levels]


def _check_given(values: Mapping[str, Any]) -> None:
    """Raise a ValueError for a value of another type, not finite, or above a limit."""
    check_fields(values)
    for name in set(AXES_in_axes) & set(values):
        _as_levels(AXES_in_axes[name], values[name])


# =====================================================================================================================
# budget/scalars.py
#
# The scalar inputs of a policy before a step, and their columns.
#
# With the published three axes:
#
#     column   0          1               2 3 4            5 6 7                  8
#              progress   controllable    target of axis   drift from target      page fill
# =====================================================================================================================


@dataclass(frozen=True)
class ScalarColumns:
    """Columns of [`Observation.scalars`], for an action space with a given number of axes."""

    axes: int

    @property
    def progress(self) -> slice:
        """The share of the episode that is finished after this step; one column."""
        return slice(0, 1)

    @property
    def targets(self) -> slice:
        """The target of every axis."""
        return slice(2, 2 + self.axes)

    @property
    def drift(self) -> slice:
        """The mean so far minus the target, of every axis."""
        return slice(2 + self.axes, 2 + 2 * self.axes)

    @property
    def page_fill(self) -> int:
        """How full the page of the token to process will be; also the number of columns before it."""
        return 2 + 2 * self.axes


# =====================================================================================================================
# policy/budget_prior.py
#
# A prior over levels that depends on the budget only.
# =====================================================================================================================


TIE_MARGIN = 1e-5
"""A value is rounded up only if it is nearer to the upper level than to the lower by this much, in ratio units."""


class BudgetPrior(nn.Module):
    r"""Logits per level that depend on the budget only: \\(-((level - centre) / width)^2\\) on every axis."""

    def __init__(self, space: ActionSpace, episode_length: int):
        super().__init__()
        self.episode_length = episode_length
        self.levels = tuple(tuple(value / axis.scale for value in space.levels[axis.name]) for axis in space.axes)
        self.columns = ScalarColumns(len(space.axes))
        self._mean_divisors = space.mean_divisors
        self._divisors = np.array(space.mean_divisors, dtype=np.float32)
        self._flat_levels = np.array([level for levels in self.levels for level in levels], dtype=np.float32)
        self._axis_of_level = np.array([axis for axis, levels in enumerate(self.levels) for _ in levels])
        self.log_width = nn.Parameter(torch.empty(len(space.axes)))
        self.repayment_spread = nn.Parameter(torch.empty(len(space.axes)))
        self._on_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Widths of one level, and a spread of 0."""
        init.copy_(self.log_width, torch.tensor([math.log(_spacing(levels)) for levels in self.levels]))
        init.zeros_(self.repayment_spread)

    def forward(self, scalars: torch.Tensor) -> torch.Tensor:
        """Logits per level from the remaining budget."""
        levels, axis_of_level = self._levels_on(scalars.device)
        centre = self.centre(scalars)[..., axis_of_level]
        width = self.log_width.float().exp()[axis_of_level]
        return -(((levels - centre) / width) ** 2)

    def centre(self, scalars: torch.Tensor) -> torch.Tensor:
        """The level that every axis should take next, in ratio units: `(..., 2 + 2 * axes)` to `(..., axes)`."""
        scalars = scalars if scalars.dtype == torch.float64 else scalars.float()
        targets, drift = scalars[..., self.columns.targets], scalars[..., self.columns.drift]
        step = (scalars[..., self.columns.progress] * self.episode_length).round() - 1
        means = zip((drift + targets).unbind(dim=-1), self._mean_divisors, strict=True)
        mean = torch.stack([mean if divisor == 1 else mean * divisor for mean, divisor in means], dim=-1)
        overspent = (mean - targets) * step
        steps_left = (self.episode_length - step).clamp(min=1)
        share = 1 / (1 + self.repayment_spread.float().clamp(min=0) * steps_left)
        return targets - overspent * share - TIE_MARGIN

    def of_step(self, scalars: np.ndarray) -> np.ndarray:
        """The logits of one step as `forward` computes them, by numpy, which takes a tenth of the time."""
        targets, drift = scalars[:, self.columns.targets], scalars[:, self.columns.drift]
        step = np.rint(scalars[:, self.columns.progress] * self.episode_length) - 1
        overspent = ((drift + targets) * self._divisors - targets) * step
        steps_left = np.maximum(self.episode_length - step, 1)
        spread, width = self.repayment_spread.detach().numpy(), self.log_width.detach().exp().numpy()
        share = 1 / (1 + np.maximum(spread, 0) * steps_left)
        centre = targets - overspent * share - TIE_MARGIN
        distance = (self._flat_levels - centre[:, self._axis_of_level]) / width[self._axis_of_level]
        return -(distance * distance)

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """For compiled code: the levels of all axes, and the divisors of the means of every axis, in float32."""
        return self._flat_levels, self._divisors

    def _levels_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Levels in ratio units and the axis of each, both `(sum(level_counts),)`; created once per device."""
        if device not in self._on_device:
            axes = [axis for axis, levels in enumerate(self.levels) for _ in levels]
            with torch.inference_mode(False):  # these tensors are used in training, too
                levels = torch.tensor([level for levels in self.levels for level in levels], device=device)
                self._on_device[device] = levels, torch.tensor(axes, device=device)
        return self._on_device[device]


def _spacing(levels: Sequence[float]) -> float:
    """The median distance between neighbouring levels, 1 for a single level."""
    ordered = sorted(levels)
    gaps = [high - low for low, high in zip(ordered, ordered[1:], strict=False)]
    return median(gaps) if gaps else 1.0


# =====================================================================================================================
# budget/limits.py
#
# The limits of a call in numbers, for compiled code.
# =====================================================================================================================


@dataclass(frozen=True, eq=False)
class Limits:
    """What holds a call to its budget; it says in numbers what the call's processors do."""

    pinned: tuple[bool, ...] | torch.Tensor | None = None
    horizon: str | None = None
    exact: bool = False
    holds_dense_rows: bool = False


# =====================================================================================================================
# policy/programs.py
#
# The policy runs by its modules.
# =====================================================================================================================


def program_of(policy: Any, rows: int, is_new: bool = True, is_call: bool = True) -> Any:
    """A program for a step of the policy; `None` where its modules have to run."""
    return None


# =====================================================================================================================
# policy/short_weights.py
#
# Weights of a policy that are bfloat16 numbers, which compiled code reads in half the bytes.
#
# Products with them are the same to the bit, since a bfloat16 number is a float32 number. The short copies are used as
# long as the weights do not change. Of a change through `.data` torch takes no note: a sample of the numbers shows it.
# =====================================================================================================================


SAMPLES_in_short_weights = 256
"""Numbers of a weight that are compared."""
_COPIES = WeakTensorKeyDictionary()
"""The copies of all weights that have one, for all threads."""
_LOCK_in_short_weights = threading.Lock()


class ShortWeights:
    """The short copies of the weights of a policy, as far as these are bfloat16 numbers."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._versions: list[int] = []

    def of(self, weight: torch.Tensor) -> torch.Tensor:
        """What to read for a weight: a copy in bfloat16 of the same numbers, or itself."""
        if id(weight) not in self._known:
            self._known[id(weight)] = weight, _copy_of(weight)
            self._versions = self._versions_now()
        short = self._known[id(weight)][1]
        return weight if short is None else short

    def are_current(self, looks_at_numbers: bool) -> bool:
        """Whether the weights are still those that were copied."""
        if self._versions != self._versions_now():
            return False
        copied = [(weight, short) for weight, short in self._known.values() if short is not None]
        return not looks_at_numbers or all(torch.equal(_sample_in_short_weights(short).float(), _sample_in_short_weights(x)) for x, short in copied)

    def _versions_now(self) -> list[int]:
        return [0 if weight.is_inference() else weight._version for weight, _ in self._known.values()]


def products_of(policy: Any) -> list[nn.Linear]:
    """The linear layers of a policy whose weights take most of its bytes."""
    return [policy.input_projection, policy.action_head, *(x for x in policy.layers.modules() if type(x) is nn.Linear)]


@torch.no_grad()
def round_products(policy: Any) -> None:
    """Round the weights of [`products_of`] to numbers in bfloat16, in place."""
    for module in products_of(policy):
        module.weight.copy_(module.weight.bfloat16())


def _copy_of(weight: torch.Tensor) -> torch.Tensor | None:
    """The numbers of a weight in bfloat16; `None` if some are no bfloat16 numbers."""
    with _LOCK_in_short_weights:
        copied = _COPIES.get(weight)
        if copied is None or not torch.equal(copied.float(), weight):
            copied = weight.detach().bfloat16()
            if not torch.equal(copied.float(), weight):
                return None
            _COPIES[weight] = copied
        return copied


def _sample_in_short_weights(weight: torch.Tensor) -> torch.Tensor:
    numbers = weight.detach().view(-1)
    return numbers[:: max(1, len(numbers) // SAMPLES_in_short_weights) | 1]


# =====================================================================================================================
# policy/compiled_steps.py
#
# The methods of a policy that run its steps by compiled code.
# =====================================================================================================================


class CompiledSteps:
    """Base class of [`SOLPolicyModel`]: steps by compiled code, where that gives what the modules give."""

    config: Any

    def runs_compiled(self) -> bool:
        """Whether the policy computes what compiled code does."""
        raise NotImplementedError

    def step(
        self,
        hidden_states: torch.Tensor,
        token_embeddings: torch.Tensor,
        scalars: torch.Tensor,
        previous_actions: torch.Tensor,
        past_key_values: Cache,
    ) -> torch.Tensor | None:
        """The logits of one step by compiled code, which rounds differently."""
        if scalars.dtype != torch.float32:
            return None
        is_new = past_key_values.get_seq_length() == 0
        program = self._program(len(scalars), past_key_values, True, is_new)
        return program and program(hidden_states, token_embeddings, scalars, previous_actions, past_key_values)

    def choose(
        self, observation: Any, past_key_values: Cache, limits: Limits
    ) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """The best actions of one step within the limits of a call, by compiled code."""
        if observation.episode_length != self.config.episode_length or observation.page_fill.dtype != torch.float32:
            return None
        begins = observation.total_step == 0
        program = self._program(observation.rows, past_key_values, begins or observation.step == 0, begins)
        return program and program.choose(observation, past_key_values, limits)

    def prepare_step(self, rows: int) -> None:
        """Compile what a step of a number of rows needs, if it can run by compiled code, so that no step has to."""
        program_of(self, rows)

    def round_weights(self) -> None:
        """Round the weights of all linear layers that are large to numbers in bfloat16, in place."""
        round_products(self)

    def _program(self, rows: int, past_key_values: Cache, is_new: bool, is_call: bool) -> Any:
        """The program of a step; `None` if there is none, or the episode is over, of which `forward` then speaks."""
        if not self.runs_compiled() or past_key_values.get_seq_length() >= self.config.episode_length:
            return None
        return program_of(self, rows, is_new, is_call)


# =====================================================================================================================
# policy/factored_head.py
#
# Logits of actions from logits of levels.
# =====================================================================================================================


def joint_logits(level_logits: torch.Tensor, level_counts: Sequence[int]) -> torch.Tensor:
    """Logits of all actions from logits per level."""
    joint, *others = level_logits.split(tuple(level_counts), dim=-1)
    for logits in others:
        joint = (joint[..., :, None] + logits[..., None, :]).flatten(-2)
    return joint


# =====================================================================================================================
# stored/files.py
#
# Finding a file of a repository or folder: there, not there, or an error. These are three different things.
# =====================================================================================================================


_ARGUMENTS = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def find_file(name_or_path: str | os.PathLike, filename: str, location: Mapping[str, Any]) -> Path | None:
    """A file of a repository, downloaded if necessary, or of a folder; `None` if it is not there."""
    subfolder = location.get("subfolder") or ""
    if os.path.isdir(name_or_path):
        path = Path(name_or_path, subfolder, filename)
        return path if path.is_file() else None
    arguments = {name: location[name] for name in _ARGUMENTS if location.get(name) is not None}
    try:
        return Path(hf_hub_download(str(name_or_path), filename, subfolder=subfolder or None, **arguments))
    except LocalEntryNotFoundError as error:
        whole = f"{subfolder}/{filename}" if subfolder else filename
        known = {name: arguments[name] for name in ("revision", "cache_dir") if name in arguments}
        cached = try_to_load_from_cache(str(name_or_path), whole, **known)
        if cached is not None:  # the cache knows that the repository has no such file
            return Path(cached) if isinstance(cached, str) else None
        raise OSError(
            f"Whether {name_or_path} has a file {whole} is not known: it is not in the cache, and the Hub cannot be "
            f"reached ({error})."
        ) from error
    except EntryNotFoundError:
        return None


# =====================================================================================================================
# stored/weights.py
#
# Weights of a policy: safetensors only, compared with the config by their headers before any of them is read.
# =====================================================================================================================


WEIGHTS_in_weights, ADAPTER_WEIGHTS = "model.safetensors", "adapter_model.safetensors"
MOST_SHARDS = 1_000
_FLOATS = ("F64", "F32", "F16", "BF16")


def find_weights(
    name_or_path: str | os.PathLike, location: Mapping[str, Any], variant: str | None = None
) -> list[Path]:
    """The safetensors files of a policy: one, or the shards that an index names."""
    folder = Path(name_or_path, location.get("subfolder") or "")
    if next(folder.glob("shard-*.safetensors"), None) is not None:
        raise ValueError(
            f"{folder} has files of a distributed checkpoint (shard-*.safetensors), which would be read instead of "
            "the policy's: remove them."
        )
    suffix = f".{variant}" if variant else ""
    filename = WEIGHTS_in_weights.replace(".safetensors", f"{suffix}.safetensors")
    whole = find_file(name_or_path, filename, location)
    if whole is not None:
        return [whole]
    index = find_file(name_or_path, f"{WEIGHTS_in_weights}.index{suffix}.json", location)
    if index is None:
        raise FileNotFoundError(
            f"{name_or_path} has no {filename}. The weights of a policy are read from safetensors files only, never "
            "from pickled ones such as pytorch_model.bin."
        )
    shards = read_json_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(map(_is_plain_name, shards.values())):
        raise ValueError(f"{index} must name safetensors files in its own folder, got {shown(shards)}.")
    names = sorted(set(shards.values()))
    if len(names) > MOST_SHARDS:
        raise ValueError(f"{index} names {len(names):,} files; at most {MOST_SHARDS:,} are read.")
    paths = [(name, find_file(name_or_path, name, location)) for name in names]
    missing = [name for name, path in paths if path is None]
    if missing:
        raise ValueError(f"{index} names files that {name_or_path} lacks: {', '.join(missing[:5])}.")
    return [path for _, path in paths if path is not None]


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and not set(name) & set("/\\:")


def check_download(path: Path) -> None:
    """Raise a ValueError if a file in the Hub's cache is not what the Hub has: large files are named by their hash."""
    blob = path.resolve()
    if blob.parent.name != "blobs" or not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != blob.name:
        raise ValueError(
            f"The policy weights in {path} are not those on the Hub: they were damaged on the way or on the disk. "
            "Fetch them again with `force_download=True`."
        )


def read_header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every tensor of a safetensors file; none of them is read."""
    check_download(path)
    try:
        with safe_open(path, framework="pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except SafetensorError as error:
        raise ValueError(
            f"The policy weights in {path} are truncated or corrupt ({error}): fetch them again."
        ) from error


def check_headers(
    files: list[Path],
    wanted: Mapping[str, tuple[int, ...]],
    name_or_path: str | os.PathLike,
    may_lack: tuple[str, ...] = (),
) -> None:
    """Raise a ValueError if the tensors of these files are not those that a config asks for; none of them is read."""
    headers = {name: entry for path in files for name, entry in read_header(path).items()}
    found = {name: shape for name, (shape, _) in headers.items()}
    problems = [
        f"{name} has dtype {dtype}, not one of {', '.join(_FLOATS)}"
        for name, (_, dtype) in headers.items()
        if dtype not in _FLOATS
    ]
    problems += [f"missing {name}" for name in wanted if name not in found and not name.startswith(may_lack)]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {found[name]}, the config asks for {shape}"
        for name, shape in wanted.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise ValueError(f"The policy weights in {name_or_path} do not fit their config: {_some(problems)}.")


def check_finite(module: nn.Module, name_or_path: str | os.PathLike) -> None:
    """Raise a ValueError if a parameter has a value that is not a finite number."""
    wrong = [
        name
        for name, parameter in module.named_parameters()
        if not parameter.is_meta and not bool(torch.isfinite(parameter).all())
    ]
    if wrong:
        raise ValueError(
            f"The policy weights in {name_or_path} are damaged: {_some(wrong)} {'has' if len(wrong) == 1 else 'have'} "
            "values that are NaN or infinite. With them the policy could not choose: fetch or train it again."
        )


def _some(parts: list[str], most: int = 8) -> str:
    more = [f"and {len(parts) - most} more"] if len(parts) > most else []
    return "; ".join(parts[:most] + more)


# =====================================================================================================================
# stored/source.py
#
# Where the parts of a policy are: its own files, and the files of an adapter on it.
#
# The folder of an adapter names the policy that it was trained on, or holds it as well:
#
#     adapter_config.json, adapter_model.safetensors                     "base_model_name_or_path" is the policy
#     adapter_config.json, ..., config.json, model.safetensors           the policy is in the same folder
# =====================================================================================================================


CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
_RANK = Whole(1, 4_096)


@dataclass(frozen=True)
class PolicySource:
    """Where a policy is loaded from."""

    name_or_path: str
    location: dict[str, Any]
    config: Path
    adapter: dict[str, Any] = field(default_factory=dict)


def find_policy(
    name_or_path: str | os.PathLike, location: Mapping[str, Any], adapter: Mapping[str, Any] | None = None
) -> PolicySource:
    """Find a policy, and the adapter that belongs to it."""
    name, adapter = str(name_or_path), dict(adapter or {})
    if not os.path.isdir(name) and hub_id(name) is None:
        raise OSError(f"{name} is neither a folder nor the id of a repository on the Hub.")
    config, pinned = _pin(name, location)
    if adapter.get("_adapter_model_path") is not None:
        check_adapter(adapter["_adapter_model_path"], dict(location) | adapter)
        return PolicySource(name, pinned, _needed(config, name), adapter)
    adapter_config = find_file(name, ADAPTER_CONFIG, pinned)
    if adapter_config is None:
        return PolicySource(name, pinned, _needed(config, name))
    stored = check_adapter(name, pinned)
    keys = ("revision", "subfolder", "token")
    found = {"_adapter_model_path": name, **{key: pinned[key] for key in keys if pinned.get(key)}}
    if config is not None:
        return PolicySource(name, pinned, config, found)
    policy = stored.get("base_model_name_or_path")
    if not isinstance(policy, str) or not policy:
        raise ValueError(
            f"The adapter in {name} does not name the policy that it was trained on: load that policy, and put the "
            "adapter on it with PeftModel.from_pretrained(model.policy, adapter)."
        )
    if not os.path.isdir(policy) and hub_id(policy) is None:
        raise ValueError(
            f"The adapter in {name} was trained on a policy in a folder that is not here ({policy}): load that "
            "policy, and put the adapter on it with PeftModel.from_pretrained(model.policy, adapter)."
        )
    beneath = {key: value for key, value in location.items() if key not in ("revision", "subfolder")}
    try:
        config, pinned = _pin(policy, beneath | {"revision": stored.get("revision") or "main"})
    except OSError as error:
        raise OSError(f"The policy {policy}, which the adapter in {name} is for, is not found: {error}") from error
    return PolicySource(policy, pinned, _needed(config, policy), found)


def check_adapter(name_or_path: str | os.PathLike, location: Mapping[str, Any]) -> dict[str, Any]:
    """The content of an `adapter_config.json`."""
    if importlib.util.find_spec("peft") is None:
        missing = ModuleNotFoundError("No module named 'peft'", name="peft")
        raise missing_extra(f"The adapter in {name_or_path}", missing)
    path = find_file(name_or_path, ADAPTER_CONFIG, location)
    if path is None:
        raise ValueError(f"{name_or_path} has no {ADAPTER_CONFIG}.")
    stored = read_json_object(path)
    patterns = stored.get("rank_pattern") or {}
    ranks = [stored.get("r"), *(patterns.values() if isinstance(patterns, dict) else [patterns])]
    for rank in ranks:
        problem = None if rank is None else _RANK.problem(rank)
        if problem is not None:
            raise ValueError(f"{path}: a rank (`r`, `rank_pattern`) {problem}, got {shown(rank)}.")
    weights = find_file(name_or_path, ADAPTER_WEIGHTS, location)
    if weights is None:
        raise ValueError(f"{name_or_path} has no {ADAPTER_WEIGHTS}. Adapters are read from safetensors files only.")
    read_header(weights)
    return stored


def _pin(name: str, location: Mapping[str, Any]) -> tuple[Path | None, dict[str, Any]]:
    """The config of a repository if it has one, and the location with the commit that it is from."""
    found = cached_file(name, CONFIG, **{key: value for key, value in location.items() if value is not None})
    if found is None:
        return None, dict(location)
    subfolder = location.get("subfolder") or ""
    root = str(found).removesuffix(os.path.join(subfolder, CONFIG))
    commit = None if os.path.isdir(name) else snapshot_commit(root)
    return Path(found), dict(location) | ({"revision": commit} if commit else {})


def _needed(config: Path | None, name: str) -> Path:
    if config is None:
        raise OSError(f"{name} has no {CONFIG}: it is neither a policy nor an adapter on one.")
    return config


# =====================================================================================================================
# modeling_sol_policy.py
#
# The policy: a small causal transformer that reads the LM's state before every decode step and scores actions.
# =====================================================================================================================


SCALAR_FEATURES = 64
BUDGET_FEATURES = 32
HEADS = ("action_head.", "budget_head.", "budget_prior.")
"""Beginnings of the names of the parameters that a policy can learn anew on a network that is kept."""

_PUBLISHED_NAMES = (
    (r"^action_emb\.", "action_embedding."),
    (r"^pos_emb\.", "position_embedding."),
    (r"^scalar_proj\.", "scalar_features."),
    (r"^obs_proj\.", "input_projection."),
    (r"^blocks\.(\d+)\.ln1\.", r"layers.\1.attention_norm."),
    (r"^blocks\.(\d+)\.ln2\.", r"layers.\1.mlp_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"layers.\1.attention."),
    (r"^blocks\.(\d+)\.ff\.", r"layers.\1.mlp."),
    (r"^ln_f\.", "final_norm."),
    (r"^pi\.", "action_head."),
    (r"^v\.", "value_head."),
)


@dataclass
class SOLPolicyOutput(ModelOutput):
    """Scores of every action."""

    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None


class SOLPolicyAttention(nn.Module):
    """Causal self-attention without biases over the steps of an episode."""

    def __init__(self, config: SOLConfig, layer_idx: int):
        super().__init__()
        size = config.policy_hidden_size
        self.layer_idx = layer_idx
        self.head_dim = size // config.policy_num_heads
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x: torch.Tensor, past_key_values: Cache | None) -> torch.Tensor:
        """`(rows, steps, policy_hidden_size)` to the same shape."""
        heads = (*x.shape[:2], -1, self.head_dim)
        query, key, value = (proj(x).view(heads).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        steps, total = query.shape[2], key.shape[2]
        mask = None
        if steps > 1:
            mask = torch.ones(steps, total, dtype=torch.bool, device=x.device).tril(total - steps)
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(output.transpose(1, 2).reshape(x.shape))


class SOLPolicyLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: SOLConfig, layer_idx: int):
        super().__init__()
        size = config.policy_hidden_size
        width = int(size * config.policy_mlp_ratio)
        self.attention_norm = nn.LayerNorm(size)
        self.attention = SOLPolicyAttention(config, layer_idx)
        self.mlp_norm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, size))

    def forward(self, x: torch.Tensor, past_key_values: Cache | None) -> torch.Tensor:
        """`(rows, steps, policy_hidden_size)` to the same shape."""
        x = x + self.attention(self.attention_norm(x), past_key_values)
        return x + self.mlp(self.mlp_norm(x))


class SOLPolicyModel(CompiledSteps, PreTrainedModel):
    """The policy network: by default as published."""

    config_class = SOLConfig
    base_model_prefix = "policy"
    main_input_name = "hidden_states"
    _no_split_modules = ["SOLPolicyLayer"]

    def __init__(self, config: SOLConfig):
        config.check()
        super().__init__(config)
        if config.base_hidden_size is None or config.base_embedding_size is None:
            raise ValueError(
                "The policy needs `base_hidden_size` and `base_embedding_size` in its config; "
                "SOLForCausalLM.from_base fills them in."
            )
        space, size = config.action_space, config.policy_hidden_size
        n_actions, self.scalar_columns = len(space), ScalarColumns(len(space.axes))
        self.action_embedding = nn.Embedding(n_actions + 1, config.action_embedding_size)
        self.position_embedding = nn.Embedding(config.episode_length, size)
        self.page_embedding = nn.Embedding(config.page_size, size) if config.observe_page_fill else None
        self.scalar_features = nn.Sequential(
            nn.Linear(self.scalar_columns.page_fill, SCALAR_FEATURES), nn.GELU(), nn.LayerNorm(SCALAR_FEATURES)
        )
        observed = config.base_hidden_size + config.base_embedding_size
        self.input_projection = nn.Linear(observed + SCALAR_FEATURES + config.action_embedding_size, size)
        self.layers = nn.ModuleList(SOLPolicyLayer(config, i) for i in range(config.policy_num_layers))
        self.final_norm = nn.LayerNorm(size)
        self.level_counts = space.level_counts
        self._fresh_versions: list[int] | None = None
        outputs = sum(self.level_counts) if config.action_head == "factored" else n_actions
        self.action_head = nn.Linear(size, outputs)
        self.budget_head = nn.Sequential(
            nn.Linear(len(space.axes), BUDGET_FEATURES), nn.GELU(), nn.Linear(BUDGET_FEATURES, outputs)
        )
        self.value_head = nn.Linear(size, 1)
        self.budget_prior = BudgetPrior(space, config.episode_length) if config.budget_prior else None
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | PolicySource | None,
        *args,
        require_heads: bool = False,
        **kwargs,
    ):
        """Load a policy, and the adapter on it if there is one."""
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError("Weights of policies are read from safetensors files only: leave out `use_safetensors`.")
        if pretrained_model_name_or_path is None:  # config and state dict are given
            return super().from_pretrained(None, *args, **kwargs)
        kwargs.pop("trust_remote_code", None)  # the classes are those of this package
        names = ("revision", "subfolder", "cache_dir", "force_download", "local_files_only", "token", "proxies")
        location = {name: kwargs.pop(name) for name in names if name in kwargs}
        adapter = kwargs.pop("adapter_kwargs", None)
        if isinstance(pretrained_model_name_or_path, PolicySource):
            source = pretrained_model_name_or_path
            pretrained_model_name_or_path = source.name_or_path
        else:
            source = find_policy(pretrained_model_name_or_path, location, adapter)
        config = kwargs.pop("config", None)
        if not isinstance(config, SOLConfig):
            stored = read_json_object(source.config)
            config, kwargs = SOLConfig.from_dict(
                stored, name_or_path=source.name_or_path, return_unused_kwargs=True, **kwargs
            )
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in cls(copy.deepcopy(config)).state_dict().items()}
        files = find_weights(source.name_or_path, source.location, kwargs.get("variant"))
        check_headers(files, wanted, source.name_or_path, () if require_heads else HEADS)
        with_info = kwargs.pop("output_loading_info", False)
        arguments: dict[str, Any] = dict(config=config, use_safetensors=True, output_loading_info=True)
        policy, info = super().from_pretrained(
            source.name_or_path, *args, adapter_kwargs=source.adapter, **arguments, **source.location, **kwargs
        )
        if source.adapter and info["missing_keys"]:
            place, missing = source.adapter["_adapter_model_path"], ", ".join(sorted(info["missing_keys"])[:8])
            raise ValueError(f"The adapter in {place} lacks {missing}: it does not fit the policy that it names.")
        check_finite(policy, pretrained_model_name_or_path)
        return (policy, info) if with_info else policy

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BudgetPrior):
            module.reset_parameters()
        elif self.config.budget_prior and (module is self.action_head or module is self.budget_head[-1]):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        token_embeddings: torch.Tensor,
        scalars: torch.Tensor,
        previous_actions: torch.Tensor,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        return_dict: bool = True,
    ) -> SOLPolicyOutput:
        """Score every action at every step."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        begin = past_key_values.get_seq_length() if past_key_values is not None else 0
        steps = hidden_states.shape[1]
        if begin + steps > self.config.episode_length:
            raise ValueError(f"{begin + steps} steps do not fit an episode of {self.config.episode_length}.")
        positions = torch.arange(begin, begin + steps, device=hidden_states.device)
        dtype, page_fill = self.input_projection.weight.dtype, self.scalar_columns.page_fill
        action, added = self.action_embedding(previous_actions), self.position_embedding(positions)
        if self.page_embedding is not None:
            filled = (scalars[..., page_fill] * self.config.page_size).round().long()
            added = added + self.page_embedding(filled - 1)
        scalar_features = self.scalar_features(scalars[..., :page_fill].to(dtype))
        features = [hidden_states.to(dtype), token_embeddings.to(dtype), scalar_features, action]
        x = self.input_projection(torch.cat(features, dim=-1)) + added
        for layer in self.layers:
            x = layer(x, past_key_values)
        targets = scalars[..., self.scalar_columns.targets].to(dtype)
        heads = self.action_head(self.final_norm(x)) + self.budget_head(targets)
        output = SOLPolicyOutput(logits=self._with_prior(heads, scalars), past_key_values=past_key_values)
        return output if return_dict else output.to_tuple()

    def runs_compiled(self) -> bool:
        """Whether this is the forward that compiled code knows."""
        return type(self).forward is SOLPolicyModel.forward

    def _with_prior(self, logits: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """Outputs of the heads `(rows, steps, outputs)` to `(rows, steps, n_actions)`; a prior makes them float32."""
        prior = None if self.budget_prior is None else self.budget_prior(scalars)
        if self.config.action_head == "factored":
            return joint_logits(logits if prior is None else logits + prior, self.level_counts)
        return logits if prior is None else logits + joint_logits(prior, self.level_counts)

    def mark_fresh(self) -> None:
        """Remember that the weights are random, until any of them is changed."""
        self._fresh_versions = [parameter._version for parameter in self.parameters()]

    def warn_if_fresh(self) -> None:
        """Warn, once, if this policy was never trained and has no prior that keeps it near the budget."""
        versions, self._fresh_versions = self._fresh_versions, None
        if versions == [parameter._version for parameter in self.parameters()] and not self.config.budget_prior:
            logger.warning(
                "This policy was never trained: within the budget it chooses at random. Train it, load a trained one "
                "with SOLForCausalLM.from_pretrained, or pass `controller=FixedController()`."
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing to register: a saved folder names its classes in its own `sol_remote.py`."""

    def load_published(self, state_dict: dict[str, torch.Tensor]) -> "SOLPolicyModel":
        """Load weights under the published parameter names."""
        if self.config.action_head != "joint" or self.config.budget_prior:
            raise ValueError(
                'Published weights are those of a policy with `action_head="joint"` and without `budget_prior`: '
                "leave both out of the config."
            )
        renamed = {}
        for name, tensor in state_dict.items():
            for pattern, replacement in _PUBLISHED_NAMES:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
        positions = renamed.get("position_embedding.weight")
        if positions is not None and len(positions) > self.config.episode_length:
            renamed["position_embedding.weight"] = positions[: self.config.episode_length]
        own = self.state_dict()
        problems = [f"missing {name}" for name in own.keys() - renamed.keys()]
        problems += [f"unknown {name}" for name in renamed.keys() - own.keys()]
        problems += [
            f"{name} has shape {tuple(renamed[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own.keys() & renamed.keys()
            if renamed[name].shape != own[name].shape
        ]
        if problems:
            raise ValueError("The published weights do not fit this policy: " + "; ".join(sorted(problems)) + ".")
        self.load_state_dict(renamed)
        return self


# =====================================================================================================================
# budget/bank.py
#
# The bank of a hard budget over a generation: what cheap steps have saved, dear ones may spend.
#
# Per row and axis, in ratio units, for a target `t` and the largest level `max`:
#
#     at the start of a call     balance = max - t                      the allowance: one step at the largest level
#     a step at level v          needs v <= balance + t;                balance becomes balance + t - v
#     at the end of an episode   balance = min(balance, MOST_SAVED)     savings do not pile up without end
#
# The balance never falls below 0. So after `N` steps of a call the sum is at most `t * N + (max - t)`. A call that goes
# on with the text of the one before, without new tokens, has its bank, too: this then holds of their steps together.
# =====================================================================================================================


TOLERANCE = 1e-5
"""Up to which sums keep a budget, in ratio units. A target as near to the largest level holds an axis there."""
BUDGET_MODES = ("hard", "soft")
"""Whether steps are held to a budget, or a controller is trusted with it: `budget_mode`."""
HORIZONS = ("generation", "episode")
"""Over what a hard budget is kept: `budget_horizon`."""
MOST_SAVED = 4.0
"""Largest balance at the start of an episode, in ratio units: that of four steps that cost nothing."""
SPENT_WITHIN = 32
"""Steps over which a controller is asked to spend what the balance has above the allowance, or to win it back."""
FARTHEST = 0.1
"""Farthest that what a controller is asked may lie from the target."""
AT_ALLOWANCE = 0.25
"""Share of drawn balances that are the allowance."""


@dataclass(frozen=True)
class Bank:
    """The balance of every row and axis. A change makes a new bank."""

    targets: torch.Tensor
    goals: torch.Tensor
    least: torch.Tensor
    allowance: torch.Tensor
    begin: torch.Tensor
    balance: torch.Tensor
    asked: torch.Tensor
    steps: int = 0

    @classmethod
    def opened(cls, targets: torch.Tensor, space: ActionSpace) -> "Bank":
        """The bank at the start of a call."""
        ratios = space.ratios_on(targets.device)
        largest, least = ratios.amax(0), ratios.amin(0).expand_as(targets)
        goals = torch.where(targets >= largest - TOLERANCE, largest, targets)
        allowance = largest - goals
        return cls(targets, goals, least, allowance, allowance, allowance, targets)

    def going_on(self, before: "Bank") -> "Bank":
        """The bank at the start of a call that goes on with the text of another one, at whose end it was `before`."""
        is_same, left = before.targets == self.targets, before.balance - before.allowance
        balance = (self.allowance + torch.where(is_same, left, left.clamp(max=0))).clamp(min=0)
        asked = torch.where(is_same, before.asked, self.targets)
        return replace(self, begin=balance, balance=balance, asked=asked, steps=before.steps)

    def after(self, ratios: torch.Tensor, counted: torch.Tensor, held: torch.Tensor | None = None) -> "Bank":
        """The bank after a step."""
        saved = (self.goals - ratios) * counted[:, None]
        saved = saved if held is None else saved.masked_fill(held, 0)
        return replace(self, balance=self.balance + saved, steps=self.steps + 1)

    def before(self, ratios: torch.Tensor, counted: torch.Tensor, held: torch.Tensor | None = None) -> "Bank":
        """The bank before a step; arguments as for [`Bank.after`]. A step that was not counted changes nothing."""
        if not self.steps:
            return self
        return replace(self.after(ratios, -counted, held), steps=self.steps - 1)

    def begun_with(self, balance: torch.Tensor) -> "Bank":
        """The bank at the start of a later episode of a call, to which the earlier ones have left a balance."""
        return replace(self, balance=balance.clamp(min=0)).after_episode()

    def drawn_balance(self, shares: torch.Tensor) -> torch.Tensor:
        """Balances with which the episodes of a long text begin, of shape `(rows, axes)`."""
        place = (shares - AT_ALLOWANCE) / (1 - AT_ALLOWANCE) * 2
        above = (self.allowance + (place - 1) * (SPENT_WITHIN * FARTHEST)).clamp(max=MOST_SAVED)
        drawn = torch.where(place < 1, self.allowance * place, above)
        return torch.where(shares < AT_ALLOWANCE, self.allowance, drawn)

    def after_episode(self) -> "Bank":
        """The bank at the start of the next episode."""
        balance = self.balance.clamp(max=MOST_SAVED)
        shift = ((balance - self.allowance) / SPENT_WITHIN).clamp(-FARTHEST, FARTHEST)
        within = torch.maximum(torch.minimum(shift, self.allowance), self.least - self.goals)
        return replace(self, balance=balance, asked=self.targets + within)

    def most(self) -> torch.Tensor:
        """The largest level that every axis can pay for, `(rows, axes)`."""
        return self.balance + self.goals

    def most_to_end(self, left: torch.Tensor) -> torch.Tensor:
        """The largest level after which the mean of the call can still end at the target, `(rows, axes)`."""
        left = left[:, None]
        return self.balance - self.begin + self.goals * left - (left - 1) * self.least

    def map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Bank":
        """The bank after a row-wise function (select, repeat, reorder)."""
        names = (field.name for field in fields(self) if field.name != "steps")
        rows: dict[str, Any] = {name: function(getattr(self, name)) for name in names}
        return replace(self, **rows)


# =====================================================================================================================
# budget/ledger.py
#
# Compute spent: per-row sums and means of an episode and of the whole generation, in ratio units.
# =====================================================================================================================


class BudgetLedger:
    """Running sums of the axes of every row, over the episode and over the `generate` or `score` call."""

    bank: Bank | None = None
    """That of the call, if it keeps its budget over the generation."""

    def __init__(self, rows: int, space: ActionSpace, device: torch.device | str = "cpu"):
        self._mean_divisors = space.mean_divisors
        has_divisors = any(divisor != 1 for divisor in self._mean_divisors)
        self.divisors = np.array(self._mean_divisors, dtype=np.float32) if has_divisors else None
        """By which the means that the policy sees are divided, `(axes,)`; `None` if by 1."""
        axes = len(space.axes)
        self.episode_sums = torch.zeros(rows, axes, dtype=torch.float32, device=device)
        self.episode_counts = torch.zeros(rows, dtype=torch.float32, device=device)
        self.held_counts: torch.Tensor | None = None
        """Counted steps of the episode that held an axis, `(rows, axes)`; `None` if none did."""
        self.total_sums = torch.zeros(rows, axes, dtype=torch.float32, device=device)
        self.total_counts = torch.zeros(rows, dtype=torch.float32, device=device)

    def copy(self) -> "BudgetLedger":
        """A ledger with the same sums, in tensors of its own."""
        ledger = copy.copy(self)
        ledger.map_rows(torch.Tensor.clone)
        return ledger

    def start_episode(self) -> None:
        """Begin the sums of a new episode. Those of the whole call continue, and so does its bank."""
        self.episode_sums = torch.zeros_like(self.episode_sums)
        self.episode_counts, self.held_counts = torch.zeros_like(self.episode_counts), None
        self.bank = None if self.bank is None else self.bank.after_episode()

    def start_call(self) -> None:
        """Begin the sums of a new call. Those of an unfinished episode continue; the bank is still the last call's."""
        self.total_sums = torch.zeros_like(self.total_sums)
        self.total_counts = torch.zeros_like(self.total_counts)

    def record(self, ratios: torch.Tensor, counted: torch.Tensor, held: torch.Tensor | None = None) -> None:
        """Add a step."""
        counted = counted.to(ratios.dtype)
        self._add(ratios, counted, held, in_this_call=True)
        self.bank = None if self.bank is None else self.bank.after(ratios, counted, held)

    def take_back(
        self,
        ratios: torch.Tensor,
        counted: torch.Tensor,
        in_this_call: bool = True,
        held: torch.Tensor | None = None,
    ) -> None:
        """Undo a recorded step."""
        counted = counted.to(ratios.dtype)
        self._add(ratios, -counted, held, in_this_call)
        self.bank = None if self.bank is None else self.bank.before(ratios, counted, held)

    def _add(self, ratios: torch.Tensor, weight: torch.Tensor, held: torch.Tensor | None, in_this_call: bool) -> None:
        spent = ratios * weight[:, None]
        self.episode_sums = self.episode_sums + (spent if held is None else spent.masked_fill(held, 0))
        self.episode_counts = self.episode_counts + weight
        if held is not None:
            apart = held * weight[:, None]
            self.held_counts = apart if self.held_counts is None else self.held_counts + apart
        if in_this_call:
            self.total_sums = self.total_sums + spent
            self.total_counts = self.total_counts + weight

    def budgeted_counts(self) -> torch.Tensor:
        """Steps of this episode that count against the budget, of shape `(rows, axes)`, or `(rows, 1)` if all do."""
        counts = self.episode_counts[:, None]
        return counts if self.held_counts is None else counts - self.held_counts

    def episode_means(self) -> torch.Tensor:
        """Means over the steps of this episode that count, 0 before the first, of shape `(rows, axes)`."""
        return self.episode_sums / self.budgeted_counts().clamp(min=1)

    def total_means(self) -> torch.Tensor:
        """Means over all counted steps, of shape `(rows, axes)`; 1 for a row that had none."""
        means = self.total_sums / self.total_counts.clamp(min=1)[:, None]
        return torch.where(self.total_counts[:, None] > 0, means, torch.ones_like(means))

    def scalars(
        self, step: int, episode_length: int, controllable: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """The policy's inputs on progress and budget, of shape `(rows, 2 + 2 * axes)`; see [`ScalarColumns`]."""
        on_cpu = self.episode_sums.device.type == "cpu"
        compute = self._scalars_by_numpy if on_cpu else self._scalars_by_torch
        return compute((step + 1) / episode_length, controllable, targets)

    def _scalars_by_torch(self, share: float, controllable: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        progress = torch.full_like(self.episode_counts, share)
        columns = zip(self.episode_means().unbind(dim=-1), self._mean_divisors, strict=True)
        means = torch.stack([mean if divisor == 1 else mean / divisor for mean, divisor in columns], dim=-1)
        drift = torch.where(self.budgeted_counts() > 0, means - targets, 0.0)
        head = torch.stack([progress, controllable.to(progress.dtype)], dim=-1)
        return torch.cat([head, targets, drift], dim=-1)

    def _scalars_by_numpy(self, progress: float, controllable: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The same numbers where they are on the CPU, in a fifth of the time: an operation of torch takes longer."""
        goal, counts = targets.detach().numpy(), self.budgeted_counts().numpy()
        rows, axes = goal.shape
        scalars = np.empty((rows, 2 + 2 * axes), dtype=goal.dtype)
        scalars[:, 0], scalars[:, 1], scalars[:, 2 : 2 + axes] = progress, controllable.numpy(), goal
        means = self.episode_sums.numpy() / np.maximum(counts, 1)
        means = means if self.divisors is None else means / self.divisors
        drift = means - goal
        scalars[:, 2 + axes :] = drift if counts.all() else np.where(counts > 0, drift, 0)
        return torch.from_numpy(scalars)

    def map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a row-wise function (select, repeat, reorder) to all sums and the bank."""
        self.episode_sums, self.episode_counts = function(self.episode_sums), function(self.episode_counts)
        self.held_counts = None if self.held_counts is None else function(self.held_counts)
        self.total_sums, self.total_counts = function(self.total_sums), function(self.total_counts)
        self.bank = None if self.bank is None else self.bank.map_rows(function)


# =====================================================================================================================
# cache/token_arguments.py
#
# Arguments of a forward that have one entry per token, such as positions and token types.
#
# They are cut where the tokens are cut, and kept with the steps of an episode, for its KV refresh.
# =====================================================================================================================


@dataclass(frozen=True)
class TokenArgument:
    """A tensor with one entry per token."""

    value: torch.Tensor
    tokens: int
    rows: int | None

    @classmethod
    def find(cls, value: Any, rows: int, length: int) -> "TokenArgument | None":
        """The argument if its shape is that of `rows` rows with `length` tokens, else `None`."""
        if not isinstance(value, torch.Tensor):
            return None
        shape = value.shape
        if len(shape) == 3 and shape[2] == length and shape[1] in (rows, 1):
            return cls(value, 2, 1 if shape[1] == rows else None)
        if len(shape) >= 2 and shape[1] == length and shape[0] in (rows, 1):
            return cls(value, 1, 0 if shape[0] == rows else None)
        return cls(value, 0, None) if tuple(shape) == (length,) else None

    @property
    def kind(self) -> tuple[int, int | None, tuple[int, ...]]:
        """Which dimensions have a meaning, and the sizes of the others; arguments of one kind can be joined."""
        shape = self.value.shape
        return self.tokens, self.rows, (*shape[: self.tokens], *shape[self.tokens + 1 :])

    def owned(self) -> "TokenArgument":
        """The values in a copy that nobody else can change."""
        return TokenArgument(self.value.clone(), self.tokens, self.rows)

    def cut(self, begin: int, end: int) -> "TokenArgument":
        """The values of the tokens from `begin` to `end`."""
        return TokenArgument(self.value.narrow(self.tokens, begin, end - begin), self.tokens, self.rows)

    def map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "TokenArgument":
        """The values after a function of tensors with the rows first."""
        if self.rows is None:
            return self
        return replace(self, value=function(self.value.movedim(self.rows, 0)).movedim(0, self.rows))


TokenArguments = Mapping[str, TokenArgument]
"""Arguments by name."""


def can_join(arguments: Sequence[TokenArguments]) -> bool:
    """Whether all of these have the same arguments, of the same kinds."""
    kinds = [{name: argument.kind for name, argument in part.items()} for part in arguments]
    return all(kind == kinds[0] for kind in kinds)


def join(arguments: Sequence[TokenArguments]) -> dict[str, TokenArgument]:
    """The arguments of tokens that follow one another, see [`can_join`]."""
    return {
        name: replace(first, value=torch.cat([part[name].value for part in arguments], dim=first.tokens))
        for name, first in arguments[0].items()
    }


# =====================================================================================================================
# cache/episode.py
#
# The running episode: its steps, and the state between them.
# =====================================================================================================================


RowFunction = Callable[[torch.Tensor], torch.Tensor]


def owned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy: nobody else can change it, and no larger tensor is kept and saved with it."""
    return tensor.clone()


@dataclass
class StepRecord:
    """One executed decode step."""

    token: torch.Tensor
    action: torch.Tensor
    counted: torch.Tensor
    previous_hidden: torch.Tensor | None
    previous_digest: torch.Tensor | None = None
    along: TokenArguments = field(default_factory=dict)
    spent: torch.Tensor | None = None
    held: torch.Tensor | None = None

    def map_rows(self, function: RowFunction) -> "StepRecord":
        """The step after a function of tensors with the rows first."""
        return StepRecord(
            function(self.token),
            function(self.action),
            function(self.counted),
            None if self.previous_hidden is None else function(self.previous_hidden),
            None if self.previous_digest is None else function(self.previous_digest),
            {name: argument.map_rows(function) for name, argument in self.along.items()},
            None if self.spent is None else function(self.spent),
            None if self.held is None else function(self.held),
        )


@dataclass
class Episode:
    """The steps since the last dense forward."""

    hidden_state: torch.Tensor | None = None
    steps: list[StepRecord] = field(default_factory=list)
    controller_state: dict[str, Any] = field(default_factory=dict)
    first_sparse: int | None = None
    token_before: torch.Tensor | None = None
    logits_digest: torch.Tensor | None = None

    @property
    def polluted(self) -> bool:
        """Whether the episode wrote keys and values that differ from those of a dense forward."""
        return self.first_sparse is not None

    @property
    def length(self) -> int:
        return len(self.steps)

    def map_rows(self, function: RowFunction) -> None:
        self.steps = [step.map_rows(function) for step in self.steps]
        for name in ("hidden_state", "token_before", "logits_digest"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else function(value))

    def actions(self, rows: int, device: torch.device) -> torch.Tensor:
        """Actions so far, of shape `(rows, steps)`."""
        if not self.steps:
            return torch.empty(rows, 0, dtype=torch.long, device=device)
        return torch.stack([step.action for step in self.steps], dim=1)


# =====================================================================================================================
# cache/owner.py
#
# Which model a cache belongs to: keys and values mean nothing to another one.
# =====================================================================================================================


NOT_COMPARED = frozenset(
    "name_or_path architectures transformers_version dtype torch_dtype use_cache output_attentions "
    "output_hidden_states return_dict vocab_size pad_token_id bos_token_id eos_token_id tie_word_embeddings".split()
)
"""Fields of a base's config that may change without any effect on the keys and values of a text."""
WEIGHTS_in_owner = "the weights of the base"
SAMPLED_PARAMETERS, SAMPLED_VALUES = 64, 4


@dataclass(frozen=True)
class CacheOwner:
    """A description of a model by which its caches are recognized, also in another process."""

    facts: Mapping[str, Any]

    @classmethod
    def of(cls, base: PreTrainedModel, settings: Mapping[str, Any]) -> "CacheOwner":
        """The description of a model."""
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
            WEIGHTS_in_owner: _digest(sample_weights(base)),
            "the active adapters of the base": _digest(active_adapters(base)),
        }
        return cls({**base_facts, **{f"`{name}`": value for name, value in settings.items()}})

    def differences(self, other: "CacheOwner") -> list[str]:
        """The names of the facts in which two models differ."""
        names = dict.fromkeys([*self.facts, *other.facts])
        return [name for name in names if self.facts.get(name) != other.facts.get(name)]


def sample_weights(base: PreTrainedModel) -> list[float]:
    """A few values of the weights between the embeddings and the LM head."""
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    left_out = {id(weight) for module in ends if module is not None for weight in module.parameters()}
    weights = [weight for weight in base.parameters() if id(weight) not in left_out and _is_plain_in_owner(weight)]
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


def _is_plain_in_owner(weight: torch.Tensor) -> bool:
    return (
        type(weight) in (nn.Parameter, torch.Tensor)
        and weight.is_floating_point()
        and weight.device.type != "meta"
        and weight.numel() > 0
    )


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


# =====================================================================================================================
# cache/padding.py
#
# The padding of the rows of a cache, taken from the attention mask of a forward.
# =====================================================================================================================


def padding_of(
    attention_mask: torch.Tensor, begin: int, length: int, decode_from: int | None, mask_was_passed: bool
) -> torch.Tensor:
    """Number of padding slots on the left of every row, `(rows,)`."""
    real = attention_mask.bool()
    padding = (~real).sum(dim=1)
    left_padded = torch.arange(real.shape[1], device=real.device) >= padding[:, None]
    gaps = real != left_padded
    if not mask_was_passed and bool(gaps.any()):
        raise ValueError(
            f"Row {int(gaps.any(dim=1).nonzero()[0, 0])} has the pad token within its text, and no "
            "`attention_mask` was passed, so transformers takes it for padding: pass "
            "`attention_mask=torch.ones_like(input_ids)`, with 0 for padding on the left."
        )
    if real.shape[1] != begin + length or bool(gaps.any()):
        raise ValueError(
            "`attention_mask` must cover cached and new tokens and mark padding on the left of the first turn "
            "only: a gap between two turns, or padding on the right, would change which keys a page holds."
        )
    if not bool(real[:, -1].all()) and (decode_from is None or begin + length > decode_from):
        raise ValueError("`attention_mask` must leave every row at least one token.")
    return padding


# =====================================================================================================================
# cache/sketch_index.py
#
# The index of the criterion `sketch`: the keys of a cache layer in a few bits.
#
# It follows from the keys, so it is not saved with a cache, but made again.
# =====================================================================================================================


class SketchIndex:
    """Packed codes of the keys of one layer."""

    def __init__(self, bits: int):
        self.bits, self.tokens = bits, 0
        self.packed = self.scale = self.mean = self._in_mean = torch.empty(0)
        self._last_of_mean = 0

    def update(
        self,
        keys: torch.Tensor,
        capacity: int,
        first_key: torch.Tensor,
        padding: tuple[int, int],
        most: int = 0,
        keeps_means: bool = False,
    ) -> None:
        """Encode the keys that were not encoded before; all of them if the mean of a row has changed."""
        slots, settled = keys.shape[2], padding[1] + MOST_IN_MEAN
        if self.is_complete(slots, padding):
            return
        self.reserve(keys, capacity if self.capacity < slots else 0)
        if keeps_means and self.tokens and self.tokens + most >= slots:
            return
        if self.tokens < settled:  # the mean of a row may still change
            in_mean = tokens_in_mean(slots - first_key).to(keys.device)
            if self.tokens == 0 or keys.device.type != "cpu" or not torch.equal(in_mean, self._in_mean):
                self.mean.copy_(channel_means(keys[:, :, :settled], first_key.to(keys.device), in_mean))
                self.tokens, self._in_mean = 0, in_mean
        if self.tokens + most < slots:
            codes, scale = encode_in_sketch(keys[:, :, self.tokens :], self.mean, self.bits)
            self.packed[:, :, self.tokens : slots] = pack(codes, self.bits)
            self.scale[:, :, self.tokens : slots] = scale
            self.tokens = slots

    def is_complete(self, slots: int, padding: tuple[int, int]) -> bool:
        """Whether there are codes of the keys in all of `slots`; `padding` as of [`SketchIndex.update`]."""
        self._last_of_mean = padding[1] + MOST_IN_MEAN
        return self.tokens == slots

    def codes(self, dim: int) -> torch.Tensor:
        """The codes of all tokens, int8 `(rows, kv_heads, slots, head_dim)`."""
        return unpack(self.packed[:, :, : self.tokens], self.bits, dim)

    def forget_from(self, first: int) -> None:
        """Note that the keys from slot `first` on have to be encoded again."""
        self.tokens = 0 if first < self._last_of_mean else min(self.tokens, first)

    @property
    def capacity(self) -> int:
        """Slots that there is storage for."""
        return self.scale.shape[2] if self.scale.dim() > 1 else 0

    @property
    def stores(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Storage of codes, scales and means, which stays where it is until there are more slots or other rows."""
        return self.packed, self.scale, self.mean

    def reserve(self, keys: torch.Tensor, capacity: int) -> None:
        """Allocate storage for the codes of `capacity` keys of the shape and dtype of `keys`."""
        if self.capacity < capacity:
            self._grow(keys, capacity)

    def mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "SketchIndex":
        """The index of a layer whose rows were moved or repeated."""
        moved = SketchIndex(self.bits)
        moved.tokens, moved._last_of_mean = self.tokens, self._last_of_mean
        if self.capacity:
            parts = (self.packed, self.scale, self.mean, self._in_mean)
            moved.packed, moved.scale, moved.mean, moved._in_mean = map(function, parts)
        return moved

    def _grow(self, keys: torch.Tensor, capacity: int) -> None:
        rows, heads, _, dim = keys.shape
        packed = torch.zeros(
            rows, heads, capacity, bytes_per_key(dim, self.bits), dtype=torch.uint8, device=keys.device
        )
        scale = keys.new_zeros(rows, heads, capacity)
        if self.mean.dim() == 1:
            self.mean = torch.zeros(rows, heads, 1, dim, device=keys.device)
        if self.tokens:
            packed[:, :, : self.tokens] = self.packed[:, :, : self.tokens]
            scale[:, :, : self.tokens] = self.scale[:, :, : self.tokens]
        self.packed, self.scale = packed, scale


# =====================================================================================================================
# cache/stored_layer.py
#
# A cache layer whose keys and values are written in place.
#
# transformers' `DynamicLayer` copies all keys and values at every token (`torch.cat`). [`StoredLayer`] writes into
# storage that is allocated ahead, so that a decode step writes one token. Compiled code reads keys and values there.
#
#              ┌── dropped ──┐┌───────── kept ─────────┐┌──── spare ────┐
#    slot       0 ..           first ..                  length ..        capacity
#
# The storage may have a smaller dtype than the base. Keys and values are rounded when they are written, those of the
# running forward included, and the base gets copies in its own dtype. Kernels read the storage itself.
# =====================================================================================================================


class StoredLayer(DynamicLayer):
    """A cache layer with preallocated storage of shape `(rows, kv_heads, capacity, head_dim)`."""

    growth_slots = 256
    _keys: Any
    _values: Any

    def __init__(self, kv_dtype: torch.dtype | None = None, **kwargs):
        super().__init__(**kwargs)
        self.kv_dtype = kv_dtype
        self._given: tuple[StorageWeakRef, StorageWeakRef] | None = None
        self.first = self.length = 0
        self._key_store = self._value_store = torch.empty(0)

    @property
    def keys(self) -> torch.Tensor:
        """The keys, a view of the storage that is made when it is needed; `None` before the first token."""
        if self._keys is None and self.is_initialized:
            self._keys = self._key_store[:, :, self.first : self.length]
        return self._keys

    @keys.setter
    def keys(self, keys: torch.Tensor | None) -> None:
        self._keys = keys

    @property
    def values(self) -> torch.Tensor:
        """The values, see `keys`."""
        if self._values is None and self.is_initialized:
            self._values = self._value_store[:, :, self.first : self.length]
        return self._values

    @values.setter
    def values(self, values: torch.Tensor | None) -> None:
        self._values = values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._key_store, self._value_store = (
            x.new_empty(*x.shape[:2], 0, x.shape[-1], dtype=self.kv_dtype or x.dtype)
            for x in (key_states, value_states)
        )

    def store(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Append keys and values of shape `(rows, kv_heads, new, head_dim)`."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if key_states.shape[0] != self._key_store.shape[0]:
            raise ValueError(f"The cache holds {self._key_store.shape[0]} rows, but got {key_states.shape[0]}.")
        self.append_slots(key_states.shape[-2])
        begin = self.length - key_states.shape[-2]
        self._key_store[:, :, begin : self.length] = key_states
        self._value_store[:, :, begin : self.length] = value_states

    def append_slots(self, number: int) -> None:
        """Make room for the keys and values of `number` more tokens, which the caller writes."""
        self._leave_inference_mode()
        if self.length + number > self._key_store.shape[2]:
            needed = self.length - self.first + number
            self._move(needed + max(self.growth_slots, needed // 4))
        self._set_slots(self.first, self.length + number)

    def __getstate__(self) -> dict[str, Any]:
        """Keys and values without spare room."""
        state = {**vars(self), "_given": None}
        if self.is_initialized:
            kept = self.length - self.first
            state.update(_key_store=self.keys.clone(), _value_store=self.values.clone(), _keys=None, _values=None)
            state.update(first=0, length=kept)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self.is_initialized:
            self._set_slots(self.first, self.length)

    @property
    def rows(self) -> int:
        """Rows of the storage."""
        return len(self._key_store)

    @property
    def stored_dtype(self) -> torch.dtype:
        """Dtype of the storage."""
        return self._key_store.dtype

    def given_to_base(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Views of the storage in the dtype of the base: themselves, or copies, of which the layer keeps note."""
        if self.stored_dtype == self.dtype:
            return keys, values
        keys, values = keys.to(self.dtype), values.to(self.dtype)
        self._given = StorageWeakRef(keys.untyped_storage()), StorageWeakRef(values.untyped_storage())
        return keys, values

    def holds(self, keys: torch.Tensor, values: torch.Tensor | None = None) -> bool:
        """Whether tensors are what the base was given last, not computed from it."""
        if not self.is_initialized:
            return False
        pairs = list(zip((keys, values), self.stores(), self._given or (None, None), strict=True))
        return all(
            x.data_ptr() == store.data_ptr() + self.first * store.stride(2) * store.itemsize
            if given is None
            else StorageWeakRef(x.untyped_storage()) == given and x.storage_offset() == 0
            for x, store, given in pairs
            if x is not None
        )

    def stores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Storage of keys and values, of shape `(rows, kv_heads, capacity, head_dim)`."""
        return self._key_store, self._value_store

    def slot_of(self, token: int) -> int:
        """The slot of a token of the text."""
        return self.length - (self.get_seq_length() - token)

    def write_back(self, token: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write keys and values `(rows, kv_heads, number, head_dim)` again, those from a token of the text on."""
        if self._key_store.is_inference() and not torch.is_inference_mode_enabled():
            return
        number = min(keys.shape[2], self.get_seq_length() - token)
        if number > 0:
            begin = self.slot_of(token)
            self._key_store[:, :, begin : begin + number] = keys[:, :, :number]
            self._value_store[:, :, begin : begin + number] = values[:, :, :number]

    def reset(self) -> None:
        self.first = self.length = 0
        self._key_store = self._value_store = torch.empty(0)
        super().reset()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._map_rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map_rows(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._map_rows(lambda x: x[indices, ...])

    def _set_slots(self, first: int, length: int) -> None:
        self.first, self.length, self._keys, self._values = first, length, None, None

    def _move(self, capacity: int) -> None:
        """Move what is kept to the beginning of new storage. The old one, to which a rollback may refer, is left."""
        kept, larger = self.length - self.first, []
        for old in self.stores():
            new = old.new_empty(*old.shape[:2], capacity, old.shape[-1])
            new[:, :, :kept] = old[:, :, self.first : self.length]
            larger.append(new)
        self._key_store, self._value_store = larger  # both or none, since memory may have run out
        self._set_slots(0, kept)

    def _leave_inference_mode(self) -> None:
        """Copy storage that was allocated in inference mode, which cannot be written to outside of it."""
        if self._key_store.is_inference() and not torch.is_inference_mode_enabled():
            self._map_rows(torch.clone)

    def _map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace the storage by what `function` makes of it."""
        if self.is_initialized:
            self._key_store, self._value_store = function(self._key_store), function(self._value_store)
            self._set_slots(self.first, self.length)


# =====================================================================================================================
# cache/paged_layer.py
#
# A key-value cache layer that grows in place and has an index of its pages.
#
# The page index holds the maximum and the minimum of every channel over each page. It is updated when a step needs it:
# one page per new token, all pages after a prefill.
# =====================================================================================================================


@dataclass(frozen=True)
class DevicePlaces:
    """Where tokens are appended if only the device knows how many there are."""

    first_key: torch.Tensor
    count: torch.Tensor
    index_bits: int | None


class PagedLayer(StoredLayer):
    """A full-attention cache layer with preallocated storage, and a page index that is updated when it is needed."""

    def __init__(self, page_size: int, kv_dtype: torch.dtype | None = None):
        super().__init__(kv_dtype)
        self.page_size = page_size
        self._upper = self._lower = torch.empty(0)
        self._page_capacity = 0
        self._indexed = 0
        self._sketch: SketchIndex | None = None
        self.append_at: DevicePlaces | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append keys and values of shape `(rows, kv_heads, new, head_dim)` and return all of them."""
        if self.append_at is not None:
            self._leave_inference_mode()
            return self._append_on_device(key_states, value_states, self.append_at)
        self.store(key_states, value_states)
        return self.given_to_base(self.keys, self.values)

    def __getstate__(self) -> dict[str, Any]:
        """Keys and values without spare room, and no page index: it is made again when it is needed."""
        state = super().__getstate__()
        state.update(_upper=torch.empty(0), _lower=torch.empty(0), _page_capacity=0, _indexed=0, _sketch=None)
        return state

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens; a positive number is refused, as in transformers."""
        if tokens_to_remove > 0:
            raise ValueError(f"`crop` takes the number of tokens to remove as a negative number: {tokens_to_remove}.")
        if tokens_to_remove and self.is_initialized:
            self._set_length(max(0, self.length + tokens_to_remove))
            self.index_again(self.length)

    def give_back(self, number: int) -> None:
        """Undo a crop of tokens after which nothing was appended, for the first `number` of them."""
        self._set_length(self.length + number)

    def mark(self) -> int | dict[str, Any]:
        """What [`PagedLayer.take_back`] needs to undo appended tokens and a crop: the length, or all if it is empty."""
        return self.length if self.is_initialized else dict(vars(self))

    def take_back(self, mark: int | dict[str, Any]) -> None:
        """Give the layer back the tokens that it had; their keys and values are still in its storage."""
        if isinstance(mark, dict):
            self.__dict__.clear()
            self.__dict__.update(mark)
        else:
            self.append_at = None
            self._forget_pages()  # the index may have been half-way through growing
            self._set_length(mark)

    def index_again(self, first: int) -> None:
        """Note that the pages of the tokens from `first` on have to be indexed again."""
        self._indexed = max(0, min(self._indexed, first + 1 - self.page_size))
        if self._sketch is not None:
            self._sketch.forget_from(first)

    def reset(self) -> None:
        self._forget_pages()
        super().reset()

    def flat_store(self) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Keys and values as `(rows * kv_heads * stride, head_dim)`, and the stride between key-value heads."""
        return self._key_store.flatten(0, 2), self._value_store.flatten(0, 2), self._key_store.shape[2]

    def page_store(self) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """Storage of the page index, which may be out of date."""
        pages = -(-self.length // self.page_size)
        if self._page_capacity < pages:
            self._grow_pages(pages)
        return self._upper, self._lower, self._page_capacity, self._indexed

    def mark_indexed(self) -> None:
        """Note that the page index is up to date for all tokens."""
        self._indexed = self.length

    def page_stores(self, first_key: torch.Tensor, padding: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Storage of maxima and minima, up to date, and the number of pages that may hold keys."""
        if self.append_at is None:
            pages = self.page_index(first_key, padding)[0].shape[2]
        else:
            pages = self._page_capacity
        return self._upper, self._lower, pages

    def reserve(self, tokens: int, index_bits: int | None = None) -> None:
        """Allocate storage for `tokens` tokens in all, and for their pages or, with `index_bits`, for their codes."""
        if tokens > self._key_store.shape[2]:
            self._move(tokens)
        if index_bits is not None:
            self._sketch_in(index_bits).reserve(self._key_store, self._key_store.shape[2])
        elif self._page_capacity < -(-self._key_store.shape[2] // self.page_size):
            self._grow_pages(0)

    def update_index(self, first_key: torch.Tensor, padding: tuple[int, int], index_bits: int | None) -> None:
        """Bring the page index, or the codes of `index_bits` bits, up to date for all tokens."""
        if index_bits is None:
            self.page_index(first_key, padding)
        else:
            self.sketch(index_bits, first_key, padding)

    def index_stores(self, index_bits: int | None) -> tuple[torch.Tensor, ...]:
        """Storage of the page index, or of codes of `index_bits` bits; empty if there are none."""
        if index_bits is None:
            return self._upper, self._lower
        return () if self._sketch is None or self._sketch.bits != index_bits else self._sketch.stores

    def note_appended(self, length: int, index_bits: int | None = None) -> None:
        """Note that tokens were appended on the device, and indexed there, `length` of them in all."""
        self._set_length(length)
        if index_bits is None:
            self._indexed = length
        else:
            self._sketch_in(index_bits).tokens = length

    def _append_on_device(self, key: torch.Tensor, value: torch.Tensor, places: DevicePlaces):
        append_tokens = left_out("kernels.cuda.pages.append_tokens")
        encode_tokens = left_out("kernels.cuda.sketch_index.encode_tokens")

        first_key, count, bits = places.first_key, places.count, places.index_bits
        pages = (None, None) if bits is not None else (self._upper, self._lower)
        append_tokens(key, value, self._key_store, self._value_store, *pages, first_key, count, self.page_size)
        if bits is not None:
            packed, scale, mean = self._sketch_in(bits).stores
            encode_tokens(self._key_store, mean, packed, scale, first_key, count, key.shape[2], bits)
        return self._key_store, self._value_store

    def page_index(self, first_key: torch.Tensor, padding: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Channel-wise maximum and minimum of every page, of shape `(rows, kv_heads, pages, head_dim)`."""
        least, most = padding
        pages = -(-(self.length - least) // self.page_size)
        if self._page_capacity < pages:
            self._grow_pages(pages)
        if self._indexed == self.length - 1 and least == most:
            self._index_one_token(least)
        elif self._indexed < self.length:
            self._index_from(max(0, (self._indexed - most) // self.page_size), pages, first_key)
        self._indexed = self.length
        return self._upper[:, :, :pages], self._lower[:, :, :pages]

    @property
    def made_sketch(self) -> SketchIndex | None:
        """The keys in a few bits, if there are any; they may be out of date."""
        return self._sketch

    def sketch(
        self,
        bits: int,
        first_key: torch.Tensor,
        padding: tuple[int, int],
        most: int = 0,
        keeps_means: bool = False,
    ) -> SketchIndex:
        """The keys in a few bits, up to date but for at most `most` tokens, which the caller encodes."""
        index = self._sketch_in(bits)
        if self.append_at is None and not index.is_complete(self.length, padding):
            index.update(self.keys, self._key_store.shape[2], first_key, padding, most, keeps_means)
        return index

    def _sketch_in(self, bits: int) -> SketchIndex:
        """The index of keys in a number of bits, up to date or not."""
        if self._sketch is None or self._sketch.bits != bits:
            self._sketch = SketchIndex(bits)
        return self._sketch

    def _index_one_token(self, padding: int) -> None:
        page, place = divmod(self.length - 1 - padding, self.page_size)
        key = self.keys[:, :, -1]
        if place == 0:
            self._upper[:, :, page], self._lower[:, :, page] = key, key
        else:
            self._upper[:, :, page] = torch.maximum(self._upper[:, :, page], key)
            self._lower[:, :, page] = torch.minimum(self._lower[:, :, page], key)

    def _index_from(self, page: int, pages: int, first_key: torch.Tensor) -> None:
        offset = first_key + page * self.page_size
        upper, lower = page_bounds(self.keys, self.page_size, offset, first_key, pages - page)
        self._upper[:, :, page:pages], self._lower[:, :, page:pages] = upper, lower

    def _set_length(self, length: int) -> None:
        self._set_slots(0, length)

    def _grow_pages(self, needed: int) -> None:
        rows, heads, slots, dim = self._key_store.shape
        capacity = max(needed, -(-slots // self.page_size))
        larger = []
        for old in (self._upper, self._lower):
            new = self._key_store.new_zeros(rows, heads, capacity, dim)
            if self._page_capacity:
                new[:, :, : self._page_capacity] = old
            larger.append(new)
        (self._upper, self._lower), self._page_capacity = larger, capacity

    def _forget_pages(self) -> None:
        self._upper = self._lower = torch.empty(0)
        self._page_capacity = self._indexed = 0
        self._sketch = None

    def _map_rows(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super()._map_rows(function)
        if self._page_capacity:
            self._upper, self._lower = function(self._upper), function(self._lower)
        if self._sketch is not None:
            self._sketch = self._sketch.mapped(function)


# =====================================================================================================================
# cache/rollback.py
#
# Takes back a forward that was interrupted, so that the cache is what it was before.
#
# An interruption can come at any point: Ctrl-C, memory that runs out, an error in a hook. Layers that are written to in
# place are treated as follows; for all others it suffices to keep what they referred to.
#
#     a step appends        its slots lie after the restored length, and are written again later
#     storage grows         what was stored is in the larger storage, too: see [`PagedLayer.mark`]
#     a refresh overwrites  the keys and values of the episode are copied first, see [`Rollback.keep_tail`]
#     rows are moved        the storage before is kept until all layers are done
#     layers without crop   cannot be restored: the cache is not used again
# =====================================================================================================================


class Rollback:
    """What a cache was before a forward. While the forward runs without an error, nothing is copied but references."""

    def __init__(self, cache: Cache, moves_rows: bool = False):
        self._cache: Any = cache
        self._moves_rows = moves_rows
        self._layers: list[tuple[Any, Any]] = [
            (layer, layer.mark() if self._marks(layer) else dict(vars(layer))) for layer in cache.layers
        ]
        self._state = dict(vars(cache))
        self._trace = len(cache.trace)
        self._ledger, self._episode = dict(vars(cache.ledger)), dict(vars(cache.episode))
        self._steps = list(cache.episode.steps)
        self._controller = {name: _kept(value) for name, value in cache.episode.controller_state.items()}
        self._tails: list[tuple[StoredLayer, int, torch.Tensor, torch.Tensor]] = []

    def _marks(self, layer: object) -> TypeGuard[PagedLayer]:
        return isinstance(layer, PagedLayer) and not self._moves_rows

    def keep_tail(self, number: int) -> None:
        """Copy the last `number` keys and values, which are about to be dropped and overwritten."""
        for layer in self._cache.layers:
            if isinstance(layer, StoredLayer) and number:
                keys, values = layer.keys[:, :, -number:].clone(), layer.values[:, :, -number:].clone()
                self._tails.append((layer, layer.get_seq_length() - number, keys, values))

    def restore(self) -> None:
        """Give the cache back the state that it had."""
        cache = self._cache
        changed = [(layer, state) for layer, state in self._layers if not layer.is_croppable]
        for layer, state in self._layers:
            layer.take_back(state) if self._marks(layer) else _reset(layer, state)
        for layer, token, keys, values in self._tails:
            layer.write_back(token, keys, values)
        for layer, _ in self._layers:
            if isinstance(layer, PagedLayer):
                begins = [layer.slot_of(token) for owner, token, *_ in self._tails if owner is layer]
                layer.index_again(min([layer.length, *begins]))
        _reset(cache, self._state)
        del cache.trace[self._trace :]
        _reset(cache.ledger, self._ledger)
        controller_state = {name: _given_back(value) for name, value in self._controller.items()}
        _reset(cache.episode, {**self._episode, "steps": self._steps, "controller_state": controller_state})
        if changed and cache.get_seq_length():
            cache.broken_layers = sorted({type(layer).__name__ for layer, _ in changed})


@contextmanager
def undone_if_interrupted(cache: Cache, moves_rows: bool = False) -> Iterator[Rollback]:
    """Within the block, a change of a cache that any exception interrupts is taken back; see [`Rollback`]."""
    rollback = Rollback(cache, moves_rows)
    try:
        yield rollback
    except BaseException:
        rollback.restore()
        raise


def _kept(value: Any) -> Any:
    """A controller's state as it is now: tensors may be edited in place, layers of a cache refer to new tensors."""
    if isinstance(value, Cache):
        return value, list(value.layers), [dict(vars(layer)) for layer in value.layers]
    return value.clone() if isinstance(value, torch.Tensor) else value


def _given_back(kept: Any) -> Any:
    if not isinstance(kept, tuple) or not isinstance(kept[0], Cache):
        return kept
    cache, layers, states = kept
    cache.layers = layers
    for layer, state in zip(layers, states, strict=True):
        _reset(layer, state)
    return cache


def _reset(thing: object, state: dict[str, Any]) -> None:
    thing.__dict__.clear()
    thing.__dict__.update(state)


# =====================================================================================================================
# cache/shared_prefix.py
#
# Many rollouts of one text over a single copy of its keys and values.
#
# The rollouts of a block share its prefix, up to the last page boundary. The tokens after it are stored per rollout, so
# that pages are the same as in a repeated cache:
#
#     prefix, one copy per block     | page | page | page |
#     suffix, one per rollout                             | rest of the prefix, own tokens ...
#
# The queries of all rollouts of a block are multiplied with the prefix in one matrix product.
# =====================================================================================================================


@dataclass(frozen=True)
class Prefix:
    """The whole pages that the rollouts of a block share."""

    keys: torch.Tensor
    values: torch.Tensor
    bounds: torch.Tensor
    visible_pages: torch.Tensor | None = None

    @property
    def length(self) -> int:
        return self.keys.shape[2]


class SharedPrefixLayer(PagedLayer):
    """A cache layer whose rows share the prefix of their block. Its own storage holds the suffixes."""

    growth_slots = 16

    def __init__(self, source: PagedLayer, lengths: Sequence[int], repeats: int):
        super().__init__(source.page_size)
        self._rounds_to = source.kv_dtype
        size = source.page_size
        if len({length % size for length in lengths}) != 1:
            raise ValueError(f"Rollouts can only start whole pages of {size} tokens apart, not at {list(lengths)}.")
        shared = max(lengths) // size * size
        pages = shared // size
        first_key = torch.zeros(source.keys.shape[0], dtype=torch.long, device=source.keys.device)
        upper, lower = source.page_index(first_key, (0, 0))
        self.prefix = Prefix(
            source.keys[:, :, :shared].to(source.dtype),
            source.values[:, :, :shared].to(source.dtype),
            torch.cat([upper[:, :, :pages], lower[:, :, :pages]], dim=-1).to(source.dtype),
            _visible_pages(lengths, size, repeats, first_key.device),
        )
        self.repeats = repeats * len(lengths)
        self._coded_prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        rest = [
            torch.stack([x[:, :, length // size * size : length] for length in lengths], dim=1).flatten(0, 1)
            for x in (source.keys.to(source.dtype), source.values.to(source.dtype))
        ]
        self.update(*(x.repeat_interleave(repeats, dim=0) for x in rest))

    def store(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Append keys and values, as rounded as those of the source: the storage has the dtype of the base."""
        dtype = key_states.dtype
        super().store(*(self.rounded(x).to(dtype) for x in (key_states, value_states)))

    def rounded(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor in the dtype in which the source stores keys."""
        return x if self._rounds_to is None else x.to(self._rounds_to)

    def get_seq_length(self) -> int:
        return self.prefix.length + self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens of every suffix."""
        if -tokens_to_remove > self.length:
            raise ValueError(f"{-tokens_to_remove} tokens reach into the shared prefix: only {self.length} are own.")
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        raise NotImplementedError("Rows over a shared prefix keep their order.")

    def batch_repeat_interleave(self, repeats: int) -> None:
        raise NotImplementedError("Rows over a shared prefix cannot be repeated.")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        raise NotImplementedError("Rows over a shared prefix cannot be selected.")

    def coded_prefix(self, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The channel means of every block, `(blocks, kv_heads, 1, head_dim)`, and its prefix in a few bits."""
        if bits not in self._coded_prefix:
            prefix = self.rounded(self.prefix.keys)
            begin = torch.zeros(len(prefix), dtype=torch.long, device=prefix.device)
            mean = channel_means(prefix[:, :, :MOST_IN_MEAN], begin, tokens_in_mean(begin + prefix.shape[2]))
            self._coded_prefix[bits] = mean, decode_in_sketch(*encode_in_sketch(prefix, mean, bits))
        return self._coded_prefix[bits]

    def by_block(self, x: torch.Tensor) -> torch.Tensor:
        """`(rows, kv_heads, group, n)` to `(blocks, kv_heads, repeats * group, n)`."""
        rows, kv_heads, group, size = x.shape
        folded = x.view(rows // self.repeats, self.repeats, kv_heads, group, size).transpose(1, 2)
        return folded.reshape(rows // self.repeats, kv_heads, self.repeats * group, size)

    def by_row(self, x: torch.Tensor) -> torch.Tensor:
        """`(blocks, kv_heads, repeats * group, n)` to `(rows, kv_heads, group, n)`."""
        blocks, kv_heads, queries, size = x.shape
        group = queries // self.repeats
        unfolded = x.view(blocks, kv_heads, self.repeats, group, size).transpose(1, 2)
        return unfolded.reshape(blocks * self.repeats, kv_heads, group, size)


def _visible_pages(lengths: Sequence[int], size: int, repeats: int, device: torch.device) -> torch.Tensor | None:
    if len(lengths) == 1:
        return None
    return (torch.tensor(lengths, device=device) // size).repeat_interleave(repeats)


# =====================================================================================================================
# cache/window_layer.py
#
# A sliding-window cache layer that is written in place, and can be rolled back to the beginning of its episode.
# =====================================================================================================================


class WindowLayer(StoredLayer, DynamicSlidingWindowLayer):
    """A sliding-window layer that keeps the keys which left the window since the last [`WindowLayer.forget`]."""

    cumulative_length: int

    def __init__(self, sliding_window: int, kv_dtype: torch.dtype | None = None):
        super().__init__(kv_dtype, sliding_window=sliding_window)
        self.activate_past_recording()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append keys and values of shape `(rows, kv_heads, new, head_dim)`."""
        self.store(key_states, value_states)
        seen = self.sliding_window - 1 + key_states.shape[-2]
        return self.given_to_base(self.keys[:, :, -seen:], self.values[:, :, -seen:])

    def append_slots(self, number: int) -> None:
        super().append_slots(number)
        self.cumulative_length += number

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens."""
        if tokens_to_remove > 0:
            raise ValueError(f"`crop` takes the number of tokens to remove as a negative number: {tokens_to_remove}.")
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        length = max(0, self.cumulative_length + tokens_to_remove)
        removed = self.cumulative_length - length
        if self.length - self.first - removed < min(length, self.sliding_window - 1):
            raise ValueError(
                f"A layer with a window of {self.sliding_window} cannot be cropped by {-tokens_to_remove} tokens: the "
                "keys before the running episode are gone."
            )
        self._set_slots(self.first, self.length - removed)
        self.cumulative_length = length

    def forget(self) -> None:
        """Drop the keys that have left the window, and storage of which most is not used any more."""
        if not self.is_initialized:
            return
        self._set_slots(max(self.first, self.length - self.sliding_window + 1), self.length)
        kept = self.length - self.first
        if self.first > kept + self.growth_slots:
            self._move(kept + self.growth_slots)


# =====================================================================================================================
# cache/sol_cache.py
#
# All state of a generation under a budget, on top of the cache layers that the base asks for.
#
# The only stateful object of transformers' generation loop is the cache. [`SOLCache`] therefore holds, beside keys and
# values, all state of decode steps: the running episode, the policy's own cache and the budget ledger. When the loop
# changes the cache (reorders beams, repeats rows, crops), all of this state is changed with it.
# =====================================================================================================================


class SOLCache(DynamicCache):
    """Keys, values and all decode state of a generation under a budget."""

    def __init__(
        self,
        config: PreTrainedConfig,
        action_space: ActionSpace,
        page_size: int = 8,
        kv_dtype: torch.dtype | None = None,
    ):
        super().__init__(config=config)
        self.kv_dtype = kv_dtype
        for index, layer in enumerate(self.layers):
            if type(layer) is DynamicLayer:
                self.layers[index] = PagedLayer(page_size, kv_dtype)
            elif type(layer) is DynamicSlidingWindowLayer:
                self.layers[index] = WindowLayer(layer.sliding_window, kv_dtype)
        self.action_space = action_space
        self.episode = Episode()
        self.ledger = BudgetLedger(0, action_space)
        self.targets: torch.Tensor | None = None
        self.padding: torch.Tensor | None = None
        self.padding_range = (0, 0)
        self.padding_is_known = True
        self.position_offset: torch.Tensor | None = None
        self.trace: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.processed = 0
        """Tokens that were processed by the model of this cache. A base that is called alone adds others."""
        self.owner: CacheOwner | None = None
        """The model of this cache; set by `model.new_cache()`, or by the first call."""
        self.controller = ""
        """The class of the controller of the last call, whose state is that of the running episode."""
        self.broken_layers: list[str] = []
        """Kinds of layers that an interrupted forward has left in an unknown state."""
        self.is_fanned_out = False
        """Whether this cache came from [`SOLCache.fan_out`], for rollouts."""

    def __getstate__(self) -> dict[str, Any]:
        """The state, with the trace as two tensors."""
        trace = tuple(torch.stack(values) for values in zip(*self.trace, strict=True)) if self.trace else ()
        return {**vars(self), "trace": trace}

    def __setstate__(self, state: dict[str, Any]) -> None:
        columns = [value.unbind() for value in state["trace"]]
        self.__dict__.update({**state, "trace": list(zip(*columns, strict=True))})

    @property
    def rows(self) -> int:
        """Number of rows, 0 before the first forward."""
        return len(self.ledger.total_counts)

    @property
    def sparse_layers(self) -> frozenset[int]:
        """Layers to which `token_keep` applies: full attention, or all if every layer has a sliding window."""
        full = [i for i, layer in enumerate(self.layers) if isinstance(layer, PagedLayer)]
        sliding = [i for i, layer in enumerate(self.layers) if isinstance(layer, WindowLayer)]
        return frozenset(full or sliding)

    def start_call(self, controller: str = "") -> None:
        """Begin the trace and the sums of a new call, which has its own targets. A running episode continues."""
        self.trace, self.targets = [], None
        self.ledger.start_call()
        if controller != self.controller:
            self.episode.controller_state, self.controller = {}, controller

    def belong_to(self, owner: CacheOwner, is_same_base: bool = False) -> None:
        """Check that this is a cache of a model; one without a model becomes its own."""
        self.owner = self.owner or owner
        differences = [name for name in self.owner.differences(owner) if not (is_same_base and name == WEIGHTS_in_owner)]
        if differences:
            raise ValueError(
                f"This cache was made by another model: {', '.join(differences)} differ. Pass `model.new_cache()`, or "
                "the `past_key_values` of an earlier output of this model."
            )
        self.owner = owner

    def check_intact(self) -> None:
        """Check that the cache is as the last call of its model left it."""
        if self.broken_layers:
            raise ValueError(
                f"A forward over this cache was interrupted, and {', '.join(self.broken_layers)} cannot be rolled "
                "back: begin again with `model.new_cache()`."
            )
        if not any(isinstance(layer, CacheLayerMixin) for layer in self.layers):
            return  # without attention there is no length, and nothing to control
        length = self.get_seq_length()
        added = length - self.processed
        if added and (self.episode.polluted or added < 0):
            raise ValueError(
                f"The cache holds {length} tokens, but its model has processed {self.processed}: something else, such "
                "as `model.base.generate`, has changed it while an episode was running, which can then not be "
                + (f"refreshed: drop its tokens with `cache.crop(-{added})`, or " if added > 0 else "continued: ")
                + "begin again with `model.new_cache()`."
            )
        if added:
            self.end_episode(None)
            self.processed = length
            self.padding_is_known = False

    def set_up_rows(self, rows: int, device: torch.device) -> None:
        """Create the state per row at the first forward."""
        filled = [layer for layer in self.layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
        held = {layer.rows if isinstance(layer, StoredLayer) else len(layer.keys) for layer in filled}
        if held - {rows} or self.rows not in (0, rows):
            raise ValueError(f"The cache holds {max(held or {self.rows})} rows, but the input has {rows}.")
        if self.rows == 0:
            self.ledger = BudgetLedger(rows, self.action_space, device)

    def observe_inputs(
        self,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None,
        decode_from: int | None = None,
        mask_was_passed: bool = True,
    ) -> None:
        """Take padding from the arguments of a forward."""
        begin, length = self.get_seq_length(), tokens.shape[1]
        in_prefill = begin == 0 or length > 1 or (decode_from is not None and begin <= decode_from)
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(
                f"`attention_mask` must have shape (rows, cached + new tokens), got {tuple(attention_mask.shape)}: "
                "masks with more dimensions cannot be used with a SOLCache."
            )
        if attention_mask is None and self.padding is not None and begin:
            raise ValueError(
                f"The cache holds rows with {self.padding.tolist()} padding tokens on the left, but there is no "
                "`attention_mask`, or it is all ones: pass the mask of the earlier turns, with ones for new tokens."
            )
        if attention_mask is not None and in_prefill:
            padding = padding_of(attention_mask, begin, length, decode_from, mask_was_passed)
            self._check_padding(padding.clamp(max=begin), begin)
            self.set_padding(padding)

    def _check_padding(self, padding: torch.Tensor, begin: int) -> None:
        """Raise a ValueError if padding `(rows,)` is not that of the `begin` tokens in the cache."""
        known = torch.zeros_like(padding) if self.padding is None else self.padding.clamp(max=begin)
        if begin and self.padding_is_known and not torch.equal(padding, known):
            raise ValueError(
                f"`attention_mask` marks {padding.tolist()} tokens on the left of the cached text as padding, but it "
                f"was processed with {known.tolist()}: pass the mask of the earlier turns, with ones for new tokens."
            )

    def set_padding(self, padding: torch.Tensor) -> None:
        """Set the number of padding slots on the left of every row, `(rows,)`."""
        least, most = int(padding.min()), int(padding.max())
        self.padding, self.padding_range = (padding, (least, most)) if most else (None, (0, 0))
        self.padding_is_known = True

    def record(
        self,
        token: torch.Tensor,
        action: torch.Tensor,
        counted: torch.Tensor,
        hidden: torch.Tensor,
        digest: torch.Tensor | None = None,
        along: TokenArguments | None = None,
        held: torch.Tensor | None = None,
    ) -> None:
        """Store copies of an executed step, of the hidden state after it, and of what the controller keeps of its
        logits. `along` are further arguments of its forward, such as positions; `held`: see [`StepRecord`]."""
        episode, before = self.episode, (self.episode.hidden_state, self.episode.logits_digest)
        along = {name: argument.owned() for name, argument in (along or {}).items()}
        spent = self.action_space.ratios_on(action.device)[action]
        episode.steps.append(StepRecord(owned(token), action, counted, *before, along, spent, held))
        episode.hidden_state, episode.logits_digest = owned(hidden), None if digest is None else owned(digest)
        self.trace.append((action, counted))
        self.ledger.record(spent, counted, held)

    def record_dense(self) -> None:
        """Store that the last token was computed by a dense forward and not by a step; it counts in no average."""
        rows, device = self.rows, self.ledger.total_counts.device
        action = torch.full((rows,), self.action_space.dense_id, dtype=torch.long, device=device)
        self.trace.append((action, torch.zeros(rows, dtype=torch.bool, device=device)))

    def forget_tokens(self) -> None:
        """Drop all keys and values, to compute the same text again. Ledger, trace and targets continue."""
        for layer in self.layers:
            layer.reset()
        self.processed = 0
        self.end_episode(None)

    def fan_out(
        self, repeats: int, hidden_state: torch.Tensor, length: int | Sequence[int] | None = None
    ) -> "SOLCache":
        """A cache with `repeats` adjacent copies of every row, over the keys and values of this cache."""
        if self.padding is not None:
            raise ValueError("Rows that share a prefix cannot be left-padded.")
        length = self.get_seq_length() if length is None else length
        lengths = (length,) if isinstance(length, int) else tuple(length)
        layers: list[Any] = []
        for layer in self.layers:
            if isinstance(layer, PagedLayer):
                layers.append(SharedPrefixLayer(layer, lengths, repeats))
                continue
            if len(lengths) > 1:
                raise ValueError(f"{type(layer).__name__} cannot be cut at several lengths: see `can_stagger`.")
            layers.append(copy.deepcopy(layer))
            if lengths[0] < layer.get_seq_length():
                layers[-1].crop(lengths[0] - layer.get_seq_length())
            layers[-1].batch_repeat_interleave(repeats)
        fanned = copy.copy(self)
        fanned.layers, fanned.trace, fanned.targets, fanned.is_fanned_out = layers, [], None, True
        rows = repeats * len(lengths)
        fanned.ledger = BudgetLedger(self.rows * rows, self.action_space, hidden_state.device)
        fanned.episode = Episode(hidden_state.repeat_interleave(rows, dim=0))
        if len(lengths) > 1:
            begins = torch.tensor(lengths, device=hidden_state.device).repeat_interleave(repeats)
            fanned.position_offset = (fanned.get_seq_length() - begins).repeat(self.rows)
        return fanned

    @property
    def can_stagger(self) -> bool:
        """Whether [`SOLCache.fan_out`] accepts several lengths: all layers must be full-attention layers."""
        return all(isinstance(layer, PagedLayer) for layer in self.layers)

    def end_episode(
        self,
        hidden_state: torch.Tensor | None,
        token: torch.Tensor | None = None,
        digest: torch.Tensor | None = None,
    ) -> None:
        """Start the next episode after `token`."""
        kept = [None if value is None else owned(value) for value in (hidden_state, token, digest)]
        self.episode = Episode(kept[0], token_before=kept[1], logits_digest=kept[2])
        self.ledger.start_episode()
        for layer in self.layers:
            if isinstance(layer, WindowLayer):
                layer.forget()

    def drop_tokens(self, number: int) -> None:
        """Remove the last `number` tokens from keys and values only."""
        super().crop(-number)
        self.processed -= number

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens, and set episode, controller and ledger back accordingly."""
        added = max(0, self.get_seq_length() - self.processed)  # by a base that was called alone
        super().crop(tokens_to_remove)
        self.processed = min(self.processed, self.get_seq_length())
        tokens_to_remove = min(0, tokens_to_remove + added)
        if tokens_to_remove == 0:
            return
        for _ in range(min(-tokens_to_remove, self.episode.length)):
            step = self.episode.steps.pop()
            if self.episode.first_sparse == self.episode.length:
                self.episode.first_sparse = None
            in_this_call = bool(self.trace)
            if step.spent is not None:
                self.ledger.take_back(step.spent, step.counted, in_this_call, step.held)
            self.episode.hidden_state, self.episode.logits_digest = step.previous_hidden, step.previous_digest
            if in_this_call:
                self.trace.pop()
            tokens_to_remove += 1
            for value in self.episode.controller_state.values():
                if isinstance(value, Cache):
                    value.crop(-1)
        if tokens_to_remove < 0:
            self.end_episode(None)

    def reset(self) -> None:
        super().reset()
        self.episode, self.targets, self.trace = Episode(), None, []
        self.ledger = BudgetLedger(0, self.action_space)
        self.padding, self.padding_range, self.position_offset = None, (0, 0), None
        self.processed, self.padding_is_known, self.broken_layers = 0, True, []

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder all state for beam search. The trace keeps the executed order, to be read by `beam_indices`."""
        with undone_if_interrupted(self, moves_rows=True):
            super().reorder_cache(beam_idx)
            self._map_rows(lambda x: x.index_select(0, beam_idx.to(x.device)), "reorder_cache", beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        with undone_if_interrupted(self, moves_rows=True):
            super().batch_repeat_interleave(repeats)
            self._map_rows(lambda x: x.repeat_interleave(repeats, dim=0), "batch_repeat_interleave", repeats)
            self.trace = [(a.repeat_interleave(repeats), c.repeat_interleave(repeats)) for a, c in self.trace]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        with undone_if_interrupted(self, moves_rows=True):
            super().batch_select_indices(indices)
            self._map_rows(lambda x: x[indices], "batch_select_indices", indices)
            self.trace = [(action[indices], counted[indices]) for action, counted in self.trace]

    def _map_rows(self, function: RowFunction, cache_method: str, argument: Any) -> None:
        episode = self.episode
        episode.map_rows(function)
        for name, value in episode.controller_state.items():
            if isinstance(value, Cache):
                getattr(value, cache_method)(argument)
            else:
                episode.controller_state[name] = function(value)
        self.ledger.map_rows(function)
        for name in ("targets", "padding", "position_offset"):
            if getattr(self, name) is not None:
                setattr(self, name, function(getattr(self, name)))


# =====================================================================================================================
# controllers/base.py
#
# Controllers score the actions of a decode step. The learned policy is a controller, and so is every baseline.
#
# A controller implements [`Controller.__call__`]. Its state within an episode is stored in `observation.state`, which is
# part of the cache: when the generation loop reorders or repeats rows, the state is reordered and repeated, too.
# =====================================================================================================================


@dataclass(frozen=True)
class Observation:
    """The input of a controller before a decode step."""

    hidden_state: torch.Tensor
    token_embedding: torch.Tensor
    previous_action: torch.Tensor
    controllable: torch.Tensor
    remaining: torch.Tensor
    step: int
    total_step: int
    episode_length: int
    targets: torch.Tensor | None
    ledger: BudgetLedger
    action_space: ActionSpace
    state: dict[str, Any]
    page_fill: torch.Tensor
    previous_hidden_state: torch.Tensor | None = None
    previous_embedding: torch.Tensor | None = None
    logits_digest: torch.Tensor | None = None
    held: torch.Tensor | None = None
    backend: str = "reference"
    remaining_in_call: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.previous_action)

    @property
    def scalars(self) -> torch.Tensor:
        """[`BudgetLedger.scalars`] and `page_fill`, of shape `(rows, 2 + 2 * axes + 1)`; see [`ScalarColumns`]."""
        spent = self.ledger.scalars(self.step, self.episode_length, self.controllable, self.require_targets())
        return torch.cat([spent, self.page_fill[:, None]], dim=-1)

    def copy(self) -> "Observation":
        """A copy for code that may edit what it is given; `state`, which is meant to be edited, is the same object."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        tensors: dict[str, Any] = {name: value.clone() for name, value in values if isinstance(value, torch.Tensor)}
        return replace(self, **tensors, ledger=self.ledger.copy(), action_space=copy.copy(self.action_space))

    def as_asked(self, controller: "Controller") -> "Observation":
        """The observation that a controller gets: see [`Controller.follows_bank`]."""
        bank = self.ledger.bank
        return self if bank is None or not controller.follows_bank else replace(self, targets=bank.asked)

    def require_targets(self) -> torch.Tensor:
        """The targets."""
        if self.targets is None:
            names = ", ".join(f"`{name}`" for name in self.action_space.axis_names)
            raise ValueError(f"This controller needs a budget: pass {names} or `budget`.")
        return self.targets


class Controller:
    """Base class of controllers, which choose actions."""

    needs_budget = True
    needs_logits = False
    follows_bank = False
    rows_are_independent = False

    def __call__(self, observation: Observation) -> torch.Tensor:
        """Scores of all actions, of shape `(rows, n_actions)`; the highest allowed one is taken, or one is drawn."""
        raise NotImplementedError

    def digest_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The part of next-token logits `(rows, vocab)` that the next observation needs; only with `needs_logits`."""
        return logits


# =====================================================================================================================
# execution/step_part.py
#
# Base class of objects that replace a module's forward while a generation runs.
# =====================================================================================================================


class StepPart:
    """The forward of one module during decode steps; a subclass has `__call__`."""

    wraps_other_forwards = False
    change_name: ClassVar[str] = "forward"
    """Kind of the change that installs it, see [`Change`]."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.own: Callable | None = None
        """The module's own forward, while this one is installed."""
        self._replaced: Callable | None = None

    def __reduce__(self) -> str:
        raise TypeError("A base cannot be copied or pickled during a generation: do it before or after.")

    @property
    def nbytes(self) -> int:
        """Bytes of the copies of weights that were made."""
        return 0

    @property
    def copies(self) -> Sequence[object]:
        """The copies of weights that were made; another object after each change."""
        return ()

    def drop_copies(self) -> None:
        """Free the copies of weights; they are made again when they are needed."""

    def install(self) -> Callable[[], None]:
        """Replace the module's forward."""
        replaced = vars(self.module).get("forward")
        if replaced is None or self.wraps_other_forwards:
            self.own, self._replaced = self.module.forward, replaced
            vars(self.module)["forward"] = self
        return self.remove

    def remove(self) -> None:
        """Undo [`install`]. Nothing happens if another forward is installed."""
        if vars(self.module).get("forward") is self:
            del self.module.forward
            if self._replaced is not None:
                vars(self.module)["forward"] = self._replaced
            self._replaced = None


# =====================================================================================================================
# execution/executors.py
#
# Executors, which apply an axis to a base: one executor class per axis, one instance per base.
#
# An executor lists the *parts* of the base that carry out its axis. In a step with a plan for the axis, each part
# applies the plan and then calls `plan.mark_done(axis, part)`: see [`StepPlan`].
# =====================================================================================================================


@dataclass(frozen=True)
class Change:
    """A change to a base that lasts while at least one generation runs."""

    name: str
    thing: object
    make: Callable[[], Callable[[], object]]


class AxisExecutor:
    """Base class of executors. An instance applies one axis to one base."""

    def __init__(self, base: PreTrainedModel):
        raise NotImplementedError

    def changes(self) -> Iterable[Change]:
        """The changes to the base while a generation runs."""
        raise NotImplementedError

    def parts(self, cache: SOLCache) -> Mapping[Hashable, str]:
        """The parts that carry out the axis: the key of each for `mark_done`, and its name for messages."""
        raise NotImplementedError

    def layers(self, cache: SOLCache) -> Sequence[int]:
        """Decoder layers that the axis reaches, for [`Coverage`]."""
        raise NotImplementedError

    def check_backend(self, bits_backend: str, max_plane_bytes: int | None = None) -> None:
        """Make what this `bits_backend` needs, such as copies of weights; by default nothing."""

    def parts_under(self, bits_backend: str, cache: SOLCache) -> Mapping[Hashable, str]:
        """The parts that carry out the axis under a `bits_backend`; by default [`parts`] under each."""
        return self.parts(cache)

    def check_cache(self, cache: SOLCache, name: str) -> None:
        """Raise [`UnsupportedAxisError`] if the axis cannot be used with this kind of cache; by default it can."""

    @classmethod
    def refresh_gain(cls, rule: SelectionRule, bits_backend: str) -> RefreshGain:
        """What a KV refresh gains after steps at the levels of this axis; by default nothing."""
        return RefreshGain()

    @property
    def step_parts(self) -> Sequence[StepPart]:
        """The parts that replace a module's forward; they may hold copies of weights."""
        return ()


EXECUTORS: Registry[type[AxisExecutor]] = Registry("axis")
"""Executor classes by the name of their axis."""


def register_executor(axis: str) -> Callable[[type], type]:
    """Decorator: make a subclass of [`AxisExecutor`] the executor of an axis."""
    return EXECUTORS.registered(axis)


# =====================================================================================================================
# selection/nested_planes.py
#
# Weights as planes of one 8-bit code, which can be read as 8, 6, 5 or 4 bits.
#
# A group of 64 input channels of an output has a scale `s = largest |w| / 128`, rounded up to bfloat16. The code of a
# weight is the number of its cell, `q = floor(w / s) + 128`, in 0..255. Its first `b` bits, `t = q >> (8 - b)`, are the
# number of a cell that is `2^(8 - b)` times as wide, and a weight is read as the middle of its cell:
#
#     w_b = s * 2^(8 - b) * (t + 1/2 - 2^(b - 1))        |w_b - w| <= s * 2^(7 - b)
#
# So to read `b` bits is to round to the symmetric grid of `2^b` values that has no zero, for each `b` alike. (A grid
# with a zero, of `2^b - 1` values, is no better at 8 bits, and worse from 6 bits on.) A group of zeros is read as zeros.
#
# If it is known how large the inputs of the channels are, a scale is chosen instead that makes the squared error of the
# outputs smallest. The few weights beyond the largest cell are then read as its middle.
#
# The bits of a code are stored apart: the first 4, the next, the next, the last 2. Reading 5 bits leaves out the last
# two of these *planes*. Each plane is stored for 16 outputs and 32 channels at a time, as a compiled kernel reads it:
#
#     plane of p bits   (tiles, blocks, p, 16), int32      nibble j of word k of an output has p bits each of 4 / p
#                                                          channels: 8 * (k * 4 / p + i) + j, those of i = 0 lowest
#     scales            (tiles, groups, 16), bfloat16
#
# Outputs are filled up to a multiple of 16, channels to one of 32. What fills them up is never used.
# =====================================================================================================================


PLANES = (4, 1, 1, 2)
"""Bits of the planes, those of greatest weight first."""
WIDTHS = (4, 5, 6, 8)
"""Numbers of bits that can be read."""
CODE_BITS, MIDDLE = 8, 128
GROUP = 64
"""Channels that share a scale: fewer bytes for the same error than 32 or 128, see docs/performance.md."""
SCALES_TRIED = tuple(share / 25 for share in range(16, 27))
"""Shares of the scale that reaches the largest weight, from which one is chosen by the inputs."""
OUTPUTS, CHANNELS = 16, 32
"""Outputs and channels whose words are stored together."""


@dataclass(frozen=True)
class NestedPlanes:
    """The planes of a weight `(outputs, channels)`."""

    planes: tuple[torch.Tensor, ...]
    scales: torch.Tensor
    outputs: int
    channels: int

    @property
    def nbytes(self) -> int:
        """Bytes of all planes and scales."""
        return sum(plane.nbytes for plane in self.planes) + self.scales.nbytes


def width_read(bits: int | float) -> int | None:
    """The number of bits in which a level of `bits` is read: the next of `WIDTHS`, `None` for more than 8."""
    return next((width for width in WIDTHS if width >= bits), None)


def widths_read(bits: torch.Tensor, dense: float) -> torch.Tensor:
    """[`width_read`] of every number of a tensor, `dense` where it is above 8."""
    read = torch.full_like(bits, dense)
    for width in reversed(WIDTHS):
        read = torch.where(bits <= width, torch.full_like(bits, width), read)
    return read


def plane_bytes(outputs: int, channels: int, bits: int = CODE_BITS) -> int:
    """Bytes that reading `bits` bits of a weight `(outputs, channels)` takes, those of its scales included."""
    tiles, blocks, groups = -(-outputs // OUTPUTS), -(-channels // CHANNELS), -(-channels // GROUP)
    return tiles * OUTPUTS * (blocks * CHANNELS * bits // 8 + 2 * groups)


def encode_in_nested_planes(weight: torch.Tensor, importance: torch.Tensor | None = None) -> NestedPlanes:
    """The planes of a weight, on its device."""
    outputs, channels = weight.shape
    slices = [
        _encode_rows(rows, importance)
        for rows in weight.detach().split(max(OUTPUTS, (1 << 22) // channels // 16 * 16))
    ]
    planes = tuple(torch.cat(parts) for parts in zip(*(part for part, _ in slices), strict=True))
    return NestedPlanes(planes, torch.cat([scales for _, scales in slices]), outputs, channels)


def _encode_rows(weight: torch.Tensor, importance: torch.Tensor | None) -> tuple[list[torch.Tensor], torch.Tensor]:
    outputs, channels = weight.shape
    values = functional.pad(weight.float(), (0, -channels % GROUP, 0, -outputs % OUTPUTS))
    grouped = values.view(len(values), -1, GROUP)
    scales = _rounded_up(grouped.abs().amax(dim=-1) / MIDDLE)
    if not bool(scales.isfinite().all()):
        raise ValueError("A weight that is not finite has no planes: pass `bits_backend='fake'`, or mend the weights.")
    if importance is not None:
        weights = functional.pad(importance.to(values), (0, -channels % GROUP)).view(-1, GROUP)
        scales = _best_scales(grouped, scales, weights)
    codes = _codes(grouped, scales).int().flatten(1)
    codes = codes[:, : channels + -channels % CHANNELS]
    tiled = codes.view(-1, OUTPUTS, codes.shape[1] // CHANNELS, CHANNELS).transpose(1, 2)  # (tiles, blocks, 16, 32)
    planes, left = [], CODE_BITS
    for bits in PLANES:
        left -= bits
        part = (tiled >> left) & (2**bits - 1)
        planes.append(_packed(part, bits))
    return planes, scales.view(-1, OUTPUTS, scales.shape[1]).transpose(1, 2).bfloat16().contiguous()


def _codes(grouped: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Codes of weights `(outputs, groups, 64)`, as floats."""
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))[..., None]
    return ((grouped / steps).floor() + MIDDLE).clamp(0, 2**CODE_BITS - 1)


def _best_scales(grouped: torch.Tensor, largest: torch.Tensor, importance: torch.Tensor) -> torch.Tensor:
    """The scales `(outputs, groups)` of least weighted squared error, over 8, 6 and 5 bits together."""
    best, least = largest, torch.full_like(largest, float("inf"))
    for share in SCALES_TRIED:
        scales = _rounded_up(largest * share)
        codes, error = _codes(grouped, scales), torch.zeros_like(largest)
        for bits in (8, 6, 5):
            wide = 2 ** (CODE_BITS - bits)
            read = scales[..., None] * ((codes / wide).floor() * wide + wide / 2 - MIDDLE)
            error += ((read - grouped).square() * importance).sum(dim=-1) / wide**2
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return best


def _rounded_up(scales: torch.Tensor) -> torch.Tensor:
    """The next bfloat16 at or above non-negative float32 numbers, as float32."""
    return ((scales.view(torch.int32) + 0xFFFF) & ~0xFFFF).view(torch.float32)


def _packed(parts: torch.Tensor, bits: int) -> torch.Tensor:
    """Words `(tiles, blocks, bits, 16)` of numbers of `bits` bits, `(tiles, blocks, 16, 32)`."""
    places = _places(bits, parts.device)
    words = (parts.long().view(*parts.shape[:3], bits, *places.shape) << places).sum(dim=(-2, -1))
    return words.transpose(2, 3).contiguous().int()


def _unpacked(words: torch.Tensor, bits: int) -> torch.Tensor:
    """The inverse of [`_packed`]."""
    parts = (words.transpose(2, 3)[..., None, None] >> _places(bits, words.device)) & (2**bits - 1)
    return parts.flatten(3)


def _places(bits: int, device: torch.device) -> torch.Tensor:
    """Where the numbers of `bits` bits begin in a word, by their place in a nibble and the nibble, `(4 / bits, 8)`."""
    nibble, place = torch.arange(8, device=device), torch.arange(4 // bits, device=device)
    return (4 * nibble + bits * place[:, None]).int()


def decode_in_nested_planes(planes: NestedPlanes, bits: int) -> torch.Tensor:
    """The weight `(outputs, channels)` that is read in `bits` bits, one of `WIDTHS`; exact in float32."""
    if bits not in WIDTHS:
        raise ValueError(f"Planes are read in {', '.join(map(str, WIDTHS))} bits, not in {bits}: see `width_read`.")
    left, codes = CODE_BITS, torch.zeros((), dtype=torch.int32, device=planes.scales.device)
    for words, size in zip(planes.planes, PLANES, strict=True):
        left -= size
        if CODE_BITS - left <= bits:
            codes = codes | (_unpacked(words, size) << left)
    middles = codes.float() + (2 ** (CODE_BITS - bits) / 2 - MIDDLE)  # (tiles, blocks, 16, 32)
    middles = middles.transpose(1, 2).flatten(0, 1).flatten(1)[: planes.outputs, : planes.channels]
    scales = planes.scales.float().transpose(1, 2).flatten(0, 1)[: planes.outputs]
    return middles * scales.repeat_interleave(GROUP, dim=1)[:, : planes.channels]


def product_in_nested_planes(
    x: torch.Tensor, planes: NestedPlanes, bits: Sequence[int] | int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The product of an input with the weights that are read, in plain torch: the reference of compiled kernels."""
    if not isinstance(bits, int):
        widths, output = torch.tensor(bits), x.new_empty(*x.shape[:-1], planes.outputs)
        for width in sorted(set(bits)):
            rows = (widths == width).nonzero()[:, 0].to(x.device)
            output.index_copy_(0, rows, product_in_nested_planes(x.index_select(0, rows), planes, width, bias))
        return output
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight = decode_in_nested_planes(planes, bits).to(dtype)
    return functional.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype)).to(x.dtype)


# =====================================================================================================================
# execution/cuda_graphs.py
#
# CUDA graphs need the kernels, which are not in this file.
# =====================================================================================================================


class CapturedForward:
    """A forward that runs from a CUDA graph."""

    def __init__(self, *args: Any):
        _refuse()


def check_capture(base: Any, cache: Any, rule: Any) -> None:
    """Raise a ValueError: nothing can be captured."""
    _refuse()


def _refuse() -> NoReturn:
    raise ValueError(
        "`cuda_graphs` needs kernels that are not in the code of a policy's repository: pip install 'sol_hf[cuda]', "
        "or leave it out."
    )


# =====================================================================================================================
# kernels/cuda/triton_support.py
#
# No tensor is computed on by Triton's kernels, which are not in this file.
# =====================================================================================================================


DEVICES: tuple[str, ...] = ("cuda",)


def has_triton() -> bool:
    """Whether the kernels can be used."""
    return False


def supports_in_triton_support(x: torch.Tensor) -> bool:
    """Whether the kernels support a tensor."""
    return False


def on_device_of(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """A context in which the GPU of a tensor is the current device."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()


# =====================================================================================================================
# execution/decoder_layers.py
#
# Finds the text decoder of any base and its layers, never those of a vision or audio tower.
#
# A tower may have as many layers as the text decoder. It has a config of another class.
# =====================================================================================================================


def decoder_layers(base: PreTrainedModel) -> nn.ModuleList | None:
    """The list of decoder layers: of the lists with as many entries as there are hidden layers, the heaviest."""
    wanted = layer_count(base)
    lists = [m for m in text_modules(base) if isinstance(m, nn.ModuleList) and len(m) == wanted]
    return max(lists, key=_parameters_in_decoder_layers, default=None)


def layer_count(base: PreTrainedModel) -> int | None:
    """Decoder layers according to the config; `None` if it does not say."""
    return getattr(text_config(base), "num_hidden_layers", None)


def text_config(base: PreTrainedModel) -> PreTrainedConfig:
    """The config of the text decoder; for some encoder-decoder families transformers makes a copy."""
    return base.config.get_text_config(decoder=True)


def text_modules(base: PreTrainedModel) -> Iterator[nn.Module]:
    """The text decoder of a base and all modules in it, without the towers for other kinds of input."""
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    is_head = decoder is base.get_output_embeddings()  # some bases call their LM head a decoder
    root = decoder if isinstance(decoder, nn.Module) and not is_head else base
    return _without_towers(root, (type(base.config), type(text_config(base))))


def _without_towers(module: nn.Module, own: tuple[type, ...]) -> Iterator[nn.Module]:
    yield module
    for child in module.children():
        config = vars(child).get("config")
        if not isinstance(config, PreTrainedConfig) or type(config) in own:
            yield from _without_towers(child, own)


def _parameters_in_decoder_layers(layers: nn.ModuleList) -> int:
    return sum(parameter.numel() for parameter in layers.parameters())


# =====================================================================================================================
# execution/own_loop.py
#
# Bases that generate by a loop of their own: it runs without a budget, and is refused under one.
# =====================================================================================================================


LOOPS = ("generate", "_sample", "_beam_search", "_assisted_decoding", "_prefill")


def has_own_loop(base: PreTrainedModel) -> bool:
    """Whether the class of a base replaces a loop of transformers' `generate`."""
    return any(_is_overridden(base, name) for name in LOOPS)


def _is_overridden(base: PreTrainedModel, name: str) -> bool:
    for kind in type(base).__mro__:
        if kind in GenerationMixin.__mro__:
            return False
        if name in vars(kind):
            return kind is not PreTrainedModel
    return False


def own_loop(base: PreTrainedModel, stored: GenerationConfig) -> Callable | None:
    """The `generate` of a base that has a loop of its own, with the model's stored settings; `None` for others."""
    if not has_own_loop(base):
        return None

    def generate(inputs: Any = None, generation_config: GenerationConfig | None = None, **arguments) -> Any:
        prompt = {} if inputs is None else {base.main_input_name: inputs}
        return base.generate(**prompt, generation_config=generation_config or stored, **arguments)

    return generate


# =====================================================================================================================
# execution/cache_support.py
#
# Whether a base can run over the cache of a call under a budget.
# =====================================================================================================================


def reason_against_cache(base: PreTrainedModel) -> str | None:
    """Why a base cannot keep its keys and values in a cache that it is given; `None` if it can."""
    name = type(base).__name__
    if has_own_loop(base):
        return f"the `generate` of {name} is not the loop of transformers"
    if not base._supports_default_dynamic_cache():
        return f"{name} keeps a cache of its own kind, and does not run over one that it is given"
    if not any("past_key_values" in arguments_of(module) for module in (base, base.get_decoder())):
        return f"the forward of {name} takes no `past_key_values`, so it computes the whole text at every token"
    if _sees_later_tokens(base):
        return f"the attention of {name} is not causal; load it as a decoder, with `is_decoder=True` in its config"
    crossing = _layers_over_images(base)
    if crossing:
        layers = f"layers {', '.join(map(str, crossing))} attend" if crossing[1:] else f"layer {crossing[0]} attends"
        return f"{layers} to images and not to the text, and their keys cannot be taken back with those of a token"
    return None


def _sees_later_tokens(base: PreTrainedModel) -> bool:
    """Whether the base is an encoder: its config is not that of a decoder, and its attention says that it looks ahead."""
    layers = decoder_layers(base)
    if layers is None or getattr(text_config(base), "is_decoder", True):
        return False
    causal = [vars(module)["is_causal"] for module in layers.modules() if "is_causal" in vars(module)]
    return bool(causal) and not any(causal)


def _layers_over_images(base: PreTrainedModel) -> list[int]:
    """The decoder layers that have attention to the states of another tower instead of attention to the text."""
    layers = enumerate(decoder_layers(base) or [])
    crosses = {i: any("cross_attention_states" in arguments_of(x) for x in layer.children()) for i, layer in layers}
    return [index for index, has_cross in crosses.items() if has_cross]


def arguments_of(module: nn.Module) -> frozenset[str]:
    """Names in the signature of a module's forward."""
    return frozenset(inspect.signature(type(module).forward).parameters)


# =====================================================================================================================
# execution/axis_plan.py
#
# What a plan says about the axes, and which parts of the base have carried it out.
# =====================================================================================================================


Parts = Mapping[str, Mapping[Hashable, str]]
"""Per axis the parts of a base that carry it out: the key of each for `mark_done`, and its name for messages."""


class AxisPlan:
    """Base class of [`StepPlan`] and [`RefreshPlan`]."""

    levels: Mapping[str, torch.Tensor]
    backend: str
    bits_backend: str
    parts: Parts
    done: dict[str, set[Hashable]]

    @cached_property
    def reads_planes(self) -> bool:
        """Whether linear layers read planes of their weights."""
        return self.bits_backend == "nested" and "bits" in self.levels

    @cached_property
    def widths(self) -> tuple[int | None, ...]:
        """The bits of a weight that every row reads, `None` for the original weights; read by the host."""
        return tuple(width_read(bits) for bits in self.levels["bits"].tolist())

    def mark_done(self, axis: str, part: Hashable) -> None:
        """Record that a part carries out an axis."""
        self.done.setdefault(axis, set()).add(part)

    def check_done(self) -> None:
        """Raise [`PlanNotExecutedError`] if a part of a planned axis did not carry it out; the message names them."""
        planned = [axis for axis in self.levels if axis in self.parts]
        if all(self.parts[axis].keys() <= self.done.get(axis, frozenset()) for axis in planned):
            return
        left = {
            axis: [name for part, name in self.parts[axis].items() if part not in self.done.get(axis, ())]
            for axis in planned
        }
        raise PlanNotExecutedError({axis: names for axis, names in left.items() if names})


# =====================================================================================================================
# execution/plan.py
#
# The plan of a running forward of the base: of a decode step, or of a KV refresh.
#
# The plan is in a context variable. Threads that share a model therefore cannot see each other's plans, and nothing is
# stored on the base's modules. Every part of the base that carries out an axis of a plan marks it as done. If a part is
# left over at the end of a forward, the forward was not computed as planned, and [`PlanNotExecutedError`] is raised.
# =====================================================================================================================


BACKENDS = ("auto", "reference", "fast")
BITS_BACKENDS = ("fake", "int8", "nested")


class AttentionKernel(Protocol):
    """A compiled kernel, set up for one step and for all layers of one shape."""

    def fits(
        self, query: torch.Tensor, layer: PagedLayer, scaling: float | None, soft_cap: float | None = None
    ) -> bool:
        """Whether it was set up for layers of this shape, and for these scores."""

    def __call__(self, query: torch.Tensor, layer: PagedLayer) -> torch.Tensor:
        """Attention of one new token per row, `(rows, 1, heads, value_dim)`."""


class ChunkKernel(Protocol):
    """A compiled kernel for the tokens of a KV refresh, for all layers on a device."""

    def __call__(self, query: torch.Tensor, layer: PagedLayer, scaling: float | None) -> torch.Tensor:
        """Dense attention of several new tokens per row, `(rows, tokens, heads, value_dim)`."""


@dataclass(frozen=True)
class DeviceRows:
    """The first key and the number of keys of every row, known on the device only."""

    first_key: torch.Tensor
    count: torch.Tensor


@dataclass
class SharedByLayers:
    """Values that are the same in every layer of a forward, set by the first layer that needs them."""

    kernels: dict[str, list[AttentionKernel]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class StepPlan(AxisPlan):
    """The plan of one decode step."""

    cache: SOLCache
    rule: SelectionRule
    levels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    backend: str = "auto"
    bits_backend: str = "fake"
    parts: Parts = field(default_factory=dict)
    rows_on_device: DeviceRows | None = None
    shared: SharedByLayers = field(default_factory=SharedByLayers, init=False, repr=False)
    done: dict[str, set[Hashable]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def from_values(
        cls,
        values: torch.Tensor,
        cache: SOLCache,
        rule: SelectionRule,
        backend: str = "auto",
        bits_backend: str = "fake",
        dense_axes: Collection[str] = (),
        parts: Parts | None = None,
    ) -> "StepPlan":
        """Plan for the actions of a step."""
        if values.device.type != "cpu":
            levels = planned_levels(cache, values, dense_axes)
        else:
            columns = enumerate(zip(cache.action_space.axis_names, zip(*values.tolist(), strict=True), strict=True))
            kept = {axis: n for n, (axis, column) in columns if min(column) < AXES_in_axes[axis].dense}
            levels = {axis: values[:, n] for axis, n in kept.items() if axis not in dense_axes}
            if "token_keep" in levels and reads_all_keys(cache, rule, levels["token_keep"]):
                del levels["token_keep"]
        return cls(cache, rule, levels, backend, bits_backend, parts or {})

    @property
    def token_keep(self) -> torch.Tensor | None:
        """Fraction of the cached tokens that attention reads, `(rows,)`; `None` where all are read."""
        return self.levels.get("token_keep")

    @cached_property
    def is_fanned_out(self) -> bool:
        """Whether this is a step of a rollout, see [`SOLCache.fan_out`]."""
        return self.cache.is_fanned_out

    @cached_property
    def kept_share(self) -> float:
        """Mean `token_keep` of the rows, read by the host."""
        return 1.0 if self.token_keep is None else float(self.token_keep.mean())

    @cached_property
    def sparse_layers(self) -> frozenset[int]:
        """Layers to which `token_keep` applies."""
        return self.cache.sparse_layers

    @property
    def is_dense(self) -> bool:
        """Whether the host knows that this step computes exactly what the base would."""
        return not self.levels


def planned_levels(cache: SOLCache, values: torch.Tensor, dense_axes: Collection[str]) -> dict[str, torch.Tensor]:
    """The columns `(rows,)` of action values `(rows, axes)` by axis, without axes that are dense at every step."""
    return {axis: level for axis, level in cache.action_space.by_axis(values).items() if axis not in dense_axes}


def reads_all_keys(cache: SOLCache, rule: SelectionRule, token_keep: torch.Tensor) -> bool:
    """Whether a step at these levels `(rows,)` reads all keys in every row, its own included; read by the host."""
    if cache.is_fanned_out or not all(isinstance(cache.layers[index], PagedLayer) for index in cache.sparse_layers):
        return False
    seen, criterion = cache.get_seq_length() + 1, CRITERIA[rule.criterion]
    padding = [0] * len(token_keep) if cache.padding is None else cache.padding.tolist()
    rows = zip(token_keep.tolist(), padding, strict=True)
    return all(criterion.reads_all(rule, level, seen - first) for level, first in rows)


@dataclass(frozen=True, eq=False)
class RefreshPlan(AxisPlan):
    """The plan of a KV refresh: a dense forward over an episode's tokens, which may round differently from the base's."""

    cache: SOLCache
    backend: str = "auto"
    skips_head: bool = False
    rows_on_device: DeviceRows | None = None
    levels: Mapping[str, torch.Tensor] = field(default_factory=dict)
    parts: Parts = field(default_factory=dict)
    bits_backend: str = field(default="nested", init=False)
    done: dict[str, set[Hashable]] = field(default_factory=dict, init=False, repr=False)
    chunk_kernels: dict[torch.device, ChunkKernel] = field(default_factory=dict, init=False, repr=False)
    """Kernels that are set up, for the layers of every device."""


@dataclass
class ForwardContext:
    """The plan of a running forward of the base (`plan` or `refresh`), and what was seen of it."""

    plan: StepPlan | None = None
    refresh: RefreshPlan | None = None
    hidden_states: torch.Tensor | None = None

    # Every module of the base reads these, so they are computed once.
    masks: list[torch.Tensor] = field(default_factory=list)
    mask_kinds: list[tuple[torch.Tensor, str]] = field(default_factory=list)
    told: StepPlan | RefreshPlan | None = field(init=False)
    """The plan of the step or of the refresh; `None` for an ordinary forward of the base."""
    may_round_differently: bool = field(init=False)
    """Whether this is a decode step or a KV refresh whose results may differ from the base's by rounding."""

    def __post_init__(self):
        self.told = self.plan or self.refresh
        self.may_round_differently = self.told is not None and self.told.backend != "reference"

    @property
    def skips_head(self) -> bool:
        """Whether the logits are not needed."""
        return self.refresh is not None and self.refresh.skips_head

    def head_inputs(self) -> torch.Tensor:
        """The LM head's input, `(rows, tokens, hidden_size)`."""
        if self.hidden_states is None:
            raise RuntimeError("The base's LM head did not run within this forward, so there is no hidden state.")
        return self.hidden_states

    def last_hidden_state(self) -> torch.Tensor:
        """The LM head's input for the last token, `(rows, hidden_size)`."""
        return self.head_inputs()[:, -1]


ACTIVE: ContextVar[ForwardContext | None] = ContextVar("sol_hf_active_forward", default=None)


@contextmanager
def active_forward(plan: StepPlan | None = None, refresh: RefreshPlan | None = None) -> Iterator[ForwardContext]:
    """Within the block, the parts of a base that run in this thread carry out this plan."""
    context = ForwardContext(plan, refresh)
    token = ACTIVE.set(context)
    try:
        yield context
    finally:
        ACTIVE.reset(token)
    if context.told is not None:
        context.told.check_done()


# =====================================================================================================================
# execution/lm_head.py
#
# The hidden state that the LM head of a base receives.
# =====================================================================================================================


def lm_head_of(base: PreTrainedModel) -> nn.Module:
    """The LM head of a base, as it is now: heads are replaced when embeddings are resized or adapters are added."""
    head = base.get_output_embeddings()
    if head is None:
        raise UnsupportedAxisError(f"{type(base).__name__} has no output embeddings, so no hidden state to read.")
    return head


def capture_hidden_state(module: nn.Module, args: tuple) -> tuple | None:
    """Forward pre-hook of the LM head: store its input in the context of this thread's forward."""
    context = ACTIVE.get()
    if context is None:
        return None
    context.hidden_states = args[0]
    if not context.skips_head:
        return None
    is_plain = type(module) is nn.Linear and type(module.weight) in (nn.Parameter, torch.Tensor)
    return (args[0][:, :0] if is_plain else args[0][:, -1:], *args[1:])


# =====================================================================================================================
# execution/inventory.py
#
# What the axes address on a base, as it is now: its modules, its executors, its LM head.
#
# A base can be changed between two calls: adapters are added, layers are copied or replaced, embeddings are resized. An
# [`Inventory`] therefore knows the modules and configs from which it was made, and is made anew if they have changed.
# =====================================================================================================================


class Inventory:
    """The executors of a base and its LM head."""

    def __init__(self, base: PreTrainedModel):
        self._base = weakref.ref(base)
        self.head = lm_head_of(base)
        self._modules = [weakref.ref(module) for module in base.modules()]
        self._settings = [_settings(module) for module in base.modules()]
        self._no_cache = reason_against_cache(base)
        self._executors: dict[str, AxisExecutor] = {}
        self._reasons: dict[str, str] = {}

    @property
    def base(self) -> PreTrainedModel:
        """The base."""
        base = self._base()
        assert base is not None, "an inventory is only used while its base exists"
        return base

    def is_current(self) -> bool:
        """Whether the base still consists of the same modules, with the same configs and attention."""
        now = list(self.base.modules())
        if self.base.get_output_embeddings() is not self.head or len(now) != len(self._modules):
            return False
        if any(known() is not module for known, module in zip(self._modules, now, strict=True)):
            return False
        settings = zip(self._settings, map(_settings, now), strict=True)
        return all(known[0] is found[0] and known[1] == found[1] for known, found in settings)

    def executor(self, axis: str) -> AxisExecutor:
        """The executor of an axis on this base."""
        reason = self._reason_against(axis)
        if reason is not None:
            raise UnsupportedAxisError(reason)
        return self._executors[axis]

    def unsupported(self, axis: str) -> UnsupportedAxisError | None:
        """The reason why an axis cannot be controlled on this base, `None` if it can."""
        reason = self._reason_against(axis)
        return None if reason is None else UnsupportedAxisError(reason)

    def _reason_against(self, axis: str) -> str | None:
        """Message of the error for an axis that cannot be controlled."""
        if axis not in EXECUTORS:  # one may be registered later
            return f"The axis `{axis}` has no executor: register one with `register_executor`."
        if self._no_cache is not None:
            return f"The axis `{axis}` cannot be controlled: {self._no_cache}."
        if axis not in self._executors and axis not in self._reasons:
            try:
                self._executors[axis] = EXECUTORS[axis](self.base)
            except UnsupportedAxisError as error:
                self._reasons[axis] = str(error)
        return self._reasons.get(axis)

    def executors(self) -> Iterator[AxisExecutor]:
        """Executors of all axes that can be controlled on this base."""
        return (self.executor(axis) for axis in EXECUTORS if self.unsupported(axis) is None)

    @property
    def step_parts(self) -> list[StepPart]:
        """The parts that replace a module's forward, each once, also if it carries out several axes."""
        parts = [part for executor in self.executors() for part in executor.step_parts]
        return list({id(part): part for part in parts}.values())


def _settings(module: nn.Module) -> tuple[object, object]:
    """The config of a module, and the attention implementation in it."""
    config = vars(module).get("config")
    return config, getattr(config, "_attn_implementation_internal", None)


# =====================================================================================================================
# execution/mlp/parts.py
#
# The parts of an MLP: its projections and its activation, found by name and checked by their output.
#
# Only `down(activation(gate(x)) * up(x))` and `down(activation(gate(x)))` are recognised, from plain linear layers
# without hooks. Since names do not define a computation, [`find_parts`] also compares the output computed from the parts
# with the output of the module.
# =====================================================================================================================


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
"""Activations that the fast paths support."""
TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest difference from the module's own output, relative to its largest element."""


@dataclass(frozen=True)
class MLPNames:
    """Names of the children of an MLP."""

    gate: str
    up: str | None
    down: str
    activation: str
    stacked: bool = False


KNOWN_NAMES = (
    MLPNames("gate_proj", "up_proj", "down_proj", "act_fn"),
    MLPNames("gate_up_proj", None, "down_proj", "activation_fn", stacked=True),
    MLPNames("fc1", None, "fc2", "activation_fn"),
    MLPNames("dense_h_to_4h", None, "dense_4h_to_h", "act"),
    MLPNames("up_proj", None, "down_proj", "act_fn"),
)


@dataclass(frozen=True)
class MLPParts:
    """The weights of an MLP, output-major as in `nn.Linear`, and the name of its activation."""

    gate: torch.Tensor
    up: torch.Tensor | None
    down: torch.Tensor
    biases: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
    activation: str
    sources: dict[str, nn.Linear]
    function: tuple[str, Callable] | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The MLP's output for `x` `(..., channels)` in plain torch."""
        hidden = ACTIVATIONS[self.activation](functional.linear(x, self.gate, self.biases[0]))
        if self.up is not None:
            hidden = hidden * functional.linear(x, self.up, self.biases[1])
        return functional.linear(hidden, self.down, self.biases[2])


def find_parts(module: nn.Module) -> MLPParts | None:
    """The parts of an MLP, `None` if it is not of a known kind."""
    children = dict(module.named_children())
    for names in KNOWN_NAMES:
        needed = {names.gate, names.down, names.activation} | ({names.up} if names.up else set())
        extra = [child for name, child in children.items() if name not in needed]
        activation = getattr(module, names.activation, None)
        if needed - {names.activation} <= set(children) and all(isinstance(child, nn.Dropout) for child in extra):
            parts = _take(children, names, activation) if callable(activation) else None
            if parts is not None and _computes_the_same(module, parts):
                return parts
    return None


def _take(children: dict[str, Any], names: MLPNames, activation: Callable) -> MLPParts | None:
    sources = {name: children[name] for name in (names.gate, names.up, names.down) if name}
    linear = all(is_plain_linear(source) for source in sources.values())
    known = _name_activation(activation) if linear and is_plain_activation(activation) else None
    if known is None or len({(x.dtype, x.device) for x in tensors_of(sources)}) > 1:
        return None
    weights = [source.weight.detach() for source in sources.values()]
    biases = [None if source.bias is None else source.bias.detach() for source in sources.values()]
    gate, up, down = weights[0], weights[1] if names.up else None, weights[-1]
    gate_bias, up_bias, down_bias = biases[0], biases[1] if names.up else None, biases[-1]
    if names.stacked:
        gate, up = gate.chunk(2)
        gate_bias, up_bias = (None, None) if gate_bias is None else gate_bias.chunk(2)
    if down.shape[1] != len(gate) or (up is not None and up.shape != gate.shape):
        return None  # what is between the projections is more than an activation
    function = names.activation, activation
    return MLPParts(gate, up, down, (gate_bias, up_bias, down_bias), known, sources, function)


def tensors_of(sources: Mapping[str, nn.Linear | Conv1D]) -> list[torch.Tensor]:
    """Weights and biases of projections."""
    tensors = [tensor for source in sources.values() for tensor in (source.weight, source.bias)]
    return [tensor for tensor in tensors if tensor is not None]


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a projection is a plain linear layer on plain tensors, without hooks or a replaced forward."""
    if type(module) is not nn.Linear or _is_changed(module):
        return False
    return all(type(x) in (nn.Parameter, torch.Tensor) and x.is_contiguous() for x in tensors_of({"": module}))


def is_plain_conv1d(module: nn.Module) -> bool:
    """The same for `Conv1D`, whose weight is input-major."""
    if type(module) is not Conv1D or _is_changed(module):
        return False
    return all(type(x) is nn.Parameter and x.is_contiguous() for x in module.parameters())


def is_plain_activation(function: Callable) -> bool:
    """Whether an activation has no weights, no hooks and no replaced forward."""
    if not isinstance(function, nn.Module):
        return True
    return not any(_is_changed(module) for module in function.modules()) and not function.state_dict()


def _is_changed(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    replaced = forward is not None and not getattr(forward, "is_plain_product", False)
    return bool(module._forward_hooks or module._forward_pre_hooks or replaced)


def _name_activation(activation: Callable) -> str | None:
    """The known activation that gives the same values, also for large inputs, where some activations are clipped."""
    fine, coarse = (torch.linspace(-end, end, 97, dtype=torch.float32) for end in (6, 100))
    x = torch.cat([fine, coarse])
    values = activation(x)
    for name, function in ACTIVATIONS.items():
        if values.shape == x.shape and torch.allclose(values, function(x), atol=1e-6, rtol=1e-5):
            return name
    return None


def _computes_the_same(module: nn.Module, parts: MLPParts) -> bool:
    if parts.gate.dtype not in TOLERANCES or parts.gate.device.type == "meta":
        return False
    x = torch.linspace(-3, 3, parts.gate.shape[1], dtype=torch.float64).mul(7).sin()
    x = x.to(parts.gate.device, parts.gate.dtype)[None, None]
    with torch.no_grad(), active_forward():  # its projections may be under the plan of a running step
        own, ours = type(module).forward(module, x), parts(x)
    if own.shape != ours.shape:
        return False
    difference, scale = (own - ours).abs().amax(), own.abs().amax()
    return bool(difference <= TOLERANCES[x.dtype] * scale)


# =====================================================================================================================
# execution/mlp/weight_copy.py
#
# Copies of an MLP's weights in another layout or dtype, used as long as the weights do not change.
#
# torch does not report that a weight has changed. Most changes alter its address or its version counter. A change
# through `.data`, for example when an adapter is merged, alters neither. It is detected by comparing a sample of the
# elements, which takes 0.1 ms per weight. A comparison of all elements before every generation would take as long as a
# decode step.
# =====================================================================================================================


SAMPLES_in_weight_copy = 1024


@dataclass(frozen=True)
class Fingerprint:
    """Address, version and a sample of the elements of a tensor, to detect whether it has changed."""

    address: int
    shape: torch.Size
    version: int
    sample: bytes

    @classmethod
    def of(cls, weight: torch.Tensor) -> "Fingerprint":
        """The fingerprint of a tensor as it is now."""
        sample = weight.detach().reshape(-1)[:: sample_stride(weight.shape)].contiguous().cpu()
        version = 0 if weight.is_inference() else weight._version
        return cls(weight.data_ptr(), weight.shape, version, sample.view(torch.uint8).numpy().tobytes())


def sample_stride(shape: torch.Size) -> int:
    """Distance between sampled elements. It has no common divisor with the width, so that all channels are sampled."""
    stride = max(1, shape.numel() // SAMPLES_in_weight_copy)
    while math.gcd(stride, shape[-1]) > 1:
        stride += 1
    return stride


class MLPCopy:
    """A copy of an MLP's weights that a fast path uses instead of the original."""

    def __init__(self, parts: MLPParts):
        self.parts = parts
        self._fingerprints = self._current()

    @classmethod
    def of(cls, module: nn.Module) -> Self | None:
        """The copy for an MLP; `None` if it is not on the CPU or does not consist of known parts."""
        parts = find_parts(module)
        return None if parts is None or parts.gate.device.type != "cpu" else cls(parts)

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        raise NotImplementedError

    def _current(self) -> list[Fingerprint]:
        return [Fingerprint.of(tensor) for tensor in tensors_of(self.parts.sources)]

    def still_fits(self, module: nn.Module) -> bool:
        """Whether a module still has the weights that were copied, and the same activation."""
        sources, function = self.parts.sources.items(), self.parts.function
        same = all(getattr(module, name, None) is source and is_plain_linear(source) for name, source in sources)
        if function is not None:
            same = same and getattr(module, function[0], None) is function[1] and is_plain_activation(function[1])
        return same and self._current() == self._fingerprints


# =====================================================================================================================
# execution/dispatch.py
#
# Operations with several implementations, and the choice of one of them for every call.
#
# An [`Operation`] is a registry of [`Implementation`]s, one per file. Each of them says which calls it can compute. Of
# those that can, the backend chooses:
#
#     "reference"   the first in order, plain torch or the base's own code
#     "fast"        the last in order
#     "auto"        the last in order that is expected to be faster: see [`Implementation.suits`]
#
# Implementations of an operation agree up to rounding. The choice depends on nothing but the call: its shapes, dtype,
# levels and number of threads. No times are measured, so equal calls have equal results to the bit, in every process.
# What the rules of `suits` are based on was measured, see `docs/performance.md`.
# =====================================================================================================================


AnyCall = TypeVar("AnyCall")
Prepared = Callable[[], torch.Tensor]


class Implementation(Generic[AnyCall]):
    """One way to compute an operation."""

    order: ClassVar[int]
    is_fallback: ClassVar[bool] = False

    def prepare(self, call: AnyCall) -> Prepared | None:
        """The computation of a call as a function to run; `None` if this implementation cannot be used."""
        raise NotImplementedError

    def suits(self, call: AnyCall) -> bool:
        """Whether it is expected to be faster than those before it, so that `backend="auto"` uses it if it can."""
        return True


class Operation(Registry[Implementation[AnyCall]]):
    """The implementations of one operation by name."""

    def __init__(self, kind: str, package: str | None = None):
        super().__init__(kind, package)
        self._ordered: tuple[tuple[str, Implementation[AnyCall]], ...] | None = None

    def register(self, name: str, member: Implementation[AnyCall]) -> Implementation[AnyCall]:
        self._ordered = None
        return super().register(name, member)

    def unregister(self, name: str) -> None:
        self._ordered = None
        super().unregister(name)

    @property
    def ordered(self) -> tuple[tuple[str, Implementation[AnyCall]], ...]:
        """Names and implementations in their order."""
        if self._ordered is None:
            self._ordered = tuple(sorted(self.items(), key=lambda item: item[1].order))
        return self._ordered

    def usable(self, call: AnyCall) -> dict[str, Prepared]:
        """The prepared computations of a call, by name, of all implementations that can compute it, in order."""
        prepared = {name: implementation.prepare(call) for name, implementation in self.ordered}
        return {name: run for name, run in prepared.items() if run is not None}

    def run(self, call: AnyCall, backend: str) -> torch.Tensor | None:
        """Compute a call."""
        if backend != "reference":
            for _, implementation in reversed(self._ordered or self.ordered):
                wanted = implementation.suits(call) if backend == "auto" else not implementation.is_fallback
                prepared = implementation.prepare(call) if wanted else None
                if prepared is not None:
                    return prepared()
        for _, implementation in self._ordered or self.ordered:
            prepared = implementation.prepare(call)
            if prepared is not None:
                return prepared()
        return None


# =====================================================================================================================
# execution/linear/operation.py
#
# The product of a few tokens with the weights of a linear layer, and all of its implementations.
# =====================================================================================================================


class LinearCall(NamedTuple):
    """Arguments of `functional.linear`, of the kinds that [`supports`] allows."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


LINEAR: Operation[LinearCall] = Operation("implementation of a linear layer")
"""Implementations of the product by name."""


# =====================================================================================================================
# execution/linear/planes/operation.py
#
# The product of some rows with the planes of a weight, and all of its implementations.
#
# There are two operations: one for rows of which the host knows how many bits they read, and one for rows of which only
# the device knows how many each reads.
# =====================================================================================================================


class PlanesCall(NamedTuple):
    """Arguments of [`nested_planes.product`]."""

    x: torch.Tensor
    planes: NestedPlanes
    bits: int | tuple[int, ...]
    bias: torch.Tensor | None


PLANES_PRODUCT: Operation[PlanesCall] = Operation("implementation of a product with planes")
"""Implementations of the product by name."""


class RowsCall(NamedTuple):
    """A linear layer whose rows read as many bits as the device says."""

    x: torch.Tensor
    bits: torch.Tensor
    planes: NestedPlanes
    least_bits: int
    bias: torch.Tensor | None
    weight: torch.Tensor
    own: Callable[[torch.Tensor], torch.Tensor]


PLANES_ROWS: Operation[RowsCall] = Operation("implementation of rows with planes")
"""Implementations of rows with different numbers of bits by name."""


# =====================================================================================================================
# execution/linear/planes/rows.py
#
# A linear layer of a step in which every row reads its weights in a number of bits of its own.
# =====================================================================================================================


def multiply_rows(
    plan: AxisPlan,
    x: torch.Tensor,
    planes: NestedPlanes,
    least_bits: int,
    bias: torch.Tensor | None,
    weight: torch.Tensor,
    own: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """The layer's output `(rows, ..., outputs)` for an input `(rows, ..., channels)`."""
    if x.device.type != "cpu" or supports_in_triton_support(x):
        bits = plan.levels["bits"].to(x.device)
        if len(bits) != len(x):
            bits = bits.repeat_interleave(len(x) // len(bits))
        output = PLANES_ROWS.run(RowsCall(x, bits, planes, least_bits, bias, weight, own), plan.backend)
        assert output is not None, "the reference can compute every call"
        return output
    widths = tuple(None if width is None else max(width, least_bits) for width in plan.widths)
    distinct = set(widths)
    if len(distinct) > 1 and len(x) != len(widths):
        raise ValueError(
            f"A linear layer gets {len(x)} rows in a step of {len(widths)} with different numbers of bits: give all "
            "rows the same `bits`, or pass `bits_backend='fake'`."
        )
    if distinct == {None}:
        return own(x)
    read = tuple(width for width in widths if width is not None)
    if len(distinct) == 1:
        return _multiply(plan, x, planes, read[0], bias)
    if None not in distinct:
        return _multiply(plan, x, planes, read, bias)
    ours, others = _split(widths)
    output = x.new_empty(*x.shape[:-1], planes.outputs)
    output.index_copy_(0, ours, _multiply(plan, x.index_select(0, ours), planes, read, bias))
    return output.index_copy_(0, others, own(x.index_select(0, others)))


@functools.lru_cache(maxsize=16)  # all layers of a step have the same
def _split(widths: tuple[int | None, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows that read planes, and the others."""
    with torch.inference_mode(False):  # later steps may have gradients
        reads_planes = torch.tensor([width is not None for width in widths])
        return reads_planes.nonzero()[:, 0], reads_planes.logical_not().nonzero()[:, 0]


def _multiply(
    plan: AxisPlan, x: torch.Tensor, planes: NestedPlanes, bits: int | tuple[int, ...], bias: torch.Tensor | None
) -> torch.Tensor:
    """The product with rows that read planes, all of them the same number of bits or each its own."""
    output = PLANES_PRODUCT.run(PlanesCall(x, planes, bits, bias), plan.backend)
    assert output is not None, "the reference can compute every call"
    return output


# =====================================================================================================================
# execution/linear/step_linear.py
#
# The linear layers of a base in a decode step, on the CPU.
#
# The time of a product with few tokens is the time to read the weights. torch's own code for float32 is optimized for
# many tokens, but a decode step has one token per row, and a KV refresh one per step of the episode. Other
# implementations read the same weights faster ([measured](docs/performance.md)). Their results differ by rounding, since
# they add up in another order.
#
# While a base is instrumented, its linear layers have an instance attribute `forward` that is a [`StepLinear`]. It is
# used in decode steps and KV refreshes only, and not under `backend="reference"`, unless a step reads planes of the
# weights.
# =====================================================================================================================


PRODUCTS = (nn.Linear, Conv1D)
"""Classes whose forward is a product with a weight."""
_IMPORTANCE: "weakref.WeakKeyDictionary[nn.Module, torch.Tensor]" = weakref.WeakKeyDictionary()
"""Mean squares of the inputs of layers by channel, by which the scales of their planes are chosen."""
_STEP_LINEARS: "weakref.WeakValueDictionary[int, StepLinear]" = weakref.WeakValueDictionary()
"""By the id of the module. The [`StepLinear`] holds a reference to the module, so that its id stays valid."""
_REGISTRY_LOCK_in_step_linear = threading.Lock()


LEAST_WEIGHTS = 1 << 16
"""Number of weights below which the overhead of choosing an implementation exceeds the gain."""
MOST_TOKENS_in_step_linear = 256
"""Number of tokens in a forward above which all implementations are equally fast."""
IS_MEASURED = platform.machine().lower() in ("x86_64", "amd64")
"""Other processors were not measured."""


def supports_in_step_linear(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether `x` `(..., channels)` and a `weight` `(outputs, channels)` have other implementations than torch's."""
    plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.is_contiguous()
    return (
        plain
        and x.shape[-1] == weight.shape[1]
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == weight.device.type == "cpu"
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and IS_MEASURED
    )


def matrix_of(module: nn.Module) -> torch.Tensor:
    """The weight `(outputs, channels)` of a layer of `PRODUCTS`; that of `Conv1D` is transposed."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight.t() if isinstance(module, Conv1D) else weight


class StepLinear(StepPart):
    """The forward of one linear layer while its base is instrumented."""

    is_plain_product = True
    """Read by the MLP's fast paths: this forward computes only the product with the weights, and adds the bias."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        weight = getattr(module, "weight", None)
        self.is_large = type(module) is nn.Linear and weight is not None and weight.numel() >= LEAST_WEIGHTS
        """Whether other implementations than torch's are worth their overhead."""
        self.least_bits: int | None = None
        """Fewest bits in which planes of the weight are read; `None` for a layer that no step reads in planes."""
        self._planes: NestedPlanes | None = None
        self._fingerprint: Fingerprint | None = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, module: nn.Module) -> "StepLinear":
        """The [`StepLinear`] of a layer. Bases that share the layer also share this object and the planes."""
        with _REGISTRY_LOCK_in_step_linear:
            part = _STEP_LINEARS.get(id(module))
            if part is None:
                part = _STEP_LINEARS[id(module)] = cls(module)
            return part

    @classmethod
    def all_of(cls, base: nn.Module) -> "tuple[StepLinear, ...]":
        """One for every linear layer of a base that is large enough, or that a step may read in planes."""
        parts = [cls.of(module) for module in base.modules() if type(module) in PRODUCTS]
        return tuple(part for part in parts if part.is_large or part.least_bits is not None)

    @property
    def nbytes(self) -> int:
        return 0 if self._planes is None else self._planes.nbytes

    @property
    def copies(self) -> Sequence[NestedPlanes]:
        return () if self._planes is None else (self._planes,)

    def drop_copies(self) -> None:
        with self._lock:
            self._planes = self._fingerprint = None

    def made_planes(self) -> NestedPlanes | None:
        """The planes of the weight, if there are any."""
        return self._planes

    def planes(self) -> NestedPlanes:
        """The planes of the weight as it is now, made if there are none."""
        with self._lock, torch.inference_mode(False), torch.no_grad():
            weight = matrix_of(self.module)
            now = Fingerprint.of(weight)
            if self._planes is None or now != self._fingerprint:
                self._planes, self._fingerprint = encode_in_nested_planes(weight, _IMPORTANCE.get(self.module)), now
            return self._planes

    def choose_scales(self, importance: torch.Tensor) -> None:
        """Let the next planes have scales chosen by the mean square of every input channel, `(channels,)`."""
        with self._lock:
            _IMPORTANCE[self.module] = importance
            self._planes = self._fingerprint = None

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """The layer's output `(..., outputs)` for an input `(..., channels)`."""
        context = ACTIVE.get()
        if context is None or context.told is None or self.least_bits is None or not context.told.reads_planes:
            return self._multiply(input)
        plan = context.told
        plan.mark_done("bits", self)
        if not input.numel():  # the LM head, where logits are not needed
            return self._multiply(input)
        planes, bias = self._planes or self.planes(), self.module.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        least = self.least_bits if context.refresh is None else max(WIDTHS)
        return multiply_rows(plan, input, planes, least, bias, matrix_of(self.module), self._multiply)

    def _multiply(self, input: torch.Tensor) -> torch.Tensor:
        """The product with the original weights."""
        module, context = self.module, ACTIVE.get()
        if not self.is_large:
            assert self.own is not None, "only called while it is installed"
            return self.own(input)
        assert isinstance(module, nn.Linear)
        tokens = input.numel() // max(1, input.shape[-1])
        if (
            context is None
            or not context.may_round_differently
            or not 0 < tokens <= MOST_TOKENS_in_step_linear
            or not supports_in_step_linear(input, module.weight)
        ):
            return functional.linear(input, module.weight, module.bias)
        backend = "auto" if context.told is None else context.told.backend
        output = LINEAR.run(LinearCall(input, module.weight, module.bias), backend)
        assert output is not None, "torch's own product can compute every call"
        return output


# =====================================================================================================================
# execution/norm.py
#
# The norms of a decode step, on a GPU, in one kernel launch each.
#
# A step with one row launches dozens of small kernels per layer, and most of its time is launch overhead. While a base
# is instrumented, its root mean square norms have an instance attribute `forward` that is a [`StepNorm`]. It is used in
# decode steps and KV refreshes, and not under `backend="reference"`.
# =====================================================================================================================


def is_rms_norm(module: nn.Module) -> bool:
    """Whether a module computes what `LlamaRMSNorm` does. Many model files of transformers have a copy of its code."""
    code = getattr(type(module).forward, "__code__", None)
    return isinstance(code, CodeType) and _instructions(code) == _instructions(LlamaRMSNorm.forward.__code__)


def _instructions(code: CodeType) -> tuple:
    return code.co_code, code.co_names, code.co_consts


class StepNorm(StepPart):
    """The forward of one norm while its base is instrumented."""

    @classmethod
    def all_of(cls, base: nn.Module) -> "tuple[StepNorm, ...]":
        """One for every norm of a base that the kernel can compute."""
        return tuple(cls(module) for module in base.modules() if is_rms_norm(module))

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The norm's output, of the shape of its input `(..., channels)`."""
        context, module = ACTIVE.get(), self.module
        weight: torch.Tensor = module.weight  # type: ignore[assignment]
        if context is None or not context.may_round_differently or not _supports(hidden_states, weight):
            return type(module).forward(module, hidden_states)
        rms_norm = left_out("kernels.cuda.rms_norm.rms_norm")

        return rms_norm(hidden_states, weight, float(module.variance_epsilon))  # type: ignore[arg-type]


def _supports(x: torch.Tensor, weight: torch.Tensor) -> bool:
    plain = type(weight) in (torch.Tensor, nn.Parameter) and weight.device == x.device
    grad = torch.is_grad_enabled() and weight.requires_grad
    return plain and x.dtype == weight.dtype and not grad and x.numel() > 0 and supports_in_triton_support(x)


# =====================================================================================================================
# execution/shared_changes.py
#
# Changes to modules and configs that several bases may share.
# =====================================================================================================================


@dataclass
class SharedChange:
    """A change to an object that several bases may share, for example the layers of a model with several wrappers."""

    thing: object
    undo: Callable[[], object]
    holders: int = 0


_CHANGES: dict[tuple[str, int], SharedChange] = {}


_CHANGES_LOCK = threading.RLock()


def is_changed(name: str, thing: object) -> bool:
    """Whether a change to an object is in force."""
    return (name, id(thing)) in _CHANGES


@contextmanager
def no_changes() -> Iterator[None]:
    """Within the block, no other thread makes or undoes a change."""
    with _CHANGES_LOCK:
        yield


def change_once(name: str, thing: object, make: Callable[[], Callable[[], object]]) -> Callable[[], None]:
    """Make a change to an object, unless it is in force already, and count one more user."""
    key = name, id(thing)
    with _CHANGES_LOCK:
        if key not in _CHANGES:
            _CHANGES[key] = SharedChange(thing, make())
        _CHANGES[key].holders += 1
    return lambda: _let_go(key)


def _let_go(key: tuple[str, int]) -> None:
    with _CHANGES_LOCK:
        change = _CHANGES[key]
        change.holders -= 1
        if change.holders == 0:
            del _CHANGES[key]
            change.undo()


# =====================================================================================================================
# execution/stack/stack.py
#
# No step is one compiled program: the modules of the base run.
# =====================================================================================================================


class BaseStack:
    """The layers of a base as a program."""

    @staticmethod
    def is_recognised(base: Any) -> bool | None:
        """Whether steps of a base can run as a program; `None`: nothing is said of it."""
        return None


def run_step(base: Any, plan: Any, tokens: Any, places: Any, is_new: bool) -> Any:
    """A step; `None` where the modules have to run."""
    return None


def run_refresh(base: Any, plan: Any, tokens: Any, places: Any) -> Any:
    """A dense forward of several tokens; `None` where the modules have to run."""
    return None


def forget_programs(base: Any) -> None:
    """There are none to forget."""


# =====================================================================================================================
# execution/watch.py
#
# Dense forwards of a base, of which nothing is exchanged: only the input of the LM head is read.
# =====================================================================================================================


@contextmanager
def evaluating(base: PreTrainedModel) -> Iterator[None]:
    """Within the block, no module of the base is in training mode."""
    with made(stop_training(base)):
        yield


@contextmanager
def watching(base: PreTrainedModel) -> Iterator[None]:
    """Within the block, the base is in evaluation mode, and forwards of it keep the input of the LM head."""
    with made([*stop_training(base), watch_head(lm_head_of(base))]):
        yield


@contextmanager
def made(changes: list[Change]) -> Iterator[None]:
    """Within the block, changes are in force."""
    with contextlib.ExitStack() as undo:
        for change in changes:
            undo.callback(change_once(change.name, change.thing, change.make))
        yield


def stop_training(base: nn.Module) -> list[Change]:
    """The changes that put a base into evaluation mode, also those that other threads have made and will undo."""
    with no_changes():
        modules = [module for module in base.modules() if module.training or is_changed("training", module)]
    return [Change("training", module, functools.partial(_stop_training, module)) for module in modules]


def watch_head(head: nn.Module) -> Change:
    """The change that keeps the input of an LM head."""
    return Change("head", head, lambda: head.register_forward_pre_hook(capture_hidden_state).remove)


def _stop_training(module: nn.Module) -> Callable[[], None]:
    module.training = False
    return lambda: setattr(module, "training", True)


# =====================================================================================================================
# execution/instrumentation.py
#
# Changes a base while at least one generation under a budget runs, and undoes all changes after the last.
#
# There is one [`Instrumentation`] per base, however many wrappers and threads use it. It counts the running generations.
# Objects that several bases share, such as modules or a config, are changed once for all of them: see
# `shared_changes.py`. Dense calls do not use it: see `watch.py`.
# =====================================================================================================================


_INSTRUMENTATIONS: "weakref.WeakKeyDictionary[nn.Module, Instrumentation]" = weakref.WeakKeyDictionary()
_REGISTRY_LOCK_in_instrumentation = threading.Lock()


class Instrumentation:
    """Re-entrant, thread-safe context in which a base carries out the step plans of its callers."""

    def __init__(self, base: PreTrainedModel):
        self._base = weakref.ref(base)
        self._inventory = Inventory(base)
        self._undo: dict[tuple[str, int], Callable[[], object]] = {}
        self._lock = threading.RLock()
        self._inside = 0

    @classmethod
    def of(cls, base: PreTrainedModel) -> "Instrumentation":
        """The one instrumentation of `base`."""
        with _REGISTRY_LOCK_in_instrumentation:
            if base not in _INSTRUMENTATIONS:
                _INSTRUMENTATIONS[base] = cls(base)
            return _INSTRUMENTATIONS[base]

    @classmethod
    def at_start(cls, base: PreTrainedModel) -> "Instrumentation":
        """The one instrumentation of `base`, for a call that begins: modules that were replaced are found anew."""
        instrumentation = cls.of(base)
        instrumentation.look_again()
        return instrumentation

    def look_again(self) -> None:
        """Find the parts of the base anew if its modules or configs have changed."""
        with self._lock:
            if not self._inventory.is_current():
                self._inventory = Inventory(self.base)
                if self._inside:
                    self._install()

    @property
    def base(self) -> PreTrainedModel:
        """The base."""
        base = self._base()
        assert base is not None, "an instrumentation is only used while its base exists"
        return base

    def executor(self, axis: str) -> AxisExecutor:
        """The executor of an axis on this base."""
        return self._inventory.executor(axis)

    def unsupported(self, axis: str) -> UnsupportedAxisError | None:
        """The reason why an axis cannot be controlled on this base, `None` if it can."""
        return self._inventory.unsupported(axis)

    def require(self, axes: Iterable[str], bits_backend: str = "fake", max_plane_bytes: int | None = None) -> None:
        """Raise [`UnsupportedAxisError`] if the base cannot be controlled on one of `axes`, or with this backend."""
        for axis in axes:
            self.executor(axis).check_backend(bits_backend, max_plane_bytes)

    def require_cache(self, cache: SOLCache, axes: list[str], kv_refresh: bool | str) -> None:
        """Raise [`UnsupportedAxisError`] if this kind of cache does not allow an axis, or cannot be rolled back."""
        name = type(self.base).__name__
        for axis in axes:
            self.executor(axis).check_cache(cache, name)
        if kv_refresh and not cache.is_croppable:
            kinds = sorted({type(layer).__name__ for layer in cache.layers if not layer.is_croppable})
            raise UnsupportedAxisError(
                f"The axes {', '.join(axes)} cannot be controlled on {name} with a KV refresh: {', '.join(kinds)} "
                "cannot be rolled back. Pass `kv_refresh=False`."
            )

    def require_graphs(self, cache: SOLCache, rule: SelectionRule) -> None:
        """Raise a ValueError if forwards of the base over a cache of this kind cannot run from CUDA graphs."""
        if self.base.device.type not in DEVICES:
            raise ValueError(f"`cuda_graphs` needs a GPU, but the base is on {self.base.device}.")
        check_capture(self.base, cache, rule)

    def parts(self, cache: SOLCache, bits_backend: str = "fake") -> dict[str, Mapping[Hashable, str]]:
        """The parts that carry out each axis, for all axes of the cache's action space that can be controlled."""
        axes = (axis for axis in cache.action_space.axis_names if self.unsupported(axis) is None)
        return {axis: self.executor(axis).parts_under(bits_backend, cache) for axis in axes}

    @property
    def step_parts(self) -> list[StepPart]:
        """The parts that replace a module's forward, each once, also if it carries out several axes."""
        return self._inventory.step_parts

    @property
    def copied_bytes(self) -> int:
        """Bytes of the copies of weights that fast paths, int8 and nested planes have made."""
        return sum(part.nbytes for part in self.step_parts)

    def drop_copies(self) -> None:
        """Free the copies of weights; they are made again when they are needed."""
        forget_programs(self.base)
        for part in self.step_parts:
            part.drop_copies()

    def __enter__(self) -> "Instrumentation":
        with self._lock:
            if self._inside == 0:
                self.look_again()
                self._install()
            self._inside += 1
        return self

    def __exit__(self, *exception) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._undo_down_to(0)

    def _install(self) -> None:
        """Make all changes that are not in force yet; none of them if one fails."""
        before = len(self._undo)
        try:
            for change in self._needed_changes():
                key = change.name, id(change.thing)
                if key not in self._undo:
                    self._undo[key] = change_once(change.name, change.thing, change.make)
        except BaseException:
            self._undo_down_to(before)
            raise

    def _undo_down_to(self, number: int) -> None:
        while len(self._undo) > number:
            self._undo.popitem()[1]()

    def _needed_changes(self) -> Iterator[Change]:
        base, inventory = self.base, self._inventory
        yield from stop_training(base)
        executors = list(inventory.executors())
        for linear in StepLinear.all_of(base):  # before the changes of executors, which may wrap them
            yield Change("linear", linear.module, linear.install)
        for norm in StepNorm.all_of(base):
            yield Change("norm", norm.module, norm.install)
        for executor in executors:
            yield from executor.changes()
        yield watch_head(inventory.head)


# =====================================================================================================================
# decoding/base_arguments.py
#
# Which arguments the forward of a base takes, and how the base counts positions that it is not given.
# =====================================================================================================================


def accepted_arguments(base: PreTrainedModel) -> frozenset[str]:
    """Names of the arguments that the forward of a base takes; it may pass `position_ids` on without naming them."""
    named, passes_on = _signature(type(base).forward)
    if not passes_on or "position_ids" in named:
        return named
    return _with_positions(named, type(base.get_decoder()).forward)


@functools.lru_cache
def _signature(forward: Callable) -> tuple[frozenset[str], bool]:
    """Names of the arguments of a forward, and whether it takes others too."""
    parameters = inspect.signature(forward).parameters
    return frozenset(parameters), any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


@functools.lru_cache
def _with_positions(named: frozenset[str], of_decoder: Callable) -> frozenset[str]:
    return named | ({"position_ids"} & _signature(of_decoder)[0])


def counts_cached_tokens(base: PreTrainedModel) -> bool:
    """Whether a base that gets no positions adds the length of its cache to them; some hybrid families do not."""
    return _reads_length(type(base.get_decoder()).forward) or _reads_length(type(base).forward)


@functools.lru_cache
def _reads_length(forward: Callable) -> bool:
    return "get_seq_length" in inspect.unwrap(forward).__code__.co_names


def first_position(base: PreTrainedModel) -> int:
    """Position of the first token of a text, where a base counts positions by itself."""
    counting = (m for m in base.modules() if hasattr(m, "create_position_ids_from_input_ids"))
    found = next((module.padding_idx + 1 for module in counting if isinstance(module.padding_idx, int)), None)
    if found is not None:
        return found
    if type(base).prepare_inputs_for_generation is GenerationMixin.prepare_inputs_for_generation:
        return 0
    token = torch.zeros(1, 1, dtype=torch.long, device=base.device)
    given = {"attention_mask": torch.ones_like(token), "position_ids": token, "past_key_values": None}
    prepared = base.prepare_inputs_for_generation(token, **given, use_cache=True, is_first_iteration=True)
    positions = prepared.get("position_ids")
    return 0 if positions is None else int(positions.flatten()[0])


# =====================================================================================================================
# controllers/checks.py
#
# Checks of the controller and the processors of a call.
# =====================================================================================================================


def check_controller(controller: Any, processors: Any) -> None:
    """Raise a ValueError unless they are what their options take."""
    if isinstance(controller, type):
        raise ValueError(f"`controller` must be an object, got a class: pass `{controller.__name__}()`.")
    if controller is not None and not isinstance(controller, Controller):
        raise ValueError(
            f"`controller` must be a Controller, got {_name(controller)}: pass an object such as `FixedController()`, "
            "or one of a subclass of `Controller`."
        )
    if processors is None:
        return
    if not isinstance(processors, Iterable) or isinstance(processors, str):
        raise ValueError(f"`action_processors` must be a list, got {_name(processors)}: put it into one.")
    for processor in processors:
        if isinstance(processor, type) or not callable(processor):
            raise ValueError(
                f"`action_processors` must hold objects to call, such as `AxisBiasProcessor(token_keep=1)`, "
                f"got {_name(processor)}."
            )


def _name(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return repr(value) if isinstance(value, str) else type(value).__name__


# =====================================================================================================================
# controllers/dense.py
#
# The controller of steps that are all dense: it has nothing to choose.
# =====================================================================================================================


class DenseController(Controller):
    """Always prefers the dense action."""

    needs_budget = False
    rows_are_independent = True

    def __call__(self, observation: Observation) -> torch.Tensor:
        space = observation.action_space
        scores = torch.zeros(len(space), device=observation.controllable.device)
        scores[space.dense_id] = 1
        return scores.expand(observation.rows, -1)


# =====================================================================================================================
# controllers/action_processor.py
#
# What all processors of action scores have in common, and how actions are ruled out.
#
# Each is called as `processor(action_ids, scores, observation)`: the actions of the running episode
# `(rows, steps)`, the scores `(rows, n_actions)` and the [`Observation`]. transformers' own warpers, which take the
# first two arguments only, work unchanged.
# =====================================================================================================================


class ActionProcessor(LogitsProcessor):
    """Base class of processors that need the observation."""

    def __call__(self, action_ids: torch.Tensor, scores: torch.Tensor, observation: Observation) -> torch.Tensor:
        """Edited scores, of shape `(rows, n_actions)`."""
        raise NotImplementedError


def restrict(scores: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Rule out all actions that are not `allowed` `(rows, n_actions)`."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32 and not scores.requires_grad:
        return torch.from_numpy(_restricted(scores.numpy(), allowed.numpy()))
    restricted = scores.masked_fill(~allowed, float("-inf"))
    stranded = restricted.amax(dim=-1, keepdim=True) == float("-inf")
    return torch.where(stranded, torch.zeros_like(scores).masked_fill(~allowed, float("-inf")), restricted)


def _restricted(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The same by numpy, which takes less time for so few numbers."""
    nothing = np.float32(-np.inf)
    restricted = np.where(allowed, scores, nothing)
    stranded = restricted.max(axis=-1, keepdims=True) == nothing
    return np.where(stranded, np.where(allowed, np.float32(0), nothing), restricted) if stranded.any() else restricted


def hold_axes(scores: torch.Tensor, held: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Rule out all actions that lower an axis of a row where `held` `(rows, axes)` is true."""
    ratios = space.ratios_on(scores.device)
    return restrict(scores, ((ratios == ratios.amax(dim=0)) | ~held[:, None]).all(dim=-1))


class ActionProcessorList(LogitsProcessorList):
    """Applies processors in order, as `LogitsProcessorList` does, and looks at the signature of a class only once."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Edited scores, of shape `(rows, n_actions)`."""
        for processor in self:
            knows = tuple(kwargs) == ("observation",) and _takes_observation(type(processor).__call__)
            apply = processor if knows else LogitsProcessorList([processor])
            scores = apply(input_ids, scores, **kwargs)
        return scores


@functools.cache
def _takes_observation(call: Callable) -> bool:
    """Whether a processor's `__call__` takes the observation, and nothing else beside ids and scores."""
    return tuple(inspect.signature(call).parameters)[3:] == ("observation",)


# =====================================================================================================================
# controllers/hard_budget.py
#
# The processors that keep a budget, over every episode or over the whole generation.
# =====================================================================================================================


def within(bounds: Sequence[torch.Tensor], space: ActionSpace) -> torch.Tensor:
    """The actions whose level of every axis lies within bounds."""
    least, most = bounds
    if most.device.type == "cpu":
        return torch.from_numpy(_within(least.numpy(), most.numpy(), space))
    return _within_on_device(least, most, space)


def _within_on_device(least: torch.Tensor, most: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    ratios = space.ratios_on(most.device)
    allowed = (ratios <= most[..., None, :] + TOLERANCE) & (ratios >= least[..., None, :] - TOLERANCE)
    return allowed.all(dim=-1)


def _within(least: np.ndarray, most: np.ndarray, space: ActionSpace) -> np.ndarray:
    """The same by numpy, level by level: the actions are all combinations of levels."""
    least, most = least - np.float32(TOLERANCE), most + np.float32(TOLERANCE)
    allowed = np.ones((*most.shape[:-1], 1), dtype=bool)
    for axis, levels in enumerate(space.level_ratios):
        fits = (levels <= most[..., axis, None]) & (levels >= least[..., axis, None])
        allowed = (allowed[..., :, None] & fits[..., None, :]).reshape(*most.shape[:-1], -1)
    return allowed


class HardBudgetProcessor(ActionProcessor):
    """Rules out every action after which the budget of the episode could not be kept."""

    def __call__(self, action_ids: torch.Tensor, scores: torch.Tensor, observation: Observation) -> torch.Tensor:
        return restrict(scores, within(self.bounds(observation), observation.action_space))

    def bounds(self, observation: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest and the largest level that every axis may take, in ratio units, `(rows, axes)` each."""
        targets = self.targets(observation)
        ratios = observation.action_space.ratios_on(targets.device)
        cheapest, largest = ratios.amin(0), ratios.amax(0)
        held = targets >= largest - TOLERANCE
        held = held if observation.held is None else held | observation.held
        most = torch.where(held, largest, torch.maximum(self.most(observation), cheapest))
        return torch.where(held, largest, cheapest), most

    def targets(self, observation: Observation) -> torch.Tensor:
        """The budget that is kept, in ratio units, `(rows, axes)`."""
        return observation.require_targets()

    def most(self, observation: Observation) -> torch.Tensor:
        """The largest level that the budget allows, in ratio units, `(rows, axes)`; it may be below the smallest."""
        targets, ledger = self.targets(observation), observation.ledger
        ratios = observation.action_space.ratios_on(targets.device)
        cheapest, largest = ratios.amin(0), ratios.amax(0)
        spent, done = ledger.episode_sums, ledger.budgeted_counts()
        left = observation.remaining[:, None]
        goal = torch.minimum(targets, largest)
        running = goal * done + largest - spent
        final = goal * (done + left) - spent - (left - 1) * cheapest
        return torch.minimum(running, final)


class GenerationBudgetProcessor(HardBudgetProcessor):
    """Rules out every action that the [`Bank`] of the call cannot pay for."""

    def __init__(self, exact: bool = False):
        self.exact = exact

    def targets(self, observation: Observation) -> torch.Tensor:
        return self._bank(observation).targets

    def most(self, observation: Observation) -> torch.Tensor:
        bank = self._bank(observation)
        if not self.exact:
            return bank.most()
        if observation.remaining_in_call is None:
            raise ValueError("How many steps the call has is unknown, which `exact` needs: pass `max_new_tokens`.")
        return torch.minimum(bank.most(), bank.most_to_end(observation.remaining_in_call))

    def _bank(self, observation: Observation) -> Bank:
        if observation.ledger.bank is None:
            observation.require_targets()
            raise ValueError(
                "A budget over a generation needs a bank, which `generate` and `score` open: in a loop of your own, "
                "set `ledger.bank = Bank.opened(targets, action_space)` before the first step."
            )
        return observation.ledger.bank


# =====================================================================================================================
# controllers/processors.py
#
# Processors edit action scores before an action is chosen, in the manner of transformers' logits processors.
#
# What they have in common is in [`action_processor`], those that keep a budget are in [`hard_budget`].
# =====================================================================================================================


__all__ = [
    "TOLERANCE",
    "ActionProcessor",
    "ActionProcessorList",
    "AxisBiasProcessor",
    "DenseRowsProcessor",
    "GenerationBudgetProcessor",
    "HardBudgetProcessor",
    "PinnedAxesProcessor",
    "budget_processors",
    "hold_axes",
    "limits_of",
    "restrict",
]


class PinnedAxesProcessor(ActionProcessor):
    """Holds axes at their largest level: those that the budget leaves dense."""

    def __init__(self, pinned: tuple[bool, ...] | torch.Tensor):
        self.pinned = pinned
        self._known: tuple[ActionSpace, torch.Tensor] | None = None
        """The action space of the last step, and its actions that are allowed."""

    def __call__(self, action_ids: torch.Tensor, scores: torch.Tensor, observation: Observation) -> torch.Tensor:
        if isinstance(self.pinned, torch.Tensor):
            return hold_axes(scores, self.pinned.to(scores.device), observation.action_space)
        if not any(self.pinned):
            return scores
        space = observation.action_space
        if self._known is None or self._known[0] is not space or self._known[1].device != scores.device:
            ratios = space.ratios_on(scores.device)
            columns = (ratios == ratios.amax(dim=0)).unbind(dim=-1)
            held = [column for column, pinned in zip(columns, self.pinned, strict=True) if pinned]
            self._known = space, torch.stack(held).all(dim=0)
        return restrict(scores, self._known[1].expand_as(scores))


class DenseRowsProcessor(ActionProcessor):
    """Holds rows whose target is the largest level of every axis at the dense action, as if they ran alone."""

    def __call__(self, action_ids: torch.Tensor, scores: torch.Tensor, observation: Observation) -> torch.Tensor:
        ratios = observation.action_space.ratios_on(scores.device)
        largest = ratios.amax(0)
        is_dense_row = (observation.require_targets() >= largest - TOLERANCE).all(dim=-1)
        is_dense_action = (ratios == largest).all(dim=-1)
        return restrict(scores, is_dense_action | ~is_dense_row[:, None])


def budget_processors(
    pinned: tuple[bool, ...] | torch.Tensor, hard: bool, horizon: str = HORIZONS[0], exact: bool = False
) -> list[ActionProcessor]:
    """The processors that keep a budget, for `generate`, `score`, rollouts and evaluations alike."""
    is_any = bool(pinned.any()) if isinstance(pinned, torch.Tensor) else any(pinned)
    processors: list[ActionProcessor] = [PinnedAxesProcessor(pinned)] if is_any else []
    if hard:
        processors.append(HardBudgetProcessor() if horizon == "episode" else GenerationBudgetProcessor(exact))
    return processors


def limits_of(processors: Sequence[object]) -> Limits | None:
    """What processors do, for compiled code; `None` if they do more than it knows."""
    known: dict[type, Any] = {}
    for processor in processors:
        known[HardBudgetProcessor if type(processor) is GenerationBudgetProcessor else type(processor)] = processor
    kinds = {PinnedAxesProcessor, DenseRowsProcessor, HardBudgetProcessor}
    if len(known) < len(processors) or not known.keys() <= kinds:
        return None
    pinned, hard = known.get(PinnedAxesProcessor), known.get(HardBudgetProcessor)
    horizon, exact = None, False
    if isinstance(hard, GenerationBudgetProcessor):
        horizon, exact = HORIZONS[0], hard.exact
    elif hard is not None:
        horizon = HORIZONS[1]
    return Limits(None if pinned is None else pinned.pinned, horizon, exact, DenseRowsProcessor in known)


class AxisBiasProcessor(ActionProcessor):
    """Subtracts `bias * (axis value scaled to 0..1 over the action space)` per axis: positive favours cheaper actions."""

    def __init__(self, token_keep: float = 0.0, mlp_keep: float = 0.0, bits: float = 0.0, **further: float):
        axes_named(further)
        self.biases = {"token_keep": token_keep, "mlp_keep": mlp_keep, "bits": bits, **further}

    def penalties(self, space: ActionSpace, device: torch.device | str = "cpu") -> torch.Tensor:
        """The penalty to subtract from the score of every action, of shape `(n_actions,)`."""
        lacking = self.biases.keys() - set(space.axis_names)
        if lacking:
            raise ValueError(
                f"There is a bias for {', '.join(sorted(lacking))}, but the axes of the action space are "
                f"{', '.join(space.axis_names)}."
            )
        biases = (self.biases.get(name, 0.0) for name in space.axis_names)
        ratios = space.ratios_on(torch.device(device))
        spread = (ratios.amax(0) - ratios.amin(0)).clamp(min=1e-12)
        scaled = ((ratios - ratios.amin(0)) / spread).unbind(dim=-1)
        return sum((bias * column for bias, column in zip(biases, scaled, strict=True)), torch.zeros_like(scaled[0]))

    def __call__(self, action_ids: torch.Tensor, scores: torch.Tensor, observation: Observation) -> torch.Tensor:
        return scores - self.penalties(observation.action_space, scores.device)

    def __repr__(self) -> str:
        return "AxisBiasProcessor({})".format(", ".join(f"{axis}={bias}" for axis, bias in self.biases.items()))


# =====================================================================================================================
# execution/spending.py
#
# What the levels of an axis spend, where that depends on how the axis is carried out.
# =====================================================================================================================


@lru_cache(maxsize=16)
def space_under(bits_backend: str, space: ActionSpace) -> ActionSpace:
    """An action space with what its actions spend under a `bits_backend`."""
    if bits_backend != "nested" or BITS.name not in space.levels:
        return space
    return space.spending(BITS.name, lambda level: width_read(level) or BITS.dense)


# =====================================================================================================================
# decoding/controls.py
#
# The settings of the decode steps of a call.
# =====================================================================================================================


LIMITS = (PinnedAxesProcessor, DenseRowsProcessor, HardBudgetProcessor, GenerationBudgetProcessor)
"""Processors that hold a call to its budget."""
OWN_CONTROLLERS = f"{Controller.__module__.rpartition('.')[0]}."
"""Module names of controllers and processors that do not edit what they are given begin with this."""


@dataclass(frozen=True)
class DecodeControls:
    """Controller, budget and options of decode steps; one object per `generate` or `score` call."""

    controller: Controller
    budget: Budget | None
    processors: LogitsProcessorList
    rule: SelectionRule
    episode_length: int
    kv_refresh: bool | str = True
    do_sample: bool = False
    temperature: float = 1.0
    backend: str = "auto"
    bits_backend: str = "fake"
    cuda_graphs: bool | int = False
    kv_dtype: str | None = None
    asks_kv_dtype: bool = False
    dense_axes: frozenset[str] = frozenset()
    action_space: ActionSpace | None = None
    origin: str = ""

    @cached_property
    def edits(self) -> LogitsProcessorList:
        """The processors that come before the limits."""
        return ActionProcessorList(x for x in self.processors if type(x) not in LIMITS)

    @cached_property
    def limits(self) -> LogitsProcessorList:
        """The processors that hold the call to its budget. They come last, and see the state itself."""
        return ActionProcessorList(x for x in self.processors if type(x) in LIMITS)

    @cached_property
    def simple_limits(self) -> Limits | None:
        """The limits in numbers, where an action is the best one within them; `None` where more is done to scores."""
        return None if self.do_sample or self.edits or self.needs_copies else limits_of(self.limits)

    @cached_property
    def keeps_bank(self) -> bool:
        """Whether the budget is kept over the whole call."""
        return any(isinstance(x, GenerationBudgetProcessor) for x in self.limits)

    @cached_property
    def is_exact(self) -> bool:
        """Whether the call has to know the number of its steps."""
        return any(isinstance(x, GenerationBudgetProcessor) and x.exact for x in self.limits)

    @cached_property
    def needs_copies(self) -> bool:
        """Whether the controller or a processor is foreign code, which gets a copy of the state before a step."""
        code = (self.controller, *self.processors)
        return not all(type(x).__module__.startswith(OWN_CONTROLLERS) for x in code)


# =====================================================================================================================
# execution/base_device.py
#
# The device on which a base computes, also if its weights are elsewhere between two forwards.
# =====================================================================================================================


def compute_device(base: PreTrainedModel) -> torch.device:
    """The device of a base. Of a base that accelerate offloads, it is the one that the weights are moved to."""
    device = device_of(base)
    if device.type == "meta":
        raise ValueError(f"{type(base).__name__} is on the meta device, without weights: load it first.")
    return device


def device_of(base: PreTrainedModel) -> torch.device:
    """The device of a base, as of [`compute_device`]; the meta device if its weights were never loaded."""
    if base.device.type == "meta":
        for module in base.modules():
            hook = getattr(module, "_hf_hook", None)
            for part in getattr(hook, "hooks", [hook]):
                device = getattr(part, "execution_device", None)
                if device is not None:
                    return torch.device(device)
    return base.device


# =====================================================================================================================
# execution/machine.py
#
# What a measured time is true of: the kind of machine.
# =====================================================================================================================


CPU_INFO = Path("/proc/cpuinfo")
LONGEST_in_machine = 100


def describe_machine(device: torch.device) -> dict[str, str | int]:
    """The kind of processor of a device as `machine`, and on a CPU the number of `threads`."""
    if device.type == "cuda":
        return {"machine": torch.cuda.get_device_name(device)[:LONGEST_in_machine]}
    if device.type != "cpu":
        return {"machine": device.type}
    return {"machine": _processor()[:LONGEST_in_machine], "threads": torch.get_num_threads()}


@functools.lru_cache(maxsize=1)
def _processor() -> str:
    """The name of the CPU; of the architecture, where the system does not say more."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


# =====================================================================================================================
# decoding/dial.py
#
# `compute=`: a budget from the calibration of a policy, and whether that holds for a call.
# =====================================================================================================================


@dataclass(frozen=True)
class Dial:
    """Where the budget of a call is from."""

    unit: str
    conditions: Mapping[str, Any]

    @classmethod
    def turn(cls, compute: AxisTarget, unit: str | None, config: SOLConfig | None) -> "tuple[Dial, Budget]":
        """The dial of a call, and the budget that it sets."""
        unit = unit or (None if config is None else config.compute_unit)
        budget = budget_for(compute, None if config is None else config.calibration, unit)
        stored = (None if config is None else config.calibration_conditions) or {}
        return cls(unit or NET_KEEP, stored.get(unit or NET_KEEP, {})), budget

    def check(
        self, base: PreTrainedModel, bits_backend: str, kv_refresh: bool | str, horizon: str | None = None
    ) -> None:
        """Compare the conditions of the table with those of a call; a warning names what differs in degree."""
        measured = self.conditions.get("bits_backend", bits_backend)
        if measured != bits_backend:
            raise ValueError(
                f"The calibration of this policy in `{self.unit}` was measured with `bits_backend='{measured}'`, and "
                f"does not hold with {bits_backend!r}: pass `bits_backend='{measured}'`, or set "
                "`model.generation_config.bits_backend`."
            )
        here: dict[str, Any] = {} if horizon is None else {"budget_horizon": horizon}
        if self.unit != NET_KEEP:
            here |= {"dtype": str(base.dtype).removeprefix("torch."), "kv_refresh": str(kv_refresh)}
        here |= describe_machine(compute_device(base)) if self.unit == "time" else {}
        other = [f"{name} {value}, here {here[name]}" for name, value in self._differing(here).items()]
        if other:
            logger.warning_once(
                f"The calibration of this policy in `{self.unit}` was measured otherwise ({'; '.join(other)}): the "
                "share of a dense step that `compute` asks for is true of that. Make one for this with `sol-hf "
                f"pareto POLICY --data FILE --out DIR --save --unit {self.unit}`."
            )

    def _differing(self, here: Mapping[str, Any]) -> dict[str, Any]:
        return {name: x for name, x in self.conditions.items() if name in here and x != here[name]}


# =====================================================================================================================
# decoding/option_names.py
#
# The names of the budget options of `generate` and `score`. Imports nothing large, so that a help can list them.
# =====================================================================================================================


STORED_DEFAULTS: dict[str, Any] = {
    "compute_unit": None,
    "budget_mode": "hard",
    "budget_horizon": "generation",
    "exact": False,
    "kv_refresh": True,
    "action_temperature": 1.0,
    "do_sample_actions": False,
    "backend": "auto",
    "bits_backend": "fake",
    "max_plane_bytes": None,
    "kv_dtype": None,
}
"""Options other than the budget that a generation config may hold, and their defaults."""
UNSTORED = ("budget", "controller", "action_processors", "cuda_graphs", "lossless", "measure_agreement")
"""Options that can only be passed to a call."""


def stored_names() -> tuple[str, ...]:
    """Names of the options that a generation config may hold: `compute`, all registered axes, [`STORED_DEFAULTS`]."""
    return ("compute", *AXES_in_axes, *STORED_DEFAULTS)


def option_names() -> tuple[str, ...]:
    """Names of all budget options of `generate` and `score`."""
    return (*stored_names(), *UNSTORED)


# =====================================================================================================================
# decoding/options.py
#
# The budget options of `generate` and `score`: defaults, stored values, checks.
# =====================================================================================================================


EXACT_UNDER = ("hard", "generation")
"""The mode and the horizon that `exact` belongs to."""
KV_REFRESH = (True, False, "auto")
MOST_DRAFTED = 64
"""Tokens of a draft at most."""


@dataclass(frozen=True)
class DecodeOptions:
    """Resolved options of one call; the arguments of [`SOLForCausalLM.generate`]."""

    budget: Budget | None
    compute_unit: str | None
    budget_mode: str
    budget_horizon: str
    exact: bool
    controller: Controller | None
    action_processors: Sequence | None
    kv_refresh: bool | str
    action_temperature: float
    do_sample_actions: bool
    backend: str
    bits_backend: str
    max_plane_bytes: int | None
    kv_dtype: str | None
    cuda_graphs: bool | int
    lossless: bool | int = False
    measure_agreement: bool = False
    asks_fast: bool = False
    """Whether the call itself, not a stored config, asks for fast code: by `backend="fast"` or `cuda_graphs`."""
    asks_kv_dtype: bool = False
    """Whether the call itself says in which dtype keys and values are kept, which needs a cache of ours."""
    has_stored_budget: bool = False
    """Whether the budget comes from a generation config, not from the arguments of the call."""
    dial: Dial | None = None
    """Where the budget is from, if it comes from `compute`."""
    has_dense: bool = True
    """Whether the action space has a dense action. Without one, dense targets are run at the largest levels."""

    def __post_init__(self):
        choices: dict[str, tuple] = {"budget_mode": BUDGET_MODES, "backend": BACKENDS, "bits_backend": BITS_BACKENDS}
        choices |= {"kv_refresh": KV_REFRESH, "budget_horizon": HORIZONS, "exact": (True, False)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(map(str, allowed))}, got {getattr(self, name)!r}."
                )
        if self.exact and self.budget is not None and (self.budget_mode, self.budget_horizon) != EXACT_UNDER:
            raise ValueError(
                f"`exact` ends a hard budget over a generation at its target, but the call has "
                f"`budget_mode={self.budget_mode!r}` and `budget_horizon={self.budget_horizon!r}`: leave out `exact`, "
                "or pass `budget_mode='hard'` and `budget_horizon='generation'`."
            )
        if not (math.isfinite(self.action_temperature) and self.action_temperature > 0):
            raise ValueError(f"`action_temperature` must be positive, got {self.action_temperature}.")
        if not isinstance(self.cuda_graphs, int) or self.cuda_graphs < 0:
            raise ValueError(f"`cuda_graphs` must be True, False or a number of tokens, got {self.cuda_graphs!r}.")
        if self.cuda_graphs and self.backend == "reference":
            raise ValueError("`cuda_graphs` runs the fast paths: leave out `backend='reference'`.")
        most = self.max_plane_bytes
        if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
            raise ValueError(f"`max_plane_bytes` must be a number of bytes, or None for no limit, got {most!r}.")
        check_kv_dtype(self.kv_dtype)
        if isinstance(self.lossless, bool) or not isinstance(self.lossless, int):
            if self.lossless not in (True, False):
                raise ValueError(f"`lossless` must be True, False, or the tokens of a draft, got {self.lossless!r}.")
        elif not 0 < self.lossless <= MOST_DRAFTED:
            raise ValueError(f"A draft has 1 to {MOST_DRAFTED} tokens, got `lossless={self.lossless}`.")
        if self.lossless and self.measure_agreement:
            raise ValueError(
                "With `lossless` all tokens are the dense ones, and `agreement` is that of the drafts: leave out "
                "`measure_agreement`."
            )
        if self.lossless and self.exact:
            raise ValueError("Nobody knows how many steps the drafts of `lossless` will have: leave out `exact`.")
        check_controller(self.controller, self.action_processors)
        if self.action_processors and self.is_empty:
            raise ValueError("`action_processors` have nothing to act on: pass a budget or a controller as well.")

    @property
    def is_empty(self) -> bool:
        """Whether neither a budget nor a controller was given."""
        return self.budget is None and self.controller is None

    @property
    def is_dense(self) -> bool:
        """Whether all steps would be dense."""
        if self.budget is None:
            return self.controller is None
        return self.has_dense and self.budget.is_dense and (self.controller is None or self.budget_mode == "hard")

    @property
    def runs_dense(self) -> bool:
        """Whether `score` runs the base over whole texts: all steps would be dense, over keys in the base's dtype."""
        return self.is_dense and not self.asks_kv_dtype

    @property
    def runs_base(self) -> bool:
        """Whether `generate` leaves the call to the base itself, bit for bit."""
        return self.runs_dense and not self.asks_fast and not self.lossless

    @property
    def is_bare(self) -> bool:
        """Whether the call asks for nothing that transformers' own generation would not do."""
        return self.is_empty and self.runs_base

    @property
    def origin(self) -> str:
        """For a message of what the steps of a call exclude: why it has them, if no argument is a budget."""
        if self.lossless:
            return " `lossless` drafts under a budget: leave it out, too."
        if self.has_stored_budget:
            return " The budget is stored in the generation config: `compute=1.0` runs a call without it."
        if not self.is_dense:
            return ""
        asks = {"kv_dtype": self.asks_kv_dtype, "cuda_graphs": bool(self.cuda_graphs)}
        asks["backend='fast'"] = self.asks_fast and self.backend == "fast"
        names = " and ".join(f"`{name}`" for name, is_asked in asks.items() if is_asked)
        return f" This call is dense, but {names} runs it by the same steps as a budget: leave that out instead."

    def check_for_score(self) -> None:
        """Raise a ValueError for options that only `generate` has."""
        for name in ("lossless", "measure_agreement"):
            if getattr(self, name):
                raise ValueError(f"`score` computes given text, so there is nothing for `{name}`: leave it out.")

    def spending(self, space: ActionSpace) -> ActionSpace:
        """The actions of a space with what they spend in this call."""
        return space_under(self.bits_backend, space)

    def controls_axis(self, axis: str, space: ActionSpace) -> bool:
        """Whether steps may be less than dense on an axis."""
        if self.budget is not None and axis not in self.budget.controlled:
            return False
        return min(space.levels[axis]) < AXES_in_axes[axis].dense

    def controlled_axes(self, space: ActionSpace) -> list[str]:
        """The axes on which steps may be less than dense."""
        return [axis for axis in space.axis_names if self.controls_axis(axis, space)]

    def dense_axes(self, space: ActionSpace) -> frozenset[str]:
        """The axes on which every step is dense for any scores of the controller."""
        levels = zip(space.axes, space.largest, strict=True)
        dense = {axis.name for axis, level in levels if level == axis.dense}
        held = {axis.name for axis in space.axes if space.levels[axis.name] == (axis.dense,)}
        if self.budget is not None and self.budget_mode == "hard":
            held |= {axis for axis in space.axis_names if self.budget.leaves_dense(axis)}
        elif self.budget is not None:
            held |= set(space.axis_names) - self.budget.controlled
        return frozenset(dense & held)

    def dense_controls(self, config: SOLConfig) -> DecodeControls:
        """The settings of decode steps that are all dense, by the fast paths."""
        return DecodeControls(
            controller=DenseController(),
            budget=None,
            processors=ActionProcessorList(),
            rule=config.selection_rule,
            episode_length=config.episode_length,
            kv_refresh=True,
            backend=self.backend if self.asks_kv_dtype and not self.asks_fast else "fast",
            cuda_graphs=self.cuda_graphs,
            kv_dtype=self.kv_dtype,
            asks_kv_dtype=self.asks_kv_dtype,
            dense_axes=frozenset(config.action_space.axis_names),
            action_space=config.action_space,
            origin=self.origin,
        )

    def controls(self, controller: Controller, config: SOLConfig) -> DecodeControls:
        """The settings of the decode steps."""
        processors, space = ActionProcessorList(self.action_processors or []), config.action_space
        if self.budget is not None:
            pinned = tuple(axis not in self.budget.controlled for axis in space.axis_names)
            hard = self.budget_mode == "hard"
            processors.extend(budget_processors(pinned, hard, self.budget_horizon, self.exact))
            if self.budget_mode == "soft" and self.controller is None:
                # alone, such a row would run without a controller: see `is_dense`
                processors.append(DenseRowsProcessor())
        return DecodeControls(
            controller=controller,
            budget=self.budget,
            processors=processors,
            rule=config.selection_rule,
            episode_length=config.episode_length,
            kv_refresh=self.kv_refresh,
            do_sample=self.do_sample_actions,
            temperature=self.action_temperature,
            backend="fast" if self.cuda_graphs else self.backend,
            bits_backend=self.bits_backend,
            cuda_graphs=self.cuda_graphs,
            kv_dtype=self.kv_dtype,
            asks_kv_dtype=self.asks_kv_dtype,
            dense_axes=self.dense_axes(space),
            action_space=self.spending(space),
            origin=self.origin,
        )


def pop_options(arguments: Mapping[str, Any], further: dict[str, Any]) -> dict[str, Any]:
    """The budget options among the arguments of a call."""
    added = [name for name in option_names() if name not in arguments]
    options = {name: arguments[name] for name in option_names() if name in arguments}
    return options | {name: further.pop(name) for name in added if name in further}


def resolve_options(
    given: Mapping[str, Any],
    generation_config: GenerationConfig | None,
    stored: GenerationConfig,
    config: SOLConfig | None = None,
) -> DecodeOptions:
    """Combine the options of a call with those of generation configs; the first that sets an option has precedence."""
    unknown = sorted(set(given) - set(option_names()))
    if unknown:
        raise ValueError(f"Unknown options: {unknown}." + explain_unknown(given))
    given = {name: value for name, value in given.items() if value is not None}
    configs = [x for x in (generation_config, stored) if x is not None]
    resolved = _first_of(given, configs)
    budget, compute = _resolve_budget(given, [vars(x) for x in configs])
    unit, dial = resolved.pop("compute_unit"), None
    if unit is not None:
        check_unit(unit)
    if compute is not None:
        dial, budget = Dial.turn(compute, unit, config)
    elif given.get("compute_unit") is not None:
        raise ValueError("`compute_unit` says what `compute` counts: pass `compute` as well.")
    if budget is None and given.get("exact"):
        raise ValueError("`exact` ends a budget at its target, and there is none: pass one, or leave out `exact`.")
    targets = ("budget", "compute", *AXES_in_axes)
    return DecodeOptions(
        budget=budget,
        compute_unit=None if dial is None else dial.unit,
        dial=dial,
        controller=given.get("controller"),
        action_processors=given.get("action_processors"),
        cuda_graphs=given.get("cuda_graphs", False),
        lossless=given.get("lossless", False),
        measure_agreement=bool(given.get("measure_agreement", False)),
        has_dense=config is None or config.action_space.has_dense,
        asks_fast=given.get("backend") == "fast" or bool(given.get("cuda_graphs")),
        asks_kv_dtype=given.get("kv_dtype") is not None,
        has_stored_budget=budget is not None and not any(name in given for name in targets),
        **resolved,
    )


def stored_options(stored: GenerationConfig) -> dict[str, Any]:
    """The options other than the budget that hold where a call says nothing, after their checks."""
    options = _first_of({}, [stored])
    DecodeOptions(budget=None, controller=None, action_processors=None, cuda_graphs=False, **options)  # checks them
    return options


def _first_of(given: Mapping[str, Any], configs: Sequence[GenerationConfig]) -> dict[str, Any]:
    """The options of `STORED_DEFAULTS`, of a call and then of configs; the first that sets one has precedence."""
    resolved = {}
    for name, default in STORED_DEFAULTS.items():
        sources = [given.get(name), *(getattr(x, name, None) for x in configs)]
        resolved[name] = next((value for value in sources if value is not None), default)
    return resolved


def _resolve_budget(
    given: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]
) -> tuple[Budget | None, AxisTarget]:
    """The budget of a call and its `compute`, of which at most one is given; if it has none, those stored."""
    budget, compute = given.get("budget"), given.get("compute")
    if budget is not None and any(axis in given for axis in AXES_in_axes):
        *most, last = (f"`{axis}`" for axis in AXES_in_axes)
        raise ValueError(f"Pass either `budget` or {', '.join(most)} and {last}, not both.")
    if budget is not None and not isinstance(budget, Budget):
        raise ValueError(f"`budget` must be a Budget, got {type(budget).__name__}.")
    targets = {axis: given.get(axis) for axis in AXES_in_axes}
    explicit = budget is not None or any(value is not None for value in targets.values())
    if compute is not None and explicit:
        names = ", ".join(f"`{name}`" for name in ("budget", *AXES_in_axes))
        raise ValueError(f"Pass either `compute` or a budget ({names}), not both.")
    for config in () if explicit or compute is not None else configs:
        found = {axis: config.get(axis) for axis in AXES_in_axes if config.get(axis) is not None}
        if config.get("compute") is not None:
            if found:
                raise ValueError(f"A generation config sets both `compute` and {', '.join(found)}: remove one.")
            compute = None if any(value is not None for value in targets.values()) else config["compute"]
            break
        targets = {axis: found.get(axis) if value is None else value for axis, value in targets.items()}
    if compute is None and budget is None and any(value is not None for value in targets.values()):
        budget = Budget(**targets)
    return budget, compute


def explain_unknown(names: Mapping[str, Any]) -> str:
    """Near matches of misspelt option names, as the end of an error message."""
    known, hints = option_names(), []
    for name in names:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        if near and name not in known:
            hints.append(f"`{name}`: did you mean `{near[0]}`?")
    return " " + " ".join(hints) if hints else ""


# =====================================================================================================================
# decoding/agreement_meter.py
#
# `measure_agreement=True`: how often a text under a budget had the most likely token of the dense model.
#
# The most likely token of every step is noted. After the text one dense forward over all of it gives those of the base,
# after the same tokens. Neither processors nor sampling enter.
# =====================================================================================================================


TEXT = ("inputs", "input_ids", "attention_mask")
"""Tensors of a call of which the text consists. With others, such as images, a forward over the tokens is another."""


class AgreementMeter:
    """The most likely tokens of the steps of a call."""

    def __init__(self, attention_mask: torch.Tensor | None = None):
        self._mask = attention_mask
        self._best: list[torch.Tensor] = []

    @classmethod
    def of_call(
        cls,
        options: DecodeOptions,
        prompt: torch.Tensor | None,
        arguments: Mapping[str, Any],
        configs: tuple[GenerationConfig | None, GenerationConfig],
    ) -> "AgreementMeter":
        """The meter of a call."""
        if options.is_dense:
            raise ValueError("All steps of this call are dense, so they agree: leave out `measure_agreement`.")
        if prompt is None or prompt.is_floating_point():
            raise ValueError("`measure_agreement` processes the whole text again: pass the prompt as `input_ids`.")
        further = [name for name, value in arguments.items() if isinstance(value, torch.Tensor) and name not in TEXT]
        if further:
            raise ValueError(
                f"`measure_agreement` processes the text again from its tokens alone, without `{further[0]}`: leave "
                "one of them out."
            )
        name = "return_dict_in_generate"
        values = [arguments.get(name), *(getattr(config, name, None) for config in configs if config is not None)]
        if not next((value for value in values if value is not None), False):
            raise ValueError(f"`measure_agreement` is reported in the output: pass `{name}=True`.")
        beams = [arguments.get("num_beams"), *(config.num_beams for config in configs if config is not None)]
        if (next((value for value in beams if value is not None), 1) or 1) > 1:
            raise ValueError("`measure_agreement` cannot be used with beams: leave it out.")
        mask = arguments.get("attention_mask")
        if mask is not None and mask.shape != prompt.shape:
            raise ValueError(
                "`measure_agreement` processes the whole text again: pass all of it, not new tokens only."
            )
        return cls(mask)

    def note(self, logits: torch.Tensor) -> None:
        """Note the most likely token of every row, by logits `(rows, vocab_size)` of a new token."""
        self._best.append(logits.argmax(dim=-1))

    @torch.no_grad()
    def agreement(self, base: PreTrainedModel, sequences: torch.Tensor, running: torch.Tensor) -> float:
        """The share of the new tokens at which the most likely token is that of a dense forward."""
        rows, steps = running.shape
        arguments: dict[str, Any] = {"input_ids": sequences[:, :-1]}
        if self._mask is not None:
            mask = self._mask.repeat_interleave(rows // len(self._mask), dim=0)
            new = mask.new_ones(rows, sequences.shape[1] - 1 - mask.shape[1])
            arguments["attention_mask"] = torch.cat([mask, new], dim=1)
            if "position_ids" in accepted_arguments(base):
                arguments["position_ids"] = (arguments["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        if "logits_to_keep" in accepted_arguments(base):
            arguments["logits_to_keep"] = steps
        with evaluating(base):
            logits = base(**arguments, use_cache=False, return_dict=True).logits[:, -steps:]
        same = (logits.argmax(dim=-1) == torch.stack(self._best[-steps:], dim=1)) & running
        return float(same.sum() / running.sum())


# =====================================================================================================================
# decoding/cache_use.py
#
# One call at a time uses a cache. Two calls would each append their tokens to the keys of the other.
#
# The second call may come from another thread, or from code that the first one calls, such as a streamer. The function
# of `custom_generate` is the exception: its calls are the decoding of the call that it belongs to.
# =====================================================================================================================


@dataclass(frozen=True)
class CacheUse:
    """A call that uses a cache."""

    thread: int
    lends: bool


_USES: "weakref.WeakKeyDictionary[SOLCache, CacheUse]" = weakref.WeakKeyDictionary()
_LOCK_in_cache_use = threading.Lock()


def refuse_used(cache: SOLCache) -> None:
    """Raise a ValueError if a call uses a cache and does not lend it to those that it makes."""
    use = _USES.get(cache)
    if use is not None and not (use.lends and use.thread == threading.get_ident()):
        raise ValueError(
            "This cache is in use by another call that is still running, in another thread or further up in this one: "
            "wait for that call, or pass a cache of its own, from `model.new_cache()` or `copy.deepcopy`."
        )


@contextmanager
def using(cache: SOLCache, lends: bool = False) -> Iterator[None]:
    """Within the block, other calls cannot use a cache."""
    with _LOCK_in_cache_use:
        refuse_used(cache)
        before, _USES[cache] = _USES.get(cache), CacheUse(threading.get_ident(), lends)
    try:
        yield
    finally:
        with _LOCK_in_cache_use:
            if before is None:
                del _USES[cache]
            else:
                _USES[cache] = before


# =====================================================================================================================
# decoding/forward_inputs.py
#
# The inputs of a forward, and what of them each of its parts gets.
#
# A forward over a [`SOLCache`] is computed in parts: a dense prompt, steps, KV refreshes. There are three kinds of
# further arguments for the base:
#
#     one entry per token     positions, token types          every part gets those of its tokens
#     images and sounds       pixel_values                    only the dense prompt gets them, which has their tokens
#     all others              flags, encoder states           every part gets them
# =====================================================================================================================


PROMPT_ONLY = frozenset(getattr(transformers_loop, "MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL", ()))
"""Arguments that transformers' loop passes with the prompt only; older versions have no such list."""
PROMPT_ONLY_BEGINNINGS = ("pixel_", "image_", "video_", "input_features", "input_values", "feature_")
OUTPUT_FLAGS = ("output_hidden_states", "output_attentions", "output_router_logits")


@dataclass(frozen=True)
class ForwardInputs:
    """The tokens of a forward and the arguments that belong to them."""

    tokens: torch.Tensor
    attention_mask: torch.Tensor | None = None
    along: TokenArguments = field(default_factory=dict)
    with_prompt: dict[str, Any] = field(default_factory=dict)
    further: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, tokens: torch.Tensor, attention_mask: torch.Tensor | None, arguments: Mapping[str, Any]
    ) -> "ForwardInputs":
        """The inputs of a call."""
        along: dict[str, TokenArgument] = {}
        with_prompt, further = {}, {}
        for name, value in arguments.items():
            if name in PROMPT_ONLY or name.startswith(PROMPT_ONLY_BEGINNINGS):
                with_prompt[name] = value
            elif (argument := TokenArgument.find(value, len(tokens), tokens.shape[1])) is not None:
                along[name] = argument
            else:
                further[name] = value
        return cls(tokens, attention_mask, along, with_prompt, further)

    @property
    def length(self) -> int:
        """Number of tokens per row."""
        return self.tokens.shape[1]

    @property
    def asks_for_more(self) -> bool:
        """Whether the base has to compute more than logits from more than tokens and positions."""
        ignored = ("use_cache", "cache_position", "logits_to_keep", "return_dict")
        values = (value for name, value in self.further.items() if name not in ignored)
        positions = self.along.get("position_ids")
        plain = not self.along.keys() - {"position_ids", "cache_position"}
        return not plain or (positions is not None and positions.value.dim() != 2) or any(map(_is_set, values))

    def part(self, begin: int, end: int, is_dense: bool) -> "ForwardInputs":
        """The inputs of the tokens from `begin` to `end`; with images only if the part is the dense prompt."""
        along = {name: argument.cut(begin, end) for name, argument in self.along.items()}
        with_prompt = self.with_prompt if is_dense else {}
        return replace(self, tokens=self.tokens[:, begin:end], along=along, with_prompt=with_prompt)

    def again(self, tokens: torch.Tensor, along: TokenArguments) -> "ForwardInputs":
        """The inputs of earlier tokens that are processed again: no images, and no output but what is needed."""
        further = {name: value for name, value in self.further.items() if name not in OUTPUT_FLAGS}
        return ForwardInputs(tokens, self.attention_mask, along, further=further)

    def can_follow(self, earlier: "ForwardInputs") -> bool:
        """Whether these tokens can be processed together with earlier ones in one forward."""
        same_kind = self.tokens.is_floating_point() == earlier.tokens.is_floating_point()
        return same_kind and not self.with_prompt and can_join([earlier.along, self.along])

    def after(self, *earlier: "ForwardInputs") -> "ForwardInputs":
        """The inputs of earlier tokens and these, see [`ForwardInputs.can_follow`]."""
        parts = (*earlier, self)
        tokens = torch.cat([part.tokens for part in parts], dim=1)
        return replace(self, tokens=tokens, along=join([part.along for part in parts]))

    def embedded(self, base: PreTrainedModel) -> "ForwardInputs":
        """The inputs with embeddings in place of ids."""
        if self.tokens.is_floating_point():
            return self
        return replace(self, tokens=base.get_input_embeddings()(self.tokens))

    def arguments(self) -> dict[str, Any]:
        """All arguments for the base but the mask."""
        named = {name: argument.value for name, argument in self.along.items()}
        tokens = {"inputs_embeds" if self.tokens.is_floating_point() else "input_ids": self.tokens}
        return {**self.further, **self.with_prompt, **named, **tokens}


def join_runs(parts: Sequence[ForwardInputs]) -> list[ForwardInputs]:
    """Join all neighbours that can be processed in one forward."""
    runs: list[list[ForwardInputs]] = []
    for part in parts:
        if runs and part.can_follow(runs[-1][-1]):
            runs[-1].append(part)
        else:
            runs.append([part])
    return [run[-1].after(*run[:-1]) for run in runs]


def _is_set(value: Any) -> bool:
    return value is not None and value is not False


# =====================================================================================================================
# decoding/session.py
#
# The running call: the settings of its steps, and the CUDA graphs that it uses.
#
# The only object that transformers' generation loop passes on to a forward is the cache. The cache holds state that
# outlives the call, and can be copied and pickled. The settings of the call itself are here. The loop's forwards find
# them in a context variable:
#
#     generate  ->  with session.running():  transformers' loop  ->  forward  ->  DecodingSession.of(base, cache)
# =====================================================================================================================


@dataclass
class Graphs:
    """CUDA graphs over one cache."""

    forwards: dict[str, CapturedForward] = field(default_factory=dict)
    room: int = 0


class LooksAhead(Protocol):
    """What processes the forwards of a call instead of one decode step for each token."""

    @property
    def processed(self) -> int:
        """Forwards of the call so far, each of which has given the logits of one new token."""

    def __call__(self, session: "DecodingSession", inputs: ForwardInputs, all_logits: bool) -> CausalLMOutputWithPast:
        """Process the tokens of a forward."""

    def note_text(self, text: torch.Tensor) -> None:
        """Take note of all tokens `(rows, length)` that the loop has, before a forward."""

    def note_settings(self, processors: Iterable[Any], config: GenerationConfig) -> None:
        """Take note of the settings of a loop that begins."""


@dataclass(eq=False)
class DecodingSession:
    """One call of `generate` or `score`, or one rollout."""

    base: PreTrainedModel
    cache: SOLCache
    controls: DecodeControls | None = None
    decode_from: int | None = None
    is_recomputing: bool = False
    """Whether the next forward processes all of its tokens densely: the base computes the whole text again, or its
    prompt is one piece, see `prompt_images.py`."""
    steps: int | torch.Tensor | None = None
    """Decode steps of the call, or of each of its rows `(rows,)`; only of an `exact` one."""
    replaced: dict[str, Any] = field(default_factory=dict)
    mask_was_passed: bool = True
    look_ahead: LooksAhead | None = None
    """Processes the forwards of a call with `lossless`."""
    meter: AgreementMeter | None = None
    """Notes the most likely tokens of a call with `measure_agreement`."""
    _filled: dict[tuple[object, ...], torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    rollback: Rollback | None = field(default=None, init=False)
    """What the cache was before the running forward, if that can be taken back."""

    @classmethod
    def of(cls, base: PreTrainedModel, cache: SOLCache) -> "DecodingSession":
        """The running session of a cache; a dense continuation if there is none."""
        session = _RUNNING_in_session.get()
        return session if session is not None and session.cache is cache else cls(base, cache)

    @classmethod
    def after_prompt(
        cls,
        base: PreTrainedModel,
        cache: Cache | None,
        controls: DecodeControls | None,
        prompt: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        replaced: dict[str, Any],
        steps: int | None = None,
    ) -> "DecodingSession | None":
        """The session of a `generate` call: the prompt's last token is the first decode step."""
        if not isinstance(cache, SOLCache) or prompt is None:
            return None
        length = (prompt if attention_mask is None else attention_mask).shape[1]
        passed = attention_mask is not None
        return cls(base, cache, controls, length - 1, replaced=replaced, mask_was_passed=passed, steps=steps)

    @classmethod
    def current(cls) -> "DecodingSession | None":
        """The session that is running in this thread, if there is one."""
        return _RUNNING_in_session.get()

    @classmethod
    def refuse_forward(cls, base: PreTrainedModel, cache: Cache | None) -> None:
        """Raise a ValueError for a forward within a call under a budget that does not use the cache of the call."""
        session = cls.current()
        if (
            session is not None
            and session.controls is not None
            and session.base is base
            and session.cache is not cache
        ):
            raise ValueError(
                "A forward within a call under a budget must use the `past_key_values` of the call: without them it "
                "would run densely. For a dense forward, call `model.base`."
            )

    @contextmanager
    def running(self, lends: bool = False) -> Iterator["DecodingSession"]:
        """Begin the call. Within the block, forwards of this thread over the cache belong to it."""
        with using(self.cache, lends):
            self.begin()
            token = _RUNNING_in_session.set(self)
            try:
                yield self
            finally:
                _RUNNING_in_session.reset(token)

    @classmethod
    def looking_ahead(cls, cache: Any) -> LooksAhead | None:
        """What processes the forwards over a cache in the running call, if it is one with `lossless`."""
        session = cls.current()
        return None if session is None or session.cache is not cache else session.look_ahead

    @staticmethod
    @contextmanager
    def none_running() -> Iterator[None]:
        """Within the block, forwards of this thread belong to no call."""
        token = _RUNNING_in_session.set(None)
        try:
            yield
        finally:
            _RUNNING_in_session.reset(token)

    def begin(self) -> "DecodingSession":
        """Begin the sums and the trace of the call. Those of a running episode continue."""
        if self.controls is not None and self.controls.action_space is not None:
            self.cache.action_space = self.controls.action_space
        kind = None if self.controls is None else type(self.controls.controller)
        self.cache.start_call("" if kind is None else f"{kind.__module__}.{kind.__qualname__}")
        if self.controls is None or not self.controls.keeps_bank:
            self.cache.ledger.bank = None
        return self

    @contextmanager
    def undone_if_interrupted(self) -> Iterator[None]:
        """A forward that is interrupted by any exception leaves the cache as it was before."""
        with undone_if_interrupted(self.cache) as self.rollback:
            try:
                yield
            finally:
                self.rollback = None

    def require_controls(self) -> DecodeControls:
        """The controls, for decode steps; a dense continuation has neither steps nor controls."""
        assert self.controls is not None, "a dense continuation has no decode steps"
        return self.controls

    @property
    def device(self) -> torch.device:
        """That of the state of every row."""
        return self.cache.ledger.total_counts.device

    def in_all_rows(self, value: float, dtype: torch.dtype) -> torch.Tensor:
        """A number for every row, `(rows,)`; made once a call, so it must not be edited."""
        key = value, dtype, self.cache.rows
        if key not in self._filled:
            self._filled[key] = torch.full((self.cache.rows,), value, dtype=dtype, device=self.device)
        return self._filled[key]

    @property
    def needs_logits(self) -> bool:
        """Whether the controller needs the logits of the token before."""
        return self.controls is not None and self.controls.controller.needs_logits

    @property
    def graphs(self) -> Graphs:
        """The CUDA graphs that were captured over the cache, in this call or an earlier one."""
        return _GRAPHS.setdefault(self.cache, Graphs())

    @cached_property
    def parts(self) -> Parts:
        """The parts of the base that carry out each axis."""
        backend = "fake" if self.controls is None else self.controls.bits_backend
        return Instrumentation.of(self.base).parts(self.cache, backend)

    def set_up_rows(self, rows: int, device: torch.device) -> None:
        """Create the cache's state per row at the first forward, and the targets of this call."""
        self.cache.set_up_rows(rows, device)
        if self.cache.targets is None and self.controls is not None and self.controls.budget is not None:
            self.set_targets(self.controls.budget.targets(rows, device, self.cache.action_space))

    def set_targets(self, targets: torch.Tensor) -> None:
        """Set the targets `(rows, axes)` of this call, in ratio units, and open the bank that it keeps them by."""
        cache = self.cache
        cache.targets = targets
        if self.controls is not None and self.controls.keeps_bank:
            bank, before = Bank.opened(targets, cache.action_space), cache.ledger.bank
            goes_on = cache.episode.length > 0 and (self.decode_from or 0) <= cache.get_seq_length()
            cache.ledger.bank = bank.going_on(before) if goes_on and before is not None else bank


_GRAPHS: "weakref.WeakKeyDictionary[SOLCache, Graphs]" = weakref.WeakKeyDictionary()
"""CUDA graphs by cache, as long as the cache exists: the next turn of a chat uses them again. They are not copied."""
_RUNNING_in_session: ContextVar[DecodingSession | None] = ContextVar("sol_hf_running_session", default=None)


# =====================================================================================================================
# decoding/refresh_rule.py
#
# When the KV refresh runs, for which rows, and in how many bits it reads weights.
#
# All of it follows from what the steps of the running episode spent, which the host knows on a CPU only. What a row gets
# does not depend on other rows.
# =====================================================================================================================


LEAST_GAIN_in_refresh_rule = 0.025
"""Nats per token that a refresh has to gain under `kv_refresh="auto"`: see docs/performance.md."""
ROUNDING_in_refresh_rule = 1e-9


def needs_refresh(session: DecodingSession) -> bool:
    """Whether the running episode has to be refreshed, for some row at least; never one without sparse steps."""
    wanted = True if session.controls is None else session.controls.kv_refresh
    return bool(wanted) and session.cache.episode.polluted and bool(rows_to_refresh(session).any())


def spares_rows(session: DecodingSession) -> bool:
    """Whether a refresh of the running episode leaves some rows as they are."""
    return not bool(rows_to_refresh(session).all())


def rows_to_refresh(session: DecodingSession) -> torch.Tensor:
    """The rows `(rows,)` that a refresh of a sparse episode is for, or a single entry that stands for all."""
    cache, controls = session.cache, session.controls
    if controls is None or cache.ledger.total_counts.device.type != "cpu":
        return torch.ones(1, dtype=torch.bool)
    values, space = _levels_so_far(cache), cache.action_space
    if controls.kv_refresh == "auto":
        return expected_gain(values, space, controls.rule, controls.bits_backend) >= LEAST_GAIN_in_refresh_rule - ROUNDING_in_refresh_rule
    if not weights_read(session):
        return torch.ones(1, dtype=torch.bool)
    restored = [CODE_BITS if axis is BITS else axis.dense for axis in space.axes]
    return (values < torch.tensor(restored)).any(dim=-1).any(dim=-1)


def expected_gain(values: torch.Tensor, space: ActionSpace, rule: SelectionRule, bits_backend: str) -> torch.Tensor:
    """Nats per token that later text is expected to lose less if an episode is refreshed, `(rows,)`."""
    gains = torch.zeros(values.shape[:2], dtype=torch.float64)
    for axis, levels in space.by_axis(values).items():
        gains += EXECUTORS[axis].refresh_gain(rule, bits_backend)(levels)
    return gains.mean(dim=1)


def _levels_so_far(cache: SOLCache) -> torch.Tensor:
    """What the steps of the running episode spent, `(rows, steps, axes)` in axis units, on their device."""
    steps, space = cache.episode.steps, cache.action_space
    ratios = [space.ratios_on(x.action.device)[x.action] if x.spent is None else x.spent for x in steps]
    return torch.stack(ratios, dim=1) * space.scales.to(ratios[0].device)


def weights_read(session: DecodingSession) -> dict[str, torch.Tensor]:
    """In how many bits a refresh of the running episode reads weights, as the levels of a [`RefreshPlan`]."""
    controls, cache = session.require_controls(), session.cache
    if controls.bits_backend != "nested" or "bits" not in cache.action_space.levels or "bits" in controls.dense_axes:
        return {}
    read = cache.action_space.by_axis(_levels_so_far(cache))["bits"]
    in_planes = (read <= CODE_BITS).any(dim=1)
    if read.device.type == "cpu" and not bool(in_planes.any()):
        return {}
    return {"bits": torch.where(in_planes, float(CODE_BITS), AXES_in_axes["bits"].dense)}


# =====================================================================================================================
# execution/mlp/copying_part.py
#
# Base class of the parts of an MLP that run in a decode step and may hold copies of weights.
# =====================================================================================================================


class WeightCopy(Protocol):
    """A copy of a module's weights, or their view in another layout."""

    @classmethod
    def of(cls, module: Any) -> Self | None:
        """The copy for a module; `None` if it is of a kind that cannot be copied."""

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""

    def still_fits(self, module: Any) -> bool:
        """Whether a module still has the weights that were copied."""


Copy = TypeVar("Copy", bound=WeightCopy)

_PARTS: "weakref.WeakValueDictionary[tuple[type, int], CopyingPart]" = weakref.WeakValueDictionary()
"""By class and the id of the module. A part holds a reference to its module, so that the id stays valid."""
_REGISTRY_LOCK_in_copying_part = threading.Lock()


class CopyingPart(StepPart):
    """The forward of one module while a generation runs, with copies of its weights in other layouts."""

    wraps_other_forwards = True

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.weights = sum(parameter.numel() for parameter in module.parameters())
        """Number of its weights, on which the fastest implementation depends."""
        self._copies: dict[type[WeightCopy], WeightCopy | None] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """The part of a module. Bases that share the module also share this object and the copies of weights."""
        with _REGISTRY_LOCK_in_copying_part:
            part = _PARTS.get((cls, id(module)))
            if part is None:
                part = _PARTS[cls, id(module)] = cls(module)
            return part  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        return sum(copy.nbytes for copy in self.copies)

    def drop_copies(self) -> None:
        with self._lock:
            self._copies = {}

    def install(self) -> Callable[[], None]:
        """Replace the module's forward, and drop copies of weights that have changed since."""
        with self._lock:
            copies = self._copies.items()
            self._copies = {kind: copy for kind, copy in copies if copy is not None and copy.still_fits(self.module)}
        return super().install()

    def copy_of(self, kind: type[Copy]) -> Copy | None:
        """The copy of a kind, made now if there is none; `None` if the module is not of a known kind."""
        with self._lock:
            if kind not in self._copies:
                self._copies[kind] = None if self.computes_something_else() else kind.of(self.module)
            return self._copies[kind]  # type: ignore[return-value]

    @property
    def copies(self) -> list[WeightCopy]:
        """All copies that were made."""
        return [copy for copy in list(self._copies.values()) if copy is not None]

    def made_copy(self, kind: type[Copy]) -> Copy | None:
        """The copy of a kind, if there is one."""
        return self._copies.get(kind)  # type: ignore[return-value]

    def computes_something_else(self) -> bool:
        """Whether another library has replaced the module's forward, before or after this part did."""
        return self._replaced is not None or vars(self.module).get("forward", self) is not self


# =====================================================================================================================
# kernels/cpu/sparse_mlp.py
#
# No MLP is computed by compiled kernels, which are not in this file.
# =====================================================================================================================


@dataclass(frozen=True)
class KeptChannels:
    """The input of an MLP with all but the largest channels set to zero, and the channels that any token keeps."""

    x: torch.Tensor
    listed: torch.Tensor


def supports_in_sparse_mlp(x: torch.Tensor) -> bool:
    """Whether the kernels can work on a tensor."""
    return False


def keep_top_channels_in_sparse_mlp(x: torch.Tensor, fraction: torch.Tensor) -> KeptChannels:
    """Only called where `supports` says yes."""
    raise NotImplementedError


def fake_quantize_in_sparse_mlp(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Only called where `supports` says yes."""
    raise NotImplementedError


# =====================================================================================================================
# execution/mlp/kept_call.py
#
# A module of an MLP over the largest channels of its input.
# =====================================================================================================================


MOST_TOKENS_in_kept_call = 8
"""Number of tokens in a forward above which all weights are read."""


class HasCopies(Protocol):
    """An object with copies of a module's weights: its [`CopyingPart`]."""

    weights: int
    """Their number."""

    def copy_of(self, kind: type[Copy]) -> Copy | None:
        """The copy of a kind, made now if there is none; `None` if the module is not of a known kind."""


@dataclass(eq=False)
class KeptCall:
    """One module over the largest channels of its input: a whole MLP, or its last projection over neurons."""

    plan: StepPlan
    x: torch.Tensor
    keep: torch.Tensor
    own: Callable[[torch.Tensor], torch.Tensor]
    copies: HasCopies

    @property
    def tokens(self) -> int:
        """Tokens in the forward."""
        return self.x.shape[:-1].numel()

    @property
    def is_plain(self) -> bool:
        """Whether the input is on the CPU, without gradient and autocast."""
        return not (self.x.device.type != "cpu" or self.x.requires_grad or torch.is_autocast_enabled("cpu"))

    @property
    def compiles(self) -> bool:
        """Whether compiled code chooses the channels."""
        is_in_memory = type(self.x) is torch.Tensor  # a subclass may have nothing at its address
        return is_in_memory and self.plan.backend != "reference" and supports_in_sparse_mlp(self.x)

    @cached_property
    def kept(self) -> KeptChannels:
        """The input with all but the kept channels set to zero, and a list of the channels that any token keeps."""
        if self.compiles:
            return keep_top_channels_in_sparse_mlp(self.x, self.keep)
        return keep_channels(self.x, kept_channels(self.x, self.keep))

    def kept_input(self) -> torch.Tensor:
        """The input with all but the kept channels set to zero, of the shape of `x`."""
        if self.compiles or "kept" in vars(self):
            return self.kept.x
        return keep_top_channels_in_channels(self.x, self.keep)

    @property
    def read_share(self) -> float:
        """Share of the channels that any token keeps, so that their weights have to be read."""
        return len(self.kept.listed) / self.x.shape[-1]


def keep_channels(x: torch.Tensor, mask: torch.Tensor) -> KeptChannels:
    """[`KeptChannels`] of an input `(rows, ..., channels)` and a mask of that shape, in plain torch."""
    listed = mask.flatten(0, -2).any(dim=0).nonzero().squeeze(1)
    return KeptChannels(torch.where(mask, x, 0), listed.int())


# =====================================================================================================================
# execution/mlp/kept_neurons/operation.py
#
# The last projection of an MLP in a step with a `neuron_keep`, and all of its implementations.
# =====================================================================================================================


KEPT_NEURONS: Operation[KeptCall] = Operation(
    "implementation of a last projection over kept neurons"
)
"""Implementations of a projection over the largest channels of its input by name."""


# =====================================================================================================================
# execution/mlp/step_down.py
#
# The last projection of an MLP in a decode step: reads the weights of the largest neurons (`neuron_keep`).
#
# Whatever computes the neurons runs before it: the MLP's own forward, or a fast path of [`StepMLP`]. Without a plan for
# the axis it calls the projection's own forward, which may be that of a [`StepLinear`] or of another library.
# =====================================================================================================================


class StepDown(CopyingPart):
    """The forward of one last projection while a generation runs."""

    axis: ClassVar[str] = "neuron_keep"
    change_name: ClassVar[str] = "last projection"

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """The projection's output for neurons `(rows, ..., neurons)`, under the plan of this thread's forward."""
        context = ACTIVE.get()
        plan = None if context is None else context.plan
        if plan is None or self.axis not in plan.levels:
            assert self.own is not None, "only called while it is installed"
            return self.own(*args, **kwargs)
        (neurons,) = (*args, *kwargs.values())
        return self.run(plan, neurons)

    def run(self, plan: StepPlan, neurons: torch.Tensor) -> torch.Tensor:
        """The projection's output for the inputs that a plan with a level of its axis keeps."""
        assert self.own is not None, "only called while it is installed"
        keep = plan.levels[self.axis].to(neurons.device)
        backend = "reference" if plan.reads_planes else plan.backend
        output = KEPT_NEURONS.run(KeptCall(plan, neurons, keep, self.own, self), backend)
        assert output is not None, "the projection's own forward can compute every call"
        plan.mark_done(self.axis, self)
        return output

    @property
    def is_plain_product(self) -> bool:
        """Read by the MLP's fast paths: whether no other library has replaced the projection's forward."""
        return self._replaced is None or getattr(self._replaced, "is_plain_product", False)

    def computes_something_else(self) -> bool:
        return not self.is_plain_product or vars(self.module).get("forward", self) is not self


# =====================================================================================================================
# selection/quantizers.py
#
# Fake quantization of activations: the `bits` axis as a pure function.
# =====================================================================================================================


def fake_quantize_in_quantizers(x: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Symmetric per-token quantization to `bits` bits and back, in float32; 16 bits is the identity."""
    bits = per_row(bits, x).float()
    limit = torch.exp2(bits - 1) - 1
    values = x.float()
    scale = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / limit
    quantized = torch.round(values / scale).clamp(-limit, limit) * scale
    return torch.where(bits >= 16, x, quantized.to(x.dtype))


# =====================================================================================================================
# execution/mlp/expert_layout.py
#
# How a module of experts lays its weights out, as it tells transformers' own implementations of experts.
# =====================================================================================================================


@dataclass(frozen=True)
class ExpertLayout:
    """The weights of all experts of a module, and what comes between them."""

    first: torch.Tensor
    last: torch.Tensor
    biases: tuple[torch.Tensor | None, torch.Tensor | None]
    is_transposed: bool
    neurons: Callable[[torch.Tensor], torch.Tensor]
    finish: Callable[[torch.Tensor], torch.Tensor] | None

    @classmethod
    def of(cls, module: nn.Module) -> "ExpertLayout | None":
        """The layout of a module; `None` if it does not say, or its weights are spread over processes."""
        known = all(isinstance(getattr(module, name, None), bool) for name in FLAGS)
        if not known or getattr(module, "_is_expert_parallel", False):
            return None
        first = getattr(module, "gate_up_proj" if module.has_gate else "up_proj", None)
        last = getattr(module, "down_proj", None)
        if not all(isinstance(weight, torch.Tensor) and weight.dim() == 3 for weight in (first, last)):
            return None
        names = ("gate_up_proj_bias" if module.has_gate else "up_proj_bias", "down_proj_bias")
        biases = tuple(getattr(module, name) if module.has_bias else None for name in names)
        neurons = module._apply_gate if module.has_gate else module.act_fn
        finish = getattr(module, "post_expert_norm", None) if getattr(module, "has_post_expert_norm", False) else None
        return cls(first, last, biases, module.is_transposed, neurons, finish)  # type: ignore[arg-type]

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, experts: torch.Tensor
    ) -> torch.Tensor:
        """The product of every line of `x` `(n, inputs)` with the weights of its expert `(n,)`."""
        if x.device.type == "cpu":
            parts, order = [], []
            for expert in experts.unique().tolist():
                lines = (experts == expert).nonzero().squeeze(1)
                matrix = weight[expert].t() if self.is_transposed else weight[expert]
                parts.append(functional.linear(x[lines], matrix, None if bias is None else bias[expert]))
                order.append(lines)
            return torch.cat(parts)[torch.cat(order).argsort()]
        matrices = weight[experts] if self.is_transposed else weight[experts].transpose(1, 2)
        product = torch.bmm(x[:, None], matrices).squeeze(1)
        return product if bias is None else product + bias[experts]


FLAGS = ("has_gate", "has_bias", "is_transposed")


# =====================================================================================================================
# execution/mlp/experts_call.py
#
# The experts of a layer over the largest channels of their input, and the largest neurons of each.
# =====================================================================================================================


class HasExperts(HasCopies, Protocol):
    """The part of a module of experts."""

    module: nn.Module
    """The module."""


@dataclass(eq=False)
class ExpertsCall:
    """The experts of a layer in a step."""

    plan: StepPlan
    x: torch.Tensor
    keep: torch.Tensor | None
    neuron_keep: torch.Tensor | None
    own: Callable[[torch.Tensor], torch.Tensor]
    copies: HasExperts
    chosen: tuple[torch.Tensor, ...]

    @cached_property
    def kept(self) -> KeptCall | None:
        """The choice of channels, for tokens `(tokens, channels)`; `None` where all are read."""
        if self.keep is None:
            return None
        return KeptCall(self.plan, self.x.flatten(0, -2), self.keep, self.own, self.copies)

    def kept_input(self) -> torch.Tensor:
        """The hidden states with all but the kept channels set to zero, of the shape of `x`."""
        return self.x if self.kept is None else self.kept.kept_input().view_as(self.x)


# =====================================================================================================================
# execution/mlp/kept_experts/operation.py
#
# The experts of a layer in a step, and all of their implementations.
# =====================================================================================================================


KEPT_EXPERTS: Operation[ExpertsCall] = Operation("implementation of experts over kept channels")
"""Implementations of experts over the largest channels and neurons by name."""


# =====================================================================================================================
# execution/mlp/step_experts.py
#
# The experts of a mixture in a decode step.
#
# transformers keeps the weights of all experts of a layer in one module, whose forward gets the hidden states and what
# the router has chosen. A [`StepExperts`] replaces this forward: the router, which comes before it, sees the whole
# hidden state, so that the choice of experts does not change. The experts then read the largest channels (`mlp_keep`)
# and the largest neurons of each chosen expert (`neuron_keep`), and their sum is rounded (`bits`).
# =====================================================================================================================


class StepExperts(CopyingPart):
    """The forward of the module of all experts of a layer while a generation runs."""

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """The experts' output, under the plan of this thread's forward."""
        own, context = self.own, ACTIVE.get()
        assert own is not None, "only called while it is installed"
        plan = None if context is None else context.plan
        levels = {} if plan is None else {axis: plan.levels[axis] for axis in AXES_in_step_experts if axis in plan.levels}
        if plan is None or not levels:
            return own(*args, **kwargs)
        if not args:  # the hidden states come first, by position or by name
            name, x = next(iter(kwargs.items()))
            return self._run(plan, levels, x, lambda kept: own(**{**kwargs, name: kept}), tuple(kwargs.values()))
        return self._run(plan, levels, args[0], lambda kept: own(kept, *args[1:], **kwargs), (*args, *kwargs.values()))

    def _run(
        self,
        plan: StepPlan,
        levels: dict[str, torch.Tensor],
        x: torch.Tensor,
        own: Callable[[torch.Tensor], torch.Tensor],
        arguments: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        flat = x.flatten(0, -2)
        per_token = {axis: _repeated(level.to(x.device), len(flat)) for axis, level in levels.items()}
        keep, neurons = per_token.get("mlp_keep"), per_token.get("neuron_keep")
        call = ExpertsCall(plan, x, keep, neurons, own, self, arguments[1:])
        output = KEPT_EXPERTS.run(call, "reference" if plan.reads_planes else plan.backend)
        assert output is not None, "the module's own forward, or plain torch, can compute every call"
        if "bits" in levels and not plan.reads_planes:
            output = fake_quantize_in_quantizers(output.flatten(0, -2), per_token["bits"]).view_as(output)
        for axis in levels:
            plan.mark_done(axis, self)
        return output

    @property
    def has_known_layout(self) -> bool:
        """Whether the module says how its weights are laid out."""
        return ExpertLayout.of(self.module) is not None


AXES_in_step_experts = ("mlp_keep", "neuron_keep", "bits")


def _repeated(level: torch.Tensor, tokens: int) -> torch.Tensor:
    """Levels `(rows,)` of a step for tokens `(tokens,)`: one of every row, for each expert or once."""
    if tokens % len(level):
        raise RuntimeError(
            f"The experts of the base got {tokens} tokens in a step of {len(level)} rows, so that their rows are not "
            "known: leave `mlp_keep`, `neuron_keep` and `bits` out of the budget."
        )
    return level.repeat(tokens // len(level))


# =====================================================================================================================
# execution/mlp/int8.py
#
# An MLP in int8: weights are rounded once, inputs at every step, and sums are exact in int32.
#
# `bits_backend="int8"` uses it instead of fake quantization for rows of 8 bits and fewer. The approximation differs from
# the published one, where the *output* of the MLP is rounded to `bits` bits. Here every weight (one scale per output)
# and every input of a projection (one scale per token) is rounded to 8 bits, for any number of bits up to 8 in the plan,
# and the output is not rounded. It reads a quarter of the bytes of float32 weights, half of those of bfloat16. The copy
# takes one byte per weight of the MLP.
#
# The products are computed by torch's `_int_mm`. torch's dynamically quantized linear layers are faster with one row,
# but use one scale for all rows, so that the result of a row would depend on the other rows.
# =====================================================================================================================


INT8_BITS = 8
LARGEST = 127


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 quantization of every row of a matrix `x` `(n, m)`, each with a scale of its own."""
    values = x.float()
    scale = values.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / LARGEST
    return torch.round(values / scale).to(torch.int8), scale


class Int8Linear:
    """A projection with int8 weights."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None):
        self.weight, scale = quantize_rows(weight.detach())
        self.scale = scale.squeeze(1)
        self.bias = None if bias is None else bias.detach().float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The product for `x` `(tokens, inputs)`, `(tokens, outputs)` in float32."""
        numbers, scale = quantize_rows(x)
        product = torch._int_mm(numbers, self.weight.t()).float() * scale * self.scale
        return product if self.bias is None else product + self.bias


class Int8MLP(MLPCopy):
    """int8 copy of an MLP."""

    def __init__(self, parts: MLPParts):
        super().__init__(parts)
        self.gate = Int8Linear(parts.gate, parts.biases[0])
        self.up = None if parts.up is None else Int8Linear(parts.up, parts.biases[1])
        self.down = Int8Linear(parts.down, parts.biases[2])

    @property
    def nbytes(self) -> int:
        """Memory of the copy."""
        copies = (self.gate, self.up, self.down)
        return sum(copy.weight.nbytes + copy.scale.nbytes for copy in copies if copy is not None)

    def __call__(self, x: torch.Tensor, neuron_keep: torch.Tensor | None = None) -> torch.Tensor:
        """The MLP's output `(rows, ..., outputs)` for an input `(rows, ..., channels)`, in the dtype of `x`."""
        tokens = x.flatten(0, -2)
        hidden = ACTIVATIONS[self.parts.activation](self.gate(tokens))
        if self.up is not None:
            hidden = hidden * self.up(tokens)
        if neuron_keep is not None:
            hidden = keep_top_channels_in_channels(hidden.view(*x.shape[:-1], -1), neuron_keep).flatten(0, -2)
        return self.down(hidden).view(*x.shape[:-1], -1).to(x.dtype)


# =====================================================================================================================
# execution/mlp/kept_channels/operation.py
#
# The MLP of a step with an `mlp_keep`, and all of its implementations.
# =====================================================================================================================


@dataclass(eq=False)
class MLPCall(KeptCall):
    """One MLP over the largest channels of its input."""

    last: Callable[[torch.Tensor], torch.Tensor] | None = None

    def contract(self, neurons: torch.Tensor, parts: MLPParts) -> torch.Tensor:
        """The last projection's output for neurons `(rows, ..., neurons)`."""
        if self.last is not None:
            return self.last(neurons)
        return functional.linear(neurons, parts.down, parts.biases[2])


KEPT_CHANNELS: Operation[MLPCall] = Operation("implementation of an MLP over kept channels")
"""Implementations of an MLP over the largest channels of its input by name."""


# =====================================================================================================================
# execution/mlp/step_mlp.py
#
# An MLP in a decode step: keeps channels of its input (`mlp_keep`) and rounds its output (`bits`).
#
# While a generation runs, each MLP of the base has an instance attribute `forward` that is a [`StepMLP`]. Forward hooks
# are not sufficient: they can change the input and the output, but the MLP would still read all of its weights. Another
# module in place of the MLP would be visible in `named_modules`, in `state_dict` and to other code with a reference to
# the MLP. A [`StepMLP`] carries out the plan of the forward that runs in its thread. Without a plan it calls the MLP's
# own forward.
#
# There are several implementations of the MLP over the kept channels, see `kept_channels`. Some of them need copies of
# the weights in another layout. A copy is made when it is first needed, and is held by the [`StepMLP`].
#
# The neurons (`neuron_keep`) are chosen by the last projection, a [`StepDown`]: the MLP's own forward comes to it by
# itself, and a fast path calls it.
# =====================================================================================================================


class StepMLP(CopyingPart):
    """The forward of one MLP while a generation runs."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.down: StepDown | None = None
        """Its last projection, on bases that can be controlled on `neuron_keep`."""

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        """The MLP's output for a hidden state `(rows, ..., channels)`, under the plan of this thread's forward."""
        own, context = self.own, ACTIVE.get()
        assert own is not None, "only called while it is installed"
        plan = None if context is None else context.plan
        keep, bits = (None, None) if plan is None else (plan.levels.get("mlp_keep"), plan.levels.get("bits"))
        if plan is None or (keep is None and bits is None):
            return own(*args, **kwargs)
        (x,) = (*args, *kwargs.values())
        keep = None if keep is None else keep.to(x.device)
        bits = None if bits is None else bits.to(x.device)
        if plan.reads_planes:  # by its linear layers, so that their forwards have to be called
            output, bits = self._run(plan, x, keep, own), None
        elif bits is None or plan.bits_backend == "fake":
            output = self._finish(plan, self._run(plan, x, keep, own), bits)
        else:
            output = self._run_int8(plan, x, keep, bits, own)
        for axis, level in (("mlp_keep", keep), ("bits", bits)):
            if level is not None:
                plan.mark_done(axis, self)
        return output

    def int8_copy(self) -> Int8MLP:
        """The copy in int8."""
        copy = self.copy_of(Int8MLP)
        if copy is None:
            with self._lock:
                self._copies.pop(Int8MLP, None)  # the next call tries again: the reason may be removed
            raise UnsupportedAxisError(
                f"`bits_backend='int8'` needs MLPs of two or three plain linear layers on the CPU, and cannot run "
                f"{type(self.module).__name__}: pass `bits_backend='fake'`."
            )
        return copy

    def _run(self, plan: StepPlan, x: torch.Tensor, keep: torch.Tensor | None, own: Callable) -> torch.Tensor:
        """The MLP over the channels that the plan keeps."""
        if keep is None:
            return own(x)
        last = functools.partial(down.run, plan) if (down := self._planned_down(plan)) else None
        backend = "reference" if plan.reads_planes else plan.backend
        output = KEPT_CHANNELS.run(MLPCall(plan, x, keep, own, self, last), backend)
        assert output is not None, "the MLP's own forward can compute every call"
        return output

    def _finish(self, plan: StepPlan, output: torch.Tensor, bits: torch.Tensor | None) -> torch.Tensor:
        if bits is None:
            return output
        fast = plan.backend != "reference" and supports_in_sparse_mlp(output)
        return (fake_quantize_in_sparse_mlp if fast else fake_quantize_in_quantizers)(output, bits)

    def _run_int8(
        self, plan: StepPlan, x: torch.Tensor, keep: torch.Tensor | None, bits: torch.Tensor, own: Callable
    ) -> torch.Tensor:
        """Rows of 8 bits and fewer in int8, others as under fake quantization."""
        copy, in_int8 = self.int8_copy(), bits <= INT8_BITS
        if not bool(in_int8.any()):
            return self._finish(plan, self._run(plan, x, keep, own), bits)
        kept = x if keep is None else KeptCall(plan, x, keep, own, self).kept_input()
        down = self._planned_down(plan)
        product = copy(kept, plan.levels["neuron_keep"].to(x.device) if down else None)
        if down:
            plan.mark_done("neuron_keep", down)
        if bool(in_int8.all()):
            return product
        output = self._finish(plan, self._run(plan, x, keep, own), bits)
        return torch.where(in_int8.view(-1, *[1] * (x.dim() - 1)), product, output)

    def _planned_down(self, plan: StepPlan) -> StepDown | None:
        """The last projection, if the plan chooses neurons."""
        return self.down if "neuron_keep" in plan.levels else None


# =====================================================================================================================
# execution/mlp/step_pair.py
#
# An MLP of two projections without a module of its own: the first keeps channels, the last neurons, and rounds.
# =====================================================================================================================


class StepFirst(StepDown):
    """The first projection: reads the largest channels of the hidden state (`mlp_keep`)."""

    axis = "mlp_keep"
    change_name = "first projection"


class StepLast(StepDown):
    """The last projection: reads the largest neurons (`neuron_keep`), and rounds the MLP's output (`bits`)."""

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        output, context = super().__call__(*args, **kwargs), ACTIVE.get()
        plan = None if context is None else context.plan
        if plan is None or "bits" not in plan.levels:
            return output
        plan.mark_done("bits", self)
        if plan.reads_planes:  # by the projection itself
            return output
        return fake_quantize_in_quantizers(output, plan.levels["bits"].to(output.device))


# =====================================================================================================================
# execution/mlp/sites.py
#
# The kinds of MLPs that decoder layers have, and the modules at which the axes apply to each.
#
# `mlp_keep` chooses where an MLP reads the hidden state, `neuron_keep` where its last projection reads the neurons, and
# `bits` rounds its output:
#
#     kind              reads the hidden state    reads the neurons     output
#     whole module      the module                its last projection   the module
#     two projections   the first projection      the last projection   the last projection
#     experts           the module of all experts, after the router, whose input stays whole
# =====================================================================================================================


MLPPart = StepMLP | StepDown | StepExperts


@dataclass(frozen=True)
class MLPSite:
    """An MLP of a decoder layer; a layer may have several."""

    layer: int
    name: str

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that hold its weights."""
        raise NotImplementedError

    @property
    def last(self) -> nn.Module | None:
        """The module of its last projection; `None` if it has none of its own."""
        raise NotImplementedError

    def part(self, axis: str) -> MLPPart:
        """The part that carries out an axis."""
        raise NotImplementedError

    @property
    def title(self) -> str:
        """Its name for messages."""
        return f"the MLP of layer {self.layer}" if self.name in USUAL_NAMES else f"`{self.name}` of layer {self.layer}"

    def title_of(self, axis: str) -> str:
        """The name of the part that carries out an axis, for messages."""
        inner = axis == "neuron_keep" and self.last is not None
        return f"the last projection of {self.title}" if inner else self.title

    def check_int8(self) -> None:
        """Make the copy in int8, or raise [`UnsupportedAxisError`]."""
        raise UnsupportedAxisError(
            f"`bits_backend='int8'` needs MLPs of two or three plain linear layers in a module of their own, and "
            f"cannot run {self.title}: pass `bits_backend='fake'`."
        )

    def check_planes(self) -> None:
        """Raise [`UnsupportedAxisError`] if its weights cannot be read from planes; by default they can."""

    def refuse_spread_neurons(self, projection: nn.Module) -> None:
        """Raise [`UnsupportedAxisError`] if each process has only a part of the inputs of a last projection."""
        shared = any(isinstance(weight, DTensor) for weight in projection.parameters())
        if shared and projection._forward_pre_hooks and not isinstance(projection, FSDPModule):
            raise UnsupportedAxisError(
                f"the neurons of {self.title} are spread over processes (tensor parallel), so that the largest of all "
                "are not known: leave the axis out of the budget, or load the base without `tp_plan`."
            )

    def keep_neurons(self) -> None:
        """Tell the part that chooses channels which part chooses neurons, if both run in one computation."""


USUAL_NAMES = ("mlp", "feed_forward", "ffn")


@dataclass(frozen=True)
class WholeMLP(MLPSite):
    """A module whose forward takes the hidden state and returns the output."""

    module: nn.Module
    projection: nn.Module | None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.module,)

    @property
    def last(self) -> nn.Module | None:
        return self.projection

    def part(self, axis: str) -> StepMLP | StepDown:
        if axis != "neuron_keep":
            return StepMLP.of(self.module)
        if self.projection is None:
            children = ", ".join(name for name, _ in self.module.named_children()) or "no children"
            raise UnsupportedAxisError(
                f"{self.title} ({type(self.module).__name__}) has no last projection that can be told from the "
                f"others; it has {children}."
            )
        self.refuse_spread_neurons(self.projection)
        return StepDown.of(self.projection)

    def check_int8(self) -> None:
        StepMLP.of(self.module).int8_copy()

    def keep_neurons(self) -> None:
        down = self.part("neuron_keep")
        assert isinstance(down, StepDown)
        StepMLP.of(self.module).down = down


@dataclass(frozen=True)
class TwoProjections(MLPSite):
    """Two projections that a decoder layer calls itself, or an MLP whose forward does more than that of an MLP."""

    first: nn.Module
    projection: nn.Module

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.first, self.projection)

    @property
    def last(self) -> nn.Module:
        return self.projection

    def part(self, axis: str) -> StepDown:
        self.refuse_spread_neurons(self.projection)
        return StepFirst.of(self.first) if axis == "mlp_keep" else StepLast.of(self.projection)


@dataclass(frozen=True)
class ExpertsMLP(MLPSite):
    """All experts of a mixture in one module, which gets the hidden states and the choice of the router."""

    module: nn.Module

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.module,)

    @property
    def last(self) -> None:
        return None

    def part(self, axis: str) -> StepExperts:
        part = StepExperts.of(self.module)
        if axis == "neuron_keep" and not part.has_known_layout:
            raise UnsupportedAxisError(
                f"{self.title} ({type(self.module).__name__}) does not say how its weights are laid out, so that "
                "the neurons of its experts cannot be told from other numbers."
            )
        return part

    def check_planes(self) -> None:
        raise UnsupportedAxisError(
            f"`bits_backend='nested'` reads plain linear layers, but {self.title} holds the weights of all experts in "
            "one tensor: pass `bits_backend='fake'`."
        )


# =====================================================================================================================
# execution/mlp/discovery.py
#
# Finds the MLPs of a base by their structure, whatever their names are.
#
# An MLP of a decoder layer is one of these, see `sites.py`:
#
# - a module that takes the hidden state alone, with projections from and to the width of the hidden state;
# - a module that takes more, for example the residual, with exactly two such projections;
# - a module of experts, whose parameters have an expert, an input and an output dimension;
# - where there is no such module, two projections that the layer calls itself, or two modules with one each.
#
# Attention is told from an MLP by its arguments: a mask, a cache, positions.
# =====================================================================================================================


NOT_OF_MLPS = frozenset(
    """attention_mask past_key_values past_key_value layer_past cache_params position_embeddings position_ids
    position_bias state encoder_hidden_states""".split()
)
"""Arguments that attention and recurrent layers take, and no MLP."""
LAST_NAMES = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "fc_out", "w2", "output_linear")
"""Usual names of a last projection, for MLPs in which several could be it by their sizes."""
NARROW = 8
"""A module of a layer is no MLP if it has fewer neurons than the hidden state has channels over this."""
AXES_in_discovery = "`neuron_keep`, `mlp_keep` and `bits`"


def find_sites(base: PreTrainedModel) -> tuple[MLPSite, ...]:
    """The MLPs of all decoder layers. A layer may have several, or, as a layer of a state-space model, none."""
    start = f"The axes {AXES_in_discovery} cannot be controlled on {type(base).__name__}"
    layers, width = decoder_layers(base), hidden_width(base)
    if layers is None or width is None:
        raise UnsupportedAxisError(f"{start}: no decoder layers.")
    sites: list[MLPSite] = []
    for index, layer in enumerate(layers):
        try:
            sites.extend(_in_layer(layer, index, width))
        except UnsupportedAxisError as error:
            raise UnsupportedAxisError(f"{start}: {error}") from error
    if not sites:
        raise UnsupportedAxisError(
            f"{start}: no layer has an MLP. Layer 0 ({type(layers[0]).__name__}) consists of "
            f"{', '.join(name for name, _ in layers[0].named_children())}."
        )
    return tuple(sites)


def find_mlps(base: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The modules that hold the weights of the MLPs of all decoder layers, see [`find_sites`]."""
    return tuple(module for site in find_sites(base) for module in site.modules)


def hidden_width(base: PreTrainedModel) -> int | None:
    """Channels of the hidden state, `None` if the config does not say."""
    return getattr(text_config(base), "hidden_size", None)


def _in_layer(layer: nn.Module, index: int, width: int) -> list[MLPSite]:
    found = list(_modules_in(layer, index, width, ""))
    experts = [site for site in found if isinstance(site, ExpertsMLP)]
    others = [site for site in found if "." in site.name or not _is_narrow(site, width)]
    if not experts and len(others) > 1:  # beside the MLP there are adapters and gates
        others = [max(others, key=_weights)]
    return others or list(_two_projections(layer, index, width))


def _is_narrow(site: MLPSite, width: int) -> bool:
    """Whether a module has too few neurons for an MLP, as adapters and gates do."""
    neurons = None if site.last is None else input_size(site.last)
    return neurons is not None and neurons * NARROW < width


def _weights(site: MLPSite) -> int:
    return sum(weight.numel() for module in site.modules for weight in module.parameters())


def _modules_in(module: nn.Module, index: int, width: int, prefix: str) -> Iterator[MLPSite]:
    """MLPs and experts among the children of a layer, and of blocks that join several."""
    for child_name, child in module.named_children():
        name = prefix + child_name
        if _arguments(child) & NOT_OF_MLPS:
            continue
        if holds_experts(child):
            yield _experts(child, index, name)
        elif isinstance(child, nn.ModuleList) or any(holds_experts(part) for part in child.children()):
            yield from _modules_in(child, index, width, f"{name}.")
        else:
            site = _module_site(child, index, name, width)
            if site is not None:
                yield site


def _experts(module: nn.Module, index: int, name: str) -> ExpertsMLP:
    """The site of a module of experts; not all can be told apart by row."""
    if len(_required(module)) not in (1, 3):
        raise UnsupportedAxisError(
            f"`{name}` of layer {index} ({type(module).__name__}) gets its tokens in another way than from "
            "a choice of experts per token, so that their rows are not known."
        )
    return ExpertsMLP(index, name, module)


def _module_site(module: nn.Module, index: int, name: str, width: int) -> MLPSite | None:
    """The site of a module that is an MLP, else `None`."""
    projections = projections_in(module)
    firsts = [part for part in projections if input_size(part) == width]
    lasts = [part for part in projections if output_size(part) == width]
    if len(projections) < 2 or not firsts or not lasts:
        return None
    if len(_required(module)) == 1:
        return WholeMLP(index, name, module, _last_projection(module, projections, width))
    pairs = _pairs([("", part) for part in projections], width)
    if len(projections) == 2 and len(pairs) == 1:
        return TwoProjections(index, name, pairs[0][0][1], pairs[0][1][1])
    return None


def _two_projections(layer: nn.Module, index: int, width: int) -> Iterator[MLPSite]:
    """Two projections that a layer calls itself, or one in each of two modules."""
    singles: list[tuple[str, nn.Module]] = []
    for name, child in layer.named_children():
        if is_projection(child):
            singles.append((name, child))
        elif not _arguments(child) & NOT_OF_MLPS:
            own = [(f"{name}.{inner}", part) for inner, part in child.named_children() if is_projection(part)]
            singles.extend(own if len(own) == 1 else [])
    pairs = _pairs(singles, width)
    if len(pairs) == 1:
        (name, first), (last_name, last) = pairs[0]
        yield TwoProjections(index, f"{name} and {last_name}", first, last)


Named = tuple[str, nn.Module]


def _pairs(projections: Sequence[Named], width: int) -> list[tuple[Named, Named]]:
    """Pairs of projections that their sizes allow to be the first and the last of an MLP, in either order."""
    return [
        (first, last)
        for first in projections
        for last in projections
        if first is not last
        and input_size(first[1]) == output_size(last[1]) == width
        and _follow_each_other(first[1], last[1])
    ]


def last_projection(mlp: nn.Module) -> nn.Module | None:
    """The last projection of a module that is an MLP; `None` if several could be it, or none."""
    projections = projections_in(mlp)
    width = input_size(projections[0]) if projections else None
    return None if width is None else _last_projection(mlp, projections, width)


def _last_projection(module: nn.Module, projections: Sequence[nn.Module], width: int) -> nn.Module | None:
    """The last projection of an MLP: the only one that its sizes, or its name, allow."""
    named = [part for name, part in module.named_children() if name in LAST_NAMES and output_size(part) == width]
    if len(named) == 1:
        return named[0]
    before = [part for part in projections if input_size(part) == width]
    lasts = [part for part in projections if output_size(part) == width]
    lasts = [part for part in lasts if any(_follow_each_other(f, part) for f in before if f is not part)]
    return lasts[0] if len(lasts) == 1 else None


def _follow_each_other(first: nn.Module, last: nn.Module) -> bool:
    """Whether the outputs of a projection, or their halves, can be the inputs of another one."""
    outputs, inputs = output_size(first), input_size(last)
    return outputs is not None and inputs is not None and outputs in (inputs, 2 * inputs)


def projections_in(module: nn.Module) -> list[nn.Module]:
    """The projections of a module in the order of their definition, adapters around them as one each."""
    if is_projection(module):
        return [module]
    return [part for child in module.children() for part in projections_in(child)]


def is_projection(module: nn.Module) -> bool:
    """Whether a module is a linear layer, of any library, or an adapter around one."""
    sizes = input_size(module), output_size(module)
    return all(isinstance(size, int) for size in sizes) and not isinstance(module, nn.Embedding | nn.Bilinear)


def holds_experts(module: nn.Module) -> bool:
    """Whether a module has parameters with an expert, an input and an output dimension."""
    return not isinstance(module, _ConvNd) and any(weight.dim() == 3 for weight in module.parameters(recurse=False))


def input_size(projection: nn.Module) -> int | None:
    """Inputs of a linear layer, of `Conv1D` or of an adapter around one; `None` if it does not say."""
    return getattr(projection, "in_features", getattr(projection, "nx", None))


def output_size(projection: nn.Module) -> int | None:
    """Outputs of a linear layer, of `Conv1D` or of an adapter around one; `None` if it does not say."""
    return getattr(projection, "out_features", getattr(projection, "nf", None))


def _arguments(module: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(type(module).forward).parameters) - {"self"}


def _required(module: nn.Module) -> list[str]:
    """Arguments that a module's forward needs."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(type(module).forward).parameters.values()
    return [p.name for p in parameters if p.name != "self" and p.kind in kinds and p.default is p.empty]


# =====================================================================================================================
# costs/counted_model.py
#
# What is counted: a base with a policy.
# =====================================================================================================================


class CountedModel(Protocol):
    """A base with a policy and its config: a [`SOLForCausalLM`]."""

    base: PreTrainedModel
    policy: Any
    config: SOLConfig

    @property
    def action_space(self) -> ActionSpace:
        """The actions."""

    def new_cache(self, kv_dtype: str | None = None) -> SOLCache:
        """An empty cache."""


# =====================================================================================================================
# costs/expert_counts.py
#
# How many of the weights of a mixture of experts one token reads.
# =====================================================================================================================


TOP_K = """num_experts_per_tok num_experts_per_token experts_per_token top_k_experts moe_topk moe_top_k moe_k
    top_k""".split()
"""What configs call the number of experts that a token runs through."""


def share_read(module: nn.Module) -> float:
    """Share of the parameters of one module that a token reads: that of the chosen experts, 1 for other modules."""
    config = vars(module).get("config")
    if config is None or not holds_experts(module):
        return 1.0
    experts = next(len(weight) for weight in module.parameters(recurse=False) if weight.dim() == 3)
    chosen = next((k for k in (getattr(config, name, None) for name in TOP_K) if isinstance(k, int)), experts)
    return min(1.0, chosen / experts)


def layout_of(module: nn.Module) -> ExpertLayout | None:
    """How the weights of a module of experts are laid out; `None` for other modules."""
    return ExpertLayout.of(module) if holds_experts(module) else None


# =====================================================================================================================
# costs/stored_weights.py
#
# Weights as a base stores them: plain, of which a step can leave some out, or as another library keeps them.
#
# Libraries of quantization keep the weights of a linear layer as a tensor of a class of their own, as a packed tensor of
# integers, or as several buffers. Their products read all of it, whatever is kept of the input. Offloaded weights are
# moved as a whole. What such a library keeps outside of parameters and buffers, as the scales of bitsandbytes, is not
# counted.
# =====================================================================================================================


def is_plain_in_stored_weights(weight: object) -> bool:
    """Whether a weight is a tensor of floats in memory, of 16 bits or more, so that a step can read a part of it."""
    if not isinstance(weight, torch.Tensor) or type(weight) not in (nn.Parameter, torch.Tensor):
        return False
    return weight.dtype.is_floating_point and weight.dtype.itemsize > 1 and weight.device.type != "meta"


def stored_bytes(weight: torch.Tensor) -> int:
    """Bytes of a tensor, those of its parts if it is of a class that consists of others."""
    flatten = getattr(weight, "__tensor_flatten__", None)
    if flatten is None or isinstance(weight, DTensor):  # of all processes
        return weight.nbytes
    parts = (getattr(weight, name) for name in flatten()[0])
    return sum(stored_bytes(part) for part in parts if isinstance(part, torch.Tensor))


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of any library, without parts."""
    return is_projection(module) and next(module.children(), None) is None


def is_packed(module: nn.Module) -> bool:
    """Whether a linear layer has its weight in another shape than its own, as packed integers."""
    if not is_linear(module):
        return False
    weight = getattr(module, "weight", None)
    shape = output_size(module), input_size(module)
    return not isinstance(weight, torch.Tensor) or weight.shape not in (shape, shape[::-1])


def stored_tensors(module: nn.Module) -> list[torch.Tensor]:
    """What a module keeps of weights: its parameters, and of a linear layer without a plain one its buffers too."""
    own: list[torch.Tensor] = list(module.parameters(recurse=False))
    is_quantized = is_linear(module) and not is_plain_in_stored_weights(getattr(module, "weight", None))
    return [*own, *module.buffers(recurse=False)] if is_quantized else own


def weights_in(module: nn.Module) -> int:
    """Number of weights of one module, without those of its parts; of a packed linear layer as they are unpacked."""
    if not is_packed(module):
        return sum(p.numel() for p in module.parameters(recurse=False))
    bias, inputs, outputs = getattr(module, "bias", None), input_size(module), output_size(module)
    assert inputs is not None and outputs is not None
    return inputs * outputs + (outputs if isinstance(bias, torch.Tensor) else 0)


# =====================================================================================================================
# costs/axis_costs.py
#
# Counts of what a decode step reads and computes, and their reduction by the levels of an axis.
#
# Every axis has an entry in the folder `axes`, registered in [`AXIS_COSTS`]. An entry turns the counts of a dense step,
# [`StepCounts`], into those of a step at a level. Entries multiply counts, so their order does not matter. An axis
# without an entry saves nothing.
# =====================================================================================================================


@dataclass(frozen=True)
class Weights:
    """Number of weights that a forward of one token reads."""

    mlp_input: int
    mlp_last: int
    mlp: int
    head: int
    total: int
    itemsize: int

    @classmethod
    def of(cls, model: CountedModel) -> "Weights":
        """The weights of the base of `model`."""
        base, mlps = model.base, MlpModules.of(model.base)
        return cls(
            mlp_input=_numbers(mlps.inputs) + sum(first.numbers for first, _ in mlps.experts),
            mlp_last=_numbers(mlps.lasts) + sum(last.numbers for _, last in mlps.experts),
            mlp=sum(map(own_numbers, mlps.every)),
            head=read_numbers(base.get_output_embeddings()),
            total=sum(map(own_numbers, step_modules(base))),
            itemsize=base.get_input_embeddings().weight.element_size(),
        )


class MlpModules(NamedTuple):
    """The modules of the MLPs of a base that the axes tell apart."""

    inputs: list[nn.Module]
    lasts: list[nn.Module]
    every: list[nn.Module]

    @classmethod
    def of(cls, base: PreTrainedModel) -> "MlpModules":
        """Those of `base`; none if its MLPs are not controlled."""
        width = base.get_input_embeddings().weight.shape[-1]
        try:
            sites = find_sites(base)
        except UnsupportedAxisError:
            sites = ()
        every = list(dict.fromkeys(part for site in sites for mlp in site.modules for part in mlp.modules()))
        projections = [site.last for site in sites if site.last is not None]
        inner = {part for last in projections for part in last.modules()}
        inputs = [part for part in every if part not in inner and _has_matrix(part) and _inputs(part) == width]
        return cls(inputs, [part for last in projections for part in _of_widest_input(last)], every)

    @property
    def experts(self) -> list[tuple["ReadMatrix", "ReadMatrix"]]:
        """What a token reads of first and last projections of experts, which are among the parameters of `every`."""
        layouts = ((layout_of(part), share_read(part)) for part in self.every)
        plain = ((of, share) for of, share in layouts if of is not None and is_plain_in_stored_weights(of.first) and is_plain_in_stored_weights(of.last))
        return [(ReadMatrix(of.first, share), ReadMatrix(of.last, share)) for of, share in plain]


class ReadMatrix(NamedTuple):
    """Weights of which a token reads a share."""

    weight: torch.Tensor
    share: float

    @property
    def numbers(self) -> int:
        """How many it reads."""
        return round(self.weight.numel() * self.share)

    @property
    def bytes(self) -> int:
        """Their bytes."""
        return round(self.weight.nbytes * self.share)


def _numbers(parts: list[nn.Module]) -> int:
    return sum(_matrix(part).numel() for part in parts)


def _of_widest_input(projection: nn.Module) -> list[nn.Module]:
    """The linear layers of a projection whose inputs are the neurons; an adapter has others behind them."""
    matrices = [part for part in projection.modules() if _has_matrix(part)]
    most = max(map(_inputs, matrices), default=0)
    return [part for part in matrices if _inputs(part) == most]


def _has_matrix(part: nn.Module) -> bool:
    """Whether a module is a linear layer with a plain weight of its own, not that of another module."""
    weight = vars(part)["_parameters"].get("weight", vars(part)["_buffers"].get("weight"))
    return is_plain_in_stored_weights(weight) and weight.dim() == 2 and not isinstance(part, nn.Embedding)


def _matrix(part: nn.Module) -> torch.Tensor:
    """The weight of a linear layer."""
    weight = part.weight
    assert isinstance(weight, torch.Tensor)
    return weight


def _inputs(part: nn.Module) -> int:
    """Input channels of a linear layer."""
    return _matrix(part).shape[0 if type(part).__name__ == "Conv1D" else 1]


def read_numbers(module: nn.Module) -> int:
    """Parameters that a forward of one token reads: of an embedding one row, else all. A tied head counts in full."""
    return sum(map(own_numbers, module.modules()))


def own_numbers(part: nn.Module) -> int:
    """Parameters of one module, without those of its parts, that a forward of one token reads."""
    if isinstance(part, nn.Embedding):
        return sum(p.shape[-1] for p in part.parameters(recurse=False))
    return round(weights_in(part) * share_read(part))


def read_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the parameters of modules, without those of their parts, that a forward of one token reads."""
    total = 0
    for part in modules:
        own, share = stored_tensors(part), share_read(part)
        total += sum(p[0].nbytes if isinstance(part, nn.Embedding) else round(stored_bytes(p) * share) for p in own)
    return total


def step_modules(base: PreTrainedModel) -> list[nn.Module]:
    """The modules that a forward of one token runs: the text decoder and the LM head, no towers for other input."""
    return list(dict.fromkeys([*text_modules(base), *lm_head_of(base).modules()]))


@dataclass(frozen=True)
class StepCounts:
    """Counts of what one decode step reads and computes, for a single sequence."""

    mlp_input_weights: float
    mlp_last_weights: float
    other_mlp_weights: float
    other_weights: float
    itemsize: int
    kv_bytes: float
    kv_flops: float
    nominal_mlp_size: float = 1.0
    mlp_input_size: float = 1.0
    mlp_last_size: float = 1.0
    other_mlp_size: float = 1.0
    mlp_scale_bytes: float = 0.0
    other_bytes_saved: float = 0.0

    def times(self, **factors: float) -> "StepCounts":
        """A copy in which the named counts are multiplied by factors."""
        return replace(self, **{name: getattr(self, name) * factor for name, factor in factors.items()})

    @property
    def weights(self) -> float:
        """All weights read."""
        return self.mlp_weights + self.other_weights

    @property
    def mlp_weights(self) -> float:
        """All weights read of MLPs."""
        return self.mlp_input_weights + self.mlp_last_weights + self.other_mlp_weights

    @property
    def bytes(self) -> float:
        """Bytes read."""
        outside = self.other_weights * self.itemsize - self.other_bytes_saved
        return self._mlp_bytes + self.mlp_scale_bytes + outside + self.kv_bytes

    @property
    def _mlp_bytes(self) -> float:
        sized = self.mlp_input_weights * self.mlp_input_size + self.mlp_last_weights * self.mlp_last_size
        return (sized + self.other_mlp_weights * self.other_mlp_size) * self.itemsize

    @property
    def nominal_bytes(self) -> float:
        """Bytes that would be read if the weights were stored with the bits of the action."""
        return self.bytes - self._mlp_bytes * (1 - self.nominal_mlp_size)

    @property
    def flops(self) -> float:
        """Floating-point operations: two per weight, and those of attention."""
        return 2 * self.weights + self.kv_flops


def dense_counts(model: CountedModel, weights: Weights, kv: tuple[float, float]) -> StepCounts:
    """Counts of a dense step."""
    mlps, itemsize = MlpModules.of(model.base), weights.itemsize
    other_mlp, outside = weights.mlp - weights.mlp_input - weights.mlp_last, weights.total - weights.mlp
    inputs = sum(_matrix(part).nbytes for part in mlps.inputs) + sum(first.bytes for first, _ in mlps.experts)
    lasts = sum(_matrix(part).nbytes for part in mlps.lasts) + sum(last.bytes for _, last in mlps.experts)
    all_of_mlps = read_bytes(mlps.every)
    return StepCounts(
        mlp_input_weights=weights.mlp_input,
        mlp_last_weights=weights.mlp_last,
        other_mlp_weights=other_mlp,
        other_weights=outside,
        itemsize=itemsize,
        kv_bytes=kv[0],
        kv_flops=kv[1],
        mlp_input_size=size_of(inputs, weights.mlp_input, itemsize),
        mlp_last_size=size_of(lasts, weights.mlp_last, itemsize),
        other_mlp_size=size_of(all_of_mlps - inputs - lasts, other_mlp, itemsize),
        other_bytes_saved=outside * itemsize - read_bytes(step_modules(model.base)) + all_of_mlps,
    )


def size_of(read: float, weights: int, itemsize: int) -> float:
    """Bytes per weight as a fraction of `itemsize`, 1 without weights."""
    return read / (weights * itemsize) if weights else 1.0


class AxisCost:
    """How the levels of one axis change the counts of a step."""

    def __init__(self, model: CountedModel, keys: int, bits_backend: str = "fake"):
        self.model, self.keys, self.bits_backend = model, keys, bits_backend

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        """A function that applies a level to the counts of a step; called once per level."""
        raise NotImplementedError


AXIS_COSTS: Registry[type[AxisCost]] = Registry("axis cost")
"""The costs of all axes that reduce the counts, by the name of the axis."""


# =====================================================================================================================
# decoding/positions.py
#
# Positions of tokens that come without any, and what follows from those of images.
#
# Some bases give an image fewer positions than it has tokens. All later tokens then stand earlier by a shift, which such
# a base remembers on itself (`rope_deltas`), and takes for whatever text comes next. Under a budget every cache has its
# own: it is part of `SOLCache.position_offset`.
# =====================================================================================================================


def default_positions(base: PreTrainedModel, inputs: ForwardInputs, cache: SOLCache) -> torch.Tensor | None:
    """Positions `(rows, length)` of tokens without any, `None` if they are those that the base itself takes."""
    begin, device, offset = cache.get_seq_length(), inputs.tokens.device, cache.position_offset
    if counts_images(base, inputs):
        return None
    if offset is None and begin and (_remembers_shift(base) is not None or not counts_cached_tokens(base)):
        offset = torch.zeros(len(inputs.tokens), dtype=torch.long, device=device)
    if offset is None:
        return None
    slots = torch.arange(begin, begin + inputs.length, device=device)
    return (slots - offset[:, None]).clamp(min=0)


def counts_images(base: PreTrainedModel, inputs: ForwardInputs) -> bool:
    """Whether only the base knows the positions of some tokens, which are those of an image."""
    return bool(inputs.with_prompt) and _remembers_shift(base) is not None


def _remembers_shift(base: PreTrainedModel) -> torch.nn.Module | None:
    """The module that keeps the shift of positions after the images of the last text, if the base has such."""
    return next((module for module in (base, *base.children()) if hasattr(module, "rope_deltas")), None)


def note_shift(base: PreTrainedModel, inputs: ForwardInputs, cache: SOLCache) -> None:
    """After a forward with images, keep in the cache how much earlier the tokens after them stand."""
    module = _remembers_shift(base)
    if module is None or not inputs.with_prompt:
        return
    padding = _padding(cache)
    given = inputs.along.get("position_ids")
    if given is None:
        remembered: Any = module.rope_deltas
        shift = 0 if remembered is None else remembered[:, 0]
    elif given.value.dim() == 3:  # (dimensions, rows, length), the last three are those of images
        last = given.value[-3:].amax(dim=(0, 2)).expand(cache.rows)
        shift = last + 1 + padding - cache.get_seq_length()
    else:
        return
    cache.position_offset = padding - shift


def positions_in_loop(base: PreTrainedModel, prompt: torch.Tensor, arguments: dict[str, Any]) -> torch.Tensor:
    """The positions that a base prepares for a whole text, with the shift of the text in the cache."""
    cache, module = arguments.get("past_key_values"), _remembers_shift(base)
    with _PREPARING:
        if module is not None and isinstance(cache, SOLCache) and cache.get_seq_length():
            padding, offset = _padding(cache), cache.position_offset
            shift = torch.zeros_like(padding) if offset is None else padding - offset
            module.rope_deltas = shift[:: max(cache.rows // len(prompt), 1), None]  # the loop repeats rows for beams
        return base._prepare_position_ids_for_generation(prompt, arguments)


def _padding(cache: SOLCache) -> torch.Tensor:
    device = cache.ledger.total_counts.device
    return torch.zeros(cache.rows, dtype=torch.long, device=device) if cache.padding is None else cache.padding


_PREPARING = threading.Lock()
"""Held while a base reads and writes the shift that it remembers."""


# =====================================================================================================================
# decoding/compiled_step.py
#
# Decides whether a forward of a few tokens runs as one program of compiled operations, see `execution/stack`.
# =====================================================================================================================


def compiled_step(
    session: DecodingSession,
    inputs: ForwardInputs,
    plan: StepPlan,
    is_new: bool | None = None,
    embedding: torch.Tensor | None = None,
) -> tuple[CausalLMOutputWithPast, torch.Tensor] | None:
    """A decode step as one program: what the base returns, and the LM head's input `(rows, hidden_size)`."""
    cache = session.cache
    if not _is_plain_in_compiled_step(session, inputs):
        return None
    if is_new is None:
        is_new = cache.episode.length == 0 or not cache.trace
    places = _positions_of(session, inputs)[:, 0]
    tokens = inputs.tokens if embedding is None else embedding[:, None]
    found = run_step(session.base, plan, tokens, places, is_new)
    if found is None:
        return None
    cache.processed = cache.get_seq_length()
    return CausalLMOutputWithPast(logits=found[0], past_key_values=cache), found[1]


def compiled_refresh(
    session: DecodingSession, inputs: ForwardInputs, plan: RefreshPlan, logits_to_keep: int
) -> tuple[CausalLMOutputWithPast, torch.Tensor] | None:
    """A dense forward of several tokens as one program: what the base returns, and the LM head's inputs."""
    cache = session.cache
    if not _is_plain_in_compiled_step(session, inputs):
        return None
    found = run_refresh(session.base, plan, inputs.tokens, _positions_of(session, inputs))
    if found is None:
        return None
    logits, hidden = found
    cache.processed = cache.get_seq_length()
    if logits is None:
        logits = hidden.new_empty(len(hidden), 0, len(session.base.get_output_embeddings().weight))
    elif logits_to_keep:
        logits = logits[:, -logits_to_keep:]
    return CausalLMOutputWithPast(logits=logits, past_key_values=cache), hidden


def _is_plain_in_compiled_step(session: DecodingSession, inputs: ForwardInputs) -> bool:
    """Whether a forward on the CPU has to return logits only, and hides nothing but padding."""
    if inputs.tokens.device.type != "cpu" or not isinstance(session.base, PreTrainedModel):
        return False
    return not inputs.asks_for_more and not inputs.with_prompt and _hides_only_padding(inputs, session.cache)


def _positions_of(session: DecodingSession, inputs: ForwardInputs) -> torch.Tensor:
    """Positions of the tokens, `(rows, tokens)`."""
    given = inputs.along.get("position_ids")
    positions = default_positions(session.base, inputs, session.cache) if given is None else given.value
    if positions is None:
        begin = session.cache.get_seq_length()
        positions = torch.arange(begin, begin + inputs.length)[None]
    return positions.expand(len(inputs.tokens), inputs.length)


def _hides_only_padding(inputs: ForwardInputs, cache: SOLCache) -> bool:
    """Whether the attention mask hides the padding of the cache and nothing else."""
    if inputs.attention_mask is None:
        return cache.padding is None
    mask = inputs.attention_mask[:, : cache.get_seq_length() + inputs.length]
    hidden = 0 if cache.padding is None else int(cache.padding.sum())
    return mask.numel() - int(mask.count_nonzero()) == hidden


# =====================================================================================================================
# decoding/base_forward.py
#
# Forwards of the base over a cache.
# =====================================================================================================================


def base_forward(
    base: PreTrainedModel, inputs: ForwardInputs, cache: SOLCache, logits_to_keep: int = 1
) -> CausalLMOutputWithPast:
    """Run the base on tokens that follow those in the cache."""
    begin, length = cache.get_seq_length(), inputs.length
    arguments = inputs.arguments()
    if inputs.attention_mask is not None:
        arguments["attention_mask"] = inputs.attention_mask[:, : begin + length]
    accepted = accepted_arguments(base)
    if "position_ids" in accepted and "position_ids" not in arguments:
        positions = default_positions(base, inputs, cache)
        if positions is not None:
            arguments["position_ids"] = positions
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = logits_to_keep
    arguments |= dict(past_key_values=cache, use_cache=True, return_dict=True)
    try:
        output = base(**arguments)
    except ValueError as error:
        if not begin or not inputs.with_prompt:
            raise
        raise ValueError(
            f"{str(error).rstrip('.')}. The cache holds {begin} tokens with their images and sounds: pass only those "
            "of the new tokens."
        ) from error
    if cache.get_seq_length() != begin + length:
        raise UnsupportedAxisError(
            f"{type(base).__name__} cannot run over the cache of a call under a budget: after {begin + length} tokens "
            f"it holds the keys of {cache.get_seq_length()}. Leave the budget out."
        )
    cache.processed = begin + length
    note_shift(base, inputs, cache)
    if logits_to_keep and output.logits.shape[1] > logits_to_keep:
        output.logits = output.logits[:, -logits_to_keep:]
    return output


def dense_forward(
    session: DecodingSession, inputs: ForwardInputs, logits_to_keep: int = 1, refresh: RefreshPlan | None = None
) -> CausalLMOutputWithPast:
    """Process tokens densely, as a KV refresh if `refresh` is given, and begin a new episode after them."""
    output, hidden = processed_densely(session, inputs, logits_to_keep, refresh)
    session.cache.end_episode(hidden[:, -1], inputs.tokens[:, -1:], logits_digest(session, output))
    return output


def processed_densely(
    session: DecodingSession, inputs: ForwardInputs, logits_to_keep: int, refresh: RefreshPlan | None
) -> tuple[CausalLMOutputWithPast, torch.Tensor]:
    """What the base returns for tokens, and the LM head's inputs `(rows, tokens, hidden_size)`."""
    compiled = None if refresh is None else compiled_refresh(session, inputs, refresh, logits_to_keep)
    if compiled is not None:
        return compiled
    with active_forward(refresh=refresh) as context:
        output = base_forward(session.base, inputs, session.cache, logits_to_keep)
    return output, context.head_inputs()


def logits_digest(session: DecodingSession, output: CausalLMOutputWithPast) -> torch.Tensor | None:
    """What the controller keeps of the logits of the last token, `None` if it does not use them."""
    if not session.needs_logits:
        return None
    return session.require_controls().controller.digest_logits(output.logits[:, -1])


def embed(base: PreTrainedModel, token: torch.Tensor) -> torch.Tensor:
    """Input embeddings of ids; embeddings are returned unchanged."""
    return token if token.is_floating_point() else base.get_input_embeddings()(token)


# =====================================================================================================================
# costs/cache_reads.py
#
# What attention reads of the cache for one token, and computes.
#
# The shapes of keys and values differ between bases, and between the layers of one base: in number of heads and of
# channels, in sliding windows, in layers that have a state of a fixed size, or share the keys of another layer. They are
# therefore read from a cache into which the base has put one token.
# =====================================================================================================================


FLOAT32 = 4


@dataclass(frozen=True)
class CachedLayer:
    """The shapes of one layer of a cache."""

    kv_heads: int
    group: int
    key_dim: int
    value_dim: int
    itemsize: int
    own_itemsize: int
    window: int | None
    is_sparse: bool
    state_bytes: int = 0


@torch.no_grad()
def cached_layers(model: CountedModel) -> list[CachedLayer]:
    """The layers of a cache of this model, after one token."""
    cache, base = model.new_cache(), model.base
    token = torch.ones(1, 1, dtype=torch.long, device=compute_device(base))
    cache.set_up_rows(1, token.device)
    with evaluating(base):
        base_forward(base, ForwardInputs(token), cache)
    config, found = base.config.get_text_config(decoder=True), []
    for index, layer in enumerate(cache.layers):
        if not isinstance(layer, PagedLayer | WindowLayer) or layer.keys is None:
            state = sum(x.nbytes for x in vars(layer).values() if isinstance(x, torch.Tensor))
            found.append(CachedLayer(0, 0, 0, 0, 0, 0, None, False, state))
            continue
        _, kv_heads, _, key_dim = layer.keys.shape
        heads = _heads(config, index)
        window = layer.sliding_window if isinstance(layer, WindowLayer) else None
        sizes = key_dim, layer.values.shape[-1], layer.stored_dtype.itemsize, layer.dtype.itemsize
        found.append(CachedLayer(kv_heads, max(1, heads // kv_heads), *sizes, window, index in cache.sparse_layers))
    return found


def _heads(config, index: int) -> int:
    """Query heads of a layer; in some families the layers have configs of their own."""
    own = getattr(config, "per_layer_config", None)
    return (own[index] if own else config).num_attention_heads


def attention_costs(
    layers: Sequence[CachedLayer], rule: SelectionRule, token_keep: float, keys: int, of_base: bool = False
) -> tuple[float, float]:
    """Bytes that the attention of all layers reads from the cache for one token, and its operations."""
    read, computed = 0.0, 0.0
    token_keep = 1.0 if keys <= rule.short_text_tokens else token_keep
    for layer in layers:
        read += layer.state_bytes
        if not layer.kv_heads:
            continue
        seen = keys if layer.window is None else min(keys, layer.window)
        cost = CRITERIA[rule.criterion].cost(rule, token_keep if layer.is_sparse else 1.0, seen, layer.group)
        pair, itemsize = layer.key_dim + layer.value_dim, layer.own_itemsize if of_base else layer.itemsize
        index = cost.index_bits * layer.key_dim / 8 + cost.index_values * itemsize
        index += cost.index_means * layer.key_dim * FLOAT32
        read += layer.kv_heads * (cost.moved * pair * itemsize + index)
        heads = layer.kv_heads * layer.group
        computed += 2 * heads * (cost.attended * pair + cost.scored * layer.key_dim)
    return read, computed


# =====================================================================================================================
# execution/linear/planed_layers.py
#
# The linear layers whose weights are read in fewer bits under `bits_backend="nested"`, and their checks.
#
# They are all linear layers of the text decoder, and the LM head. Those of MLPs are read in the bits of the step, the
# others in 6 at least: they are more sensitive than MLPs ([measured](docs/performance.md)).
# =====================================================================================================================


LEAST_OUTSIDE_MLPS = 6


@dataclass(frozen=True)
class PlanedLayer:
    """A linear layer of a base."""

    name: str
    module: nn.Module
    part: StepLinear | None


def planed_layers(base: PreTrainedModel, mlps: Sequence[nn.Module]) -> tuple[PlanedLayer, ...]:
    """The linear layers of the text decoder and the LM head of a base, each once."""
    names = {id(module): name for name, module in base.named_modules()}
    within = {id(module) for mlp in mlps for module in mlp.modules()}
    found = {}
    for module in (*text_modules(base), *lm_head_of(base).modules()):
        if _is_linear(module):
            part = StepLinear.of(module) if type(module) in PRODUCTS else None
            if part is not None:
                part.least_bits = min(WIDTHS) if id(module) in within else LEAST_OUTSIDE_MLPS
            found[id(module)] = PlanedLayer(names.get(id(module), type(module).__name__), module, part)
    return tuple(found.values())


def _is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies with a weight of its own, as far as one can tell."""
    if isinstance(module, PRODUCTS):
        return True
    if isinstance(module, nn.Embedding) or next(module.children(), None) is not None:
        return False
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    return bool(own) and ("linear" in type(module).__name__.lower() or any(_is_quantized(x) for x in own))


def _is_quantized(x: torch.Tensor) -> bool:
    """Whether a tensor is a matrix of integers, as quantized weights are."""
    return x.dim() >= 2 and min(x.shape) > 1 and not x.is_floating_point() and x.dtype != torch.bool


def make_planes(layers: Sequence[PlanedLayer], most_bytes: int | None = None) -> None:
    """Make the planes of all layers that have none, or whose weights have changed."""
    check_layers(layers)
    needed = sum(plane_bytes(*matrix_of(layer.module).shape) for layer in layers)
    if most_bytes is not None and needed > most_bytes:
        raise ValueError(
            f"The planes for `bits_backend='nested'` would take {needed:,} bytes, but `max_plane_bytes` is "
            f"{most_bytes:,}: raise it, or pass `bits_backend='fake'`."
        )
    for layer in layers:
        if layer.part is not None:
            try:
                layer.part.planes()
            except ValueError as error:
                raise ValueError(f"`{layer.name}`: {error}") from error


def check_layers(layers: Sequence[PlanedLayer]) -> None:
    """Raise an UnsupportedAxisError for the first layer that can have no planes."""
    for layer in layers:
        _check(layer)


def _check(layer: PlanedLayer) -> None:
    reason = _reason_against(layer.module)
    if reason is not None:
        raise UnsupportedAxisError(
            f"`bits_backend='nested'` reads plain linear layers, but `{layer.name}` {reason}: pass "
            "`bits_backend='fake'`, or load the base with plain weights on one device."
        )


def _reason_against(module: nn.Module) -> str | None:
    if type(module) not in PRODUCTS:
        return f"is of the class {type(module).__name__}"
    forward, weight = vars(module).get("forward"), getattr(module, "weight", None)  # packed ones have another name
    if forward is not None and not isinstance(forward, StepPart):
        return "has a forward that another library has replaced"
    if not isinstance(weight, torch.Tensor) or type(weight) not in (nn.Parameter, torch.Tensor):
        return f"has a weight of the class {type(weight).__name__}"
    if weight.device.type == "meta":
        return "has a weight without values, on the meta device"
    if not weight.is_floating_point():
        return f"has a weight of {weight.dtype}"
    return None


# =====================================================================================================================
# costs/refresh_bytes.py
#
# Bytes that a KV refresh reads: those of a dense step without the LM head, or all bits of planes.
# =====================================================================================================================


def refresh_bytes(model: CountedModel, dense: StepCounts, in_planes: bool = False) -> float:
    """Bytes of one refresh, whose tokens are processed together."""
    head = lm_head_of(model.base)
    total = dense.bytes - read_bytes(head.modules())
    if not in_planes:
        return total
    of_head = {id(module) for module in head.modules()}
    for layer in planed_layers(model.base, find_mlps(model.base)):
        if layer.part is not None and id(layer.module) not in of_head:
            weight = matrix_of(layer.module)
            total += plane_bytes(*weight.shape) - weight.nbytes
    return total


# =====================================================================================================================
# costs/compute_costs.py
#
# Bytes read and floating-point operations of a decode step, estimated from the base's own sizes.
#
# The net keep rate gives all axes the same weight. The number of bytes that a step reads depends on the base: on the
# share of its MLPs and on the length of the context. It is counted here for a single sequence (all weights are read for
# one token):
#
#     weights   those of the text decoder and the LM head once, minus the savings of the axes
#     KV cache  the keys and values that the step reads, and the data that the selection needs: bounds of pages, or the
#               codes of all keys with their scales
#     refresh   a forward over an episode's tokens without the LM head, once per episode, if any of its steps lost
#               something by which it is restored; it reads planes where steps did
#     policy    the weights that its step reads, if the policy chooses the actions
#
# The savings of an axis are in its entry of [`AXIS_COSTS`], see the folder `axes`. These are counts for an
# implementation that skips everything that can be skipped; they are not times. Fake quantization saves nothing; with
# `bits_backend="nested"` the planes and scales that are read count. In *nominal* counts MLP weights are read with
# bits / 16 of their size. Query heads that share a key-value head may select different keys (`selection="head"`). The
# counts assume that they do: if `n` heads share one, up to `n` times `token_keep` of the keys is read. Of a mixture of
# experts those that a token runs through are counted. Weights that another library has quantized, and offloaded ones,
# are read as a whole, as they are stored. Activations and the entropy that a controller computes are not counted.
# =====================================================================================================================


def keys_read(rule: SelectionRule, token_keep: float, keys: int) -> int:
    """Number of keys that a query head reads of `keys` keys, its own included."""
    return CRITERIA[rule.criterion].keys_read(rule, token_keep, keys)


@dataclass(frozen=True)
class ComputeCosts:
    """Estimated costs of the steps of an episode."""

    bytes: torch.Tensor
    flops: torch.Tensor
    nominal_bytes: torch.Tensor
    dense_bytes: float
    dense_flops: float
    refresh_bytes: float
    refresh_bytes_in_planes: float
    refresh_flops: float
    policy_bytes: float
    policy_flops: float
    refreshed: torch.Tensor
    reads_planes: torch.Tensor
    gains: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        model: CountedModel,
        context_length: int,
        bits_backend: str = "fake",
        kv_refresh: bool | str = True,
    ) -> "ComputeCosts":
        """Costs in an episode that follows `context_length` tokens."""
        weights, steps = Weights.of(model), model.config.episode_length
        keys = context_length + (steps + 1) // 2
        cached, rule = cached_layers(model), model.config.selection_rule
        dense = dense_counts(model, weights, attention_costs(cached, rule, 1.0, keys, of_base=True))
        again = replace(dense, kv_bytes=attention_costs(cached, rule, 1.0, keys)[0])  # over keys as they are stored
        counts = step_counts(model, dense, keys, bits_backend)
        policy = model.policy
        policy_parts = [part for part in policy.modules() if part is not policy.value_head]  # for training only
        policy_numbers = sum(own_numbers(part) for part in policy_parts)
        refreshed, reads_planes = refreshed_actions(model, keys, bits_backend)
        refreshed, gains = refreshed & bool(kv_refresh), None
        if kv_refresh == "auto":
            space = space_under(bits_backend, model.action_space)
            gains = expected_gain(space.values[:, None], space, model.config.selection_rule, bits_backend)
        return cls(
            bytes=torch.tensor([step.bytes for step in counts], dtype=torch.float64),
            flops=torch.tensor([step.flops for step in counts], dtype=torch.float64),
            nominal_bytes=torch.tensor([step.nominal_bytes for step in counts], dtype=torch.float64),
            dense_bytes=dense.bytes,
            dense_flops=dense.flops,
            refresh_bytes=refresh_bytes(model, again) / steps,
            refresh_bytes_in_planes=refresh_bytes(model, again, in_planes=bits_backend == "nested") / steps,
            refresh_flops=dense.flops - 2 * weights.head,
            policy_bytes=read_bytes(policy_parts),
            policy_flops=2 * policy_numbers,
            refreshed=refreshed,
            reads_planes=reads_planes,
            gains=gains,
        )

    def per_token(self, actions: torch.Tensor, with_policy: bool) -> dict[str, float]:
        """Means over episodes, KV refresh and policy included."""
        is_refreshed, in_planes = self.refreshed[actions].any(dim=1), self.reads_planes[actions].any(dim=1)
        if self.gains is not None:
            is_refreshed = is_refreshed & (self.gains[actions].mean(dim=1) >= LEAST_GAIN_in_refresh_rule - ROUNDING_in_refresh_rule)
        per_episode = torch.where(in_planes, self.refresh_bytes_in_planes, self.refresh_bytes) * is_refreshed
        refreshed = float(is_refreshed.double().mean())
        extra_bytes = float(per_episode.double().mean()) + with_policy * self.policy_bytes
        extra_flops = refreshed * self.refresh_flops + with_policy * self.policy_flops
        return {
            "refresh_overhead": refreshed,
            "bytes_per_token": float(self.bytes[actions].mean()) + extra_bytes,
            "flops_per_token": float(self.flops[actions].mean()) + extra_flops,
            "nominal_bytes_per_token": float(self.nominal_bytes[actions].mean()) + extra_bytes,
            "dense_bytes_per_token": self.dense_bytes,
            "dense_flops_per_token": self.dense_flops,
        }


def refreshed_actions(model: CountedModel, keys: int, bits_backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The actions `(n_actions,)` for which an episode is refreshed, and those of which a step reads planes."""
    space, rule, is_nested = model.action_space, model.config.selection_rule, bits_backend == "nested"
    levels = space.by_axis(space_under(bits_backend, space).values)
    restored = {axis.name: axis.dense for axis in space.axes}
    if is_nested:
        restored[BITS.name] = CODE_BITS
    lost = {name: levels[name] < most for name, most in restored.items()}
    reads_all, keep = CRITERIA[rule.criterion].reads_all, TOKEN_KEEP.name
    lost[keep] &= ~torch.tensor([reads_all(rule, level, keys) for level in levels[keep].tolist()])
    return torch.stack(list(lost.values())).any(dim=0), (levels[BITS.name] <= CODE_BITS) & is_nested


def step_counts(model: CountedModel, dense: StepCounts, keys: int, bits_backend: str = "fake") -> list[StepCounts]:
    """Counts of a step that sees `keys` keys, for every action of the model's action space."""
    space = model.action_space
    changes = []
    for axis in space.axes:
        entry = AXIS_COSTS[axis.name](model, keys, bits_backend) if axis.name in AXIS_COSTS else None
        changes.append({} if entry is None else {level: entry.at(level) for level in space.levels[axis.name]})
    counts = []
    for action in space.table:
        step = dense
        for change, level in zip(changes, action, strict=True):
            step = change[level](step) if level in change else step
        counts.append(step)
    return counts


# =====================================================================================================================
# costs/row_shares.py
#
# The share of the bytes of dense steps that the rows of a call have read.
# =====================================================================================================================


class CountedCall(Protocol):
    """What is counted of the options of a call: a [`DecodeOptions`]."""

    @property
    def bits_backend(self) -> str:
        """See [`StepPlan`]."""

    @property
    def kv_refresh(self) -> bool | str:
        """Which episodes are refreshed."""

    @property
    def controller(self) -> Controller | None:
        """`None` for the policy, whose own bytes count."""


@dataclass(frozen=True)
class RowShares:
    """Counts the bytes of rows over those of as many dense steps at their contexts, as [`ComputeCosts`] does."""

    model: CountedModel
    bits_backend: str
    kv_refresh: bool | str
    with_policy: bool
    apart: int = 64
    known: dict[int, ComputeCosts] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, model: CountedModel, call: CountedCall, apart: int = 64) -> "RowShares":
        """For the rows of a call."""
        return cls(model, call.bits_backend, call.kv_refresh, call.controller is None, apart)

    def __call__(self, actions: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        """The share of every row."""
        rows = zip(actions.cpu(), contexts.tolist(), strict=True)
        return torch.tensor([self._of_row(row[row >= 0], context) for row, context in rows])

    def _of_row(self, taken: torch.Tensor, context: int) -> float:
        length = self.model.config.episode_length
        if len(taken) == 0:
            return 1.0
        middle = max(1, context) + max(0, len(taken) - length) // 2
        costs, read = self._costs(-(-middle // self.apart) * self.apart), 0.0
        for episode in taken.split(length):
            read += len(episode) * costs.per_token(episode[None], self.with_policy)["bytes_per_token"]
        return read / (len(taken) * costs.dense_bytes)

    def _costs(self, context: int) -> ComputeCosts:
        if context not in self.known:
            self.known[context] = ComputeCosts.of(self.model, context, self.bits_backend, self.kv_refresh)
        return self.known[context]


# =====================================================================================================================
# decoding/aligned_rows.py
#
# Rows of any length, padded so that their decode steps begin in the same column.
# =====================================================================================================================


@dataclass(frozen=True)
class AlignedRows:
    """Rows for scoring, padded so that their contexts end in the same column."""

    tokens: torch.Tensor
    padding: torch.Tensor
    context: int
    steps: torch.Tensor
    further: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step_mask(self) -> torch.Tensor:
        """A mask of the steps that each row has, `(rows, steps)`."""
        width = self.tokens.shape[1] - self.context - 1
        return torch.arange(width, device=self.tokens.device) < self.steps[:, None]

    @property
    def attention_mask(self) -> torch.Tensor | None:
        """1 for real tokens `(rows, columns)`, `None` if no row is padded on the left."""
        if not bool(self.padding.any()):
            return None
        return (torch.arange(self.tokens.shape[1], device=self.tokens.device) >= self.padding[:, None]).long()

    def merge(self, end: int, among: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Group rows that are the same before column `end`, and return the first row of every group."""
        begins = torch.cat([self.padding[:, None], self.tokens[:, :end]], dim=1)[among]
        _, group = begins.unique(dim=0, return_inverse=True)
        first = torch.full_like(among, len(self.tokens)).scatter_reduce(0, group, among, "amin")[group]
        leaders = first.unique()
        return leaders, torch.searchsorted(leaders, first)


def align_rows(
    input_ids: torch.Tensor, attention_mask: torch.Tensor | None, context_length: int | Sequence[int] | torch.Tensor
) -> AlignedRows:
    """Pad rows so that their contexts end in the same column."""
    if input_ids.dim() != 2 or input_ids.shape[1] == 0:
        raise ValueError(f"`input_ids` must have shape (rows, length), got {tuple(input_ids.shape)}.")
    rows, device = len(input_ids), input_ids.device
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if mask.shape != input_ids.shape:
        raise ValueError(f"`attention_mask` has shape {tuple(mask.shape)}, `input_ids` {tuple(input_ids.shape)}.")
    if bool((mask.bool().int().diff(dim=1, prepend=mask.new_zeros(rows, 1).int()) > 0).sum(dim=1).max() > 1):
        raise ValueError("`attention_mask` has a gap: padding may stand on either side of a row, not within.")
    contexts = torch.as_tensor(context_length).expand(rows).tolist() if _is_scalar(context_length) else None
    if contexts is None:
        contexts = [int(value) for value in context_length]  # type: ignore[union-attr]
    if len(contexts) != rows:
        raise ValueError(f"`context_length` has {len(contexts)} entries, but the input has {rows} rows.")
    real = [row[flag.bool()] for row, flag in zip(input_ids, mask, strict=True)]
    for index, (tokens, context) in enumerate(zip(real, contexts, strict=True)):
        if not 0 <= context <= len(tokens) - 2:
            raise ValueError(
                f"Row {index} has {len(tokens)} tokens, so `context_length` must lie in 0..{len(tokens) - 2} (a token "
                f"to process and one to score), got {context}."
            )
    widest, longest = max(contexts), max(len(t) - c for t, c in zip(real, contexts, strict=True))
    aligned = input_ids.new_zeros(rows, widest + longest)
    for index, (tokens, context) in enumerate(zip(real, contexts, strict=True)):
        aligned[index, widest - context : widest - context + len(tokens)] = tokens
    padding = torch.tensor([widest - context for context in contexts], device=device)
    steps = torch.tensor([len(t) - c - 1 for t, c in zip(real, contexts, strict=True)], device=device)
    return AlignedRows(aligned, padding, widest, steps)


def _is_scalar(value: int | Sequence[int] | torch.Tensor) -> bool:
    return isinstance(value, int) or (isinstance(value, torch.Tensor) and value.dim() == 0)


# =====================================================================================================================
# execution/compiled_modules.py
#
# Finds modules that run by `torch.compile`, whose graphs do not have what a decode step changes.
# =====================================================================================================================


def check_not_compiled(model: nn.Module) -> None:
    """Raise a ValueError if a module of `model` was compiled by `module.compile()` or `torch.compile(module.forward)`."""
    for module in model.modules():
        if _is_compiled(module):
            name = next(name for name, other in model.named_modules() if other is module)
            which = f"`{name}` of {type(model).__name__}" if name else type(model).__name__
            raise ValueError(
                f"{which} was compiled by `torch.compile`, which cannot run decode steps under a budget: every step "
                "computes other parts. Load the model anew and leave the compilation out. `backend='fast'` runs "
                "compiled kernels of this package instead."
            )


def _is_compiled(module: nn.Module) -> bool:
    """Whether a call of the module runs what `torch.compile` made."""
    by_method = getattr(module, "_compiled_call_impl", None) is not None
    return by_method or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")


# =====================================================================================================================
# decoding/generate_checks.py
#
# Checks of the arguments of `generate` under a budget, before any compute.
# =====================================================================================================================


BEAM_MODES = (GenerationMode.BEAM_SEARCH, GenerationMode.BEAM_SAMPLE)


STEPWISE_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, *BEAM_MODES)


def find_prompt(inputs: torch.Tensor | None, arguments: Mapping[str, Any]) -> torch.Tensor | None:
    """The prompt of a `generate` call: ids `(rows, length)`, or embeddings `(rows, length, embedding_size)`."""
    candidates = (inputs, arguments.get("input_ids"), arguments.get("inputs_embeds"))
    return next((prompt for prompt in candidates if prompt is not None), None)


def contexts_of_prompt(prompt: torch.Tensor | None, mask: torch.Tensor | None) -> torch.Tensor:
    """Tokens before the first decode step of every row, `(rows,)`, padding not counted; the last of a prompt is one."""
    if mask is not None and mask.dim() == 2:
        return mask.long().sum(dim=1) - 1
    rows, length = (1, 1) if prompt is None or prompt.dim() < 2 else prompt.shape[:2]  # others are refused later
    return torch.full((rows,), length - 1)


def begin_of_text(
    arguments: Mapping[str, Any],
    generation_config: GenerationConfig | None,
    stored: GenerationConfig,
    device: torch.device,
) -> torch.Tensor:
    """The prompt of a call without one: the token that begins a text, as in transformers, ids `(1, 1)`."""
    sources = [arguments, *(vars(config) for config in (generation_config, stored) if config is not None)]
    token = next((source["bos_token_id"] for source in sources if source.get("bos_token_id") is not None), None)
    if token is None:
        raise ValueError("There is no prompt, and no `bos_token_id` to begin a text with: pass `input_ids`.")
    return torch.full((1, 1), int(token), dtype=torch.long, device=device)


def add_mask_of_assistant(
    prompt: torch.Tensor | None, arguments: dict[str, Any], generation_config: GenerationConfig | None
) -> None:
    """Add the attention mask that transformers' assisted generation leaves out when it calls its assistant."""
    is_assistant = getattr(generation_config, "is_assistant", False)
    if is_assistant and prompt is not None and prompt.dim() == 2 and arguments.get("attention_mask") is None:
        arguments["attention_mask"] = torch.ones_like(prompt)


def leave_out_budget(config: GenerationConfig) -> None:
    """Make calls with a generation config dense, in place: those of a generation that runs only some of the layers."""
    if any(getattr(config, name, None) is not None for name in ("compute", *AXES_in_axes)):
        for axis in AXES_in_axes:
            setattr(config, axis, None)
        config.compute = 1.0


def check_generate_arguments(
    prompt: torch.Tensor | None,
    arguments: Mapping[str, Any],
    device: torch.device,
    vocabulary: int,
    origin: str = "",
) -> None:
    """Raise a ValueError for arguments that cannot be used under a budget."""
    if prompt is None or prompt.shape[1:2].numel() == 0:
        raise ValueError("The prompt is empty: at least one token is needed.")
    check_tokens(prompt, vocabulary)
    embeds = arguments.get("inputs_embeds")
    if embeds is not None and prompt is not embeds and prompt.shape[1] != embeds.shape[1]:
        raise ValueError(
            f"`input_ids` has {prompt.shape[1]} tokens, `inputs_embeds` {embeds.shape[1]}: both must cover the whole "
            "prompt. Or pass `inputs_embeds` only; the output then has the new tokens only."
        )
    if prompt.device.type not in ("cpu", device.type):
        raise ValueError(f"The prompt is on {prompt.device}, the model on {device}.")
    if arguments.get("assistant_model") is not None:
        refuse(GenerationMode.ASSISTED_GENERATION, origin)
    cache = arguments.get("past_key_values")
    if cache is not None and not isinstance(cache, SOLCache):
        raise ValueError(
            f"A budget needs a SOLCache, got {type(cache).__name__}: pass `model.new_cache()` or the "
            f"`past_key_values` of an earlier output.{origin}"
        )


def check_tokens(tokens: torch.Tensor, vocabulary: int) -> None:
    """Raise a ValueError if `tokens` are neither ids `(rows, length)` nor embeddings `(rows, length, size)`."""
    shape = tuple(tokens.shape)
    if tokens.dim() != (3 if tokens.is_floating_point() else 2):
        raise ValueError(
            f"A prompt has whole-number ids of shape (rows, length), or embeddings of shape (rows, length, size), got "
            f"{tokens.dtype} of shape {shape}."
        )
    if len(tokens) == 0:
        raise ValueError(f"The prompt has no rows: its shape is {shape}.")
    if tokens.dim() == 2 and tokens.device.type == "cpu" and tokens.numel():
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= vocabulary:
            wrong = least if least < 0 else most
            raise ValueError(f"The prompt has the id {wrong}, but the base's ids are 0..{vocabulary - 1}.")


def check_continuation(prompt: torch.Tensor, mask: torch.Tensor | None, cache: SOLCache) -> None:
    """Raise a ValueError if a prompt does not continue the text in a cache."""
    length, past = prompt.shape[1], cache.get_seq_length()
    if mask is not None and (mask.dim() != 2 or mask.shape[1] not in (length, past + length)):
        raise ValueError(
            f"`attention_mask` must have shape (rows, columns) and cover the prompt ({length} tokens) and what the "
            f"cache holds ({past}), but has shape {tuple(mask.shape)}."
        )
    is_whole = prompt.is_floating_point() or mask is None or mask.shape[1] == length
    if not is_whole or past == 0:
        return
    if length <= past:
        raise ValueError(
            f"The cache holds {past} tokens, the prompt has {length}: pass the whole text, those tokens included, or "
            f"the new tokens only with an `attention_mask` of {past + length} columns. `cache.crop` drops tokens."
        )
    steps = [] if prompt.is_floating_point() or cache.rows % len(prompt) else cache.episode.steps
    if steps and not any(step.token.is_floating_point() for step in steps):
        known = torch.cat([step.token for step in steps], dim=1)
        found = prompt[:, past - len(steps) : past].to(known)
        found = found.repeat_interleave(cache.rows // len(prompt), dim=0)  # as the loop repeats rows for beams
        if not torch.equal(known, found):
            if len(prompt) != cache.rows:
                raise ValueError(
                    f"The cache holds {cache.rows} rows, but the input has {len(prompt)} of another text."
                )
            row = int((known != found).any(dim=1).nonzero()[0, 0])
            raise ValueError(
                f"The prompt differs from the text in the cache within its last {len(steps)} tokens, in row {row}: "
                f"{found[row].tolist()} in place of {known[row].tolist()}. Pass the `sequences` of the earlier output "
                "and new tokens after them, or a new cache. After beam search the rows of a cache are beams."
            )


def named_arguments(further: Sequence[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Positional arguments of transformers' generate after the second, by their names."""
    names = [name for name in inspect.signature(GenerationMixin.generate).parameters if name != "kwargs"][3:]
    if len(further) > len(names):
        raise TypeError(f"`generate` takes at most {len(names) + 2} positional arguments, got {len(further) + 2}.")
    named = dict(zip(names, further, strict=False))
    twice = sorted(named.keys() & arguments.keys())
    if twice:
        raise TypeError(f"`generate` got {', '.join(twice)} twice, by position and by name.")
    return named


def refuse_continuous_batching(arguments: Mapping[str, Any], generation_config: GenerationConfig | None) -> None:
    """Refuse the paged cache of continuous batching, with or without a budget."""
    stored = getattr(generation_config, "cache_implementation", None)
    if "paged" in (arguments.get("cache_implementation"), stored):
        refuse_batching()


def refuse_batching() -> NoReturn:
    """Raise the ValueError for continuous batching."""
    raise ValueError(
        "Continuous batching (`generate_batch`, `cache_implementation='paged'`, transformers' server with it) refuses "
        "foreign models and attention: call the base's own `model.base.generate_batch`, which runs without a budget, "
        "or `model.generate`."
    )


def suit_to_session(config: GenerationConfig, model_arguments: dict[str, Any]) -> None:
    """Give a prepared generation config what the running call uses instead of stored values, and check its mode."""
    cache = model_arguments.get("past_key_values")
    session = DecodingSession.current()
    if session is not None and session.cache is cache:
        for name, value in session.replaced.items():
            setattr(config, name, value)
            model_arguments.pop(name, None)
    refuse_mode(cache, config.get_generation_mode())


def refuse_mode(cache: Any, mode: GenerationMode) -> None:
    """Raise a ValueError if a call over a cache, as it runs under its budget, cannot run in a generation mode."""
    session = DecodingSession.current()
    if session is None or session.cache is not cache or session.controls is None:
        return
    if session.look_ahead is not None and mode in BEAM_MODES:
        raise ValueError(
            "`lossless` cannot be used with beams, which move keys and values to another place at every step: leave "
            "it out, or pass `num_beams=1`."
        )
    if session.controls.cuda_graphs and mode in BEAM_MODES:
        raise ValueError(
            "`cuda_graphs` cannot be used with beams, which move keys and values to another place at every step: "
            "leave it out."
        )
    if mode not in STEPWISE_MODES:
        refuse(mode, session.controls.origin)


def refuse(mode: GenerationMode, origin: str = "") -> NoReturn:
    """Raise the ValueError for a generation mode that cannot run under a budget, with [`DecodeControls.origin`]."""
    raise ValueError(
        f"Generation mode `{mode.value}` cannot run under a budget, which chooses the compute of every token on its "
        "own: only greedy search, sampling and beam search can. Leave out the options of that mode, or call "
        f"`model.base.generate`.{origin}"
    )


# =====================================================================================================================
# execution/attention/masks.py
#
# Checks whether attention over selected keys can compute the attention of a module.
# =====================================================================================================================


UNSUPPORTED_ARGUMENTS = ("position_bias", "sinks")
SCORE_CHANGES = ("softcap", "s_aux")
"""Arguments that attention over selected keys can carry out, see [`ScoreChanges`]."""
HIDDEN = -1e4
"""A key is hidden if the mask adds this value or less to its score."""


def is_plain_in_masks(arguments: dict[str, Any]) -> bool:
    """Whether a module's attention is a plain softmax of scaled products."""
    return all(arguments.get(name) is None for name in (*UNSUPPORTED_ARGUMENTS, *SCORE_CHANGES))


PLAIN, HIDES, ADDS = "plain", "hides", "adds"
"""What a mask does: hide padding only, hide further keys too, change the scores of visible keys."""


def kind_of_mask(context: ForwardContext, mask: object, padding: torch.Tensor | None = None, dropped: int = 0) -> str:
    """What an attention mask does in a step or a KV refresh: [`PLAIN`], [`HIDES`] or [`ADDS`]."""
    if not isinstance(mask, torch.Tensor) or mask.dim() < 4:
        return PLAIN
    if mask.device.type != "cpu":
        if mask.is_floating_point() and mask.shape[1] > 1:
            return ADDS
        storage = mask.untyped_storage().data_ptr()
        return PLAIN if any(storage == other.untyped_storage().data_ptr() for other in context.masks) else HIDES
    known = next((kind for seen, kind in context.mask_kinds if seen is mask), None)
    if known is None:
        known = _kind_by_values(mask, None if padding is None else (padding.cpu() - dropped).clamp(min=0))
        context.mask_kinds.append((mask, known))
    return known


def _kind_by_values(mask: torch.Tensor, first_key: torch.Tensor | None) -> str:
    visible = mask
    if mask.is_floating_point():
        visible = mask > HIDDEN
        if not bool((mask.eq(0) | ~visible).all()):
            return ADDS
    elif mask.dtype != torch.bool:
        visible = mask != 0
    queries, slots = mask.shape[-2:]
    expected = torch.arange(slots - queries + 1, slots + 1)
    if first_key is not None:
        expected = (expected - first_key.view(-1, 1, 1)).clamp(min=0)
    return PLAIN if bool((visible.sum(dim=-1) == expected).all()) else HIDES


def refuse_unsupported(module: torch.nn.Module, arguments: dict[str, Any], kind: str, implementation: str) -> None:
    """Raise [`UnsupportedAxisError`] if a module's attention needs something that ours does not compute."""
    start = f"The axis `token_keep` cannot be controlled on {type(module).__name__}: its attention"
    if kind == ADDS:
        raise UnsupportedAxisError(
            f"{start} mask adds to the scores of visible keys, which attention over selected keys does not support."
        )
    if kind == HIDES:
        raise UnsupportedAxisError(
            f"{start} mask hides keys that are not padding: the base selects the keys of a token itself, and cannot "
            "select among them again."
        )
    own = () if implementation == "eager" else SCORE_CHANGES
    for name in (*UNSUPPORTED_ARGUMENTS, *own):
        if arguments.get(name) is not None:
            raise UnsupportedAxisError(
                f"{start} uses `{name}`, which attention over selected keys does not support with {implementation!r}."
            )


# =====================================================================================================================
# decoding/prompt_images.py
#
# Images and sounds of a prompt: the tokens that stand for them, and prompts that cannot be cut before the last token.
#
# A budget usually begins with the last token of a prompt. It begins one token later where that token stands for an
# image, which the base computes with the others of the image, and where tokens before it see it.
# =====================================================================================================================


PLACEHOLDERS = ("image_token_i", "video_token_i", "audio_token_i")
"""Beginnings of the fields of a config with the ids of tokens in whose place images and sounds are put."""
SIZES = ("image_grid", "video_grid", "image_sizes", "video_second")
"""Beginnings of arguments that only describe images; a base may need those of all turns to count positions."""
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


def is_image_input(name: str) -> bool:
    """Whether an argument of this name holds images or sounds, or describes them."""
    return name in PROMPT_ONLY or name.startswith(PROMPT_ONLY_BEGINNINGS)


def image_inputs(arguments: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that hold images or sounds."""
    return [name for name, value in arguments.items() if is_image_input(name) and value is not None]


def image_tokens(base: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """A mask of the ids that stand for images and sounds, of the shape of `ids`; empty if the base has none."""
    fields = {
        name: getattr(base.config, name, None) for name in base.config.to_dict() if name.startswith(PLACEHOLDERS)
    }
    known = [value for value in fields.values() if isinstance(value, int)]
    if not known:
        return ids.new_zeros(0, dtype=torch.bool)
    return torch.isin(ids, torch.tensor(known, device=ids.device))


def inputs_to_score(
    base: PreTrainedModel, rows: AlignedRows, options: dict[str, Any], align: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """Take the images of texts to score, and the types of their tokens, out of the options of `score`."""
    names = [name for name in options if is_image_input(name) or name in TOKEN_TYPES]
    taken = {name: options.pop(name) for name in names}
    ends = (rows.context + 1 + rows.steps)[:, None]
    filled = torch.arange(rows.tokens.shape[1], device=ends.device).minimum(ends - 1)  # the last type goes on
    given = {
        name: align(v).gather(1, filled) if name in TOKEN_TYPES else v for name, v in taken.items() if v is not None
    }
    if image_inputs(given) and bool((image_tokens(base, rows.tokens[:, rows.context :])).any() or rows.context == 0):
        raise ValueError(
            f"{', '.join(f'`{name}`' for name in image_inputs(given))}: images and sounds are processed with the "
            "context of a row, so all tokens that stand for them must be within its `context_length`."
        )
    if is_seen_before(base, rows.tokens, rows.attention_mask, given, rows.context):
        raise ValueError(
            f"{type(base).__name__} shows tokens of a prompt to those before them, so that a score would be that of "
            "tokens which are known: pass `token_type_ids` of shape (rows, length) that mark all tokens after the "
            "context as text that is generated, which is 1 for PaliGemma."
        )
    return given


def check_images(base: PreTrainedModel, prompt: torch.Tensor, arguments: Mapping[str, Any], cache: SOLCache) -> None:
    """Raise a ValueError for images whose tokens a cache holds already."""
    names = [name for name in image_inputs(arguments) if not name.startswith(SIZES)]
    past, mask = cache.get_seq_length(), arguments.get("attention_mask")
    if not names or not past or prompt.is_floating_point():
        return
    is_whole = mask is None or mask.shape[1] == prompt.shape[1]
    marked = image_tokens(base, prompt[:, past:] if is_whole else prompt)
    if marked.numel() and not bool(marked.any()):
        given = ", ".join(f"`{name}`" for name in names)
        raise ValueError(
            f"The cache holds {past} tokens with their images and sounds, and no token after them stands for one: "
            f"leave out {given}, or pass those of new images only."
        )


def is_one_piece(base: PreTrainedModel, prompt: torch.Tensor, arguments: Mapping[str, Any]) -> bool:
    """Whether the last token of a prompt cannot be processed after those before it."""
    if prompt.dim() == 2 and image_inputs(arguments) and bool(image_tokens(base, prompt[:, -1:]).any()):
        return True
    return is_seen_before(base, prompt, arguments.get("attention_mask"), arguments, prompt.shape[1] - 1)


def is_seen_before(
    base: PreTrainedModel,
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None,
    arguments: Mapping[str, Any],
    begin: int,
) -> bool:
    """Whether a token from column `begin` on is seen by tokens before it, as those of a prompt are in some bases."""
    types = {name: arguments[name] for name in TOKEN_TYPES if arguments.get(name) is not None}
    make_masks = getattr(base, "create_masks_for_generate", None)  # where a base says which tokens see one another
    if not types or make_masks is None:
        return not types and getattr(text_config(base), "use_bidirectional_attention", None) is True
    masks = make_masks(
        config=base.config,
        inputs_embeds=torch.zeros(*tokens.shape[:2], 1, device=tokens.device),
        attention_mask=attention_mask,
        past_key_values=None,
        position_ids=None,
        is_first_iteration=True,
        **types,
    )
    return any(_shows_later(mask, begin) for mask in (masks.values() if isinstance(masks, dict) else [masks]))


def _shows_later(mask: Any, begin: int) -> bool:
    """Whether a mask `(rows, heads, tokens, keys)` shows a key from `begin` on to a token before it."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return False
    visible = mask > HIDDEN if mask.is_floating_point() else mask.bool()
    return bool(visible.triu(1)[..., begin:].any())


# =====================================================================================================================
# policy/episode_cache.py
#
# The policy's keys and values of an episode, with room for its later steps.
#
# A step of the policy by compiled code writes its keys and values there, where `torch.cat` would copy all of them.
# =====================================================================================================================


class Room:
    """Memory of a layer."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, used: int):
        self.keys, self.values, self.used = keys, values, used
        self.addresses = keys.data_ptr(), values.data_ptr(), keys.shape[2]
        """Of keys and values, and the capacity, for compiled code."""


class EpisodeLayer(DynamicLayer):
    """A layer of an [`EpisodeCache`]: `keys` and `values` are what it holds, as in every dynamic layer."""

    keys: torch.Tensor
    values: torch.Tensor
    _room: Room | None = None

    def append_step(self, rows: int, heads: int, dim: int, steps: int) -> Room:
        """Room in which the keys and values of the next step are to be written, after those of the earlier ones."""
        past, room = self.get_seq_length(), self._room
        if room is None or room.used != past or (past and not self._is_in(room)) or past >= room.addresses[2]:
            keys, values = (torch.zeros(rows, heads, max(steps, past + 1), dim) for _ in range(2))
            if past:
                keys[:, :, :past], values[:, :, :past] = self.keys, self.values
            room = self._room = Room(keys, values, past)
        if not self.is_initialized:
            self.lazy_initialization(room.keys, room.values)
        room.used = past + 1
        self.keys, self.values = room.keys[:, :, : room.used], room.values[:, :, : room.used]
        return room

    def _is_in(self, room: Room) -> bool:
        """Whether the keys are those in a room, and not what a method of this layer has made of them."""
        same = self.keys.data_ptr() == room.addresses[0] and self.values.data_ptr() == room.addresses[1]
        return same and self.keys.shape[0] == room.keys.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        """Keys and values without spare room."""
        state = {**vars(self), "_room": None}
        if self.is_initialized:
            state.update(keys=self.keys.clone(), values=self.values.clone())
        return state

    def reset(self) -> None:
        self._room = None
        super().reset()


class EpisodeCache(DynamicCache):
    """The cache of a policy: a `DynamicCache` whose layers have room for an episode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_class_to_replicate = EpisodeLayer

    def layer(self, number: int) -> EpisodeLayer | None:
        """A layer, made when it is first asked for; `None` if it is of another class."""
        while len(self.layers) <= number:
            self.layers.append(EpisodeLayer())
        layer = self.layers[number]
        return layer if isinstance(layer, EpisodeLayer) else None


# =====================================================================================================================
# controllers/registry.py
#
# The registry of controllers, for command lines, sweeps and tables. Every controller registers itself in its file.
# =====================================================================================================================


class HasPolicy(Protocol):
    """An object with a policy from which controllers are made: a [`SOLForCausalLM`]."""

    policy: SOLPolicyModel


@dataclass(frozen=True)
class ControllerKind:
    """A registered controller: how to make it from its name."""

    make: Callable[[HasPolicy, int], Controller]
    number: str | None = None


CONTROLLERS: Registry[ControllerKind] = Registry("controller")
"""All controllers by name."""


def register_controller(
    name: str, make: Callable[[HasPolicy, int], Controller], number: str | None = None
) -> ControllerKind:
    """Register a controller, so that `make_controller`, the command line, sweeps, lm-eval and plots accept its name."""
    return CONTROLLERS.register(name, ControllerKind(make, number))


# =====================================================================================================================
# controllers/policy.py
#
# The learned policy as a controller.
# =====================================================================================================================


class PolicyController(Controller):
    """Scores actions by a [`SOLPolicyModel`]."""

    follows_bank = rows_are_independent = True

    def __init__(self, policy: SOLPolicyModel):
        self.policy = policy

    def __call__(self, observation: Observation) -> torch.Tensor:
        cache = self._cache_of(observation)
        inputs = (
            observation.hidden_state,
            observation.token_embedding,
            observation.scalars,
            observation.previous_action,
        )
        if observation.backend != "reference" and isinstance(self.policy, SOLPolicyModel):
            logits = self.policy.step(*inputs, cache)
            if logits is not None:
                return logits
        hidden, embedding, scalars, previous = (tensor[:, None] for tensor in inputs)
        return self.policy(hidden, embedding, scalars, previous, past_key_values=cache).logits[:, -1].float()

    def choose(self, observation: Observation, limits: Limits) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The actions of a step within limits, by compiled code."""
        is_own = type(self) is PolicyController and isinstance(self.policy, SOLPolicyModel)
        if not is_own or observation.backend == "reference" or observation.controllable.device.type != "cpu":
            return None, None
        needs_bank, needs_end = limits.horizon == "generation", limits.exact
        if (needs_bank and observation.ledger.bank is None) or (needs_end and observation.remaining_in_call is None):
            return None, None  # the processors say what is missing
        if observation.require_targets().dtype != torch.float32:
            return None, None
        found = self.policy.choose(observation, self._cache_of(observation), limits)
        if found is None:
            return None, None
        actions, scores = found
        return (actions, None) if scores is None else (None, scores)

    @staticmethod
    def _cache_of(observation: Observation) -> Cache:
        if "cache" not in observation.state:
            observation.state["cache"] = EpisodeCache()
        return observation.state["cache"]


register_controller("policy", lambda model, number: PolicyController(model.policy))


# =====================================================================================================================
# execution/forked_process.py
#
# Finds out that a process was forked after torch's threads had started: there torch would wait for them forever.
#
# A forked process has only the thread that forked it. The OpenMP library in its memory still counts on the others. This
# holds for torch on its own, and for the kernels that run in torch's threads.
# =====================================================================================================================


@dataclass
class _Threads:
    """Whether generations used several threads in this process, and in one that it was forked from."""

    here: bool = False
    before_fork: bool = False

    def after_fork(self) -> None:
        self.here, self.before_fork = False, self.here or self.before_fork


_THREADS = _Threads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_THREADS.after_fork)


def check_fork() -> None:
    """Called before every generation, which then may use torch's threads."""
    if torch.get_num_threads() == 1:
        return
    if _THREADS.before_fork:
        raise RuntimeError(
            "This process was forked after torch had started its threads. They do not exist here, and torch would "
            "wait for them forever: call `torch.set_num_threads(1)` first in the forked process, or start it by "
            "`spawn`, as `multiprocessing.get_context('spawn')` does."
        )
    _THREADS.here = True


# =====================================================================================================================
# decoding/setup.py
#
# Turns the options of a call into the settings of its steps, with all checks that need no compute.
# =====================================================================================================================


def new_cache(base: PreTrainedModel, config: SOLConfig, kv_dtype: str | None = None) -> SOLCache:
    """An empty [`SOLCache`] for a base and the action space of a policy's config."""
    kv_dtype = kv_dtype or config.kv_dtype
    stored = stored_dtype(kv_dtype, base.dtype)
    cache = SOLCache(base.config, config.action_space, config.page_size, stored)
    if stored is not None and not any(isinstance(layer, StoredLayer) for layer in cache.layers):
        raise ValueError(
            f"`kv_dtype={kv_dtype!r}` has nothing to apply to: {type(base).__name__} has no layers with keys and "
            "values, full or within a window. Leave it out."
        )
    return cache


def check_kv_dtype_of(cache: SOLCache, base: PreTrainedModel, kv_dtype: str | None) -> None:
    """Raise a ValueError if a cache keeps keys and values in another dtype than a call needs."""
    held, needed = cache.kv_dtype or base.dtype, stored_dtype(kv_dtype, base.dtype) or base.dtype
    if held != needed:
        names = [str(dtype).removeprefix("torch.") for dtype in (held, needed)]
        raise ValueError(
            f"The cache keeps keys and values in {names[0]}, but the call needs them in {names[1]}: leave out "
            "`kv_dtype` (and `lossless`, whose text is that of keys in the dtype of the base), or begin with "
            f"`model.new_cache(kv_dtype={names[1]!r})`."
        )


def own_cache(cache: SOLCache, base: PreTrainedModel, config: SOLConfig) -> SOLCache:
    """A cache after a check that it belongs to a model, and is as the last call of that model left it."""
    refuse_used(cache)
    if cache.owner is None:  # made by hand
        sizes = {layer.page_size for layer in cache.layers if isinstance(layer, PagedLayer)}
        if cache.action_space != config.action_space or sizes - {config.page_size}:
            raise ValueError(
                "The cache was made for another action space or page size than the model's: pass `model.new_cache()`."
            )
    settings = dataclasses.asdict(config.selection_rule)
    for name in ("sink_tokens", "window_tokens", "short_text_tokens"):
        del settings[name]  # what is cached does not depend on them
    settings |= {"episode_length": config.episode_length, **config.action_space.levels}
    last = _LAST_BASE.get(cache)
    cache.belong_to(CacheOwner.of(base, settings), is_same_base=last is not None and last() is base)
    _LAST_BASE[cache] = weakref.ref(base)
    cache.check_intact()
    return cache


def controls_for(
    options: DecodeOptions, base: PreTrainedModel, policy: SOLPolicyModel, config: SOLConfig, rows: int
) -> DecodeControls | None:
    """The settings of the decode steps of a call; `None` if the base itself is to run, since all would be dense."""
    check_fork()
    budget, space = options.budget, config.action_space
    if budget is not None:
        budget.check(options.spending(space), rows)
    if options.runs_base:
        return None
    check_not_compiled(base)
    if options.controller is None and not options.is_dense:
        policy.warn_if_fresh()
    if options.dial is not None and not options.is_dense:
        horizon = options.budget_horizon if options.budget_mode == "hard" else None
        options.dial.check(base, options.bits_backend, options.kv_refresh, horizon)
    instrumentation = Instrumentation.at_start(base)
    axes = [] if options.is_dense else options.controlled_axes(space)
    instrumentation.require(axes, options.bits_backend, options.max_plane_bytes)
    cache = new_cache(base, config, options.kv_dtype)
    instrumentation.require_cache(cache, axes, bool(axes) and options.kv_refresh)
    if options.cuda_graphs:
        instrumentation.require_graphs(cache, config.selection_rule)
    if options.is_dense:
        return options.dense_controls(config)
    device = compute_device(base)
    if policy.device.type != device.type:
        raise ValueError(f"The policy is on {policy.device}, the base on {device}.")
    controller = options.controller or PolicyController(policy)
    if controller.needs_budget and budget is None:
        raise ValueError(f"{type(controller).__name__} needs a budget.")
    return options.controls(controller, config)


_LAST_BASE: "weakref.WeakKeyDictionary[SOLCache, weakref.ref[PreTrainedModel]]" = weakref.WeakKeyDictionary()
"""The base of the last call over a cache. It is no part of the cache, which can be copied and pickled."""


# =====================================================================================================================
# decoding/stored_values.py
#
# Options of transformers' generate that cannot be used under a budget.
#
# What a caller asks for is refused. What is only stored in a model's generation_config.json or config.json is a default:
# if it is about speed, memory or further outputs, it is ignored. If it changes the text, it is refused too, because
# without it the text would be another.
# =====================================================================================================================


@dataclass(frozen=True)
class Unsuitable:
    """An option with values that a budget does not allow."""

    name: str
    is_allowed: Callable[[Any], bool]
    reason: str
    instead: Any = None
    changes_text: bool = False
    harmless: Any = None


def _is_off(value: Any) -> bool:
    return value is None or value is False


_DRAFTS = (
    "Generation mode `assisted_generation` cannot run under a budget: it verifies several tokens in one forward, but "
    "a budget chooses the compute of every token on its own. Leave out `{name}={value!r}`."
)
UNSUITABLE = (
    Unsuitable(
        "use_cache", lambda value: value is not False, "A budget needs the cache: remove `use_cache=False`.", True
    ),
    Unsuitable(
        "cache_implementation",
        lambda value: value is None,
        "A budget needs its own cache, so `cache_implementation={value!r}` (static, quantized, offloaded, or the "
        "paged cache of continuous batching) cannot be used with it: leave it out.",
        harmless="dynamic",
    ),
    Unsuitable("prompt_lookup_num_tokens", _is_off, _DRAFTS),
    Unsuitable("assistant_early_exit", _is_off, _DRAFTS),
    Unsuitable("use_mtp", _is_off, _DRAFTS, False),
    Unsuitable(
        "output_attentions",
        _is_off,
        "`output_attentions` cannot be used under a budget: attention over selected keys has no weights for the "
        "others. Leave it out, or call `model.base.generate`.",
        False,
    ),
    Unsuitable(
        "guidance_scale",
        lambda value: value is None or value == 1,
        "`guidance_scale={value!r}` runs the base a second time for every token, without the budget: pass "
        "`guidance_scale=1`, or leave out the budget.",
        changes_text=True,
    ),
)


def replaced_values(
    arguments: Mapping[str, Any],
    generation_config: GenerationConfig | None,
    stored: GenerationConfig,
    origin: str = "",
) -> dict[str, Any]:
    """The values that a call under a budget uses instead of stored ones that it cannot use."""
    replaced = {}
    for option in UNSUITABLE:
        name, default = option.name, getattr(stored, option.name, None)
        passed = arguments.get(name)
        if passed is None and generation_config is not None:
            found = getattr(generation_config, name, None)
            passed = found if found != default else None
        value = default if passed is None else passed
        if option.is_allowed(value):
            continue
        if option.changes_text or (passed is not None and passed != option.harmless):
            raise ValueError(option.reason.format(name=name, value=value) + origin)
        replaced[name] = option.instead
    return replaced


# =====================================================================================================================
# decoding/call_session.py
#
# The session of a `generate` call, after the checks of its arguments and of its cache.
# =====================================================================================================================


def session_of_call(
    base: PreTrainedModel,
    config: SOLConfig,
    controls: DecodeControls | None,
    prompt: torch.Tensor | None,
    configs: tuple[GenerationConfig | None, GenerationConfig],
    arguments: dict[str, Any],
    vocab_size: int,
) -> DecodingSession | None:
    """The session of a call; `None` if it does not decode over a [`SOLCache`], or has no prompt."""
    refuse_continuous_batching(arguments, configs[0])
    mask, replaced, steps = arguments.get("attention_mask"), {}, None
    if controls is not None:
        steps = steps_of(base, prompt, new_tokens(prompt, arguments, configs), mask) if controls.is_exact else None
        replaced = replaced_values(arguments, *configs, controls.origin)
        check_generate_arguments(prompt, arguments, compute_device(base), vocab_size, controls.origin)
        if arguments.get("past_key_values") is None:
            arguments["past_key_values"] = new_cache(base, config, controls.kv_dtype)
        elif controls.asks_kv_dtype:
            check_kv_dtype_of(arguments["past_key_values"], base, controls.kv_dtype)
    cache: Any = arguments.get("past_key_values")
    if isinstance(cache, SOLCache) and prompt is not None:
        own_cache(cache, base, config)
        check_continuation(prompt, mask, cache)
        check_images(base, prompt, arguments, cache)
    session = DecodingSession.after_prompt(base, cache, controls, prompt, mask, replaced, steps)
    if session is not None and controls is not None and prompt is not None and is_one_piece(base, prompt, arguments):
        session.is_recomputing = True
        session.steps = None if steps is None else steps - 1
    return session


def new_tokens(
    prompt: torch.Tensor | None, arguments: Mapping[str, Any], configs: Sequence[GenerationConfig | None]
) -> int:
    """The largest number of new tokens of a call, of which each has a decode step."""
    given = [arguments.get("max_new_tokens"), *(config.max_new_tokens for config in configs if config is not None)]
    number = next((value for value in given if value is not None), None)
    if number is None and prompt is not None and arguments.get("max_length") is not None:
        number = arguments["max_length"] - prompt.shape[1]
    if number is None:
        raise ValueError("`exact` has to know how long the text may become: pass `max_new_tokens`.")
    return int(number)


def steps_of(base: PreTrainedModel, prompt: torch.Tensor | None, new: int, mask: torch.Tensor | None) -> int:
    """Steps of a call that count: one less than its new tokens if the base computes its text again on the way."""
    switch, text = getattr(base.config, "original_max_position_embeddings", None), prompt if mask is None else mask
    if switch is None or text is None:
        return new
    return new - (text.shape[1] <= switch < text.shape[1] + new)


# =====================================================================================================================
# decoding/custom_loop.py
#
# `generate(custom_generate=...)`: a function of the user that may call the model's `generate` again.
#
# transformers passes the arguments of the call on to that function, but not the budget options, which are its own
# parameters of [`SOLForCausalLM.generate`]. Calls that the function makes therefore inherit them.
# =====================================================================================================================


@dataclass
class CustomLoop:
    """A call with `custom_generate` that is running."""

    options: dict[str, Any]
    cache: Any
    calls: int = 0


_RUNNING_in_custom_loop: ContextVar[CustomLoop | None] = ContextVar("sol_hf_custom_loop", default=None)


def inherit(options: dict[str, Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The budget options of a call: its own, or if it has none, those of the custom loop that makes the call."""
    loop = _RUNNING_in_custom_loop.get()
    if loop is None:
        return options
    loop.calls += 1
    if any(value is not None for value in options.values()):
        return options
    if loop.calls == 1 and arguments.get("past_key_values") is None and loop.cache is not None:
        arguments["past_key_values"] = loop.cache
    return dict(loop.options)


@contextmanager
def custom_loop(options: dict[str, Any], arguments: dict[str, Any]) -> Iterator[CustomLoop]:
    """Within the block, calls inherit the options if the call has a `custom_generate`; otherwise they inherit none."""
    loop = CustomLoop(options, arguments.get("past_key_values"))
    token = _RUNNING_in_custom_loop.set(loop if arguments.get("custom_generate") is not None else None)
    try:
        yield loop
    finally:
        _RUNNING_in_custom_loop.reset(token)


# =====================================================================================================================
# decoding/executed.py
#
# After a `generate` call under a budget: every new token has a decode step over the cache of the call.
# =====================================================================================================================


def check_executed(session: DecodingSession | None, output: Any, prompt: torch.Tensor | None, steps: int) -> None:
    """Raise a [`PlanNotExecutedError`] if new tokens were computed without a decode step, or over another cache."""
    assert session is not None and prompt is not None, "a call under a budget has both"
    sequences = output.get("sequences") if isinstance(output, ModelOutput) else output
    if isinstance(sequences, torch.Tensor) and sequences.dim() == 2:
        steps = max(steps, sequences.shape[1] - (0 if prompt.is_floating_point() else prompt.shape[1]))
    missing = steps - (len(session.cache.trace) if session.look_ahead is None else session.look_ahead.processed)
    returned = output.get("past_key_values") if isinstance(output, ModelOutput) else None
    if missing > 0:
        raise PlanNotExecutedError(dict.fromkeys(_axes(session), [f"{missing} of {steps} new tokens"]))
    if returned is not None and returned is not session.cache:
        raise PlanNotExecutedError(dict.fromkeys(_axes(session), [f"a {type(returned).__name__} of its own"]))


def _axes(session: DecodingSession) -> list[str]:
    return [
        axis for axis in session.cache.action_space.axis_names if axis not in session.require_controls().dense_axes
    ]


# =====================================================================================================================
# decoding/row_ends.py
#
# Records when each row of a generation ended, by an end token, a stop string or a criterion of the user.
#
# transformers' loop continues until all rows have ended, and the steps of a row after its end must not count.
# [`RowEnds`] is one of the stopping criteria, and records the result of all of them.
# =====================================================================================================================


class RowEnds(StoppingCriteria):
    """A criterion that never stops a row, and records when the other criteria stopped it."""

    def __init__(self, prompt_length: int):
        self.lengths = [prompt_length]
        self.ended: list[torch.Tensor] = []
        self.so_far: torch.Tensor | None = None
        """Which rows `(rows,)` have ended at any length so far."""

    def record(self, length: int, ended: torch.Tensor) -> None:
        """Record which rows `(rows,)` have ended at a length of `length` tokens."""
        self.lengths.append(length)
        self.ended.append(ended)
        self.so_far = ended if self.so_far is None else self.so_far | ended

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def running(self) -> torch.Tensor:
        """A mask of the new tokens up to the end of their row, the last token included."""
        ended = torch.stack(self.ended, dim=1)
        running = ended.cumsum(dim=1) - ended.long() == 0
        added = torch.tensor(self.lengths, device=ended.device).diff()
        return running.repeat_interleave(added, dim=1)


class ObservedStoppingCriteriaList(StoppingCriteriaList):
    """A `StoppingCriteriaList` that passes the combined result of all criteria to every [`RowEnds`] in the list."""

    def __call__(self, input_ids: torch.Tensor, scores, **kwargs) -> torch.Tensor:
        ended = super().__call__(input_ids, scores, **kwargs)
        for criterion in self:
            if isinstance(criterion, RowEnds):
                criterion.record(input_ids.shape[1], ended)
        return ended


# =====================================================================================================================
# controllers/choice.py
#
# Takes one action of every row by its scores.
# =====================================================================================================================


def refuse_nan(scores: torch.Tensor, controller: Controller) -> None:
    """Raise a ValueError for scores that are no numbers."""
    if scores.device.type == "cpu" and scores.numel() and bool(scores.amax().isnan()):  # NaN counts as the largest
        raise ValueError(
            f"{type(controller).__name__} returned scores that are not a number (NaN), so there is no best action: "
            "look for a division by zero, or for weights that are NaN."
        )


def best_actions(scores: torch.Tensor) -> torch.Tensor:
    """The action with the highest score in every row, `(rows,)`, from scores `(rows, n_actions)`."""
    return scores.argmax(dim=-1)


def drawn_actions(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Actions drawn from the softmax of `scores / temperature`, `(rows,)`, from scores `(rows, n_actions)`."""
    scaled, best = scores / temperature, scores.amax(dim=-1, keepdim=True)
    below_best = torch.where(scores == best, 0.0, scores - best) / temperature
    weights = torch.where(scaled.amax(dim=-1, keepdim=True).isfinite(), scaled, below_best).softmax(dim=-1)
    return torch.multinomial(weights, 1).squeeze(1)


# =====================================================================================================================
# decoding/captured.py
#
# Decides whether a forward runs from a CUDA graph, and finds or makes the graph.
# =====================================================================================================================


GROWTH_TOKENS = 256
"""A CUDA graph is captured with storage for at least this many additional tokens, or a quarter of the text if more."""


def is_captured(session: DecodingSession, inputs: ForwardInputs) -> bool:
    """Whether a forward is to run from a [`CapturedForward`]."""
    controls, length = session.require_controls(), session.cache.get_seq_length()
    if not controls.cuda_graphs or inputs.tokens.is_floating_point() or length == 0 or inputs.asks_for_more:
        return False
    return controls.cuda_graphs is True or length + inputs.length <= controls.cuda_graphs


def positions_of(inputs: ForwardInputs) -> torch.Tensor | None:
    """Positions of the tokens `(rows, length)` or `(1, length)`, `None` if they are not given."""
    positions = inputs.along.get("position_ids")
    return None if positions is None else positions.value


def current_capture(session: DecodingSession, refreshed: int = 0) -> CapturedForward:
    """The session's [`CapturedForward`] for steps, or for KV refreshes of `refreshed` tokens per row."""
    base, cache, controls, graphs = session.base, session.cache, session.require_controls(), session.graphs
    length = cache.get_seq_length() + (refreshed or 1)
    if controls.cuda_graphs is not True:
        graphs.room = max(graphs.room, controls.cuda_graphs)
    if length > graphs.room:
        graphs.room = length + max(GROWTH_TOKENS, length // 4)
    kind = "refresh" if refreshed else "step"
    captured = graphs.forwards.get(kind)
    rule, dense_axes, backend = controls.rule, controls.dense_axes, controls.bits_backend
    if captured is None or not captured.is_current(base, rule, dense_axes, refreshed, backend):
        captured = CapturedForward(base, cache, rule, dense_axes, graphs.room, refreshed, session.parts, backend)
        graphs.forwards[kind] = captured
    return captured


# =====================================================================================================================
# decoding/joined_outputs.py
#
# Outputs of the parts of a forward, joined to what one forward over all tokens returns.
# =====================================================================================================================


APART = ("loss", "logits", "past_key_values")
"""Fields that are treated elsewhere."""


def join_outputs(outputs: Sequence[ModelOutput], lengths: Sequence[int], rows: int) -> ModelOutput:
    """Join what has an entry per token: hidden states, attention weights, logits of routers."""
    if len(outputs) == 1:
        return outputs[0]
    names = dict.fromkeys(name for output in outputs for name in output if name not in APART)
    joined = {name: _joined(name, [output.get(name) for output in outputs], lengths, rows) for name in names}
    kind = type(outputs[0]) if hasattr(outputs[0], "past_key_values") else CausalLMOutputWithPast  # some leave it out
    return kind(logits=outputs[-1].logits, past_key_values=getattr(outputs[-1], "past_key_values", None), **joined)


def last_tokens(output: ModelOutput, processed: int, wanted: int, rows: int) -> ModelOutput:
    """An output with the last `wanted` of `processed` tokens; its logits are not changed."""
    if processed == wanted:
        return output
    cut = {
        name: value if name in APART else _each(value, lambda x: _cut(x, processed, wanted, rows))
        for name, value in output.items()
    }
    return type(output)(**cut)


def _joined(name: str, values: list[Any], lengths: Sequence[int], rows: int) -> Any:
    given = [value for value in values if value is not None]
    if len(given) < 2:
        return given[0] if given else None
    if len(given) < len(values):
        return None
    if isinstance(given[0], tuple | list):
        layers = [_joined(name, list(layer), lengths, rows) for layer in zip(*given, strict=True)]
        return tuple(layers)
    if not isinstance(given[0], torch.Tensor):
        return None
    if name.endswith("attentions"):
        slots = given[-1].shape[-1]
        return torch.cat([pad(weights, (0, slots - weights.shape[-1])) for weights in given], dim=-2)
    along = [_token_dim(value, length, rows) for value, length in zip(given, lengths, strict=True)]
    if all(dim == 1 for dim in along):
        return torch.cat(given, dim=1)
    if all(dim == 0 for dim in along):  # rows and tokens in one dimension
        unfolded = [x.unflatten(0, (rows, length)) for x, length in zip(given, lengths, strict=True)]
        return torch.cat(unfolded, dim=1).flatten(0, 1)
    return None


def _token_dim(value: torch.Tensor, length: int, rows: int) -> int | None:
    """The dimension of the tokens; 0 if it is also that of the rows."""
    if value.dim() >= 2 and value.shape[:2] == (rows, length):
        return 1
    return 0 if value.dim() >= 2 and value.shape[0] == rows * length else None


def _cut(value: torch.Tensor, processed: int, wanted: int, rows: int) -> torch.Tensor:
    if value.dim() == 4 and value.shape[2] == processed:  # attention weights
        return value[:, :, -wanted:]
    dim = _token_dim(value, processed, rows)
    if dim == 1:
        return value[:, -wanted:]
    return value if dim is None else value.unflatten(0, (rows, processed))[:, -wanted:].flatten(0, 1)


def _each(value: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, tuple | list):
        return tuple(_each(item, function) for item in value)
    return function(value) if isinstance(value, torch.Tensor) else value


# =====================================================================================================================
# decoding/kv_refresh.py
#
# The KV refresh: a dense forward over the tokens of an episode.
# =====================================================================================================================


def take_back(session: DecodingSession, inputs: ForwardInputs, begin: int) -> list[ForwardInputs]:
    """Drop the keys and values of the running episode from a step on."""
    steps = [inputs.again(step.token, step.along) for step in session.cache.episode.steps[begin:]]
    if session.rollback is not None:
        session.rollback.keep_tail(len(steps))
    session.cache.drop_tokens(len(steps))
    return join_runs(steps)


def refresh(session: DecodingSession, inputs: ForwardInputs, is_new_turn: bool = False) -> None:
    """KV refresh: recompute the keys and values of the episode by a forward that leaves nothing out."""
    controls, skips_head = session.require_controls(), not session.needs_logits
    levels = {} if is_new_turn else weights_read(session)
    begin = 0 if levels else session.cache.episode.first_sparse or 0
    spared = SparedRows.of(session, begin)
    for again in take_back(session, inputs, begin):
        if skips_head and again.length == controls.episode_length and is_captured(session, again):
            _refresh_captured(session, again, levels)
        else:
            plan = RefreshPlan(session.cache, controls.backend, skips_head, levels=levels, parts=session.parts)
            dense_forward(session, again, refresh=plan)
    if spared is not None:
        spared.put_back(session.cache)


def _refresh_captured(session: DecodingSession, again: ForwardInputs, levels: dict[str, torch.Tensor]) -> None:
    """Run a refresh of a whole episode from a CUDA graph."""
    rows, device = again.tokens.shape[0], again.tokens.device
    axes = session.cache.action_space.axes
    values = [levels.get(axis.name, torch.full((rows,), axis.dense, device=device)) for axis in axes]
    captured = current_capture(session, again.length)
    hidden = captured(again.tokens, torch.stack(values, dim=1), positions_of(again))[1]
    session.cache.end_episode(hidden, again.tokens[:, -1:])


@dataclass(frozen=True)
class SparedRows:
    """What rows that need no refresh had before it, since a refresh is a forward of all rows."""

    rows: torch.Tensor
    tails: list[tuple[torch.Tensor, torch.Tensor]]
    hidden_state: torch.Tensor
    digest: torch.Tensor | None

    @classmethod
    def of(cls, session: DecodingSession, begin: int) -> "SparedRows | None":
        """Copies of what the spared rows have from step `begin` on; `None` if all rows are refreshed."""
        if not spares_rows(session):
            return None
        episode = session.cache.episode
        number = len(episode.steps[begin:])
        layers = session.cache.layers
        tails = [(_last_in_kv_refresh(layer.keys, number).clone(), _last_in_kv_refresh(layer.values, number).clone()) for layer in layers]
        assert episode.hidden_state is not None, "there is a state after a step"
        return cls(~rows_to_refresh(session), tails, episode.hidden_state, episode.logits_digest)

    def put_back(self, cache: SOLCache) -> None:
        """Write it back after the refresh."""
        for layer, (keys, values) in zip(cache.layers, self.tails, strict=True):
            number = min(keys.shape[2], layer.keys.shape[2])
            for stored, old in ((layer.keys, keys), (layer.values, values)):
                _last_in_kv_refresh(stored, number)[self.rows] = _last_in_kv_refresh(old, number)[self.rows]
            if isinstance(layer, PagedLayer):
                layer.index_again(layer.get_seq_length() - number)
        episode = cache.episode
        episode.hidden_state = self._mixed(self.hidden_state, episode.hidden_state)
        episode.logits_digest = self._mixed(self.digest, episode.logits_digest)

    def _mixed(self, spared: torch.Tensor | None, refreshed: torch.Tensor | None) -> torch.Tensor | None:
        if spared is None or refreshed is None:
            return refreshed
        return torch.where(self.rows.view(-1, *[1] * (spared.dim() - 1)), spared, refreshed)


def _last_in_kv_refresh(stored: torch.Tensor, number: int) -> torch.Tensor:
    return stored[:, :, stored.shape[2] - number :] if number <= stored.shape[2] else stored


# =====================================================================================================================
# decoding/seen_keys.py
#
# What follows from the number of keys that the rows of a step see.
# =====================================================================================================================


def seen_keys(session: DecodingSession) -> dict[str, Any]:
    """The fields of an [`Observation`] that follow from it."""
    cache, controls = session.cache, session.require_controls()
    rule, seen, padding = controls.rule, cache.get_seq_length() + 1, cache.padding
    left = controls.episode_length - cache.episode.length
    ends = None if session.steps is None else session.steps - len(cache.trace)
    least = rule.sink_tokens + rule.window_tokens + 2
    if padding is None and not rule.short_text_tokens and not isinstance(ends, torch.Tensor):
        ahead = max(least - seen, 0)
        to_end = (
            None if ends is None else torch.full((cache.rows,), float(max(ends - ahead, 0)), device=session.device)
        )
        return dict(
            controllable=session.in_all_rows(rule.is_controllable(seen), torch.bool),
            remaining=session.in_all_rows(float(max(left - ahead, 0)), torch.float32),
            page_fill=session.in_all_rows(rule.page_fill(seen), torch.float32),
            remaining_in_call=to_end,
        )
    count = torch.full((cache.rows,), seen, device=session.device) if padding is None else seen - padding
    uncontrollable_ahead = (least - count).clamp(min=0)
    return dict(
        controllable=rule.is_controllable(count),
        remaining=(left - uncontrollable_ahead).clamp(min=0).float(),
        page_fill=rule.page_fill(count),
        held=held_axes(rule, count, cache.action_space),
        remaining_in_call=None if ends is None else (ends - uncontrollable_ahead).clamp(min=0).float(),
    )


def held_axes(rule: SelectionRule, count: torch.Tensor, space: ActionSpace) -> torch.Tensor | None:
    """The axes `(rows, axes)` that a step holds at their largest level: `token_keep`, where it reads a short text."""
    if not rule.short_text_tokens:
        return None
    held = torch.zeros(len(count), len(space.axes), dtype=torch.bool, device=count.device)
    held[:, space.axis_names.index("token_keep")] = rule.reads_all(count)
    return held


# =====================================================================================================================
# decoding/step.py
#
# One forward of the base under a budget: dense prefix, decode steps, KV refresh.
#
# `generate` and `score` process all tokens by [`decode_forward`]. It is stateless: all state is in the [`SOLCache`], and
# the settings of the call are in the [`DecodingSession`].
#
#     tokens of a call     | d d d d d d d d | s |        d: one dense forward of the base
#     session.decode_from                      ^          s: a decode step each
# =====================================================================================================================


def observe(session: DecodingSession, token: torch.Tensor) -> Observation:
    """The input of the controller before `token` `(rows, 1)` is processed."""
    base, cache, controls = session.base, session.cache, session.require_controls()
    episode = cache.episode
    if episode.hidden_state is None and cache.get_seq_length():
        raise ValueError("The hidden state before this token is unknown after `crop`: pass two tokens or more.")
    embedding, before = embed(base, token)[:, -1], None
    if episode.length == 0 and episode.token_before is not None:
        before = embed(base, episode.token_before)[:, -1]
    if episode.hidden_state is None:
        size = base.get_output_embeddings().weight.shape[-1]
        episode.hidden_state = torch.zeros(cache.rows, size, device=token.device, dtype=embedding.dtype)
    space, last = cache.action_space, episode.steps[-1] if episode.steps else None
    return Observation(
        hidden_state=episode.hidden_state,
        token_embedding=embedding,
        previous_action=session.in_all_rows(len(space), torch.long) if last is None else last.action,
        step=episode.length,
        total_step=len(cache.trace),
        episode_length=controls.episode_length,
        targets=cache.targets,
        ledger=cache.ledger,
        action_space=space,
        state=episode.controller_state,
        previous_hidden_state=None if last is None else last.previous_hidden,
        previous_embedding=before,
        logits_digest=episode.logits_digest,
        backend=controls.backend,
        **seen_keys(session),
    )


def choose(observation: Observation, session: DecodingSession) -> torch.Tensor:
    """Action ids `(rows,)`: the best by the processed scores, or a sample; dense for rows not under control."""
    cache, controls, space = session.cache, session.require_controls(), observation.action_space
    scores = None
    if controls.simple_limits is not None and isinstance(controls.controller, PolicyController):
        chosen, scores = controls.controller.choose(observation, controls.simple_limits)
        if chosen is not None:
            return chosen
    shown = observation.as_asked(controls.controller)
    shown = shown.copy() if controls.needs_copies else shown
    scores = controls.controller(shown) if scores is None else scores
    if scores.shape != (observation.rows, len(space)):
        raise ValueError(
            f"{type(controls.controller).__name__} returned scores of shape {tuple(scores.shape)}, expected "
            f"{(observation.rows, len(space))}."
        )
    refuse_nan(scores, controls.controller)
    before = observation.previous_action[:, None]  # the limits do not look at it
    if controls.edits:
        before = cache.episode.actions(observation.rows, scores.device)
        scores = controls.edits(before, scores, observation=shown)
    scores = controls.limits(before, scores, observation=observation)
    if observation.held is not None:
        scores = hold_axes(scores, observation.held, space)
    actions = drawn_actions(scores, controls.temperature) if controls.do_sample else best_actions(scores)
    return torch.where(observation.controllable, actions, space.dense_id)


def decode_step(
    session: DecodingSession, inputs: ForwardInputs, active: torch.Tensor | None = None
) -> CausalLMOutputWithPast:
    """Choose an action for one token per row, and process it."""
    cache, controls, token = session.cache, session.require_controls(), inputs.tokens
    if cache.episode.length == controls.episode_length:
        if needs_refresh(session):
            refresh(session, inputs)
        else:
            last = cache.episode
            cache.end_episode(last.hidden_state, last.steps[-1].token, last.logits_digest)
    observation = observe(session, token)
    actions = choose(observation, session)
    values = cache.action_space.values_on(actions.device)[actions]
    if is_captured(session, inputs):
        logits, hidden = current_capture(session)(token, values, positions_of(inputs))
        output, is_dense = CausalLMOutputWithPast(logits=logits, past_key_values=cache), False
    else:
        settings = controls.rule, controls.backend, controls.bits_backend, controls.dense_axes
        plan = StepPlan.from_values(values, cache, *settings, parts=session.parts)
        output, hidden = run_planned(session, inputs, plan, embedding=observation.token_embedding)
        is_dense = plan.is_dense
    counted = observation.controllable if active is None else observation.controllable & active
    digest = logits_digest(session, output)
    cache.record(token, actions, counted, hidden, digest, inputs.along, observation.held)
    if cache.episode.first_sparse is None and not is_dense:
        cache.episode.first_sparse = cache.episode.length - 1
    return output


def run_planned(
    session: DecodingSession,
    inputs: ForwardInputs,
    plan: StepPlan,
    is_new: bool | None = None,
    embedding: torch.Tensor | None = None,
) -> tuple[CausalLMOutputWithPast, torch.Tensor]:
    """A step by its plan: what the base returns, and the LM head's input `(rows, hidden_size)`."""
    compiled = compiled_step(session, inputs, plan, is_new, embedding)
    if compiled is not None:
        return compiled
    with active_forward(plan) as context:
        output = base_forward(session.base, without_needless_mask(inputs, session.cache), session.cache)
    return output, context.last_hidden_state()


def without_needless_mask(inputs: ForwardInputs, cache: SOLCache) -> ForwardInputs:
    """The inputs of a step, without the attention mask if no row is padded: transformers would copy it to the host."""
    if cache.padding is not None or inputs.tokens.device.type == "cpu":
        return inputs
    return replace(inputs, attention_mask=None)


def dense_part(session: DecodingSession, inputs: ForwardInputs, all_logits: bool) -> CausalLMOutputWithPast:
    """Process tokens densely, and again with them those of an unfinished episode, which refreshes their keys."""
    cache, logits_to_keep = session.cache, inputs.length if all_logits else 1
    whole = inputs
    if cache.episode.length and needs_refresh(session) and spares_rows(session):
        refresh(session, inputs, is_new_turn=True)
    elif cache.episode.length and needs_refresh(session):
        *before, last = take_back(session, inputs, cache.episode.first_sparse or 0)
        if last.tokens.is_floating_point() != inputs.tokens.is_floating_point():
            last, whole = (part.embedded(session.base) for part in (last, whole))
        if whole.can_follow(last):
            whole = whole.after(last)
        else:
            before.append(last)
        for part in before:
            dense_forward(session, part)
    output = dense_forward(session, whole, logits_to_keep)
    return last_tokens(output, whole.length, inputs.length, cache.rows)


def decode_forward(
    session: DecodingSession, inputs: ForwardInputs, all_logits: bool, active: torch.Tensor | None = None
) -> CausalLMOutputWithPast:
    """Process `inputs`: densely up to `session.decode_from`, one decode step for each token from there on."""
    cache, length = session.cache, inputs.length
    dense = length - 1
    if session.controls is None:
        dense = length
    elif session.is_recomputing:
        dense = length
    elif session.decode_from is not None:
        dense = min(max(session.decode_from - cache.get_seq_length(), 0), length)
    outputs, lengths = [], [dense] if dense else []
    if dense:
        outputs.append(dense_part(session, inputs.part(0, dense, is_dense=True), all_logits))
    if session.is_recomputing:
        cache.record_dense()
        session.is_recomputing = False
    for index in range(dense, length):
        outputs.append(decode_step(session, inputs.part(index, index + 1, is_dense=False), active))
        lengths.append(1)
    joined = join_outputs(outputs, lengths, cache.rows)
    if all_logits and len(outputs) > 1:
        joined.logits = torch.cat([output.logits for output in outputs], dim=1)
    joined.past_key_values = cache
    return joined


# =====================================================================================================================
# decoding/lossless/agreement.py
#
# How likely a drafted token is the one that is taken: learned from those that were checked.
#
# A draft is wrong where two tokens were nearly as likely. So shares are kept by the *gap* between the two best tokens of
# the draft, in nats: with weights in 8 bits and a fifth of the keys, nine out of ten wrong drafts have a gap below 0.4.
# =====================================================================================================================


EDGES = (0.1, 0.2, 0.4, 0.7, 1.0, 2.0)
"""Gaps in nats at which the next bin begins."""
MEASURED = (0.57, 0.72, 0.957, 0.965, 0.99, 0.993, 0.998)
"""Share of drafted tokens that agreed, by bin: SmolLM2-135M, 8 bits, a fifth of the keys, context 512, 16 texts."""
CERTAINTY = 8.0
"""Tokens for which the measured shares count in the beginning."""
MEMORY = 0.98
"""Weight of all earlier tokens of a bin after another one."""
MEMORY_OF_SHARES = 0.99
"""The same of the share of the tokens in every bin, by which it is judged whether drafts pay at all: in several rows a
small mistake of it is a large one of the chance that all agree."""
SHARES = (0.053, 0.045, 0.077, 0.105, 0.08, 0.21, 0.43)
"""Share of the tokens in every bin, in the same texts."""


class Agreement:
    """Shares of drafted tokens that were taken, by the gap of the draft."""

    def __init__(self) -> None:
        self._taken = [share * CERTAINTY for share in MEASURED]
        self._drafted = [CERTAINTY] * len(MEASURED)
        self._weights = list(SHARES)

    def probability(self, gap: float) -> float:
        """The chance that a token with this gap is taken; 1 for one without another choice."""
        if gap == math.inf:
            return 1.0
        place = bisect.bisect_right(EDGES, gap)
        return self._taken[place] / self._drafted[place]

    @property
    def mean(self) -> float:
        """The chance that a drafted token is taken, before its gap is known."""
        chances = (taken / drafted for taken, drafted in zip(self._taken, self._drafted, strict=True))
        return sum(map(float.__mul__, chances, self._weights)) / sum(self._weights)

    def record(self, gap: float, is_taken: bool) -> None:
        """Note that a drafted token was taken, or that another one was."""
        place = bisect.bisect_right(EDGES, gap)
        self._taken[place] = MEMORY * self._taken[place] + is_taken
        self._drafted[place] = MEMORY * self._drafted[place] + 1
        step = 1 - MEMORY_OF_SHARES
        self._weights = [(1 - step) * weight + step * (index == place) for index, weight in enumerate(self._weights)]


# =====================================================================================================================
# decoding/lossless/pace.py
#
# How long a draft pays: see docs/lossless.md.
#
# With `d` the time of a dense step, `c` of a draft's step, `v(n)` of a check of `n` tokens, and `a` the chance that a
# drafted token is taken, a draft of `g` tokens makes
#
#     E(g) = 1 + a + a^2 + ... + a^g   tokens in   g c + v(g + 1),    a dense step one token in   d
#
# The best rate over all `g` is compared with that of dense steps. Within a draft, another token pays as long as the
# chance that all so far are taken, and the next one too, is larger than what it costs at that rate.
# =====================================================================================================================


LONGEST_in_pace = 16
"""Tokens of a draft at most."""
TRUSTED = 8
"""Drafts whose measured rate counts as much as the model's: a few of them may have been lucky or unlucky."""
DRAFTS = 32
"""Drafts that are remembered for that."""
SAMPLES_in_pace = 9
"""Times of each kind that are remembered; their median counts."""
DENSE_FIRST = 3
"""Dense steps that are timed before the first draft, the first of which may compile and copy."""
COMPILING = 8.0
"""Dense steps above which the first draft of a setting is taken to have loaded compiled code, once in a process."""
LEAST_GAIN_in_pace = 1.02
"""Drafts begin where they are expected to be faster than dense steps by this factor."""
MOST_LOSS = 0.015
"""Share of the time of dense steps that may be spent on finding out whether drafts pay."""
FIRST_LOSS = 2.0
"""Dense steps that the first texts of a setting may lose to find it out."""
ONCE = 5.0
"""Dense steps that the first draft of a setting may have lost for another one to follow at once: its codes and
programs are made once."""
FIRST_SHARE = 0.03
"""Share of the time of all texts of a setting that this may be: in short texts it waits until there were enough."""
TRIED = 4
"""Tokens of such a draft, of one row; of several rows as many together, since each makes a check longer."""
FIRST_WAIT = 32
"""Tokens after which drafts that did not pay are tried again; twice as many every time."""
LONGEST_WAIT = 512
"""Tokens after which they are tried again at most."""
STEP, CHECK, MORE = 0.5, 1.3, 0.1
"""Time of a draft's step, of a check, and of each token of a row in it, in dense steps, as long as none was
measured."""

read_clock = time.perf_counter
"""The clock by which drafts are judged; a benchmark on a busy machine may count processor time instead."""


@dataclass
class Costs:
    """Times, in seconds, of one setting: a base, a number of rows, a draft, and about one length of the text."""

    rows: int = 1
    dense: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_in_pace))
    step: deque[float] = field(default_factory=lambda: deque(maxlen=SAMPLES_in_pace))
    checks: dict[int, deque[float]] = field(default_factory=dict)
    whole: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=DRAFTS))
    tokens: int = 0
    lost: float = 0.0
    wait: int = FIRST_WAIT
    since: int = 0
    skipped: set[str] = field(default_factory=set)

    def note_dense(self, seconds: float) -> None:
        """Note the time of a dense step."""
        if not self.is_first("dense"):
            self.dense.append(seconds)

    def note_draft(self, drafting: float, drafted: int, checking: float) -> None:
        """Note what it took to draft tokens, and to check them together with the one before them."""
        self.step.append(drafting / drafted)
        if not self.is_first(f"check of {drafted + 1}"):
            self.checks.setdefault(drafted + 1, deque(maxlen=SAMPLES_in_pace)).append(checking)

    def is_first(self, kind: str) -> bool:
        """Whether this is the first time of a kind, in which something may have been compiled or copied."""
        is_first = kind not in self.skipped
        self.skipped.add(kind)
        return is_first

    @property
    def dense_step(self) -> float | None:
        """Seconds of a dense step; `None` if none was timed."""
        return statistics.median(self.dense) if self.dense else None

    @property
    def relative_step(self) -> float:
        """Time of a draft's step, in dense steps."""
        dense = self.dense_step
        return statistics.median(self.step) / dense if dense and self.step else STEP

    def relative_check(self, tokens: int) -> float:
        """Time of a check of so many tokens, in dense steps: as measured, or from the nearest number that was."""
        dense = self.dense_step
        if not dense or not self.checks:
            return CHECK + MORE * self.rows * tokens
        nearest = min(self.checks, key=lambda known: (abs(known - tokens), known))
        return max(1.0, statistics.median(self.checks[nearest]) / dense + MORE * self.rows * (tokens - nearest))

    @property
    def are_known(self) -> bool:
        """Whether drafts have been timed often enough, or are slower than dense steps without any check."""
        if self.dense_step is None or not self.step:
            return False
        return len(self.step) >= 3 or min(self.step) > self.dense_step


class Pace:
    """Decides how many tokens are drafted, in one call."""

    def __init__(
        self, costs: Costs, agreement: Agreement, rows: int = 1, length: int | None = None, longest: int = LONGEST_in_pace
    ):
        self.costs, self.agreement, self._rows, self._length = costs, agreement, rows, length
        self._longest, self._tried_length = longest, max(1, TRIED // rows)
        self._has_drafted, self._rate = False, 1.0

    def begin(self, most: int, left: int | None = None) -> int:
        """How many tokens may be drafted now; 0 for a dense step."""
        if self._length is not None or most < 1:
            return max(0, min(self._length or 0, most))
        most = min(most, self._longest)
        if len(self.costs.dense) + len(self.costs.skipped & {"dense"}) < DENSE_FIRST:
            return 0
        self._rate = max(1.0, self.expected_rate())
        if self.costs.are_known and self._rate >= LEAST_GAIN_in_pace:
            self.costs.wait = FIRST_WAIT
            return most
        return self._tried(most, left)

    def _tried(self, most: int, left: int | None) -> int:
        """How many tokens are drafted to find out whether drafts pay, or do so by now."""
        allowed, length = MOST_LOSS * self.costs.tokens - self.costs.lost, self._tried_length
        loss = max(0.0, self._cost(length) - expected_tokens(length, self.chance))
        if not self.costs.are_known:
            if left is not None and FIRST_SHARE * (self.costs.tokens + left) < FIRST_LOSS:
                return 0
            if not self.costs.step:  # the first of all may compile and copy, and does not tell; the next one is timed
                return 1 if allowed + ONCE >= 0 else 0
            return min(most, length) if allowed + FIRST_LOSS >= loss else 0
        if self.costs.since < self.costs.wait or allowed < loss:
            return 0
        self.costs.wait, self.costs.since = min(2 * self.costs.wait, LONGEST_WAIT), 0
        self.costs.whole.clear()
        self._rate = max(1.0, self.expected_rate())
        return most if self._rate >= LEAST_GAIN_in_pace else min(most, self._tried_length)

    def expected_rate(self) -> float:
        """Tokens that drafts and their checks give in the time of a dense step: by the model, and as measured."""
        lengths = range(1, self._longest + 1)
        rate = max(expected_tokens(length, self.chance) / self._cost(length) for length in lengths)
        dense, seen = self.costs.dense_step, self.costs.whole
        if dense is None or not seen:
            return rate
        measured = sum(tokens for tokens, _ in seen) * dense / sum(seconds for _, seconds in seen)
        return (TRUSTED * rate + len(seen) * measured) / (TRUSTED + len(seen))

    def _cost(self, length: int) -> float:
        """Time of a draft of so many tokens and of its check, in dense steps."""
        return length * self.costs.relative_step + self.costs.relative_check(length + 1)

    @property
    def chance(self) -> float:
        """That a token is taken in every row, before it is drafted."""
        return self.agreement.mean**self._rows

    def goes_on(self, drafted: int, chance: float) -> bool:
        """Whether another token pays, after `drafted` that are all taken with this chance."""
        if self._length is not None:
            return True
        more = self.costs.relative_check(drafted + 2) - self.costs.relative_check(drafted + 1)
        return chance * self.chance > self._rate * (self.costs.relative_step + max(0.0, more))

    def note_draft(self, drafting: float, drafted: int, checking: float) -> None:
        """Note the time of a draft and its check; not of the first ones of a call, which assemble its programs."""
        if self._has_drafted:
            self.costs.note_draft(drafting, drafted, checking)
        self._has_drafted = True

    def settle(self, tokens: int, seconds: float) -> None:
        """Note how many tokens a draft and its check have given, in this time."""
        self.note_tokens(tokens)
        if self.costs.are_known:
            self.costs.whole.append((tokens, seconds))
        dense = self.costs.dense_step
        if dense and not (self.costs.is_first("draft") and seconds > COMPILING * dense):
            self.costs.lost = max(0.0, self.costs.lost + seconds / dense - tokens)

    def note_tokens(self, tokens: int) -> None:
        """Note that tokens were made."""
        self.costs.tokens, self.costs.since = self.costs.tokens + tokens, self.costs.since + tokens


@dataclass
class Known:
    """What earlier calls have found out about a base."""

    costs: dict[tuple[str, int, int], Costs] = field(default_factory=dict)
    agreements: dict[str, Agreement] = field(default_factory=dict)

    def pace(self, name: str, rows: int, context: int, length: int | None, longest: int) -> Pace:
        """The [`Pace`] of a call with drafts of this name, after a context of so many tokens."""
        costs = self.costs.setdefault((name, rows, context.bit_length()), Costs(rows))
        return Pace(costs, self.agreements.setdefault(name, Agreement()), rows, length, longest)


def expected_tokens(length: int, chance: float) -> float:
    """Tokens that a draft and its check give on average: those that are taken, and the one after them."""
    return sum(chance**place for place in range(length + 1))


# =====================================================================================================================
# decoding/lossless/ahead.py
#
# Tokens ahead of the loop: processed densely already, with their logits, but not yet part of the text.
#
# The cache holds what the loop has processed and nothing else, also between two forwards: a callback that copies it, or
# an exception, finds it as after any other step. The keys and values ahead are kept beside it.
#
#     cache    | keys of the text so far |  ahead: keys of drafted tokens  |
#                                        ^ one more with each token that the loop takes as drafted
# =====================================================================================================================


@dataclass
class Ahead:
    """Drafted tokens after a check."""

    tokens: torch.Tensor
    gaps: list[list[float]]
    logits: torch.Tensor
    hidden: torch.Tensor
    along: TokenArguments
    seconds: float = 0.0
    tails: list[tuple[torch.Tensor, torch.Tensor] | None] = field(default_factory=list)
    used: int = 0

    @property
    def drafted(self) -> int:
        """Number of drafted tokens."""
        return self.tokens.shape[1]

    def take_from(self, cache: SOLCache) -> None:
        """Take the keys and values of the drafted tokens, the last in the cache, out of it."""
        number = self.drafted
        self.tails = [None if isinstance(layer, PagedLayer) else _last_in_ahead(layer, number) for layer in cache.layers]
        if number:
            cache.drop_tokens(number)

    def follows(self, inputs: ForwardInputs) -> torch.Tensor | None:
        """Which rows `(rows,)` take the next drafted token; `None` if the forward is of another kind altogether."""
        place = self.used
        if place >= self.drafted or inputs.tokens.shape != (len(self.tokens), 1) or inputs.asks_for_more:
            return None
        if inputs.tokens.is_floating_point() or not _are_same(inputs.along, self.along, place + 1):
            return None
        if inputs.attention_mask is not None and not bool(inputs.attention_mask[:, -1].all()):
            return None
        return inputs.tokens[:, 0] == self.tokens[:, place]

    def give_next(self, cache: SOLCache) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the keys and values of the next token into the cache."""
        place = self.used
        for layer, tail in zip(cache.layers, self.tails, strict=True):
            if tail is None:
                layer.give_back(1)
            else:
                layer.update(tail[0][:, :, place : place + 1], tail[1][:, :, place : place + 1])
        cache.processed += 1
        self.used += 1
        return self.logits[:, self.used : self.used + 1], self.hidden[:, self.used]


def _last_in_ahead(layer: Any, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    begin = layer.keys.shape[2] - number
    return layer.keys[:, :, begin:], layer.values[:, :, begin:]


def _are_same(given: TokenArguments, expected: TokenArguments, place: int) -> bool:
    """Whether arguments of one token are those that were expected for the token at `place`."""
    if given.keys() != expected.keys():
        return False
    pairs = ((given[name].value, expected[name].cut(place, place + 1).value) for name in given)
    return all(torch.equal(one.to(other.device), other) for one, other in pairs)


def ahead_of(inputs: ForwardInputs, token: torch.Tensor, steps: int) -> ForwardInputs:
    """The inputs of a token `(rows, 1)` that the loop may take `steps` tokens after that of `inputs`."""
    mask = inputs.attention_mask
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(len(mask), steps)], dim=1)
    along = {name: replace(argument, value=argument.value + steps) for name, argument in inputs.along.items()}
    return ForwardInputs(token, mask, along, further=inputs.further)


# =====================================================================================================================
# decoding/counted_output.py
#
# What an output says of the bytes that a call has read. They are counted when they are asked for.
# =====================================================================================================================


class CountsBytes:
    """Base class of outputs with `bytes_share`."""

    _counting: Any = None

    def count_bytes_by(self, count: Callable[[], torch.Tensor]) -> None:
        """Set how bytes are counted: a function that returns the share of every row, `(rows,)`."""
        object.__setattr__(self, "_counting", count)

    def __getstate__(self) -> dict[str, Any]:
        """The state without what would count, which knows the whole model; a share that was counted stays."""
        return {name: value for name, value in vars(self).items() if name != "_counting" or not callable(value)}

    @property
    def bytes_share(self) -> torch.Tensor | None:
        """The share of the bytes of as many dense steps at its context that every row has read, `(rows,)`."""
        if callable(self._counting):
            object.__setattr__(self, "_counting", self._counting())
        return self._counting


# =====================================================================================================================
# decoding/outputs.py
#
# The outputs of `generate` and `score`, and how executed steps are added to them.
# =====================================================================================================================


NO_ACTION = -1

_ACTIONS_AND_REALISED = """
        actions (`torch.LongTensor` of shape `(rows, steps)`): Action under which each new token was computed, -1 where
            the row had already ended.
        realised (`torch.Tensor` of shape `(rows, axes)`): Means of `token_keep`, `mlp_keep`, `bits` and further axes
            of the action space over the row's controllable steps; the largest levels for a row that had none.
        net_keep (`torch.Tensor` of shape `(rows,)`): Mean of `realised` over the axes, in ratio units.
        compute_unit (`str`, *optional*): What `compute` counted, if the budget came from it."""


@dataclass
class SOLGenerateDecoderOnlyOutput(CountsBytes, GenerateDecoderOnlyOutput):
    __doc__ = f"""Output of greedy search and sampling under a budget.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`): Prompt and new tokens.{_ACTIONS_AND_REALISED}
        agreement (`float`, *optional*): With `lossless`, the share of drafted tokens that were taken; with
            `measure_agreement`, the share of new tokens at which the most likely token is the dense one.
        checks (`int`, *optional*): With `lossless`, dense forwards over drafts.
        tokens_per_forward (`float`, *optional*): With `lossless`, tokens of a row for every dense forward after the
            prompt, checks and dense steps.
    """

    actions: torch.Tensor | None = None
    realised: torch.Tensor | None = None
    compute_unit: str | None = None
    net_keep: torch.Tensor | None = None
    agreement: float | None = None
    checks: int | None = None
    tokens_per_forward: float | None = None


@dataclass
class SOLGenerateBeamDecoderOnlyOutput(CountsBytes, GenerateBeamDecoderOnlyOutput):
    __doc__ = f"""Output of beam search under a budget.

    Args:
        sequences (`torch.LongTensor` of shape `(rows, length)`): Prompt and new tokens.{_ACTIONS_AND_REALISED}
    """

    actions: torch.Tensor | None = None
    realised: torch.Tensor | None = None
    compute_unit: str | None = None
    net_keep: torch.Tensor | None = None


@dataclass
class SOLScoreOutput(CountsBytes, ModelOutput):
    """Teacher-forced scores of a continuation; `steps` is the number of steps of the longest row."""

    logprobs: torch.Tensor | None = None
    actions: torch.Tensor | None = None
    realised: torch.Tensor | None = None
    step_mask: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    greedy: torch.Tensor | None = None
    compute_unit: str | None = None
    net_keep: torch.Tensor | None = None


def realised_means(actions: torch.Tensor, counted: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Means in axis units over the counted steps, `(rows, axes)`, from `(rows, steps)` actions and flags."""
    ratios = space.ratios_on(actions.device)[actions.clamp(min=0)]
    weight = counted.to(ratios.dtype)[..., None]
    means = (ratios * weight).sum(1) / weight.sum(1).clamp(min=1) * space.scales.to(actions.device)
    return torch.where(weight.sum(1) > 0, means, torch.tensor(space.largest, device=actions.device))


def net_keep_of(realised: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Means over the axes in ratio units, `(rows,)`, of means `(rows, axes)` in axis units."""
    return (realised / space.scales.to(realised)).mean(dim=-1)


def attach_steps(
    output: GenerateDecoderOnlyOutput | GenerateBeamDecoderOnlyOutput,
    row_ends: RowEnds,
    cache: SOLCache | None,
    space: ActionSpace,
    compute_unit: str | None = None,
) -> SOLGenerateDecoderOnlyOutput | SOLGenerateBeamDecoderOnlyOutput:
    """Add `actions` and `realised` to the output of transformers' generate."""
    beams = getattr(output, "beam_indices", None)
    if beams is not None:
        beams = beams[:, : len(row_ends.ended)].long()
    running = row_ends.running() if beams is None else beams >= 0
    steps = running.shape[1]
    if cache is None:
        actions = torch.full_like(running, space.dense_id if space.has_dense else NO_ACTION, dtype=torch.long)
        realised = torch.tensor(space.dense, device=running.device).repeat(len(running), 1)
    else:
        trace = cache.trace
        actions = torch.stack([action for action, _ in trace[:steps]], dim=1)
        counted = torch.stack([flag for _, flag in trace[:steps]], dim=1)
        if beams is not None:
            actions, counted = (x.gather(0, beams.clamp(min=0)) for x in (actions, counted))
        realised = realised_means(actions, counted & running, cache.action_space)
    is_beam_search = isinstance(output, GenerateBeamDecoderOnlyOutput)
    target = SOLGenerateBeamDecoderOnlyOutput if is_beam_search else SOLGenerateDecoderOnlyOutput
    return target(
        **{field.name: getattr(output, field.name) for field in fields(output)},
        actions=actions.masked_fill(~running, NO_ACTION),
        realised=realised,
        compute_unit=compute_unit,
        net_keep=net_keep_of(realised, space),
    )


# =====================================================================================================================
# decoding/lossless/counts.py
#
# What came of the drafts of a call.
# =====================================================================================================================


@dataclass
class DraftCounts:
    """Sums over a call."""

    drafted: int = 0
    taken: int = 0
    checks: int = 0
    steps: int = 0
    tokens: int = 0

    @property
    def agreement(self) -> float | None:
        """Share of the drafted tokens that were taken; `None` if none was drafted."""
        return self.taken / self.drafted if self.drafted else None

    @property
    def tokens_per_forward(self) -> float | None:
        """Tokens of a row for every dense forward after the prompt; `None` without any."""
        forwards = self.checks + self.steps
        return self.tokens / forwards if forwards else None

    def report(self, output: SOLGenerateDecoderOnlyOutput | SOLGenerateBeamDecoderOnlyOutput) -> None:
        """Write them into the output of a call, which has no beams."""
        assert isinstance(output, SOLGenerateDecoderOnlyOutput), "beams are refused"
        output.agreement, output.checks = self.agreement, self.checks
        output.tokens_per_forward = self.tokens_per_forward


# =====================================================================================================================
# controllers/levels.py
#
# The levels next to wanted values, and scores that rank actions by their distance to wanted levels.
# =====================================================================================================================


def closeness(wanted: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Scores that rank actions by their distance to the wanted levels, 0 for an exact match."""
    return -(space.ratios_on(wanted.device) - wanted[:, None]).abs().sum(dim=-1)


def neighbouring_levels(targets: torch.Tensor, space: ActionSpace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per axis the nearest levels at or below and at or above the target, and the share of the upper one."""
    lower, upper = [], []
    for levels, target in zip(space.levels_on(targets.device), targets.unbind(-1), strict=True):
        last = torch.searchsorted(levels, target + 1e-6, right=True).clamp(1, len(levels)) - 1
        low = levels[last]
        lower.append(low)
        upper.append(torch.where(low >= target - 1e-6, low, levels[(last + 1).clamp(max=len(levels) - 1)]))
    low, high = torch.stack(lower, -1), torch.stack(upper, -1)
    share = ((targets - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)
    return low, high, torch.where(high > low, torch.round(share, decimals=6), 0.0)


# =====================================================================================================================
# controllers/fixed.py
#
# The static schedule: the baseline that a trained policy has to beat.
# =====================================================================================================================


NOT_CARRIED = "token_keep"
"""The axis on which the published baseline does not carry the remainder of its rounding to the next step."""
STEPS_AHEAD = 64
"""Steps of which the scores are computed together, on the CPU."""


class FixedController(Controller):
    """The static schedule: the two levels next to each target, assigned round-robin over the rows."""

    def __init__(self, carry: Sequence[str] | None = None, across_rows: bool = True):
        self.carry = None if carry is None else tuple(axis.name for axis in axes_named(carry))
        self.across_rows, self.rows_are_independent = across_rows, not across_rows
        self._ahead: tuple[int, torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        """First step, targets and levels of the scores that are computed ahead, and the scores."""

    def __call__(self, observation: Observation) -> torch.Tensor:
        targets, space, step = observation.require_targets(), observation.action_space, observation.total_step
        if targets.device.type != "cpu":  # to compare targets would stall the device
            return self._scores(targets, space, step, 1)[0]
        known, begin, ratios = self._ahead, step - step % STEPS_AHEAD, space.ratios_on(targets.device)
        if not (known and known[0] == begin and torch.equal(known[1], targets) and torch.equal(known[2], ratios)):
            scores = self._scores(targets, space, begin, STEPS_AHEAD)
            known = self._ahead = begin, targets.clone(), ratios.clone(), scores
        return known[3][step - begin].clone()

    def _scores(self, targets: torch.Tensor, space: ActionSpace, step: int, number: int) -> torch.Tensor:
        """Scores of all actions in `number` steps, the first of which is `step`, `(number, rows, n_actions)`."""
        (low, high, share), rows = neighbouring_levels(targets, space), len(targets)
        steps = torch.arange(step, step + number, dtype=torch.float32, device=targets.device)[:, None]
        half = half_between(low, high)
        now, then = steps[:, None], steps[:, None] + 1
        own_turn = torch.ceil(share * then - half) > torch.ceil(share * now - half)

        total = share.sum(dim=0)
        carried = _mask_on(tuple(self._carried(space)), targets.device)
        earlier = torch.where(carried, torch.round(total * steps), 0)
        number_high = torch.where(carried, torch.round(total * (steps + 1)) - earlier, torch.round(total))
        begin = _first_rows(space, steps[:, 0], earlier, number_high)
        place = (torch.arange(rows, device=targets.device)[:, None] - begin[:, None]) % rows
        shared_turn = place < number_high[:, None]

        shared = (targets == targets[0]).all() & (rows > 1 and self.across_rows)
        is_high = torch.where(shared, shared_turn, own_turn)
        wanted = torch.where(is_high, high, low)
        return closeness(wanted.flatten(0, 1), space).view(number, rows, -1)

    def _carried(self, space: ActionSpace) -> list[bool]:
        """For every axis, whether the remainder is carried."""
        if self.carry is None:
            return [name != NOT_CARRIED for name in space.axis_names]
        lacking = [name for name in self.carry if name not in space.axis_names]
        if lacking:
            raise ValueError(
                f"`carry` names {', '.join(lacking)}, but the axes of the action space are "
                f"{', '.join(space.axis_names)}."
            )
        return [name in self.carry for name in space.axis_names]


@functools.lru_cache
def _mask_on(flags: tuple[bool, ...], device: torch.device) -> torch.Tensor:
    """A mask on `device`; copied there once."""
    return torch.tensor(flags).to(device)


def _first_rows(space: ActionSpace, step: torch.Tensor, earlier: torch.Tensor, now: torch.Tensor) -> torch.Tensor:
    """Per axis the index of the first row that gets the upper level, `(steps, axes)`, not yet modulo the rows."""
    published = {"token_keep": step, "bits": now[:, 0] + step}
    first, before = [], torch.zeros_like(step)
    for name, own_earlier, own_now in zip(space.axis_names, earlier.unbind(-1), now.unbind(-1), strict=True):
        first.append(published.get(name, before + own_earlier))
        before = before + own_now
    return torch.stack(first, dim=-1)


def fixed_schedule(means: torch.Tensor, blocks: int, counted: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """The static schedule of `blocks` texts, as for a single row in which they follow one another."""
    low, high, share = neighbouring_levels(means[None].float(), space)
    counted = counted.expand(blocks, -1)
    half = half_between(low, high).double()
    is_high = upper_turns(share.double(), half, int(counted.sum()))
    axes = len(space.axes)
    corners = torch.tensor(list(product((False, True), repeat=axes)))
    ids = closeness(torch.where(corners, high, low), space).argmax(dim=-1)
    schedule = torch.full(counted.shape, space.dense_id)
    corner = (is_high * 2 ** torch.arange(axes).flip(0)).sum(dim=-1)
    schedule[counted] = ids[corner]
    return schedule


def half_between(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Where a remainder is rounded up, for levels next to a target: ties are rounded down, as in a [`BudgetPrior`]."""
    return 0.5 + TIE_MARGIN / (high - low).clamp(min=1e-6)


def upper_turns(share: torch.Tensor, half: torch.Tensor | float, number: int) -> torch.Tensor:
    """The turns in which an axis takes its upper level, if its share of them is carried from turn to turn."""
    turn = torch.arange(number, dtype=torch.float64)[:, None]
    return torch.ceil(share * (turn + 1) - half) > torch.ceil(share * turn - half)


register_controller("fixed", lambda model, number: FixedController())


# =====================================================================================================================
# decoding/lossless/drafts.py
#
# The steps of a draft: all at the same levels, or at those that a controller chooses under the budget of the call.
#
# Nothing of a draft stays in the cache but the record of what it spent. Its keys and values are those of cheap steps,
# and the check writes dense ones in their place.
# =====================================================================================================================


@dataclass(frozen=True)
class DraftSteps:
    """Runs the steps of drafts."""

    levels: Mapping[str, float] | None = None

    @classmethod
    def of(cls, options: DecodeOptions, space: ActionSpace) -> "DraftSteps":
        """The steps of a call with a budget; without a controller if its schedule has nothing to choose."""
        budget = options.budget
        if budget is None or budget.rows is not None or type(options.controller) is not FixedController:
            return cls()
        targets = dict(zip(space.axis_names, space.largest, strict=True))
        targets |= {axis: float(getattr(budget, axis)) for axis in space.axis_names if axis in budget.controlled}
        levels = {}
        for axis, target in targets.items():
            spent = space.spent[axis]
            if target not in spent:
                return cls()
            levels[axis] = float(space.levels[axis][spent.index(target)])
        return cls(levels)

    @property
    def name(self) -> str:
        """What the times of these steps are remembered by."""
        return "controller" if self.levels is None else str(sorted(self.levels.items()))

    def __call__(self, session: DecodingSession, inputs: ForwardInputs, is_first: bool) -> torch.Tensor:
        """Process one token of every row, the first of a draft or a later one; logits `(rows, vocab_size)`."""
        if self.levels is None:
            return decode_step(session, inputs).logits[:, -1]
        controls, cache = session.require_controls(), session.cache
        levels = planned(self.levels, cache, controls.rule, inputs.tokens)
        if is_captured(session, inputs):
            values = [
                levels.get(axis.name, torch.full_like(inputs.tokens[:, 0], axis.dense, dtype=torch.float32))
                for axis in cache.action_space.axes
            ]
            return current_capture(session)(inputs.tokens, torch.stack(values, dim=1), positions_of(inputs))[0][:, -1]
        plan = StepPlan(cache, controls.rule, levels, controls.backend, controls.bits_backend, session.parts)
        return run_planned(session, inputs, plan, is_new=is_first)[0].logits[:, -1]


def planned(
    levels: Mapping[str, float], cache: SOLCache, rule: SelectionRule, tokens: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The levels `(rows,)` of a step over `tokens` `(rows, 1)`; short texts are read as a whole."""
    rows, device, plan = len(tokens), tokens.device, {}
    for axis, level in levels.items():
        if level < AXES_in_axes[axis].dense:
            plan[axis] = torch.full((rows,), float(level), device=device)
    if "token_keep" in plan:
        seen = cache.get_seq_length() + 1
        count = torch.full((rows,), seen, device=device) if cache.padding is None else seen - cache.padding
        reads_all = rule.reads_all(count) | ~rule.is_controllable(count)
        plan["token_keep"] = plan["token_keep"].masked_fill(reads_all, 1.0)
        if device.type == "cpu" and reads_all_keys(cache, rule, plan["token_keep"]):
            del plan["token_keep"]
    return plan


# =====================================================================================================================
# decoding/lossless/known_rows.py
#
# Rows that are ahead of others: where one row takes another token than was drafted, the others need no new draft yet.
#
# All rows of a batch are processed together, so what is ahead of them is dropped when the first row takes another token.
# Of the others the next dense logits are known. They take the place of the logits of the new draft as long as it takes
# the tokens that these rows had before.
#
#     row 0    a b c | x          x: another token than was drafted; its next tokens are drafted anew
#     row 1    d e f | g h i      as drafted; what follows is known up to i, and after it
# =====================================================================================================================


@dataclass
class KnownRows:
    """What is known of rows that are ahead."""

    rows: torch.Tensor
    tokens: torch.Tensor
    logits: torch.Tensor

    @classmethod
    def of(cls, ahead: Ahead, taken: torch.Tensor) -> "KnownRows | None":
        """What is known after a token that only some rows `(rows,)` have taken as drafted."""
        if not bool(taken.any()):
            return None
        begin = ahead.used + 1
        return cls(taken, ahead.tokens[:, begin:], ahead.logits[:, begin:])

    def in_place_of(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of a draft `(rows, vocab_size)`, with those that are known."""
        return torch.where(self.rows[:, None], self.logits[:, 0], logits)

    def after(self, tokens: torch.Tensor) -> "KnownRows | None":
        """What is known after the next drafted tokens `(rows,)`."""
        if not self.tokens.shape[1]:
            return None
        rows = self.rows & (self.tokens[:, 0] == tokens)
        return KnownRows(rows, self.tokens[:, 1:], self.logits[:, 1:]) if bool(rows.any()) else None


# =====================================================================================================================
# decoding/lossless/proposals.py
#
# What transformers' loop would take if the logits of a draft were those of the model.
#
# A drafted token is of use only if the loop then takes it. So the processors of the call are applied to the draft's
# logits, and where the loop samples, the token is drawn with the random numbers that the loop will use: from a copy of
# the state of its generator. If draft and model nearly agree, so do the draws. The loop's own generator and processors
# are as if there were no draft. What is proposed has no influence on the text.
# =====================================================================================================================


PURE = tuple(
    vars(logits_process)[name]
    for name in (
        "EncoderNoRepeatNGramLogitsProcessor",
        "EncoderRepetitionPenaltyLogitsProcessor",
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "ExponentialDecayLengthPenalty",
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "MinPLogitsWarper",
        "NoBadWordsLogitsProcessor",
        "NoRepeatNGramLogitsProcessor",
        "RepetitionPenaltyLogitsProcessor",
        "SequenceBiasLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
        "SuppressTokensLogitsProcessor",
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "TypicalLogitsWarper",
    )
    if name in vars(logits_process)
)
"""Processors that can be called once more without any effect on later calls. Others are left out of drafts."""

KNOWN = float("inf")
"""The gap of a token without another choice."""


@dataclass(frozen=True)
class Proposal:
    """A drafted token of every row."""

    tokens: torch.Tensor
    gaps: torch.Tensor


class Proposals:
    """The choices of a running loop, as far as they can be foreseen."""

    def __init__(self) -> None:
        self._processors = LogitsProcessorList()
        self._samples = False
        self._pad: torch.Tensor | None = None
        self._ends: torch.Tensor | None = None
        self._longest: int | None = None
        self.text: torch.Tensor | None = None

    def observe(self, processors: Iterable[Any], config: GenerationConfig) -> None:
        """Take over the settings of a loop that begins."""
        self._processors = LogitsProcessorList(x for x in processors if type(x) in PURE)
        self._samples, self._longest = bool(config.do_sample), config.max_length
        self._pad, self._ends = (getattr(config, f"_{name}_token_tensor", None) for name in ("pad", "eos"))

    def left(self) -> int | None:
        """Tokens that the loop can still take; `None` if that is not known."""
        return None if self.text is None or self._longest is None else self._longest - self.text.shape[1]

    def begin(self, tokens: torch.Tensor, ended: torch.Tensor | None) -> "Draw":
        """The choices after the last tokens `(rows, 1)`; rows that have ended `(rows,)` get the padding token."""
        text = self.text
        if text is None or len(text) != len(tokens) or not torch.equal(text[:, -1:], tokens.to(text.device)):
            return Draw(LogitsProcessorList(), self._samples, tokens, self._pad, self._ends, ended)
        return Draw(self._processors, self._samples, text, self._pad, self._ends, ended)


class Draw:
    """The choices of one draft, one after the other, on the device of the loop."""

    def __init__(
        self,
        processors: LogitsProcessorList,
        samples: bool,
        text: torch.Tensor,
        pad: torch.Tensor | None,
        ends: torch.Tensor | None,
        ended: torch.Tensor | None,
    ):
        self._processors, self._text = processors, text
        self._pad, self._ends = (value if value is None else value.to(text.device) for value in (pad, ends))
        none = torch.zeros(len(text), dtype=torch.bool, device=text.device)
        self.ended = none if ended is None else ended.to(text.device)
        self._generator = generator_like_that_of(text.device) if samples else None

    def __call__(self, logits: torch.Tensor, known: torch.Tensor | None = None) -> Proposal:
        """The token that follows, by logits `(rows, vocab_size)`."""
        scores = self._processors(self._text, logits.to(self._text.device, torch.float32, copy=True))
        if self._generator is not None:
            scores = scores.softmax(dim=-1)
            noise = torch.empty_like(scores).exponential_(1, generator=self._generator)
            scores = (scores / noise).log()
        best = scores.topk(min(2, scores.shape[-1]), dim=-1)
        tokens, gaps = best.indices[:, 0], best.values[:, 0] - best.values[:, -1]
        if known is not None:
            gaps = gaps.masked_fill(known.to(gaps.device), KNOWN)
        if self._pad is not None and self._ends is not None:
            tokens, gaps = torch.where(self.ended, self._pad, tokens), gaps.masked_fill(self.ended, KNOWN)
            self.ended = self.ended | torch.isin(tokens, self._ends)
        self._text = torch.cat([self._text, tokens[:, None]], dim=1)
        return Proposal(tokens, gaps.nan_to_num(nan=0.0, posinf=KNOWN))


def generator_like_that_of(device: torch.device) -> torch.Generator:
    """A generator that draws what the default generator of a device will draw next, and leaves that one alone."""
    own = torch.Generator(device=device)
    state = torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)
    own.set_state(state)
    return own


# =====================================================================================================================
# decoding/lossless/reach.py
#
# How far ahead of the text a base can process tokens and get what it would get one by one.
# =====================================================================================================================


NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Reach:
    """Lengths of a text that tokens which are processed together may not cross."""

    longest: int = NO_LIMIT
    switch: int = NO_LIMIT
    moves_beyond: int = NO_LIMIT

    @classmethod
    def of(cls, base: PreTrainedModel) -> "Reach":
        """That of a base, by its config."""
        config = text_config(base)
        longest = getattr(config, "max_position_embeddings", None) or NO_LIMIT
        kinds = _rope_kinds(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
        switch = getattr(config, "original_max_position_embeddings", None) or longest
        return cls(
            longest=longest,
            switch=switch if "longrope" in kinds else NO_LIMIT,
            moves_beyond=longest if "dynamic" in kinds else NO_LIMIT,
        )

    def ahead_of(self, length: int) -> int:
        """Tokens that can be processed together with the one that follows `length` tokens."""
        if length >= self.moves_beyond:
            return 0
        ends = (end for end in (self.longest, self.switch, self.moves_beyond) if length < end)
        return max(0, min(ends, default=NO_LIMIT) - length - 1)


def _rope_kinds(parameters: dict) -> set[str]:
    """The kinds of rotary embeddings in a config; there may be one for every kind of layer."""
    kinds = {parameters.get(name) for name in ("rope_type", "type")}
    for value in parameters.values():
        if isinstance(value, dict):
            kinds |= _rope_kinds(value)
    return {kind for kind in kinds if isinstance(kind, str)}


# =====================================================================================================================
# decoding/lossless/look_ahead.py
#
# Decoding ahead of transformers' loop: drafts under a budget, and dense forwards that check them.
#
# The loop asks a forward for the logits after one token x of every row.
#
#     nothing is ahead      d1 .. dg are drafted by cheap steps; one dense forward over x d1 .. dg gives g + 1 logits,
#                           of which the loop gets the first
#     its token is d1       it gets the next ones at once, and so on
#     it is another token   what is ahead is dropped, and a new draft begins there
#
# So all logits that leave the model are dense. A drafted token is taken if the loop itself takes it, by its own
# processors, random numbers and criteria. Where drafts do not pay, there are dense steps: see [`Pace`].
# =====================================================================================================================


@dataclass(eq=False)
class LookAhead:
    """Processes the forwards of one call of `generate(lossless=True)`."""

    steps: DraftSteps
    pace_of: Callable[[int, int], Pace]
    reach: Reach
    row_ends: RowEnds
    proposals: Proposals = field(default_factory=Proposals)
    counts: DraftCounts = field(default_factory=DraftCounts, init=False)
    _ahead: Ahead | None = field(default=None, init=False, repr=False)
    _known: KnownRows | None = field(default=None, init=False, repr=False)
    _pace: Pace | None = field(default=None, init=False, repr=False)
    _forwards: int = field(default=0, init=False, repr=False)
    _is_begun: bool = field(default=False, init=False, repr=False)

    def __call__(self, session: DecodingSession, inputs: ForwardInputs, all_logits: bool) -> CausalLMOutputWithPast:
        """Process the tokens of a forward of the loop."""
        self._forwards, self._known = self._forwards + 1, None
        is_text = inputs.length == 1 and self._is_begun and not session.is_recomputing
        if is_text and self._ahead is not None:
            found = self._taken_as_drafted(session, inputs)
            if found is not None:
                return found
        self._drop()
        if not is_text or inputs.asks_for_more or inputs.tokens.is_floating_point() or session.cache.episode.length:
            is_step = self._is_step(session, inputs)
            self._is_begun, session.is_recomputing = True, False
            return self._dense_step(session, inputs) if is_step else dense_part(session, inputs, all_logits)
        self.counts.tokens += 1
        self._pace = self._pace or self.pace_of(len(inputs.tokens), session.cache.get_seq_length())
        most = self.pace.begin(self._most(session), self.proposals.left())
        return self._look_ahead(session, inputs, most) if most else self._dense_step(session, inputs)

    def _is_step(self, session: DecodingSession, inputs: ForwardInputs) -> bool:
        """Whether a prompt is one token after those of a cache in which nothing is to be refreshed: a dense step."""
        if self._is_begun or session.is_recomputing or inputs.length != 1 or inputs.tokens.is_floating_point():
            return False
        cache = session.cache
        return cache.get_seq_length() > 0 and not cache.episode.length and not inputs.asks_for_more

    @property
    def processed(self) -> int:
        """Forwards of the call so far, each of which has given the logits of one new token."""
        return self._forwards

    def note_text(self, text: torch.Tensor) -> None:
        """Take note of all tokens `(rows, length)` that the loop has, before a forward."""
        self.proposals.text = text

    def note_settings(self, processors: Iterable[Any], config: GenerationConfig) -> None:
        """Take note of the settings of a loop that begins."""
        self.proposals.observe(processors, config)

    @property
    def pace(self) -> Pace:
        """How many tokens are drafted; known from the first token after the prompt on."""
        assert self._pace is not None, "there is one once a token follows the prompt"
        return self._pace

    def _most(self, session: DecodingSession) -> int:
        """Tokens that it makes sense to draft, at most."""
        left, length = self.proposals.left(), session.cache.get_seq_length()
        most = self.reach.ahead_of(length)
        return most if left is None else min(most, left - 1)

    def _taken_as_drafted(self, session: DecodingSession, inputs: ForwardInputs) -> CausalLMOutputWithPast | None:
        """The logits after a token that was drafted, `None` if it is another one in some row."""
        ahead = self._ahead
        assert ahead is not None, "asked for only if something is ahead"
        taken = ahead.follows(inputs)
        if taken is None:
            return None
        running = [row for row, gap in enumerate(ahead.gaps[ahead.used]) if gap != KNOWN]
        self.counts.drafted += len(running)
        for row in running:
            is_taken = bool(taken[row])
            self.counts.taken += is_taken
            self.pace.agreement.record(ahead.gaps[ahead.used][row], is_taken)
        if not bool(taken.all()):
            self.counts.drafted += sum(gap != KNOWN for gaps in ahead.gaps[ahead.used + 1 :] for gap in gaps)
            self._known = KnownRows.of(ahead, taken)
            return None
        self.counts.tokens += 1
        logits, hidden = ahead.give_next(session.cache)
        output = CausalLMOutputWithPast(logits=logits, past_key_values=session.cache)
        session.cache.end_episode(hidden, inputs.tokens, logits_digest(session, output))
        return output

    def _drop(self) -> None:
        """Forget what is ahead; the text goes on in another way, or it is used up."""
        if self._ahead is not None:
            self.pace.settle(1 + self._ahead.used, self._ahead.seconds)
        self._ahead = None

    def _dense_step(self, session: DecodingSession, inputs: ForwardInputs) -> CausalLMOutputWithPast:
        begin = read_clock()
        controls = session.require_controls()
        plan = StepPlan(session.cache, controls.rule, {}, controls.backend, controls.bits_backend, session.parts)
        is_new = self.counts.steps % controls.episode_length == 0
        output, hidden = run_planned(session, inputs, plan, is_new)
        session.cache.end_episode(hidden, inputs.tokens, logits_digest(session, output))
        if self._pace is not None:  # the token of a prompt does not count
            self.counts.steps += 1
            self.pace.note_tokens(1)
            self.pace.costs.note_dense(now(inputs) - begin)
        return output

    def _look_ahead(self, session: DecodingSession, inputs: ForwardInputs, most: int) -> CausalLMOutputWithPast:
        """Draft at most `most` tokens and check them."""
        begin = read_clock()
        parts, gaps = self._draft(session, inputs, most)
        middle = read_clock()
        whole = parts[-1].after(*parts[:-1])
        ahead = self._check(session, whole, gaps)
        end = now(inputs)
        ahead.seconds = end - begin
        self.pace.note_draft(middle - begin, len(gaps), end - middle)
        self.counts.checks += 1
        self._ahead = ahead
        output = CausalLMOutputWithPast(logits=ahead.logits[:, :1], past_key_values=session.cache)
        session.cache.end_episode(ahead.hidden[:, 0], inputs.tokens, logits_digest(session, output))
        return output

    def _draft(
        self, session: DecodingSession, inputs: ForwardInputs, most: int
    ) -> tuple[list[ForwardInputs], list[list[float]]]:
        """Inputs of the token of `inputs` and of those that are drafted after it, and the gap of each of these."""
        cache, parts, gaps, chance = session.cache, [inputs], list[list[float]](), 1.0
        text = cache.episode
        cache.episode = Episode(text.hidden_state, token_before=text.token_before, logits_digest=text.logits_digest)
        cache.ledger.start_episode()
        draw, (known, self._known) = self.proposals.begin(inputs.tokens, self.row_ends.so_far), (self._known, None)
        for number in range(1, most + 1):
            logits = self.steps(session, parts[-1], is_first=number == 1)
            if known is None:
                proposal = draw(logits)
            else:
                proposal = draw(known.in_place_of(logits), known.rows)
                known = known.after(proposal.tokens.to(logits.device))
            gaps.append(proposal.gaps.tolist())
            parts.append(ahead_of(inputs, proposal.tokens[:, None].to(inputs.tokens.device), number))
            chance *= math.prod(map(self.pace.agreement.probability, gaps[-1]))
            if bool(draw.ended.all()) or not self.pace.goes_on(number, chance):
                break
        cache.drop_tokens(len(gaps))
        cache.episode = text
        return parts, gaps

    def _check(self, session: DecodingSession, whole: ForwardInputs, gaps: list[list[float]]) -> Ahead:
        """A dense forward over tokens, of which the cache keeps the first."""
        controls, number = session.require_controls(), whole.length
        plan = RefreshPlan(session.cache, controls.backend, parts=session.parts)
        output, hidden = processed_densely(session, whole, number, plan)
        ahead = Ahead(whole.tokens[:, 1:], gaps, output.logits, hidden[:, -number:], whole.along)
        ahead.take_from(session.cache)
        return ahead


def now(inputs: ForwardInputs) -> float:
    """The time in seconds at which everything is computed that was asked of the device of these inputs."""
    if inputs.tokens.device.type != "cpu":
        torch.get_device_module(inputs.tokens.device).synchronize(inputs.tokens.device)
    return read_clock()


# =====================================================================================================================
# decoding/lossless/settings.py
#
# The settings of a call of `generate(lossless=True)`, and the checks that need no compute.
#
# With a budget, drafts are steps under it. Without one, they read all weights in 8 bits and, in long texts, a fifth of
# the keys: of the settings of docs/choosing.md the one that gave the most tokens a second, see docs/lossless.md.
# =====================================================================================================================


LEVELS = {"token_keep": 0.2, "bits": 8}
"""Of drafts without a budget, on the axes that the base has."""
SHORT_TEXT = 1024
"""Tokens up to which such drafts read all keys."""
RULE: dict[str, Any] = dict(criterion="sketch", selection="layer", index_bits=4, short_text_tokens=SHORT_TEXT)


def lossless_controls(
    options: DecodeOptions, base: PreTrainedModel, policy: SOLPolicyModel, config: SOLConfig, rows: int
) -> tuple[DecodeControls, DraftSteps]:
    """The settings of drafts, and how their steps run."""
    check_cache(base, config, options.kv_dtype)
    options = dataclasses.replace(options, asks_kv_dtype=True)  # a cache that is given must have the base's dtype, too
    if options.is_empty:
        return default_controls(options, base, config)
    if options.is_dense:
        raise ValueError(
            "`lossless` drafts under the budget of the call, but this one is dense: pass a smaller one, or none, for "
            "which there is a default."
        )
    controls = controls_for(options, base, policy, config, rows)
    assert controls is not None, "only calls that are all dense have none"
    steps = DraftSteps.of(options, controls.action_space or config.action_space)
    return dataclasses.replace(controls, kv_refresh=True), steps


def default_controls(
    options: DecodeOptions, base: PreTrainedModel, config: SOLConfig
) -> tuple[DecodeControls, DraftSteps]:
    """The settings of drafts without a budget, on the axes of [`LEVELS`] that the base has."""
    check_fork()
    instrumentation = Instrumentation.at_start(base)
    reasons = {axis: instrumentation.unsupported(axis) for axis in LEVELS}
    levels = {axis: level for axis, level in LEVELS.items() if reasons[axis] is None}
    try:
        instrumentation.require(levels, "nested", options.max_plane_bytes)
    except UnsupportedAxisError as error:
        reasons["bits"] = error
        levels.pop("bits", None)
    if not levels:
        raise UnsupportedAxisError(
            f"`lossless` has nothing to draft with: {' '.join(str(reason) for reason in reasons.values())} Leave "
            "`lossless` out: `backend='fast'` is dense, too."
        )
    rule = dataclasses.replace(config.selection_rule, **RULE)
    if options.cuda_graphs:
        instrumentation.require_graphs(new_cache(base, config, options.kv_dtype), rule)
    controls = dataclasses.replace(
        options.dense_controls(config),
        rule=rule,
        kv_refresh=True,
        backend="fast" if options.cuda_graphs else options.backend,
        bits_backend="nested",
        dense_axes=frozenset(),
        action_space=space_of(levels),
    )
    return controls, DraftSteps(levels)


def space_of(levels: Mapping[str, float]) -> ActionSpace:
    """The action space of steps at these levels and of dense ones."""
    both: dict[str, Any] = {axis.name: {axis.dense, levels.get(axis.name, axis.dense)} for axis in PUBLISHED_AXES}
    return ActionSpace(**{name: sorted(values) for name, values in both.items()})


def check_cache(base: PreTrainedModel, config: SOLConfig, kv_dtype: str | None) -> None:
    """Raise an error if a call's cache does not allow the base's own text."""
    cache = new_cache(base, config, kv_dtype)
    if cache.kv_dtype is not None:
        name = str(base.dtype).removeprefix("torch.")
        raise ValueError(
            f"`lossless` gives the text of the base, which keys and values in {str(cache.kv_dtype)[6:]} would change: "
            f"pass `kv_dtype={name!r}`, or leave out `lossless`."
        )
    kinds = {type(layer) for layer in cache.layers}
    other = sorted(kind.__name__ for kind in kinds - {PagedLayer, WindowLayer})
    if other or not kinds:
        raise UnsupportedAxisError(
            f"`lossless` cannot run on {type(base).__name__}: {', '.join(other) or 'a cache without layers'} cannot "
            "take tokens back and give them again. Leave it out."
        )


def look_ahead_of(
    options: DecodeOptions, controls: DecodeControls, steps: DraftSteps, base: PreTrainedModel, row_ends: RowEnds
) -> LookAhead:
    """What processes the forwards of a call; see [`LookAhead`]."""
    longest = LONGEST_in_pace if steps.levels is not None else min(LONGEST_in_pace, controls.episode_length)
    length = None if options.lossless is True else int(options.lossless)
    known = _KNOWN.setdefault(base, Known())
    name = f"{steps.name}, {controls.backend}, {controls.bits_backend}"

    def pace(rows: int, context: int) -> Pace:
        return known.pace(name, rows, context, length, longest)

    return LookAhead(steps, pace, Reach.of(base), row_ends)


def known_of(base: PreTrainedModel, rows: int, context: int) -> tuple[Costs, Agreement]:
    """What the last calls have found out about drafts after a context of about so many tokens."""
    known = _KNOWN.get(base, Known())
    found = [(name, costs) for (name, *key), costs in known.costs.items() if key == [rows, context.bit_length()]]
    return (found[-1][1], known.agreements[found[-1][0]]) if found else (Costs(), Agreement())


_KNOWN: "weakref.WeakKeyDictionary[PreTrainedModel, Known]" = weakref.WeakKeyDictionary()
"""Times and agreement of earlier calls."""


# =====================================================================================================================
# decoding/policy_fit.py
#
# The config by which a model generates is the one that is saved with its policy.
# =====================================================================================================================


DESCRIPTIVE = frozenset(
    "base_model_name_or_path base_model_revision base_fingerprint calibration calibration_unit calibration_conditions "
    "place_costs base_max_position_embeddings initializer_range sol_hf_version".split()
)
"""Fields of a config that describe where a policy comes from, and do not change what it computes."""


def differences(config: SOLConfig, other: SOLConfig) -> dict[str, tuple[Any, Any]]:
    """The values of two configs in the fields, levels of axes included, that change what is computed and differ."""
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = [field.name for field in dataclasses.fields(SOLConfig) if field.name not in inherited]
    names = [name for name in (*own, *config.action_space.levels) if name not in DESCRIPTIVE]
    pairs = {name: (_plain_in_policy_fit(getattr(config, name, None)), _plain_in_policy_fit(getattr(other, name, None))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def unite_configs(config: SOLConfig, policy: SOLPolicyModel) -> SOLConfig:
    """The one config of a model and its policy: the policy's, which is saved, with the descriptions of `config`."""
    own = policy.config
    if config is own:
        return own
    check_agreement(config, policy)
    for name, value in vars(config).items():
        if value is not None and getattr(own, name, None) is None:
            setattr(own, name, value)
    return own


def check_agreement(config: SOLConfig, policy: SOLPolicyModel) -> None:
    """Raise a ValueError if the config of a model is not that of its policy, or the policy's sizes do not fit it."""
    found = {} if config is policy.config else differences(config, policy.config)
    if found:
        listed = ", ".join(f"`{name}` ({own!r}, the policy's {other!r})" for name, (own, other) in found.items())
        raise ValueError(
            f"The config of the model differs from that of its policy in {listed}: it would generate by one and save "
            "the other. Give both the same config: `model.config = model.policy.config`."
        )
    actions, steps = policy.action_embedding.num_embeddings - 1, policy.position_embedding.num_embeddings
    if actions != len(config.action_space):
        raise ValueError(
            f"The policy has {actions} actions, but its config describes {len(config.action_space)}: the levels of "
            "its axes cannot be changed once it is made."
        )
    if steps != config.episode_length:
        raise ValueError(
            f"The policy was made for episodes of {steps} steps, but its config has `episode_length` "
            f"{config.episode_length}."
        )


def _plain_in_policy_fit(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# =====================================================================================================================
# decoding/prompt_kinds.py
#
# What a prompt is: tensors, not a text, a list or the whole output of a tokenizer.
# =====================================================================================================================


NAMES = ("input_ids", "inputs_embeds", "attention_mask")


def check_prompt_kinds(inputs: Any, arguments: Mapping[str, Any], method: str = "generate") -> None:
    """Raise a ValueError for a prompt that is no tensor."""
    for name, value in (("inputs", inputs), *((name, arguments.get(name)) for name in NAMES)):
        if value is None or isinstance(value, torch.Tensor):
            continue
        if isinstance(value, Mapping) or hasattr(value, "input_ids"):  # a BatchEncoding is a UserDict
            raise ValueError(
                f"`{name}` is the whole output of a tokenizer: pass its parts, `{method}(**inputs)` with two stars."
            )
        kind = "a text" if isinstance(value, str) else type(value).__name__
        raise ValueError(
            f"`{name}` must be a tensor, got {kind}: pass `**tokenizer(text, return_tensors='pt')`, or "
            "`torch.tensor([[...]])` with one list of ids per row."
        )


# =====================================================================================================================
# decoding/kept_cache.py
#
# Bases that drop the cache of a running generation.
#
# The code of a base prepares the arguments of every forward, and may leave the cache out, to have the whole text
# computed again. Phi-3 does so when the text outgrows its short rotary factors: all keys change. Under a budget the text
# is then computed again into the call's own [`SOLCache`], by one dense forward. Ledger and trace continue.
# =====================================================================================================================


def keep_cache(base: PreTrainedModel, prepared: dict[str, Any]) -> dict[str, Any]:
    """The prepared arguments of a forward, with the cache of the running call if the base has left it out."""
    session = DecodingSession.current()
    if session is None or session.controls is None or prepared.get("past_key_values") is session.cache:
        return prepared
    name, cached = type(base).__name__, session.cache.get_seq_length()
    other = prepared.get("past_key_values")
    if other is not None:
        raise UnsupportedAxisError(
            f"{name} exchanges the cache of a generation for a {type(other).__name__} of its own, so it cannot run "
            "under a budget: leave the budget out."
        )
    tokens = prepared.get("inputs_embeds") if prepared.get("input_ids") is None else prepared["input_ids"]
    if tokens is None or tokens.shape[1] <= cached or _begins_late(prepared.get("position_ids")):
        raise UnsupportedAxisError(
            f"{name} drops the cache of {cached} tokens here and has to compute the whole text again, but was given "
            "its last part only: pass all token ids of the text to `generate`."
        )
    if cached:
        session.cache.forget_tokens()
    session.is_recomputing = _changes_within(base, tokens, cached)
    return prepared | {"past_key_values": session.cache}


def _begins_late(positions: torch.Tensor | None) -> bool:
    """Whether the first token is not the first of its text; it has position 0, padding may have position 1."""
    return positions is not None and bool(positions[..., 0].min() > 1)


def _changes_within(base: PreTrainedModel, tokens: torch.Tensor, cached: int) -> bool:
    """Whether the last token may be computed in another way than those before it, if it were a step of its own."""
    switch = getattr(base.config, "original_max_position_embeddings", None)
    return cached > 0 or switch is None or tokens.shape[1] - 1 <= switch


# =====================================================================================================================
# decoding/wrapped_generation.py
#
# transformers' generation loop on a wrapper: what it asks of a model is answered by the base.
#
# Some classes of bases override methods of the loop: vision-language models compute positions in three dimensions, for
# example. The loop has to call the base's versions, except for those that [`WrappedGeneration`] has itself.
# =====================================================================================================================


class WrappedGeneration(GenerationMixin):
    """The methods of transformers' loop for a model around a base, which is its attribute `base`."""

    base: PreTrainedModel

    def prepare_inputs_for_generation(self, input_ids, *args, inputs_embeds=None, **kwargs):
        if inputs_embeds is not None:
            kwargs["inputs_embeds"] = inputs_embeds
        look_ahead = DecodingSession.looking_ahead(kwargs.get("past_key_values"))
        if look_ahead is not None:
            look_ahead.note_text(input_ids)
        prepared = self.base.prepare_inputs_for_generation(input_ids, *args, **kwargs)
        return keep_cache(self.base, prepared)

    def _prepare_position_ids_for_generation(self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]):
        return positions_in_loop(self.base, inputs_tensor, model_kwargs)

    def _get_logits_processor(self, generation_config: GenerationConfig, *args, **kwargs) -> LogitsProcessorList:
        is_own = type(self.base)._get_logits_processor is not GenerationMixin._get_logits_processor
        make = self.base._get_logits_processor if is_own else super()._get_logits_processor
        processors = make(generation_config, *args, **kwargs)
        look_ahead = DecodingSession.looking_ahead((kwargs.get("model_kwargs") or {}).get("past_key_values"))
        if look_ahead is not None:
            look_ahead.note_settings(processors, generation_config)
        return processors

    def _get_stopping_criteria(self, *args, **kwargs) -> StoppingCriteriaList:
        return ObservedStoppingCriteriaList(super()._get_stopping_criteria(*args, **kwargs))

    def _get_candidate_generator(self, *args, **kwargs) -> CandidateGenerator:
        generator = super()._get_candidate_generator(*args, **kwargs)
        if isinstance(generator, EarlyExitCandidateGenerator):
            leave_out_budget(generator.generation_config)
        return generator

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        try:
            self.base._validate_model_kwargs(model_kwargs)
        except ValueError as error:
            raise ValueError(str(error) + explain_unknown(model_kwargs)) from error

    def _prepare_generation_config(self, *args, **kwargs) -> tuple[GenerationConfig, dict[str, Any]]:
        prepared, model_kwargs = super()._prepare_generation_config(*args, **kwargs)
        suit_to_session(prepared, model_kwargs)
        return prepared, model_kwargs

    def _prepare_cache_for_generation(self, *args, **kwargs):
        return self.base._prepare_cache_for_generation(*args, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        refuse_batching()

    def continuous_batching_context_manager(self, *args, **kwargs):
        refuse_batching()

    def generate_batch(self, *args, **kwargs):
        refuse_batching()


def overridden_hooks(base: PreTrainedModel, wrapper: type[GenerationMixin]) -> dict[str, Callable]:
    """The methods of `GenerationMixin` that the class of `base` overrides and `wrapper` does not, bound to `base`."""
    hooks = {}
    for name, original in vars(GenerationMixin).items():
        if name.startswith("__") or not callable(getattr(GenerationMixin, name)):
            continue
        theirs = getattr(type(base), name, None)
        if getattr(wrapper, name) is original and theirs is not None and theirs is not original:
            hooks[name] = getattr(base, name)
    return hooks


# =====================================================================================================================
# decoding/budgeted_generation.py
#
# A `generate` call from its options to its output: checks, session, transformers' loop, and what is reported.
# =====================================================================================================================


class BudgetedGeneration(WrappedGeneration):
    """Mixin of [`SOLForCausalLM`]: what `generate` does with its options."""

    config: SOLConfig
    policy: SOLPolicyModel
    action_space: Any
    """[`SOLConfig.action_space`]."""

    def _generate(
        self, inputs: torch.Tensor | None, generation_config: GenerationConfig | None, given: dict, kwargs: dict
    ) -> ModelOutput | torch.LongTensor:
        """`generate` with its options in `given`, and transformers' arguments in `kwargs`."""
        check_prompt_kinds(inputs, kwargs)
        options = resolve_options(given, generation_config, self.generation_config, self.config)
        prompt, configs = find_prompt(inputs, kwargs), (generation_config, self.generation_config)
        if prompt is None and not options.runs_base:
            device = compute_device(self.base)
            prompt = inputs = begin_of_text(kwargs, generation_config, self.generation_config, device)
        add_mask_of_assistant(prompt, kwargs, generation_config)
        contexts = contexts_of_prompt(prompt, kwargs.get("attention_mask"))
        meter = AgreementMeter.of_call(options, prompt, kwargs, configs) if options.measure_agreement else None
        row_ends = RowEnds(prompt.shape[1] if prompt is not None and prompt.dim() == 2 else 0)
        controls, look_ahead = self._settings(options, 1 if prompt is None else len(prompt), row_ends)
        vocab_size = self.base.get_input_embeddings().weight.shape[0]
        session = session_of_call(self.base, self.config, controls, prompt, configs, kwargs, vocab_size)
        if session is not None:
            session.look_ahead, session.meter = look_ahead, meter
        if not options.is_bare:
            kwargs["stopping_criteria"] = StoppingCriteriaList([*(kwargs.get("stopping_criteria") or ()), row_ends])
        with contextlib.ExitStack() as stack:
            if controls is not None:
                stack.enter_context(Instrumentation.of(self.base))
            lends = kwargs.get("custom_generate") is not None
            stack.enter_context(DecodingSession.none_running() if session is None else session.running(lends))
            loop = stack.enter_context(custom_loop(given, kwargs))
            generate = own_loop(self.base, self.generation_config) or super().generate
            output = generate(inputs, generation_config=generation_config, **kwargs)
        if controls is not None and not loop.calls:  # calls of a custom loop check themselves
            check_executed(session, output, prompt, len(row_ends.ended))
        if options.is_bare or loop.calls or not isinstance(output, ModelOutput):
            return output
        cache = None if options.is_dense or options.lossless else kwargs["past_key_values"]
        attached = attach_steps(output, row_ends, cache, self.action_space, options.compute_unit)
        if not options.lossless:
            count = partial(self._count_bytes, options, attached.actions, cache is None, contexts)
            attached.count_bytes_by(count)
        if look_ahead is not None:
            look_ahead.counts.report(attached)
        if meter is not None and isinstance(attached, SOLGenerateDecoderOnlyOutput):
            attached.agreement = meter.agreement(self.base, output.sequences, row_ends.running())
        return attached

    def _count_bytes(
        self, options: DecodeOptions, actions: torch.Tensor | None, is_dense: bool, contexts: torch.Tensor
    ) -> torch.Tensor:
        """The share of the bytes of dense steps that every row has read, `(rows,)`."""
        raise NotImplementedError

    def _settings(
        self, options: DecodeOptions, rows: int, row_ends: RowEnds
    ) -> tuple[DecodeControls | None, LookAhead | None]:
        """The settings of the steps of a call, and what processes its forwards if it is one with `lossless`."""
        check_agreement(self.config, self.policy)
        if not options.runs_base and isinstance(self, nn.Module):
            check_not_compiled(self)
        if not options.lossless:
            return controls_for(options, self.base, self.policy, self.config, rows), None
        controls, steps = lossless_controls(options, self.base, self.policy, self.config, rows)
        return controls, look_ahead_of(options, controls, steps, self.base, row_ends)


# =====================================================================================================================
# decoding/cache_forward.py
#
# A forward of the wrapped model over a [`SOLCache`]: its checks, its parts, and the logits that are wanted.
# =====================================================================================================================


def forward_over_cache(
    session: DecodingSession,
    arguments: Mapping[str, Any],
    attention_mask: torch.Tensor | None,
    logits_to_keep: int | torch.Tensor = 0,
) -> CausalLMOutputWithPast:
    """Process the tokens of a forward. If it is interrupted, the cache is what it was before."""
    inputs = inputs_of_in_cache_forward(session, arguments, attention_mask)
    all_logits = not (isinstance(logits_to_keep, int) and logits_to_keep == 1)
    context = watching(session.base) if session.controls is None else Instrumentation.of(session.base)
    alone = nullcontext() if session is DecodingSession.current() else using(session.cache)
    with torch.no_grad(), alone, context, session.undone_if_interrupted():
        session.set_up_rows(len(inputs.tokens), inputs.tokens.device)
        session.cache.observe_inputs(inputs.tokens, attention_mask, session.decode_from, session.mask_was_passed)
        output = (session.look_ahead or decode_forward)(session, inputs, all_logits)
    if session.meter is not None:
        session.meter.note(output.logits[:, -1])
    if isinstance(logits_to_keep, torch.Tensor):
        output.logits = output.logits[:, logits_to_keep]
    elif logits_to_keep > 1:
        output.logits = output.logits[:, -logits_to_keep:]
    return output


def inputs_of_in_cache_forward(
    session: DecodingSession, arguments: Mapping[str, Any], attention_mask: torch.Tensor | None
) -> ForwardInputs:
    """The inputs of a forward, from its arguments."""
    given = {name: value for name, value in arguments.items() if value is not None}
    ids, embeds = given.pop("input_ids", None), given.pop("inputs_embeds", None)
    if (ids is None) == (embeds is None):
        raise ValueError("Pass either `input_ids` or `inputs_embeds`.")
    tokens = embeds if ids is None else ids
    if tokens.dim() < 2 or 0 in tokens.shape[:2]:
        raise ValueError(
            f"There are no tokens to process: `input_ids` or `inputs_embeds` has shape {tuple(tokens.shape)}."
        )
    base, is_running = session.base, session.controls is not None
    if is_running and given.get("output_attentions"):
        raise ValueError("`output_attentions` cannot be used under a budget: leave it out.")
    if is_running and getattr(base.config, "output_attentions", False):
        given["output_attentions"] = False  # the config's default is not a request
    if session is DecodingSession.current() and "position_ids" not in accepted_arguments(base):
        given.pop("position_ids", None)  # transformers' loop makes them because the wrapper accepts them
    return ForwardInputs.of(tokens, attention_mask, given)


# =====================================================================================================================
# execution/linear/plane_calibration.py
#
# Scales of nested planes that fit the inputs of the layers, as a text shows them.
# =====================================================================================================================


class InputSquares:
    """Sums of squares of the inputs of linear layers, by channel."""

    def __init__(self, layers: Sequence[PlanedLayer]):
        self.layers = [layer for layer in layers if layer.part is not None]
        self.sums: dict[int, torch.Tensor] = {}
        self.counts: dict[int, int] = {}

    def add(self, module: nn.Module, inputs: tuple) -> None:
        """Add the input of a layer; a forward pre-hook."""
        lines = inputs[0].detach().flatten(0, -2).double()
        key = id(module)
        self.sums[key] = self.sums.get(key, 0) + lines.square().sum(dim=0)
        self.counts[key] = self.counts.get(key, 0) + len(lines)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block, inputs of the layers are added."""
        with ExitStack() as stack:
            for layer in self.layers:
                stack.callback(layer.module.register_forward_pre_hook(self.add).remove)
            yield

    def choose_scales(self) -> None:
        """Let the next planes of every layer that was called fit its inputs."""
        for layer in self.layers:
            count = self.counts.get(id(layer.module), 0)
            if layer.part is not None and count:
                layer.part.choose_scales((self.sums[id(layer.module)] / count).float())


@torch.no_grad()
def calibrate(base: PreTrainedModel, layers: Sequence[PlanedLayer], input_ids: torch.LongTensor) -> None:
    """Run the base over texts, row by row, and let the next planes of its layers fit their inputs."""
    squares = InputSquares(layers)
    with squares.watching():
        for row in input_ids.to(base.device):
            base(input_ids=row[None], use_cache=False)
    squares.choose_scales()


# =====================================================================================================================
# decoding/plane_scales.py
#
# `model.calibrate_planes()`: nested planes whose scales fit the inputs of the layers, as a text shows them.
# =====================================================================================================================


class PlaneScales(PreTrainedModel):
    """Mixin of [`SOLForCausalLM`]: the method `calibrate_planes`."""

    base: PreTrainedModel

    def calibrate_planes(self, input_ids: torch.LongTensor) -> None:
        """Choose the scales of `bits_backend="nested"` by a text: less is lost at the same bytes."""
        is_tokens = isinstance(input_ids, torch.Tensor) and input_ids.dtype in (torch.long, torch.int)
        if not is_tokens or input_ids.dim() != 2 or not input_ids.numel():
            found = tuple(input_ids.shape) if isinstance(input_ids, torch.Tensor) else input_ids
            raise ValueError(f"`input_ids` must be token ids (rows, length), got {found}.")
        layers = planed_layers(self.base, find_mlps(self.base))
        check_layers(layers)
        with evaluating(self.base):
            calibrate(self.base, layers, input_ids)


# =====================================================================================================================
# decoding/scoring.py
#
# Teacher-forced scoring: rows of any length, aligned so that all decode steps begin together.
#
# row 0   pad pad c c | s s s l            c: context, processed densely
# row 1   c   c   c c | s l . .            s: a decode step each, scored on the token after it
#                     ^ context ends       l: label of the last step only;  .: filler, not counted
#
# Rows that are the same up to a step have the same result at this step, so it is computed once for all of them. Rows
# that have ended are left out. Both require a controller whose rows are independent; otherwise rows share their dense
# contexts only.
# =====================================================================================================================


OWN_PROCESSORS = (AxisBiasProcessor, DenseRowsProcessor, HardBudgetProcessor, PinnedAxesProcessor)
"""Processors whose result for a row does not depend on other rows."""


def label_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of `labels` `(rows, steps)` under `logits` `(rows, steps, vocab)`, in float32."""
    return logits.float().log_softmax(dim=-1).gather(-1, labels[..., None]).squeeze(-1)


def score_rows(session: DecodingSession, rows: AlignedRows, return_logits: bool) -> SOLScoreOutput:
    """Score every row through the decode step."""
    cache, controls = session.cache, session.require_controls()
    mask, step_mask, device = rows.attention_mask, rows.step_mask, rows.tokens.device
    everyone = torch.arange(len(rows.tokens), device=device)
    session.steps = step_mask.sum(dim=1) if controls.is_exact else None
    merging, place = can_merge(controls) and not rows.further, prefill_rows(session, rows)
    actions, counted = torch.full_like(step_mask, NO_ACTION, dtype=torch.long), torch.zeros_like(step_mask)
    logprobs, greedy = torch.zeros(step_mask.shape, device=device), torch.zeros_like(step_mask)
    logits = []
    for step in range(step_mask.shape[1]):
        end, alive = rows.context + step + 1, everyone[step_mask[:, step]]
        leaders, own = rows.merge(end, alive) if merging else (everyone, alive)
        select_rows(session, None if place is None else place[leaders], len(leaders), rows.padding[leaders])
        place = torch.zeros_like(everyone).index_copy(0, alive, own) if merging else everyone
        begin = 0 if end == 1 else end - 1
        inputs = inputs_of_in_scoring(rows, leaders, begin, end, mask)
        output = decode_forward(session, inputs, all_logits=False, active=step_mask[leaders, step])
        step_logits, label = output.logits[:, -1], rows.tokens[alive, end]
        logprobs[alive, step] = step_logits.float().log_softmax(dim=-1)[own, label]
        greedy[alive, step] = step_logits.argmax(dim=-1)[own] == label
        actions[alive, step], counted[alive, step] = (value[own] for value in cache.trace[-1])
        if return_logits:
            logits.append(step_logits[place])
    realised = realised_means(actions, counted, cache.action_space)
    return SOLScoreOutput(
        logprobs=logprobs,
        actions=actions,
        realised=realised,
        net_keep=net_keep_of(realised, cache.action_space),
        step_mask=step_mask,
        logits=torch.stack(logits, dim=1) if return_logits else None,
        greedy=greedy,
    )


def can_merge(controls: DecodeControls) -> bool:
    """Whether equal rows have equal results, so that they can be computed once and ended rows can be left out."""
    known = all(isinstance(processor, OWN_PROCESSORS) for processor in controls.processors)
    is_same = known and not controls.is_exact  # rows of other lengths have other steps left
    return controls.controller.rows_are_independent and is_same and not controls.do_sample and can_share(controls)


def can_share(controls: DecodeControls) -> bool:
    """Whether all rows have the same budget."""
    return controls.budget is None or controls.budget.rows is None


def prefill_rows(session: DecodingSession, rows: AlignedRows) -> torch.Tensor | None:
    """Process the contexts densely; a context that several rows have in common is processed once."""
    everyone = torch.arange(len(rows.tokens), device=rows.tokens.device)
    shared = can_share(session.require_controls()) and not rows.further
    leaders, place = rows.merge(rows.context, everyone) if shared else (everyone, everyone)
    if rows.context == 0:
        return None
    select_rows(session, None, len(leaders), rows.padding[leaders])
    dense_forward(session, inputs_of_in_scoring(rows, leaders, 0, rows.context, rows.attention_mask, is_dense=True))
    return place


def inputs_of_in_scoring(
    rows: AlignedRows,
    leaders: torch.Tensor,
    begin: int,
    end: int,
    mask: torch.Tensor | None,
    is_dense: bool = False,
) -> ForwardInputs:
    """The inputs of a forward over the columns from `begin` to `end` of the rows `leaders`; all rows beside images."""
    if rows.further:
        return ForwardInputs.of(rows.tokens, mask, rows.further).part(begin, end, is_dense)
    return ForwardInputs(rows.tokens[leaders, begin:end], None if mask is None else mask[leaders])


def select_rows(session: DecodingSession, source: torch.Tensor | None, number: int, padding: torch.Tensor) -> None:
    """Give the cache `number` rows: copies of those at `source` `(number,)`, or new ones if it is empty."""
    cache = session.cache
    if cache.rows == 0:
        session.set_up_rows(number, padding.device)
        if bool(padding.any()):
            cache.set_padding(padding)
            cache.position_offset = padding - first_position(session.base)
    elif source is not None and (number != cache.rows or not torch.equal(source, torch.arange(number).to(source))):
        cache.batch_select_indices(source)


def score_rows_densely(
    base: PreTrainedModel, rows: AlignedRows, space: ActionSpace, return_logits: bool
) -> SOLScoreOutput:
    """Score every row in one parallel forward of the base, which is equivalent to a budget of (1, 1, 16)."""
    mask, step_mask = rows.attention_mask, rows.step_mask
    tokens, steps = rows.tokens[:, :-1], step_mask.shape[1]
    inputs = ForwardInputs.of(rows.tokens, mask, rows.further).part(0, tokens.shape[1], is_dense=True)
    arguments = inputs.arguments()
    if mask is not None:
        arguments["attention_mask"] = mask[:, :-1]
        if "position_ids" in accepted_arguments(base) and not counts_images(base, inputs):
            slots = torch.arange(tokens.shape[1], device=tokens.device)
            arguments["position_ids"] = (slots - rows.padding[:, None]).clamp(min=0) + first_position(base)
    if "logits_to_keep" in accepted_arguments(base):
        arguments["logits_to_keep"] = steps
    logits = base(**arguments, use_cache=False, return_dict=True).logits[:, -steps:]
    dense_id = space.dense_id if space.has_dense else NO_ACTION
    actions = torch.full_like(step_mask, dense_id, dtype=torch.long)
    realised = torch.tensor(space.dense, device=tokens.device).repeat(len(tokens), 1)
    return SOLScoreOutput(
        logprobs=label_logprobs(logits, rows.tokens[:, -steps:]) * step_mask,
        actions=actions.masked_fill(~step_mask, NO_ACTION),
        realised=realised,
        net_keep=net_keep_of(realised, space),
        step_mask=step_mask,
        logits=logits if return_logits else None,
        greedy=(logits.argmax(dim=-1) == rows.tokens[:, -steps:]) & step_mask,
    )


# =====================================================================================================================
# controllers/schedule.py
#
# Controllers that follow a given schedule.
# =====================================================================================================================


class ScheduleController(Controller):
    """Follows a given schedule, independent of the model's outputs."""

    needs_budget = False

    def __init__(self, actions: torch.Tensor):
        actions = torch.as_tensor(actions)
        if actions.dim() != 2 or actions.is_floating_point():
            raise ValueError(f"A schedule has action ids of shape (steps, rows), got {tuple(actions.shape)}.")
        self.actions = actions.long()

    def __call__(self, observation: Observation) -> torch.Tensor:
        steps, rows = self.actions.shape
        if observation.total_step >= steps:
            raise ValueError(f"The schedule has {steps} steps, but step {observation.total_step + 1} was reached.")
        if rows not in (1, observation.rows):
            raise ValueError(f"The schedule has {rows} rows, but the input has {observation.rows}.")
        space = observation.action_space
        actions = self.actions[observation.total_step].to(observation.controllable.device)
        if observation.total_step == 0 and not bool(((self.actions >= 0) & (self.actions < len(space))).all()):
            raise ValueError(f"The schedule has action ids outside of 0..{len(space) - 1}.")
        scores = closeness(space.ratios_on(actions.device)[actions], space).expand(observation.rows, -1)
        chosen = actions.expand(observation.rows)[:, None]
        return scores.scatter(1, chosen, torch.ones_like(chosen, dtype=scores.dtype))


# =====================================================================================================================
# execution/compiled_code.py
#
# There is no compiled code to load.
# =====================================================================================================================


def load_kernels(device: Any, dtype: Any, stored: Any = None) -> None:
    """Nothing to do."""


# =====================================================================================================================
# execution/coverage.py
#
# Which layers of a base each axis reaches.
# =====================================================================================================================


@dataclass(frozen=True)
class Coverage:
    """Which decoder layers each axis reaches on a base; printed, it is a table."""

    base: str
    layer_count: int
    layers: dict[str, tuple[int, ...]]
    reasons: dict[str, str]
    copied_bytes: int = 0
    compiled_steps: bool | None = None
    kv_dtype: str | None = None

    @classmethod
    def of(cls, base: PreTrainedModel, cache: SOLCache) -> "Coverage":
        """The coverage of a base, for the axes of the cache's action space."""
        instrumentation, name = Instrumentation.at_start(base), type(base).__name__
        layers: dict[str, tuple[int, ...]] = {}
        reasons = {}
        for axis in cache.action_space.axis_names:
            try:
                executor = instrumentation.executor(axis)
                executor.check_cache(cache, name)
                layers[axis] = tuple(executor.layers(cache))
            except UnsupportedAxisError as error:
                layers[axis], reasons[axis] = (), str(error)
        count, copied = layer_count(base) or 0, instrumentation.copied_bytes
        kv_dtype = None if cache.kv_dtype is None else str(cache.kv_dtype).removeprefix("torch.")
        return cls(name, count, layers, reasons, copied, BaseStack.is_recognised(base), kv_dtype)

    def __str__(self) -> str:
        width = max(len(axis) for axis in self.layers)
        lines = [f"{self.base}, {self.layer_count} decoder layers"]
        for axis, reached in self.layers.items():
            what = f"{len(reached)} of {self.layer_count} layers: {ranges(reached)}" if reached else "no layer"
            reason = f" ({self.reasons[axis]})" if axis in self.reasons else ""
            lines.append(f"{axis:<{width}}  {what}{reason}")
        if self.compiled_steps is not None:
            way = (
                "one compiled program"
                if self.compiled_steps
                else "the modules of the base, whose structure is another"
            )
            lines.append(f"decode steps on the CPU: {way}")
        if self.kv_dtype is not None:
            lines.append(f"keys and values are kept in {self.kv_dtype}")
        if self.copied_bytes:
            lines.append(f"copies of weights: {self.copied_bytes:,} bytes, which `model.drop_copies()` frees")
        return "\n".join(lines)

    __repr__ = __str__


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as text, with ranges shortened: `0-3, 7, 9-10`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


# =====================================================================================================================
# decoding/warmup.py
#
# `model.warmup()`: does ahead of the first call what a first call does once.
#
# Compiled code is loaded, the base is recognised, copies and planes of weights are made. What a call needs depends on
# the levels that its steps take: a copy of a weight is made by the first step that reads a part of it. So a short text
# is processed on a schedule: every axis that the call controls takes its smallest level alone, then all of them take
# their levels together.
#
#     step         1     2     3     4     5     6 ...
#     token_keep   .2    1     .2    .5    1     .2
#     bits         16    6     6     8     16    6
# =====================================================================================================================


CONTEXT = 40
"""Tokens before the steps: with fewer than 32 keys, attention outside of programs is not compiled code."""
LONG_CONTEXT, DRAFTED, NEW = 280, 3, 12
"""Tokens of a text of which drafts read a share of the keys, those of a draft, and how many are made."""


class Warmup(PreTrainedModel):
    """Mixin of [`SOLForCausalLM`]: the method `warmup`."""

    config: SOLConfig
    base: PreTrainedModel
    policy: SOLPolicyModel
    generation_config: GenerationConfig

    @torch.no_grad()
    def warmup(self, **options) -> Coverage:
        """Prepare everything that calls with these options need, so that none of them compiles or copies anything."""
        resolved = resolve_options(options, None, self.generation_config, self.config)
        rows = 1 if resolved.budget is None else resolved.budget.rows or 1
        given = None if resolved.is_bare else controls_for(resolved, self.base, self.policy, self.config, rows)
        cache = new_cache(self.base, self.config, resolved.kv_dtype)
        load_kernels(compute_device(self.base), self.base.dtype, cache.kv_dtype)
        self.policy.prepare_step(rows)
        if resolved.is_bare or resolved.is_dense and not resolved.runs_base:
            self._process(resolved.dense_controls(self.config), steps=2)
        elif given is None:
            self._process(None, steps=2)
        axes = self._controlled(resolved)
        if axes:
            schedule = level_schedule(self.config.action_space, axes, least=self.config.episode_length + 2)
            self._process(self._schedule_controls(resolved, axes, schedule), len(schedule))
        if given is not None and not resolved.is_dense:
            self._process(given, steps=2, rows=rows)
        if resolved.lossless:
            self._draft(resolved, rows)
        return Coverage.of(self.base, own_cache(cache, self.base, self.config))

    def _draft(self, options: DecodeOptions, rows: int) -> None:
        """Draft and check in a text that counts as short, and in one that does not, however few tokens it has."""
        controls, steps = lossless_controls(options, self.base, self.policy, self.config, rows)
        options = dataclasses.replace(options, lossless=DRAFTED)
        long = dataclasses.replace(controls, rule=dataclasses.replace(controls.rule, short_text_tokens=0))
        for context, chosen in ((CONTEXT, controls), (LONG_CONTEXT, long)):
            text = self._text(context).repeat(rows, 1)
            new = min(NEW, text.shape[1] - 1)
            begin = text.shape[1] - new
            cache = own_cache(new_cache(self.base, self.config, controls.kv_dtype), self.base, self.config)
            session = DecodingSession(self.base, cache, chosen, decode_from=begin - 1)
            session.look_ahead = look_ahead_of(options, chosen, steps, self.base, RowEnds(begin))
            with Instrumentation.of(self.base), session.running():
                logits = self(text[:, :begin], past_key_values=cache, logits_to_keep=1).logits
                for _ in range(new - 1):
                    logits = self(logits[:, -1:].argmax(-1), past_key_values=cache).logits

    def _text(self, length: int) -> torch.Tensor:
        """Ids `(1, length)` of a text, fewer if the base has fewer positions."""
        length = min(length, self.config.base_max_position_embeddings or length)
        ids = (torch.arange(length) * 7 + 3)[None] % (self.config.base_vocab_size or length)
        return ids.to(compute_device(self.base))

    def _controlled(self, options: DecodeOptions) -> list[str]:
        """The axes of which steps of a call may take any level."""
        space = self.config.action_space
        if not options.is_bare:
            held = options.dense_axes(space)
            return [] if options.is_dense else [axis for axis in options.controlled_axes(space) if axis not in held]
        base = Instrumentation.at_start(self.base)
        return [
            axis for axis in space.axis_names if options.controls_axis(axis, space) and base.unsupported(axis) is None
        ]

    def _schedule_controls(
        self, options: DecodeOptions, axes: list[str], schedule: torch.Tensor
    ) -> DecodeControls | None:
        """Controls of steps on a schedule of action ids `(steps, 1)`, under a budget on some axes only."""
        levels = self.config.action_space.levels
        options = dataclasses.replace(
            options,
            budget=Budget.of({axis: min(levels[axis]) for axis in axes}),
            budget_mode="soft",
            controller=ScheduleController(schedule),
            action_processors=None,
            do_sample_actions=False,
        )
        return controls_for(options, self.base, self.policy, self.config, rows=1)

    def _process(self, controls: DecodeControls | None, steps: int, rows: int = 1) -> None:
        """Process a text by steps; without controls by a forward of the base."""
        context = max(CONTEXT, self.config.short_text_tokens + 1)
        ids = self._text(context + steps + 1).repeat(rows, 1)
        aligned = align_rows(ids, None, max(0, ids.shape[1] - steps - 1))
        if controls is None:
            score_rows_densely(self.base, aligned, self.config.action_space, return_logits=False)
            return
        with Instrumentation.of(self.base):
            cache = own_cache(new_cache(self.base, self.config, controls.kv_dtype), self.base, self.config)
            session = DecodingSession(self.base, cache, controls, decode_from=aligned.context)
            score_rows(session.begin(), aligned, return_logits=False)


def level_schedule(space: ActionSpace, axes: list[str], least: int) -> torch.Tensor:
    """Action ids `(steps, 1)`: each of `axes` alone at its smallest level, then all of them at their levels in turn."""
    levels = {axis: sorted(space.levels[axis]) for axis in space.axis_names}
    largest = {axis: values[-1] for axis, values in levels.items()}
    wanted = [largest | {axis: levels[axis][0]} for axis in axes]
    together = max(len(levels[axis]) for axis in axes)
    for step in range(max(together, least - len(axes))):
        wanted.append(largest | {axis: levels[axis][step % len(levels[axis])] for axis in axes})
    ids = {tuple(map(float, values)): index for index, values in enumerate(space.table)}
    return torch.tensor([[ids[tuple(map(float, step.values()))]] for step in wanted])


# =====================================================================================================================
# execution/base_embeddings.py
#
# Embeddings, LM head and device of a model that consists of a base and a policy: those of the base.
# =====================================================================================================================


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


# =====================================================================================================================
# hub/fingerprint.py
#
# By what a base is recognised: its sizes, and a few of its weights.
#
# Two models of equal sizes fit the same policy, but the policy has learned about one of them. The sizes must be equal.
# Of the weights, 16 numbers of the input embeddings and 16 of the last layer are compared:
#
#     equal up to rounding       the same weights, in any float dtype
#     correlated                 a quantized, fine-tuned or merged copy
#     neither                    another model
# =====================================================================================================================


SAMPLES_in_fingerprint = 16
ROUNDING_in_fingerprint, RELATED = 0.01, 0.9
"""Largest difference, as a share of the largest number, between equal weights; smallest correlation of a copy's."""


def fingerprint_of(base: PreTrainedModel) -> dict[str, Any]:
    """The fingerprint of a base, as plain numbers."""
    config = base.config.get_text_config()
    shape = {key: getattr(config, key, None) for key in SHAPE_KEYS}
    sizes = {key: value if isinstance(value, str | int) else None for key, value in shape.items()}
    samples = dict(zip(SAMPLE_KEYS, _weights_of(base), strict=True))
    return sizes | {name: _sample_in_fingerprint(weight) for name, weight in samples.items()}


def check_fingerprint_of(base: PreTrainedModel, expected: dict[str, Any] | None, named: str | None) -> None:
    """Compare a base with the fingerprint in a policy's config."""
    if expected is None:
        return
    found, this = fingerprint_of(base), base.config.name_or_path or type(base).__name__
    theirs = f"the base that it was made with{f', {named},' if named else ''}"
    differing = [
        f"`{key}` is {found[key]}, not {expected[key]}"
        for key in SHAPE_KEYS
        if expected.get(key) is not None and found[key] is not None and found[key] != expected[key]
    ]
    if differing:
        raise ValueError(
            f"The policy was made for another base: of {this}, {'; '.join(differing)}. Load {theirs} or pass "
            "`check_base=False`."
        )
    pairs = [(expected.get(key), found[key]) for key in SAMPLE_KEYS]
    kinds = [_compare(left, right) for left, right in pairs if left and right]
    if "other" in kinds:
        logger.warning(
            f"The weights of {this} are those of another model than {theirs}. The policy has not learned about this "
            "model: within a budget, its choices may be no better than random ones. Load the right base, or train a "
            "policy for this one with SOLForCausalLM.from_base."
        )
    elif "related" in kinds:
        logger.warning(
            f"The weights of {this} differ a little from those of {theirs}, as those of a quantized or fine-tuned "
            "copy do. What was measured for the policy may not hold for this copy."
        )


def _weights_of(base: PreTrainedModel) -> Iterator[torch.Tensor | None]:
    """The input embeddings, and the last matrix of the decoder layers."""
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    outer = {id(parameter) for module in (embeddings, head) for parameter in _parameters_in_fingerprint(module)}
    matrices = [
        parameter
        for name, parameter in base.named_parameters()
        if id(parameter) not in outer and parameter.dim() == 2 and "lora_" not in name
    ]
    yield getattr(embeddings, "weight", None)
    yield matrices[-1] if matrices else None


def _parameters_in_fingerprint(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else list(module.parameters())


@torch.no_grad()
def _sample_in_fingerprint(weight: torch.Tensor | None) -> list[float] | None:
    """Some numbers of a matrix, at places that a longer vocabulary does not move, with 5 digits."""
    if weight is None or type(weight) not in (nn.Parameter, torch.Tensor):
        return None
    if weight.dim() != 2 or not weight.numel() or weight.is_meta or not weight.is_floating_point():
        return None
    rows, columns = min(len(weight), 4096), weight.shape[1]
    row = torch.tensor([(17 + 37 * place) % rows for place in range(SAMPLES_in_fingerprint)], device=weight.device)
    column = torch.tensor([(5 + 13 * place) % columns for place in range(SAMPLES_in_fingerprint)], device=weight.device)
    values = weight.detach()[row, column].float().tolist()
    return [float(f"{value:.5g}") for value in values] if all(map(math.isfinite, values)) else None


def _compare(left: list[float], right: list[float]) -> str:
    """Whether two samples are `"equal"`, `"related"` or of `"other"` models."""
    if len(left) != len(right):
        return "other"
    largest = max(map(abs, [*left, *right]))
    if max(abs(a - b) for a, b in zip(left, right, strict=True)) <= ROUNDING_in_fingerprint * largest:
        return "equal"
    product = sum(a * b for a, b in zip(left, right, strict=True))
    norms = math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))
    return "related" if norms and product / norms >= RELATED else "other"


# =====================================================================================================================
# hub/base_model.py
#
# What a base must be, what a policy's config holds about it, and whether the two fit.
# =====================================================================================================================


def without_wrapper(base: Any) -> PreTrainedModel:
    """The model inside a `PeftModel`, with its adapters active; any other causal LM unchanged."""
    if hasattr(base, "get_base_model"):
        if base.active_peft_config.is_prompt_learning:
            raise ValueError(
                f"A base with {base.active_peft_config.peft_type.value} has virtual tokens before its text, which a "
                "budget cannot count: use an adapter that changes layers, such as LoRA."
            )
        base = base.get_base_model()
    if isinstance(base, str):
        raise ValueError(
            f"The base must be a loaded model, not its name: pass AutoModelForCausalLM.from_pretrained({base!r})."
        )
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"The base must be a causal LM of transformers, got {type(base).__name__}.")
    if base.config.model_type == SOLConfig.model_type:
        own = "this policy itself" if isinstance(base, SOLPolicyModel) else "a model with a policy already"
        raise ValueError(f"The base is {own}: pass the causal LM beneath it (`model.base`).")
    if base.get_output_embeddings() is None or base.config.is_encoder_decoder:
        raise ValueError(
            f"{type(base).__name__} is not a causal LM with an LM head: load the base with AutoModelForCausalLM."
        )
    return base


def base_sizes(base: PreTrainedModel) -> dict[str, int]:
    """Sizes of the base that a policy has to fit: the fields `base_*_size` of [`SOLConfig`]."""
    embeddings = base.get_input_embeddings()
    return {
        "base_hidden_size": base.get_output_embeddings().weight.shape[-1],
        "base_embedding_size": embeddings.weight.shape[-1],
        "base_vocab_size": embeddings.weight.shape[0],
    }


def describe_base(config: SOLConfig, base: PreTrainedModel, model: PreTrainedModel) -> None:
    """Fill in what a config does not say yet about its base; the fingerprint is always that of this base."""
    name = None if hasattr(base, "peft_config") else hub_id(model.config.name_or_path)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and CHECKS["base_max_position_embeddings"].problem(longest) is not None:
        longest = None  # some configs have -1, or no limit
    facts = {**base_sizes(model), "base_model_name_or_path": name, "base_max_position_embeddings": longest}
    for field, value in facts.items():
        if getattr(config, field) is None:
            setattr(config, field, value)
    if config.base_model_revision is None and name is not None and config.base_model_name_or_path == name:
        config.base_model_revision = commit_of(model)
    config.base_fingerprint = fingerprint_of(model)


def commit_of(model: PreTrainedModel) -> str | None:
    """The commit that a model was loaded from, if it is known."""
    noted, path = getattr(model.config, "_commit_hash", None), model.config.name_or_path
    if isinstance(noted, str) and re.fullmatch("[0-9a-f]{40}", noted):
        return noted
    return snapshot_commit(path) or _only_commit(hub_id(path))


def commit_at(repo_id: str, revision: str, cache_dir: str | None = None) -> str | None:
    """The commit of a repository's revision in the cache."""
    path = try_to_load_from_cache(repo_id, "config.json", cache_dir=cache_dir, revision=revision)
    return snapshot_commit(str(path).removesuffix("config.json")) if isinstance(path, str) else None


def _only_commit(repo_id: str | None) -> str | None:
    """The commit of a repository of which the cache holds no other."""
    if repo_id is None:
        return None
    snapshots = Path(constants.HF_HUB_CACHE, f"models--{repo_id.replace('/', '--')}", "snapshots")
    commits = [path.parent for path in snapshots.glob("*/config.json")]
    if len(commits) != 1 or not any(any(commits[0].glob(f"*.{end}")) for end in ("safetensors", "bin")):
        return None  # without weights it is not the one that the model is from
    return commits[0].name


def check_fit(config: SOLConfig, base: PreTrainedModel, policy: SOLPolicyModel, check_base: bool = True) -> None:
    """Raise a ValueError if the policy does not fit the config or the base."""
    for name, size in base_sizes(base).items():
        expected = getattr(config, name)
        if expected is not None and expected != size and (check_base or name != "base_vocab_size"):
            what, kind = name.removeprefix("base_").replace("_", " "), type(base).__name__
            way_out = " If its embeddings were resized, pass `check_base=False`." if name == "base_vocab_size" else ""
            raise ValueError(f"The policy was made for a base with {what} {expected}, but {kind} has {size}.{way_out}")
    axes, named = policy.config.action_space.axis_names, config.action_space.axis_names
    if axes != named:
        raise ValueError(f"The policy has the axes {', '.join(axes)}, but its config names {', '.join(named)}.")
    actions = policy.action_embedding.num_embeddings - 1
    if actions != len(config.action_space):
        raise ValueError(f"The policy has {actions} actions, but its config describes {len(config.action_space)}.")
    for name in ("action_head", "budget_prior"):
        found, wanted = getattr(policy.config, name), getattr(config, name)
        if found != wanted:
            raise ValueError(f"The policy was made with `{name}={found!r}`, but its config says {wanted!r}.")
    if (config.action_head == "factored" or config.budget_prior) and policy.config.action_space != config.action_space:
        raise ValueError("The policy was made for other levels of the axes than those of its config.")


# =====================================================================================================================
# hub/base_loading.py
#
# Loading the base that a policy names.
#
# Trust ends at the policy: its repository is somebody's, and the base that it names may be somebody else's. So
# `trust_remote_code`, `token` and `revision` are those of the policy, and the base has its own.
# =====================================================================================================================


SHARED = ("cache_dir", "force_download", "local_files_only", "proxies")
"""Hub arguments that say how files are fetched, and serve both repositories."""

_LOADING: ContextVar[str | None] = ContextVar("the policy whose base is being loaded", default=None)


@dataclass(frozen=True)
class BaseAccess:
    """How the base is fetched."""

    revision: str | None = None
    token: str | bool | None = None
    trust_remote_code: bool | None = False


class BaseNotNamedError(ValueError):
    """The config of a policy names no base, or a folder that is not here."""

    def __init__(self, message: str, problem: str):
        super().__init__(message)
        self.problem = problem


def base_of(config: SOLConfig, policy: str, revision: str | None = None) -> tuple[str, str]:
    """The base that a policy's config names: its repository or folder, and its revision."""
    name, stored = _name_of_base(config, policy), config.base_model_revision or "main"
    if not revision and stored.startswith("refs/pr/"):
        raise ValueError(
            f"The policy in {policy} asks for its base {name} at {stored}. Anybody can open such a pull request: "
            "pass `base_revision=` (with lm-eval, `revision=`) if you know what is in it, or `base=`."
        )
    return name, revision or stored


def _name_of_base(config: SOLConfig, policy: str) -> str:
    name = config.base_model_name_or_path
    if not name:
        raise BaseNotNamedError(
            f"The base of the policy in {policy} is missing. The config names no base model: pass `base=` (on the "
            "command line, `--base`), loaded with AutoModelForCausalLM. A base that was a local folder or had an "
            "adapter is not named.",
            problem="its config names no base model",
        )
    if not os.path.isdir(name) and hub_id(name) is None:
        raise BaseNotNamedError(
            f"The base of the policy in {policy} is missing: its config names the folder {name}, which is not here. "
            "Load the base with AutoModelForCausalLM and pass it with `base=` (on the command line, `--base`).",
            problem=f"its config names the folder {name}, which is not here",
        )
    return name


def load_base(config: SOLConfig, policy: str, access: BaseAccess, **kwargs) -> PreTrainedModel:
    """Load the base that a policy's config names."""
    name, revision = base_of(config, policy, access.revision)
    arguments: dict[str, Any] = {"token": access.token} if access.token is not None else {}
    try:
        with _loading_base_of(policy):
            return AutoModelForCausalLM.from_pretrained(
                name,
                revision=revision,
                trust_remote_code=bool(access.trust_remote_code),
                **arguments,
                **kwargs,
            )
    except OSError as error:
        raise OSError(
            f"The base {name} of the policy in {policy} could not be loaded: {error}\nIf it is private or gated, pass "
            "`base_token=`; the token of the policy is not used for it. An already loaded base is passed with `base=`."
        ) from error
    except ValueError as error:
        if access.trust_remote_code or "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"The base {name} of the policy in {policy} needs code from its own repository. `trust_remote_code` is "
            "for the policy and does not reach the base: read that code, and pass `base_trust_remote_code=True`."
        ) from error


def refuse_policy_as_base(name_or_path: str | os.PathLike) -> None:
    """Raise a ValueError if a policy is loaded as the base of another policy, or of itself."""
    policy = _LOADING.get()
    if policy is not None:
        raise ValueError(
            f"The base that the policy in {policy} names is itself a policy ({name_or_path}): its config is damaged. "
            "Load the causal LM with AutoModelForCausalLM and pass it with `base=` (on the command line, `--base`)."
        )


@contextlib.contextmanager
def _loading_base_of(policy: str) -> Iterator[None]:
    token = _LOADING.set(policy)
    try:
        yield
    finally:
        _LOADING.reset(token)


# =====================================================================================================================
# hub/loading.py
#
# Loading a policy, and the adapter on it.
# =====================================================================================================================


def load_policy(
    name_or_path: str | os.PathLike,
    config: SOLConfig | str | None,
    location: Mapping[str, Any],
    adapter: Mapping[str, Any] | None = None,
) -> tuple[SOLPolicyModel, dict[str, Any], PolicySource]:
    """Load the policy of a repository or folder."""
    source = find_policy(name_or_path, location, adapter)
    if config is None:
        config = _config_in(source)
    elif isinstance(config, str | os.PathLike):
        config = SOLConfig.from_pretrained(config)
    if not isinstance(config, SOLConfig):
        raise ValueError(f"`config` must be a SOLConfig, got {type(config).__name__}.")
    config = copy.deepcopy(config)
    config._attn_implementation = config._experts_implementation = None  # what Auto classes put there is for the base
    config.dtype = None  # the policy keeps the dtype of its weights, whatever the base is loaded in
    policy, info = SOLPolicyModel.from_pretrained(source, config=config, output_loading_info=True, require_heads=True)
    return policy.eval(), info, source


def stored_config(name_or_path: str | os.PathLike, location: Mapping[str, Any]) -> SOLConfig:
    """The config of a policy, or of the policy beneath an adapter."""
    return _config_in(find_policy(name_or_path, location))


def _config_in(source: PolicySource) -> SOLConfig:
    return SOLConfig.from_dict(read_json_object(source.config), name_or_path=source.name_or_path)


# =====================================================================================================================
# hub/policy_loading.py
#
# How a model is made: from a base with a fresh policy, or from a stored policy and the base that it names.
# =====================================================================================================================


class PolicyLoading(PreTrainedModel):
    """Mixin of [`SOLForCausalLM`]: its two constructors."""

    base: PreTrainedModel

    @classmethod
    def from_base(cls, base: PreTrainedModel, config: SOLConfig | None = None) -> Self:
        """Put a fresh policy on a loaded base."""
        model = without_wrapper(base)
        if config is not None and not isinstance(config, SOLConfig):
            raise ValueError(f"`config` must be a SOLConfig, got {type(config).__name__}.")
        config = copy.deepcopy(config) if config is not None else SOLConfig()
        describe_base(config, base, model)
        policy = SOLPolicyModel(config).to(cls.policy_device(model)).eval()
        policy.mark_fresh()
        return cls(config, base, policy)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: SOLConfig | None = None,
        base: PreTrainedModel | None = None,
        revision: str = "main",
        subfolder: str = "",
        base_revision: str | None = None,
        base_token: str | bool | None = None,
        base_trust_remote_code: bool | None = False,
        check_base: bool = True,
        output_loading_info: bool = False,
        **kwargs,
    ) -> Self:
        """Load a trained policy, and the base that its config names."""
        refuse_policy_as_base(pretrained_model_name_or_path)
        for name in ("trust_remote_code", "_from_auto", "_from_pipeline"):  # no code is run, nothing is reported
            kwargs.pop(name, None)
        shared = {name: kwargs.pop(name) for name in SHARED if name in kwargs}
        location = dict(revision=revision, subfolder=subfolder, token=kwargs.pop("token", None), **shared)
        for name in ("attn_implementation", "experts_implementation"):  # the Auto classes move them to the config
            if name not in kwargs and getattr(config, f"_{name}", None) is not None:
                kwargs[name] = getattr(config, f"_{name}")
        adapter = kwargs.pop("adapter_kwargs", None)
        policy, info, source = load_policy(pretrained_model_name_or_path, config, location, adapter)
        access = BaseAccess(base_revision, base_token, base_trust_remote_code)
        if base is None:
            base = load_base(policy.config, source.name_or_path, access, **shared, **kwargs)
            _note_base(policy.config, base, access, shared.get("cache_dir"))
        else:
            _refuse_what_loads_a_base(access, kwargs)
        model = cls(policy.config, base, policy.to(cls.policy_device(without_wrapper(base))), check_base=check_base)
        path = find_file(source.name_or_path, GENERATION_CONFIG_NAME, source.location)
        if path is not None:
            model.generation_config = model.with_stored_options(path)
        return (model.eval(), info) if output_loading_info else model.eval()  # type: ignore[return-value]

    @staticmethod
    def policy_device(base: PreTrainedModel) -> torch.device:
        """Where the policy of a base belongs."""
        raise NotImplementedError

    def with_stored_options(self, path: Path) -> GenerationConfig:
        """The generation config of this model, from its base's and from the policy's file."""
        raise NotImplementedError


def _note_base(config: SOLConfig, base: PreTrainedModel, access: BaseAccess, cache_dir: str | None) -> None:
    """Fill in commit and fingerprint of a base that was loaded by its name, where the config has none."""
    repo_id, wanted = hub_id(config.base_model_name_or_path), access.revision or config.base_model_revision or "main"
    if repo_id is not None and config.base_model_revision is None:
        config.base_model_revision = commit_at(repo_id, wanted, cache_dir)
    if config.base_fingerprint is None:
        config.base_fingerprint = fingerprint_of(base)


def _refuse_what_loads_a_base(access: BaseAccess, kwargs: dict[str, Any]) -> None:
    given = {"base_revision": access.revision, "base_token": access.token}
    given |= {"base_trust_remote_code": access.trust_remote_code or None, **kwargs}
    without_effect = [f"`{name}`" for name, value in given.items() if value is not None and value != "auto"]
    if without_effect:
        raise ValueError(
            f"The base is loaded already, so {', '.join(sorted(without_effect))} would have no effect: pass this "
            "where the base is loaded."
        )


# =====================================================================================================================
# version.py
#
# The version of the package, written into every saved config, and the versions of transformers that it works with.
# =====================================================================================================================


__version__ = "0.1.0.dev0"
TRANSFORMERS = ("5.18", "5.24")
"""The first version of transformers that works, and the first that does not: the range in setup.cfg."""


# =====================================================================================================================
# hub/base_license.py
#
# The licence of a base, as its own model card states it. Nothing is claimed that no card says.
# =====================================================================================================================


FIELDS = ("license", "license_name", "license_link")


def base_license(base: str | None, revision: str | None = None, ask_hub: bool = False) -> dict[str, str]:
    """The fields `license`, `license_name` and `license_link` of the base's model card, those that it has."""
    card = None if base is None else _card_of(base, revision, ask_hub)
    if card is None:
        return {}
    try:
        data = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    except (ValueError, yaml.YAMLError):  # a card whose metadata are no YAML says nothing about a licence
        return {}
    found = {name: data[name] for name in FIELDS if isinstance(data.get(name), str)}
    return found if "license" in found else {}


def _card_of(base: str, revision: str | None, ask_hub: bool) -> Path | None:
    if os.path.isdir(base):
        card = Path(base, "README.md")
        return card if card.is_file() else None
    try:
        cached = try_to_load_from_cache(base, "README.md", revision=revision or "main")
        if isinstance(cached, str):
            return Path(cached)
        return Path(hf_hub_download(base, "README.md", revision=revision)) if ask_hub else None
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, HFValidationError, OSError):
        return None


# =====================================================================================================================
# hub/card_template.py
#
# The text of a model card, as a jinja template.
# =====================================================================================================================


CARD_TEMPLATE = """---
{{ card_data }}
---

# A self-optimizing policy for {{ base_name }}

This repository holds a small policy, not a language model. Before every decode step the policy reads the state of the
*frozen* base model and chooses how much of the KV cache to read (`token_keep`), how many MLP input channels to use
(`mlp_keep`) and at how many bits (`bits`), so that the averages stay within a budget given to `generate`.
{%- for axis in further %}
It also chooses the {{ axis.meaning }} (`{{ axis.name }}`).
{%- endfor %}
The weights of the base model are neither changed nor stored here.

## Use

```python
from transformers import AutoTokenizer
from sol_hf import SOLForCausalLM

{% if needs_base -%}
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("path/to/the/base")
tokenizer = AutoTokenizer.from_pretrained("path/to/the/base")
model = SOLForCausalLM.from_pretrained("{{ repo_id }}", base=base)
{%- else -%}
tokenizer = AutoTokenizer.from_pretrained("{{ base_name }}")
model = SOLForCausalLM.from_pretrained("{{ repo_id }}")
{%- endif %}
inputs = tokenizer("The sea is", return_tensors="pt")
output = model.generate(
    **inputs, max_new_tokens=64, token_keep=0.5, mlp_keep=0.7, bits=8{% for axis in further %}, {{ axis.name }}={{ axis.largest }}{% endfor %}, return_dict_in_generate=True
)
print(tokenizer.decode(output.sequences[0]), output.realised)
```

`AutoModel.from_pretrained` on this repository gives the policy alone, `AutoModelForCausalLM.from_pretrained` the base
under its control, `pipeline("text-generation", model=...)` too: after `import sol_hf`, or with `trust_remote_code=True`.

Without the package (`pip install sol_hf`), transformers runs the code in this repository, `sol_plain.py`, in plain
torch. A base that is loaded already takes the policy for one call:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

base_name = "{% if needs_base %}path/to/the/base{% else %}{{ base_name }}{% endif %}"
base, tokenizer = AutoModelForCausalLM.from_pretrained(base_name), AutoTokenizer.from_pretrained(base_name)
inputs = tokenizer("The sea is", return_tensors="pt")
policy = dict(custom_generate="{{ repo_id }}", trust_remote_code=True)
output = base.generate(**inputs, max_new_tokens=64, token_keep=0.5, mlp_keep=0.7, bits=8, **policy)
print(tokenizer.decode(output[0]))
```

## Details

| | |
|---|---|
| base model | {{ base_name }}{% if revision %} at revision `{{ revision }}`{% endif %} |
| actions | {{ n_actions }} |
| `token_keep` levels | {{ levels.token_keep }} |
| `mlp_keep` levels | {{ levels.mlp_keep }} |
| `bits` levels | {{ levels.bits }} |
{%- for axis in further %}
| `{{ axis.name }}` levels | {{ levels[axis.name] }} |
{%- endfor %}
| criterion | `{{ config.criterion }}`, page size {{ config.page_size }}, chosen per {{ config.selection }} |
| episode length | {{ config.episode_length }} |
{%- for row in dial_rows %}
{{ row }}
{%- endfor %}
| policy | {{ config.policy_num_layers }} layer(s), width {{ config.policy_hidden_size }}, {{ config.policy_num_heads }} heads |

{{ bits_note }}

## How it was made
{% if recipe %}
Settings that differ from their defaults, by stage of the training:

```yaml
{{ recipe }}
```
{% else %}
This is not recorded here. If you trained this policy, please write down the data, the command and the settings.
{% endif %}
## License
{% if license_name %}
The model card of the base states the license `{{ license_name }}`. This card repeats it for the policy
{%- if has_tokenizer %}, and for the base's tokenizer, which is stored here{% endif %}.
{% else %}
The license of the base is not known here, so none is stated for the policy. Add `license:` to the head of this card.
{% endif %}
## Versions

{% for name, version in versions.items() -%}
- {{ name }} {{ version }}
{% endfor %}
"""  # noqa: E501


# =====================================================================================================================
# hub/recipe.py
#
# How a policy was made, for its model card: the settings of its training that differ from their defaults.
# =====================================================================================================================


UNSAID = ("_dir", "_file", "_path", "path_", "run_name", "hub_", "report_to", "push_", "logging_", "disable_")
"""Parts of names of settings that say where files are or what is shown, and not what is computed."""


def recipe_of(settings: Any, **further: Any) -> dict[str, Any]:
    """The values of a dataclass that were changed, as plain types."""
    changed = dict(further)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        value = value.value if isinstance(value, Enum) else value
        if field.init and value != default_of(field) and _is_plain_in_recipe(value) and _may_be_said(field.name, value):
            changed[field.name] = value
    return changed


def recipe_text(stages: Mapping[str, Mapping[str, Any]] | None) -> str | None:
    """The stages of a training as YAML; `None` if nothing is known."""
    if not stages:
        return None
    return yaml.safe_dump({name: dict(values) for name, values in stages.items()}, sort_keys=False).rstrip()


def default_of(field: dataclasses.Field) -> Any:
    """The default of a dataclass field; `None` for one without."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _may_be_said(name: str, value: Any) -> bool:
    return not any(part in name for part in UNSAID) and not (isinstance(value, str) and os.path.isabs(value))


def _is_plain_in_recipe(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain_in_recipe(item) for key, item in value.items())
    if isinstance(value, list):
        return all(_is_plain_in_recipe(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


# =====================================================================================================================
# hub/model_card.py
#
# Model cards of policies.
# =====================================================================================================================


CARD_NAME = "README.md"


TAGS = ("sol", "self-optimizing-language-model", "adaptive-compute", "sol_hf")


BITS_NOTES = {
    "fake": "`bits` quantizes the MLP output in simulation: it changes the numbers, not yet the time.",
    "int8": 'MLP weights are read as int8 where `bits` is 8 or less (`bits_backend="int8"`, which is stored).',
    "nested": 'Weights are read as planes of an 8-bit code, as many as `bits` says (`bits_backend="nested"`, which is '
    "stored): fewer bits are fewer bytes.",
}
"""What `bits` does, by the stored `bits_backend`."""


def build_card(
    config: SOLConfig,
    repo_id: str | None = None,
    tags: list[str] | None = None,
    *,
    recipe: Mapping[str, Mapping[str, Any]] | None = None,
    ask_hub: bool = False,
    has_tokenizer: bool = False,
    bits_backend: str | None = None,
) -> ModelCard:
    """The model card of a policy, from the template. Its licence is that of the base, where the base's card says one."""
    on_hub = hub_id(config.base_model_name_or_path)
    license_fields: dict[str, Any] = base_license(config.base_model_name_or_path, config.base_model_revision, ask_hub)
    data = ModelCardData(
        base_model=on_hub,
        base_model_relation="adapter" if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        **license_fields,
        tags=[*TAGS, *(tag for tag in tags or [] if tag not in TAGS)],
    )
    space = config.action_space
    levels = {name: f"{values[0]:g} … {values[-1]:g} ({len(values)})" for name, values in space.levels.items()}
    further = [
        {"name": axis.name, "meaning": axis.meaning, "largest": f"{max(space.levels[axis.name]):g}"}
        for axis in space.axes
        if axis not in PUBLISHED_AXES
    ]
    return ModelCard.from_template(
        data,
        template_str=CARD_TEMPLATE,
        repo_id=repo_id or "path/to/this/folder",
        base_name=on_hub or "the base model",
        needs_base=on_hub is None,
        revision=config.base_model_revision,
        levels=levels,
        further=further,
        n_actions=len(space),
        dial_rows=dial_rows(config),
        config=config,
        license_name=license_fields.get("license_name") or license_fields.get("license"),
        recipe=recipe_text(recipe),
        has_tokenizer=has_tokenizer,
        bits_note=BITS_NOTES[bits_backend or "fake"],
        versions={
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "huggingface_hub": huggingface_hub.__version__,
        },
    )


DIAL = "| `compute=`"
"""The rows of a card that say what `compute` counts begin with this."""
BEFORE_DIAL = "| episode length |"


def dial_rows(config: SOLConfig) -> list[str]:
    """A row of the card for each unit that `compute` can count, the default first."""
    conditions, rows = config.calibration_conditions or {}, []
    for unit in sorted(units_of(config.calibration), key=lambda unit: unit != config.compute_unit):
        table = table_in(unit, config.calibration)
        assert table is not None, "there is a table in each unit"
        option = "" if unit == config.compute_unit else f' with `compute_unit="{unit}"`'
        rows.append(f"{DIAL}{option} | {table[0][unit]:.3g} … 1: {in_words(unit, conditions.get(unit))} |")
    return rows


def with_dial(card: str, config: SOLConfig) -> str:
    """The text of a card that says what `compute` counts now; unchanged if it has no table of details."""
    lines = [line for line in card.split("\n") if not line.startswith(DIAL)]
    place = next((place for place, line in enumerate(lines) if line.startswith(BEFORE_DIAL)), None)
    if place is None:
        return card
    return "\n".join([*lines[: place + 1], *dial_rows(config), *lines[place + 1 :]])


# =====================================================================================================================
# hub/adapter_saving.py
#
# Saving an adapter on a policy, such that the folder can be loaded.
#
# The folder has the adapter. If the policy beneath is in a repository on the Hub, unchanged, the adapter names it.
# Otherwise the folder has that policy, too: a fresh one, one that was trained further, or one from a local folder, whose
# path would mean nothing elsewhere.
# =====================================================================================================================


DEFAULT = "default"
"""Name of an adapter for which PEFT makes no folder of its own."""


def save_adapter(
    policy: Any,
    folder: str | os.PathLike,
    repo_id: str | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> SOLPolicyModel | None:
    """Write the adapter of a policy."""
    inner = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
    name, commit = hub_id(inner.name_or_path), getattr(policy.config, "_commit_hash", None)
    path, card = Path(folder, ADAPTER_CONFIG), Path(folder, CARD_NAME)
    had_card = card.exists()
    with _named(policy, inner, name):
        _save_active(policy, Path(folder), {} if state_dict is None else {"state_dict": dict(state_dict)})
    stored, beneath = read_json_object(path), policy_beneath(policy)
    is_named = name is not None and _is_stored(beneath, name, commit)
    stored["base_model_name_or_path"] = name if is_named else repo_id
    stored["revision"] = (commit or stored.get("revision")) if is_named else None
    path.write_text(json.dumps(stored, indent=2, sort_keys=True), encoding="utf-8")
    if not is_named and not had_card:
        card.unlink(missing_ok=True)  # PEFT's card says nothing of the policy that is beside it
    return None if is_named else beneath


def _save_active(policy: Any, folder: Path, kwargs: dict[str, Any]) -> None:
    """Write the adapter that is active to `folder` itself, where it is loaded from, whatever its name."""
    active = policy.active_adapters
    active = list(active() if callable(active) else active)
    if len(active) != 1:
        raise ValueError(
            f"A folder holds one adapter, but of this policy {' and '.join(map(repr, active)) or 'none'} is active: "
            "choose one with `model.policy.set_adapter(name)`, or save `model.policy.merge_and_unload()`."
        )
    name, others = active[0], sorted(policy.peft_config.keys() - active)
    is_wrapped = hasattr(policy, "get_base_model")  # by PEFT, which saves all adapters
    if others:
        logger.warning_once(
            f"The folder will be loaded with the active adapter, {name!r}. The others ({', '.join(others)}) are "
            + ("in folders of their own, beside it." if is_wrapped else "not saved: make one active to save it.")
        )
    policy.save_pretrained(folder, **kwargs)
    if is_wrapped and name != DEFAULT:
        if DEFAULT in others:
            _move((folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS), folder / DEFAULT)
        _move((folder / name).iterdir(), folder)
        (folder / name).rmdir()


def _move(files: Iterable[Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in list(files):
        path.replace(folder / path.name)


@contextlib.contextmanager
def _named(policy: Any, inner: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Let PEFT name the policy so in all that it writes, instead of by a path."""
    configs = list(policy.peft_config.values())
    before = [config.base_model_name_or_path for config in configs]
    path, path_of_config = inner.__dict__["name_or_path"], inner.config.name_or_path
    try:
        for config in configs:
            config.base_model_name_or_path = name
        inner.__dict__["name_or_path"] = inner.config.name_or_path = name or ""
        yield
    finally:
        inner.__dict__["name_or_path"], inner.config.name_or_path = path, path_of_config
        for config, old in zip(configs, before, strict=True):
            config.base_model_name_or_path = old


def policy_beneath(policy: PreTrainedModel) -> SOLPolicyModel:
    """A copy of the policy without its adapter."""
    weights, names = policy.state_dict(), names_beneath(policy)
    with torch.random.fork_rng(devices=[]):  # a save must not change what the run draws next
        plain = SOLPolicyModel(copy.deepcopy(policy.config))
    plain.to(weights[next(iter(names.values()))].dtype)
    plain.load_state_dict({name: weights[full].detach().cpu() for name, full in names.items()})
    return plain


def load_beneath(policy: PreTrainedModel, folder: str | os.PathLike) -> None:
    """Give the policy beneath an adapter the weights in a folder, if the folder has them."""
    file = Path(folder, SAFE_WEIGHTS_NAME)
    if not file.is_file():
        return
    stored, own, names = load_file(file), policy.state_dict(), names_beneath(policy)
    if stored.keys() != names.keys():
        raise ValueError(f"{file} is of another policy than the one that the adapter is trained on.")
    with torch.no_grad():
        for name, full in names.items():
            own[full].copy_(stored[name])


def names_beneath(policy: PreTrainedModel) -> dict[str, str]:
    """Names of the weights of a policy with an adapter, by their names in a policy without one."""
    found = {}
    for full in policy.state_dict():
        name = full.removeprefix("base_model.model.").replace(".base_layer.", ".").replace(".original_module.", ".")
        found[name] = full
    with torch.device("meta"):
        wanted = SOLPolicyModel(copy.deepcopy(policy.config)).state_dict()
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise ValueError(
            f"The policy beneath the adapter cannot be saved, the adapter has replaced {', '.join(missing[:4])}: save "
            "`model.policy.merge_and_unload()` as a policy of its own."
        )
    return {name: found[name] for name in wanted}


def _is_stored(policy: SOLPolicyModel, repo_id: str, revision: str | None) -> bool:
    """Whether a repository has exactly these weights, as far as the cache knows; nothing is fetched for that."""
    try:
        found = cached_file(repo_id, SAFE_WEIGHTS_NAME, revision=revision, local_files_only=True)
    except (OSError, ValueError):
        found = None
    if found is None:
        return False
    stored = load_file(found)
    own = policy.state_dict()
    return own.keys() == stored.keys() and all(
        own[key].dtype == stored[key].dtype and torch.equal(own[key], stored[key]) for key in own
    )


# =====================================================================================================================
# hub/owned_files.py
#
# The files of a folder or repository that say which policy it holds.
#
# A save owns them: those that it does not write are of what was there before, and would be loaded with the new ones.
#
#     config.json, model.safetensors                     a policy, whole or in shards
#     adapter_config.json, adapter_model.safetensors     an adapter on it, or on the policy that it names
# =====================================================================================================================


def owned_files(variant: str | None = None) -> tuple[str, ...]:
    """Patterns of the names of the files that a save owns."""
    stem = WEIGHTS_in_weights.removesuffix(".safetensors") + (f".{variant}" if variant else "")
    index = f"{WEIGHTS_in_weights}.index.{variant}.json" if variant else f"{WEIGHTS_in_weights}.index.json"
    weights = (f"{stem}.safetensors", f"{stem}-?????-of-?????.safetensors", index)
    return (CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS, *weights)


# =====================================================================================================================
# hub/remote_code/doors.py
#
# The short files of a policy's repository by which transformers finds its code.
# =====================================================================================================================


REMOTE_CODE_NAME = "sol_remote.py"
"""What the Auto classes import, by the `auto_map` of the config."""
REMOTE_CODE = '''"""Where transformers finds the classes: in the package sol_hf, or else in `sol_plain.py` here.

Both compute the same. The package has compiled code, and its releases are newer: pip install sol_hf.
"""

try:
    from sol_hf import SOLConfig, SOLForCausalLM, SOLPolicyModel
    from sol_hf.hub.tokenizer import SOLTokenizer
    from sol_hf.integrations.custom_generate import generate_under_policy
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "sol_hf":
        raise
    from .sol_plain import SOLConfig, SOLForCausalLM, SOLPolicyModel, SOLTokenizer, generate_under_policy
'''

PLAIN_CODE_NAME = "sol_plain.py"
"""The code of the package in one file."""

CUSTOM_GENERATE_NAME = "custom_generate/generate.py"
"""What `base.generate(custom_generate=REPOSITORY, trust_remote_code=True)` calls."""
CUSTOM_GENERATE = '''"""Called by `base.generate(custom_generate=REPOSITORY, trust_remote_code=True, token_keep=0.5)`.

The policy in this repository then chooses how much of `base` every step computes.
"""

import inspect
import re
import sys

from transformers import GenerationMixin
from transformers.dynamic_module_utils import get_class_from_dynamic_module


HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def generate(model, **arguments):
    """`arguments` are those of transformers' generate, `None` where they were not given, and those of the budget."""
    repository = this_repository()
    location = {name: arguments.pop(name) for name in HUB if arguments.get(name) is not None}
    commit = re.search(r"[.]([0-9a-f]{40})[.]custom_generate[.]", __name__)
    if commit:  # all files of one call are of one commit
        location["revision"] = commit[1]
    run = get_class_from_dynamic_module("sol_remote.generate_under_policy", repository, **location)
    return run(model, repository, location, arguments)


def this_repository():
    """The repository or folder that the call names; transformers does not tell it to this function."""
    loop, frame = inspect.unwrap(GenerationMixin.generate).__code__, sys._getframe()
    while frame is not None:
        if frame.f_code is loop and isinstance(frame.f_locals.get("custom_generate"), str):
            return frame.f_locals["custom_generate"]
        frame = frame.f_back
    raise ValueError("Call this by `model.generate(custom_generate=REPOSITORY, trust_remote_code=True, ...)`.")
'''


# =====================================================================================================================
# hub/remote_code/flatten.py
#
# A policy that is saved by this file gets this file as its code.
# =====================================================================================================================


def flat_code() -> str:
    """The text of this file."""
    return Path(__file__).read_text(encoding="utf-8")


# =====================================================================================================================
# hub/remote_code/files.py
#
# The code files of a policy's repository.
# =====================================================================================================================


def code_files() -> dict[str, str]:
    """Their texts by name."""
    return {
        REMOTE_CODE_NAME: REMOTE_CODE,
        PLAIN_CODE_NAME: flat_code(),
        CUSTOM_GENERATE_NAME: CUSTOM_GENERATE,
    }


def write_code(folder: str | os.PathLike) -> None:
    """Write the code files into the folder of a policy."""
    for name, text in code_files().items():
        path = Path(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


# =====================================================================================================================
# hub/staging.py
#
# Files are written beside those of a folder, and replace them when all of them are whole.
#
# A process that is killed while it writes, or a disk that is full, leaves the folder as it was. Two processes that write
# to one folder do so one after the other, where the system can lock a folder. What a killed process leaves is removed by
# the next one.
# =====================================================================================================================


try:
    import fcntl
except ModuleNotFoundError:  # Windows, which cannot lock a folder
    fcntl = None  # type: ignore[assignment]


UNFINISHED = ".unfinished-"
_OF_THE_DISK = frozenset(
    getattr(errno, name) for name in "ENOSPC EDQUOT EFBIG EROFS EIO".split() if hasattr(errno, name)
)


@contextmanager
def staged(folder: str | os.PathLike, owned: tuple[str, ...] = (), keep: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder to write to; its files replace those of `folder` at the end of the block."""
    folder = Path(folder)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder))
            for remains in folder.glob(f"{UNFINISHED}*"):
                shutil.rmtree(remains, ignore_errors=True)
            temporary = tempfile.TemporaryDirectory(dir=folder, prefix=UNFINISHED, ignore_cleanup_errors=True)
            stage = Path(stack.enter_context(temporary))
        except OSError as error:
            raise _nothing_saved(folder, error) from error
        try:
            yield stage
            for path in _files_in(stage):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        except (OSError, SafetensorError) as error:
            if not _is_of_the_disk(error):
                raise
            raise _nothing_saved(folder, error) from error
        _replace(stage, folder, owned, keep)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks, such as some network drives
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _nothing_saved(folder: Path, error: Exception) -> OSError:
    return OSError(
        f"Nothing was saved in {folder}, whose files are as before: {error}. Free space on the disk, or choose a "
        "folder that you may write to."
    )


def _is_of_the_disk(error: OSError | SafetensorError) -> bool:
    """Whether a file could not be written; safetensors has no errors of its own for that."""
    return error.errno in _OF_THE_DISK if isinstance(error, OSError) else "I/O error" in str(error)


def _replace(stage: Path, folder: Path, owned: tuple[str, ...], keep: tuple[str, ...]) -> None:
    """Move the files, those with the weights first, and remove what the folder owns and the stage does not have."""
    files = sorted(_files_in(stage), key=lambda path: not _is_weights(path.name))
    names = {str(path.relative_to(stage)) for path in files}
    kinds = {_is_of_an_adapter(name) for name in names if _is_weights(name)}
    outdated = [
        path for path in _files_at(folder) if path.name not in names and any(fnmatchcase(path.name, o) for o in owned)
    ]
    first = [path for path in outdated if _is_weights(path.name) and _is_of_an_adapter(path.name) not in kinds]
    is_changed = False
    try:
        for path in first:
            path.unlink()
            is_changed = True
        for path in files:
            target = folder / path.relative_to(stage)
            if target.name in keep and target.exists():
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
            is_changed = True
        for path in outdated:
            path.unlink(missing_ok=True)
    except OSError as error:
        if not is_changed:
            raise _nothing_saved(folder, error) from error
        raise OSError(
            f"Some files in {folder} are new and others are not: {error}. Do not use the folder as it is. Mend this "
            "and save again, or save to another folder."
        ) from error


def _files_in(stage: Path) -> list[Path]:
    return [path for path in stage.rglob("*") if path.is_file()]


def _files_at(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _is_of_an_adapter(name: str) -> bool:
    return name.startswith("adapter_")


# =====================================================================================================================
# hub/stored_tokenizer.py
#
# The tokenizer in a policy's repository: one that was given, the base's, or a note where to take it from.
# =====================================================================================================================


TOKENIZER_CONFIG = "tokenizer_config.json"
FROM_THE_BASE = {"auto_map": {"AutoTokenizer": [None, "sol_remote.SOLTokenizer"]}}
"""In a repository without a tokenizer: the class that loads the base's."""
ALLOWS_COPIES = frozenset("apache-2.0 mit bsd bsd-2-clause bsd-3-clause isc zlib cc0-1.0 unlicense".split())
"""Licences, by their names on the Hub, under which anybody may store a copy of the base's tokenizer."""


def tokenizer_to_store(config: SOLConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a base on the Hub, with its chat template, if the licence of the base allows to store a copy."""
    base, revision = hub_id(config.base_model_name_or_path), config.base_model_revision
    if base is None or base_license(base, revision, ask_hub=True).get("license") not in ALLOWS_COPIES:
        return None
    if not file_exists(base, TOKENIZER_CONFIG, revision=revision):
        return None
    try:
        return AutoTokenizer.from_pretrained(base, revision=revision or "main", trust_remote_code=False)
    except ValueError as error:
        logger.warning(f"The tokenizer of {base} is not stored with the policy, since it cannot be loaded: {error}")
        return None


def store_tokenizer(tokenizer: PreTrainedTokenizerBase | None, folder: str | os.PathLike) -> None:
    """Write a tokenizer, or if there is none, a note by which `AutoTokenizer` takes that of the base."""
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        return
    text = json.dumps(FROM_THE_BASE, indent=2) + "\n"
    Path(folder, TOKENIZER_CONFIG).write_text(text, encoding="utf-8")


# =====================================================================================================================
# hub/saving.py
#
# Saving and uploading of a policy repository.
# =====================================================================================================================


def save_whole_policy(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    repo_id: str | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **kwargs,
) -> None:
    """[`save_policy`], of which all files are written or none; until then the folder has what it had."""
    keep = (CARD_NAME,) if tokenizer is not None else (CARD_NAME, TOKENIZER_CONFIG)
    with staged(folder, owned_files(kwargs.get("variant")), keep=keep) as stage:
        save_policy(model, stage, repo_id, tokenizer, **kwargs)


def save_policy(
    model: PreTrainedModel,
    folder: str | os.PathLike,
    repo_id: str | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    state_dict: Mapping[str, torch.Tensor] | None = None,
    **kwargs,
) -> None:
    """Write the files of a policy repository; a model card that is already in the folder is kept."""
    policy, given = model.policy, None
    if hasattr(policy, "peft_config"):
        policy = save_adapter(policy, folder, repo_id, state_dict)
        if policy is None:
            return None if tokenizer is None else store_tokenizer(tokenizer, folder)
    else:
        given = _policy_weights(policy, state_dict)
    config = policy.config
    config.sol_hf_version, config.auto_map = __version__, dict(AUTO_MAP)
    policy.save_pretrained(folder, state_dict=given, **kwargs)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    save_generation_config(model.generation_config, folder)
    write_code(folder)
    store_tokenizer(tokenizer, folder)
    card = Path(folder, CARD_NAME)
    if not card.exists():
        has_tokenizer = tokenizer is not None
        stored = dict(recipe=model.training_recipe, bits_backend=_bits_backend(model))
        build_card(model.config, repo_id, has_tokenizer=has_tokenizer, **stored).save(card)


def _bits_backend(model: PreTrainedModel) -> str | None:
    """How `bits` is computed where a call does not say so."""
    return getattr(model.generation_config, "bits_backend", None)


def save_generation_config(config: GenerationConfig, folder: str | os.PathLike) -> None:
    """Write `generation_config.json`."""
    try:
        config.save_pretrained(folder)
    except ValueError as error:
        logger.warning(f"The generation config is saved as it is, though transformers objects to it: {error}")
        config.to_json_file(os.path.join(folder, GENERATION_CONFIG_NAME), use_diff=True)


def _policy_weights(
    policy: PreTrainedModel, state_dict: Mapping[str, torch.Tensor] | None
) -> dict[str, torch.Tensor] | None:
    """The policy's part of a state dict of the policy or of the whole model."""
    if state_dict is None:
        return None
    own = set(policy.state_dict())
    found = {name.removeprefix("policy."): tensor for name, tensor in state_dict.items() if name.startswith("policy.")}
    found = found or dict(state_dict)
    if set(found) != own:
        missing, strange = sorted(own - set(found)), sorted(set(found) - own)
        raise ValueError(
            "`state_dict` must hold the weights of the policy, alone or in the whole model; "
            f"missing: {missing[:5]}, unknown: {strange[:5]}."
        )
    return found


def push_policy(
    model: PreTrainedModel,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None,
    commit_message: str | None,
    commit_description: str | None,
    private: bool | None,
    token: bool | str | None,
    revision: str | None,
    create_pr: bool,
    tags: list[str] | None,
) -> str:
    """Create the repository if it does not exist, and upload what `save_pretrained` writes."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    has_tokenizer = api.file_exists(repo_id, TOKENIZER_CONFIG, revision=revision)
    if tokenizer is None and not has_tokenizer:
        tokenizer = tokenizer_to_store(model.config)
    with tempfile.TemporaryDirectory() as folder:
        save_policy(model, folder, repo_id, tokenizer)
        if tokenizer is None and has_tokenizer:
            Path(folder, TOKENIZER_CONFIG).unlink(missing_ok=True)
        card = build_card(
            model.config,
            repo_id,
            tags,
            recipe=model.training_recipe,
            ask_hub=True,
            has_tokenizer=tokenizer is not None,
            bits_backend=_bits_backend(model),
        )
        if api.file_exists(repo_id, CARD_NAME, revision=revision):
            card = ModelCard.load(api.hf_hub_download(repo_id, CARD_NAME, revision=revision))
            card.data.tags = [*(card.data.tags or []), *(tag for tag in tags or [] if tag not in card.data.tags)]
        card.save(os.path.join(folder, CARD_NAME))
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload SOL policy",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=list(owned_files()),
        )


# =====================================================================================================================
# hub/stored_options.py
#
# What the `generation_config.json` of a policy may set.
#
# The generation config of a loaded model is the base's. From the policy's file it takes
#
# - the budget options, except `budget_mode="soft"` and a longer `budget_horizon` than that of the base: whether a
#   budget is kept is for those who run the model to say;
# - options of sampling, and the number of new tokens.
#
# All else belongs to the base or to the caller: above all the ids of special tokens, which are those of one tokenizer.
# =====================================================================================================================


SAMPLING: dict[str, Check] = {
    "do_sample": Flag(),
    "temperature": Real(1e6),
    "top_k": Whole(0, 2**24),
    "top_p": Real(1, includes_lowest=True),
    "min_p": Real(1, includes_lowest=True),
    "typical_p": Real(1, includes_lowest=True),
    "epsilon_cutoff": Real(1, includes_lowest=True),
    "eta_cutoff": Real(1, includes_lowest=True),
    "repetition_penalty": Real(1e6),
    "no_repeat_ngram_size": Whole(0, 2**31),
    "max_new_tokens": Whole(1, 2**31),
    "min_new_tokens": Whole(0, 2**31),
}
"""Options of sampling and of the length that a policy may set, and their values."""
_NOTES = ("transformers_version", "_from_model_config", "_commit_hash", "_original_object_hash")


def merge_stored_options(path: Path, base: GenerationConfig, budget_options: Iterable[str]) -> GenerationConfig:
    """The base's generation config with the options that a policy's file may set; a warning names the others."""
    merged, budget_options, ignored = copy.deepcopy(base), frozenset(budget_options), []
    for key, value in read_json_object(path).items():
        if key == "budget_mode" and value == "soft":
            logger.warning(
                f'{path} asks for `budget_mode="soft"`, which is ignored: a policy cannot loosen a budget. Pass '
                '`budget_mode="soft"` to `generate`, or set it on `model.generation_config`.'
            )
        elif key == "budget_horizon" and value == "generation" and getattr(base, key, None) == "episode":
            logger.warning(
                f'{path} asks for `budget_horizon="generation"`, which is ignored: the generation config of the base '
                "keeps every episode, and a policy cannot loosen a budget. Pass it to `generate` instead."
            )
        elif key in budget_options:
            setattr(merged, key, value)
        elif key in SAMPLING:
            setattr(merged, key, _checked(path, key, value))
        elif key not in _NOTES and value != getattr(base, key, None):
            ignored.append(key)
    if ignored:
        logger.warning(
            f"{path} sets {', '.join(sorted(ignored))}, which is ignored: these options are the base's, not the "
            "policy's. If you want them, set them on `model.generation_config`."
        )
    return merged


def _checked(path: Path, key: str, value: Any) -> Any:
    problem = None if value is None else SAMPLING[key].problem(value)
    if problem is not None:
        raise ValueError(f"{path}: `{key}` {problem}, got {shown(value)}.")
    return value


def check_numbers(path: Path, options: Mapping[str, Any]) -> None:
    """Raise a ValueError if a stored budget option is a number that is not finite."""
    for key, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path}: `{key}` must be finite, got {value}.")


# =====================================================================================================================
# modeling_sol.py
#
# `SOLForCausalLM`: a frozen causal LM under the control of a policy, with transformers' own `generate`.
# =====================================================================================================================


class SOLForCausalLM(EmbeddingsOfBase, PolicyLoading, PlaneScales, Warmup, BudgetedGeneration, GenerationMixin):
    """A frozen causal LM, and the policy that chooses how much of it every decode step uses."""

    config_class = SOLConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"
    training_recipe: dict[str, dict[str, Any]] | None = None
    """How the policy was made, by stage of the training, for its model card; trainers write it."""
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: SOLConfig,
        base: PreTrainedModel | None = None,
        policy: SOLPolicyModel | None = None,
        check_base: bool = True,
    ):
        super().__init__(config)
        if base is None or policy is None:
            raise ValueError("SOLForCausalLM needs a base and a policy: use `from_base` or `from_pretrained`.")
        base = without_wrapper(base)
        check_fit(config, base, policy, check_base)
        if check_base:
            check_fingerprint_of(base, config.base_fingerprint, config.base_model_name_or_path)
        self.base = base.requires_grad_(False)
        self.policy = policy
        self.config = unite_configs(config, policy)
        self.config.describe_base(base.config)
        self.generation_config = copy.deepcopy(base.generation_config)
        self.generation_config._from_model_config = False  # without this the options stored in it are not loaded again
        self.__dict__.update(overridden_hooks(base, type(self)))
        self.all_tied_weights_keys = {f"base.{k}": f"base.{v}" for k, v in base.all_tied_weights_keys.items()}

    policy_device = staticmethod(compute_device)

    def with_stored_options(self, path: Path) -> GenerationConfig:
        """The generation config of the base, with what a policy's `generation_config.json` may set."""
        merged = merge_stored_options(path, self.base.generation_config, stored_names())
        merged._from_model_config = False
        try:
            options = resolve_options({}, None, merged, self.config)
            if options.budget is not None:
                options.budget.check(options.spending(self.action_space))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: {error}") from error
        return merged

    def train(self, mode: bool = True) -> "SOLForCausalLM":
        """Training mode for the policy only: a base in training mode would drop out parts of itself."""
        self.training = mode
        self.policy.train(mode)
        if not mode:
            self.base.eval()
        return self

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        push_to_hub: bool = False,
        is_main_process: bool = True,
        **kwargs,
    ) -> None:
        """Write config, policy (safetensors), generation config and, if there is none yet, a model card."""
        names = "repo_id token private revision commit_message commit_description create_pr tags".split()
        upload = {name: kwargs.pop(name) for name in names if name in kwargs}
        check_agreement(self.config, self.policy)
        if is_main_process:
            save_whole_policy(self, save_directory, upload.get("repo_id"), tokenizer, **kwargs)
            if push_to_hub:
                upload.setdefault("repo_id", os.path.basename(os.path.normpath(save_directory)))
                self.push_to_hub(tokenizer=tokenizer, **upload)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | None = None,
    ) -> str:
        """Upload the policy with its card; arguments as for `PreTrainedModel.push_to_hub` (it is never sharded)."""
        return push_policy(
            self,
            repo_id,
            tokenizer=tokenizer,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            tags=tags,
        )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Nothing to register: a saved folder finds the classes through its own stub file."""

    @property
    def action_space(self) -> ActionSpace:
        """The actions that a step can take: [`SOLConfig.action_space`]."""
        return self.config.action_space

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """The base's own forward; over a [`SOLCache`], within `generate`, the last token is a decode step."""
        DecodingSession.refuse_forward(self.base, past_key_values)
        named: dict[str, Any] = dict(input_ids=input_ids, inputs_embeds=inputs_embeds, position_ids=position_ids)
        if isinstance(past_key_values, SOLCache):
            if labels is not None:
                raise ValueError("There is no loss under a budget: use `score`.")
            as_tuple = kwargs.pop("return_dict", None) is False
            session = DecodingSession.of(self.base, past_key_values)
            if session is not DecodingSession.current():
                own_cache(past_key_values, self.base, self.config)
            output = forward_over_cache(session, {**kwargs, **named}, attention_mask, logits_to_keep)
            return output.to_tuple() if as_tuple else output
        named |= dict(attention_mask=attention_mask, past_key_values=past_key_values, labels=labels)
        named |= dict(use_cache=use_cache, logits_to_keep=logits_to_keep)
        accepted = accepted_arguments(self.base)
        return self.base(**{k: v for k, v in named.items() if v is not None and k in accepted}, **kwargs)

    def new_cache(self, kv_dtype: str | None = None) -> SOLCache:
        """An empty [`SOLCache`] for this model, to be passed as `past_key_values` over several turns."""
        kv_dtype = kv_dtype or getattr(self.generation_config, "kv_dtype", None)
        return own_cache(new_cache(self.base, self.config, kv_dtype), self.base, self.config)

    def coverage(self) -> Coverage:
        """The decoder layers of the base that each axis reaches; printed, they are a table."""
        return Coverage.of(self.base, self.new_cache())

    def drop_copies(self) -> None:
        """Free the copies of weights of fast paths, int8 and nested planes; they are made again when needed."""
        Instrumentation.of(self.base).drop_copies()

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *further: Any,
        token_keep: AxisTarget = None,
        mlp_keep: AxisTarget = None,
        bits: AxisTarget = None,
        compute: AxisTarget | str = None,
        compute_unit: str | None = None,
        budget: Budget | None = None,
        budget_mode: str | None = None,
        budget_horizon: str | None = None,
        exact: bool | None = None,
        controller: Controller | None = None,
        action_processors: Sequence | None = None,
        kv_refresh: bool | str | None = None,
        action_temperature: float | None = None,
        do_sample_actions: bool | None = None,
        backend: str | None = None,
        bits_backend: str | None = None,
        max_plane_bytes: int | None = None,
        kv_dtype: str | None = None,
        cuda_graphs: bool | int | None = None,
        lossless: bool | int | None = None,
        measure_agreement: bool | None = None,
        **kwargs,
    ) -> ModelOutput | torch.LongTensor:
        """transformers' `generate`, with a compute budget. Without one, it is exactly the base's."""
        kwargs |= named_arguments(further, kwargs)
        given = inherit(pop_options(locals(), kwargs), kwargs)
        return self._generate(inputs, generation_config, given, kwargs)

    @torch.no_grad()
    def score(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        context_length: int | Sequence[int] | torch.Tensor | None = None,
        *,
        return_logits: bool = False,
        **options,
    ) -> SOLScoreOutput:
        """Log-probabilities of given continuations, computed step by step under a budget."""
        if context_length is None:
            raise ValueError("`context_length` is needed: how many tokens of every row are processed densely.")
        check_prompt_kinds(None, {"input_ids": input_ids, "attention_mask": attention_mask}, "score")
        if input_ids.device != compute_device(self.base):
            raise ValueError(f"`input_ids` are on {input_ids.device}, the model on {compute_device(self.base)}.")
        rows = align_rows(input_ids, attention_mask, context_length)
        further = inputs_to_score(
            self.base, rows, options, lambda values: align_rows(values, attention_mask, context_length).tokens
        )
        rows = replace(rows, further=further)
        resolved = resolve_options(options, None, self.generation_config, self.config)
        resolved.check_for_score()
        check_agreement(self.config, self.policy)
        controls = controls_for(resolved, self.base, self.policy, self.config, len(input_ids))
        if resolved.runs_dense or controls is None:  # one forward for all tokens, which is faster than any step
            with evaluating(self.base):
                output = score_rows_densely(self.base, rows, self.action_space, return_logits)
        else:
            with Instrumentation.of(self.base):
                session = DecodingSession(self.base, self.new_cache(resolved.kv_dtype), controls, rows.context)
                output = score_rows(session.begin(), rows, return_logits)
        if resolved.compute_unit is not None:
            output["compute_unit"] = resolved.compute_unit
        is_dense = resolved.runs_dense or controls is None
        contexts = rows.context - rows.padding
        output.count_bytes_by(partial(self._count_bytes, resolved, output.actions, is_dense, contexts))
        return output

    def _count_bytes(
        self, options: DecodeOptions, actions: torch.Tensor | None, is_dense: bool, contexts: torch.Tensor
    ) -> torch.Tensor:
        assert actions is not None, "an output under a budget has them"
        if is_dense:
            return torch.ones(len(actions))
        each = contexts.cpu().repeat_interleave(len(actions) // len(contexts))
        return RowShares.of(self, options, apart=1)(actions, each)


# =====================================================================================================================
# hub/tokenizer.py
#
# The tokenizer of a policy's repository: its own files, or else the base's tokenizer.
# =====================================================================================================================


class SOLTokenizer(PreTrainedTokenizerFast):
    """What `AutoTokenizer` loads for a policy's repository without tokenizer files: the base's tokenizer."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args,
        base_revision: str | None = None,
        base_token: str | bool | None = None,
        base_trust_remote_code: bool | None = False,
        **kwargs,
    ):
        """Load the tokenizer of the base that a policy names."""
        shared = {name: kwargs.pop(name) for name in SHARED if name in kwargs}
        own = {name: kwargs.pop(name) for name in ("revision", "subfolder", "token") if name in kwargs}
        for name in ("_from_auto", "_from_pipeline", "_commit_hash", "base", "check_base", "trust_remote_code"):
            kwargs.pop(name, None)  # who trusts the policy's repository does not thereby trust the base's
        config = SOLConfig.from_pretrained(
            pretrained_model_name_or_path, **shared, **{key: value for key, value in own.items() if value is not None}
        )
        try:
            base, revision = base_of(config, str(pretrained_model_name_or_path), base_revision)
        except BaseNotNamedError as error:
            raise ValueError(
                f"{pretrained_model_name_or_path} has no tokenizer, and the base from which to take one is not known. "
                "Load the tokenizer from the base's own folder, with AutoTokenizer.from_pretrained(base_folder). To "
                "store one with the policy, use model.save_pretrained(folder, tokenizer=tokenizer)."
            ) from error
        if base_token is not None:
            kwargs["token"] = base_token
        return AutoTokenizer.from_pretrained(
            base, revision=revision, trust_remote_code=bool(base_trust_remote_code), **shared, **kwargs
        )


# =====================================================================================================================
# integrations/custom_generate.py
#
# `base.generate(custom_generate=POLICY, trust_remote_code=True, token_keep=0.5)`: transformers' way to other loops.
#
# The base stays what it was: it is neither wrapped nor frozen when the call is over.
# =====================================================================================================================


_POLICIES: "weakref.WeakKeyDictionary[PreTrainedModel, dict[tuple, SOLPolicyModel]]" = weakref.WeakKeyDictionary()
"""The policy that was last loaded for a base, by repository, revision and times of files."""


def generate_under_policy(
    base: PreTrainedModel,
    repository: str | os.PathLike,
    location: Mapping[str, Any],
    arguments: Mapping[str, Any],
) -> ModelOutput | torch.LongTensor:
    """One call of `generate` of a base, under the policy of a repository."""
    if base.config.model_type == SOLConfig.model_type:
        raise ValueError(
            "This model has a policy already: call its `generate` without `custom_generate`, or load the base alone "
            "with AutoModelForCausalLM."
        )
    with _as_it_was(base):
        model = _model(base, str(repository), location)
        return model.generate(**{name: value for name, value in arguments.items() if value is not None})


def _model(base: PreTrainedModel, repository: str, location: Mapping[str, Any]) -> SOLForCausalLM:
    """The base under the policy, which is loaded once; from a folder, again when its files have changed."""
    known = _POLICIES.setdefault(base, {})
    files = sorted(Path(repository).iterdir()) if os.path.isdir(repository) else []
    key = (repository, str(sorted(location.items())), *((path, path.stat().st_mtime_ns) for path in files))
    if key not in known:
        model = SOLForCausalLM.from_pretrained(repository, base=base, **location)
        known.clear()
        known[key] = model.policy
        return model
    policy = known[key].to(SOLForCausalLM.policy_device(base))
    model = SOLForCausalLM(policy.config, base, policy).eval()
    path = find_file(repository, GENERATION_CONFIG_NAME, location)
    if path is not None:
        model.generation_config = model.with_stored_options(path)
    return model


@contextmanager
def _as_it_was(base: PreTrainedModel) -> Iterator[None]:
    """A model under a policy freezes its base and takes it out of training; here this is for one call."""
    trained = [parameter for parameter in base.parameters() if parameter.requires_grad]
    training = [module for module in base.modules() if module.training]
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


# =====================================================================================================================
# selection/page_criterion.py
#
# Criteria that read whole pages, chosen by the page index of the cache.
# =====================================================================================================================


class PageCriterion(Criterion):
    """Reads the pages with the highest scores, `ceil(token_keep * keys)` keys rounded up to whole pages."""

    chooses_pages: ClassVar[bool] = True
    prefix_to_stagger: ClassVar[int | None] = 0

    def page_queries(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors to multiply with the maxima and the minima of pages, each of the shape of `query`."""
        raise NotImplementedError

    def select(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> Selection:
        upper, lower = candidates.page_bounds()
        with_upper, with_lower = self.page_queries(candidates.query)
        scores = with_upper @ upper.transpose(-1, -2) + with_lower @ lower.transpose(-1, -2)
        order, in_use = choose_pages(
            scores, token_keep, candidates.page_origin, candidates.first_key, candidates.slots, rule
        )
        ranks = order[..., None] * rule.page_size + torch.arange(rule.page_size, device=scores.device)
        return Selection(ranks.flatten(2), in_use.repeat_interleave(rule.page_size, dim=-1))

    def page_mask(
        self, scores: torch.Tensor, token_keep: torch.Tensor, count: torch.Tensor | int, rule: SelectionRule
    ) -> torch.Tensor:
        """The selection of [`PageCriterion.select`] as a mask `(rows, H, pages)`."""
        counts = torch.as_tensor(count, device=scores.device).expand(len(scores))
        return largest(with_anchors(share_scores(scores, rule), counts, rule), pages_to_read(token_keep, counts, rule))

    def keys_read(self, rule: SelectionRule, token_keep: float, keys: int) -> int:
        if token_keep >= 1:
            return keys
        pages = max(1, math.ceil(math.ceil(token_keep * keys - ROUNDING_in_criterion) / rule.page_size))
        if rule.anchor_pages:
            pages = max(pages, int(anchors(torch.tensor(keys), rule)))
        return min(keys, pages * rule.page_size)

    def cost(self, rule: SelectionRule, token_keep: float, keys: int, group: int) -> SelectionCost:
        """See [`Criterion`]. The maximum and minimum of a page are as large as a key and a value."""
        cost = super().cost(rule, token_keep, keys, group)
        if token_keep >= 1:
            return cost
        pages = math.ceil(keys / rule.page_size)
        return dataclasses.replace(cost, moved=cost.moved + pages, scored=2 * pages)


# =====================================================================================================================
# selection/criteria/quest.py
#
# The criterion `quest`: pages with the highest upper bound of `q . k` over their keys.
# =====================================================================================================================


GAIN_WITH_ANCHORS = RefreshGain(((0.1, 0.075), (0.2, 0.022), (0.5, 0.003), (1.0, 0.0)))
"""Measured, see docs/performance.md."""


class Quest(PageCriterion):
    """Reads the pages that may hold the keys with the highest `q . k`."""

    has_kernels: ClassVar[bool] = True

    def page_queries(self, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return split_by_sign(query)

    def refresh_gain(self, rule: SelectionRule) -> RefreshGain:
        return GAIN_WITH_ANCHORS if rule.anchor_pages else super().refresh_gain(rule)


register_criterion("quest", Quest())


# =====================================================================================================================
# selection/criteria/recency.py
#
# The criterion `recency`: the first and the most recent keys.
# =====================================================================================================================


GAIN_in_recency = RefreshGain(((0.2, 0.007), (1.0, 0.0)))
"""Measured, see docs/performance.md."""


class Recency(Criterion):
    """Keeps the sink and the most recent tokens, the same for all heads."""

    heads_may_differ: ClassVar[bool] = False
    prefix_to_stagger: ClassVar[int | None] = 0

    def select(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> Selection:
        count, device = candidates.counts, token_keep.device
        always = rule.sink_tokens + rule.window_tokens + 1
        middle = count - always
        extra = torch.where(middle > 0, kept_count(token_keep, middle), 0)
        kept = torch.minimum(count, always + extra)
        most = int(kept.max()) if device.type == "cpu" else candidates.slots
        place = torch.arange(most, device=device)
        in_row = torch.where(place < rule.sink_tokens, place, place + (count - kept)[:, None])
        ranks = candidates.slots_at(in_row) - candidates.page_origin[:, None]
        return Selection(ranks[:, None], (place < kept[:, None])[:, None])

    def keys_read(self, rule: SelectionRule, token_keep: float, keys: int) -> int:
        always = rule.sink_tokens + rule.window_tokens + 1
        return min(keys, always + math.ceil(token_keep * max(keys - always, 0) - ROUNDING_in_criterion))

    def refresh_gain(self, rule: SelectionRule) -> RefreshGain:
        return GAIN_in_recency


register_criterion("recency", Recency())


# =====================================================================================================================
# selection/criteria/relevancy.py
#
# The criterion `relevancy`: keys with the highest exact `q . k`.
# =====================================================================================================================


GAIN_in_relevancy = RefreshGain(((0.1, 0.017), (0.2, 0.011), (1.0, 0.0)))
"""Measured, see docs/performance.md."""


class Relevancy(Criterion):
    """Keeps the sink, the recent window, and of the other tokens those with the highest exact `q . k`."""

    prefix_to_stagger: ClassVar[int | None] = 0

    def select(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> Selection:
        scores, place, count = candidates.exact_scores(), candidates.places, candidates.counts
        valid = place >= 0
        always = valid & ((place < rule.sink_tokens) | (place >= (count - rule.window_tokens - 2)[:, None]))
        others = count - always.sum(dim=-1)
        wanted = always.sum(dim=-1) + torch.where(others > 0, kept_count(token_keep, others), 0)
        scores = share_scores(scores, rule)
        scores = scores.masked_fill(always[:, None], float("inf")).masked_fill(~valid[:, None], float("-inf"))
        order, in_use = top_ranked(scores, wanted)
        return Selection(order - candidates.page_origin[:, None, None], in_use)

    def keys_read(self, rule: SelectionRule, token_keep: float, keys: int) -> int:
        always = rule.sink_tokens + rule.window_tokens + 2
        return min(keys, always + math.ceil(token_keep * max(keys - always, 0) - ROUNDING_in_criterion))

    def refresh_gain(self, rule: SelectionRule) -> RefreshGain:
        return GAIN_in_relevancy

    def cost(self, rule: SelectionRule, token_keep: float, keys: int, group: int) -> SelectionCost:
        """See [`Criterion`]. All keys are read and scored; of the values, only the selected ones are read."""
        cost = super().cost(rule, token_keep, keys, group)
        if token_keep >= 1:
            return cost
        return dataclasses.replace(cost, moved=(keys + cost.moved) / 2, scored=keys - cost.attended)


register_criterion("relevancy", Relevancy())


# =====================================================================================================================
# selection/criteria/sketch.py
#
# The criterion `sketch`: single tokens, ranked by a copy of all keys in a few bits.
# =====================================================================================================================


GAIN_in_sketch = RefreshGain(((0.1, 0.011), (0.2, 0.004), (1.0, 0.0)))
"""Of `selection="layer"`, by which other selections are judged as well; measured, see docs/performance.md."""


class Sketch(Criterion):
    """Reads the sink, the recent window, and of the other tokens those with the highest scores."""

    ranks_codes: ClassVar[bool] = True
    prefix_to_stagger: ClassVar[int | None] = MOST_IN_MEAN
    selections: ClassVar[tuple[str, ...]] = ("head", "group", "layer")

    def check(self, rule: SelectionRule) -> None:
        super().check(rule)
        if rule.index_bits not in INDEX_BITS:
            raise ValueError(f"`index_bits` must be one of {', '.join(map(str, INDEX_BITS))}, got {rule.index_bits}.")

    def select(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> Selection:
        scores, wanted = self._scores(candidates, token_keep, rule)
        if rule.selection != "layer":
            order, in_use = top_ranked(scores, wanted)
        else:
            order, in_use = _shared_by_heads(scores, wanted)
        return Selection(order - candidates.page_origin[:, None, None], in_use)

    def mask(self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule) -> torch.Tensor:
        """See [`Criterion.mask`]. Heads that choose together give a mask at once."""
        if rule.selection != "layer":
            return super().mask(candidates, token_keep, rule)
        scores, wanted = self._scores(candidates, token_keep, rule)
        return _chosen_by_heads(scores, wanted)

    def _scores(
        self, candidates: Candidates, token_keep: torch.Tensor, rule: SelectionRule
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of all slots `(rows, H, slots)`, and how many keys `(rows,)` a head reads on average."""
        scores, place, count = candidates.coded_scores(rule.index_bits), candidates.places, candidates.counts
        valid = place >= 0
        always = valid & ((place < rule.sink_tokens) | (place >= (count - rule.recent_tokens)[:, None]))
        wanted = self.tokens_wanted(rule, token_keep, count)
        if rule.selection == "head":
            scores = scores.flatten(1, 2)
        else:
            logits = (scores * candidates.scaling).masked_fill(~valid[:, None, None], float("-inf"))
            scores = logits.softmax(dim=-1).sum(dim=2)
        scores = scores.masked_fill(always[:, None], float("inf")).masked_fill(~valid[:, None], float("-inf"))
        return scores, wanted

    def has_token_kernel(self, rule: SelectionRule) -> bool:
        return rule.index_bits == 4 and rule.selection != "head"

    def tokens_wanted(self, rule: SelectionRule, token_keep: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
        always = count.clamp(max=rule.sink_tokens + rule.recent_tokens)
        return torch.maximum(kept_count(token_keep, count), always)

    def keys_read(self, rule: SelectionRule, token_keep: float, keys: int) -> int:
        return min(keys, max(rule.sink_tokens + rule.recent_tokens, super().keys_read(rule, token_keep, keys)))

    def refresh_gain(self, rule: SelectionRule) -> RefreshGain:
        return GAIN_in_sketch

    def cost(self, rule: SelectionRule, token_keep: float, keys: int, group: int) -> SelectionCost:
        """See [`Criterion`]. The whole index is read and scored, and the mean of the keys read for the new code."""
        cost = super().cost(rule, token_keep, keys, group)
        if token_keep >= 1:
            return cost
        index = dict(index_bits=keys * rule.index_bits, index_values=keys, index_means=1)
        return dataclasses.replace(cost, scored=keys, **index)


def _chosen_by_heads(scores: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """A mask `(rows, kv_heads, slots)` of the best of all heads together, `wanted` a head on average."""
    return largest(scores.flatten(1), wanted * scores.shape[1]).view_as(scores)


def _shared_by_heads(scores: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ranks `(rows, kv_heads, m)` of the best of all heads together, `wanted` a head on average, and their mask."""
    chosen, slots = _chosen_by_heads(scores, wanted), scores.shape[-1]
    number = chosen.sum(dim=-1)
    most = int(number.max()) if scores.device.type == "cpu" else slots
    order = chosen.to(torch.int8).topk(most, dim=-1).indices
    return order, torch.arange(most, device=scores.device) < number[..., None]


register_criterion("sketch", Sketch())


# =====================================================================================================================
# execution/mlp/executor.py
#
# Base class of the executors of the MLP axes: the parts of every MLP of the base that carry an axis out.
# =====================================================================================================================


class MLPExecutor(AxisExecutor):
    """Replaces the forward of the module of every MLP at which the axis applies."""

    axis: ClassVar[str]

    def __init__(self, base: PreTrainedModel):
        self.sites = find_sites(base)
        try:
            self._own = tuple(site.part(self.axis) for site in self.sites)
        except UnsupportedAxisError as error:
            start = f"The axis `{self.axis}` cannot be controlled on {type(base).__name__}"
            raise UnsupportedAxisError(f"{start}: {error}") from error
        titles = zip(self._own, self.sites, strict=True)
        self._parts: dict[Hashable, str] = {part: site.title_of(self.axis) for part, site in titles}

    def changes(self) -> Iterable[Change]:
        return [Change(part.change_name, part.module, part.install) for part in self._own]

    def parts(self, cache: SOLCache) -> Mapping[Hashable, str]:
        return self._parts

    def layers(self, cache: SOLCache) -> Sequence[int]:
        return sorted({site.layer for site in self.sites})

    @property
    def step_parts(self) -> Sequence[StepPart | MLPPart]:
        return self._own


# =====================================================================================================================
# execution/axes/bits.py
#
# The axis `bits`: MLP outputs are rounded, or MLPs run in int8, or weights are read in fewer bits.
# =====================================================================================================================


GAINS = {
    "fake": RefreshGain(((6.0, 0.002), (16.0, 0.0))),
    "int8": RefreshGain(),
    "nested": RefreshGain(((4.0, 0.022), (5.0, 0.009), (6.0, 0.004), (8.0, 0.0), (16.0, 0.0))),
}
"""By `bits_backend`. Measured, see docs/performance.md."""


@register_executor("bits")
class BitsExecutor(MLPExecutor):
    """Every MLP rounds its output to the number of bits in the plan; under `"nested"` linear layers read planes."""

    axis = "bits"

    def __init__(self, base: PreTrainedModel):
        super().__init__(base)
        self._layers = planed_layers(base, [module for site in self.sites for module in site.modules])
        self._linear_parts: dict[Hashable, str] = {layer.part: layer.name for layer in self._layers if layer.part}

    def check_backend(self, bits_backend: str, max_plane_bytes: int | None = None) -> None:
        if bits_backend == "int8":
            for site in self.sites:
                site.check_int8()
        elif bits_backend == "nested":
            for site in self.sites:
                site.check_planes()
            make_planes(self._layers, max_plane_bytes)

    def parts_under(self, bits_backend: str, cache: SOLCache) -> Mapping[Hashable, str]:
        return self._linear_parts if bits_backend == "nested" else self.parts(cache)

    @classmethod
    def refresh_gain(cls, rule: SelectionRule, bits_backend: str) -> RefreshGain:
        return GAINS[bits_backend]

    @property
    def step_parts(self) -> Sequence[StepPart]:
        return (*super().step_parts, *(layer.part for layer in self._layers if layer.part))


# =====================================================================================================================
# execution/axes/mlp_keep.py
#
# The axis `mlp_keep`: MLPs use the largest channels of their input only.
# =====================================================================================================================


GAIN_in_mlp_keep = RefreshGain(((0.5, 0.072), (0.7, 0.006), (1.0, 0.0)))
"""Measured, see docs/performance.md."""


@register_executor("mlp_keep")
class MLPKeepExecutor(MLPExecutor):
    """Every MLP keeps the share of its input channels that is in the plan."""

    axis = "mlp_keep"

    @classmethod
    def refresh_gain(cls, rule: SelectionRule, bits_backend: str) -> RefreshGain:
        return GAIN_in_mlp_keep


# =====================================================================================================================
# execution/axes/neuron_keep.py
#
# The axis `neuron_keep`: the last projection of MLPs reads the largest neurons only.
# =====================================================================================================================


GAIN_in_neuron_keep = RefreshGain(((0.2, 0.106), (0.3, 0.043), (0.5, 0.007), (1.0, 0.0)))
"""Measured, see docs/performance.md."""


@register_executor("neuron_keep")
class NeuronKeepExecutor(MLPExecutor):
    """The last projection of every MLP keeps the share of its inputs that is in the plan."""

    axis = "neuron_keep"

    def __init__(self, base: PreTrainedModel):
        super().__init__(base)
        self._readers = tuple(site.part("mlp_keep") for site in self.sites)
        """A fast path of a whole MLP calls its last projection."""
        for site in self.sites:
            site.keep_neurons()

    def changes(self) -> Iterable[Change]:
        for part in self._readers:
            yield Change(part.change_name, part.module, part.install)
        yield from super().changes()

    @classmethod
    def refresh_gain(cls, rule: SelectionRule, bits_backend: str) -> RefreshGain:
        return GAIN_in_neuron_keep

    @property
    def step_parts(self) -> Sequence[StepPart]:
        return (*self._readers, *super().step_parts)


# =====================================================================================================================
# execution/attention/implementation_name.py
#
# The name of an attention implementation under which transformers finds ours, and model code still reads its own.
# =====================================================================================================================


PREFIX = "sol_" if __name__.startswith("sol_hf.") else f"sol_{zlib.crc32(__name__.encode()):08x}_"
"""Every copy of this code has its own: the package, and what repositories of policies hold of it."""


class ImplementationName(str):
    """Reads as the base's own implementation, and is looked up under our registered name."""

    __slots__ = ("_hash", "registered")
    _hash: int
    registered: str
    """The name under which transformers finds our attention."""

    def __new__(cls, own: str) -> "ImplementationName":
        name = super().__new__(cls, own)
        name.registered = PREFIX + str.__str__(name)
        name._hash = hash(name.registered)  # every layer looks the name up several times per token
        return name

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        return str.__eq__(self, other) or str.__eq__(self.registered, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> tuple:
        return str, (str.__str__(self),)


def own_name(implementation: str | None) -> str | None:
    """The base's own name of an implementation, also while ours is in force."""
    return str.__str__(implementation) if isinstance(implementation, ImplementationName) else implementation


# =====================================================================================================================
# execution/attention/refresh/operation.py
#
# The dense attention of one layer in a KV refresh, and all of its implementations.
#
# If none of them can be used, the base's own attention is the fallback.
# =====================================================================================================================


@dataclass(frozen=True, eq=False)
class RefreshAttention:
    """Attention of the tokens of a KV refresh over all keys."""

    plan: RefreshPlan
    layer_idx: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: object
    scaling: float | None

    @property
    def layer(self) -> CacheLayerMixin:
        """The layer of the cache."""
        return self.plan.cache.layers[self.layer_idx]

    @property
    def group_mask(self) -> torch.Tensor | None:
        """The mask, if it is a tensor per token and key and query heads share key-value heads; else `None`."""
        is_grouped = self.query.shape[1] > self.key.shape[1]
        return self.mask if is_grouped and isinstance(self.mask, torch.Tensor) and self.mask.dim() == 4 else None


REFRESH_ATTENTION: Operation[RefreshAttention] = Operation(
    "implementation of a refresh's attention"
)
"""Implementations of a refresh's attention by name."""


def attend_refresh(call: RefreshAttention) -> torch.Tensor | None:
    """Attention of the tokens of a KV refresh, `(rows, tokens, heads, value_dim)`."""
    if isinstance(call.mask, torch.Tensor) and call.mask.dtype != torch.bool:
        return None
    return REFRESH_ATTENTION.run(call, call.plan.backend)


# =====================================================================================================================
# execution/attention/score_changes.py
#
# What some bases do with the scores of their attention, besides scaling: soft caps and learned sinks.
# =====================================================================================================================


@dataclass(frozen=True, eq=False)
class ScoreChanges:
    """Changes to the scores of attention."""

    soft_cap: float | None = None
    sinks: torch.Tensor | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> "ScoreChanges":
        """Those that a module passes to its attention function."""
        return cls(arguments.get("softcap"), arguments.get("s_aux"))

    @property
    def is_none(self) -> bool:
        """Whether attention is a plain softmax of scaled products."""
        return self.soft_cap is None and self.sinks is None

    def capped(self, scores: torch.Tensor) -> torch.Tensor:
        """Scaled scores under the soft cap; `-inf`, of keys that are not read, stays."""
        if self.soft_cap is None:
            return scores
        return torch.where(scores.isneginf(), scores, torch.tanh(scores / self.soft_cap) * self.soft_cap)

    def weights(self, scores: torch.Tensor) -> torch.Tensor:
        """Attention weights for scaled scores, in float32 at least."""
        scores = self.capped(scores)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        if self.sinks is None:
            return scores.softmax(dim=-1)
        rows, kv_heads, lines, _ = scores.shape
        per_head = self.sinks.to(scores.dtype).view(1, kv_heads, 1, -1, 1)
        sinks = per_head.expand(rows, -1, lines // per_head.shape[3], -1, 1).reshape(rows, kv_heads, lines, 1)
        return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    changes: ScoreChanges,
) -> torch.Tensor:
    """Attention of the query heads of one token over keys."""
    if changes.is_none:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~mask, -torch.inf)
    return changes.weights(scores).to(value.dtype) @ value


# =====================================================================================================================
# execution/attention/shared_prefix.py
#
# Attention of many rollouts over a prefix that they share.
#
# All keys of the prefix are scored in one product for all rollouts of a block. Keys that a query head does not read are
# masked, so nothing is copied. Criteria that choose whole pages mask page by page, all others key by key.
# =====================================================================================================================


class SharedCandidates(Candidates):
    """The keys that rows over a shared prefix may read: those of the prefix, and each row's own."""

    def __init__(
        self,
        layer: SharedPrefixLayer,
        query: torch.Tensor,
        scores: torch.Tensor,
        scaling: float | None,
        rows: torch.Tensor | None = None,
    ):
        self._layer, self._scores, self._queries, self._rows = layer, scores, query, rows
        query = self._some(query)
        zero = torch.zeros(len(query), dtype=torch.long, device=query.device)
        super().__init__(query, layer.keys, zero, zero, layer.page_size, scaling)

    def _some(self, x: torch.Tensor) -> torch.Tensor:
        """Of all rows those to choose for."""
        return x if self._rows is None else x[self._rows]

    @property
    def hidden_tokens(self) -> torch.Tensor | None:
        """Tokens at the end of the prefix that a row does not see, `(rows,)`; `None` if all rows see all."""
        visible = self._layer.prefix.visible_pages
        if visible is None:
            return None
        hidden = self._layer.prefix.length - visible * self.page_size
        return self._some(hidden.repeat(len(self._queries) // self._layer.repeats))

    @property
    def counts(self) -> torch.Tensor:
        hidden = self.hidden_tokens
        return super().counts if hidden is None else super().counts - hidden

    @property
    def places(self) -> torch.Tensor:
        places, hidden, shared = super().places, self.hidden_tokens, self._layer.prefix.length
        if hidden is None:
            return places
        seen = torch.where(places < (shared - hidden)[:, None], places, -1)
        return torch.where(places < shared, seen, places - hidden[:, None])

    def slots_at(self, places: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden_tokens
        if hidden is None:
            return super().slots_at(places)
        return torch.where(places < (self._layer.prefix.length - hidden)[:, None], places, places + hidden[:, None])

    @property
    def keys(self) -> torch.Tensor:
        prefix = self._layer.prefix.keys.repeat_interleave(self._layer.repeats, dim=0)
        return self._some(torch.cat([prefix, self._layer.keys], dim=2))

    @property
    def stored_keys(self) -> torch.Tensor:
        return self._layer.rounded(self.keys)

    @property
    def slots(self) -> int:
        return self._scores.shape[-1]

    def exact_scores(self) -> torch.Tensor:
        return self._some(self._layer.by_row(self._scores))

    def coded_scores(self, bits: int) -> torch.Tensor:
        layer = self._layer
        if layer.prefix.length < MOST_IN_MEAN:  # each row's own tokens count in its mean
            return super().coded_scores(bits)
        mean, coded = layer.coded_prefix(bits)
        of_prefix = layer.by_row(layer.by_block(self._queries.float()) @ coded.transpose(2, 3))
        keys, means = layer.rounded(self._some(layer.keys)), self._some(mean.repeat_interleave(layer.repeats, dim=0))
        own = decode_in_sketch(*encode_in_sketch(keys, means, bits))
        return torch.cat([self._some(of_prefix), self.query.float() @ own.transpose(2, 3)], dim=-1)


def attend_shared_prefix(
    layer: SharedPrefixLayer,
    rule: SelectionRule,
    token_keep: torch.Tensor | None,
    query: torch.Tensor,
    scaling: float | None,
    changes: ScoreChanges,
) -> torch.Tensor:
    """Attention of one new token per row over shared prefix and own suffix."""
    rows, heads, _, dim = query.shape
    grouped = group_queries(query, layer.prefix.keys.shape[1])
    by_block = layer.by_block(grouped)
    shared = layer.prefix.length
    own = layer.by_block(grouped @ layer.keys.transpose(2, 3))
    scores = torch.cat([by_block @ layer.prefix.keys.transpose(2, 3), own], dim=-1)
    if token_keep is not None:
        _mask_out(layer, rule, token_keep.to(query.device), grouped, scores, scaling)
    if layer.prefix.visible_pages is not None:
        hidden = _hidden(layer.prefix.visible_pages * layer.page_size, shared)
        scores[..., :shared].masked_fill_(hidden.repeat_interleave(grouped.shape[2], dim=0), float("-inf"))
    scale = scaling if scaling is not None else dim**-0.5
    weights = changes.weights(scores.mul_(scale)).to(query.dtype)
    output = layer.by_row(weights[..., :shared] @ layer.prefix.values)
    output = output + layer.by_row(weights[..., shared:]) @ layer.values
    return output.reshape(rows, 1, heads, output.shape[-1])


def _hidden(visible: torch.Tensor, total: int) -> torch.Tensor:
    """A mask `(repeats, total)` of the entries after the first `visible` `(repeats,)`."""
    return torch.arange(total, device=visible.device) >= visible[:, None]


def _mask_out(
    layer: SharedPrefixLayer,
    rule: SelectionRule,
    token_keep: torch.Tensor,
    grouped: torch.Tensor,
    scores: torch.Tensor,
    scaling: float | None,
) -> None:
    """Set `scores` `(blocks, kv_heads, repeats * group, slots)` to -inf where a query head does not read a key."""
    criterion, slots = CRITERIA[rule.criterion], scores.shape[-1]
    if not isinstance(criterion, PageCriterion):
        rows = _rows_to_choose_for(criterion, rule, token_keep, slots)
        if rows is not None and not len(rows):
            return
        candidates = SharedCandidates(layer, grouped, scores, scaling, rows)
        some = token_keep if rows is None else token_keep[rows]
        keep = _per_query(criterion.mask(candidates, some, rule), candidates.query)
        if rows is not None:
            every = torch.ones(*grouped.shape[:3], slots, dtype=torch.bool)
            every[rows] = keep
            keep = every
        scores.masked_fill_(~layer.by_block(keep), -torch.inf)
        return
    keep = layer.by_block(_per_query(_kept_pages(layer, criterion, rule, token_keep, grouped, slots), grouped))
    # Adding 0 or -inf page by page is cheaper than a mask over all keys.
    shared, size = layer.prefix.length, rule.page_size
    bias = torch.zeros_like(keep, dtype=scores.dtype).masked_fill_(~keep, -torch.inf)
    whole = shared // size
    scores[..., :shared].unflatten(-1, (whole, size)).add_(bias[..., :whole, None])
    scores[..., shared:].add_(bias[..., whole:].repeat_interleave(size, dim=-1)[..., : slots - shared])


def _rows_to_choose_for(
    criterion: Criterion, rule: SelectionRule, token_keep: torch.Tensor, slots: int
) -> torch.Tensor | None:
    """Indices of the rows that may leave keys out; `None` for all. On an accelerator, looking would stall it."""
    if token_keep.device.type != "cpu" or not criterion.reads_all(rule, 1.0, slots):
        return None
    rows = (token_keep < 1).nonzero().squeeze(1)
    return None if len(rows) == len(token_keep) else rows


def _per_query(mask: torch.Tensor, grouped: torch.Tensor) -> torch.Tensor:
    """A mask `(rows, H, n)` that several query heads may share, as `(rows, kv_heads, group, n)`."""
    rows, kv_heads, group, _ = grouped.shape
    if mask.shape[1] == kv_heads * group:
        return mask.view(rows, kv_heads, group, -1)
    return mask[:, :, None].expand(rows, kv_heads, group, -1)


def _kept_pages(
    layer: SharedPrefixLayer,
    criterion: PageCriterion,
    rule: SelectionRule,
    token_keep: torch.Tensor,
    grouped: torch.Tensor,
    slots: int,
) -> torch.Tensor:
    """A mask of the pages of prefix and suffix that every head reads, `(rows, H, pages)`."""
    rows, visible = len(grouped), layer.prefix.visible_pages
    queries = torch.cat(criterion.page_queries(grouped), dim=-1)
    own = torch.cat(layer.page_index(torch.zeros(rows, dtype=torch.long, device=grouped.device), (0, 0)), dim=-1)
    of_prefix = layer.by_row(layer.by_block(queries) @ layer.prefix.bounds.transpose(2, 3))
    count: torch.Tensor | int = slots
    if visible is not None:
        hidden = _hidden(visible, of_prefix.shape[-1]).repeat(rows // layer.repeats, 1)
        of_prefix = of_prefix.masked_fill(hidden[:, None, None], float("-inf"))
        count = slots - hidden.sum(dim=1) * rule.page_size
    page_scores = torch.cat([of_prefix, queries @ own.transpose(2, 3)], dim=-1)
    return criterion.page_mask(page_scores, token_keep, count, rule)


# =====================================================================================================================
# execution/attention/stored_keys.py
#
# Checks and helpers for implementations that read keys and values from the storage of a cache layer.
# =====================================================================================================================


MOST_CHANNELS = 256
MOST_PAGES = (1 << 16) - 1


def is_stored(layer: object, key: torch.Tensor, value: torch.Tensor | None = None) -> bool:
    """Whether the keys and values that a base attends to are those of a layer's storage, not computed from them."""
    return isinstance(layer, PagedLayer) and layer.holds(key, value)


def cache_layer_of(cache: SOLCache, module: torch.nn.Module, key: torch.Tensor) -> int | None:
    """Index of the cache layer whose keys a module attends to; `None` if they are in none."""
    layer_idx, layers = getattr(module, "layer_idx", None), cache.layers
    own = layers[layer_idx] if isinstance(layer_idx, int) and layer_idx < len(layers) else None
    has_keys = getattr(own, "keys", None) is not None
    if has_keys and (not isinstance(own, PagedLayer) or is_stored(own, key)):
        return layer_idx
    found = next((index for index, layer in enumerate(layers) if is_stored(layer, key)), None)
    return layer_idx if found is None and has_keys else found


def sharing_part(layer: int) -> Hashable:
    """Key for `mark_done` of a decoder layer that has no keys of its own and reads those of another one."""
    return "reads the keys of another layer", layer


def refuse_computed_keys(module: torch.nn.Module, layer: PagedLayer, key: torch.Tensor) -> None:
    """Raise [`UnsupportedAxisError`] in a rollout over a base whose keys are not those in its cache."""
    if not is_stored(layer, key):
        raise UnsupportedAxisError(
            f"Rollouts cannot run on {type(module).__name__}: it computes its keys from what is in the cache, and "
            "attention over a shared prefix reads them from there."
        )


def triton_supports(query: torch.Tensor, layer: object) -> bool:
    """Whether the Triton kernels can attend from `query` `(rows, heads, tokens, head_dim)` to the keys of a layer."""
    return (
        isinstance(layer, PagedLayer)
        and supports_in_triton_support(query)
        and query.dtype == layer.dtype == layer.stored_dtype
        and query.stride(-1) == 1
        and max(query.shape[-1], layer.stores()[1].shape[-1]) <= MOST_CHANNELS
        and layer.stores()[0].shape[2] // layer.page_size < MOST_PAGES
    )


def rows_on(device: torch.device, cache: SOLCache, rows: int, length: int) -> DeviceRows:
    """The first key and the number of keys of every row, for a cache of `length` slots."""
    padding = cache.padding
    first_key = torch.zeros(rows, dtype=torch.long, device=device) if padding is None else padding.to(device)
    return DeviceRows(first_key, length - first_key)


def refuse_capture(plan: StepPlan | RefreshPlan | None, query: torch.Tensor) -> None:
    """Raise a ValueError in a forward that is captured in a CUDA graph, which needs the Triton kernels."""
    if plan is not None and plan.rows_on_device is not None:
        raise ValueError(
            f"CUDA graphs need the Triton kernels, which do not support this base: {query.shape[-1]} channels a head, "
            f"{query.dtype}, attention that adds to its scores or to other keys than those in the cache. Leave out "
            "`cuda_graphs`."
        )


# =====================================================================================================================
# execution/attention/step/operation.py
#
# The attention of one layer in a decode step, and all of its implementations.
#
# With a `token_keep` they attend to the keys that the plan's criterion selects, without one to all keys. The first
# implementation is then the base's own attention.
# =====================================================================================================================


LEAST_KEYS = 32
"""Least number of keys for other code than the reference. Below it, compiling or loading a kernel does not pay off."""


@dataclass(eq=False)
class StepAttention:
    """Attention of one new token per row."""

    plan: StepPlan
    layer_idx: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float | None = None
    base_attention: Callable[[], tuple[torch.Tensor, torch.Tensor | None]] | None = None
    changes: ScoreChanges = field(default_factory=ScoreChanges)
    weights: torch.Tensor | None = None

    @property
    def layer(self) -> CacheLayerMixin:
        """The layer of the cache."""
        return self.plan.cache.layers[self.layer_idx]

    @cached_property
    def is_stored(self) -> bool:
        """Whether keys and values are those in the layer's storage, which compiled kernels read."""
        return is_stored(self.layer, self.key, self.value)

    @property
    def reads_pages(self) -> bool:
        """Whether the CPU's kernels for whole pages can attend to all keys, or to those that the criterion selects."""
        return self.changes.sinks is None and (
            self.plan.token_keep is None or CRITERIA[self.plan.rule.criterion].has_kernels
        )

    @property
    def reads_tokens(self) -> bool:
        """Whether the CPU's kernel for single tokens can attend to the keys that the criterion selects."""
        plan = self.plan
        selects = plan.token_keep is not None and CRITERIA[plan.rule.criterion].has_token_kernel(plan.rule)
        return self.changes.sinks is None and selects

    @property
    def is_long(self) -> bool:
        """Whether the text is long enough for `backend="auto"` to use another implementation than the reference."""
        return self.query.device.type == "cpu" and self.key.shape[2] >= LEAST_KEYS


STEP_ATTENTION: Operation[StepAttention] = Operation("implementation of a step's attention")
"""Implementations of a step's attention by name."""


def attend_step(call: StepAttention) -> torch.Tensor:
    """Attention of a decode step, `(rows, 1, heads, value_dim)`, by the implementation that the backend chooses."""
    output = STEP_ATTENTION.run(call, call.plan.backend)
    assert output is not None, "either the base or `gather` can compute every call"
    return output


# =====================================================================================================================
# execution/attention/interface.py
#
# The attention functions that transformers calls, registered in addition to the base's own implementation.
#
# For every implementation that a base may use, a second name is registered with transformers, such as `sol_sdpa` for
# `sdpa`: the attention function *and* the mask function. In a forward without a [`StepPlan`] the registered function
# calls the original implementation with the original arguments. In a decode step with a `token_keep` attention reads the
# selected keys only.
# =====================================================================================================================


def register_attention(implementation: str) -> str:
    """Register our version of an attention implementation, attention and mask function, and return its name."""
    name = ImplementationName(implementation).registered
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _attention_function(implementation))
        AttentionMaskInterface.register(name, _mask_function(implementation))
    return name


def _mask_function(implementation: str) -> Callable:
    def sol_mask(*args, **kwargs) -> Any:
        mask, context = ALL_MASK_ATTENTION_FUNCTIONS[implementation](*args, **kwargs), ACTIVE.get()
        if context is not None and isinstance(mask, torch.Tensor):
            context.masks.append(mask)
        return mask

    return sol_mask


def _attention_function(implementation: str) -> Callable:
    def sol_attention_forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args,
        **kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        context = ACTIVE.get()
        original = functools.partial(
            _original(implementation, module), module, query, key, value, attention_mask, *args, **kwargs
        )
        if context is None or context.told is None or args:
            return original()
        call = AttentionCall(module, query, key, value, attention_mask, kwargs, original, implementation)
        output = _attend_by_plan(call, context.plan, context) if context.plan is not None else None
        if output is None and context.refresh is not None and context.may_round_differently:
            output = _attend_in_refresh(call, context.refresh, context)
        if output is not None:
            return output
        refuse_capture(context.told, query)
        return original()

    return sol_attention_forward


class AttentionCall(NamedTuple):
    """What a module passes to its attention function, and `original`, which computes it as the base does."""

    module: Any
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    further: dict[str, Any]
    original: Callable[[], tuple[torch.Tensor, torch.Tensor | None]]
    implementation: str

    @property
    def scaling(self) -> float | None:
        """Scale of the scores; `1 / sqrt(head_dim)` if it is `None`."""
        return self.further.get("scaling")

    @property
    def changes(self) -> ScoreChanges:
        """What the base does with the scores, besides scaling."""
        return ScoreChanges.of(self.further)


Attended = tuple[torch.Tensor, torch.Tensor | None]


def _attend_by_plan(call: AttentionCall, plan: StepPlan, context: ForwardContext) -> Attended | None:
    """The attention of a decode step by its plan; `None` if the base's own is to be computed."""
    layer_idx = cache_layer_of(plan.cache, call.module, call.key)
    if layer_idx is None:
        return None
    layer = plan.cache.layers[layer_idx]
    if isinstance(layer, SharedPrefixLayer):
        refuse_unsupported(call.module, call.further, kind_of_mask(context, call.mask), call.implementation)
        refuse_computed_keys(call.module, layer, call.key)
        _mark_done(plan, layer_idx, call.module)
        output = attend_shared_prefix(layer, plan.rule, plan.token_keep, call.query, call.scaling, call.changes)
        return output, None
    if layer_idx not in plan.sparse_layers:
        return None
    dropped = layer.get_seq_length() - call.key.shape[2]
    kind = kind_of_mask(context, call.mask, plan.cache.padding, dropped)
    if plan.token_keep is not None:
        refuse_unsupported(call.module, call.further, kind, call.implementation)
        _mark_done(plan, layer_idx, call.module)
        step = StepAttention(plan, layer_idx, *call[1:4], call.scaling, changes=call.changes)
        return attend_step(step), None
    if kind == PLAIN and is_plain_in_masks(call.further):
        step = StepAttention(plan, layer_idx, *call[1:4], call.scaling, call.original)
        return attend_step(step), step.weights
    return None


def _mark_done(plan: StepPlan, layer_idx: int, module: Any) -> None:
    """Tick off a cache layer, and a module that shares its keys with another one."""
    plan.mark_done("token_keep", layer_idx)
    own = getattr(module, "layer_idx", layer_idx)
    if own != layer_idx:
        plan.mark_done("token_keep", sharing_part(own))


def _attend_in_refresh(call: AttentionCall, refresh: RefreshPlan, context: ForwardContext) -> Attended | None:
    """The dense attention of a KV refresh; `None` if the base's own is to be computed."""
    layer_idx = cache_layer_of(refresh.cache, call.module, call.key)
    if layer_idx is None or not is_plain_in_masks(call.further):
        return None
    if isinstance(refresh.cache.layers[layer_idx], PagedLayer) and refresh.rows_on_device is None:
        if kind_of_mask(context, call.mask, refresh.cache.padding) != PLAIN:
            return None
    output = attend_refresh(RefreshAttention(refresh, layer_idx, *call[1:5], call.scaling))
    return None if output is None else (output, None)


def _original(implementation: str, module: torch.nn.Module) -> Callable:
    """The original attention function; that of `eager` is defined in each model file."""
    if implementation in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[implementation]
    return eager_attention_of(type(module).forward)


@functools.lru_cache
def eager_attention_of(forward: Callable) -> Callable:
    """The eager attention that the forward of a class of modules passes to transformers as the default."""
    function = inspect.unwrap(forward)
    names = [name for name in function.__code__.co_names if name.endswith("eager_attention_forward")]
    return function.__globals__[names[0] if len(names) == 1 else "eager_attention_forward"]


# =====================================================================================================================
# execution/attention/support.py
#
# Checks whether the attention of a base can be replaced.
# =====================================================================================================================


REGISTRY = "ALL_ATTENTION_FUNCTIONS"
"""Name under which model code has the registry of attention functions."""


def attention_configs(base: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configs from which the decoder layers read their attention implementation, each once."""
    layers = decoder_layers(base)
    modules: list[nn.Module] = [base] if layers is None else list(layers.modules())
    configs = [vars(module).get("config") for module in modules]
    found = {id(config): config for config in configs if isinstance(config, PreTrainedConfig)}
    return list(found.values()) or [text_config(base)]


def check_attention(base: PreTrainedModel) -> None:
    """Raise [`UnsupportedAxisError`] if the attention of `base` cannot be reached through AttentionInterface."""
    config = text_config(base)
    start = f"The axis `token_keep` cannot be controlled on {type(base).__name__}"
    if not base._supports_attention_backend and not calls_interface(base):
        raise UnsupportedAxisError(f"{start}: its attention does not go through transformers' AttentionInterface.")
    if own_name(config._attn_implementation) == "eager" and _upcasts(base):
        raise UnsupportedAxisError(
            f"{start} with `reorder_and_upcast_attn` and eager attention, which goes around the attention function: "
            "load the base with attn_implementation='sdpa'."
        )
    for name in map(own_name, (part._attn_implementation for part in attention_configs(base))):
        if name not in ALL_MASK_ATTENTION_FUNCTIONS:
            raise UnsupportedAxisError(
                f"{start} with the attention implementation {name!r}: load the base with attn_implementation='sdpa' "
                "or 'eager'."
            )


def calls_interface(base: PreTrainedModel) -> bool:
    """Whether code of the decoder layers looks up its attention where transformers registers implementations."""
    layers = decoder_layers(base)
    return layers is not None and any(_looks_up(type(module).forward) for module in layers.modules())


@functools.lru_cache
def _looks_up(forward: Callable) -> bool:
    return REGISTRY in getattr(getattr(inspect.unwrap(forward), "__code__", None), "co_names", ())


def _upcasts(base: PreTrainedModel) -> bool:
    """Whether the attention of GPT-2 goes around the attention function."""
    return any(getattr(module, "reorder_and_upcast_attn", False) for module in base.modules())


# =====================================================================================================================
# execution/axes/token_keep.py
#
# The axis `token_keep`: attention reads the keys that the plan's criterion selects.
#
# While a generation runs, the attention implementation in the configs of the base is replaced by our registered version
# of it, which reads the plan. Full-attention layers carry it out. Layers with a sliding window stay dense, unless all
# layers have one.
# =====================================================================================================================


@register_executor("token_keep")
class TokenKeepExecutor(AxisExecutor):
    """Replaces the attention implementation of a base, in every config that its decoder layers hold."""

    def __init__(self, base: PreTrainedModel):
        check_attention(base)
        self._configs = attention_configs(base)
        config = text_config(base)
        self._has_indexer = any(isinstance(vars(module).get("index_topk"), int) for module in base.modules())
        types = getattr(config, "layer_types", None) or []
        modes = getattr(config, "kv_sharing_modes", None) or []
        reused = [i for i, mode in enumerate(modes) if (mode or "").startswith("reuse")]
        self._layer_types, self._reused = list(types), [layer for layer in reused if layer < len(types)]

    def changes(self) -> Iterable[Change]:
        return [Change("attention", config, functools.partial(_exchange, config)) for config in self._configs]

    def parts(self, cache: SOLCache) -> Mapping[Hashable, str]:
        parts: dict[Hashable, str] = {
            layer: f"the attention of layer {layer}" for layer in sorted(cache.sparse_layers)
        }
        shared = {sharing_part(layer): f"the attention of layer {layer}" for layer in self._sharing_layers(cache)}
        return parts | shared

    def layers(self, cache: SOLCache) -> Sequence[int]:
        return sorted(cache.sparse_layers | set(self._sharing_layers(cache)))

    @classmethod
    def refresh_gain(cls, rule: SelectionRule, bits_backend: str) -> RefreshGain:
        return CRITERIA[rule.criterion].refresh_gain(rule)

    def check_cache(self, cache: SOLCache, name: str) -> None:
        if cache.sparse_layers:
            return
        reason = "none of its cache layers holds all keys"
        if self._has_indexer:
            reason = (
                "an indexer of its own chooses the keys that a token reads: set `index_topk` in the config of the "
                "base to read fewer, and leave `token_keep` out of the budget"
            )
        raise UnsupportedAxisError(f"The axis `token_keep` cannot be controlled on {name}: {reason}.")

    def _sharing_layers(self, cache: SOLCache) -> list[int]:
        """Layers without keys of their own that read those of a layer which `token_keep` applies to."""
        kinds = {self._layer_types[layer] for layer in cache.sparse_layers if layer < len(self._layer_types)}
        return [layer for layer in self._reused if self._layer_types[layer] in kinds]


def _exchange(config: PreTrainedConfig) -> Callable[[], None]:
    """Exchange the implementation in one config, not in those of towers that may be part of it."""
    own = str(own_name(config._attn_implementation))
    register_attention(own)
    config._attn_implementation_internal = ImplementationName(own)
    return lambda: setattr(config, "_attn_implementation_internal", own)


# =====================================================================================================================
# execution/linear/blas.py
#
# The product as torch computes it: in float32 by the BLAS that it was built with.
# =====================================================================================================================


class Blas(Implementation[LinearCall]):
    """`functional.linear`, the fastest with many tokens."""

    order: ClassVar[int] = 0

    def prepare(self, call: LinearCall) -> Prepared | None:
        return functools.partial(functional.linear, *call)


LINEAR.register("blas", Blas())


# =====================================================================================================================
# execution/linear/onednn.py
#
# The product by oneDNN, which is part of torch; for bfloat16 torch uses it by default.
# =====================================================================================================================


def has_onednn() -> bool:
    """Whether torch was built with oneDNN and has it enabled."""
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


def multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`functional.linear` by oneDNN, for arguments that [`supports`] allows."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class OneDNN(Implementation[LinearCall]):
    """oneDNN in float32. In bfloat16 `functional.linear` uses oneDNN already."""

    order: ClassVar[int] = 10

    def prepare(self, call: LinearCall) -> Prepared | None:
        if call.x.dtype != torch.float32 or not has_onednn():
            return None
        return functools.partial(multiply, *call)


LINEAR.register("onednn", OneDNN())


# =====================================================================================================================
# execution/linear/planes/decoded.py
#
# The product with a weight that is decoded first: it reads the planes, and writes and reads the weight as well.
# =====================================================================================================================


class Decoded(Implementation[PlanesCall]):
    """The reference, in plain torch."""

    order: ClassVar[int] = 0

    def prepare(self, call: PlanesCall) -> Prepared | None:
        return functools.partial(product_in_nested_planes, *call)


PLANES_PRODUCT.register("decoded", Decoded())


# =====================================================================================================================
# execution/linear/planes/each_width.py
#
# Rows with different numbers of bits: every number of bits is computed for all rows, and each row takes its own.
# =====================================================================================================================


class EachWidth(Implementation[RowsCall]):
    """The reference, in plain torch."""

    order: ClassVar[int] = 0

    def prepare(self, call: RowsCall) -> Prepared | None:
        return functools.partial(multiply_each_width, call)


def multiply_each_width(call: RowsCall) -> torch.Tensor:
    """The output `(rows, ..., outputs)` of a [`RowsCall`]."""
    bits, output = per_row(call.bits, call.x), call.own(call.x)
    for width in reversed([width for width in WIDTHS if width >= call.least_bits]):
        output = torch.where(bits <= width, product_in_nested_planes(call.x, call.planes, width, call.bias), output)
    return output


PLANES_ROWS.register("each_width", EachWidth())


# =====================================================================================================================
# execution/mlp/kept_neurons/all_weights.py
#
# The base's own projection, with the neurons that are not kept set to zero: it reads all weights.
# =====================================================================================================================


class AllWeights_in_kept_neurons(Implementation[KeptCall]):
    """The reference. Under other backends compiled code chooses the neurons; the result is the same to the bit."""

    order: ClassVar[int] = 0

    def prepare(self, call: KeptCall) -> Prepared | None:
        return functools.partial(call.own, call.kept_input())


KEPT_NEURONS.register("all_weights", AllWeights_in_kept_neurons())


# =====================================================================================================================
# execution/mlp/kept_experts/all_weights.py
#
# The base's own experts, with the channels that are not kept set to zero: all weights of the chosen are read.
# =====================================================================================================================


class OwnExperts(Implementation[ExpertsCall]):
    """The reference for steps that read all neurons."""

    order: ClassVar[int] = 0

    def prepare(self, call: ExpertsCall) -> Prepared | None:
        return functools.partial(call.own, call.kept_input()) if call.neuron_keep is None else None


KEPT_EXPERTS.register("own_experts", OwnExperts())


# =====================================================================================================================
# execution/mlp/kept_experts/neurons.py
#
# Experts in plain torch, with the neurons that are not kept set to zero.
#
# The neurons of an expert are numbers within its module's forward, so that this computes the forward from the layout of
# the weights.
# =====================================================================================================================


class ExpertNeurons(Implementation[ExpertsCall]):
    """The reference for steps that choose neurons."""

    order: ClassVar[int] = 5

    def prepare(self, call: ExpertsCall) -> Prepared | None:
        layout = ExpertLayout.of(call.copies.module) if call.neuron_keep is not None else None
        return None if layout is None else functools.partial(experts_output, call, layout)


def experts_output(call: ExpertsCall, layout: ExpertLayout) -> torch.Tensor:
    """The sum of the chosen experts' outputs, weighted by the router, of the shape of `call.x`."""
    chosen, weights = call.chosen
    tokens, each = chosen.shape
    experts, is_real = chosen.flatten().clamp(max=len(layout.first) - 1), chosen.flatten() < len(layout.first)
    x = call.kept_input().reshape(tokens, -1).repeat_interleave(each, dim=0)
    neurons = layout.neurons(layout.linear(x, layout.first, layout.biases[0], experts))
    if call.neuron_keep is not None:
        neurons = keep_top_channels_in_channels(neurons, call.neuron_keep.repeat_interleave(each))
    output = layout.linear(neurons, layout.last, layout.biases[1], experts)
    if layout.finish is not None:
        output = layout.finish(output)
    output = (output * weights.flatten()[:, None]).masked_fill(~is_real[:, None], 0.0)
    return output.view(tokens, each, -1).sum(dim=1).to(call.x.dtype).view_as(call.x)


KEPT_EXPERTS.register("expert_neurons", ExpertNeurons())


# =====================================================================================================================
# execution/mlp/kept_channels/all_weights.py
#
# The base's own MLP, with the channels that are not kept set to zero: it reads all weights.
# =====================================================================================================================


class AllWeights_in_kept_channels(Implementation[MLPCall]):
    """The reference. Under other backends compiled code chooses the channels; the result is the same to the bit."""

    order: ClassVar[int] = 0

    def prepare(self, call: MLPCall) -> Prepared | None:
        return functools.partial(call.own, call.kept_input())


KEPT_CHANNELS.register("all_weights", AllWeights_in_kept_channels())


# =====================================================================================================================
# costs/axes/bits.py
#
# `bits`: fake quantization saves nothing; in nominal counts MLP weights have bits / 16 of their size.
#
# With `bits_backend="nested"`, the planes of the width that is read count, and their scales. Where channels or neurons
# are left out, their planes do not count, but all scales do. Nominal counts are then the same as the others. With
# `"int8"`, which only MLPs know, the counts are those of fake quantization.
# =====================================================================================================================


@AXIS_COSTS.registered("bits")
class BitsCost(AxisCost):
    """The bytes of weights."""

    def __init__(self, model: CountedModel, keys: int, bits_backend: str = "fake"):
        super().__init__(model, keys, bits_backend)
        self.is_nested = bits_backend == "nested"
        self.layers = planed_layers(model.base, find_mlps(model.base)) if self.is_nested else ()
        self.mlps, self.weights = MlpModules.of(model.base), Weights.of(model)

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        if not self.is_nested:
            return lambda step: step.times(nominal_mlp_size=level / BITS.scale)
        width = width_read(level)
        if width is None:
            return lambda step: step
        inputs, lasts, every = (self._reads(modules, width) for modules in self.mlps)
        other, outside = every - inputs - lasts, PlaneReads.of(self.layers, width) - every
        weights = self.weights
        other_weights = weights.mlp - weights.mlp_input - weights.mlp_last

        def apply(step: StepCounts) -> StepCounts:
            return replace(
                step,
                mlp_input_size=step.mlp_input_size - inputs.saved_per(weights.mlp_input, step.itemsize),
                mlp_last_size=step.mlp_last_size - lasts.saved_per(weights.mlp_last, step.itemsize),
                other_mlp_size=step.other_mlp_size - other.saved_per(other_weights, step.itemsize),
                mlp_scale_bytes=step.mlp_scale_bytes + every.scales,
                other_bytes_saved=step.other_bytes_saved + outside.original - outside.codes - outside.scales,
            )

        return apply

    def _reads(self, modules: Iterable[nn.Module], width: int) -> "PlaneReads":
        among = set(map(id, modules))
        return PlaneReads.of([layer for layer in self.layers if id(layer.module) in among], width)


@dataclass(frozen=True)
class PlaneReads:
    """Bytes of some linear layers."""

    original: int = 0
    codes: int = 0
    scales: int = 0

    @classmethod
    def of(cls, layers: Iterable[PlanedLayer], width: int) -> "PlaneReads":
        """The bytes of layers that are read in `width` bits, or in as many as they need."""
        original = codes = scales = 0
        for layer in layers:
            if layer.part is not None and layer.part.least_bits is not None:
                weight = matrix_of(layer.module)
                outputs, channels = weight.shape
                own_scales = plane_bytes(outputs, channels, bits=0)
                original += weight.nbytes
                codes += plane_bytes(outputs, channels, max(width, layer.part.least_bits)) - own_scales
                scales += own_scales
        return cls(original, codes, scales)

    def __sub__(self, other: "PlaneReads") -> "PlaneReads":
        return PlaneReads(self.original - other.original, self.codes - other.codes, self.scales - other.scales)

    def saved_per(self, weights: int, itemsize: int) -> float:
        """Bytes saved per weight without those of the scales, as a fraction of `itemsize`."""
        return (self.original - self.codes) / (weights * itemsize) if weights else 0.0


# =====================================================================================================================
# costs/axes/mlp_keep.py
#
# `mlp_keep`: of MLP matrices whose input is the hidden state, only the weights of kept channels are read.
# =====================================================================================================================


@AXIS_COSTS.registered("mlp_keep")
class MlpKeepCost(AxisCost):
    """The level is the share of these weights that is read."""

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        return lambda step: step.times(mlp_input_weights=level)


# =====================================================================================================================
# costs/axes/neuron_keep.py
#
# `neuron_keep`: of the last projections of MLPs, only the weights of kept neurons are read.
# =====================================================================================================================


@AXIS_COSTS.registered("neuron_keep")
class NeuronKeepCost(AxisCost):
    """The level is the share of these weights that is read."""

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        return lambda step: step.times(mlp_last_weights=level)


# =====================================================================================================================
# costs/axes/token_keep.py
#
# `token_keep`: attention reads the selected keys and values, and the data that the selection needs.
# =====================================================================================================================


@AXIS_COSTS.registered("token_keep")
class TokenKeepCost(AxisCost):
    """Bytes and operations of attention relative to those of dense attention."""

    def __init__(self, model: CountedModel, keys: int, bits_backend: str = "fake"):
        super().__init__(model, keys, bits_backend)
        self.layers = cached_layers(model)
        self.dense_read, self.dense_computed = self._costs(1.0, of_base=True)

    def at(self, level: float) -> Callable[[StepCounts], StepCounts]:
        read, computed = self._costs(level)
        factors = dict(kv_bytes=_share(read, self.dense_read), kv_flops=_share(computed, self.dense_computed))
        return lambda step: step.times(**factors)

    def _costs(self, level: float, of_base: bool = False) -> tuple[float, float]:
        return attention_costs(self.layers, self.model.config.selection_rule, level, self.keys, of_base)


def _share(read: float, dense: float) -> float:
    return read / dense if dense else 1.0


# =====================================================================================================================
# controllers/signal.py
#
# Baselines that follow a budget step by step: each spends more where a signal of the base is high.
#
# For every axis and step, `c` is the level that would spend the rest of the budget exactly if all remaining steps took
# it. The step takes one of the two levels around `c`: the upper one if `c` is near it or the signal is high.
#
#     lo ------------ c ------- hi        p = (c - lo) / (hi - lo) + gain * (signal - 0.5);   hi if p >= 0.5
#
# The choice is then limited to levels after which the target can still be met exactly. If there is none, the episode
# ends below the target. All axes get the same signal. The sums are those of the ledger, in float32, without a
# tolerance: an episode whose target is itself a level can thus end one level below it, as in the published baseline.
# =====================================================================================================================


class SignalController(Controller):
    """Base class of controllers with a signal. Subclasses implement [`SignalController.signal`]."""

    rows_are_independent = True

    def __init__(self, gain: float = 0.35):
        self.gain = gain

    def signal(self, observation: Observation) -> torch.Tensor:
        """The signal of this step, `(rows,)` in 0..1: above 0.5 it favours the upper level, below it the lower."""
        raise NotImplementedError

    def __call__(self, observation: Observation) -> torch.Tensor:
        urge = self.gain * (self.signal(observation).float() - 0.5)
        space = observation.action_space
        targets, ledger = observation.require_targets().double(), observation.ledger
        left = observation.remaining.double().clamp(min=1)
        unspent = targets * (ledger.budgeted_counts() + left[:, None]) - ledger.episode_sums
        ratios = space.ratios_on(targets.device).double()
        columns = zip(ratios.unbind(-1), unspent.unbind(-1), strict=True)
        wanted = [spend(column.unique(), own, left, urge) for column, own in columns]
        return closeness(torch.stack(wanted, dim=-1), space)


def spend(levels: torch.Tensor, unspent: torch.Tensor, left: torch.Tensor, urge: torch.Tensor) -> torch.Tensor:
    """The level that a step takes on one axis."""
    lowest, highest = levels[0], levels[-1]
    level = (unspent / left).clamp(lowest, highest)
    low, high = at_most(levels, level), at_least(levels, level)
    share = (level - low) / (high - low).clamp(min=1e-6)
    chosen = torch.where((high > low) & (share + urge >= 0.5), high, low)
    least, most = unspent - (left - 1) * highest, unspent - (left - 1) * lowest
    return torch.minimum(torch.maximum(chosen, at_least(levels, least)), at_most(levels, most))


def at_most(levels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Largest of the ascending levels that is at most each of `values` `(rows,)`; else the smallest of all."""
    index = torch.searchsorted(levels, values, right=True) - 1
    return levels[index.clamp(min=0)]


def at_least(levels: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Smallest of the ascending levels that is at least each of `values` `(rows,)`; else the largest of all."""
    index = torch.searchsorted(levels, values)
    return levels[index.clamp(max=len(levels) - 1)]


# =====================================================================================================================
# controllers/drift.py
#
# Spends more after a large change of the hidden state.
# =====================================================================================================================


class DriftController(SignalController):
    """Spends more after a large change of the base's hidden state (the published DAC)."""

    def signal(self, observation: Observation) -> torch.Tensor:
        pair = (observation.hidden_state, observation.previous_hidden_state)
        if observation.step == 0:
            pair = (observation.token_embedding, observation.previous_embedding)
        latest, before = pair
        if before is None:  # the very first token of a text
            return torch.full_like(observation.remaining, 0.5)
        cosine = cosine_similarity(latest.float(), before.float(), dim=-1)
        return (1 - cosine).clamp(0, 1) / 2


register_controller("drift", lambda model, number: DriftController())


# =====================================================================================================================
# controllers/entropy.py
#
# Spends more after an uncertain prediction.
# =====================================================================================================================


class EntropyController(SignalController):
    """Spends more after an uncertain prediction (the published EMC)."""

    needs_logits = True

    def __init__(self, mix: float = 1.0, gain: float = 0.35):
        super().__init__(gain)
        if not 0 <= mix <= 1:
            raise ValueError(f"`mix` must lie in 0..1, got {mix}.")
        self.mix = mix

    def digest_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The signal, `(rows,)`, which is all that is needed of the logits."""
        logprobs = logits.float().log_softmax(dim=-1)
        probability = logprobs.exp()
        entropy = -(probability * logprobs.clamp(min=torch.finfo(logprobs.dtype).min)).sum(dim=-1)
        best = probability.topk(min(2, logits.shape[-1]), dim=-1).values
        margin = best[:, 0] - best[:, 1:].sum(dim=-1)
        return self.mix * entropy / math.log(max(logits.shape[-1], 2)) + (1 - self.mix) * (1 - margin)

    def signal(self, observation: Observation) -> torch.Tensor:
        if observation.logits_digest is not None:
            return observation.logits_digest
        if observation.total_step or bool(observation.controllable.any()):
            raise ValueError(
                "EntropyController needs the logits of the token before, which ran without it: pass two new tokens or "
                "more, so that the first of them is processed densely."
            )
        return torch.full_like(observation.remaining, 0.5)


register_controller("entropy", lambda model, number: EntropyController())


# =====================================================================================================================
# controllers/names.py
#
# Makes controllers from their names, as given on a command line.
# =====================================================================================================================


DENSE = "dense"
"""The name that stands for the base without a controller."""


def controller_names() -> tuple[str, ...]:
    """Names that [`make_controller`] accepts."""
    return (*CONTROLLERS, DENSE)


def parse_controller(spec: str) -> tuple[str, int]:
    """Split `name:number` into name and number, 0 without a number; see [`make_controller`]."""
    if spec.strip() in CONTROLLERS:  # a name may have a colon itself
        return spec.strip(), 0
    name, colon, number = spec.strip().partition(":")
    if name == DENSE and not colon:
        return name, 0
    if name not in CONTROLLERS:
        raise CONTROLLERS.unknown(spec, also=(DENSE,))
    meaning = CONTROLLERS[name].number
    if colon and meaning is None:
        raise ValueError(f"Controller {spec!r}: `{name}` takes no number.")
    if colon and not number.isdecimal():
        raise ValueError(f"Controller {spec!r}: the {meaning} of `{name}` is a whole number, as in `{name}:7`.")
    return name, int(number) if colon else 0


def make_controller(spec: str, model: HasPolicy) -> Controller | None:
    """The controller of a name, such as `policy`, `fixed`, `random`, `random:7` (with a seed), `entropy`, `drift`."""
    name, number = parse_controller(spec)
    return None if name == DENSE else CONTROLLERS[name].make(model, number)


# =====================================================================================================================
# controllers/place.py
#
# The static schedule that knows the place in a page, without a policy: what a policy has to beat on pages.
# =====================================================================================================================


PLACE = "fixed:place"


class PlaceController(Controller):
    """At every place of a page the levels of least measured cost whose mean over a page is the target."""

    rows_are_independent = True

    def __init__(self, costs: PlaceCosts):
        self.costs = costs
        self._known: tuple[torch.Tensor, ActionSpace, tuple[torch.Tensor, ...]] | None = None
        """The targets of the last step, its action space, and the plan."""

    def __call__(self, observation: Observation) -> torch.Tensor:
        targets, space, places = observation.require_targets(), observation.action_space, self.costs.places
        if self._known is None or self._known[0] is not targets or self._known[1] is not space:
            self._known = targets, space, self.plan(targets, space)
        low, high, share = self._known[2]
        place = (observation.page_fill * places).round().long().to(low.device) - 1
        chosen = place.clamp(0, places - 1)[:, None, None].expand(-1, low.shape[1], 1)
        lower, upper, part = (x.gather(2, chosen).squeeze(2) for x in (low, high, share))
        turn = observation.total_step // places  # steps follow one another, so that a place comes once a page
        half = half_between(lower, upper)
        is_high = torch.ceil(part * (turn + 1) - half) > torch.ceil(part * turn - half)
        return closeness(torch.where(is_high, upper, lower).to(targets), space)

    def plan(self, targets: torch.Tensor, space: ActionSpace) -> tuple[torch.Tensor, ...]:
        """Lower level, upper level and share of the upper one, each `(rows, axes, places)`."""
        known: dict[tuple[float, ...], list[torch.Tensor]] = {}
        rows = [tuple(row) for row in targets.double().tolist()]
        for row in rows:
            if row not in known:
                pairs = zip(space.axes, row, strict=True)
                parts = [levels_by_place(*self._costs_of(axis, space), mean) for axis, mean in pairs]
                known[row] = [torch.stack(part) for part in zip(*parts, strict=True)]
        return tuple(torch.stack(part).to(targets.device) for part in zip(*(known[row] for row in rows), strict=True))

    def _costs_of(self, axis: Axis, space: ActionSpace) -> tuple[torch.Tensor, torch.Tensor]:
        levels = torch.tensor(space.spent[axis.name], dtype=torch.float64) / axis.scale
        return torch.tensor(self.costs.costs[axis.name], dtype=torch.float64), levels


def depends_on_place(model: HasPolicy) -> bool:
    """Whether the criterion of a model chooses pages. Of others, which choose single tokens, no place is special."""
    return CRITERIA[model.policy.config.criterion].chooses_pages


def make_place_controller(model: HasPolicy, number: int = 0) -> Controller:
    """The controller `fixed:place` of a model, by the costs that its config has."""
    config: Any = model.policy.config
    if not depends_on_place(model):
        return FixedController(carry=config.action_space.axis_names, across_rows=False)
    if config.place_costs is None:
        raise ValueError(
            f"`{PLACE}` needs the costs of levels by the place in a page, which this config lacks: measure them with "
            "`python examples/measure_places.py POLICY TEXTS --save`, or set `model.config.place_costs = "
            "measure_places(model, blocks, context_length).to_json()`."
        )
    return PlaceController(PlaceCosts.from_json(config.place_costs, config.action_space, config.page_size))


register_controller(PLACE, make_place_controller)


# =====================================================================================================================
# controllers/random.py
#
# A random schedule that meets the budget.
# =====================================================================================================================


class RandomController(Controller):
    """Per row and episode, a random permutation of the right number of high and low levels of every axis."""

    def __init__(self, seed: int = 0):
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, observation: Observation) -> torch.Tensor:
        targets = observation.require_targets()
        low, high, share = neighbouring_levels(targets, observation.action_space)
        length = observation.episode_length
        if "place" not in observation.state:
            noise = torch.rand(observation.rows, len(observation.action_space.axes), length, generator=self.generator)
            observation.state["place"] = noise.argsort(dim=-1).to(targets.device)
        is_high = observation.state["place"][:, :, observation.step] < torch.round(share * length)
        return closeness(torch.where(is_high, high, low), observation.action_space)


register_controller("random", lambda model, number: RandomController(number), number="seed")


# =====================================================================================================================
# execution/attention/grouped_queries.py
#
# Grouped-query attention in plain torch, without a copy of the keys for every query head.
# =====================================================================================================================


PLAIN_SCORES = ScoreChanges()


def fold_groups(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """Group queries by key-value head: `(rows, heads, tokens, dim)` to `(rows, kv_heads, group * tokens, dim)`."""
    rows, heads, tokens, dim = query.shape
    return query.reshape(rows, kv_heads, heads // kv_heads * tokens, dim)


def attend_grouped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    changes: ScoreChanges = PLAIN_SCORES,
) -> torch.Tensor:
    """Attention of new tokens over all keys. The query heads of a group are treated as additional tokens of one head."""
    rows, heads, tokens, _ = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    group = heads // kv_heads
    if mask.shape[1] == 1:
        folded_mask = mask.expand(-1, group, -1, -1).reshape(len(mask), 1, group * tokens, slots)
    else:
        folded_mask = mask.reshape(len(mask), kv_heads, group * tokens, slots)
    output = attend(fold_groups(query, kv_heads), key, value, folded_mask, scaling, changes)
    return output.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous()


# =====================================================================================================================
# execution/attention/refresh/grouped.py
#
# Attention in plain torch. Unlike that of many bases, it does not copy the keys for every query head.
# =====================================================================================================================


class Grouped(Implementation[RefreshAttention]):
    """One call of torch's scaled dot product attention per layer."""

    order: ClassVar[int] = 0

    def prepare(self, call: RefreshAttention) -> Prepared | None:
        if (mask := call.group_mask) is None:
            return None
        return functools.partial(attend_grouped, call.query, call.key, call.value, mask, call.scaling)


REFRESH_ATTENTION.register("grouped", Grouped())


# =====================================================================================================================
# execution/attention/step/base.py
#
# The base's own attention, for steps that read all keys.
# =====================================================================================================================


class BaseAttention(Implementation[StepAttention]):
    """The attention that the base computes without a plan."""

    order: ClassVar[int] = 0

    def prepare(self, call: StepAttention) -> Prepared | None:
        attention = call.base_attention
        if attention is None:
            return None

        def run() -> torch.Tensor:
            output, call.weights = attention()
            return output

        return run


STEP_ATTENTION.register("base", BaseAttention())


# =====================================================================================================================
# execution/attention/step/selected_keys.py
#
# The keys that a decode step reads, selected by the plan's criterion.
# =====================================================================================================================


class LayerCandidates(Candidates):
    """The cached keys of a layer, with the layer's page index if it belongs to these keys."""

    def __init__(self, call: StepAttention):
        page_origin, first_key = _row_origins(call)
        grouped = group_queries(call.query, call.key.shape[1])
        super().__init__(grouped, call.key, page_origin, first_key, call.plan.rule.page_size, call.scaling)
        self._layer, self._padding_range = call.layer, call.plan.cache.padding_range

    def page_bounds(self) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(self._layer, PagedLayer) and is_stored(self._layer, self._keys):
            upper, lower = self._layer.page_index(self.first_key, self._padding_range)
            return upper.to(self._keys.dtype), lower.to(self._keys.dtype)
        return super().page_bounds()

    def coded_scores(self, bits: int) -> torch.Tensor:
        if isinstance(self._layer, PagedLayer) and is_stored(self._layer, self._keys):
            index = self._layer.sketch(bits, self.first_key, self._padding_range)
            codes, scale = index.codes(self.query.shape[-1]), index.scale[:, :, None, : index.tokens]
            return self.query.float() @ codes.float().transpose(2, 3) * scale.float()
        return super().coded_scores(bits)


def _row_origins(call: StepAttention) -> tuple[torch.Tensor, torch.Tensor]:
    """`page_origin` and `first_key` of [`Candidates`], each of shape `(rows,)`."""
    device, padding = call.key.device, call.plan.cache.padding
    if padding is None:
        padding = torch.zeros(len(call.query), dtype=torch.long, device=device)
    first_key = padding.to(device)
    dropped = call.layer.get_seq_length() - call.key.shape[2]
    if dropped == 0:
        return first_key, first_key
    # A sliding-window layer has only its last keys. Pages stay aligned to the row's first token, which was dropped.
    visible_key = (first_key - dropped).clamp(min=0)
    place_in_page = (dropped - first_key).clamp(min=0) % call.plan.rule.page_size
    return visible_key - place_in_page, visible_key


def select_keys(call: StepAttention) -> tuple[Candidates, Selection]:
    """The keys that a step with a `token_keep` may read, and those that the criterion selects."""
    token_keep, rule = call.plan.token_keep, call.plan.rule
    assert token_keep is not None, "a step without it reads all keys"
    candidates = LayerCandidates(call)
    return candidates, CRITERIA[rule.criterion].select(candidates, token_keep.to(call.key.device), rule)


# =====================================================================================================================
# execution/attention/step/gather.py
#
# Attention over copies of the selected keys and values, in plain torch: the reference.
# =====================================================================================================================


class Gather(Implementation[StepAttention]):
    """Gathers the selected keys and values, and attends to the copies."""

    order: ClassVar[int] = 10

    def prepare(self, call: StepAttention) -> Prepared | None:
        return None if call.plan.token_keep is None else functools.partial(attend_selected, call)


def attend_selected(call: StepAttention) -> torch.Tensor:
    """Attention of one new token per row over the keys that the plan's criterion selects."""
    query, key = call.query, call.key
    rows, heads, _, dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    candidates, selection = select_keys(call)
    slot, in_use = candidates.slots_of(selection)
    per_head = slot.shape[1] == heads and heads != kv_heads
    chosen_key, chosen_value = _gather(call, slot.clamp(0, slots - 1), heads if per_head else kv_heads)
    if not per_head:
        query = query.reshape(rows, kv_heads, heads // kv_heads, dim)
    output = attend(query, chosen_key, chosen_value, in_use[:, :, None, :], call.scaling, call.changes)
    return output.reshape(rows, 1, heads, call.value.shape[-1])


def _gather(call: StepAttention, slot: torch.Tensor, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values at `slot` `(rows, 1 or heads, m)`, of shape `(rows, heads, m, head_dim)`."""
    key, value, layer = call.key, call.value, call.layer
    rows, kv_heads = key.shape[:2]
    if isinstance(layer, PagedLayer) and call.is_stored:
        flat_key, flat_value, stride = layer.flat_store()
    else:
        flat_key, flat_value, stride = key.flatten(0, 2), value.flatten(0, 2), key.shape[2]
    kv_head = torch.arange(heads, device=key.device) // (heads // kv_heads)
    base = (torch.arange(rows, device=key.device)[:, None] * kv_heads + kv_head) * stride
    index = (slot + base[:, :, None]).flatten()
    shape = (rows, heads, slot.shape[-1], -1)
    chosen_key, chosen_value = (flat.index_select(0, index).view(shape) for flat in (flat_key, flat_value))
    return chosen_key.to(key.dtype), chosen_value.to(value.dtype)


STEP_ATTENTION.register("gather", Gather())


# =====================================================================================================================
# execution/attention/step/masked.py
#
# Attention over all keys under a mask, without copies: for short contexts, where reading all keys is cheap.
# =====================================================================================================================


FEW_KEYS = 64
LEAST_SHARE = 0.5
"""Mean `token_keep` from which on it is faster with any number of keys."""


class Masked(Implementation[StepAttention]):
    """Hides the keys that are not selected. With long contexts it is slower than the reference."""

    order: ClassVar[int] = 20
    is_fallback: ClassVar[bool] = True

    def prepare(self, call: StepAttention) -> Prepared | None:
        return None if call.plan.token_keep is None else functools.partial(attend_masked, call)

    def suits(self, call: StepAttention) -> bool:
        """Gathering copies what is read, so reading all keys is faster if there are few, or half of them are read."""
        return call.is_long and (call.key.shape[2] <= FEW_KEYS or call.plan.kept_share >= LEAST_SHARE)


def attend_masked(call: StepAttention) -> torch.Tensor:
    """Attention of one new token per row over all keys, those that are not selected masked."""
    candidates, selection = select_keys(call)
    mask, heads = candidates.mask_of(selection), call.query.shape[1]
    if mask.shape[1] not in (1, heads):
        mask = mask.repeat_interleave(heads // mask.shape[1], dim=1)
    return attend_grouped(call.query, call.key, call.value, mask[:, :, None], call.scaling, call.changes)


STEP_ATTENTION.register("masked", Masked())
