# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `token_keep`: attention reads the keys that the plan's criterion selects.

While a generation runs, the attention implementation in the base's config is replaced by our registered version of it,
which reads the plan. Full-attention layers carry it out. Layers with a sliding window stay dense, unless all layers
have one.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

from transformers import PreTrainedModel

from ...cache.sol_cache import SOLCache
from ...errors import UnsupportedAxisError
from ..attention.interface import register_attention
from ..attention.support import check_attention
from ..executors import AxisExecutor, Change, register_executor


@register_executor("token_keep")
class TokenKeepExecutor(AxisExecutor):
    """Replaces the attention implementation of a base.

    Args:
        base (`PreTrainedModel`): The base.
    """

    auto_refresh_below = 0.45  # measured, see docs/performance.md

    def __init__(self, base: PreTrainedModel):
        check_attention(base)
        self._config = base.config.get_text_config(decoder=True)

    def changes(self) -> Iterable[Change]:
        return [Change("attention", self._config, self._exchange_attention)]

    def parts(self, cache: SOLCache) -> Mapping[Hashable, str]:
        return {layer: f"the attention of layer {layer}" for layer in sorted(cache.sparse_layers)}

    def layers(self, cache: SOLCache) -> Sequence[int]:
        return sorted(cache.sparse_layers)

    def check_cache(self, cache: SOLCache, name: str) -> None:
        if not cache.sparse_layers:
            raise UnsupportedAxisError(
                f"The axis `token_keep` cannot be controlled on {name}: none of its cache layers holds all keys."
            )

    def _exchange_attention(self) -> Callable[[], None]:
        config, own = self._config, self._config._attn_implementation
        config._attn_implementation = register_attention(own)
        return lambda: setattr(config, "_attn_implementation", own)
