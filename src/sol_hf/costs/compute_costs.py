# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Bytes read and floating-point operations of a decode step, estimated from the base's own sizes.

The net keep rate gives all axes the same weight. The number of bytes that a step reads depends on the base: on the
share of its MLPs and on the length of the context. It is counted here for a single sequence (all weights are read for
one token):

    weights   those of the text decoder and the LM head once, minus the savings of the axes
    KV cache  the keys and values that the step reads, and the data that the selection needs: bounds of pages, or the
              codes of all keys with their scales
    refresh   a forward over an episode's tokens without the LM head, once per episode, if any of its steps lost
              something by which it is restored; it reads planes where steps did
    policy    the weights that its step reads, if the policy chooses the actions

The savings of an axis are in its entry of [`AXIS_COSTS`], see the folder `axes`. These are counts for an
implementation that skips everything that can be skipped; they are not times. Fake quantization saves nothing; with
`bits_backend="nested"` the planes and scales that are read count. In *nominal* counts MLP weights are read with
bits / 16 of their size. Query heads that share a key-value head may select different keys (`selection="head"`). The
counts assume that they do: if `n` heads share one, up to `n` times `token_keep` of the keys is read. Of a mixture of
experts those that a token runs through are counted. Weights that another library has quantized, and offloaded ones,
are read as a whole, as they are stored. Activations and the entropy that a controller computes are not counted.
"""

from dataclasses import dataclass, replace

import torch

from ..budget.axes import BITS, TOKEN_KEEP
from ..decoding.refresh_rule import LEAST_GAIN, ROUNDING, expected_gain
from ..execution.spending import space_under
from ..selection.criterion import CRITERIA
from ..selection.nested_planes import CODE_BITS
from ..selection.rule import SelectionRule
from .axis_costs import AXIS_COSTS, StepCounts, Weights, dense_counts, own_numbers, read_bytes
from .cache_reads import attention_costs, cached_layers
from .counted_model import CountedModel
from .refresh_bytes import refresh_bytes


def keys_read(rule: SelectionRule, token_keep: float, keys: int) -> int:
    """Number of keys that a query head reads of `keys` keys, its own included."""
    return CRITERIA[rule.criterion].keys_read(rule, token_keep, keys)


@dataclass(frozen=True)
class ComputeCosts:
    """Estimated costs of the steps of an episode.

    Args:
        bytes (`torch.Tensor` of shape `(n_actions,)`): Bytes that a step under each action reads.
        flops (`torch.Tensor` of shape `(n_actions,)`): Its floating-point operations.
        nominal_bytes (`torch.Tensor` of shape `(n_actions,)`): Its bytes if MLP weights were stored with `bits` bits.
        dense_bytes (`float`): Bytes of a dense step.
        dense_flops (`float`): Operations of a dense step.
        refresh_bytes (`float`): Bytes of a KV refresh, per step of the episode.
        refresh_bytes_in_planes (`float`): The same for an episode with steps that read planes of the weights.
        refresh_flops (`float`): Operations of a KV refresh, per step of the episode.
        refreshed (`torch.BoolTensor` of shape `(n_actions,)`): Whether an episode with the action is refreshed.
        reads_planes (`torch.BoolTensor` of shape `(n_actions,)`): Whether its step reads planes of the weights.
        policy_bytes (`float`): Bytes of the policy, per step.
        policy_flops (`float`): Operations of the policy, per step.
        gains (`torch.Tensor` of shape `(n_actions,)`, *optional*): What a refresh is expected to gain after steps
            under each action, where `kv_refresh="auto"` decides by it.
    """

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
        """Costs in an episode that follows `context_length` tokens.

        Args:
            model ([`CountedModel`]): Base, policy and selection rule.
            context_length (`int`): Tokens before the episode.
            bits_backend (`str`, *optional*, defaults to `"fake"`): How `bits` is computed, see [`StepPlan`].
            kv_refresh (`bool` or `"auto"`, *optional*, defaults to `True`): Which episodes are refreshed, as in
                `generate`.
        """
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
        """Means over episodes, KV refresh and policy included.

        Args:
            actions (`torch.LongTensor` of shape `(episodes, steps)`): Action ids.
            with_policy (`bool`): Whether the policy chose the actions.

        Returns:
            `dict[str, float]`: `bytes_per_token`, `flops_per_token`, `nominal_bytes_per_token`, the same for a dense
            step, and `refresh_overhead`, the tokens that are processed a second time per decoded token.
        """
        is_refreshed, in_planes = self.refreshed[actions].any(dim=1), self.reads_planes[actions].any(dim=1)
        if self.gains is not None:
            is_refreshed = is_refreshed & (self.gains[actions].mean(dim=1) >= LEAST_GAIN - ROUNDING)
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
    """The actions `(n_actions,)` for which an episode is refreshed, and those of which a step reads planes.

    A step that reads all of its keys leaves none out. A refresh from planes restores no more than all of their bits.
    """
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
    """Counts of a step that sees `keys` keys, for every action of the model's action space.

    Args:
        model ([`CountedModel`]): Base, selection rule and action space.
        dense ([`StepCounts`]): Counts of a dense step.
        keys (`int`): Keys that the step sees.
        bits_backend (`str`, *optional*, defaults to `"fake"`): How `bits` is computed, see [`StepPlan`].
    """
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
