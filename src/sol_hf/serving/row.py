# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One request on its way through the server: its settings, the tokens so far, and what its client gets."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..decoding.options import DecodeOptions
from .row_text import RowText
from .sampling import Sampling


@dataclass(frozen=True)
class RowSettings:
    """What a request asks for.

    Args:
        options ([`DecodeOptions`]): Its budget options, resolved with what the model has stored.
        sampling ([`Sampling`]): How its tokens are drawn.
        stops (`tuple[str]`): Texts at which its answer ends.
        max_new_tokens (`int`, *optional*): New tokens at most, if it says so.
    """

    options: DecodeOptions
    sampling: Sampling
    stops: tuple[str, ...] = ()
    max_new_tokens: int | None = None

    @property
    def is_alone(self) -> bool:
        """Whether it has a batch of its own: what it reports, or how it ends, is known for whole calls only."""
        options = self.options
        return bool(options.lossless or options.measure_agreement or (options.exact and options.budget is not None))

    @property
    def company(self) -> tuple:
        """Requests with the same value can share a batch."""
        options = self.options
        if self.is_alone:
            return (object(),)
        if options.budget is None or options.runs_base:
            return ("dense",)
        soft = options.budget.controlled if options.budget_mode == "soft" else None
        return ("budget", options.budget_mode, options.budget_horizon, soft, id(options.controller))


@dataclass(frozen=True)
class RowFailure:
    """An error in place of the rest of an answer.

    Args:
        message (`str`): For the client.
    """

    message: str


@dataclass(eq=False)
class Row:
    """A request from its arrival to its end.

    Args:
        ids (`list[int]`): Tokens of the prompt.
        settings ([`RowSettings`]): What it asks for.
        max_new_tokens (`int`): New tokens at most.
        text ([`RowText`]): Turns tokens into text.
        deliver (`Callable`): Called with every piece of the answer, and at the end with `None` or a [`RowFailure`].
    """

    ids: Sequence[int]
    settings: RowSettings
    max_new_tokens: int
    text: RowText
    deliver: Callable[[Any], None]
    arrived: float = field(default_factory=time.monotonic)
    company: tuple = field(init=False)
    tokens: list[int] = field(default_factory=list, init=False)
    finish_reason: str | None = field(default=None, init=False)
    metrics: dict[str, Any] = field(default_factory=dict, init=False)
    waited: float = field(default=0.0, init=False)
    is_cancelled: bool = field(default=False, init=False)
    is_over: bool = field(default=False, init=False)

    def __post_init__(self):
        self.company = self.settings.company

    @property
    def total_tokens(self) -> int:
        """New tokens so far."""
        return len(self.tokens)

    def cancel(self) -> None:
        """The client is gone: the row ends before its next token."""
        self.is_cancelled = True

    def begin(self) -> None:
        """Its batch begins."""
        self.waited = time.monotonic() - self.arrived
        self._deliver(self.text.begin())

    def add(self, token: int, ends: bool) -> bool:
        """Take a new token; returns whether the row has ended.

        Args:
            token (`int`): The token.
            ends (`bool`): Whether it is one of the model's end tokens.
        """
        if self.finish_reason is not None:
            return True
        if self.is_cancelled:
            self.finish_reason = "cancelled"
            return True
        self.tokens.append(token)
        self._deliver(self.text.add(token))
        if ends or self.text.is_stopped:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self.max_new_tokens:
            self.finish_reason = "length"
        return self.finish_reason is not None

    def close(self, metrics: dict[str, Any]) -> None:
        """Deliver what is left, and the end."""
        if not self.is_over:
            self.is_over, self.metrics = True, metrics
            self._deliver(self.text.end())
            self.deliver(None)

    def fail(self, message: str) -> None:
        """Deliver an error in place of the end."""
        if not self.is_over:
            self.is_over = True
            self.deliver(RowFailure(message))

    def _deliver(self, pieces: list[Any]) -> None:
        if not self.is_cancelled:
            for piece in pieces:
                self.deliver(piece)
