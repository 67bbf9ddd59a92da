# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Recognises bases whose decode step can run as one program: a stack of decoder layers between embedding and LM head.

Their layers are recognised by structure. What lies around them is measured in two short forwards of the base: by what
the embeddings are multiplied before the first layer, and the logits after the LM head.
"""

import copy
import functools
import inspect
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ...budget.action_space import ActionSpace
from ...cache.sol_cache import SOLCache
from ...selection.nested_planes import GROUP, OUTPUTS
from ..decoder_layers import decoder_layers, text_config
from ..lm_head import lm_head_of
from ..plan import active_forward
from .norms import Norm, find_norm
from .products import Product
from .rotary import RotaryTables, find_rotary
from .structure import LayerStructure, find_structure


DTYPES = (torch.float32, torch.bfloat16)
ALIGNMENT = 32
"""Channels of a linear layer are a multiple of this."""
PROBED_TOKENS = 6
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}
"""Largest relative difference between a number of the base and what is computed from the structure."""


@dataclass(frozen=True)
class LayerProducts:
    """The linear layers of a decoder layer."""

    attention_inputs: tuple[Product, ...]
    attention_output: Product
    expansions: tuple[Product, ...]
    contraction: Product

    @classmethod
    def of(cls, layer: LayerStructure) -> "LayerProducts":
        """Those of a layer."""
        inputs, expansions = (tuple(map(Product, x)) for x in (layer.attention.inputs, layer.expansions))
        return cls(inputs, Product(layer.attention.output), expansions, Product(layer.contraction))

    @property
    def all(self) -> tuple[Product, ...]:
        """All of them."""
        return (*self.attention_inputs, self.attention_output, *self.expansions, self.contraction)


@dataclass(frozen=True, eq=False)
class StackStructure:
    """A base as a stack of decoder layers.

    Args:
        layers (`tuple` of [`LayerStructure`]): The decoder layers.
        products (`tuple` of [`LayerProducts`]): Their linear layers.
        norm ([`Norm`]): The last norm.
        head ([`Product`]): The LM head.
        rotary ([`RotaryTables`]): The rotary embeddings.
        dtype (`torch.dtype`): Of all weights.
        embedding_factor (`float`): By which embeddings are multiplied before the first layer.
        logits_factor (`float`): By which the product of the LM head is multiplied.
        logits_cap (`float`, *optional*): Logits `x` become `logits_cap * tanh(x / logits_cap)`.
    """

    layers: tuple[LayerStructure, ...]
    products: tuple[LayerProducts, ...]
    norm: Norm
    head: Product
    rotary: RotaryTables
    dtype: torch.dtype
    embedding_factor: float = 1.0
    logits_factor: float = 1.0
    logits_cap: float | None = None

    @property
    def hidden_size(self) -> int:
        """Numbers of the residual stream."""
        return self.head.module.in_features

    @functools.cached_property
    def weights(self) -> tuple[torch.Tensor, ...]:
        """All tensors that a program reads where they are."""
        norms = (*(norm for layer in self.layers for norm in layer.norms), self.norm)
        linears = (*(product for layer in self.products for product in layer.all), self.head)
        modules = (*(norm.module for norm in norms), *(product.module for product in linears))
        return tuple(parameter for module in modules for parameter in module.parameters())

    @functools.cached_property
    def fills_groups(self) -> bool:
        """Whether the channels of all linear layers are whole groups of nested planes."""
        products = (*(product for layer in self.products for product in layer.all), self.head)
        return all(product.module.in_features % GROUP == 0 for product in products)

    @functools.cached_property
    def fills_tiles(self) -> bool:
        """Whether the outputs of all linear layers are whole tiles of nested planes, and none has a bias."""
        products = (*(product for layer in self.products for product in layer.all), self.head)
        return all(p.module.out_features % OUTPUTS == 0 and p.module.bias is None for p in products)


def find_stack(base: PreTrainedModel) -> StackStructure | None:
    """The stack of a base by its structure; `None` if there is none, or not in float32 or bfloat16 on the CPU."""
    modules, head = decoder_layers(base), lm_head_of(base)
    decoder = base.get_decoder() if hasattr(base, "get_decoder") else None
    if modules is None or type(head) is not nn.Linear or not isinstance(decoder, nn.Module):
        return None
    norm = getattr(decoder, "norm", None)
    known = None if norm is None else find_norm(norm)
    rotary = find_rotary(base, getattr(decoder, "rotary_emb", None), head.weight.dtype)
    if known is None or rotary is None:
        return None
    layers = [find_structure(module) for module in modules]
    if any(layer is None for layer in layers):
        return None
    found = tuple(layer for layer in layers if layer is not None)
    products = tuple(map(LayerProducts.of, found))
    stack = StackStructure(found, products, known, Product(head), rotary, head.weight.dtype)
    return stack if _is_supported(stack, base, decoder) else None


def _is_supported(stack: StackStructure, base: PreTrainedModel, decoder: nn.Module) -> bool:
    """Whether compiled code can read all weights, and all layers have heads of one shape and known masks."""
    first = stack.layers[0].attention
    heads = {(x.attention.heads, x.attention.kv_heads, x.attention.head_dim) for x in stack.layers}
    aligned = all(p.module.in_features % ALIGNMENT == 0 for layer in stack.products for p in layer.all)
    plain = all(type(x) is nn.Parameter and x.device.type == "cpu" and x.is_contiguous() for x in stack.weights)
    cache = DynamicCache(config=base.config)
    return (
        stack.dtype in DTYPES
        and all(weight.dtype == stack.dtype for weight in stack.weights)
        and plain
        and aligned
        and len(heads) == 1
        and all(stack.rotary.rotated(index) <= first.head_dim for index in range(len(stack.layers)))
        and [layer.attention.layer_idx for layer in stack.layers] == list(range(len(cache.layers)))
        and _masks_are_known(base, decoder, [type(layer) for layer in cache.layers])
        and not getattr(text_config(base), "is_encoder_decoder", False)
    )


def _masks_are_known(base: PreTrainedModel, decoder: nn.Module, kinds: list[type]) -> bool:
    """Whether every layer sees all earlier tokens, or the last ones that its cache layer keeps.

    Layers that attend within chunks of the text keep keys like those with a sliding window.
    """
    types = set(getattr(text_config(base), "layer_types", None) or ())
    makes_windows = "create_sliding_window_causal_mask" in inspect.unwrap(type(decoder).forward).__code__.co_names
    return (
        set(kinds) <= {DynamicLayer, DynamicSlidingWindowLayer}
        and types <= {"full_attention", "sliding_attention"}
        and (makes_windows or DynamicSlidingWindowLayer not in kinds)
    )


@dataclass
class Probe:
    """What a base has computed in a step: per token of the last forward.

    Args:
        embedding (`torch.Tensor` of shape `(1, hidden_size)`): Of the last token.
        first (`torch.Tensor` of shape `(1, hidden_size)`): Input of the first layer.
        hidden (`torch.Tensor` of shape `(1, hidden_size)`): Input of the LM head.
        logits (`torch.Tensor` of shape `(1, vocab_size)`): Logits.
        cache ([`SOLCache`]): Keys and values of the tokens before the last one.
    """

    embedding: torch.Tensor
    first: torch.Tensor
    hidden: torch.Tensor
    logits: torch.Tensor
    cache: SOLCache


def probe(base: PreTrainedModel, stack: StackStructure) -> Probe:
    """Run a base on a few tokens, the last of them alone."""
    layer, head = stack.layers[0].module, stack.head.module
    seen: dict[str, torch.Tensor] = {}

    def see(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            seen[name] = args[0] if args else kwargs["hidden_states"]

        return hook

    embed = base.get_input_embeddings()
    vocabulary = getattr(embed, "num_embeddings", PROBED_TOKENS)
    ids = (torch.arange(PROBED_TOKENS) * 7 + 3)[None] % max(1, vocabulary)
    cache = SOLCache(base.config, ActionSpace((1.0,), (1.0,), (16,)))
    with ExitStack() as hooks, torch.no_grad(), active_forward():
        for name, module in (("first", layer), ("hidden", head)):
            hooks.callback(module.register_forward_pre_hook(see(name), with_kwargs=True).remove)
        base(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        before = copy.deepcopy(cache)
        logits = base(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True).logits
        embedding = embed(ids[:, -1:])
    return Probe(embedding[:, 0], seen["first"][:, -1], seen["hidden"][:, -1], logits[:, -1], before)


def with_factors(base: PreTrainedModel, stack: StackStructure, seen: Probe) -> StackStructure | None:
    """The stack with the factors of embeddings and logits, if each is one number, and the soft cap of the logits."""
    with torch.no_grad():
        product = nn.functional.linear(seen.hidden, stack.head.module.weight, stack.head.module.bias)
    cap = getattr(text_config(base), "final_logit_softcapping", None)
    embedding = _factor(seen.embedding, seen.first, stack.dtype)
    logits = _factor(capped(product, cap), seen.logits, stack.dtype)
    if embedding is None or logits is None or (cap is not None and abs(logits - 1) > TOLERANCE[stack.dtype]):
        return None
    factor = logits if cap is None else 1.0
    return replace(stack, embedding_factor=embedding, logits_factor=factor, logits_cap=cap)


def rotations_of(base: PreTrainedModel, stack: StackStructure) -> list[StackStructure]:
    """The stack as its attributes have it, and, if some layers have windows, with rotary embeddings in those alone.

    Which layers of Cohere 2 and EXAONE 4 turn queries and keys is in their code, not in an attribute.
    """
    has_window = [type(layer) is DynamicSlidingWindowLayer for layer in DynamicCache(config=base.config).layers]
    if all(has_window) or not any(has_window):
        return [stack]
    layers = (
        layer if windowed else replace(layer, attention=replace(layer.attention, rotates=False))
        for layer, windowed in zip(stack.layers, has_window, strict=True)
    )
    return [stack, replace(stack, layers=tuple(layers))]


def capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Logits under a soft cap, if there is one."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _factor(before: torch.Tensor, after: torch.Tensor, dtype: torch.dtype) -> float | None:
    """The number by which all of `before` is multiplied; `None` if there is none."""
    x, y = before.double().flatten(), after.double().flatten()
    if x.shape != y.shape or not float(x.square().sum()) > 0:
        return None
    factor = float((x * y).sum() / x.square().sum())
    factor = 1.0 if torch.equal(x, y) else factor
    difference = (x * factor - y).norm() / y.norm()
    return factor if bool(difference <= TOLERANCE[dtype]) else None
