# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Configuration of a policy and of the wrapped model: base, action space, selection rule, policy sizes."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig
from transformers.utils import logging

from .budget.action_space import MOST_LEVELS, ActionSpace, check_size, shared_action_space
from .budget.axes import AXES, PUBLISHED_AXES, Axis
from .budget.budget import AxisTarget, Budget
from .budget.calibration import LOG_PERPLEXITY, UNITS, check_calibration, check_unit, expected_loss, table_in, units_of
from .budget.calibration_conditions import check_conditions
from .budget.named_axes import find_axes
from .budget.place_costs import PlaceCosts
from .selection.criterion import CRITERIA
from .selection.kv_dtypes import check_kv_dtype
from .selection.rule import SelectionRule
from .stored import config_keys
from .stored.fields import check_fields, is_number, shown
from .stored.fingerprint import check_fingerprint
from .stored.hub_names import hub_id
from .stored.json_files import read_json_object
from .stored.policy_size import check_policy_size


logger = logging.get_logger(__name__)

ACTION_HEADS = ("joint", "factored")
AUTO_MAP = {
    "AutoConfig": "sol_remote.SOLConfig",
    "AutoModel": "sol_remote.SOLPolicyModel",
    "AutoModelForCausalLM": "sol_remote.SOLForCausalLM",
}
"""The classes of this package, in the stub file that every policy repository has."""
_WRITTEN_BY_TRANSFORMERS = frozenset(
    "name_or_path _name_or_path _commit_hash output_attentions attn_implementation experts_implementation "
    "per_layer_config auto_map model_type transformers_version torch_dtype".split()
)

_COMMON = frozenset(field.name for field in dataclasses.fields(PreTrainedConfig))

_ARGUMENTS_OF_GENERATE = frozenset(
    "compute compute_unit budget budget_mode budget_horizon exact controller action_processors kv_refresh "
    "action_temperature do_sample_actions backend bits_backend max_plane_bytes kv_dtype cuda_graphs "
    "lossless measure_agreement input_ids inputs_embeds attention_mask position_ids past_key_values "
    "context_length return_logits".split()
)

_BASE = "_config_of_base"
_LEFT_OUT = ("axes", "base_fingerprint", "calibration_unit", "calibration_conditions", "kv_dtype", "place_costs")
"""Fields that files leave out if they are `None`."""


@strict
class SOLConfig(PreTrainedConfig):
    r"""
    Configuration of a [`SOLPolicyModel`] and of the [`SOLForCausalLM`] that it controls.

    `SOLConfig()` is the published setting with the full action grid (1,560 actions); sizes that depend on the base
    are filled in by [`SOLForCausalLM.from_base`].

    Args:
        base_model_name_or_path (`str`, *optional*): Hub id or folder of the frozen base model. Only a Hub id is
            written to a file.
        base_model_revision (`str`, *optional*): Branch, tag or commit of the base model.
        base_fingerprint (`dict`, *optional*): By what the base is recognised: its sizes and a few of its weights.
        token_keep (`list[float]`, *optional*, defaults to 0.1, 0.2, ... 1.0): Levels of the KV axis.
        mlp_keep (`list[float]`, *optional*, defaults to 0.40, 0.45, ... 1.0): Levels of the MLP axis.
        bits (`list[int]`, *optional*, defaults to 5, 6, ... 16): Levels of the bit-width axis.
        axes (`list[str]`, *optional*): Names of the axes of the action space in their order, the published three
            first; `None` for these alone. By default the published ones and those with levels in `kwargs`.
        criterion (`str`, *optional*, defaults to `"quest"`): How cached keys are chosen: `"quest"`, `"sketch"`,
            `"relevancy"`, `"recency"`, or the name of a registered [`Criterion`].
        page_size (`int`, *optional*, defaults to 8): Keys in a page (`quest`).
        selection (`str`, *optional*, defaults to `"head"`): `"head"` chooses keys for every query head (the published
            method), `"group"` once per key-value head, `"layer"` for all key-value heads of a layer together, which
            share its `token_keep` (`sketch` only). Files of earlier versions call it `page_selection`.
        sink_tokens (`int`, *optional*, defaults to 4): First tokens that are always kept (`relevancy`, `recency`,
            `sketch`).
        window_tokens (`int`, *optional*, defaults to 2): Recent tokens that are always kept. A step is controllable
            once it sees more than `sink_tokens + window_tokens + 1` keys.
        anchor_pages (`bool`, *optional*, defaults to `False`): Always read the first page and the pages of the last
            `window_tokens + 2` tokens, counted among the pages of `token_keep` (`quest`). Recommended; not published.
        index_bits (`int`, *optional*, defaults to 4): Bits of a channel in the index of the keys, 2, 3, 4 or 8
            (`sketch`).
        short_text_tokens (`int`, *optional*, defaults to 0): Steps that see at most this many tokens read all of them
            and count as that in `realised`; the budget on `token_keep` begins after them.
        kv_dtype (`str`, *optional*): `"bfloat16"` keeps the keys and values of a base in float32 in half the bytes,
            in all caches of this model (layers with full attention and with sliding windows); by default they have the
            base's dtype. A call that runs the base itself has a cache of transformers', to which this does not apply.
        episode_length (`int`, *optional*, defaults to 16): Decode steps in an episode.
        policy_hidden_size (`int`, *optional*, defaults to 512): Width of the policy.
        policy_num_layers (`int`, *optional*, defaults to 1): Transformer blocks of the policy.
        policy_num_heads (`int`, *optional*, defaults to 4): Attention heads of the policy.
        policy_mlp_ratio (`float`, *optional*, defaults to 4.0): Width of the policy's MLP over its hidden size.
        action_embedding_size (`int`, *optional*, defaults to 32): Size of the previous action's embedding.
        action_head (`str`, *optional*, defaults to `"joint"`): `"joint"` learns a logit for every action, as
            published, `"factored"` one for every level of an axis, whose sum over the axes is the action's logit.
        budget_prior (`bool`, *optional*, defaults to `False`): Add a prior to the action logits that prefers the
            levels which keep the budget, and learn the difference to it. An untrained policy then already keeps the
            budget.
        observe_page_fill (`bool`, *optional*, defaults to `False`): Give the policy one more input: how full the page
            of the token to process will be (`quest`). A page with few keys is often not read.
        calibration (`list[dict]`, *optional*): The policy's front, from which `generate(compute=...)` takes its
            budget: of every point the cost, `token_keep`, `mlp_keep`, `bits` and `log_perplexity`, by ascending cost,
            the last of them dense. The cost is `net_keep`, `bytes` or `time`. Written by `sol-hf pareto --save`.
        calibration_unit (`str`, *optional*): Which of these costs `compute` is, if a call does not say it; that of the
            first point by default.
        calibration_conditions (`dict`, *optional*): By unit, under what a table was measured: context, dtype, machine.
        place_costs (`dict`, *optional*): By axis and place of a page, what every level costs, for the controller
            `fixed:place`; see [`measure_places`].
        base_hidden_size (`int`, *optional*): Width of the hidden state that the base's LM head receives.
        base_embedding_size (`int`, *optional*): Width of the base's input embeddings.
        base_vocab_size (`int`, *optional*): Rows of the base's input embeddings.
        base_max_position_embeddings (`int`, *optional*): Longest text of the base; `generate` ends there by default.
        initializer_range (`float`, *optional*, defaults to 0.02): Standard deviation of fresh weights.
        sol_hf_version (`str`, *optional*): Version that wrote the file.
        kwargs: Levels of axes that were added with [`register_axis`], by name; the axis then belongs to the action
            space, and its levels are an attribute of the config.

    Raises:
        ValueError: for an unknown keyword, an axis that is not registered, or a value that is not allowed: of another
            type, not finite, or above a limit. Nothing is allocated before.

    Examples:

    ```python
    >>> from sol_hf import SOLConfig
    >>> config = SOLConfig(token_keep=[0.2, 1.0], mlp_keep=[0.6, 0.8, 1.0], bits=[8, 16])
    >>> len(config.action_space)
    12
    ```
    """

    model_type = "sol"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "vocab_size": "base_vocab_size",
        "max_position_embeddings": "base_max_position_embeddings",
        **config_keys.RENAMED,
    }

    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_fingerprint: dict | None = None
    token_keep: list[float | int] | tuple[float | int, ...] | None = None
    mlp_keep: list[float | int] | tuple[float | int, ...] | None = None
    bits: list[int] | tuple[int, ...] | None = None
    axes: list[str] | tuple[str, ...] | None = None
    criterion: str = "quest"
    page_size: int = 8
    selection: str = "head"
    sink_tokens: int = 4
    window_tokens: int = 2
    anchor_pages: bool = False
    index_bits: int = 4
    short_text_tokens: int = 0
    kv_dtype: str | None = None
    episode_length: int = 16
    policy_hidden_size: int = 512
    policy_num_layers: int = 1
    policy_num_heads: int = 4
    policy_mlp_ratio: float | int = 4.0
    action_embedding_size: int = 32
    action_head: str = "joint"
    budget_prior: bool = False
    observe_page_fill: bool = False
    calibration: list[dict] | None = None
    calibration_unit: str | None = None
    calibration_conditions: dict | None = None
    place_costs: dict | None = None
    base_hidden_size: int | None = None
    base_embedding_size: int | None = None
    base_vocab_size: int | None = None
    base_max_position_embeddings: int | None = None
    initializer_range: float = 0.02
    sol_hf_version: str | None = None

    def __new__(cls, *args, **fields):
        """Check the fields before `@strict` does, whose errors are not ValueErrors."""
        _check_given(fields)
        return super().__new__(cls)

    def __post_init__(self, **kwargs):
        for name, value in config_keys.take_renamed(kwargs, vars(self), type(self).__dataclass_fields__).items():
            setattr(self, name, value)
        unknown = sorted(set(kwargs) - set(AXES) - _WRITTEN_BY_TRANSFORMERS)
        if unknown:
            raise ValueError(config_keys.describe_unknown(unknown, self.known_keys()))
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in AXES}
        given |= {axis.name: getattr(self, axis.name) for axis in PUBLISHED_AXES}
        axes = find_axes(self.axes, given, _taken_names)
        self.axes = None if axes == PUBLISHED_AXES else [axis.name for axis in axes]
        for axis in axes:
            setattr(self, axis.name, _as_levels(axis, given.get(axis.name)))
        super().__post_init__(**kwargs)
        self.check()
        self.calibration_unit = self.compute_unit

    def check(self) -> None:
        """Raise a ValueError that names the first field with a value that is not allowed."""
        check_fields({field.name: getattr(self, field.name) for field in dataclasses.fields(self)})
        names = self.axes or [axis.name for axis in PUBLISHED_AXES]
        check_size({name: len(getattr(self, name) or ()) for name in names})
        space = self.action_space
        if self.calibration is not None:
            check_calibration(self.calibration, space)
        if self.calibration_unit is not None:
            check_unit(self.calibration_unit, "calibration_unit")
            table_in(self.calibration_unit, self.calibration)
        check_conditions(self.calibration_conditions or {})
        if self.place_costs is not None:
            PlaceCosts.from_json(self.place_costs, space, self.page_size)
        if self.base_fingerprint is not None:
            check_fingerprint(self.base_fingerprint)
        if self.criterion not in CRITERIA:
            raise CRITERIA.unknown(self.criterion)
        CRITERIA[self.criterion].check(self.selection_rule)
        check_kv_dtype(self.kv_dtype)
        self.selection_rule.check_levels(space.levels["token_keep"])
        if self.action_head not in ACTION_HEADS:
            raise ValueError(f"`action_head` must be one of {', '.join(ACTION_HEADS)}, got {self.action_head!r}.")
        if self.observe_page_fill and not CRITERIA[self.criterion].chooses_pages:
            raise ValueError(f"`observe_page_fill` needs pages, as criterion `quest` has, got {self.criterion!r}.")
        if self.policy_hidden_size % self.policy_num_heads:
            raise ValueError(
                f"`policy_hidden_size` ({self.policy_hidden_size}) must be a multiple of `policy_num_heads` "
                f"({self.policy_num_heads})."
            )
        self._check_sizes(space)

    def _check_sizes(self, space: ActionSpace) -> None:
        """Raise a ValueError if the policy would be too large, or no step of any text would be controllable."""
        longest, kept = self.base_max_position_embeddings, self.sink_tokens + self.window_tokens
        if longest is not None and kept + 1 >= longest:
            raise ValueError(
                f"No step would be controllable: `sink_tokens` and `window_tokens` are {kept} together, and the "
                f"longest text of the base has {longest} tokens (`base_max_position_embeddings`)."
            )
        check_policy_size(self, len(space))

    @classmethod
    def known_keys(cls) -> frozenset[str]:
        """Names of all fields, inherited ones and the registered axes included."""
        return (
            frozenset(field.name for field in dataclasses.fields(cls)) | frozenset(AXES) | config_keys.RENAMED.keys()
        )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Build a config from a loaded file: keys that this version does not know are dropped with one warning.

        Fields of transformers that have no effect on a policy, or that could change how its base is loaded, are
        dropped in the same way.

        Raises:
            ValueError: if this is the config of another model, names an axis that is not registered, or has a value
                that is not allowed; the message names the field, and the file if it is known.
        """
        source = kwargs.get("name_or_path")
        where = f"{config_keys.config_file(source)}: " if source else ""
        if not isinstance(config_dict, Mapping):
            raise ValueError(f"{where}A config must be a JSON object, got {shown(config_dict)}.")
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type != cls.model_type:
            raise ValueError(
                f"{where}This is the config of a model of type {shown(model_type)}, not of a policy. To control that "
                "model, load it with AutoModelForCausalLM and use SOLForCausalLM.from_base(model)."
            )
        try:
            _check_given(config_dict)
            config_keys.check_common_fields(config_dict)
            find_axes(config_dict.get("axes"), {}, _taken_names)
            stored, ignored = config_keys.keys_that_count(config_dict, cls.known_keys() - _COMMON)
            if "auto_map" in stored:
                stored["auto_map"] = config_keys.known_classes(given := stored.pop("auto_map"), AUTO_MAP)
                ignored += ["auto_map"] if given and len(stored["auto_map"]) < len(given) else []
            result = super().from_dict(stored, **kwargs)
            config = result[0] if isinstance(result, tuple) else result
            config.check()
        except (ValueError, StrictDataclassError) as error:
            raise ValueError(f"{where}{error}") from error
        if ignored:
            writer = config_dict.get("sol_hf_version")
            logger.warning(
                f"Ignoring keys of the configuration that this version of sol_hf does not know: {ignored}"
                + (f" (the file was written by sol_hf {writer})." if writer else ".")
            )
        return result

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """The content of the stored config, and the arguments that are left."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        return config_dict, {"name_or_path": str(pretrained_model_name_or_path), **kwargs}

    @classmethod
    def _dict_from_json_file(cls, json_file) -> dict[str, Any]:
        return cls._decode_special_floats(read_json_object(json_file))

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs) -> None:
        """Write `config.json`; the name of the base only if it is a Hub id."""
        self.check()
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing to register: a saved folder names its classes in its own `sol_remote.py`."""

    def to_dict(self) -> dict[str, Any]:
        """All values as plain types, without local paths.

        `axes` is left out for the published three, as in files of earlier versions, and so are fingerprint and
        calibration's unit if there is none. A base that is a folder is not named: its path would mean nothing
        elsewhere, and tell about its writer.
        """
        output = super().to_dict()
        output.pop(_BASE, None)
        for name in _LEFT_OUT:
            if output.get(name) is None:
                output.pop(name, None)
        if output.get("_name_or_path") and not hub_id(output["_name_or_path"]):
            output["_name_or_path"] = ""
        output["base_model_name_or_path"] = hub_id(output.get("base_model_name_or_path"))
        return output

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The config of the text model; with `decoder=True` that of the base, from which transformers makes caches."""
        if _BASE in vars(self) and decoder and not encoder:
            return vars(self)[_BASE].get_text_config(decoder=True)
        return super().get_text_config(decoder=decoder, encoder=encoder)

    def describe_base(self, base: PreTrainedConfig) -> None:
        """Remember the config of the base, for [`SOLConfig.get_text_config`]. It is not written to files."""
        self.__dict__[_BASE] = base

    @property
    def action_space(self) -> ActionSpace:
        """The [`ActionSpace`] of the levels of all axes."""
        names = self.axes or [axis.name for axis in PUBLISHED_AXES]
        return shared_action_space(tuple((AXES[name], tuple(getattr(self, name) or ())) for name in names))

    @property
    def compute_unit(self) -> str | None:
        """What `generate(compute=...)` counts by default, one of [`UNITS`]; `None` without a table."""
        return self.calibration_unit or next(iter(units_of(self.calibration)), None)

    def expected_loss(self, compute: AxisTarget, compute_unit: str | None = None) -> float | list[float]:
        """What `generate(compute=...)` costs: log-perplexity above that of the base alone, in nats per token.

        Args:
            compute (`float` or a sequence of them): Share of the compute.
            compute_unit (`str`, *optional*): What that counts; see [`SOLConfig.compute_unit`].

        Raises:
            ValueError: if there is no calibration table in this unit, or one without a dense row.
        """
        return expected_loss(compute, self.calibration, compute_unit or self.compute_unit)

    @property
    def selection_rule(self) -> SelectionRule:
        """The [`SelectionRule`] of the fields that say how cached keys are selected."""
        return SelectionRule(**{field.name: getattr(self, field.name) for field in dataclasses.fields(SelectionRule)})


def _taken_names() -> frozenset[str]:
    """Names that are keywords or attributes already where the name of an axis becomes one."""
    fields = {field.name for field in dataclasses.fields(SOLConfig)}
    arguments = inspect.signature(GenerationMixin.generate).parameters.keys() | _ARGUMENTS_OF_GENERATE
    columns = {LOG_PERPLEXITY, *UNITS}
    return frozenset(fields | vars(GenerationConfig()).keys() | arguments | set(dir(Budget)) | columns)


def _as_levels(axis: Axis, levels: Any) -> list[float]:
    """Levels as a list of numbers; the axis's own for `None`."""
    if levels is None:
        levels = axis.default_levels
    if not isinstance(levels, list | tuple) or not all(is_number(level) for level in levels[: MOST_LEVELS + 1]):
        raise ValueError(f"`{axis.name}` must be a list of numbers, got {shown(levels)}.")
    check_size({axis.name: len(levels)})
    return list(levels) if axis.is_integral else [float(level) for level in levels]


def _check_given(values: Mapping[str, Any]) -> None:
    """Raise a ValueError for a value of another type, not finite, or above a limit."""
    check_fields(values)
    for name in set(AXES) & set(values):
        _as_levels(AXES[name], values[name])
