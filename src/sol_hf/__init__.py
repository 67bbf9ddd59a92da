# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Self-optimizing language models for Hugging Face: a frozen causal LM, a small policy, a compute budget."""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from .actions import ActionSpace, Budget, BudgetError
from .cache import SOLCache
from .configuration_sol import SOLConfig
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


AutoConfig.register("sol", SOLConfig)
AutoModel.register(SOLConfig, SOLPolicyModel)
AutoModelForCausalLM.register(SOLConfig, SOLForCausalLM)

__all__ = [
    "ActionProcessor",
    "ActionProcessorList",
    "ActionSpace",
    "AxisBiasProcessor",
    "Budget",
    "BudgetError",
    "Controller",
    "FixedController",
    "HardBudgetProcessor",
    "Observation",
    "PinnedAxesProcessor",
    "PolicyController",
    "RandomController",
    "SOLCache",
    "SOLConfig",
    "SOLForCausalLM",
    "SOLGenerateBeamDecoderOnlyOutput",
    "SOLGenerateDecoderOnlyOutput",
    "SOLPolicyModel",
    "SOLPolicyOutput",
    "SOLScoreOutput",
    "ScheduleController",
    "UnsupportedAxisError",
    "__version__",
]
