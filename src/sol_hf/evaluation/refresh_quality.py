# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the KV refresh is worth under a setting: the same text with it, without it, and by the rule of `"auto"`.

context, dense | first episode | second | third | ...          compared with the base from the second episode on:
                                                                a refresh changes nothing before
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from ..decoding.refresh_rule import LEAST_GAIN, expected_gain
from ..execution.spending import space_under
from ..modeling_sol import SOLForCausalLM
from .clusters import mean_and_error
from .settings import compare, model_with


@dataclass(frozen=True)
class RefreshQuality:
    """KL(dense ‖ setting) in nats per token after the first episode; means over blocks and their standard errors.

    Args:
        setting (`dict`): Fields of the config, levels of axes and options.
        refreshed (`tuple[float, float]`): With the refresh.
        added (`tuple[float, float]`): What leaving it out adds, paired by block.
        by_episode (`tuple[float, ...]`): The same in each episode but the first.
        expected (`float`): What the rule of `kv_refresh="auto"` expects it to add.
    """

    setting: dict[str, Any]
    refreshed: tuple[float, float]
    added: tuple[float, float]
    by_episode: tuple[float, ...]
    expected: float


def measure_refresh(
    base: PreTrainedModel,
    settings: Sequence[Mapping[str, Any]],
    blocks: torch.LongTensor,
    contexts: Sequence[int],
    episodes: int,
    episode_length: int = 16,
    documents: Sequence[int] | None = None,
    batch_size: int = 1,
) -> list[RefreshQuality]:
    """Measure what the KV refresh is worth under settings, on the same text.

    Args:
        base (`PreTrainedModel`): The base.
        settings (`Sequence[Mapping[str, Any]]`): See [`measure_settings`]; without `kv_refresh`.
        blocks (`torch.LongTensor` of shape `(blocks, length)`): Text: context, episodes and one more token.
        contexts (`Sequence[int]`): Tokens of the context. The blocks take them in turn.
        episodes (`int`): Episodes of a block, two or more.
        episode_length (`int`, *optional*, defaults to 16): Steps of an episode.
        documents (`Sequence[int]`, *optional*): The document of every block, for standard errors.
        batch_size (`int`, *optional*, defaults to 1): Blocks that run together.

    Raises:
        ValueError: for fewer than two episodes, blocks that are too short, or a setting that is not allowed.
    """
    steps = episodes * episode_length
    if episodes < 2:
        raise ValueError(f"A refresh changes what comes after an episode: give two episodes or more, got {episodes}.")
    if any("kv_refresh" in setting for setting in settings):
        raise ValueError("Leave `kv_refresh` out of the settings: they are measured with and without it.")
    if blocks.shape[1] <= max(contexts) + steps:
        raise ValueError(
            f"Blocks need {max(contexts) + steps + 1} tokens: context, {episodes} episodes and one more, got "
            f"{blocks.shape[1]}."
        )
    models = [model_with(base, setting, episode_length) for setting in settings]
    ways = [{**setting, "kv_refresh": refresh} for refresh in (True, False) for setting in settings]
    divergence = compare([*models, *models], ways, blocks, contexts, steps, batch_size)[..., 0]
    after_first = divergence.view(2, len(settings), len(blocks), episodes, episode_length).mean(dim=-1)[..., 1:]
    refreshed, added = after_first[0], after_first[1] - after_first[0]  # (settings, blocks, episodes - 1)
    result = []
    for index, (model, setting) in enumerate(zip(models, settings, strict=True)):
        values = torch.stack([refreshed[index].mean(dim=-1), added[index].mean(dim=-1)], dim=-1)
        mean, error = mean_and_error(values.numpy(), documents)
        result.append(
            RefreshQuality(
                dict(setting),
                refreshed=(float(mean[0]), float(error[0])),
                added=(float(mean[1]), float(error[1])),
                by_episode=tuple(added[index].mean(dim=0).tolist()),
                expected=_expected(model, setting),
            )
        )
    return result


def _expected(model: SOLForCausalLM, setting: Mapping[str, Any]) -> float:
    """What the rule expects of an episode of steps at the levels of a setting."""
    backend = setting.get("bits_backend", "fake")
    space = space_under(backend, model.action_space)
    action = space.index(**{axis.name: setting.get(axis.name, axis.dense) for axis in space.axes})
    return float(expected_gain(space.values[None, None, action], space, model.config.selection_rule, backend))


def refresh_table(results: Sequence[RefreshQuality]) -> str:
    """The results as a table in Markdown."""
    lines = ["| setting | KL with refresh | added without | expected | `auto` |", "|---|---|---|---|---|"]
    for result in results:
        name = ", ".join(f"{key} {value}" for key, value in result.setting.items())
        figures = (f"{mean:.4f} ± {error:.4f}" for mean, error in (result.refreshed, result.added))
        choice = "refreshes" if result.expected >= LEAST_GAIN else "does not"
        lines.append(f"| {name} | {' | '.join(figures)} | {result.expected:.3f} | {choice} |")
    return "\n".join(lines)
