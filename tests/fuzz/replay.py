# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Scores the text of a turn again under the actions that were executed."""

from dataclasses import dataclass

import torch

from fuzz.conversation import Turn
from sol_hf import ScheduleController, SOLForCausalLM


@dataclass(frozen=True)
class Script:
    """Text and actions of a turn, from the first step of its first episode on.

    Args:
        tokens (`torch.LongTensor` of shape `(rows, length)`): The whole text.
        mask (`torch.LongTensor` of shape `(rows, length)`): 1 for real tokens, 0 also after a row's end.
        context (`torch.LongTensor` of shape `(rows,)`): Real tokens before the first step.
        actions (`torch.LongTensor` of shape `(steps, rows)`): Executed actions.
        skipped (`int`): Steps of earlier calls among them.
        running (`torch.BoolTensor` of shape `(rows, new)`): The steps of the turn that each row has.
    """

    tokens: torch.Tensor
    mask: torch.Tensor
    context: torch.Tensor
    actions: torch.Tensor
    skipped: int
    running: torch.Tensor

    def of_row(self, row: int) -> "Script":
        """The script of one row alone, without padding."""
        real = self.mask[row].bool()
        steps = self.skipped + int(self.running[row].sum())
        return Script(
            tokens=self.tokens[row : row + 1, real],
            mask=self.mask[row : row + 1, real],
            context=self.context[row : row + 1],
            actions=self.actions[:steps, row : row + 1],
            skipped=self.skipped,
            running=self.running[row : row + 1, : steps - self.skipped],
        )


def script_of(turn: Turn, actions: torch.Tensor | None = None) -> Script:
    """The script of a turn.

    Args:
        turn ([`Turn`]): Finished.
        actions (`torch.LongTensor` of shape `(rows, new)`, *optional*): The actions, for beams, whose rows moved.
    """
    running = turn.output.actions >= 0
    executed = [action for action, _ in turn.earlier + turn.trace]
    if actions is not None:
        executed = list(actions.clamp(min=0).T)
    mask = torch.cat([turn.mask, running.long()], dim=1)
    return Script(
        tokens=turn.output.sequences,
        mask=mask,
        context=turn.steps_from - turn.padding,
        actions=torch.stack(executed[: len(turn.earlier) + running.shape[1]]),
        skipped=len(turn.earlier),
        running=running,
    )


def replay(model: SOLForCausalLM, script: Script, **options) -> torch.Tensor:
    """Logits `(rows, new, vocab)` of the turn of a script, scored under its actions; 0 where a row had ended."""
    output = model.score(
        script.tokens,
        attention_mask=script.mask,
        context_length=script.context,
        controller=ScheduleController(script.actions),
        return_logits=True,
        **options,
    )
    logits = output.logits[:, script.skipped :]
    missing = script.running.shape[1] - logits.shape[1]
    if missing:
        logits = torch.cat([logits, logits.new_zeros(len(logits), missing, logits.shape[-1])], dim=1)
    return logits
