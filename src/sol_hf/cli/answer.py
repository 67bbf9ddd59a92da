# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One answer of a model, piece by piece, with what it has spent so far."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..decoding.lossless.look_ahead import LookAhead
from ..decoding.session import DecodingSession
from ..serving.batch import Batch
from ..serving.errors import RequestRefusedError
from ..serving.fields import read_settings
from ..serving.metrics import Spending
from ..serving.row import Row
from ..serving.row_text import RowText
from .loading import Loaded


@dataclass
class Meter:
    """What an answer has spent so far.

    Args:
        tokens (`int`): New tokens.
        seconds (`float`): Since the first of them.
        spent (`dict`): As of [`Spending.of_row`].
        remarks (`list[str]`): What the numbers do not say.
    """

    tokens: int = 0
    seconds: float = 0.0
    spent: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def speed(self) -> float | None:
        """Tokens per second after the first."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else None

    @property
    def parts(self) -> list[str]:
        """What it shows, the most important first."""
        tokens = "1 token" if self.tokens == 1 else f"{self.tokens} tokens"
        parts = [tokens if self.speed is None else f"{tokens} at {self.speed:.1f}/s"]
        if "net_keep" in self.spent:
            parts.append(f"net keep {self.spent['net_keep']:.2f}")
        for axis, value in self.spent.get("realised", {}).items():
            if axis in self.spent["requested"] or axis == "bits":
                parts.append(f"{axis} {value:.2f}" if axis != "bits" else f"bits {value:.1f}")
        if "bytes_share" in self.spent:
            parts.append(f"bytes {self.spent['bytes_share']:.2f}")
        if "agreement" in self.spent:
            parts.append(f"agreement {self.spent['agreement']:.2f}")
        return parts + self.remarks

    def __str__(self) -> str:
        return ", ".join(self.parts)

    def within(self, columns: int) -> str:
        """As many of the parts as a line has room for; none is cut."""
        return lines_of(self.parts, columns)[0]


def lines_of(parts: Sequence[str], columns: int) -> list[str]:
    """Parts, with commas between them, in lines of at most so many columns; a part that is longer has its own."""
    lines = [""]
    for place, part in enumerate(parts):
        part += "," if place + 1 < len(parts) else ""
        if lines[-1] and len(lines[-1]) + 1 + len(part) > columns:
            lines.append(part)
        else:
            lines[-1] += f" {part}" if lines[-1] else part
    return lines


class Answering:
    """Answers with one model.

    Args:
        loaded ([`Loaded`]): The model.
    """

    def __init__(self, loaded: Loaded):
        self._loaded, self._spending = loaded, Spending(loaded.model)

    def check(self, fields: Mapping[str, Any]) -> None:
        """Raise a `ValueError` for a budget that cannot be kept, or options that do not fit each other."""
        model = self._loaded.model
        settings = read_settings(fields, model.config, model.generation_config, self._loaded.controller)
        if settings.max_new_tokens is not None and settings.max_new_tokens < 1:
            raise RequestRefusedError("At least one new token is needed.")

    def __call__(
        self,
        ids: Sequence[int],
        fields: Mapping[str, Any],
        new_tokens: int,
        show: Callable[[str], None],
        on_step: Callable[[Meter], None] | None = None,
    ) -> tuple[str, Meter]:
        """Generate an answer.

        Args:
            ids (`Sequence[int]`): The prompt.
            fields (`Mapping`): As in a request to the server: a budget, `temperature`, `seed` and so on.
            new_tokens (`int`): New tokens at most.
            show (`Callable`): Called with every piece of the text.
            on_step (`Callable`, *optional*): Called with the meter after every step.

        Returns:
            The text and the meter at the end. Interrupted, they are those of the text so far.
        """
        model, meter, pieces, begin = self._loaded.model, Meter(), list[str](), [0.0]
        room = (model.config.base_max_position_embeddings or len(ids) + new_tokens) - len(ids)
        if room < 1:
            raise ValueError(f"The text has {len(ids)} tokens, and the model no more positions: begin a new chat.")
        if not ids:
            raise ValueError("The prompt is empty: at least one token is needed.")

        def deliver(piece: Any) -> None:
            if piece is not None:
                pieces.append(piece)
                show(piece)

        settings = read_settings(fields, model.config, model.generation_config, self._loaded.controller)
        row = Row(ids, settings, min(new_tokens, room), RowText(self._loaded.tokenizer, settings.stops), deliver)

        def count() -> None:
            now = time.perf_counter()
            begin[0] = begin[0] or now
            meter.tokens, meter.seconds = len(row.tokens), now - begin[0]
            meter.spent = self._spending.of_row(row, 0, batch.cache, 1) | _drafts()
            if on_step is not None:
                on_step(meter)

        batch = Batch(model, [row], self._spending, count)
        try:
            batch.run()
        except KeyboardInterrupt:
            row.cancel()
        else:
            meter.tokens, meter.spent = len(row.tokens), row.metrics
        meter.remarks = self._remarks(row)
        return "".join(pieces), meter

    def _remarks(self, row: Row) -> list[str]:
        """Why an answer ended, and why it spent more than was asked, where its text does not show it."""
        remarks = [f"ended after {len(row.tokens)} tokens"] if row.finish_reason == "length" else []
        short, budget = self._loaded.model.config.short_text_tokens, row.settings.options.budget
        asks = budget is not None and "token_keep" in budget.controlled and not row.settings.options.lossless
        if asks and len(row.ids) < short:
            remarks.append(f"texts of up to {short} tokens are read in full")
        return remarks


def _drafts() -> dict[str, float]:
    """How many drafted tokens were taken so far, of a call with `lossless`."""
    session = DecodingSession.current()
    ahead = None if session is None else session.look_ahead
    if not isinstance(ahead, LookAhead) or not ahead.counts.drafted:
        return {}
    return {"agreement": ahead.counts.taken / ahead.counts.drafted}
