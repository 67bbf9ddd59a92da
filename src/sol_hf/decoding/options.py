# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The budget options of `generate` and `score`: defaults, stored values, checks."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig

from ..budget.action_space import ActionSpace
from ..budget.axes import AXES
from ..budget.bank import BUDGET_MODES, HORIZONS
from ..budget.budget import AxisTarget, Budget
from ..budget.calibration import check_unit
from ..configuration_sol import SOLConfig
from ..controllers.base import Controller
from ..controllers.checks import check_controller
from ..controllers.dense import DenseController
from ..controllers.processors import ActionProcessorList, DenseRowsProcessor, budget_processors
from ..execution.plan import BACKENDS, BITS_BACKENDS
from ..execution.spending import space_under
from ..selection.kv_dtypes import check_kv_dtype
from .controls import DecodeControls
from .dial import Dial
from .option_names import STORED_DEFAULTS, option_names


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
        """Whether all steps would be dense.

        In hard mode this holds if all targets are dense, and are levels of the action space. In soft mode a controller
        that was passed explicitly may still choose other levels.
        """
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
        return min(space.levels[axis]) < AXES[axis].dense

    def controlled_axes(self, space: ActionSpace) -> list[str]:
        """The axes on which steps may be less than dense."""
        return [axis for axis in space.axis_names if self.controls_axis(axis, space)]

    def dense_axes(self, space: ActionSpace) -> frozenset[str]:
        """The axes on which every step is dense for any scores of the controller.

        These are the axes without another level, those that a budget does not set, and in hard mode those whose
        target is the dense value. An axis without a dense level is not included.
        """
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
        """The settings of the decode steps.

        User processors come first, then those that keep the budget, so that users cannot undo them.
        """
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
    """The budget options among the arguments of a call.

    Args:
        arguments (`Mapping[str, Any]`): The arguments that the signature names.
        further (`dict[str, Any]`): All other keyword arguments. Targets of added axes are taken out of them.
    """
    added = [name for name in option_names() if name not in arguments]
    options = {name: arguments[name] for name in option_names() if name in arguments}
    return options | {name: further.pop(name) for name in added if name in further}


def resolve_options(
    given: Mapping[str, Any],
    generation_config: GenerationConfig | None,
    stored: GenerationConfig,
    config: SOLConfig | None = None,
) -> DecodeOptions:
    """Combine the options of a call with those of generation configs; the first that sets an option has precedence.

    Args:
        given (`Mapping[str, Any]`): Options of the call.
        generation_config (`GenerationConfig`, *optional*): Of the call.
        stored (`GenerationConfig`): The model's own.
        config ([`SOLConfig`], *optional*): Config with the calibration for `compute`, see [`Dial`].

    Raises:
        ValueError: for an unknown option, a budget given twice, or `compute` without a table.
    """
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
    targets = ("budget", "compute", *AXES)
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
    """The options other than the budget that hold where a call says nothing, after their checks.

    Args:
        stored (`GenerationConfig`): The model's own.

    Raises:
        ValueError: for a value that is not allowed.
    """
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
    if budget is not None and any(axis in given for axis in AXES):
        *most, last = (f"`{axis}`" for axis in AXES)
        raise ValueError(f"Pass either `budget` or {', '.join(most)} and {last}, not both.")
    if budget is not None and not isinstance(budget, Budget):
        raise ValueError(f"`budget` must be a Budget, got {type(budget).__name__}.")
    targets = {axis: given.get(axis) for axis in AXES}
    explicit = budget is not None or any(value is not None for value in targets.values())
    if compute is not None and explicit:
        names = ", ".join(f"`{name}`" for name in ("budget", *AXES))
        raise ValueError(f"Pass either `compute` or a budget ({names}), not both.")
    for config in () if explicit or compute is not None else configs:
        found = {axis: config.get(axis) for axis in AXES if config.get(axis) is not None}
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
