# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a bench has measured: as a table for terminals, as JSON, and one line of advice."""

import dataclasses
import math
import textwrap
from dataclasses import dataclass
from typing import Any

from .bench import Case, Quality, fastest
from .speed import BASE, Speed
from .ways import SAME_TEXT


WIDTH = 80
NAMES = {BASE: "transformers"}
HEAD = f"{'':<15} {'ms a step':>9} {'(rounds)':>12} {'speed-up':>8} {'/ dense':>7} {'bytes':>5} "
HEAD += f"{'KL':>5} {'loss':>7} {'same':>4}"


@dataclass(frozen=True)
class BenchReport:
    """What a bench has found; printed, it is a table.

    Args:
        model (`str`): Name of the model.
        setting (`str`): Machine, dtype, steps, rounds.
        text (`str`): The text on which quality was measured; empty if it was not.
        most_divergence (`float`): KL up to which a way is advised.
        cases (`tuple` of [`Case`]): By context and rows.
        qualities (`dict` of [`Quality`]): By way.
        refused (`dict[str, str]`): Ways that the base cannot go, with the reason.
    """

    model: str
    setting: str
    text: str
    most_divergence: float
    cases: tuple[Case, ...]
    qualities: dict[str, Quality]
    refused: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.setting}"]
        for case in self.cases:
            rows = "1 row" if case.rows == 1 else f"{case.rows} rows"
            lines += ["", f"context {case.context}, {rows}", HEAD]
            lines += [self._line(case, speed) for speed in case.speeds]
            lines += textwrap.wrap(self.advice(case), WIDTH)
        left_out = [f"Not on this base: {name}. {reason}" for name, reason in self.refused.items()]
        notes = (line for note in (*left_out, *self._notes()) for line in textwrap.wrap(note, WIDTH))
        return "\n".join([*lines, "", *notes])

    def advice(self, case: Case) -> str:
        """One line: the fastest way, and the fastest that gives the same text."""
        best = fastest(case, self.qualities, self.most_divergence)
        line = f"fastest here: {_name(best)}, {best.speed_up:.2f} times as fast as transformers"
        if best.name in SAME_TEXT:
            return f"{line}, the same text" if best.name != BASE else "fastest here: transformers' own generate"
        same = max((x for x in case.speeds if x.name in SAME_TEXT), key=lambda x: x.speed_up)
        return f"{line}; with the same text: {_name(same)}, {same.speed_up:.2f} times"

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values; what was not measured is `None`."""
        found = dataclasses.asdict(self)
        for case, own in zip(found["cases"], self.cases, strict=True):
            case["fastest"] = fastest(own, self.qualities, self.most_divergence).name
            case["advice"] = self.advice(own)
        return _plain(found)

    def _line(self, case: Case, speed: Speed) -> str:
        ms = [1000 * case.rows / rate for rate in (speed.median, *reversed(speed.spread))]
        share, quality = case.bytes_share.get(speed.name), self.qualities.get(speed.name)
        kl = loss = same = "–"
        if speed.name in SAME_TEXT:
            kl, loss, same = "0", "0", "1"
        elif quality is not None:
            kl, loss = f"{quality.divergence[0]:.3f}", f"{quality.loss[0]:+.3f}"
            same = f"{quality.same_token:.2f}"
        if speed.expected_loss is not None and speed.name not in SAME_TEXT:
            loss = f"{speed.expected_loss:+.2f}*"
        form = ".1f" if ms[2] < 100 else ".0f"
        rounds = f"({ms[1]:{form}}–{ms[2]:{form}})"
        return (
            f"{_name(speed):<15} {ms[0]:>9.1f} {rounds:>12} {speed.speed_up:>8.2f} "
            f"{case.over_dense[speed.name]:>7.2f} {'–' if share is None else f'{share:.2f}':>5} "
            f"{kl:>5} {loss:>7} {same:>4}"
        )

    def _notes(self) -> list[str]:
        notes = [
            "ms a step (a token of every row): median over rounds; KV refresh and policy included, not the prompt.",
            "speed-up: over transformers' generate; / dense: over our dense steps; in each round.",
            "bytes: of a step, over those of a dense one; counted, for one row.",
        ]
        if self.qualities:
            notes.append(
                "KL(dense ‖ way) and loss above dense in nats a token, share of the same most likely token: "
                f"{self.text}. Advised is no way with a KL above {self.most_divergence:g}."
            )
        if any(x.expected_loss is not None and x.name not in SAME_TEXT for case in self.cases for x in case.speeds):
            notes.append("*: from the calibration of the policy.")
        return notes


def _name(speed: Speed) -> str:
    return NAMES.get(speed.name, speed.name)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
