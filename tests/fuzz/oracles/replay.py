# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`score` under the executed actions gives the logits of `generate`, by another backend, too.

The text of a later turn is scored as a whole: a cache that lives on gives what a fresh one gives.
"""

import torch

from fuzz.case import Case
from fuzz.claims import claim
from fuzz.conversation import Conversation, Turn
from fuzz.models import model_of
from fuzz.replay import replay, script_of
from fuzz.rounding import claim_close


REPLAYED = ("kv_refresh", "backend", "bits_backend")


def applies(conversation: Conversation) -> bool:
    """Not in bfloat16, where rounding decides most choices."""
    return conversation.case.dtype != "bfloat16"


def check(conversation: Conversation) -> None:
    """Score every turn again that has a dense history."""
    case = conversation.case
    for index, turn in enumerate(conversation.turns):
        is_dense = case.options.get("kv_refresh", True) is True and case.options.get("bits_backend") != "nested"
        if index and not is_dense:  # a refresh from planes is near a dense one, and no refresh is not
            break  # what earlier turns left in the cache is not the dense text's
        check_turn(conversation, turn, f"turn {index}")


def options_of(conversation: Conversation, backend: str | None = None) -> dict:
    """The options of the case that change what a step computes."""
    case = conversation.case
    options = {name: value for name, value in case.options.items() if name in REPLAYED}
    if case.budget and "bits" not in case.budget and options.get("bits_backend") != "nested":  # it may read 9 as 16
        options.pop("bits_backend", None)  # of no effect, and perhaps not possible on this base
    if case.budget and not case.is_tested:  # the base may lack the other axes
        options |= {"budget_mode": "soft", **{axis: min(case.levels[axis]) for axis in case.budget}}
    return options if backend is None else {**options, "backend": backend}


def logits_of(turn: Turn) -> torch.Tensor:
    """Logits of `generate` `(rows, new, vocab)`, those of the beams that won."""
    logits = torch.stack(turn.output.logits, dim=1)[:, : turn.new]
    beams = getattr(turn.output, "beam_indices", None)
    if beams is None:
        return logits
    beams = beams[:, : turn.new].clamp(min=0).long()
    return logits.gather(0, beams[..., None].expand(-1, -1, logits.shape[-1]))


def other_backend(case: Case) -> str:
    """A backend that is not the case's own; `"auto"` takes either."""
    own = case.options.get("backend", "auto")
    return "fast" if own == "reference" or (own == "auto" and case.seed % 2) else "reference"


def check_turn(conversation: Conversation, turn: Turn, name: str) -> None:
    """`generate` by its backend against `score` by the other."""
    case, model = conversation.case, model_of(conversation.case)
    script = script_of(turn, turn.output.actions if case.beams > 1 else None)

    def again(base):
        return replay(model_of(case, base), script, **options_of(conversation, "reference"))

    backend, generated = other_backend(case), logits_of(turn)
    scored = replay(model, script, **options_of(conversation, backend))
    message = f"{name}: generate and score(backend={backend!r})"
    claim_close(case, message, generated, scored, script.running, again, model.base)
    if not case.decoding.keys() & {"num_beams", "do_sample"}:
        new = turn.output.sequences[:, turn.length :]
        claim((generated.argmax(dim=-1) == new)[script.running].all(), "a token that is not the most likely one")
