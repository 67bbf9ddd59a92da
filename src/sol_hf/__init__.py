# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Self-optimizing language models for Hugging Face: a frozen causal LM, a small policy, a compute budget.

The modules for decoding are imported with the package. Those for training and evaluation, and their dependencies, are
imported when one of their names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from .budget.action_space import ActionSpace
from .budget.axes import Axis, register_axis
from .budget.budget import Budget
from .cache.sol_cache import SOLCache
from .configuration_sol import SOLConfig
from .controllers.base import Controller, Observation
from .controllers.drift import DriftController
from .controllers.entropy import EntropyController
from .controllers.fixed import FixedController
from .controllers.names import make_controller
from .controllers.policy import PolicyController
from .controllers.processors import (
    ActionProcessor,
    ActionProcessorList,
    AxisBiasProcessor,
    GenerationBudgetProcessor,
    HardBudgetProcessor,
    PinnedAxesProcessor,
)
from .controllers.random import RandomController
from .controllers.registry import register_controller
from .controllers.schedule import ScheduleController
from .decoding.outputs import SOLGenerateBeamDecoderOnlyOutput, SOLGenerateDecoderOnlyOutput, SOLScoreOutput
from .errors import BudgetError, PlanNotExecutedError, UnsupportedAxisError
from .errors import missing_extra as _missing_extra
from .execution.coverage import Coverage
from .execution.executors import AxisExecutor, register_executor
from .hub.tokenizer import SOLTokenizer as _SOLTokenizer
from .modeling_sol import SOLForCausalLM
from .modeling_sol_policy import SOLPolicyModel, SOLPolicyOutput
from .selection.criterion import Criterion, register_criterion
from .version import __version__


if TYPE_CHECKING:
    from .episodes.cost_model import Allocation, CostModel, fit_cost_model, level_costs
    from .episodes.counterfactuals import Counterfactuals, Probes
    from .episodes.measurements import Measurements
    from .episodes.rollouts import Rollouts
    from .episodes.text_blocks import load_text, pack_blocks
    from .evaluation.budget_targets import budgets_within
    from .evaluation.kv_pollution import ImpulseResponse, impulse_responses
    from .evaluation.policy_evaluation import BudgetEvaluation, evaluate_budgets, format_table, to_rows
    from .evaluation.speed import Speed, SpeedReport, measure_speed
    from .evaluation.sweep.contest import SweepConfig
    from .evaluation.sweep.summary import format_summary, summarize_sweep
    from .evaluation.sweep.sweep import Sweep
    from .evaluation.sweep.table import read_table
    from .figures.action_map import ActionMap, map_actions, render_action_map
    from .figures.action_map_figure import plot_action_map
    from .figures.bytes_front import plot_bytes_front
    from .figures.kv_pollution_figure import plot_impulse_responses
    from .figures.style import save_figure
    from .figures.sweep_figures import plot_pareto, plot_random_search, plot_realised
    from .integrations.budgeted_perplexity import BudgetedPerplexity
    from .integrations.convert import convert_checkpoint
    from .integrations.lm_eval_adapter import SOLLM
    from .training.grpo_config import SOLGRPOConfig
    from .training.grpo_trainer import SOLGRPOTrainer
    from .training.warmup import CounterfactualWarmup, warmup_blocks
    from .training.warmup_config import CounterfactualWarmupConfig

_LAZY = {
    "ActionMap": "figures.action_map",
    "Allocation": "episodes.cost_model",
    "BudgetEvaluation": "evaluation.policy_evaluation",
    "BudgetedPerplexity": "integrations.budgeted_perplexity",
    "CostModel": "episodes.cost_model",
    "CounterfactualWarmup": "training.warmup",
    "CounterfactualWarmupConfig": "training.warmup_config",
    "Counterfactuals": "episodes.counterfactuals",
    "ImpulseResponse": "evaluation.kv_pollution",
    "Measurements": "episodes.measurements",
    "Probes": "episodes.counterfactuals",
    "Rollouts": "episodes.rollouts",
    "SOLGRPOConfig": "training.grpo_config",
    "SOLGRPOTrainer": "training.grpo_trainer",
    "SOLLM": "integrations.lm_eval_adapter",
    "Speed": "evaluation.speed",
    "SpeedReport": "evaluation.speed",
    "Sweep": "evaluation.sweep.sweep",
    "SweepConfig": "evaluation.sweep.contest",
    "budgets_within": "evaluation.budget_targets",
    "convert_checkpoint": "integrations.convert",
    "evaluate_budgets": "evaluation.policy_evaluation",
    "fit_cost_model": "episodes.cost_model",
    "format_summary": "evaluation.sweep.summary",
    "format_table": "evaluation.policy_evaluation",
    "impulse_responses": "evaluation.kv_pollution",
    "level_costs": "episodes.cost_model",
    "load_text": "episodes.text_blocks",
    "map_actions": "figures.action_map",
    "measure_speed": "evaluation.speed",
    "pack_blocks": "episodes.text_blocks",
    "plot_action_map": "figures.action_map_figure",
    "plot_impulse_responses": "figures.kv_pollution_figure",
    "plot_bytes_front": "figures.bytes_front",
    "plot_pareto": "figures.sweep_figures",
    "plot_random_search": "figures.sweep_figures",
    "plot_realised": "figures.sweep_figures",
    "read_table": "evaluation.sweep.table",
    "render_action_map": "figures.action_map",
    "save_figure": "figures.style",
    "summarize_sweep": "evaluation.sweep.summary",
    "to_rows": "evaluation.policy_evaluation",
    "warmup_blocks": "training.warmup",
}
"""Module of every export that is imported on first use; the same names as in the block above."""

_TRAINING = ("SOLGRPOConfig", "SOLGRPOTrainer", "load_text", "pack_blocks")
"""Lazy exports that need the extra `train`; the others need `eval`."""

AutoConfig.register("sol", SOLConfig)
AutoModel.register(SOLConfig, SOLPolicyModel)
AutoModelForCausalLM.register(SOLConfig, SOLForCausalLM)
AutoTokenizer.register(SOLConfig, tokenizer_class=_SOLTokenizer)

__all__ = [
    "ActionMap",
    "ActionProcessor",
    "ActionProcessorList",
    "ActionSpace",
    "Allocation",
    "Axis",
    "AxisBiasProcessor",
    "AxisExecutor",
    "Budget",
    "BudgetError",
    "BudgetEvaluation",
    "BudgetedPerplexity",
    "Controller",
    "CostModel",
    "CounterfactualWarmup",
    "CounterfactualWarmupConfig",
    "Counterfactuals",
    "Coverage",
    "Criterion",
    "DriftController",
    "EntropyController",
    "FixedController",
    "GenerationBudgetProcessor",
    "HardBudgetProcessor",
    "ImpulseResponse",
    "Measurements",
    "Observation",
    "PinnedAxesProcessor",
    "PlanNotExecutedError",
    "PolicyController",
    "Probes",
    "RandomController",
    "Rollouts",
    "SOLCache",
    "SOLConfig",
    "SOLForCausalLM",
    "SOLGRPOConfig",
    "SOLGRPOTrainer",
    "SOLGenerateBeamDecoderOnlyOutput",
    "SOLGenerateDecoderOnlyOutput",
    "SOLLM",
    "SOLPolicyModel",
    "SOLPolicyOutput",
    "SOLScoreOutput",
    "ScheduleController",
    "Speed",
    "SpeedReport",
    "Sweep",
    "SweepConfig",
    "UnsupportedAxisError",
    "__version__",
    "budgets_within",
    "convert_checkpoint",
    "evaluate_budgets",
    "fit_cost_model",
    "format_summary",
    "format_table",
    "impulse_responses",
    "level_costs",
    "load_text",
    "make_controller",
    "map_actions",
    "measure_speed",
    "pack_blocks",
    "plot_action_map",
    "plot_bytes_front",
    "plot_impulse_responses",
    "plot_pareto",
    "plot_random_search",
    "plot_realised",
    "read_table",
    "register_axis",
    "register_controller",
    "register_criterion",
    "register_executor",
    "render_action_map",
    "save_figure",
    "summarize_sweep",
    "to_rows",
    "warmup_blocks",
]

if not TYPE_CHECKING:  # if a type checker saw `__getattr__`, it would accept any name as an export

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        except ModuleNotFoundError as error:
            raise _missing_extra(f"`{name}`", error, preferred="train" if name in _TRAINING else "eval") from error
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
