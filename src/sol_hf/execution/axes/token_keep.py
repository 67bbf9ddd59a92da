# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `token_keep`: attention reads the keys that the plan's criterion selects.

While a generation runs, the attention implementation in the configs of the base is replaced by our registered version
of it, which reads the plan. Full-attention layers carry it out. Layers with a sliding window stay dense, unless all
layers have one.
"""

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from transformers import PreTrainedConfig, PreTrainedModel

from ...cache.sol_cache import SOLCache
from ...errors import UnsupportedAxisError
from ...selection.criterion import CRITERIA
from ...selection.refresh_gain import RefreshGain
from ...selection.rule import SelectionRule
from ..attention.implementation_name import ImplementationName, own_name
from ..attention.interface import register_attention
from ..attention.stored_keys import sharing_part
from ..attention.support import attention_configs, check_attention
from ..decoder_layers import text_config
from ..executors import AxisExecutor, Change, register_executor


@register_executor("token_keep")
class TokenKeepExecutor(AxisExecutor):
    """Replaces the attention implementation of a base, in every config that its decoder layers hold.

    Args:
        base (`PreTrainedModel`): The base.
    """

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
