# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What is the fastest way to decode on this machine: times, bytes and quality of several ways, side by side.

A prompt is processed once for the base and once for our cache. Every run continues a copy of it, in turn with the
others, round after round. Timed are the steps after the first new token, with KV refresh and policy.
"""

import copy
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..costs.compute_costs import ComputeCosts
from ..decoding.options import stored_options
from ..errors import UnsupportedAxisError
from ..modeling_sol import SOLForCausalLM
from .clusters import mean_and_error
from .settings import compare_scores
from .speed import Speed, greedy_call, run_in_turn, speed_of
from .ways import DENSE, LOSSLESS, SAME_TEXT, Way


@dataclass(frozen=True)
class Case:
    """Times after one prompt.

    Args:
        context (`int`): Tokens of the prompt.
        rows (`int`): Texts at once.
        speeds (`tuple` of [`Speed`]): Of every way that could run, the base first.
        over_dense (`dict[str, float]`): By way, the time of dense steps on our cache over its own, a median.
        bytes_share (`dict[str, float]`): By way, bytes that a step reads over those of a dense step, KV refresh and
            policy included; for one row only.
    """

    context: int
    rows: int
    speeds: tuple[Speed, ...]
    over_dense: dict[str, float]
    bytes_share: dict[str, float]


@dataclass(frozen=True)
class Quality:
    """What a way changes on given text, with standard errors over texts.

    Args:
        divergence (`tuple[float, float]`): KL(dense ‖ way) in nats per token.
        loss (`tuple[float, float]`): Change of the loss in nats per token.
        same_token (`float`): Share of steps whose most likely token is that of the base.
    """

    divergence: tuple[float, float]
    loss: tuple[float, float]
    same_token: float


def usable_ways(model: SOLForCausalLM, ways: Sequence[Way]) -> tuple[list[Way], dict[str, str]]:
    """The ways that the base can go, warmed up, and for each of the others the reason.

    Raises:
        ValueError: for a budget that cannot be met.
    """
    usable, refused = [], {}
    for way in ways:
        try:
            if not way.is_base:
                model.warmup(**way.options)
            usable.append(way)
        except UnsupportedAxisError as error:
            refused[way.name] = str(error)
    return usable, refused


class PreparedPrompt:
    """A prompt, processed up to its last token, in a cache of the base's kind and in one of ours."""

    @torch.no_grad()
    def __init__(self, model: SOLForCausalLM, ids: torch.Tensor):
        self.ids, self._ours = ids, model.new_cache()
        self._own = model(ids[:, :-1], use_cache=True, logits_to_keep=1).past_key_values
        model(ids[:, :-1], past_key_values=self._ours, logits_to_keep=1)

    def copy_for(self, way: Way) -> Any:
        """A cache that a run may write to."""
        return copy.deepcopy(self._own if way.is_base else self._ours)


def runs_of(
    model: SOLForCausalLM, ways: Sequence[Way], prompt: PreparedPrompt, new_tokens: int
) -> dict[str, Callable]:
    """Greedy generations after a prompt, by way, for [`run_in_turn`]."""
    call = greedy_call(model, torch.ones_like(prompt.ids), new_tokens)

    def run_of(way: Way) -> Callable:
        generate = model.base.generate if way.is_base else model.generate

        def run(streamer: Any = None) -> Any:
            cache = prompt.copy_for(way)
            return generate(prompt.ids, **way.options, **call, past_key_values=cache, streamer=streamer)

        return run

    return {way.name: run_of(way) for way in ways}


@torch.no_grad()
def measure_case(
    model: SOLForCausalLM, ways: Sequence[Way], ids: torch.Tensor, steps: int, rounds: int, clock: str = "wall"
) -> Case:
    """Time all ways after one prompt.

    Args:
        model ([`SOLForCausalLM`]): Base, and the policy of the ways that have one.
        ways (`Sequence[Way]`): The base first, dense steps on our cache among them.
        ids (`torch.LongTensor` of shape `(rows, context)`): The prompt.
        steps (`int`): Timed steps of a run, whole episodes.
        rounds (`int`): Measured rounds.
        clock (`str`, *optional*, defaults to `"wall"`): One of [`CLOCKS`].
    """
    runs = runs_of(model, ways, PreparedPrompt(model, ids), steps + 1)
    outputs, times = run_in_turn(runs, rounds, clock)
    speeds = tuple(speed_of(way.name, outputs, times, steps + 1, way.calibrated) for way in ways)
    over = {way.name: statistics.median(seconds[DENSE] / seconds[way.name] for seconds in times) for way in ways}
    shares = {} if len(ids) > 1 else dict(_bytes_shares(model, ways, outputs, ids.shape[1]))
    return Case(ids.shape[1], len(ids), speeds, over, shares)


def _bytes_shares(
    model: SOLForCausalLM, ways: Sequence[Way], outputs: dict[str, Any], context: int
) -> Iterator[tuple[str, float]]:
    """Bytes of a step over those of a dense one, by the actions that a run took in whole episodes."""
    length = model.config.episode_length
    for way in ways:
        if way.name == LOSSLESS:
            continue  # depends on the text
        if way.is_dense:
            yield way.name, 1.0
            continue
        stored = stored_options(model.generation_config)
        how = {name: way.options.get(name, stored[name]) for name in ("bits_backend", "kv_refresh")}
        costs = ComputeCosts.of(model, context, **how)
        actions = outputs[way.name].actions.cpu()
        whole = actions[:, : max(1, actions.shape[1] // length) * length].reshape(-1, min(length, actions.shape[1]))
        counted = costs.per_token(whole, way.has_policy)
        yield way.name, counted["bytes_per_token"] / counted["dense_bytes_per_token"]


@torch.no_grad()
def measure_quality(
    model: SOLForCausalLM, ways: Sequence[Way], blocks: torch.Tensor, context: int
) -> dict[str, Quality]:
    """What the ways change on given text, by name; ways that give the base's text are left out.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        ways (`Sequence[Way]`): The ways.
        blocks (`torch.LongTensor` of shape `(blocks, context + steps + 1)`): Text.
        context (`int`): Tokens that are processed densely.
    """
    changed = [way for way in ways if not way.is_dense]
    dense: dict[str, Any] = {axis.name: axis.dense for axis in model.action_space.axes}
    values = torch.empty(len(changed), len(blocks), 3, dtype=torch.float64)
    for place, block in enumerate(blocks):
        wanted = model.score(block[None], context_length=context, return_logits=True, **dense)
        for index, way in enumerate(changed):
            found = model.score(block[None], context_length=context, return_logits=True, **way.options)
            values[index, place] = compare_scores(wanted, found)[0].mean(dim=0)
    qualities = {}
    for way, own in zip(changed, values, strict=True):
        mean, error = mean_and_error(own.numpy(), None)
        kl, loss = (float(mean[0]), float(error[0])), (float(mean[1]), float(error[1]))
        qualities[way.name] = Quality(kl, loss, float(mean[2]))
    return qualities


def fastest(case: Case, qualities: dict[str, Quality], most_divergence: float) -> Speed:
    """The fastest way in a case, of those whose KL(dense ‖ way) is known to be at most `most_divergence`.

    A way whose quality was not measured counts only by the loss that its calibration says.
    """

    def allowed(speed: Speed) -> bool:
        if speed.name in SAME_TEXT:
            return True
        if speed.name in qualities:
            return qualities[speed.name].divergence[0] <= most_divergence
        return speed.expected_loss is not None and speed.expected_loss <= most_divergence

    return max(filter(allowed, case.speeds), key=lambda speed: speed.speed_up)
