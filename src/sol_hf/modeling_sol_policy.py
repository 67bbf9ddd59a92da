# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The policy: a small causal transformer that reads the LM's state before every decode step and scores actions."""

import copy
import os
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, logging

from .budget.scalars import ScalarColumns
from .configuration_sol import SOLConfig
from .policy.budget_prior import BudgetPrior
from .policy.compiled_steps import CompiledSteps
from .policy.factored_head import joint_logits
from .stored.json_files import read_json_object
from .stored.source import PolicySource, find_policy
from .stored.weights import check_finite, check_headers, find_weights


logger = logging.get_logger(__name__)

SCALAR_FEATURES = 64
BUDGET_FEATURES = 32
HEADS = ("action_head.", "budget_head.", "budget_prior.")
"""Beginnings of the names of the parameters that a policy can learn anew on a network that is kept."""

_PUBLISHED_NAMES = (
    (r"^action_emb\.", "action_embedding."),
    (r"^pos_emb\.", "position_embedding."),
    (r"^scalar_proj\.", "scalar_features."),
    (r"^obs_proj\.", "input_projection."),
    (r"^blocks\.(\d+)\.ln1\.", r"layers.\1.attention_norm."),
    (r"^blocks\.(\d+)\.ln2\.", r"layers.\1.mlp_norm."),
    (r"^blocks\.(\d+)\.attn\.", r"layers.\1.attention."),
    (r"^blocks\.(\d+)\.ff\.", r"layers.\1.mlp."),
    (r"^ln_f\.", "final_norm."),
    (r"^pi\.", "action_head."),
    (r"^v\.", "value_head."),
)


@dataclass
class SOLPolicyOutput(ModelOutput):
    """Scores of every action.

    Args:
        logits (`torch.Tensor` of shape `(rows, steps, n_actions)`): Action logits at temperature 1.
        past_key_values (`Cache`, *optional*): The policy's own cache, one entry per step of the episode.
    """

    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None


class SOLPolicyAttention(nn.Module):
    """Causal self-attention without biases over the steps of an episode."""

    def __init__(self, config: SOLConfig, layer_idx: int):
        super().__init__()
        size = config.policy_hidden_size
        self.layer_idx = layer_idx
        self.head_dim = size // config.policy_num_heads
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x: torch.Tensor, past_key_values: Cache | None) -> torch.Tensor:
        """`(rows, steps, policy_hidden_size)` to the same shape."""
        heads = (*x.shape[:2], -1, self.head_dim)
        query, key, value = (proj(x).view(heads).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        steps, total = query.shape[2], key.shape[2]
        mask = None
        if steps > 1:
            mask = torch.ones(steps, total, dtype=torch.bool, device=x.device).tril(total - steps)
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(output.transpose(1, 2).reshape(x.shape))


class SOLPolicyLayer(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: SOLConfig, layer_idx: int):
        super().__init__()
        size = config.policy_hidden_size
        width = int(size * config.policy_mlp_ratio)
        self.attention_norm = nn.LayerNorm(size)
        self.attention = SOLPolicyAttention(config, layer_idx)
        self.mlp_norm = nn.LayerNorm(size)
        self.mlp = nn.Sequential(nn.Linear(size, width), nn.GELU(), nn.Linear(width, size))

    def forward(self, x: torch.Tensor, past_key_values: Cache | None) -> torch.Tensor:
        """`(rows, steps, policy_hidden_size)` to the same shape."""
        x = x + self.attention(self.attention_norm(x), past_key_values)
        return x + self.mlp(self.mlp_norm(x))


class SOLPolicyModel(CompiledSteps, PreTrainedModel):
    """The policy network: by default as published.

    `action_head="factored"` in the config scores the levels of every axis instead of all actions, and `budget_prior`
    adds a [`BudgetPrior`] to the learned logits, which then start at zero: an untrained policy follows the budget.

    Args:
        config ([`SOLConfig`]): With `base_hidden_size` and `base_embedding_size` set.

    Examples:

    ```python
    >>> import torch
    >>> from sol_hf import SOLConfig, SOLPolicyModel
    >>> config = SOLConfig(bits=[8, 16], base_hidden_size=32, base_embedding_size=32, policy_hidden_size=64)
    >>> policy = SOLPolicyModel(config)
    >>> state = torch.zeros(2, 1, 32)
    >>> previous = torch.full((2, 1), len(config.action_space))
    >>> policy(state, state, torch.zeros(2, 1, 8), previous).logits.shape
    torch.Size([2, 1, 260])
    ```
    """

    config_class = SOLConfig
    base_model_prefix = "policy"
    main_input_name = "hidden_states"
    _no_split_modules = ["SOLPolicyLayer"]

    def __init__(self, config: SOLConfig):
        config.check()
        super().__init__(config)
        if config.base_hidden_size is None or config.base_embedding_size is None:
            raise ValueError(
                "The policy needs `base_hidden_size` and `base_embedding_size` in its config; "
                "SOLForCausalLM.from_base fills them in."
            )
        space, size = config.action_space, config.policy_hidden_size
        n_actions, self.scalar_columns = len(space), ScalarColumns(len(space.axes))
        self.action_embedding = nn.Embedding(n_actions + 1, config.action_embedding_size)
        self.position_embedding = nn.Embedding(config.episode_length, size)
        self.page_embedding = nn.Embedding(config.page_size, size) if config.observe_page_fill else None
        self.scalar_features = nn.Sequential(
            nn.Linear(self.scalar_columns.page_fill, SCALAR_FEATURES), nn.GELU(), nn.LayerNorm(SCALAR_FEATURES)
        )
        observed = config.base_hidden_size + config.base_embedding_size
        self.input_projection = nn.Linear(observed + SCALAR_FEATURES + config.action_embedding_size, size)
        self.layers = nn.ModuleList(SOLPolicyLayer(config, i) for i in range(config.policy_num_layers))
        self.final_norm = nn.LayerNorm(size)
        self.level_counts = space.level_counts
        self._fresh_versions: list[int] | None = None
        outputs = sum(self.level_counts) if config.action_head == "factored" else n_actions
        self.action_head = nn.Linear(size, outputs)
        self.budget_head = nn.Sequential(
            nn.Linear(len(space.axes), BUDGET_FEATURES), nn.GELU(), nn.Linear(BUDGET_FEATURES, outputs)
        )
        self.value_head = nn.Linear(size, 1)
        self.budget_prior = BudgetPrior(space, config.episode_length) if config.budget_prior else None
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | PolicySource | None,
        *args,
        require_heads: bool = False,
        **kwargs,
    ):
        """Load a policy, and the adapter on it if there is one.

        The weights are read from safetensors files only. Their names, shapes and dtypes are compared with the config
        before any of them is read.

        Args:
            pretrained_model_name_or_path (`str`, `os.PathLike` or [`PolicySource`]): Policy repository or folder, or
                that of an adapter; or where it was found.
            args: For the constructor.
            require_heads (`bool`, *optional*, defaults to `False`): Also refuse a file without the policy's heads.
                Otherwise these start fresh, and transformers says so.
            kwargs: Arguments of `PreTrainedModel.from_pretrained`. None of them reaches a base.

        Raises:
            ValueError: if a file is damaged, or the weights do not fit the config; the message names the file.
        """
        if kwargs.pop("use_safetensors", None) is False:
            raise ValueError("Weights of policies are read from safetensors files only: leave out `use_safetensors`.")
        if pretrained_model_name_or_path is None:  # config and state dict are given
            return super().from_pretrained(None, *args, **kwargs)
        kwargs.pop("trust_remote_code", None)  # the classes are those of this package
        names = ("revision", "subfolder", "cache_dir", "force_download", "local_files_only", "token", "proxies")
        location = {name: kwargs.pop(name) for name in names if name in kwargs}
        adapter = kwargs.pop("adapter_kwargs", None)
        if isinstance(pretrained_model_name_or_path, PolicySource):
            source = pretrained_model_name_or_path
            pretrained_model_name_or_path = source.name_or_path
        else:
            source = find_policy(pretrained_model_name_or_path, location, adapter)
        config = kwargs.pop("config", None)
        if not isinstance(config, SOLConfig):
            stored = read_json_object(source.config)
            config, kwargs = SOLConfig.from_dict(
                stored, name_or_path=source.name_or_path, return_unused_kwargs=True, **kwargs
            )
        with torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in cls(copy.deepcopy(config)).state_dict().items()}
        files = find_weights(source.name_or_path, source.location, kwargs.get("variant"))
        check_headers(files, wanted, source.name_or_path, () if require_heads else HEADS)
        with_info = kwargs.pop("output_loading_info", False)
        arguments: dict[str, Any] = dict(config=config, use_safetensors=True, output_loading_info=True)
        policy, info = super().from_pretrained(
            source.name_or_path, *args, adapter_kwargs=source.adapter, **arguments, **source.location, **kwargs
        )
        if source.adapter and info["missing_keys"]:
            place, missing = source.adapter["_adapter_model_path"], ", ".join(sorted(info["missing_keys"])[:8])
            raise ValueError(f"The adapter in {place} lacks {missing}: it does not fit the policy that it names.")
        check_finite(policy, pretrained_model_name_or_path)
        return (policy, info) if with_info else policy

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, BudgetPrior):
            module.reset_parameters()
        elif self.config.budget_prior and (module is self.action_head or module is self.budget_head[-1]):
            init.zeros_(module.weight)
            init.zeros_(module.bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        token_embeddings: torch.Tensor,
        scalars: torch.Tensor,
        previous_actions: torch.Tensor,
        past_key_values: Cache | None = None,
        use_cache: bool = False,
        return_dict: bool = True,
    ) -> SOLPolicyOutput:
        """Score every action at every step.

        Args:
            hidden_states (`torch.Tensor` of shape `(rows, steps, base_hidden_size)`): The LM's last hidden state,
                after the final norm, before each step.
            token_embeddings (`torch.Tensor` of shape `(rows, steps, base_embedding_size)`): Input embedding of the
                token that each step processes.
            scalars (`torch.Tensor` of shape `(rows, steps, 2 + 2 * axes)` or one wider): From
                [`Observation.scalars`]; the last one, the page's fill, is only needed with `observe_page_fill`.
            previous_actions (`torch.LongTensor` of shape `(rows, steps)`): Action of the step before, `n_actions` at
                the start of an episode.
            past_key_values (`Cache`, *optional*): Keys and values of earlier steps of the episode.
            use_cache (`bool`, *optional*, defaults to `False`): Create a cache if none is given.
            return_dict (`bool`, *optional*, defaults to `True`): Return a [`SOLPolicyOutput`] instead of a tuple.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        begin = past_key_values.get_seq_length() if past_key_values is not None else 0
        steps = hidden_states.shape[1]
        if begin + steps > self.config.episode_length:
            raise ValueError(f"{begin + steps} steps do not fit an episode of {self.config.episode_length}.")
        positions = torch.arange(begin, begin + steps, device=hidden_states.device)
        dtype, page_fill = self.input_projection.weight.dtype, self.scalar_columns.page_fill
        action, added = self.action_embedding(previous_actions), self.position_embedding(positions)
        if self.page_embedding is not None:
            filled = (scalars[..., page_fill] * self.config.page_size).round().long()
            added = added + self.page_embedding(filled - 1)
        scalar_features = self.scalar_features(scalars[..., :page_fill].to(dtype))
        features = [hidden_states.to(dtype), token_embeddings.to(dtype), scalar_features, action]
        x = self.input_projection(torch.cat(features, dim=-1)) + added
        for layer in self.layers:
            x = layer(x, past_key_values)
        targets = scalars[..., self.scalar_columns.targets].to(dtype)
        heads = self.action_head(self.final_norm(x)) + self.budget_head(targets)
        output = SOLPolicyOutput(logits=self._with_prior(heads, scalars), past_key_values=past_key_values)
        return output if return_dict else output.to_tuple()

    def runs_compiled(self) -> bool:
        """Whether this is the forward that compiled code knows."""
        return type(self).forward is SOLPolicyModel.forward

    def _with_prior(self, logits: torch.Tensor, scalars: torch.Tensor) -> torch.Tensor:
        """Outputs of the heads `(rows, steps, outputs)` to `(rows, steps, n_actions)`; a prior makes them float32."""
        prior = None if self.budget_prior is None else self.budget_prior(scalars)
        if self.config.action_head == "factored":
            return joint_logits(logits if prior is None else logits + prior, self.level_counts)
        return logits if prior is None else logits + joint_logits(prior, self.level_counts)

    def mark_fresh(self) -> None:
        """Remember that the weights are random, until any of them is changed."""
        self._fresh_versions = [parameter._version for parameter in self.parameters()]

    def warn_if_fresh(self) -> None:
        """Warn, once, if this policy was never trained and has no prior that keeps it near the budget."""
        versions, self._fresh_versions = self._fresh_versions, None
        if versions == [parameter._version for parameter in self.parameters()] and not self.config.budget_prior:
            logger.warning(
                "This policy was never trained: within the budget it chooses at random. Train it, load a trained one "
                "with SOLForCausalLM.from_pretrained, or pass `controller=FixedController()`."
            )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Nothing to register: a saved folder names its classes in its own `sol_remote.py`."""

    def load_published(self, state_dict: dict[str, torch.Tensor]) -> "SOLPolicyModel":
        """Load weights under the published parameter names.

        A longer position table than `episode_length` is cut to it.

        Args:
            state_dict (`dict[str, torch.Tensor]`): Published parameters.

        Raises:
            ValueError: if this is not the published network, or a parameter is missing, unknown, or has another
                shape than this policy's.
        """
        if self.config.action_head != "joint" or self.config.budget_prior:
            raise ValueError(
                'Published weights are those of a policy with `action_head="joint"` and without `budget_prior`: '
                "leave both out of the config."
            )
        renamed = {}
        for name, tensor in state_dict.items():
            for pattern, replacement in _PUBLISHED_NAMES:
                name = re.sub(pattern, replacement, name)
            renamed[name] = tensor
        positions = renamed.get("position_embedding.weight")
        if positions is not None and len(positions) > self.config.episode_length:
            renamed["position_embedding.weight"] = positions[: self.config.episode_length]
        own = self.state_dict()
        problems = [f"missing {name}" for name in own.keys() - renamed.keys()]
        problems += [f"unknown {name}" for name in renamed.keys() - own.keys()]
        problems += [
            f"{name} has shape {tuple(renamed[name].shape)}, expected {tuple(own[name].shape)}"
            for name in own.keys() & renamed.keys()
            if renamed[name].shape != own[name].shape
        ]
        if problems:
            raise ValueError("The published weights do not fit this policy: " + "; ".join(sorted(problems)) + ".")
        self.load_state_dict(renamed)
        return self
