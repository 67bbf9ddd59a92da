# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What every argument of transformers and TRL does in [`SOLGRPOTrainer`].

An argument is *effective*, or *refused* if it is changed, or it is harmless and *warned about* if it is changed. Some
are effective only with another one. A test compares the tables with the fields of [`SOLGRPOConfig`], so that an
argument of a new version of TRL is put into one of them. Until then it is warned about.
"""

from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from typing import Any

from transformers.utils import logging

from ..hub.recipe import default_of


logger = logging.get_logger(__name__)

EFFECTIVE = frozenset(
    """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim_target_modules gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 torch_compile torch_compile_backend
    torch_compile_mode torch_empty_cache_steps
    logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter log_level
    log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id skip_memory_metrics debug
    eval_strategy eval_steps eval_delay eval_on_start load_best_model_at_end metric_for_best_model greater_is_better
    save_strategy save_steps save_total_limit save_only_model save_on_each_node
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed use_cpu accelerator_config
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    local_rank
    trust_remote_code disable_dropout num_generations shuffle_dataset generation_batch_size steps_per_generation
    temperature beta num_iterations epsilon delta epsilon_high sapo_temperature_neg sapo_temperature_pos vespo_k_pos
    vespo_lambda_pos vespo_k_neg vespo_lambda_neg importance_sampling_level loss_type sync_ref_model
    ref_model_mixup_alpha ref_model_sync_steps top_entropy_quantile entropy_coef use_adaptive_entropy entropy_coef_min
    entropy_coef_max entropy_coef_delta entropy_target use_bias_correction_kl
    """.split()
)

_REASONS: dict[str, str] = {
    "no text is generated when a policy is trained, the tokens are given and the actions are the completion. Leave it "
    "at its default": """
        model_init_kwargs chat_template_kwargs generation_kwargs cache_implementation use_transformers_paged
        use_transformers_continuous_batching transformers_continuous_batching_config mask_truncated_completions
        max_tool_calling_iterations top_k top_p min_p repetition_penalty log_multimodal pad_to_multiple_of
        max_completion_length off_policy_mask_threshold ds3_gather_for_generation use_vllm vllm_mode vllm_model_impl
        vllm_enable_sleep_mode vllm_structured_outputs_regex vllm_server_base_url vllm_server_host vllm_server_port
        vllm_server_timeout vllm_group_port vllm_gpu_memory_utilization vllm_max_model_length
        vllm_tensor_parallel_size vllm_importance_sampling_correction vllm_importance_sampling_mode
        vllm_importance_sampling_clip_max vllm_importance_sampling_clip_min vllm_importance_sampling_cap
    """,
    "the rewards of a step are added up, and `advantage_scale` and `whiten_advantages` say how they are scaled; use "
    "these, or weigh your `reward_terms` yourself": """
        scale_rewards reward_weights multi_objective_aggregation
    """,
    "completions are actions, not text: their shares are logged as `sol/token_keep/0.2` and the like. Leave it at its "
    "default": "log_completions num_completions_to_print log_unique_prompts log_completions_hub_repo",
    "the policy has no such part: it is a small network without a text embedding, an LM head or experts. Leave it at "
    "its default": """
        cast_lm_head_to_fp32 router_aux_loss_coef use_liger_kernel liger_kernel_config use_cache neftune_noise_alpha
        activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
        label_smoothing_factor label_names include_num_input_tokens_seen
    """,
    "the policy is small and is not sharded: launch one process per device, with `shard_base=True` if the base does "
    "not fit on one": "fsdp fsdp_config deepspeed parallelism_config",
    "the rollouts of a block need full batches: lower `per_device_train_batch_size` or `rollout_batch_size` instead": (
        "auto_find_batch_size"
    ),
    "the order of the blocks comes from `seed` and `shuffle_dataset`: use these": """
        data_seed train_sampling_strategy length_column_name
    """,
    "an evaluation plays blocks greedily at `eval_budgets`, with `rollout_batch_size` rollouts at a time. Leave it at "
    "its default": """
        num_generations_eval bf16_full_eval fp16_full_eval prediction_loss_only eval_do_concat_batches
        eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics
    """,
    "it is for scripts, the trainer does not read it: use `trainer.train(resume_from_checkpoint=...)`": (
        "resume_from_checkpoint"
    ),
    "a checkpoint in the middle of an update could not be resumed exactly: lower `save_steps`, a killed run goes on "
    "from its last checkpoint": "enable_jit_checkpoint",
}
REFUSED: dict[str, str] = {name: reason for reason, names in _REASONS.items() for name in names.split()}
"""Arguments that have to be left at their defaults, and why."""

HARMLESS: dict[str, str] = {
    "per_device_eval_batch_size": "evaluations run `rollout_batch_size` rollouts at a time",
    "remove_unused_columns": "blocks have one column",
    "dataloader_drop_last": "all batches are full",
    "average_tokens_across_devices": "the loss is normalized as TRL does it",
    "do_train": "it is for scripts",
    "do_eval": "it is for scripts; `eval_strategy` is for the trainer",
    "do_predict": "it is for scripts",
}
"""Arguments without effect that promise little, and why they have none."""

_CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
_NEEDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "epsilon": (f"`loss_type` {', '.join(_CLIPPED)}", lambda args: args.loss_type in _CLIPPED),
    "delta": (f"`loss_type` {', '.join(_CLIPPED)}", lambda args: args.loss_type in _CLIPPED),
    "epsilon_high": (
        f"`loss_type` {', '.join(_CLIPPED)}, cispo",
        lambda args: args.loss_type in (*_CLIPPED, "cispo"),
    ),
    "sapo_": ('`loss_type="sapo"`', lambda args: args.loss_type == "sapo"),
    "vespo_": ('`loss_type="vespo"`', lambda args: args.loss_type == "vespo"),
    "ref_model_": ("`sync_ref_model=True`", lambda args: args.sync_ref_model),
    "use_bias_correction_kl": ("`beta` above 0", lambda args: args.beta),
    "entropy_coef_": ("`use_adaptive_entropy=True`", lambda args: args.use_adaptive_entropy),
    "entropy_target": ("`use_adaptive_entropy=True`", lambda args: args.use_adaptive_entropy),
    "hub_": ("`push_to_hub=True`", lambda args: args.push_to_hub),
    "gamma": ('`advantage_level="process"`', lambda args: args.advantage_level == "process"),
    "return_kind": ('`advantage_level="process"`', lambda args: args.advantage_level == "process"),
}
"""Arguments, or beginnings of their names, that do something only together with another one."""


def check_options(args: Any, inherited: Mapping[str, Field]) -> None:
    """Refuse or warn about arguments that were changed and do nothing.

    Args:
        args ([`SOLGRPOConfig`]): The arguments as the user gave them.
        inherited (`Mapping[str, Field]`): The fields of TRL's `GRPOConfig`.

    Raises:
        ValueError: if an argument was changed that can have no effect; it names all of them.
    """
    changed = [field.name for field in fields(args) if not _is_default(field, getattr(args, field.name))]
    problems: dict[str, list[str]] = {}
    for name in changed:
        if name in REFUSED:
            problems.setdefault(REFUSED[name], []).append(f"`{name}`")
    if problems:
        raise ValueError(" ".join(f"{', '.join(names)}: {reason}." for reason, names in problems.items()))
    for name in changed:
        if name in HARMLESS:
            logger.warning(f"`{name}` has no effect: {HARMLESS[name]}.")
        elif name in inherited and name not in EFFECTIVE:
            logger.warning(f"`{name}` is newer than this version of sol_hf, and may have no effect.")
        for beginning, (needed, is_met) in _NEEDS.items():
            if (name == beginning or (beginning.endswith("_") and name.startswith(beginning))) and not is_met(args):
                logger.warning(f"`{name}` has no effect: it needs {needed}.")


def _is_default(field: Field, value: Any) -> bool:
    """Whether an argument was left as it is; a command line makes `False` of "no"."""
    return value == default_of(field) or (value is False and default_of(field) == "no")


def check_accelerator(given: Any) -> None:
    """Refuse settings of accelerate that would tear the rollouts of a block apart."""
    for name in ("split_batches", "dispatch_batches"):
        if isinstance(given, dict) and given.get(name):
            raise ValueError(
                f"`accelerator_config` has `{name}`: the rollouts of a block must stay together in one process. Leave "
                "it out."
            )
