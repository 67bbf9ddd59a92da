# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decoding ahead of transformers' loop: drafts under a budget, and dense forwards that check them.

The loop asks a forward for the logits after one token x of every row.

    nothing is ahead      d1 .. dg are drafted by cheap steps; one dense forward over x d1 .. dg gives g + 1 logits,
                          of which the loop gets the first
    its token is d1       it gets the next ones at once, and so on
    it is another token   what is ahead is dropped, and a new draft begins there

So all logits that leave the model are dense. A drafted token is taken if the loop itself takes it, by its own
processors, random numbers and criteria. Where drafts do not pay, there are dense steps: see [`Pace`].
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from ...cache.episode import Episode
from ...execution.plan import RefreshPlan, StepPlan
from ..base_forward import logits_digest, processed_densely
from ..forward_inputs import ForwardInputs
from ..row_ends import RowEnds
from ..session import DecodingSession
from ..step import dense_part, run_planned
from . import pace
from .ahead import Ahead, ahead_of
from .counts import DraftCounts
from .drafts import DraftSteps
from .known_rows import KnownRows
from .pace import Pace
from .proposals import KNOWN, Proposals
from .reach import Reach


@dataclass(eq=False)
class LookAhead:
    """Processes the forwards of one call of `generate(lossless=True)`.

    Args:
        steps ([`DraftSteps`]): Runs the steps of drafts.
        pace_of (`Callable`): The [`Pace`] of a call, by its rows and the length of its prompt.
        reach ([`Reach`]): How far ahead the base allows to process.
        row_ends ([`RowEnds`]): Which rows have ended.
        proposals ([`Proposals`]): What the loop is expected to take.
    """

    steps: DraftSteps
    pace_of: Callable[[int, int], Pace]
    reach: Reach
    row_ends: RowEnds
    proposals: Proposals = field(default_factory=Proposals)
    counts: DraftCounts = field(default_factory=DraftCounts, init=False)
    _ahead: Ahead | None = field(default=None, init=False, repr=False)
    _known: KnownRows | None = field(default=None, init=False, repr=False)
    _pace: Pace | None = field(default=None, init=False, repr=False)
    _forwards: int = field(default=0, init=False, repr=False)
    _is_begun: bool = field(default=False, init=False, repr=False)

    def __call__(self, session: DecodingSession, inputs: ForwardInputs, all_logits: bool) -> CausalLMOutputWithPast:
        """Process the tokens of a forward of the loop.

        Args:
            session ([`DecodingSession`]): The running call.
            inputs ([`ForwardInputs`]): Its tokens and arguments.
            all_logits (`bool`): Whether logits of all tokens are wanted, or of the last only.
        """
        self._forwards, self._known = self._forwards + 1, None
        is_text = inputs.length == 1 and self._is_begun and not session.is_recomputing
        if is_text and self._ahead is not None:
            found = self._taken_as_drafted(session, inputs)
            if found is not None:
                return found
        self._drop()
        if not is_text or inputs.asks_for_more or inputs.tokens.is_floating_point() or session.cache.episode.length:
            is_step = self._is_step(session, inputs)
            self._is_begun, session.is_recomputing = True, False
            return self._dense_step(session, inputs) if is_step else dense_part(session, inputs, all_logits)
        self.counts.tokens += 1
        self._pace = self._pace or self.pace_of(len(inputs.tokens), session.cache.get_seq_length())
        most = self.pace.begin(self._most(session), self.proposals.left())
        return self._look_ahead(session, inputs, most) if most else self._dense_step(session, inputs)

    def _is_step(self, session: DecodingSession, inputs: ForwardInputs) -> bool:
        """Whether a prompt is one token after those of a cache in which nothing is to be refreshed: a dense step."""
        if self._is_begun or session.is_recomputing or inputs.length != 1 or inputs.tokens.is_floating_point():
            return False
        cache = session.cache
        return cache.get_seq_length() > 0 and not cache.episode.length and not inputs.asks_for_more

    @property
    def processed(self) -> int:
        """Forwards of the call so far, each of which has given the logits of one new token."""
        return self._forwards

    def note_text(self, text: torch.Tensor) -> None:
        """Take note of all tokens `(rows, length)` that the loop has, before a forward."""
        self.proposals.text = text

    def note_settings(self, processors: Iterable[Any], config: GenerationConfig) -> None:
        """Take note of the settings of a loop that begins."""
        self.proposals.observe(processors, config)

    @property
    def pace(self) -> Pace:
        """How many tokens are drafted; known from the first token after the prompt on."""
        assert self._pace is not None, "there is one once a token follows the prompt"
        return self._pace

    def _most(self, session: DecodingSession) -> int:
        """Tokens that it makes sense to draft, at most."""
        left, length = self.proposals.left(), session.cache.get_seq_length()
        most = self.reach.ahead_of(length)
        return most if left is None else min(most, left - 1)

    def _taken_as_drafted(self, session: DecodingSession, inputs: ForwardInputs) -> CausalLMOutputWithPast | None:
        """The logits after a token that was drafted, `None` if it is another one in some row."""
        ahead = self._ahead
        assert ahead is not None, "asked for only if something is ahead"
        taken = ahead.follows(inputs)
        if taken is None:
            return None
        running = [row for row, gap in enumerate(ahead.gaps[ahead.used]) if gap != KNOWN]
        self.counts.drafted += len(running)
        for row in running:
            is_taken = bool(taken[row])
            self.counts.taken += is_taken
            self.pace.agreement.record(ahead.gaps[ahead.used][row], is_taken)
        if not bool(taken.all()):
            self.counts.drafted += sum(gap != KNOWN for gaps in ahead.gaps[ahead.used + 1 :] for gap in gaps)
            self._known = KnownRows.of(ahead, taken)
            return None
        self.counts.tokens += 1
        logits, hidden = ahead.give_next(session.cache)
        output = CausalLMOutputWithPast(logits=logits, past_key_values=session.cache)
        session.cache.end_episode(hidden, inputs.tokens, logits_digest(session, output))
        return output

    def _drop(self) -> None:
        """Forget what is ahead; the text goes on in another way, or it is used up."""
        if self._ahead is not None:
            self.pace.settle(1 + self._ahead.used, self._ahead.seconds)
        self._ahead = None

    def _dense_step(self, session: DecodingSession, inputs: ForwardInputs) -> CausalLMOutputWithPast:
        begin = pace.read_clock()
        controls = session.require_controls()
        plan = StepPlan(session.cache, controls.rule, {}, controls.backend, controls.bits_backend, session.parts)
        is_new = self.counts.steps % controls.episode_length == 0
        output, hidden = run_planned(session, inputs, plan, is_new)
        session.cache.end_episode(hidden, inputs.tokens, logits_digest(session, output))
        if self._pace is not None:  # the token of a prompt does not count
            self.counts.steps += 1
            self.pace.note_tokens(1)
            self.pace.costs.note_dense(now(inputs) - begin)
        return output

    def _look_ahead(self, session: DecodingSession, inputs: ForwardInputs, most: int) -> CausalLMOutputWithPast:
        """Draft at most `most` tokens and check them."""
        begin = pace.read_clock()
        parts, gaps = self._draft(session, inputs, most)
        middle = pace.read_clock()
        whole = parts[-1].after(*parts[:-1])
        ahead = self._check(session, whole, gaps)
        end = now(inputs)
        ahead.seconds = end - begin
        self.pace.note_draft(middle - begin, len(gaps), end - middle)
        self.counts.checks += 1
        self._ahead = ahead
        output = CausalLMOutputWithPast(logits=ahead.logits[:, :1], past_key_values=session.cache)
        session.cache.end_episode(ahead.hidden[:, 0], inputs.tokens, logits_digest(session, output))
        return output

    def _draft(
        self, session: DecodingSession, inputs: ForwardInputs, most: int
    ) -> tuple[list[ForwardInputs], list[list[float]]]:
        """Inputs of the token of `inputs` and of those that are drafted after it, and the gap of each of these."""
        cache, parts, gaps, chance = session.cache, [inputs], list[list[float]](), 1.0
        text = cache.episode
        cache.episode = Episode(text.hidden_state, token_before=text.token_before, logits_digest=text.logits_digest)
        cache.ledger.start_episode()
        draw, (known, self._known) = self.proposals.begin(inputs.tokens, self.row_ends.so_far), (self._known, None)
        for number in range(1, most + 1):
            logits = self.steps(session, parts[-1], is_first=number == 1)
            if known is None:
                proposal = draw(logits)
            else:
                proposal = draw(known.in_place_of(logits), known.rows)
                known = known.after(proposal.tokens.to(logits.device))
            gaps.append(proposal.gaps.tolist())
            parts.append(ahead_of(inputs, proposal.tokens[:, None].to(inputs.tokens.device), number))
            chance *= math.prod(map(self.pace.agreement.probability, gaps[-1]))
            if bool(draw.ended.all()) or not self.pace.goes_on(number, chance):
                break
        cache.drop_tokens(len(gaps))
        cache.episode = text
        return parts, gaps

    def _check(self, session: DecodingSession, whole: ForwardInputs, gaps: list[list[float]]) -> Ahead:
        """A dense forward over tokens, of which the cache keeps the first."""
        controls, number = session.require_controls(), whole.length
        plan = RefreshPlan(session.cache, controls.backend, parts=session.parts)
        output, hidden = processed_densely(session, whole, number, plan)
        ahead = Ahead(whole.tokens[:, 1:], gaps, output.logits, hidden[:, -number:], whole.along)
        ahead.take_from(session.cache)
        return ahead


def now(inputs: ForwardInputs) -> float:
    """The time in seconds at which everything is computed that was asked of the device of these inputs."""
    if inputs.tokens.device.type != "cpu":
        torch.get_device_module(inputs.tokens.device).synchronize(inputs.tokens.device)
    return pace.read_clock()
