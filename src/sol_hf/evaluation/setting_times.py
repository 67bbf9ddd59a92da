# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What settings take: processor time of decode steps over that of our own dense steps.

Dense steps by the fast paths are the measure, not the base's own `generate`: what our cache and kernels gain is not
gained by a setting. All of them continue the same prompt in turn, round after round, so that other programs on the
machine disturb all alike; the result is the median of the quotients within a round. The steps after the first new
token are timed, one episode of them, with its KV refresh. The prompt is not.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..budget.axes import AXES
from ..budget.budget import Budget
from ..controllers.fixed import FixedController
from ..modeling_sol import SOLForCausalLM
from .speed import Stopwatch, exactly


def call_under(setting: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    """The arguments of a call in which every step has the levels of a setting.

    A setting without levels, such as a `kv_dtype` alone, has dense steps and needs no controller.

    Args:
        setting (`Mapping[str, Any]`): Levels of axes, options of a call, and fields of a config.
        options (`Sequence[str]`): Names of the entries that are options of a call. `kv_dtype` is both.
    """
    call = {name: value for name, value in setting.items() if name in AXES or name in (*options, "kv_dtype")}
    return call | {"controller": FixedController()} if set(AXES) & set(setting) else call


def time_shares(
    models: Sequence[SOLForCausalLM],
    settings: Sequence[Mapping[str, Any]],
    prompt: torch.Tensor,
    options: Sequence[str],
    rounds: int,
) -> list[float]:
    """The time of a step under each setting over that of our own dense step.

    Args:
        models (`Sequence[SOLForCausalLM]`): One for each setting, over the same base.
        settings (`Sequence[Mapping[str, Any]]`): Levels of axes, and options of a call.
        prompt (`torch.LongTensor` of shape `(1, length)`): The prompt.
        options (`Sequence[str]`): Names of the entries that are options of a call.
        rounds (`int`): Measured rounds; one before them compiles kernels and makes copies of weights.
    """
    steps = models[0].config.episode_length + 1
    call: dict[str, Any] = dict(attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0)
    call |= exactly(models[0], steps)
    dense = Budget.of({axis.name: axis.dense for axis in models[0].action_space.axes})

    def of_setting(model: SOLForCausalLM, setting: Mapping[str, Any]) -> Callable[[Stopwatch], Any]:
        chosen = call_under(setting, options)
        return lambda watch: model.generate(prompt, **chosen, **call, streamer=watch)

    def of_dense(watch: Stopwatch) -> Any:
        controller = FixedController()
        return models[0].generate(prompt, budget=dense, backend="fast", controller=controller, **call, streamer=watch)

    variants = [of_dense, *(of_setting(*pair) for pair in zip(models, settings, strict=True))]
    seconds = []
    for _ in range(1 + rounds):
        watches = [Stopwatch("cpu") for _ in variants]
        for variant, watch in zip(variants, watches, strict=True):
            variant(watch)
        seconds.append([watch.seconds for watch in watches])
    return [statistics.median(own / first for first, own in columns) for columns in _pairs(seconds[1:])]


def _pairs(seconds: Sequence[Sequence[float]]) -> list[list[tuple[float, float]]]:
    """For every setting, the times of dense steps and its own, round by round."""
    return [[(line[0], line[column]) for line in seconds] for column in range(1, len(seconds[0]))]
