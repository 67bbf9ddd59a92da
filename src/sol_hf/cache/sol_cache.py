# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""All state of a generation under a budget, on top of the cache layers that the base asks for.

The only stateful object of transformers' generation loop is the cache. [`SOLCache`] therefore holds, beside keys and
values, all state of decode steps: the running episode, the policy's own cache and the budget ledger. When the loop
changes the cache (reorders beams, repeats rows, crops), all of this state is changed with it.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from ..budget.action_space import ActionSpace
from ..budget.ledger import BudgetLedger
from .episode import Episode, RowFunction, StepRecord, owned
from .owner import WEIGHTS, CacheOwner
from .padding import padding_of
from .paged_layer import PagedLayer
from .rollback import undone_if_interrupted
from .shared_prefix import SharedPrefixLayer
from .stored_layer import StoredLayer
from .token_arguments import TokenArguments
from .window_layer import WindowLayer


class SOLCache(DynamicCache):
    """Keys, values and all decode state of a generation under a budget.

    Full-attention layers become [`PagedLayer`], sliding-window layers [`WindowLayer`]. Layers of other kinds are those
    that transformers makes for the base's config.

    Args:
        config (`PreTrainedConfig`): Config of the base model.
        action_space ([`ActionSpace`]): Meaning of the action ids.
        page_size (`int`, *optional*, defaults to 8): Keys in a page.
        kv_dtype (`torch.dtype`, *optional*): In which these layers keep keys and values; that of the base by default.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        action_space: ActionSpace,
        page_size: int = 8,
        kv_dtype: torch.dtype | None = None,
    ):
        super().__init__(config=config)
        self.kv_dtype = kv_dtype
        for index, layer in enumerate(self.layers):
            if type(layer) is DynamicLayer:
                self.layers[index] = PagedLayer(page_size, kv_dtype)
            elif type(layer) is DynamicSlidingWindowLayer:
                self.layers[index] = WindowLayer(layer.sliding_window, kv_dtype)
        self.action_space = action_space
        self.episode = Episode()
        self.ledger = BudgetLedger(0, action_space)
        self.targets: torch.Tensor | None = None
        self.padding: torch.Tensor | None = None
        self.padding_range = (0, 0)
        self.padding_is_known = True
        self.position_offset: torch.Tensor | None = None
        self.trace: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.processed = 0
        """Tokens that were processed by the model of this cache. A base that is called alone adds others."""
        self.owner: CacheOwner | None = None
        """The model of this cache; set by `model.new_cache()`, or by the first call."""
        self.controller = ""
        """The class of the controller of the last call, whose state is that of the running episode."""
        self.broken_layers: list[str] = []
        """Kinds of layers that an interrupted forward has left in an unknown state."""
        self.is_fanned_out = False
        """Whether this cache came from [`SOLCache.fan_out`], for rollouts."""

    def __getstate__(self) -> dict[str, Any]:
        """The state, with the trace as two tensors."""
        trace = tuple(torch.stack(values) for values in zip(*self.trace, strict=True)) if self.trace else ()
        return {**vars(self), "trace": trace}

    def __setstate__(self, state: dict[str, Any]) -> None:
        columns = [value.unbind() for value in state["trace"]]
        self.__dict__.update({**state, "trace": list(zip(*columns, strict=True))})

    @property
    def rows(self) -> int:
        """Number of rows, 0 before the first forward."""
        return len(self.ledger.total_counts)

    @property
    def sparse_layers(self) -> frozenset[int]:
        """Layers to which `token_keep` applies: full attention, or all if every layer has a sliding window."""
        full = [i for i, layer in enumerate(self.layers) if isinstance(layer, PagedLayer)]
        sliding = [i for i, layer in enumerate(self.layers) if isinstance(layer, WindowLayer)]
        return frozenset(full or sliding)

    def start_call(self, controller: str = "") -> None:
        """Begin the trace and the sums of a new call, which has its own targets. A running episode continues.

        `controller` is the class of the call's controller. What another one remembers of the episode is dropped.
        """
        self.trace, self.targets = [], None
        self.ledger.start_call()
        if controller != self.controller:
            self.episode.controller_state, self.controller = {}, controller

    def belong_to(self, owner: CacheOwner, is_same_base: bool = False) -> None:
        """Check that this is a cache of a model; one without a model becomes its own.

        Args:
            owner ([`CacheOwner`]): The model.
            is_same_base (`bool`, *optional*, defaults to `False`): Whether the last call was over the same base. Its
                weights may have been changed in place.

        Raises:
            ValueError: if this is the cache of another model.
        """
        self.owner = self.owner or owner
        differences = [name for name in self.owner.differences(owner) if not (is_same_base and name == WEIGHTS)]
        if differences:
            raise ValueError(
                f"This cache was made by another model: {', '.join(differences)} differ. Pass `model.new_cache()`, or "
                "the `past_key_values` of an earlier output of this model."
            )
        self.owner = owner

    def check_intact(self) -> None:
        """Check that the cache is as the last call of its model left it.

        Tokens that the base has added alone are taken as dense text, unless the running episode has to be refreshed.

        Raises:
            ValueError: if it is not.
        """
        if self.broken_layers:
            raise ValueError(
                f"A forward over this cache was interrupted, and {', '.join(self.broken_layers)} cannot be rolled "
                "back: begin again with `model.new_cache()`."
            )
        if not any(isinstance(layer, CacheLayerMixin) for layer in self.layers):
            return  # without attention there is no length, and nothing to control
        length = self.get_seq_length()
        added = length - self.processed
        if added and (self.episode.polluted or added < 0):
            raise ValueError(
                f"The cache holds {length} tokens, but its model has processed {self.processed}: something else, such "
                "as `model.base.generate`, has changed it while an episode was running, which can then not be "
                + (f"refreshed: drop its tokens with `cache.crop(-{added})`, or " if added > 0 else "continued: ")
                + "begin again with `model.new_cache()`."
            )
        if added:
            self.end_episode(None)
            self.processed = length
            self.padding_is_known = False

    def set_up_rows(self, rows: int, device: torch.device) -> None:
        """Create the state per row at the first forward.

        Raises:
            ValueError: if the cache holds another number of rows.
        """
        filled = [layer for layer in self.layers if isinstance(layer, DynamicLayer) and layer.is_initialized]
        held = {layer.rows if isinstance(layer, StoredLayer) else len(layer.keys) for layer in filled}
        if held - {rows} or self.rows not in (0, rows):
            raise ValueError(f"The cache holds {max(held or {self.rows})} rows, but the input has {rows}.")
        if self.rows == 0:
            self.ledger = BudgetLedger(rows, self.action_space, device)

    def observe_inputs(
        self,
        tokens: torch.Tensor,
        attention_mask: torch.Tensor | None,
        decode_from: int | None = None,
        mask_was_passed: bool = True,
    ) -> None:
        """Take padding from the arguments of a forward.

        Args:
            tokens (`torch.Tensor` of shape `(rows, length, ...)`): Ids or embeddings.
            attention_mask (`torch.Tensor` of shape `(rows, cached + length)`, *optional*): 0 marks left padding.
            decode_from (`int`, *optional*): Length of the cache at which the decode steps of the call begin.
            mask_was_passed (`bool`, *optional*, defaults to `True`): Whether the mask is the caller's, not made by
                transformers from pad tokens.

        Raises:
            ValueError: for a mask of another length, or padding anywhere but on the left of the first turn.
        """
        begin, length = self.get_seq_length(), tokens.shape[1]
        in_prefill = begin == 0 or length > 1 or (decode_from is not None and begin <= decode_from)
        if attention_mask is not None and attention_mask.dim() != 2:
            raise ValueError(
                f"`attention_mask` must have shape (rows, cached + new tokens), got {tuple(attention_mask.shape)}: "
                "masks with more dimensions cannot be used with a SOLCache."
            )
        if attention_mask is None and self.padding is not None and begin:
            raise ValueError(
                f"The cache holds rows with {self.padding.tolist()} padding tokens on the left, but there is no "
                "`attention_mask`, or it is all ones: pass the mask of the earlier turns, with ones for new tokens."
            )
        if attention_mask is not None and in_prefill:
            padding = padding_of(attention_mask, begin, length, decode_from, mask_was_passed)
            self._check_padding(padding.clamp(max=begin), begin)
            self.set_padding(padding)

    def _check_padding(self, padding: torch.Tensor, begin: int) -> None:
        """Raise a ValueError if padding `(rows,)` is not that of the `begin` tokens in the cache."""
        known = torch.zeros_like(padding) if self.padding is None else self.padding.clamp(max=begin)
        if begin and self.padding_is_known and not torch.equal(padding, known):
            raise ValueError(
                f"`attention_mask` marks {padding.tolist()} tokens on the left of the cached text as padding, but it "
                f"was processed with {known.tolist()}: pass the mask of the earlier turns, with ones for new tokens."
            )

    def set_padding(self, padding: torch.Tensor) -> None:
        """Set the number of padding slots on the left of every row, `(rows,)`."""
        least, most = int(padding.min()), int(padding.max())
        self.padding, self.padding_range = (padding, (least, most)) if most else (None, (0, 0))
        self.padding_is_known = True

    def record(
        self,
        token: torch.Tensor,
        action: torch.Tensor,
        counted: torch.Tensor,
        hidden: torch.Tensor,
        digest: torch.Tensor | None = None,
        along: TokenArguments | None = None,
        held: torch.Tensor | None = None,
    ) -> None:
        """Store copies of an executed step, of the hidden state after it, and of what the controller keeps of its
        logits. `along` are further arguments of its forward, such as positions; `held`: see [`StepRecord`]."""
        episode, before = self.episode, (self.episode.hidden_state, self.episode.logits_digest)
        along = {name: argument.owned() for name, argument in (along or {}).items()}
        spent = self.action_space.ratios_on(action.device)[action]
        episode.steps.append(StepRecord(owned(token), action, counted, *before, along, spent, held))
        episode.hidden_state, episode.logits_digest = owned(hidden), None if digest is None else owned(digest)
        self.trace.append((action, counted))
        self.ledger.record(spent, counted, held)

    def record_dense(self) -> None:
        """Store that the last token was computed by a dense forward and not by a step; it counts in no average."""
        rows, device = self.rows, self.ledger.total_counts.device
        action = torch.full((rows,), self.action_space.dense_id, dtype=torch.long, device=device)
        self.trace.append((action, torch.zeros(rows, dtype=torch.bool, device=device)))

    def forget_tokens(self) -> None:
        """Drop all keys and values, to compute the same text again. Ledger, trace and targets continue."""
        for layer in self.layers:
            layer.reset()
        self.processed = 0
        self.end_episode(None)

    def fan_out(
        self, repeats: int, hidden_state: torch.Tensor, length: int | Sequence[int] | None = None
    ) -> "SOLCache":
        """A cache with `repeats` adjacent copies of every row, over the keys and values of this cache.

        Full-attention layers share them ([`SharedPrefixLayer`]): only the tokens after the last whole page are copied.
        Layers of any other kind, which are bounded in size, are copied. This cache must not change afterwards.

        Args:
            repeats (`int`): Rows to make of each row, for each length.
            hidden_state (`torch.Tensor` of shape `(rows, hidden_size)`): State before the next token.
            length (`int` or `Sequence[int]`, *optional*): Tokens of this cache to use; all by default. Several
                lengths, whole pages apart, make `repeats` rows each; see [`SOLCache.can_stagger`].

        Raises:
            ValueError: if the rows are left-padded, or lengths are not whole pages apart.
        """
        if self.padding is not None:
            raise ValueError("Rows that share a prefix cannot be left-padded.")
        length = self.get_seq_length() if length is None else length
        lengths = (length,) if isinstance(length, int) else tuple(length)
        layers: list[Any] = []
        for layer in self.layers:
            if isinstance(layer, PagedLayer):
                layers.append(SharedPrefixLayer(layer, lengths, repeats))
                continue
            if len(lengths) > 1:
                raise ValueError(f"{type(layer).__name__} cannot be cut at several lengths: see `can_stagger`.")
            layers.append(copy.deepcopy(layer))
            if lengths[0] < layer.get_seq_length():
                layers[-1].crop(lengths[0] - layer.get_seq_length())
            layers[-1].batch_repeat_interleave(repeats)
        fanned = copy.copy(self)
        fanned.layers, fanned.trace, fanned.targets, fanned.is_fanned_out = layers, [], None, True
        rows = repeats * len(lengths)
        fanned.ledger = BudgetLedger(self.rows * rows, self.action_space, hidden_state.device)
        fanned.episode = Episode(hidden_state.repeat_interleave(rows, dim=0))
        if len(lengths) > 1:
            begins = torch.tensor(lengths, device=hidden_state.device).repeat_interleave(repeats)
            fanned.position_offset = (fanned.get_seq_length() - begins).repeat(self.rows)
        return fanned

    @property
    def can_stagger(self) -> bool:
        """Whether [`SOLCache.fan_out`] accepts several lengths: all layers must be full-attention layers."""
        return all(isinstance(layer, PagedLayer) for layer in self.layers)

    def end_episode(
        self,
        hidden_state: torch.Tensor | None,
        token: torch.Tensor | None = None,
        digest: torch.Tensor | None = None,
    ) -> None:
        """Start the next episode after `token`.

        Sliding-window layers drop the keys that only a rollback of the finished episode would have needed.

        Args:
            hidden_state (`torch.Tensor` of shape `(rows, hidden_size)`, *optional*): The state after `token`.
            token (`torch.Tensor` of shape `(rows, 1)`, *optional*): The last processed token, or its embedding.
            digest (`torch.Tensor` of shape `(rows, ...)`, *optional*): What the controller keeps of its logits.
        """
        kept = [None if value is None else owned(value) for value in (hidden_state, token, digest)]
        self.episode = Episode(kept[0], token_before=kept[1], logits_digest=kept[2])
        self.ledger.start_episode()
        for layer in self.layers:
            if isinstance(layer, WindowLayer):
                layer.forget()

    def drop_tokens(self, number: int) -> None:
        """Remove the last `number` tokens from keys and values only."""
        super().crop(-number)
        self.processed -= number

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens, and set episode, controller and ledger back accordingly.

        A crop of more tokens than the running episode has ends that episode. The next forward then needs at least two
        tokens, since the hidden state before the crop point is not kept.
        """
        added = max(0, self.get_seq_length() - self.processed)  # by a base that was called alone
        super().crop(tokens_to_remove)
        self.processed = min(self.processed, self.get_seq_length())
        tokens_to_remove = min(0, tokens_to_remove + added)
        if tokens_to_remove == 0:
            return
        for _ in range(min(-tokens_to_remove, self.episode.length)):
            step = self.episode.steps.pop()
            if self.episode.first_sparse == self.episode.length:
                self.episode.first_sparse = None
            in_this_call = bool(self.trace)
            if step.spent is not None:
                self.ledger.take_back(step.spent, step.counted, in_this_call, step.held)
            self.episode.hidden_state, self.episode.logits_digest = step.previous_hidden, step.previous_digest
            if in_this_call:
                self.trace.pop()
            tokens_to_remove += 1
            for value in self.episode.controller_state.values():
                if isinstance(value, Cache):
                    value.crop(-1)
        if tokens_to_remove < 0:
            self.end_episode(None)

    def reset(self) -> None:
        super().reset()
        self.episode, self.targets, self.trace = Episode(), None, []
        self.ledger = BudgetLedger(0, self.action_space)
        self.padding, self.padding_range, self.position_offset = None, (0, 0), None
        self.processed, self.padding_is_known, self.broken_layers = 0, True, []

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder all state for beam search. The trace keeps the executed order, to be read by `beam_indices`."""
        with undone_if_interrupted(self, moves_rows=True):
            super().reorder_cache(beam_idx)
            self._map_rows(lambda x: x.index_select(0, beam_idx.to(x.device)), "reorder_cache", beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        with undone_if_interrupted(self, moves_rows=True):
            super().batch_repeat_interleave(repeats)
            self._map_rows(lambda x: x.repeat_interleave(repeats, dim=0), "batch_repeat_interleave", repeats)
            self.trace = [(a.repeat_interleave(repeats), c.repeat_interleave(repeats)) for a, c in self.trace]

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        with undone_if_interrupted(self, moves_rows=True):
            super().batch_select_indices(indices)
            self._map_rows(lambda x: x[indices], "batch_select_indices", indices)
            self.trace = [(action[indices], counted[indices]) for action, counted in self.trace]

    def _map_rows(self, function: RowFunction, cache_method: str, argument: Any) -> None:
        episode = self.episode
        episode.map_rows(function)
        for name, value in episode.controller_state.items():
            if isinstance(value, Cache):
                getattr(value, cache_method)(argument)
            else:
                episode.controller_state[name] = function(value)
        self.ledger.map_rows(function)
        for name in ("targets", "padding", "position_offset"):
            if getattr(self, name) is not None:
                setattr(self, name, function(getattr(self, name)))
