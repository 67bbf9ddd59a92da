# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a setting costs without a policy: all steps at one level, compared with the base itself on the same text.

A setting is a criterion, its options, and one level per axis. It says what can be had from a choice of what to read.
What a policy adds by choosing levels from step to step is measured by sweeps, see `docs/pareto.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..budget.axes import AXES
from ..configuration_sol import SOLConfig
from ..costs.compute_costs import ComputeCosts
from ..decoding.outputs import SOLScoreOutput
from ..modeling_sol import SOLForCausalLM
from .clusters import mean_and_error
from .setting_times import call_under, time_shares


OPTIONS = ("kv_refresh", "backend", "bits_backend")
"""Entries of a setting that are options of a call, not fields of the config or levels of axes."""


@dataclass(frozen=True)
class SettingQuality:
    """What a setting costs, with standard errors over blocks.

    Args:
        setting (`dict`): Fields of the config, levels of axes and options.
        divergence (`tuple[float, float]`): KL(dense ‖ setting) in nats per token, and its error.
        loss (`tuple[float, float]`): Change of the loss of the text in nats per token, and its error.
        same_token (`float`): Share of the steps whose most likely token is that of the base.
        bytes_share (`float`): Bytes that a step reads over those of a dense step, in the middle of an episode after
            the shortest context, the index of the criterion included; no KV refresh, no policy.
        time_share (`float`, *optional*): Processor time of a step over that of our own dense step, see
            [`time_shares`]; KV refresh included, no policy. `None` if it was not measured.
    """

    setting: dict[str, Any]
    divergence: tuple[float, float]
    loss: tuple[float, float]
    same_token: float
    bytes_share: float
    time_share: float | None = None


def model_with(base: PreTrainedModel, setting: Mapping[str, Any], episode_length: int) -> SOLForCausalLM:
    """A model whose action space has the levels of a setting and the dense ones."""
    fields = {name: value for name, value in setting.items() if name not in AXES and name not in OPTIONS}
    for name, axis in AXES.items():
        dense = int(axis.dense) if axis.is_integral else axis.dense
        if name in setting or name in ("token_keep", "mlp_keep", "bits"):
            fields[name] = sorted({setting.get(name, dense), dense})
    sizes = dict(policy_hidden_size=4, policy_num_heads=1, action_embedding_size=1)  # it is not used
    return SOLForCausalLM.from_base(base, SOLConfig(**sizes, episode_length=episode_length, **fields))


def measure_settings(
    base: PreTrainedModel,
    settings: Sequence[Mapping[str, Any]],
    blocks: torch.LongTensor,
    contexts: Sequence[int],
    episode_length: int = 16,
    documents: Sequence[int] | None = None,
    timed_rounds: int = 0,
) -> list[SettingQuality]:
    """Measure settings on the same text.

    Args:
        base (`PreTrainedModel`): The base.
        settings (`Sequence[Mapping[str, Any]]`): Of each setting, fields of [`SOLConfig`], a level of every axis that
            is not dense, and `kv_refresh`, `backend` and `bits_backend`.
        blocks (`torch.LongTensor` of shape `(blocks, length)`): Text: context, episode and one more token.
        contexts (`Sequence[int]`): Tokens of the context. The blocks take them in turn, so that episodes begin at
            different places of a page.
        episode_length (`int`, *optional*, defaults to 16): Steps of a block.
        documents (`Sequence[int]`, *optional*): The document of every block, for standard errors.
        timed_rounds (`int`, *optional*, defaults to 0): Rounds in which steps are timed after the shortest context of
            the first block; 0 for none.

    Raises:
        ValueError: if the blocks are too short, or a setting is not allowed.
    """
    needed = max(contexts) + episode_length + 1
    if blocks.shape[1] < needed:
        raise ValueError(f"Blocks need {needed} tokens: context, episode and one more, got {blocks.shape[1]}.")
    models = [model_with(base, setting, episode_length) for setting in settings]
    columns = compare(models, settings, blocks, contexts, episode_length).mean(dim=2)
    times: list[float] | list[None] = [None] * len(models)
    if timed_rounds:
        prompt = blocks[:1, : min(contexts)].to(models[0].device)
        times = time_shares(models, settings, prompt, OPTIONS, timed_rounds)
    result = []
    for model, setting, values, seconds in zip(models, settings, columns, times, strict=True):
        mean, error = mean_and_error(values.numpy(), documents)
        result.append(
            SettingQuality(
                dict(setting),
                divergence=(float(mean[0]), float(error[0])),
                loss=(float(mean[1]), float(error[1])),
                same_token=float(mean[2]),
                bytes_share=_bytes_share(model, setting, min(contexts)),
                time_share=seconds,
            )
        )
    return result


def compare(
    models: Sequence[SOLForCausalLM],
    settings: Sequence[Mapping[str, Any]],
    blocks: torch.LongTensor,
    contexts: Sequence[int],
    steps: int,
    batch_size: int = 1,
) -> torch.Tensor:
    """Run every block under every setting, and compare every step with the base.

    Args:
        models (`Sequence[SOLForCausalLM]`): One per setting, see [`model_with`].
        settings (`Sequence[Mapping[str, Any]]`): See [`measure_settings`].
        blocks (`torch.LongTensor` of shape `(blocks, length)`): Text.
        contexts (`Sequence[int]`): Tokens of the context; the blocks take them in turn.
        steps (`int`): Steps after the context.
        batch_size (`int`, *optional*, defaults to 1): Blocks that run together.

    Returns:
        `torch.Tensor` of shape `(settings, blocks, steps, 3)`: KL, change of the loss, and whether the most likely
        token is the same.
    """
    columns = torch.empty(len(settings), len(blocks), steps, 3, dtype=torch.float64)
    for turn, context in enumerate(contexts):
        for rows in torch.arange(turn, len(blocks), len(contexts)).split(batch_size):
            text: Any = blocks[rows, : context + steps + 1].to(models[0].device)
            dense = models[0].score(text, context_length=context, return_logits=True)
            for index, (model, setting) in enumerate(zip(models, settings, strict=True)):
                call = call_under(setting, OPTIONS)
                output = model.score(text, context_length=context, return_logits=True, **call)
                columns[index, rows] = compare_scores(dense, output)
    return columns


def compare_scores(dense: SOLScoreOutput, output: SOLScoreOutput) -> torch.Tensor:
    """KL, change of the loss, and whether tokens are equal, of every step, `(rows, steps, 3)`."""
    assert dense.logits is not None and output.logits is not None, "they are asked for"
    divergence, same = [], []
    for wanted, got in zip(dense.logits, output.logits, strict=True):
        wanted, got = wanted.double().log_softmax(dim=-1), got.double().log_softmax(dim=-1)
        divergence.append((wanted.exp() * (wanted - got)).sum(dim=-1))
        same.append((wanted.argmax(dim=-1) == got.argmax(dim=-1)).double())
    assert dense.logprobs is not None and output.logprobs is not None, "scores have them"
    loss = dense.logprobs.double() - output.logprobs.double()
    return torch.stack([torch.stack(divergence), loss, torch.stack(same)], dim=-1).cpu()


def _bytes_share(model: SOLForCausalLM, setting: Mapping[str, Any], context: int) -> float:
    space, costs = model.action_space, ComputeCosts.of(model, context, setting.get("bits_backend", "fake"))
    wanted = tuple(float(setting.get(axis.name, axis.dense)) for axis in space.axes)
    action = [tuple(map(float, values)) for values in space.table].index(wanted)
    return float(costs.bytes[action]) / costs.dense_bytes


def settings_table(results: Sequence[SettingQuality]) -> str:
    """The results as a table in Markdown."""
    timed = all(result.time_share is not None for result in results)
    head, line = ("| setting | bytes | time |", "|---|---|---|") if timed else ("| setting | bytes |", "|---|---|")
    lines = [f"{head} KL | change of the loss | same token |", f"{line}---|---|---|"]
    for result in results:
        name = ", ".join(f"{key} {value}" for key, value in result.setting.items())
        divergence, loss = result.divergence, result.loss
        taken = f" {result.time_share:.2f} |" if timed else ""
        lines.append(
            f"| {name} | {result.bytes_share:.3f} |{taken} {divergence[0]:.4f} ± {divergence[1]:.4f} | "
            f"{loss[0]:+.4f} ± {loss[1]:.4f} | {result.same_token:.3f} |"
        )
    return "\n".join(lines)
