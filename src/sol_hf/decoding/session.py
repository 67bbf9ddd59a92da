# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The running call: the settings of its steps, and the CUDA graphs that it uses.

The only object that transformers' generation loop passes on to a forward is the cache. The cache holds state that
outlives the call, and can be copied and pickled. The settings of the call itself are here. The loop's forwards find
them in a context variable:

    generate  ->  with session.running():  transformers' loop  ->  forward  ->  DecodingSession.of(base, cache)
"""

import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..budget.bank import Bank
from ..cache.rollback import Rollback, undone_if_interrupted
from ..cache.sol_cache import SOLCache
from ..execution.cuda_graphs import CapturedForward
from ..execution.instrumentation import Instrumentation
from ..execution.plan import Parts
from .agreement_meter import AgreementMeter
from .cache_use import using
from .controls import DecodeControls
from .forward_inputs import ForwardInputs


@dataclass
class Graphs:
    """CUDA graphs over one cache.

    Args:
        forwards (`dict[str, CapturedForward]`): The captured forwards, by `"step"` and `"refresh"`.
        room (`int`): Tokens for which the cache has storage when they are captured; it grows with the text.
    """

    forwards: dict[str, CapturedForward] = field(default_factory=dict)
    room: int = 0


class LooksAhead(Protocol):
    """What processes the forwards of a call instead of one decode step for each token."""

    @property
    def processed(self) -> int:
        """Forwards of the call so far, each of which has given the logits of one new token."""

    def __call__(self, session: "DecodingSession", inputs: ForwardInputs, all_logits: bool) -> CausalLMOutputWithPast:
        """Process the tokens of a forward."""

    def note_text(self, text: torch.Tensor) -> None:
        """Take note of all tokens `(rows, length)` that the loop has, before a forward."""

    def note_settings(self, processors: Iterable[Any], config: GenerationConfig) -> None:
        """Take note of the settings of a loop that begins."""


@dataclass(eq=False)
class DecodingSession:
    """One call of `generate` or `score`, or one rollout.

    Args:
        base (`PreTrainedModel`): The frozen base.
        cache ([`SOLCache`]): The state from which the call continues, and which it updates.
        controls ([`DecodeControls`], *optional*): Budget, controller and options; without them the call is a dense
            continuation.
        decode_from (`int`, *optional*): Length of the cache at which decode steps begin. Tokens before it are
            processed densely. By default every forward ends with one decode step.
        replaced (`dict[str, Any]`, *optional*): Options of transformers' generate that the call uses instead of
            stored ones, see [`replaced_values`].
        mask_was_passed (`bool`, *optional*, defaults to `True`): Whether the caller passed an attention mask. Without
            one, transformers takes pad tokens in the prompt for padding.
    """

    base: PreTrainedModel
    cache: SOLCache
    controls: DecodeControls | None = None
    decode_from: int | None = None
    is_recomputing: bool = False
    """Whether the next forward processes all of its tokens densely: the base computes the whole text again, or its
    prompt is one piece, see `prompt_images.py`."""
    steps: int | torch.Tensor | None = None
    """Decode steps of the call, or of each of its rows `(rows,)`; only of an `exact` one."""
    replaced: dict[str, Any] = field(default_factory=dict)
    mask_was_passed: bool = True
    look_ahead: LooksAhead | None = None
    """Processes the forwards of a call with `lossless`."""
    meter: AgreementMeter | None = None
    """Notes the most likely tokens of a call with `measure_agreement`."""
    _filled: dict[tuple[object, ...], torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    rollback: Rollback | None = field(default=None, init=False)
    """What the cache was before the running forward, if that can be taken back."""

    @classmethod
    def of(cls, base: PreTrainedModel, cache: SOLCache) -> "DecodingSession":
        """The running session of a cache; a dense continuation if there is none."""
        session = _RUNNING.get()
        return session if session is not None and session.cache is cache else cls(base, cache)

    @classmethod
    def after_prompt(
        cls,
        base: PreTrainedModel,
        cache: Cache | None,
        controls: DecodeControls | None,
        prompt: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        replaced: dict[str, Any],
        steps: int | None = None,
    ) -> "DecodingSession | None":
        """The session of a `generate` call: the prompt's last token is the first decode step.

        `None` if the call does not decode over a [`SOLCache`], or has no prompt.
        """
        if not isinstance(cache, SOLCache) or prompt is None:
            return None
        length = (prompt if attention_mask is None else attention_mask).shape[1]
        passed = attention_mask is not None
        return cls(base, cache, controls, length - 1, replaced=replaced, mask_was_passed=passed, steps=steps)

    @classmethod
    def current(cls) -> "DecodingSession | None":
        """The session that is running in this thread, if there is one."""
        return _RUNNING.get()

    @classmethod
    def refuse_forward(cls, base: PreTrainedModel, cache: Cache | None) -> None:
        """Raise a ValueError for a forward within a call under a budget that does not use the cache of the call."""
        session = cls.current()
        if (
            session is not None
            and session.controls is not None
            and session.base is base
            and session.cache is not cache
        ):
            raise ValueError(
                "A forward within a call under a budget must use the `past_key_values` of the call: without them it "
                "would run densely. For a dense forward, call `model.base`."
            )

    @contextmanager
    def running(self, lends: bool = False) -> Iterator["DecodingSession"]:
        """Begin the call. Within the block, forwards of this thread over the cache belong to it.

        Args:
            lends (`bool`, *optional*, defaults to `False`): Whether calls within the block may use the cache, too.

        Raises:
            ValueError: if another call uses the cache.
        """
        with using(self.cache, lends):
            self.begin()
            token = _RUNNING.set(self)
            try:
                yield self
            finally:
                _RUNNING.reset(token)

    @classmethod
    def looking_ahead(cls, cache: Any) -> LooksAhead | None:
        """What processes the forwards over a cache in the running call, if it is one with `lossless`."""
        session = cls.current()
        return None if session is None or session.cache is not cache else session.look_ahead

    @staticmethod
    @contextmanager
    def none_running() -> Iterator[None]:
        """Within the block, forwards of this thread belong to no call."""
        token = _RUNNING.set(None)
        try:
            yield
        finally:
            _RUNNING.reset(token)

    def begin(self) -> "DecodingSession":
        """Begin the sums and the trace of the call. Those of a running episode continue."""
        if self.controls is not None and self.controls.action_space is not None:
            self.cache.action_space = self.controls.action_space
        kind = None if self.controls is None else type(self.controls.controller)
        self.cache.start_call("" if kind is None else f"{kind.__module__}.{kind.__qualname__}")
        if self.controls is None or not self.controls.keeps_bank:
            self.cache.ledger.bank = None
        return self

    @contextmanager
    def undone_if_interrupted(self) -> Iterator[None]:
        """A forward that is interrupted by any exception leaves the cache as it was before."""
        with undone_if_interrupted(self.cache) as self.rollback:
            try:
                yield
            finally:
                self.rollback = None

    def require_controls(self) -> DecodeControls:
        """The controls, for decode steps; a dense continuation has neither steps nor controls."""
        assert self.controls is not None, "a dense continuation has no decode steps"
        return self.controls

    @property
    def device(self) -> torch.device:
        """That of the state of every row."""
        return self.cache.ledger.total_counts.device

    def in_all_rows(self, value: float, dtype: torch.dtype) -> torch.Tensor:
        """A number for every row, `(rows,)`; made once a call, so it must not be edited."""
        key = value, dtype, self.cache.rows
        if key not in self._filled:
            self._filled[key] = torch.full((self.cache.rows,), value, dtype=dtype, device=self.device)
        return self._filled[key]

    @property
    def needs_logits(self) -> bool:
        """Whether the controller needs the logits of the token before."""
        return self.controls is not None and self.controls.controller.needs_logits

    @property
    def graphs(self) -> Graphs:
        """The CUDA graphs that were captured over the cache, in this call or an earlier one."""
        return _GRAPHS.setdefault(self.cache, Graphs())

    @cached_property
    def parts(self) -> Parts:
        """The parts of the base that carry out each axis."""
        backend = "fake" if self.controls is None else self.controls.bits_backend
        return Instrumentation.of(self.base).parts(self.cache, backend)

    def set_up_rows(self, rows: int, device: torch.device) -> None:
        """Create the cache's state per row at the first forward, and the targets of this call."""
        self.cache.set_up_rows(rows, device)
        if self.cache.targets is None and self.controls is not None and self.controls.budget is not None:
            self.set_targets(self.controls.budget.targets(rows, device, self.cache.action_space))

    def set_targets(self, targets: torch.Tensor) -> None:
        """Set the targets `(rows, axes)` of this call, in ratio units, and open the bank that it keeps them by.

        A call that goes on with the text of the one before goes on with its bank, one with new tokens has its own.
        """
        cache = self.cache
        cache.targets = targets
        if self.controls is not None and self.controls.keeps_bank:
            bank, before = Bank.opened(targets, cache.action_space), cache.ledger.bank
            goes_on = cache.episode.length > 0 and (self.decode_from or 0) <= cache.get_seq_length()
            cache.ledger.bank = bank.going_on(before) if goes_on and before is not None else bank


_GRAPHS: "weakref.WeakKeyDictionary[SOLCache, Graphs]" = weakref.WeakKeyDictionary()
"""CUDA graphs by cache, as long as the cache exists: the next turn of a chat uses them again. They are not copied."""
_RUNNING: ContextVar[DecodingSession | None] = ContextVar("sol_hf_running_session", default=None)
