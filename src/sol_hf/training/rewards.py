# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""From rewards of single steps to advantages, as pure functions of tensors `(rows, steps)`.

A row is a rollout; the rollouts of a block are a *group* and stand next to each other:

row 0   block 0, rollout 0   r r r r        at every step ("process" level):
row 1   block 0, rollout 1   r r r r          advantage = whiten(group_advantages(returns - penalty))
row 2   block 1, rollout 0   r r r r        one number a rollout ("outcome" level):
row 3   block 1, rollout 1   r r r r          advantage = whiten(group_advantages(outcome_returns(rewards) - penalty))

Before a mean is computed, one of the compared values is subtracted from all of them. Equal rewards then give an
advantage of exactly zero. Otherwise the rounding error of the mean would be amplified by the division by a standard
deviation.
"""

from collections.abc import Callable, Sequence

import torch

from ..episodes.rollouts import Rollouts


RETURN_KINDS = ("sum", "max")
ADVANTAGE_SCALES = ("center", "zscore")
EPSILON = 1e-8
RewardTerm = Callable[[Rollouts], torch.Tensor]


def task_reward(label_logprobs: torch.Tensor, divergence: torch.Tensor | None, kl_weight: float) -> torch.Tensor:
    """Reward of a step: the log-probability of the true token, minus the divergence from the dense model.

    Args:
        label_logprobs (`torch.Tensor` of shape `(rows, steps)`): Log-probability of the label of every step.
        divergence (`torch.Tensor` of shape `(rows, steps)`, *optional*): KL(dense || sparse) of every step; not
            used if `kl_weight` is 0.
        kl_weight (`float`): Share of the divergence in the reward, in 0..1.

    Returns:
        `torch.Tensor` of shape `(rows, steps)`: `(1 - kl_weight) * label_logprobs - kl_weight * divergence`.

    Raises:
        ValueError: if `kl_weight` lies outside 0..1, or is positive and there is no divergence.
    """
    if not 0 <= kl_weight <= 1:
        raise ValueError(f"`kl_weight` must lie in 0..1, got {kl_weight}.")
    if kl_weight == 0:
        return label_logprobs
    if divergence is None:
        raise ValueError(
            f"`kl_weight` is {kl_weight}, but there is no `divergence`: give it, or set `kl_weight` to 0."
        )
    return (1 - kl_weight) * label_logprobs - kl_weight * divergence


def checked_rewards(term: RewardTerm, rollouts: Rollouts) -> torch.Tensor:
    """Rewards `(rows, steps)` of a user's function, on the device of the rollouts.

    Raises:
        ValueError: if it does not give one finite number for each step of each row.
    """
    rewards, wanted = term(rollouts), rollouts.label_logprobs
    name = getattr(term, "__name__", type(term).__name__)
    if not isinstance(rewards, torch.Tensor) or rewards.shape != wanted.shape:
        found = tuple(rewards.shape) if isinstance(rewards, torch.Tensor) else type(rewards).__name__
        raise ValueError(
            f"The reward term {name} gave {found}: it must give a tensor {tuple(wanted.shape)}, one reward for each "
            "row and step. Repeat a reward of whole rollouts over their steps."
        )
    if not torch.isfinite(rewards).all():
        raise ValueError(
            f"The reward term {name} gave a number that is not finite: advantages of all rows would be lost."
        )
    return rewards.detach().to(wanted)


def discounted_returns(rewards: torch.Tensor, gamma: float, kind: str = "sum") -> torch.Tensor:
    """Discounted return of every step, computed from the last step backwards.

    Args:
        rewards (`torch.Tensor` of shape `(rows, steps)`): Reward of every step.
        gamma (`float`): Discount, in 0..1.
        kind (`str`, *optional*, defaults to `"sum"`): `"sum"` for R_t = r_t + gamma R_{t+1}, `"max"` for
            R_t = max(r_t, gamma R_{t+1}).

    Returns:
        `torch.Tensor` of shape `(rows, steps)`: The returns; the last one is the last reward.

    Raises:
        ValueError: if `kind` is unknown, or `gamma` lies outside 0..1.
    """
    if kind not in RETURN_KINDS:
        raise ValueError(f"`kind` must be one of {', '.join(RETURN_KINDS)}, got {kind!r}.")
    if not 0 <= gamma <= 1:
        raise ValueError(f"`gamma` must lie in 0..1, got {gamma}.")
    columns = list(rewards.unbind(dim=1))
    for step in reversed(range(len(columns) - 1)):
        later = gamma * columns[step + 1]
        columns[step] = columns[step] + later if kind == "sum" else torch.maximum(columns[step], later)
    return torch.stack(columns, dim=1)


def outcome_returns(rewards: torch.Tensor) -> torch.Tensor:
    """One return per rollout, the same at every step: the undiscounted sum of its rewards.

    Args:
        rewards (`torch.Tensor` of shape `(rows, steps)`): Reward of every step.

    Returns:
        `torch.Tensor` of shape `(rows, steps)`: The same number at all steps of a row.
    """
    return rewards.sum(dim=1)[:, None].repeat(1, rewards.shape[1])


def budget_penalty(
    ratios: torch.Tensor,
    counted: torch.Tensor,
    targets: torch.Tensor,
    alphas: Sequence[float],
    tolerance: float,
    free: Sequence[bool] | None = None,
) -> torch.Tensor:
    """Penalty for a missed budget: sum over the axes of `alpha * max(|mean - target| - tolerance, 0) ** 2`.

    Args:
        ratios (`torch.Tensor` of shape `(rows, steps, axes)`): Levels of the actions, in ratio units.
        counted (`torch.BoolTensor` of shape `(rows, steps)`): Steps to average over.
        targets (`torch.Tensor` of shape `(rows, axes)`): Targets in ratio units.
        alphas (`Sequence[float]`): Weight of every axis.
        tolerance (`float`): Distance from the target without penalty, in ratio units.
        free (`Sequence[bool]`, *optional*, defaults to all): For every axis, whether there is a choice of levels. An
            axis with a single level has no penalty.

    Returns:
        `torch.Tensor` of shape `(rows,)`: The penalty, 0 for a row without a counted step.

    Raises:
        ValueError: if `alphas` or `free` do not have one entry per axis.
    """
    axes = ratios.shape[-1]
    free = [True] * axes if free is None else free
    for name, values in (("alphas", alphas), ("free", free)):
        if len(values) != axes:
            raise ValueError(f"`{name}` needs {axes} entries, one per axis, got {len(values)}.")
    counted = counted.bool()
    spent = torch.where(counted[..., None], ratios, torch.zeros_like(ratios)).sum(dim=1)
    means = spent / counted.sum(dim=1).clamp(min=1)[:, None]
    excess = ((means - targets).abs() - tolerance).clamp(min=0)
    weights = excess.new_tensor([alpha if is_free else 0.0 for alpha, is_free in zip(alphas, free, strict=True)])
    return (weights * excess.square()).sum(dim=-1) * counted.any(dim=1)


def group_advantages(returns: torch.Tensor, group_size: int, scale: str = "center") -> torch.Tensor:
    """Advantage of a rollout over the others of its group, at every step.

    Args:
        returns (`torch.Tensor` of shape `(rows, steps)`): Returns, the rollouts of a group next to each other.
        group_size (`int`): Rollouts in a group.
        scale (`str`, *optional*, defaults to `"center"`): `"center"` subtracts the mean of the group, `"zscore"` also
            divides by its (biased) standard deviation.

    Returns:
        `torch.Tensor` of shape `(rows, steps)`: The advantages, exactly 0 where a group's returns are equal.

    Raises:
        ValueError: if `scale` is unknown, or the rows do not divide into groups.
    """
    if scale not in ADVANTAGE_SCALES:
        raise ValueError(f"`scale` must be one of {', '.join(ADVANTAGE_SCALES)}, got {scale!r}.")
    if group_size < 1 or len(returns) % group_size:
        raise ValueError(f"{len(returns)} rows do not divide into groups of {group_size}: give whole groups.")
    groups = returns.unflatten(0, (-1, group_size))
    shifted = groups - groups[:, :1]
    advantages = shifted - shifted.mean(dim=1, keepdim=True)
    if scale == "zscore":
        advantages = advantages / (shifted.std(dim=1, correction=0, keepdim=True) + EPSILON)
    return advantages.flatten(0, 1)


def whiten(advantages: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Bring advantages to mean 0 and (biased) standard deviation 1 over the whole batch.

    Args:
        advantages (`torch.Tensor` of shape `(rows, steps)`): Advantages.
        mask (`torch.BoolTensor` of shape `(rows, steps)`, *optional*): Entries to use; the others become 0.

    Returns:
        `torch.Tensor` of shape `(rows, steps)`: The whitened advantages, all 0 if they do not differ.
    """
    kept = torch.ones_like(advantages, dtype=torch.bool) if mask is None else mask.bool()
    number, zeros = kept.sum().clamp(min=1), torch.zeros_like(advantages)
    smallest = torch.where(kept, advantages, torch.full_like(advantages, torch.inf)).amin()
    shifted = torch.where(kept, advantages - smallest, zeros)
    centered = torch.where(kept, shifted - shifted.sum() / number, zeros)
    return centered / ((centered.square().sum() / number).sqrt() + EPSILON)
