# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""KV pollution as an impulse response: how long the error lasts after a few steps below full compute.

A cheap step has two effects: its own prediction is worse, and the keys and values that it writes disturb later steps.
Once the steps are dense again, only the second effect is left:

    step          0 . . . | begin . . . | . . . . . . . . . .
    disturbed run  dense  |  `action`   |  dense over a polluted cache, until a KV refresh
    reference      dense  |  dense      |  dense                          -> differences at every step

Both runs process the same text one token at a time. They agree to the bit until the first disturbed step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from tqdm.auto import tqdm

from ..budget.axes import PUBLISHED_AXES
from ..controllers.schedule import ScheduleController
from ..decoding.outputs import SOLScoreOutput
from ..modeling_sol import SOLForCausalLM
from .clusters import mean_and_error


@dataclass(frozen=True)
class ImpulseResponse:
    """Damage at every step of a text that was disturbed for a few steps. Steps count from the end of the context.

    Args:
        action (`tuple` of `float`): Levels of the disturbed steps, one per axis, in axis units; all other steps are
            dense.
        begin (`int`): The first disturbed step.
        length (`int`): How many steps are disturbed.
        refresh_every (`int`, *optional*): Steps between two KV refreshes; `None` without refresh.
        divergence (`torch.Tensor` of shape `(blocks, steps)`): KL(dense ‖ disturbed) in nats.
        damage (`torch.Tensor` of shape `(blocks, steps)`): Log-probability of the label in the dense run minus that in
            the disturbed run, in nats.
        axes (`tuple` of `str`, *optional*, defaults to the published axes): Names of the axes, in the order of
            `action`.
        documents (`tuple` of `int`, *optional*): The document of every block, if known, for standard errors.
    """

    action: tuple[float, ...]
    begin: int
    length: int
    refresh_every: int | None
    divergence: torch.Tensor = field(repr=False)
    damage: torch.Tensor = field(repr=False)
    axes: tuple[str, ...] = tuple(axis.name for axis in PUBLISHED_AXES)
    documents: tuple[int, ...] | None = field(default=None, repr=False)

    @property
    def end(self) -> int:
        """The first step after the disturbed ones."""
        return self.begin + self.length

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.divergence.shape[1]

    @property
    def refreshes(self) -> tuple[int, ...]:
        """The steps before which the cache is refreshed: after every episode with disturbed steps."""
        if self.refresh_every is None:
            return ()
        episodes = {step // self.refresh_every for step in range(self.begin, self.end)}
        return tuple(sorted(step for e in episodes if (step := (e + 1) * self.refresh_every) < self.steps))

    @property
    def aftermath(self) -> tuple[float, float]:
        """Mean KL of the disturbed steps, and of those after them, in nats."""
        means = self.divergence.double().mean(dim=0)
        return float(means[self.begin : self.end].mean()), float(means[self.end :].mean())

    def lasting(self, share: float = 0.1) -> int | None:
        """Number of steps after the disturbance for which the mean KL stays above a share of its value during it.

        Args:
            share (`float`, *optional*, defaults to 0.1): Share of the mean over the disturbed steps.

        Returns:
            `int`, *optional*: The number of steps until it is below for the first time; `None` if it never is.
        """
        means = self.divergence.double().mean(dim=0)
        below = means[self.end :] <= share * means[self.begin : self.end].mean()
        return int(below.int().argmax()) if bool(below.any()) else None

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat dictionary of numbers per step, for a data frame or a JSON file."""
        columns = {}
        for name, values in (("divergence", self.divergence), ("damage", self.damage)):
            found = mean_and_error(values.double().numpy(), self.documents)
            columns[name], columns[f"{name}_error"] = (x.tolist() for x in found)
        common = dict(zip(self.axes, self.action, strict=True)) | {"kv_refresh": self.refresh_every is not None}
        return [
            common
            | {"step": step, "disturbed": self.begin <= step < self.end, "blocks": len(self.divergence)}
            | {name: values[step] for name, values in columns.items()}
            for step in range(self.steps)
        ]


def impulse_responses(
    model: SOLForCausalLM,
    blocks: torch.Tensor,
    context_length: int,
    actions: Sequence[Sequence[float]],
    begin: int = 2,
    length: int = 4,
    kv_refresh: Sequence[bool] = (False, True),
    batch_size: int = 8,
    progress: bool = False,
    documents: Sequence[int] | torch.Tensor | None = None,
) -> list[ImpulseResponse]:
    """Disturb a few steps of every block, and measure the damage there and at all later steps.

    Args:
        model ([`SOLForCausalLM`]): Its base is measured; its policy is not used.
        blocks (`torch.LongTensor` of shape `(blocks, context_length + steps + 1)`): Token ids, at least 2 blocks.
        context_length (`int`): Tokens before the first step, processed densely.
        actions (`Sequence` of `Sequence[float]`): Actions of the disturbed steps, each a level of every axis of the
            action space, in axis units. One response each.
        begin (`int`, *optional*, defaults to 2): The first disturbed step.
        length (`int`, *optional*, defaults to 4): How many steps are disturbed.
        kv_refresh (`Sequence[bool]`, *optional*, defaults to `(False, True)`): Without or with KV refresh at the end
            of the episode that was disturbed. One response each.
        batch_size (`int`, *optional*, defaults to 8): Blocks that run at the same time.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar.
        documents (`Sequence[int]`, *optional*): The document of every block, for standard errors. See [`TextBlocks`].

    Returns:
        `list[ImpulseResponse]`: One per action and entry of `kv_refresh`, the latter varying fastest.

    Raises:
        ValueError: if an action has a level that the action space lacks, the blocks are too few or too short, or a
            step to be disturbed is not controllable.
    """
    _check(model, blocks, context_length, begin, length, batch_size)
    if not actions or not kv_refresh:
        raise ValueError("There is nothing to measure: give at least one action and one entry of `kv_refresh`.")
    steps, space = blocks.shape[1] - context_length - 1, model.action_space
    dense = torch.full((steps, 1), space.dense_id)
    disturbed_steps = slice(begin, begin + length)
    cases = [
        (_changed(dense, disturbed_steps, space.index(*action)), on) for action, on in product(actions, kv_refresh)
    ]
    parts: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in cases]
    starts = range(0, len(blocks), batch_size)
    settings: dict[str, Any] = dict(context_length=context_length, return_logits=True)
    for start in tqdm(starts, desc="Impulse response", disable=not progress):
        tokens: Any = blocks[start : start + batch_size].to(model.device)
        reference = model.score(tokens, controller=ScheduleController(dense), kv_refresh=False, **settings)
        for part, (schedule, refresh) in zip(parts, cases, strict=True):
            disturbed = model.score(tokens, controller=ScheduleController(schedule), kv_refresh=refresh, **settings)
            part.append(_damage(reference, disturbed))
    responses = []
    named = None if documents is None else tuple(map(int, documents))
    for (action, refresh), part in zip(product(actions, kv_refresh), parts, strict=True):
        divergence, damage = (torch.cat(values) for values in zip(*part, strict=True))
        disturbance = tuple(map(float, action)), begin, length, model.config.episode_length if refresh else None
        responses.append(ImpulseResponse(*disturbance, divergence, damage, space.axis_names, named))
    return responses


def _changed(schedule: torch.Tensor, steps: slice, action: int) -> torch.Tensor:
    changed = schedule.clone()
    changed[steps] = action
    return changed


def _damage(dense: SOLScoreOutput, disturbed: SOLScoreOutput) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(dense ‖ disturbed), and the log-probability lost on the label, each `(rows, steps)` in nats."""
    divergence = torch.stack(list(_divergences(dense["logits"], disturbed["logits"])))
    return divergence.cpu(), (dense["logprobs"] - disturbed["logprobs"]).cpu()


def _divergences(dense: torch.Tensor, disturbed: torch.Tensor) -> Iterator[torch.Tensor]:
    """KL(dense ‖ disturbed) `(steps,)` of every row of logits `(rows, steps, vocab)`; a row at a time for memory."""
    for expected, found in zip(dense, disturbed, strict=True):
        logprobs = expected.float().log_softmax(dim=-1)
        yield (logprobs.exp() * (logprobs - found.float().log_softmax(dim=-1))).sum(dim=-1).clamp(min=0)


def _check(
    model: SOLForCausalLM, blocks: torch.Tensor, context_length: int, begin: int, length: int, batch_size: int
) -> None:
    if context_length < 1 or batch_size < 1 or begin < 0 or length < 1:
        raise ValueError(
            f"`context_length` ({context_length}), `batch_size` ({batch_size}) and `length` ({length}) must be at "
            f"least 1, `begin` ({begin}) at least 0."
        )
    if blocks.dim() != 2 or blocks.shape[1] < context_length + begin + length + 2:
        raise ValueError(
            f"Blocks of shape {tuple(blocks.shape)} end before the damage can be seen: with a context of "
            f"{context_length} tokens and steps {begin}..{begin + length - 1} disturbed, a block needs "
            f"{context_length + begin + length + 2} tokens at least. See `pack_blocks`."
        )
    if len(blocks) < 2:
        raise ValueError(f"A standard error needs 2 blocks or more, got {len(blocks)}: give more text.")
    rule, seen = model.config.selection_rule, torch.tensor(context_length + begin + 1)
    rule.refuse_short_text(context_length + begin)
    if not bool(rule.is_controllable(seen)):
        raise ValueError(
            f"Step {begin} after a context of {context_length} tokens is not controllable (it would have to see more "
            f"than {rule.sink_tokens + rule.window_tokens + 1} keys): raise `context_length`."
        )
