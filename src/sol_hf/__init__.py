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
    from .cost_model import Allocation, CostModel, fit_cost_model, level_costs
    from .counterfactual_warmup import CounterfactualWarmup, CounterfactualWarmupConfig, warmup_blocks
    from .counterfactuals import Counterfactuals, Probes
    from .evaluation import BudgetEvaluation, budgets_within, evaluate_budgets, format_table, to_rows
    from .grpo_config import SOLGRPOConfig
    from .grpo_trainer import SOLGRPOTrainer
    from .measurements import Measurements
    from .rollouts import Rollouts
    from .text_blocks import load_text, pack_blocks

_LAZY = {
    "Allocation": "cost_model",
    "BudgetEvaluation": "evaluation",
    "CostModel": "cost_model",
    "CounterfactualWarmup": "counterfactual_warmup",
    "CounterfactualWarmupConfig": "counterfactual_warmup",
    "Counterfactuals": "counterfactuals",
    "Measurements": "measurements",
    "Probes": "counterfactuals",
    "Rollouts": "rollouts",
    "SOLGRPOConfig": "grpo_config",
    "SOLGRPOTrainer": "grpo_trainer",
    "budgets_within": "evaluation",
    "evaluate_budgets": "evaluation",
    "fit_cost_model": "cost_model",
    "format_table": "evaluation",
    "level_costs": "cost_model",
    "load_text": "text_blocks",
    "pack_blocks": "text_blocks",
    "to_rows": "evaluation",
    "warmup_blocks": "counterfactual_warmup",
}
"""Module of every export that is imported on first use: those of the block above."""

AutoConfig.register("sol", SOLConfig)
AutoModel.register(SOLConfig, SOLPolicyModel)
AutoModelForCausalLM.register(SOLConfig, SOLForCausalLM)

__all__ = [
    "ActionProcessor",
    "ActionProcessorList",
    "ActionSpace",
    "Allocation",
    "AxisBiasProcessor",
    "Budget",
    "BudgetError",
    "BudgetEvaluation",
    "Controller",
    "CostModel",
    "CounterfactualWarmup",
    "CounterfactualWarmupConfig",
    "Counterfactuals",
    "DriftController",
    "EntropyController",
    "FixedController",
    "HardBudgetProcessor",
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
    "SOLPolicyModel",
    "SOLPolicyOutput",
    "SOLScoreOutput",
    "ScheduleController",
    "UnsupportedAxisError",
    "__version__",
    "budgets_within",
    "evaluate_budgets",
    "fit_cost_model",
    "format_table",
    "level_costs",
    "load_text",
    "make_controller",
    "pack_blocks",
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
            raise ModuleNotFoundError(
                f"`{name}` needs what is not installed ({error}): install sol_hf with its dependencies.",
                name=error.name,
            ) from error
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
