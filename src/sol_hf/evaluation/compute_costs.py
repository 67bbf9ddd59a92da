# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Bytes read and floating-point operations of a decode step, estimated from the base's own sizes.

The net keep rate weighs three axes alike. What a step really moves depends on the base: how much of it is MLP, how
long the context is. So it is counted here, for one sequence alone (every weight is read for one token):

    weights   all of them once; of the MLP matrices that take the hidden state only the kept input channels
    KV cache  the keys and values that the step's selection reads, and what the selection itself reads
    refresh   a dense forward over an episode's tokens, once an episode, if any of its steps was sparse
    policy    its weights, where the policy chooses

These are counts of what an implementation that skips all that may be skipped would do, not times. Fake quantization
saves nothing and counts nothing; a *nominal* count has MLP weights read with bits / 16 of their size. Query heads that
share a key-value head may select different keys (`page_selection="head"`), and are taken to: up to as many times
`token_keep` is then read as heads share one. Activations and the entropy of a controller are left out.
"""

from dataclasses import dataclass

import torch
from torch import nn

from ..budget.action_space import ActionSpace
from ..cache.window_layer import WindowLayer
from ..errors import UnsupportedAxisError
from ..execution.mlp.discovery import find_mlps
from ..modeling_sol import SOLForCausalLM
from ..selection.criterion import CRITERIA
from ..selection.rule import SelectionRule


@dataclass(frozen=True)
class Weights:
    """Numbers that a forward of one token reads.

    Args:
        elastic (`int`): In MLP matrices that take the hidden state.
        mlp (`int`): In all of the MLPs.
        head (`int`): In the LM head.
        total (`int`): In all, a single row of every embedding.
        itemsize (`int`): Bytes of a number.
    """

    elastic: int
    mlp: int
    head: int
    total: int
    itemsize: int

    @classmethod
    def of(cls, model: SOLForCausalLM) -> "Weights":
        """Of the base of `model`."""
        base = model.base
        width = base.get_input_embeddings().weight.shape[-1]
        try:
            mlps = find_mlps(base)
        except UnsupportedAxisError:  # then its axes are not under control
            mlps = ()
        return cls(
            elastic=sum(_elastic_numbers(part, width) for mlp in mlps for part in mlp.modules()),
            mlp=sum(read_numbers(mlp) for mlp in mlps),
            head=read_numbers(base.get_output_embeddings()),
            total=read_numbers(base),
            itemsize=base.get_input_embeddings().weight.element_size(),
        )


def _elastic_numbers(part: nn.Module, width: int) -> int:
    """Weights of a linear layer that takes `width` channels, 0 for any other module."""
    weight = getattr(part, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or isinstance(part, nn.Embedding):
        return 0
    inputs = weight.shape[0] if type(part).__name__ == "Conv1D" else weight.shape[1]
    return weight.numel() if inputs == width else 0


def read_numbers(module: nn.Module) -> int:
    """Parameters that a forward of one token reads: all, but of an embedding one row. A tied head counts in full."""
    numbers = 0
    for part in module.modules():
        own = part.parameters(recurse=False)
        numbers += sum(p.shape[-1] if isinstance(part, nn.Embedding) else p.numel() for p in own)
    return numbers


def keys_read(rule: SelectionRule, token_keep: float, keys: int) -> int:
    """Keys that a query head reads of `keys`, its own included."""
    return CRITERIA[rule.criterion].keys_read(rule, token_keep, keys)


@dataclass(frozen=True)
class ComputeCosts:
    """Estimated costs of the steps of an episode.

    Args:
        bytes (`torch.Tensor` of shape `(n_actions,)`): Bytes that a step under each action reads.
        flops (`torch.Tensor` of shape `(n_actions,)`): Its floating-point operations.
        nominal_bytes (`torch.Tensor` of shape `(n_actions,)`): Its bytes if `bits` were real.
        dense_bytes (`float`): Of a dense step.
        dense_flops (`float`): Of a dense step.
        refresh_bytes (`float`): Of a KV refresh, per step of the episode.
        refresh_flops (`float`): Of a KV refresh, per step of the episode.
        policy_bytes (`float`): Of the policy, per step.
        policy_flops (`float`): Of the policy, per step.
    """

    bytes: torch.Tensor
    flops: torch.Tensor
    nominal_bytes: torch.Tensor
    dense_bytes: float
    dense_flops: float
    refresh_bytes: float
    refresh_flops: float
    policy_bytes: float
    policy_flops: float

    @classmethod
    def of(cls, model: SOLForCausalLM, context_length: int) -> "ComputeCosts":
        """Costs in an episode that follows `context_length` tokens.

        Args:
            model ([`SOLForCausalLM`]): Base, policy and selection rule.
            context_length (`int`): Tokens before the episode.
        """
        weights, steps = Weights.of(model), model.config.episode_length
        keys = context_length + (steps + 1) // 2
        space = model.action_space
        read, nominal, flops = _step_costs(model, weights, space, keys)
        (dense_bytes,), _, (dense_flops,) = _step_costs(model, weights, ActionSpace([1.0], [1.0], [16]), keys)
        policy = model.policy
        policy_numbers = read_numbers(policy)
        return cls(
            bytes=torch.tensor(read, dtype=torch.float64),
            flops=torch.tensor(flops, dtype=torch.float64),
            nominal_bytes=torch.tensor(nominal, dtype=torch.float64),
            dense_bytes=dense_bytes,
            dense_flops=dense_flops,
            refresh_bytes=dense_bytes / steps,
            refresh_flops=dense_flops - 2 * weights.head * (steps - 1) / steps,
            policy_bytes=policy_numbers * next(policy.parameters()).element_size(),
            policy_flops=2 * policy_numbers,
        )

    def per_token(self, actions: torch.Tensor, space: ActionSpace, with_policy: bool) -> dict[str, float]:
        """Means over episodes, KV refresh and policy included.

        Args:
            actions (`torch.LongTensor` of shape `(episodes, steps)`): What was done.
            space ([`ActionSpace`]): The actions.
            with_policy (`bool`): Whether the policy chose.

        Returns:
            `dict[str, float]`: `bytes_per_token`, `flops_per_token`, `nominal_bytes_per_token`, the same of a dense
            step, and `refresh_overhead`, the tokens that are processed a second time per token that is decoded.
        """
        dense = (space.values == torch.tensor([1.0, 1.0, 16.0])).all(dim=-1)
        refreshed = float((~dense[actions]).any(dim=1).double().mean())
        extra_bytes = refreshed * self.refresh_bytes + with_policy * self.policy_bytes
        extra_flops = refreshed * self.refresh_flops + with_policy * self.policy_flops
        return {
            "refresh_overhead": refreshed,
            "bytes_per_token": float(self.bytes[actions].mean()) + extra_bytes,
            "flops_per_token": float(self.flops[actions].mean()) + extra_flops,
            "nominal_bytes_per_token": float(self.nominal_bytes[actions].mean()) + extra_bytes,
            "dense_bytes_per_token": self.dense_bytes,
            "dense_flops_per_token": self.dense_flops,
        }


def _step_costs(
    model: SOLForCausalLM, weights: Weights, space: ActionSpace, keys: int
) -> tuple[list[float], list[float], list[float]]:
    """Bytes, nominal bytes and operations of a step that sees `keys` keys, under every action of `space`."""
    attention = {keep: _attention_costs(model, keep, keys) for keep in space.levels["token_keep"]}
    read, nominal, flops = [], [], []
    for token_keep, mlp_keep, bits in space.table:
        skipped = (1 - mlp_keep) * weights.elastic
        numbers, (kv_bytes, kv_flops) = weights.total - skipped, attention[token_keep]
        unread = (weights.mlp - skipped) * (1 - bits / 16)
        read.append(numbers * weights.itemsize + kv_bytes)
        nominal.append((numbers - unread) * weights.itemsize + kv_bytes)
        flops.append(2 * numbers + kv_flops)
    return read, nominal, flops


def _attention_costs(model: SOLForCausalLM, token_keep: float, keys: int) -> tuple[float, float]:
    """Bytes that the attention of all layers reads of the cache for one token, and its operations."""
    config, rule = model.base.config.get_text_config(decoder=True), model.config.selection_rule
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    per_key = 2 * kv_heads * dim * model.base.get_input_embeddings().weight.element_size()
    cache = model.new_cache()
    total_bytes, total_flops = 0.0, 0.0
    for index, layer in enumerate(cache.layers):
        seen = min(keys, layer.sliding_window) if isinstance(layer, WindowLayer) else keys
        keep = token_keep if index in cache.sparse_layers else 1.0
        cost = CRITERIA[rule.criterion].cost(rule, keep, seen, heads // kv_heads)
        total_bytes += cost.moved * per_key
        total_flops += (4 * cost.attended + 2 * cost.scored) * heads * dim
    return total_bytes, total_flops
