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
    """

    tokens: int = 0
    seconds: float = 0.0
    spent: dict[str, Any] = field(default_factory=dict)

    @property
    def speed(self) -> float | None:
        """Tokens per second after the first."""
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds > 0 else None

    def __str__(self) -> str:
        parts = [f"{self.tokens} tokens"]
        if self.speed is not None:
            parts.append(f"{self.speed:.1f} tokens/s")
        for axis, value in self.spent.get("realised", {}).items():
            if axis in self.spent["requested"] or axis == "bits":
                parts.append(f"{axis} {value:.2f}" if axis != "bits" else f"bits {value:.1f}")
        if "net_keep" in self.spent:
            parts.append(f"net keep {self.spent['net_keep']:.2f}")
        if "bytes_share" in self.spent:
            parts.append(f"bytes {self.spent['bytes_share']:.2f}")
        if "agreement" in self.spent:
            parts.append(f"agreement {self.spent['agreement']:.2f}")
        return ", ".join(parts)


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
        return "".join(pieces), meter


def _drafts() -> dict[str, float]:
    """How many drafted tokens were taken so far, of a call with `lossless`."""
    session = DecodingSession.current()
    ahead = None if session is None else session.look_ahead
    if not isinstance(ahead, LookAhead) or not ahead.counts.drafted:
        return {}
    return {"agreement": ahead.counts.taken / ahead.counts.drafted}
