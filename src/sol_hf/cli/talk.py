# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A conversation: its messages, the budget that holds, and the commands that change it."""

import shutil
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from .answer import Answering, lines_of
from .loading import Loaded, axes_of, compute_of
from .status_line import DIM, PLAIN, StatusLine
from .word_wrap import WordWrap


COMMANDS = """/budget .4                    one number, of a policy with a calibration
/budget quality:.02           the cheapest within .02 nats of dense, if the calibration says what it costs
/budget token_keep=.5 bits=8  targets by axis
/budget off                   the model's own budget, or none
/lossless on | off            the text of the base, by drafts that are checked
/new                          forget the conversation
/quit                         end

Below an answer stands what its steps have spent. net keep: mean of the axes, bits over 16. token_keep, mlp_keep,
bits: means over the steps, next to what was asked. bytes: what the steps read, over what dense steps read; above 1
where a policy costs more than it saves. agreement: how often a token is the dense model's own."""


class Talk:
    """A conversation with a model.

    Args:
        loaded ([`Loaded`]): The model.
        out (`TextIO`): Where answers are written.
        budget (`Mapping`): The budget to begin with, as fields of a request.
        sampling (`Mapping`): How tokens are drawn, as fields of a request.
        lossless (`bool`): Whether to begin with the text of the base.
        system (`str`, *optional*): The first message.
        max_new_tokens (`int`): Of an answer.

    Raises:
        ValueError: for a budget that cannot be kept.
    """

    def __init__(
        self,
        loaded: Loaded,
        out: TextIO,
        budget: Mapping[str, float | str],
        sampling: Mapping[str, Any],
        lossless: bool,
        system: str | None,
        max_new_tokens: int,
    ):
        self._loaded, self._out, self._answering = loaded, out, Answering(loaded)
        self._budget, self._sampling, self._lossless = dict(budget), dict(sampling), lossless
        self._first = [] if system is None else [{"role": "system", "content": system}]
        self._messages: list[dict[str, str]] = list(self._first)
        self._max_new_tokens = max_new_tokens
        self._answering.check(self._fields())

    def greet(self, at_a_terminal: bool) -> None:
        """Say what can be typed."""
        self._prompted = at_a_terminal
        if at_a_terminal:
            self._say(f"{self._loaded.name}: {self._state()}. /help lists the commands, Ctrl-C ends an answer.")

    def run(self, lines: TextIO) -> int:
        """Answer line after line, until the end."""
        while True:
            line = self._read(lines)
            if line is None or line in ("/quit", "/exit", "/bye"):
                return 0
            if not line:
                continue
            try:
                if line.startswith("/"):
                    self._command(*line[1:].split(maxsplit=1))
                else:
                    self._answer(line)
            except ValueError as error:
                if not self._prompted:
                    raise
                self._say(str(error))

    def _read(self, lines: TextIO) -> str | None:
        try:
            if self._prompted:
                return input("> ").strip()
            line = lines.readline()
            return line.strip() if line else None
        except (EOFError, KeyboardInterrupt):
            self._out.write("\n")
            return None

    def _command(self, name: str = "", rest: str = "") -> None:
        if name == "budget":
            self._set_budget(rest.strip())
        elif name == "lossless" and rest in ("on", "off", ""):
            self._change(lossless=rest != "off")
        elif name in ("new", "clear"):
            self._messages = list(self._first)
            self._say("A new conversation.")
        elif name == "help":
            self._say(COMMANDS)
        else:
            raise ValueError(f"/{name}{' ' + rest if rest else ''} is no command: /help lists them.")

    def _set_budget(self, text: str) -> None:
        if text in ("", "off", "none"):
            if text:
                self._change(budget={})
            else:
                self._say(self._state())
            return
        self._change(budget=axes_of(text) if "=" in text else {"compute": compute_of(text)})

    def _change(self, budget: Mapping[str, float | str] | None = None, lossless: bool | None = None) -> None:
        before = self._budget, self._lossless
        self._budget = self._budget if budget is None else dict(budget)
        self._lossless = self._lossless if lossless is None else lossless
        try:
            self._answering.check(self._fields())
        except ValueError:
            self._budget, self._lossless = before
            raise
        self._say(self._state())

    def _state(self) -> str:
        budget = (
            " ".join(
                f"{name}={value if isinstance(value, str) else f'{value:g}'}" for name, value in self._budget.items()
            )
            or "no budget of its own"
        )
        return budget + (", lossless" if self._lossless else "")

    def _fields(self) -> dict[str, Any]:
        fields = {**self._budget, **self._sampling}
        if self._lossless:
            return fields | {"lossless": True}
        return fields | ({"measure_agreement": True} if self._budget else {})

    def _answer(self, text: str) -> None:
        messages = [*self._messages, {"role": "user", "content": text}]
        ids = prompt_ids(self._loaded, messages)
        columns = shutil.get_terminal_size().columns if self._out.isatty() else sys.maxsize
        wrap = WordWrap(columns)
        with StatusLine(self._out) as status:
            answer, meter = self._answering(
                ids,
                self._fields(),
                self._max_new_tokens,
                lambda piece: self._write(wrap(piece)),
                lambda now: status.show(now.within),
            )
        self._out.write("\n")
        self._say("\n".join(lines_of(meter.parts, columns)))
        self._messages = [*messages, {"role": "assistant", "content": answer}]

    def _write(self, piece: str) -> None:
        self._out.write(piece)
        self._out.flush()

    def _say(self, text: str) -> None:
        dim, plain = (DIM, PLAIN) if self._out.isatty() else ("", "")
        self._out.write(f"{dim}{text}{plain}\n")
        self._out.flush()


def prompt_ids(loaded: Loaded, messages: list[dict[str, str]]) -> list[int]:
    """The tokens of a conversation, by the chat template if there is one."""
    if loaded.tokenizer.chat_template:
        encoded = loaded.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])
    if len(messages) == 1:
        print("sol-hf: there is no chat template, so the conversation is continued as plain text.", file=sys.stderr)
    return list(loaded.tokenizer("\n".join(message["content"] for message in messages))["input_ids"])
