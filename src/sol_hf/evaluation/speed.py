# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a model gains here: tokens per second of the base, of dense steps by the fast paths, and of budgets.

Every variant continues the same prompt in turn, round after round, so that other programs on the machine disturb all
of them alike. The time of a round is from its first new token to its last: decode steps and KV refreshes, without the
prompt. A round before the measured ones compiles kernels and makes copies of weights.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from ..budget.budget import Budget
from ..budget.calibration import NET_KEEP, table_in, unit_of
from ..controllers.base import Controller
from ..decoding.options import stored_options
from ..modeling_sol import SOLForCausalLM


BASE, DENSE = "base", "dense, fast paths"


CLOCKS: dict[str, Callable[[], float]] = {
    "wall": lambda: time.perf_counter(),
    "cpu": lambda: time.process_time(),
}
"""Times that a [`Stopwatch`] can note: that on the clock, and the processor time of all threads of this process."""


class Stopwatch(BaseStreamer):
    """Notes when each token comes; the first that comes is the prompt.

    Args:
        clock (`str`, *optional*, defaults to `"wall"`): One of [`CLOCKS`].
    """

    def __init__(self, clock: str = "wall") -> None:
        self.times: list[float] = []
        self._read = CLOCKS[clock]

    def put(self, value: torch.Tensor) -> None:
        self.times.append(self._read())

    def end(self) -> None:
        pass

    @property
    def seconds(self) -> float:
        """From the first new token to the last."""
        return self.times[-1] - self.times[1]


@dataclass(frozen=True)
class Speed:
    """One variant in a [`SpeedReport`].

    Args:
        name (`str`): `"base"`, `"dense, fast paths"`, or the budget.
        tokens_per_second (`tuple[float, ...]`): Of every round, over all rows.
        speed_up (`float`): Median over rounds of the time of the base over the time of this variant.
        same_tokens (`float`): Share of the new tokens of a row before it differs from the base's, mean over rows.
        realised (`tuple[float, ...]`, *optional*): What was spent on the axes of the action space, mean over rows.
        expected_loss (`float`, *optional*): Nats per token above dense, from the calibration table.
    """

    name: str
    tokens_per_second: tuple[float, ...]
    speed_up: float
    same_tokens: float
    realised: tuple[float, ...] | None = None
    expected_loss: float | None = None

    @property
    def median(self) -> float:
        """Median of the rounds, in tokens per second."""
        return statistics.median(self.tokens_per_second)

    @property
    def spread(self) -> tuple[float, float]:
        """Slowest and fastest round, in tokens per second."""
        return min(self.tokens_per_second), max(self.tokens_per_second)


@dataclass(frozen=True)
class SpeedReport:
    """What [`measure_speed`] has found; printed, it is a table.

    Args:
        rows (`tuple[Speed, ...]`): The base, dense steps by the fast paths, and the budgets in their order.
        setting (`str`): Rows, tokens, rounds, dtype, device and threads.
    """

    rows: tuple[Speed, ...]
    setting: str

    def __str__(self) -> str:
        lines = ["variant                         tokens/s    (rounds)  speed-up  same text  loss (nats)  realised"]
        for row in self.rows:
            low, high = row.spread
            loss = "–" if row.expected_loss is None else f"{row.expected_loss:+.3f}"
            spent = "" if row.realised is None else "(" + ", ".join(f"{value:.3g}" for value in row.realised) + ")"
            lines.append(
                f"{row.name:<30} {row.median:>9.1f} {f'{low:.1f}–{high:.1f}':>11} {row.speed_up:>9.2f} "
                f"{row.same_tokens:>10.0%} {loss:>12}  {spent}".rstrip()
            )
        return "\n".join([*lines, self.setting])


@torch.no_grad()
def measure_speed(
    model: SOLForCausalLM,
    input_ids: torch.LongTensor,
    budgets: Sequence[float | Budget] = (),
    *,
    attention_mask: torch.Tensor | None = None,
    new_tokens: int = 64,
    repeats: int = 3,
    controller: Callable[[], Controller] | None = None,
    **options: Any,
) -> SpeedReport:
    """Measure greedy decoding of a prompt by the base alone, densely by the fast paths, and under budgets.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        input_ids (`torch.LongTensor` of shape `(rows, length)`): The prompt.
        budgets (`Sequence` of `float` or [`Budget`], *optional*): Budgets, or numbers as for
            `generate(compute=...)`, which need a calibration table.
        attention_mask (`torch.Tensor` of shape `(rows, length)`, *optional*): 0 marks left padding.
        new_tokens (`int`, *optional*, defaults to 64): Tokens per row and round, at least 2.
        repeats (`int`, *optional*, defaults to 3): Measured rounds.
        controller (`Callable`, *optional*): Makes the controller of the budgets; the policy by default.
        options: Further options of [`SOLForCausalLM.generate`] for the budgets, such as `backend`, or `compute_unit`
            for those that are numbers.

    Returns:
        [`SpeedReport`]

    Raises:
        ValueError: for fewer than 2 tokens or 1 repeat, or a budget that cannot be met.

    Examples:

    ```python
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from sol_hf import Budget, SOLForCausalLM, measure_speed
    >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=99)
    >>> model = SOLForCausalLM.from_base(LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0)))
    >>> report = measure_speed(model, torch.ones(1, 9, dtype=torch.long), [Budget(bits=8)], new_tokens=3, repeats=1)
    >>> [row.name for row in report.rows]
    ['base', 'dense, fast paths', 'Budget(bits=8)']
    ```
    """
    if new_tokens < 2 or repeats < 1:
        raise ValueError(f"`new_tokens` must be at least 2 and `repeats` 1, got {new_tokens} and {repeats}.")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    chosen = options | greedy_call(model, mask, new_tokens)
    if controller is not None:
        chosen["controller"] = controller()
    variants = _dense_variants(model, input_ids, mask, new_tokens)
    unit = chosen.pop("compute_unit", None) or stored_options(model.generation_config)["compute_unit"]
    unit = unit or model.config.compute_unit
    for budget in budgets:
        dial = {"compute": budget, "compute_unit": unit}
        target: dict[str, Any] = {"budget": budget} if isinstance(budget, Budget) else dial
        variants[_name(budget, unit)] = functools.partial(model.generate, input_ids, **target, **chosen)
    losses = {DENSE: 0.0} | {_name(rate, unit): loss for rate, loss in _losses(model, budgets, unit)}
    outputs, rounds = run_in_turn(variants, repeats)
    rows = tuple(speed_of(name, outputs, rounds, new_tokens, losses.get(name)) for name in outputs)
    return SpeedReport(rows, _setting(model, input_ids, new_tokens, repeats))


def speed_of(
    name: str, outputs: dict[str, Any], rounds: list[dict[str, float]], new_tokens: int, loss: float | None
) -> Speed:
    """What was measured of one variant; see [`run_in_turn`]."""
    realised = getattr(outputs[name], "realised", None)
    found, expected = (outputs[variant].sequences[:, -new_tokens:] for variant in (name, BASE))
    count = len(found) * (new_tokens - 1)
    return Speed(
        name=name,
        tokens_per_second=tuple(count / seconds[name] for seconds in rounds),
        speed_up=statistics.median(seconds[BASE] / seconds[name] for seconds in rounds),
        same_tokens=float((found == expected).cumprod(dim=1).double().mean()),
        realised=None if realised is None else tuple(realised.double().mean(dim=0).tolist()),
        expected_loss=loss,
    )


def _name(budget: float | Budget, unit: str | None) -> str:
    if isinstance(budget, Budget):
        return repr(budget)
    return f"compute={budget:g}" if unit in (None, NET_KEEP) else f"compute={budget:g} of {unit}"


def greedy_call(model: SOLForCausalLM, mask: torch.Tensor, new_tokens: int) -> dict[str, Any]:
    """Arguments of every call of `generate`."""
    pads = (model.generation_config.pad_token_id, model.base.config.pad_token_id, 0)
    call = dict(attention_mask=mask, do_sample=False, num_beams=1, return_dict_in_generate=True)
    call |= exactly(model, new_tokens)
    return call | {"pad_token_id": next(pad for pad in pads if pad is not None)}


def exactly(model: SOLForCausalLM, new_tokens: int) -> dict[str, int]:
    """Arguments of a `generate` that makes `new_tokens` tokens.

    Its end token is one that the vocabulary does not have. With `min_new_tokens`, transformers would look for the end
    token in the whole vocabulary at every step, which takes as long as a part of a layer.
    """
    embeddings = model.base.get_input_embeddings().weight
    assert isinstance(embeddings, torch.Tensor)
    return dict(max_new_tokens=new_tokens, eos_token_id=len(embeddings))


def _dense_variants(
    model: SOLForCausalLM, input_ids: torch.Tensor, mask: torch.Tensor, new_tokens: int
) -> dict[str, Callable]:
    """The base, and dense steps by the fast paths; a stored budget enters neither."""
    call, dense = greedy_call(model, mask, new_tokens), {axis.name: axis.dense for axis in model.action_space.axes}
    return {
        BASE: functools.partial(model.base.generate, input_ids, **call),
        DENSE: functools.partial(model.generate, input_ids, budget=Budget.of(dense), backend="fast", **call),
    }


def _losses(
    model: SOLForCausalLM, budgets: Sequence[float | Budget], unit: str | None
) -> Iterator[tuple[float, float]]:
    """Numbers of `compute` and what they cost, if the model has a calibration table with a dense row."""
    table = table_in(unit, model.config.calibration)
    if table is None or table[-1][unit_of(table[-1])] < 1:
        return
    for rate in budgets:
        if not isinstance(rate, Budget):
            loss = model.config.expected_loss(rate, unit)
            assert isinstance(loss, float), "one rate has one loss"
            yield rate, loss


def run_in_turn(
    variants: dict[str, Callable], repeats: int, clock: str = "wall"
) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """The output of every variant, and the seconds of every variant in every measured round.

    Args:
        variants (`dict[str, Callable]`): Generations by name; each takes a `streamer`.
        repeats (`int`): Measured rounds, after one that compiles kernels and makes copies of weights.
        clock (`str`, *optional*, defaults to `"wall"`): One of [`CLOCKS`].
    """
    first = {name: generate() for name, generate in reversed(variants.items())}  # a wrong budget fails at once
    outputs, rounds = {name: first[name] for name in variants}, []
    for _ in range(repeats):
        seconds = {}
        for name, generate in variants.items():
            watch = Stopwatch(clock)
            generate(streamer=watch)
            seconds[name] = watch.seconds
        rounds.append(seconds)
    return outputs, rounds


def _setting(model: SOLForCausalLM, input_ids: torch.Tensor, new_tokens: int, repeats: int) -> str:
    weight = model.base.get_input_embeddings().weight
    rows, length = input_ids.shape
    threads = f", {torch.get_num_threads()} threads" if input_ids.device.type == "cpu" else ""
    tokens = f"{rows} x {length} tokens of prompt, {new_tokens} new ones, {repeats} rounds in turn"
    dtype = str(weight.dtype).removeprefix("torch.")
    return f"{tokens}; {dtype} on {input_ids.device}{threads}. The prompt's own time is left out."
