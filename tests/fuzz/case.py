# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A case: everything that a conversation with a model depends on, as plain data."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sol_hf.budget.axes import AXES
from support.bases import FAMILIES
from support.cases import LEVELS


DENSE = {name: 16 if name == "bits" else axis.dense for name, axis in AXES.items()} | {"mlp_noise": 1.0}
"""The dense level of every axis of the cases."""


@dataclass(frozen=True)
class Case:
    """One conversation: a base, a policy on it, a budget, and the calls of `generate` on one cache.

    The defaults are the simplest case. `repr` names only what differs from them, and can be pasted.

    Args:
        family (`str`): Of `FAMILIES` in `support.bases`, or of `FAMILY_NAMES` in `sol_hf.evaluation.families`, of
            which not all can be controlled.
        base (`dict`): Values of the base's config that differ from those of `tiny_base`.
        dtype (`str`): `float64`, in which rounding flips no choice, `float32` or `bfloat16`.
        levels (`dict`): Levels of every axis of the action space; `mlp_noise` is an axis of another package.
        settings (`dict`): Further values of `SOLConfig`.
        budget (`dict`): Targets by axis, a number or one per row.
        given (`str`): How the budget reaches the call: as `arguments`, as an `object`, in the `generation_config` of
            the call, or `stored` with the model.
        stored (`dict`): Another budget that is stored with the model; the one of the call takes its place.
        controller (`str`): Of `CONTROLLERS` in `fuzz.controllers`.
        processor (`str`, *optional*): Of `PROCESSORS` in `fuzz.controllers`.
        options (`dict`): Options of the budget: mode, refresh, backend and so on.
        lengths (`tuple` of `int`): Tokens of every row's prompt; shorter rows are padded on the left.
        decoding (`dict`): Arguments of transformers' own generate.
        end_every (`int`, *optional*): Every so manyth token id ends its row.
        row_limits (`tuple` of `int`, *optional*): New tokens after which a stopping criterion ends each row.
        embeds (`bool`): Whether the first prompt is given as embeddings.
        turns (`tuple` of `int`): New tokens of every call.
        added (`tuple` of `int`): Tokens that the user adds before every further call.
        copies (`str`, *optional*): The cache goes from turn to turn as a `deepcopy` or through `pickle`.
        interrupt (`float`, *optional*): Share of the last call's work at which it is interrupted, in a second run.
        wrong (`str`, *optional*): Of `MISTAKES` in `fuzz.mistakes`: a mistake that has to be refused.
        seed (`int`): Of weights, prompts and draws.
    """

    family: str = "llama"
    base: dict[str, Any] = field(default_factory=dict)
    dtype: str = "float64"
    levels: dict[str, list] = field(default_factory=lambda: dict(LEVELS))
    settings: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    given: str = "arguments"
    stored: dict[str, Any] = field(default_factory=dict)
    controller: str = "policy"
    processor: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    lengths: tuple[int, ...] = (12,)
    decoding: dict[str, Any] = field(default_factory=dict)
    end_every: int | None = None
    row_limits: tuple[int, ...] | None = None
    embeds: bool = False
    turns: tuple[int, ...] = (3,)
    added: tuple[int, ...] = ()
    copies: str | None = None
    interrupt: float | None = None
    wrong: str | None = None
    seed: int = 0

    def __repr__(self) -> str:
        changed = (f"{name}={getattr(self, name)!r}" for name in self.changed())
        return f"Case({', '.join(changed)})"

    def changed(self) -> list[str]:
        """Names of the fields that differ from the simplest case."""
        return [name for name, value in SIMPLEST.items() if getattr(self, name) != value]

    def but(self, **changes) -> "Case":
        """The same case with other values."""
        return dataclasses.replace(self, **changes)

    @property
    def is_tested(self) -> bool:
        """Whether the family is one on which every axis can be controlled."""
        return self.family in FAMILIES

    @property
    def rows(self) -> int:
        """Rows of the prompt."""
        return len(self.lengths)

    @property
    def rows_out(self) -> int:
        """Rows of the output."""
        return self.rows * self.decoding.get("num_return_sequences", 1)

    @property
    def beams(self) -> int:
        """Beams of every row; 1 without beam search."""
        return self.decoding.get("num_beams", 1)

    @property
    def is_exact(self) -> bool:
        """Whether two ways to compute the same agree in every choice."""
        return self.dtype == "float64"

    @property
    def is_padded(self) -> bool:
        """Whether the prompt has padding."""
        return len(set(self.lengths)) > 1

    @property
    def first_controllable(self) -> int:
        """Keys that the first controllable step sees."""
        return self.settings.get("sink_tokens", 4) + self.settings.get("window_tokens", 2) + 2

    @property
    def short_text_tokens(self) -> int:
        """Keys up to which a step reads all, apart from the budget."""
        return self.settings.get("short_text_tokens", 0)

    @property
    def episode_length(self) -> int:
        """Steps of an episode."""
        return self.settings.get("episode_length", 6)

    @property
    def is_hard(self) -> bool:
        """Whether the budget must be kept whatever the controller wants."""
        return bool(self.budget) and self.options.get("budget_mode", "hard") == "hard"

    @property
    def keeps_episodes(self) -> bool:
        """Whether the budget of every episode is kept, not only that of a call."""
        return self.options.get("budget_horizon") == "episode"

    @property
    def is_dense(self) -> bool:
        """Whether all steps are dense: no budget and no controller, or only targets that are dense.

        Dense targets need a dense action; in a space without one, steps run at the largest levels.
        """
        if self.budget and any(max(values) != DENSE[name] for name, values in self.levels.items()):
            return False
        for name, value in self.budget.items():
            if any(target != DENSE[name] for target in (value if isinstance(value, list) else [value])):
                return False
        return self.controller == "policy" or self.is_hard

    @property
    def runs_base(self) -> bool:
        """Whether the base itself runs: if all steps are dense, and nobody asks for fast ones."""
        return self.is_dense and self.options.get("backend") != "fast"

    def targets_of_row(self, row: int) -> Mapping[str, float]:
        """The budget of one row of the prompt."""
        return {name: value[row] if isinstance(value, list) else value for name, value in self.budget.items()}


SIMPLEST: dict[str, Any] = {
    item.name: item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
    for item in dataclasses.fields(Case)
}
"""The values of the simplest case by field."""
