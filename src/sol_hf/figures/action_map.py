# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""An action map: a text whose tokens are coloured by their compute, as a self-contained HTML page.

`plot_action_map` draws the same as a figure, and `examples/demo_render.py` shows continuations in these colours.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from transformers import PreTrainedTokenizerBase

from ..budget.axes import AXES, PUBLISHED_AXES
from ..budget.budget import Budget
from ..controllers.base import Controller
from ..episodes.begin_tokens import begin_tokens
from ..episodes.step_settings import StepSettings
from ..modeling_sol import SOLForCausalLM
from .axis_labels import level_text, ratio_terms


Action = tuple[float, ...]
"""One number per axis, in axis units."""
PUBLISHED_NAMES = tuple(axis.name for axis in PUBLISHED_AXES)
CHEAPEST = 0.25  # net keep at the cold end of the common colour scale; 1.0 (dense) is at its hot end
COLD, WARM, HOT = (255, 246, 205), (255, 199, 112), (240, 122, 82)
HEAT = (COLD, WARM, HOT)
"""Colours of the scale from cold to hot, of decreasing lightness; dark text is readable on all of them."""

INK = "#1c1410"
END_MARK = "∎"
TEMPLATES = Path(__file__).parent / "templates"


def compute_of(action: Sequence[float], axes: Sequence[str] = PUBLISHED_NAMES) -> float:
    """The net keep of one step: the mean over the axes in ratio units; 1 for a dense step.

    Args:
        action (`Sequence[float]`): One number per axis, in axis units.
        axes (`Sequence[str]`, *optional*, defaults to the published axes): Names of the axes, in that order.
    """
    return sum(value / AXES[axis].scale for axis, value in zip(axes, action, strict=True)) / len(axes)


def heat_of(compute: float, low: float = CHEAPEST, high: float = 1.0) -> float:
    """Position of a compute on a colour scale from `low` to `high`, from 0 (cold) to 1 (hot)."""
    return min(max((compute - low) / (high - low), 0.0), 1.0)


def heat_colour(heat: float) -> str:
    """The colour at a position on the scale, as `#rrggbb`."""
    (low, high), share = ((COLD, WARM), heat * 2) if heat < 0.5 else ((WARM, HOT), heat * 2 - 1)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def visible(text: str) -> str:
    """`text` with invisible characters made visible, and without control characters."""
    if not text:
        return "▫"  # a part of a character, which a later token completes
    text = text.replace("\t", "    ")
    return "".join("↵\n" if c == "\n" else c if c.isprintable() else "·" for c in text)


@dataclass(frozen=True)
class Token:
    """A token, the action of the step that predicted it, its log-probability in nats, if known, and the names of the
    axes of the action."""

    text: str
    action: Action
    logprob: float | None = None
    axes: tuple[str, ...] = PUBLISHED_NAMES

    @property
    def shown(self) -> str:
        """The text as it is displayed."""
        return visible(self.text)

    @property
    def heat(self) -> float:
        """The position on the colour scale, 0..1."""
        return heat_of(self.compute)

    @property
    def compute(self) -> float:
        """The net keep of the step."""
        return compute_of(self.action, self.axes)

    @property
    def tooltip(self) -> str:
        """Action, compute and log-probability in words."""
        words = ", ".join(level_text(axis, level) for axis, level in zip(self.axes, self.action, strict=True))
        words = f"{words}: compute {self.compute:.2f}"
        return words if self.logprob is None else f"{words}, log-prob {self.logprob:.2f}"


@dataclass(frozen=True)
class ActionMap:
    """A text with the compute of every token. Tuples have one number per axis, in axis units.

    Args:
        model (`str`): Name of the base.
        controller (`str`): Name of the controller.
        requested (`tuple` of `float`): The budget.
        realised (`tuple` of `float`): Means over the controllable steps.
        context (`str`): The text before the first step, processed densely.
        tokens (`tuple` of [`Token`]): The text after the context.
        axes (`tuple` of `str`, *optional*, defaults to the published axes): Names of the axes.
    """

    model: str
    controller: str
    requested: Action
    realised: Action
    context: str
    tokens: tuple[Token, ...]
    axes: tuple[str, ...] = PUBLISHED_NAMES

    @property
    def scale(self) -> tuple[float, float]:
        """The ends of the colour scale: least and greatest net keep of a token, rounded outward to twentieths."""
        computes = [token.compute for token in self.tokens]
        low, high = min(math.floor(20 * min(computes) + 1e-6), 19), math.ceil(20 * max(computes) - 1e-6)
        return low / 20, max(high, low + 1) / 20

    @property
    def heats(self) -> list[float]:
        """The position of every token on that scale, from 0 (cold) to 1 (hot)."""
        return [heat_of(token.compute, *self.scale) for token in self.tokens]

    @property
    def title(self) -> str:
        """Model, controller, net keep of the budget and net keep spent, in one line."""
        spent = f"net keep {compute_of(self.realised, self.axes):.2f} of {compute_of(self.requested, self.axes):.2f}"
        return f"{self.model}, {self.controller}, spent {spent}"

    @property
    def spending(self) -> str:
        """The realised mean and the budget of every axis, in one line."""
        axes = zip(self.axes, self.realised, self.requested, strict=True)
        return ", ".join(f"{name} {spent:.3g} of {asked:g}" for name, spent, asked in axes)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: list[int], end_ids: Set[int] = frozenset()) -> list[str]:
    """The text that each token adds; empty for a part of a character that a later token completes.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the tokens.
        ids (`list[int]`): The tokens.
        end_ids (`Set[int]`, *optional*): Tokens that end a text, shown as `END_MARK`.
    """
    texts, before = [], ""
    for index, token in enumerate(ids):
        if token in end_ids:
            texts.append(END_MARK)
            continue
        text = tokenizer.decode([i for i in ids[: index + 1] if i not in end_ids])
        if text.endswith("\ufffd") and index + 1 < len(ids):
            texts.append("")
            continue
        texts.append(text.removeprefix(before))
        before = text
    return texts


def map_actions(
    model: SOLForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    budget: Sequence[float],
    context_length: int = 16,
    controller: Controller | None = None,
    name: str = "policy",
    budget_mode: str = "hard",
) -> ActionMap:
    """Score a given text under a budget, and record the action of the step that predicted each token.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the base.
        text (`str`): The text.
        budget (`tuple` of `float`): Targets, one number per axis of the action
            space, in axis units.
        context_length (`int`, *optional*, defaults to 16): Tokens at the start that are processed densely.
        controller ([`Controller`], *optional*): Chooses the actions; the policy by default.
        name (`str`, *optional*, defaults to `"policy"`): Name of the controller in the map.
        budget_mode (`str`, *optional*, defaults to `"hard"`): As in `generate`.

    Returns:
        [`ActionMap`]: The map. Its context includes the token that the first step processes.

    Raises:
        ValueError: if the text has less than `context_length + 2` tokens, its special tokens cannot be told from the
            others, or the budget cannot be met.
    """
    tokens = [*begin_tokens(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]]
    ids: Any = torch.tensor([tokens], device=model.device)
    if ids.shape[1] < context_length + 2:
        raise ValueError(
            f"The text has {ids.shape[1]} tokens; with `context_length` {context_length} it needs at least "
            f"{context_length + 2}: give a longer text, or a shorter context."
        )
    space = StepSettings.of(model).space
    axes = space.axis_names
    if len(budget) != len(axes):
        raise ValueError(f"A budget has one number per axis ({', '.join(axes)}), got {tuple(budget)}.")
    pairs = zip(space.axes, budget, strict=True)
    controlled = {x.name: value for x, value in pairs if value != x.dense or max(space.levels[x.name]) != x.dense}
    targets = Budget.of(controlled)  # without a target an axis stays dense, as in the tables of evaluations
    output = model.score(
        ids, context_length=context_length, budget=targets, budget_mode=budget_mode, controller=controller
    )
    chosen, realised, logprobs = (output[name][0].cpu() for name in ("actions", "realised", "logprobs"))
    texts, actions = token_texts(tokenizer, ids[0].tolist()), space.values[chosen].tolist()
    begin = context_length + 1
    steps = zip(texts[begin:], actions, logprobs.tolist(), strict=True)
    return ActionMap(
        model=Path(model.base.config.name_or_path).name or type(model.base).__name__,
        controller=name,
        requested=tuple(budget),
        realised=tuple(realised.tolist()),
        context="".join(texts[:begin]),
        tokens=tuple(Token(text, tuple(action), logprob, axes) for text, action, logprob in steps),
        axes=axes,
    )


def page_environment(*folders: Path) -> Environment:
    """The environment for page templates, which are searched in the given folders and then in the package."""
    loader = FileSystemLoader([*folders, TEMPLATES])
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)


def render_action_map(action_map: ActionMap) -> str:
    """The map as one HTML file without external resources.

    Args:
        action_map ([`ActionMap`]): From [`map_actions`].
    """
    template = page_environment().get_template("action_map.html.jinja")
    return template.render(map=action_map, terms=ratio_terms(action_map.axes))
