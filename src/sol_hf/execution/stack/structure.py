# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The structure of a decoder layer, found by the names that its code uses.

A layer is recognised if its forward, and that of its attention, use no other names than those that are known here, if
all of its weights have a place in the structure, and if its parts compute what their names say. What a forward does
with those names is checked by a comparison with the whole base, see `recognition.py`.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import nn

from ..mlp.parts import MLPParts, find_parts, is_plain_linear
from .norms import Norm, find_norm


LAYER_NAMES = frozenset(
    """self hidden_states attention_mask position_ids past_key_values use_cache position_embeddings kwargs residual _
    self_attn mlp input_layernorm post_attention_layernorm pre_feedforward_layernorm post_feedforward_layernorm
    residual_multiplier resid_attn_dropout resid_mlp_dropout self_attn_weights hidden_states_attention
    hidden_states_mlp""".split()
)
"""Names in the forward of a decoder layer that is recognised."""
ATTENTION_NAMES = frozenset(
    """self hidden_states position_embeddings attention_mask past_key_values kwargs input_shape hidden_shape shape
    head_dim q_proj k_proj v_proj qkv_proj o_proj q_norm k_norm view transpose reshape contiguous query_states
    key_states value_states cos sin apply_rotary_pos_emb update layer_idx attention_interface ALL_ATTENTION_FUNCTIONS
    get_interface config _attn_implementation eager_attention_forward training attention_dropout scaling
    sliding_window is_sliding use_rope attn_output attn_weights getattr qkv query_pos num_attention_heads
    attn_logit_softcapping num_key_value_heads num_key_value_groups residual_dropout nn functional dropout
    use_qk_norm""".split()
)
"""Names in the forward of an attention that is recognised."""


@dataclass(frozen=True)
class AttentionStructure:
    """The attention of a layer.

    Args:
        layer_idx (`int`): Layer of the cache.
        inputs (`tuple` of `nn.Linear`): Projections to queries, keys and values; one, if their weights are stacked.
        output (`nn.Linear`): The last projection.
        heads (`int`): Query heads.
        kv_heads (`int`): Key-value heads.
        head_dim (`int`): Numbers of a head.
        scaling (`float`): Scale of the scores.
        query_norm (`Norm`, *optional*): Norm of the queries, of a head or of all of them.
        key_norm (`Norm`, *optional*): Norm of the keys.
        rotates (`bool`): Whether it has rotary embeddings.
        turns_neighbours (`bool`): Whether they turn two neighbouring numbers together, as those of Cohere, and not the
            numbers at the same place of both halves, as those of Llama.
        soft_cap (`float`, *optional*): Scores `x` become `soft_cap * tanh(x / soft_cap)`.
    """

    layer_idx: int
    inputs: tuple[nn.Linear, ...]
    output: nn.Linear
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    query_norm: Norm | None
    key_norm: Norm | None
    rotates: bool
    turns_neighbours: bool
    soft_cap: float | None

    @property
    def norm_is_of_heads(self) -> bool:
        """Whether queries and keys are normed head by head."""
        return self.query_norm is not None and len(self.query_norm.weight) == self.head_dim


@dataclass(frozen=True)
class LayerStructure:
    """A decoder layer: two branches, attention and MLP, that are added to the residual stream.

    Args:
        module (`nn.Module`): The layer.
        attention ([`AttentionStructure`]): The first branch.
        mlp (`nn.Module`): The second branch.
        parts ([`MLPParts`]): Its weights.
        before (`tuple` of [`Norm`], *optional*): Norms of what goes into the branches; `None` without one.
        after (`tuple` of [`Norm`], *optional*): Norms of what comes out of them.
        factor (`float`): By which the branches are multiplied.
        is_parallel (`bool`): Whether both branches have the same input, as those of Cohere.
    """

    module: nn.Module
    attention: AttentionStructure
    mlp: nn.Module
    parts: MLPParts
    before: tuple[Norm | None, Norm | None]
    after: tuple[Norm | None, Norm | None]
    factor: float
    is_parallel: bool

    @property
    def expansions(self) -> tuple[nn.Linear, ...]:
        """The projections before the activation; one, if the weights of gate and up are stacked or there is no up."""
        return tuple(self.parts.sources.values())[:-1]

    @property
    def contraction(self) -> nn.Linear:
        """The last projection of the MLP."""
        return tuple(self.parts.sources.values())[-1]

    @property
    def norms(self) -> tuple[Norm, ...]:
        """All norms."""
        own = (*self.before, *self.after, self.attention.query_norm, self.attention.key_norm)
        return tuple(norm for norm in own if norm is not None)

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """All linear layers."""
        return (*self.attention.inputs, self.attention.output, *self.expansions, self.contraction)


def find_structure(layer: nn.Module) -> LayerStructure | None:
    """The structure of a decoder layer; `None` if it is not recognised."""
    if not _uses_only(type(layer).forward, LAYER_NAMES):
        return None
    module, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    if not isinstance(module, nn.Module) or not isinstance(mlp, nn.Module):
        return None
    attention, parts, norms = _find_attention(module), find_parts(mlp), _layer_norms(layer)
    if attention is None or parts is None or norms is None:
        return None
    factor = float(getattr(layer, "residual_multiplier", 1.0))
    is_parallel = "hidden_states_mlp" in _names_in(type(layer).forward)
    found = LayerStructure(layer, attention, mlp, parts, norms[:2], norms[2:], factor, is_parallel)
    known = {id(x) for part in (*found.linears, *(n.module for n in found.norms)) for x in part.parameters()}
    return found if {id(x) for x in (*layer.parameters(), *layer.buffers())} <= known else None


def _layer_norms(layer: nn.Module) -> tuple[Norm | None, Norm | None, Norm | None, Norm | None] | None:
    """Norms before the attention and the MLP, and after them; `None` if one is not of a known kind."""
    inner = getattr(layer, "pre_feedforward_layernorm", None)
    late = getattr(layer, "post_feedforward_layernorm", None)
    middle, first = getattr(layer, "post_attention_layernorm", None), getattr(layer, "input_layernorm", None)
    modules = (first, middle, None, None) if late is None else (first, inner, middle, late)
    found = [None if module is None else find_norm(module) for module in modules]
    if any(module is not None and norm is None for module, norm in zip(modules, found, strict=True)):
        return None
    return found[0], found[1], found[2], found[3]


def _find_attention(module: nn.Module) -> AttentionStructure | None:
    if not _uses_only(type(module).forward, ATTENTION_NAMES):
        return None
    names = ("qkv_proj",) if hasattr(module, "qkv_proj") else ("q_proj", "k_proj", "v_proj")
    inputs, output = [getattr(module, name, None) for name in names], getattr(module, "o_proj", None)
    head_dim, scaling = getattr(module, "head_dim", None), getattr(module, "scaling", None)
    layer_idx, known = getattr(module, "layer_idx", None), tuple(x for x in inputs if is_linear(x))
    if len(known) < len(names) or not is_linear(output) or not isinstance(layer_idx, int):
        return None
    if not isinstance(head_dim, int) or not isinstance(scaling, float):
        return None
    heads, width = output.in_features // head_dim, sum(x.out_features for x in known)
    kv_heads = (width // head_dim - heads) // 2
    if kv_heads < 1 or (heads + 2 * kv_heads) * head_dim != width or heads % kv_heads:
        return None
    modules = getattr(module, "q_norm", None), getattr(module, "k_norm", None)
    query_norm, key_norm = (None if norm is None else find_norm(norm) for norm in modules)
    if (query_norm is None, key_norm is None) != (modules[0] is None, modules[1] is None):
        return None
    if not _norms_fit(query_norm, key_norm, heads, kv_heads, head_dim):
        return None
    neighbours = _turns_neighbours(type(module).forward)
    if neighbours is None:
        return None
    rotates, soft_cap = bool(getattr(module, "use_rope", True)), _soft_cap(module)
    norms, shapes = (query_norm, key_norm), (heads, kv_heads, head_dim)
    return AttentionStructure(layer_idx, known, output, *shapes, scaling, *norms, rotates, neighbours, soft_cap)


def _soft_cap(module: nn.Module) -> float | None:
    """The soft cap that an attention passes on; some have the attribute and do not use it."""
    name = "attn_logit_softcapping"
    cap = getattr(module, name, None) if name in _names_in(type(module).forward) else None
    return None if cap is None else float(cap)


def is_linear(module: object) -> TypeGuard[nn.Linear]:
    """Whether a module is a linear layer whose weights can be read where they are."""
    return isinstance(module, nn.Linear) and is_plain_linear(module)


def _norms_fit(query: Norm | None, key: Norm | None, heads: int, kv_heads: int, head_dim: int) -> bool:
    """Whether both queries and keys are normed in the same way, or none of them."""
    if query is None or key is None:
        return query is key
    of_heads = len(query.weight) == len(key.weight) == head_dim
    of_all = len(query.weight) == heads * head_dim and len(key.weight) == kv_heads * head_dim
    alike = query.offset == key.offset and query.epsilon == key.epsilon
    return alike and not any(x.is_centered or x.bias is not None for x in (query, key)) and (of_heads or of_all)


def _uses_only(forward: Callable, known: frozenset[str]) -> bool:
    return bool(names := _names_in(forward)) and names <= known


def _names_in(forward: Callable) -> set[str]:
    """The names that a function uses; empty for one without Python code."""
    code = getattr(inspect.unwrap(forward), "__code__", None)
    return set() if code is None else set(code.co_names) | set(code.co_varnames)


def _turns_neighbours(forward: Callable) -> bool | None:
    """Whether the rotary embedding turns neighbouring numbers of a head, or, as that of Llama, its two halves.

    `None` if it does something else.
    """
    rotate = inspect.unwrap(forward).__globals__.get("apply_rotary_pos_emb")
    if rotate is None:
        return None
    generator = torch.Generator().manual_seed(0)
    x, angles = torch.randn(1, 2, 3, 16, generator=generator), torch.rand(1, 3, 8, generator=generator)
    for angle in (angles[..., :4], angles):  # for the first half of a head, or for all of it
        for neighbours in (False, True):
            table = angle.repeat_interleave(2, dim=-1) if neighbours else torch.cat([angle, angle], dim=-1)
            try:
                found = rotate(x, x, table.cos(), table.sin())[0]
            except RuntimeError:  # it cannot leave the other numbers of a head as they are
                break
            if torch.allclose(found, _turned(x, table[:, None], neighbours), atol=1e-5):
                return neighbours
    return None


def _turned(x: torch.Tensor, table: torch.Tensor, neighbours: bool) -> torch.Tensor:
    """`x` `(..., head_dim)`, of which the first numbers are turned by angles `(..., turned)`."""
    part, rest = x[..., : table.shape[-1]], x[..., table.shape[-1] :]
    if neighbours:
        across = torch.stack([-part[..., 1::2], part[..., ::2]], dim=-1).flatten(-2)
    else:
        first, second = part.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    return torch.cat([part * table.cos() + across * table.sin(), rest], dim=-1)
