# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The text of a row, token by token: whole characters, tool calls and reasoning apart, up to a stop string."""

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.utils import response_events_to_chunks


INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What the bytes of an incomplete character are decoded to."""


class RowText:
    """Turns tokens into what a client gets.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Of the model.
        stops (`Sequence[str]`): Texts at which the answer ends; they are not part of it.
        parser (`ResponseParser`, *optional*): Of transformers, for templates with tool calls or reasoning.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = (), parser: Any = None):
        self._tokenizer, self._stops, self._parser = tokenizer, tuple(stops), parser
        self._ids: list[int] = []
        self._window = (0, 0)
        self._held = ""
        self.is_stopped = False
        """Whether a stop string was found."""

    def begin(self) -> list[Any]:
        """What stands before the first token."""
        return [] if self._parser is None else self._content(response_events_to_chunks(self._parser.initial_events))

    def add(self, token: int) -> list[Any]:
        """The pieces of the answer that a token completes: text, and tool calls or reasoning of a parser."""
        self._ids.append(token)
        piece = self._decoded()
        if not piece or piece.endswith(INCOMPLETE):
            return []
        self._window = (self._window[1], len(self._ids))
        return self._pieces(piece)

    def end(self) -> list[Any]:
        """What is left after the last token."""
        if self.is_stopped:
            return []
        pieces = self._pieces(self._decoded())
        if self._parser is not None and not self.is_stopped:
            try:
                events = self._parser.finalize()[1]
            except (ValueError, RuntimeError):  # the answer ends within a tool call, of which nothing can be made
                events = []
            pieces += self._content(response_events_to_chunks(events))
        rest, self._held = self._held, ""
        return pieces if self.is_stopped or not rest else [*pieces, rest]

    def _decoded(self) -> str:
        """The text of the tokens that were not given out yet, decoded after those just before them."""
        begin, middle = self._window
        options: dict[str, Any] = dict(skip_special_tokens=self._parser is None, clean_up_tokenization_spaces=False)
        before = self._tokenizer.decode(self._ids[begin:middle], **options)
        return self._tokenizer.decode(self._ids[begin:], **options)[len(before) :]

    def _pieces(self, text: str) -> list[Any]:
        if self._parser is None:
            return self._content([text] if text else [])
        return self._content(response_events_to_chunks(self._parser.feed(text)))

    def _content(self, items: list[Any]) -> list[Any]:
        """Items without a stop string and all that follows it; what may be the begin of one is held back."""
        if not self._stops:
            return items
        out: list[Any] = []
        for item in items:
            if self.is_stopped:
                break
            if type(item) is not str:
                out.append(item)
                continue
            self._held += item
            found = [place for place in map(self._held.find, self._stops) if place >= 0]
            if found:
                ready, self._held, self.is_stopped = self._held[: min(found)], "", True
            else:
                kept = self._begin_of_stop()
                ready, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
            out += [ready] if ready else []
        return out

    def _begin_of_stop(self) -> int:
        """Length of the longest end of the held text with which a stop string begins."""
        longest = min(len(self._held), max(map(len, self._stops)) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
