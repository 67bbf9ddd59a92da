# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Model cards of policies."""

from collections.abc import Mapping
from typing import Any

import huggingface_hub
import torch
import transformers
from huggingface_hub import ModelCard, ModelCardData

from ..budget.axes import PUBLISHED_AXES
from ..budget.calibration import table_in, units_of
from ..budget.calibration_conditions import in_words
from ..configuration_sol import SOLConfig
from ..stored.hub_names import hub_id
from .base_license import base_license
from .card_template import CARD_TEMPLATE
from .recipe import recipe_text


CARD_NAME = "README.md"


TAGS = ("sol", "self-optimizing-language-model", "adaptive-compute", "sol_hf")


BITS_NOTES = {
    "fake": "`bits` quantizes the MLP output in simulation: it changes the numbers, not yet the time.",
    "int8": 'MLP weights are read as int8 where `bits` is 8 or less (`bits_backend="int8"`, which is stored).',
    "nested": 'Weights are read as planes of an 8-bit code, as many as `bits` says (`bits_backend="nested"`, which is '
    "stored): fewer bits are fewer bytes.",
}
"""What `bits` does, by the stored `bits_backend`."""


def build_card(
    config: SOLConfig,
    repo_id: str | None = None,
    tags: list[str] | None = None,
    *,
    recipe: Mapping[str, Mapping[str, Any]] | None = None,
    ask_hub: bool = False,
    has_tokenizer: bool = False,
    bits_backend: str | None = None,
) -> ModelCard:
    """The model card of a policy, from the template. Its licence is that of the base, where the base's card says one.

    Args:
        config ([`SOLConfig`]): The policy's config.
        repo_id (`str`, *optional*): Repository of the policy, for the code example.
        tags (`list[str]`, *optional*): Further tags.
        recipe (`Mapping`, *optional*): How the policy was made: settings by stage of the training, see [`recipe_of`].
        ask_hub (`bool`, *optional*, defaults to `False`): Whether the base's card may be downloaded for its licence.
        has_tokenizer (`bool`, *optional*, defaults to `False`): Whether the base's tokenizer is beside the policy.
        bits_backend (`str`, *optional*): How `bits` is computed by default, as the policy has stored it.
    """
    on_hub = hub_id(config.base_model_name_or_path)
    license_fields: dict[str, Any] = base_license(config.base_model_name_or_path, config.base_model_revision, ask_hub)
    data = ModelCardData(
        base_model=on_hub,
        base_model_relation="adapter" if on_hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        **license_fields,
        tags=[*TAGS, *(tag for tag in tags or [] if tag not in TAGS)],
    )
    space = config.action_space
    levels = {name: f"{values[0]:g} … {values[-1]:g} ({len(values)})" for name, values in space.levels.items()}
    further = [
        {"name": axis.name, "meaning": axis.meaning, "largest": f"{max(space.levels[axis.name]):g}"}
        for axis in space.axes
        if axis not in PUBLISHED_AXES
    ]
    return ModelCard.from_template(
        data,
        template_str=CARD_TEMPLATE,
        repo_id=repo_id or "path/to/this/folder",
        base_name=on_hub or "the base model",
        needs_base=on_hub is None,
        revision=config.base_model_revision,
        levels=levels,
        further=further,
        n_actions=len(space),
        dial_rows=dial_rows(config),
        config=config,
        license_name=license_fields.get("license_name") or license_fields.get("license"),
        recipe=recipe_text(recipe),
        has_tokenizer=has_tokenizer,
        bits_note=BITS_NOTES[bits_backend or "fake"],
        versions={
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "huggingface_hub": huggingface_hub.__version__,
        },
    )


DIAL = "| `compute=`"
"""The rows of a card that say what `compute` counts begin with this."""
BEFORE_DIAL = "| episode length |"


def dial_rows(config: SOLConfig) -> list[str]:
    """A row of the card for each unit that `compute` can count, the default first."""
    conditions, rows = config.calibration_conditions or {}, []
    for unit in sorted(units_of(config.calibration), key=lambda unit: unit != config.compute_unit):
        table = table_in(unit, config.calibration)
        assert table is not None, "there is a table in each unit"
        option = "" if unit == config.compute_unit else f' with `compute_unit="{unit}"`'
        rows.append(f"{DIAL}{option} | {table[0][unit]:.3g} … 1: {in_words(unit, conditions.get(unit))} |")
    return rows


def with_dial(card: str, config: SOLConfig) -> str:
    """The text of a card that says what `compute` counts now; unchanged if it has no table of details.

    Args:
        card (`str`): The card, possibly edited by hand.
        config ([`SOLConfig`]): With a calibration.
    """
    lines = [line for line in card.split("\n") if not line.startswith(DIAL)]
    place = next((place for place, line in enumerate(lines) if line.startswith(BEFORE_DIAL)), None)
    if place is None:
        return card
    return "\n".join([*lines[: place + 1], *dial_rows(config), *lines[place + 1 :]])
