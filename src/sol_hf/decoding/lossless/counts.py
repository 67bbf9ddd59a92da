# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What came of the drafts of a call."""

from dataclasses import dataclass

from ..outputs import SOLGenerateBeamDecoderOnlyOutput, SOLGenerateDecoderOnlyOutput


@dataclass
class DraftCounts:
    """Sums over a call.

    Args:
        drafted (`int`): Drafted tokens of all rows, as far as the loop came to them.
        taken (`int`): Those that the loop took.
        checks (`int`): Dense forwards over drafts.
        steps (`int`): Dense steps.
        tokens (`int`): Tokens of every row that the loop got logits for, the first of a text not counted.
    """

    drafted: int = 0
    taken: int = 0
    checks: int = 0
    steps: int = 0
    tokens: int = 0

    @property
    def agreement(self) -> float | None:
        """Share of the drafted tokens that were taken; `None` if none was drafted."""
        return self.taken / self.drafted if self.drafted else None

    @property
    def tokens_per_forward(self) -> float | None:
        """Tokens of a row for every dense forward after the prompt; `None` without any."""
        forwards = self.checks + self.steps
        return self.tokens / forwards if forwards else None

    def report(self, output: SOLGenerateDecoderOnlyOutput | SOLGenerateBeamDecoderOnlyOutput) -> None:
        """Write them into the output of a call, which has no beams."""
        assert isinstance(output, SOLGenerateDecoderOnlyOutput), "beams are refused"
        output.agreement, output.checks = self.agreement, self.checks
        output.tokens_per_forward = self.tokens_per_forward
