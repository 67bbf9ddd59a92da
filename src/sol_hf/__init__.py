# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Self-optimizing language models for Hugging Face: a frozen causal LM, a small policy, a compute budget.

Decoding is imported with the package; training, evaluation and what they need when one of their names is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .actions import ActionSpace, Budget, BudgetError
from .baseline_controllers import DriftController, EntropyController
from .cache import SOLCache
from .configuration_sol import SOLConfig
from .controller_names import make_controller
from .controllers import (
    Controller,
    FixedController,
    Observation,
    PolicyController,
    RandomController,
    ScheduleController,
)
from .elastic import UnsupportedAxisError
from .modeling_sol import SOLForCausalLM
from .modeling_sol_policy import SOLPolicyModel, SOLPolicyOutput
from .outputs import SOLGenerateBeamDecoderOnlyOutput, SOLGenerateDecoderOnlyOutput, SOLScoreOutput
from .processors import (
    ActionProcessor,
    ActionProcessorList,
    AxisBiasProcessor,
    HardBudgetProcessor,
    PinnedAxesProcessor,
)
from .version import __version__


if TYPE_CHECKING:
    from .action_map import ActionMap, map_actions, render_action_map
    from .cost_model import Allocation, CostModel, fit_cost_model, level_costs
    from .counterfactual_warmup import CounterfactualWarmup, CounterfactualWarmupConfig, warmup_blocks
    from .counterfactuals import Counterfactuals, Probes
    from .evaluation import BudgetEvaluation, budgets_within, evaluate_budgets, format_table, to_rows
    from .grpo_config import SOLGRPOConfig
    from .grpo_trainer import SOLGRPOTrainer
    from .lm_eval_adapter import SOLLM
    from .measurements import Measurements
    from .metrics import BudgetedPerplexity
    from .pareto import Sweep, SweepConfig
    from .pareto_summary import format_summary, summarize_sweep
    from .plot_style import save_figure
    from .plots import plot_pareto, plot_random_search, plot_realised
    from .pollution import ImpulseResponse, impulse_responses
    from .pollution_figure import plot_impulse_responses
    from .rollouts import Rollouts
    from .sweep_table import read_table
    from .text_blocks import load_text, pack_blocks
    from .text_figure import plot_action_map

_LAZY = {
    "ActionMap": "action_map",
    "Allocation": "cost_model",
    "BudgetEvaluation": "evaluation",
    "BudgetedPerplexity": "metrics",
    "CostModel": "cost_model",
    "CounterfactualWarmup": "counterfactual_warmup",
    "CounterfactualWarmupConfig": "counterfactual_warmup",
    "Counterfactuals": "counterfactuals",
    "ImpulseResponse": "pollution",
    "Measurements": "measurements",
    "Probes": "counterfactuals",
    "Rollouts": "rollouts",
    "SOLGRPOConfig": "grpo_config",
    "SOLGRPOTrainer": "grpo_trainer",
    "SOLLM": "lm_eval_adapter",
    "Sweep": "pareto",
    "SweepConfig": "pareto",
    "budgets_within": "evaluation",
    "evaluate_budgets": "evaluation",
    "fit_cost_model": "cost_model",
    "format_summary": "pareto_summary",
    "format_table": "evaluation",
    "impulse_responses": "pollution",
    "level_costs": "cost_model",
    "load_text": "text_blocks",
    "map_actions": "action_map",
    "pack_blocks": "text_blocks",
    "plot_action_map": "text_figure",
    "plot_impulse_responses": "pollution_figure",
    "plot_pareto": "plots",
    "plot_random_search": "plots",
    "plot_realised": "plots",
    "read_table": "sweep_table",
    "render_action_map": "action_map",
    "save_figure": "plot_style",
    "summarize_sweep": "pareto_summary",
    "to_rows": "evaluation",
    "warmup_blocks": "counterfactual_warmup",
}
"""Module of every export that is imported on first use: those of the block above."""

_TRAINING = ("SOLGRPOConfig", "SOLGRPOTrainer", "load_text", "pack_blocks")
"""Exports whose packages come with the extra `train`; those of the others come with `eval`."""

AutoConfig.register("sol", SOLConfig)
AutoModel.register(SOLConfig, SOLPolicyModel)
AutoModelForCausalLM.register(SOLConfig, SOLForCausalLM)

__all__ = [
    "ActionMap",
    "ActionProcessor",
    "ActionProcessorList",
    "ActionSpace",
    "Allocation",
    "AxisBiasProcessor",
    "Budget",
    "BudgetError",
    "BudgetEvaluation",
    "BudgetedPerplexity",
    "Controller",
    "CostModel",
    "CounterfactualWarmup",
    "CounterfactualWarmupConfig",
    "Counterfactuals",
    "DriftController",
    "EntropyController",
    "FixedController",
    "HardBudgetProcessor",
    "ImpulseResponse",
    "Measurements",
    "Observation",
    "PinnedAxesProcessor",
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
    "Sweep",
    "SweepConfig",
    "UnsupportedAxisError",
    "__version__",
    "budgets_within",
    "evaluate_budgets",
    "fit_cost_model",
    "format_summary",
    "format_table",
    "impulse_responses",
    "level_costs",
    "load_text",
    "make_controller",
    "map_actions",
    "pack_blocks",
    "plot_action_map",
    "plot_impulse_responses",
    "plot_pareto",
    "plot_random_search",
    "plot_realised",
    "read_table",
    "render_action_map",
    "save_figure",
    "summarize_sweep",
    "to_rows",
    "warmup_blocks",
]

if not TYPE_CHECKING:  # with a `__getattr__` in sight, a type checker would take any name for an export

    def __getattr__(name: str) -> Any:
        if name not in _LAZY:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        try:
            value = getattr(import_module(f".{_LAZY[name]}", __name__), name)
        except ModuleNotFoundError as error:
            from .extras import missing_extra

            raise missing_extra(f"`{name}`", error, preferred="train" if name in _TRAINING else "eval") from error
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
