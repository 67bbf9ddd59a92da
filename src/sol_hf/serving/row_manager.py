# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What transformers' handlers take for a generation manager: it puts one request into the queue."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.cli.serving.utils import BaseGenerateManager, _StreamError

from ..modeling_sol import SOLForCausalLM
from .batcher import Batcher
from .errors import RequestRefusedError
from .limits import ServeLimits
from .row import Row, RowFailure, RowSettings
from .row_text import RowText


class RowManager(BaseGenerateManager):
    """Generates for one request, as a row of a batch.

    Args:
        model ([`SOLForCausalLM`]): The model.
        batcher ([`Batcher`]): The queue.
        limits ([`ServeLimits`]): Of lengths.
        settings ([`RowSettings`]): What the request asks for.
    """

    def __init__(self, model: SOLForCausalLM, batcher: Batcher, limits: ServeLimits, settings: RowSettings):
        self._model, self._batcher, self._limits, self._settings = model, batcher, limits, settings
        self.row: Row | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts at which the answer ends."""
        return self._settings.stops

    def generate_streaming(
        self,
        model: Any,
        processor: PreTrainedTokenizerBase,
        inputs: Any,
        gen_config: GenerationConfig,
        request_id: str,
        response_parser: Any = None,
    ) -> tuple[asyncio.Queue, Any]:
        """The queue of the pieces of the answer, and the row, which counts tokens and can be cancelled."""
        pieces: asyncio.Queue = asyncio.Queue()

        def deliver(piece: Any) -> None:
            failed = isinstance(piece, RowFailure)
            # transformers writes the message between quotation marks
            pieces.put_nowait(_StreamError(json.dumps(piece.message)[1:-1]) if failed else piece)

        return pieces, self._submit(processor, inputs, gen_config, deliver, response_parser)

    async def generate_non_streaming(
        self,
        model: Any,
        processor: PreTrainedTokenizerBase,
        inputs: Any,
        gen_config: GenerationConfig,
        request_id: str,
    ) -> tuple[str, int, list[int]]:
        """The whole answer; if the client leaves, its row ends."""
        pieces: asyncio.Queue = asyncio.Queue()
        row, text = self._submit(processor, inputs, gen_config, pieces.put_nowait), ""
        try:
            while (piece := await pieces.get()) is not None:
                if isinstance(piece, RowFailure):
                    raise RequestRefusedError(piece.message, status=500)
                text += piece
        finally:
            row.cancel()
        return text, len(row.ids), row.tokens

    def stop(self) -> None:
        """Nothing to stop: the queue goes on."""

    def _submit(
        self,
        tokenizer: PreTrainedTokenizerBase,
        inputs: Any,
        gen_config: GenerationConfig,
        deliver: Callable[[Any], None],
        parser: Any = None,
    ) -> Row:
        loop = asyncio.get_running_loop()
        ids = inputs["input_ids"][0].tolist()
        gen_config.max_new_tokens = self._new_tokens(len(ids))
        text = RowText(tokenizer, self._settings.stops, parser)
        row = Row(
            ids,
            self._settings,
            gen_config.max_new_tokens,
            text,
            lambda piece: loop.call_soon_threadsafe(deliver, piece),  # type: ignore[arg-type]
        )
        self._batcher.submit(row)
        self.row = row
        return row

    def _new_tokens(self, length: int) -> int:
        """New tokens at most after a prompt.

        Raises:
            RequestRefusedError: if prompt and answer are longer than the server or the base allows.
        """
        limits, wanted = self._limits, self._settings.max_new_tokens
        positions = self._model.config.base_max_position_embeddings
        if length == 0:
            raise RequestRefusedError("The prompt is empty: at least one token is needed.")
        longest = min((x for x in (limits.max_prompt_tokens, positions and positions - 1) if x), default=None)
        if longest is not None and length > longest:
            raise RequestRefusedError(f"The prompt has {length} tokens; this server takes at most {longest}.")
        if wanted is not None and wanted > limits.max_new_tokens:
            raise RequestRefusedError(
                f"The request asks for {wanted} new tokens; this server gives at most {limits.max_new_tokens}.",
                "max_tokens",
            )
        room = limits.max_new_tokens if positions is None else min(limits.max_new_tokens, positions - length)
        if wanted is not None and wanted > room:
            raise RequestRefusedError(
                f"The prompt has {length} tokens, and the model {positions} positions: `max_tokens` can be at most "
                f"{room}, got {wanted}.",
                "max_tokens",
            )
        return wanted or room
