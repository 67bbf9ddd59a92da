# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`SOLForCausalLM`: a frozen causal LM under the control of a policy, with transformers' own `generate`."""

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    Cache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from .budget.action_space import ActionSpace
from .budget.budget import AxisTarget, Budget
from .cache.sol_cache import SOLCache
from .configuration_sol import SOLConfig
from .controllers.base import Controller
from .costs.row_shares import RowShares
from .decoding.aligned_rows import align_rows
from .decoding.base_arguments import accepted_arguments
from .decoding.budgeted_generation import BudgetedGeneration
from .decoding.cache_forward import forward_over_cache
from .decoding.custom_loop import inherit
from .decoding.generate_checks import named_arguments
from .decoding.option_names import stored_names
from .decoding.options import DecodeOptions, pop_options, resolve_options
from .decoding.outputs import SOLScoreOutput
from .decoding.plane_scales import PlaneScales
from .decoding.policy_fit import check_agreement, unite_configs
from .decoding.prompt_images import inputs_to_score
from .decoding.prompt_kinds import check_prompt_kinds
from .decoding.scoring import score_rows, score_rows_densely
from .decoding.session import DecodingSession
from .decoding.setup import controls_for, new_cache, own_cache
from .decoding.warmup import Warmup
from .decoding.wrapped_generation import overridden_hooks
from .execution.base_device import compute_device
from .execution.base_embeddings import EmbeddingsOfBase
from .execution.coverage import Coverage
from .execution.instrumentation import Instrumentation
from .execution.watch import evaluating
from .hub.base_model import check_fit, without_wrapper
from .hub.fingerprint import check_fingerprint_of
from .hub.policy_loading import PolicyLoading
from .hub.saving import push_policy, save_whole_policy
from .hub.stored_options import merge_stored_options
from .modeling_sol_policy import SOLPolicyModel


class SOLForCausalLM(EmbeddingsOfBase, PolicyLoading, PlaneScales, Warmup, BudgetedGeneration, GenerationMixin):
    """A frozen causal LM, and the policy that chooses how much of it every decode step uses.

    Make one with [`SOLForCausalLM.from_base`] (fresh policy) or [`SOLForCausalLM.from_pretrained`] (trained policy).

    Args:
        config ([`SOLConfig`]): Config of the policy.
        base (`PreTrainedModel`): The causal LM, a `PeftModel` too. It is frozen: `requires_grad` is off for all of its
            parameters from then on. Its weights are neither changed nor saved.
        policy ([`SOLPolicyModel`]): The policy.
        check_base (`bool`, *optional*, defaults to `True`): Refuse a base that is another model than the config says.

    Raises:
        ValueError: if the base is no causal LM, or the policy does not fit it.
    """

    config_class = SOLConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"
    training_recipe: dict[str, dict[str, Any]] | None = None
    """How the policy was made, by stage of the training, for its model card; trainers write it."""
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: SOLConfig,
        base: PreTrainedModel | None = None,
        policy: SOLPolicyModel | None = None,
        check_base: bool = True,
    ):
        super().__init__(config)
        if base is None or policy is None:
            raise ValueError("SOLForCausalLM needs a base and a policy: use `from_base` or `from_pretrained`.")
        base = without_wrapper(base)
        check_fit(config, base, policy, check_base)
        if check_base:
            check_fingerprint_of(base, config.base_fingerprint, config.base_model_name_or_path)
        self.base = base.requires_grad_(False)
        self.policy = policy
        self.config = unite_configs(config, policy)
        self.config.describe_base(base.config)
        self.generation_config = copy.deepcopy(base.generation_config)
        self.generation_config._from_model_config = False  # without this the options stored in it are not loaded again
        self.__dict__.update(overridden_hooks(base, type(self)))
        self.all_tied_weights_keys = {f"base.{k}": f"base.{v}" for k, v in base.all_tied_weights_keys.items()}

    policy_device = staticmethod(compute_device)

    def with_stored_options(self, path: Path) -> GenerationConfig:
        """The generation config of the base, with what a policy's `generation_config.json` may set.

        Raises:
            ValueError: if the file is damaged, or no generation could keep the budget in it.
        """
        merged = merge_stored_options(path, self.base.generation_config, stored_names())
        merged._from_model_config = False
        try:
            options = resolve_options({}, None, merged, self.config)
            if options.budget is not None:
                options.budget.check(options.spending(self.action_space))
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"{path}: {error}") from error
        return merged

    def train(self, mode: bool = True) -> "SOLForCausalLM":
        """Training mode for the policy only: a base in training mode would drop out parts of itself."""
        self.training = mode
        self.policy.train(mode)
        if not mode:
            self.base.eval()
        return self

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        push_to_hub: bool = False,
        is_main_process: bool = True,
        **kwargs,
    ) -> None:
        """Write config, policy (safetensors), generation config and, if there is none yet, a model card.

        Args:
            save_directory (`str` or `os.PathLike`): Folder to write to.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): The base's tokenizer, to be stored with the policy.
                Without one, `AutoTokenizer` takes that of the base, if the config names one.
            push_to_hub (`bool`, *optional*, defaults to `False`): Also upload; the arguments of `push_to_hub` are then
                taken from `kwargs`.
            is_main_process (`bool`, *optional*, defaults to `True`): Other processes of a run write nothing.
            kwargs: For `PreTrainedModel.save_pretrained`, such as `max_shard_size`, or `state_dict`, from which only
                the policy is written.
        """
        names = "repo_id token private revision commit_message commit_description create_pr tags".split()
        upload = {name: kwargs.pop(name) for name in names if name in kwargs}
        check_agreement(self.config, self.policy)
        if is_main_process:
            save_whole_policy(self, save_directory, upload.get("repo_id"), tokenizer, **kwargs)
            if push_to_hub:
                upload.setdefault("repo_id", os.path.basename(os.path.normpath(save_directory)))
                self.push_to_hub(tokenizer=tokenizer, **upload)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | None = None,
    ) -> str:
        """Upload the policy with its card; arguments as for `PreTrainedModel.push_to_hub` (it is never sharded)."""
        return push_policy(
            self,
            repo_id,
            tokenizer=tokenizer,
            commit_message=commit_message,
            commit_description=commit_description,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            tags=tags,
        )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Nothing to register: a saved folder finds the classes through its own stub file."""

    @property
    def action_space(self) -> ActionSpace:
        """The actions that a step can take: [`SOLConfig.action_space`]."""
        return self.config.action_space

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """The base's own forward; over a [`SOLCache`], within `generate`, the last token is a decode step.

        Outside of `generate` a forward over a [`SOLCache`] continues the text densely.

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`, *optional*): Tokens that follow the cache.
            attention_mask (`torch.Tensor` of shape `(rows, cached + length)`, *optional*): 0 marks left padding.
            position_ids (`torch.LongTensor` of shape `(rows, length)`, *optional*): Positions of the tokens.
            past_key_values (`Cache`, *optional*): Of any kind; under a budget a [`SOLCache`].
            inputs_embeds (`torch.FloatTensor` of shape `(rows, length, embedding_size)`, *optional*): Instead of ids.
            labels (`torch.LongTensor` of shape `(rows, length)`, *optional*): For the base's loss, dense only.
            use_cache (`bool`, *optional*): Dense only; under a budget the cache is always used.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0): As in the base; 0 keeps all.
            kwargs: For the base.
        """
        DecodingSession.refuse_forward(self.base, past_key_values)
        named: dict[str, Any] = dict(input_ids=input_ids, inputs_embeds=inputs_embeds, position_ids=position_ids)
        if isinstance(past_key_values, SOLCache):
            if labels is not None:
                raise ValueError("There is no loss under a budget: use `score`.")
            as_tuple = kwargs.pop("return_dict", None) is False
            session = DecodingSession.of(self.base, past_key_values)
            if session is not DecodingSession.current():
                own_cache(past_key_values, self.base, self.config)
            output = forward_over_cache(session, {**kwargs, **named}, attention_mask, logits_to_keep)
            return output.to_tuple() if as_tuple else output
        named |= dict(attention_mask=attention_mask, past_key_values=past_key_values, labels=labels)
        named |= dict(use_cache=use_cache, logits_to_keep=logits_to_keep)
        accepted = accepted_arguments(self.base)
        return self.base(**{k: v for k, v in named.items() if v is not None and k in accepted}, **kwargs)

    def new_cache(self, kv_dtype: str | None = None) -> SOLCache:
        """An empty [`SOLCache`] for this model, to be passed as `past_key_values` over several turns.

        Args:
            kv_dtype (`str`, *optional*): In which it keeps keys and values, as of [`SOLForCausalLM.generate`]; by
                default that of the generation config, or else of the config.
        """
        kv_dtype = kv_dtype or getattr(self.generation_config, "kv_dtype", None)
        return own_cache(new_cache(self.base, self.config, kv_dtype), self.base, self.config)

    def coverage(self) -> Coverage:
        """The decoder layers of the base that each axis reaches; printed, they are a table."""
        return Coverage.of(self.base, self.new_cache())

    def drop_copies(self) -> None:
        """Free the copies of weights of fast paths, int8 and nested planes; they are made again when needed."""
        Instrumentation.of(self.base).drop_copies()

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *further: Any,
        token_keep: AxisTarget = None,
        mlp_keep: AxisTarget = None,
        bits: AxisTarget = None,
        compute: AxisTarget | str = None,
        compute_unit: str | None = None,
        budget: Budget | None = None,
        budget_mode: str | None = None,
        budget_horizon: str | None = None,
        exact: bool | None = None,
        controller: Controller | None = None,
        action_processors: Sequence | None = None,
        kv_refresh: bool | str | None = None,
        action_temperature: float | None = None,
        do_sample_actions: bool | None = None,
        backend: str | None = None,
        bits_backend: str | None = None,
        max_plane_bytes: int | None = None,
        kv_dtype: str | None = None,
        cuda_graphs: bool | int | None = None,
        lossless: bool | int | None = None,
        measure_agreement: bool | None = None,
        **kwargs,
    ) -> ModelOutput | torch.LongTensor:
        """transformers' `generate`, with a compute budget. Without one, it is exactly the base's.

        Args:
            inputs (`torch.Tensor` of shape `(rows, length)`, *optional*): Prompt ids.
            generation_config (`GenerationConfig`, *optional*): May hold options, but no budget, controller, processor.
            further: Further positional arguments of transformers' generate, such as `logits_processor`.
            token_keep (`float` or one per row, *optional*): Target in (0, 1] for the share of cached tokens read.
            mlp_keep (`float` or one per row, *optional*): Target in (0, 1] for the share of MLP input channels.
            bits (`float` or one per row, *optional*): Target in 2..16 for the bit-width of MLP outputs.
            compute (`float` or one per row, *optional*): Share of the compute instead of targets, by the calibration;
                or `"quality:0.02"`, the cheapest setting whose calibrated loss is within 0.02 nats of dense.
            compute_unit (`str`, *optional*): `"net_keep"`, `"bytes"` or `"time"`; by default `config.compute_unit`.
            budget ([`Budget`], *optional*): The targets of all axes as one object, instead of the numbers.
            budget_mode (`str`, *optional*, defaults to `"hard"`): `"hard"` keeps every target, `"soft"` may miss it.
            budget_horizon (`str`, *optional*, defaults to `"generation"`): Over what it is kept, this or `"episode"`.
            exact (`bool`, *optional*, defaults to `False`): After `max_new_tokens` no mean is above its target.
            controller ([`Controller`], *optional*): Chooses the actions; the policy by default.
            action_processors (`Sequence`, *optional*): Edit the action scores, like logits processors.
            kv_refresh (`bool` or `"auto"`, *optional*, defaults to `True`): Recompute the keys and values of every
                finished episode densely; with `"auto"` only where it was measured to gain enough.
            action_temperature (`float`, *optional*, defaults to 1.0): Divides the action scores before drawing.
            do_sample_actions (`bool`, *optional*, defaults to `False`): Draw actions instead of taking the best.
            backend (`str`, *optional*, defaults to `"auto"`): `"reference"` is plain torch, `"auto"` uses fast paths
                where they should be faster, `"fast"` all of them, in dense calls too, up to rounding.
            bits_backend (`str`, *optional*, defaults to `"fake"`): `"int8"` runs the MLPs of steps of 8 bits and fewer
                in int8; `"nested"` reads the weights of all linear layers in 8, 6, 5 or 4 bits.
            max_plane_bytes (`int`, *optional*): Most bytes that the copy of the weights for `"nested"` may take.
            kv_dtype (`str`, *optional*): `"bfloat16"` keeps the keys and values of a base in float32 in half the
                bytes, in dense calls too; `"float32"` does not. By default `config.kv_dtype`.
            cuda_graphs (`bool` or `int`, *optional*, defaults to `False`): Run steps from CUDA graphs, by the fast
                paths. A number reserves storage for that many tokens at once; longer texts continue without graphs.
            lossless (`bool` or `int`, *optional*, defaults to `False`): Draft under the budget and check densely: the
                text is the base's. A number fixes the tokens of a draft; by default measured times do.
            measure_agreement (`bool`, *optional*, defaults to `False`): Report how often the most likely token is the
                dense one, by a dense forward over the whole text at the end.
            kwargs: Arguments of transformers' generate, and targets of added axes by their names.

        Returns:
            As in transformers; a dict output under a budget is a [`SOLGenerateDecoderOnlyOutput`], or a
            [`SOLGenerateBeamDecoderOnlyOutput`] for beam search.

        Raises:
            ValueError: for a budget that cannot be met, before any compute.
        """
        kwargs |= named_arguments(further, kwargs)
        given = inherit(pop_options(locals(), kwargs), kwargs)
        return self._generate(inputs, generation_config, given, kwargs)

    @torch.no_grad()
    def score(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        context_length: int | Sequence[int] | torch.Tensor | None = None,
        *,
        return_logits: bool = False,
        **options,
    ) -> SOLScoreOutput:
        """Log-probabilities of given continuations, computed step by step under a budget.

        The first `context_length` tokens of a row are processed densely. Every later token but the last is processed
        by one decode step and scored on the token after it: `length - context_length - 1` steps.

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`): Context and continuation, padded on either side.
            attention_mask (`torch.Tensor` of shape `(rows, length)`, *optional*): 0 marks padding.
            context_length (`int` or one per row): Tokens, not counting padding, that are processed densely.
            return_logits (`bool`, *optional*, defaults to `False`): Also return the logits of every step.
            options: The budget options of [`SOLForCausalLM.generate`]; and images and sounds of the contexts, with the
                names that the base's processor gives them, such as `pixel_values` and `token_type_ids`.

        Returns:
            [`SOLScoreOutput`]
        """
        if context_length is None:
            raise ValueError("`context_length` is needed: how many tokens of every row are processed densely.")
        check_prompt_kinds(None, {"input_ids": input_ids, "attention_mask": attention_mask}, "score")
        if input_ids.device != compute_device(self.base):
            raise ValueError(f"`input_ids` are on {input_ids.device}, the model on {compute_device(self.base)}.")
        rows = align_rows(input_ids, attention_mask, context_length)
        further = inputs_to_score(
            self.base, rows, options, lambda values: align_rows(values, attention_mask, context_length).tokens
        )
        rows = replace(rows, further=further)
        resolved = resolve_options(options, None, self.generation_config, self.config)
        resolved.check_for_score()
        check_agreement(self.config, self.policy)
        controls = controls_for(resolved, self.base, self.policy, self.config, len(input_ids))
        if resolved.runs_dense or controls is None:  # one forward for all tokens, which is faster than any step
            with evaluating(self.base):
                output = score_rows_densely(self.base, rows, self.action_space, return_logits)
        else:
            with Instrumentation.of(self.base):
                session = DecodingSession(self.base, self.new_cache(resolved.kv_dtype), controls, rows.context)
                output = score_rows(session.begin(), rows, return_logits)
        if resolved.compute_unit is not None:
            output["compute_unit"] = resolved.compute_unit
        is_dense = resolved.runs_dense or controls is None
        contexts = rows.context - rows.padding
        output.count_bytes_by(partial(self._count_bytes, resolved, output.actions, is_dense, contexts))
        return output

    def _count_bytes(
        self, options: DecodeOptions, actions: torch.Tensor | None, is_dense: bool, contexts: torch.Tensor
    ) -> torch.Tensor:
        assert actions is not None, "an output under a budget has them"
        if is_dense:
            return torch.ones(len(actions))
        each = contexts.cpu().repeat_interleave(len(actions) // len(contexts))
        return RowShares.of(self, options, apart=1)(actions, each)
