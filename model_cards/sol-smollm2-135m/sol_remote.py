"""Where the Auto classes find this repository's classes; needs `pip install sol_hf`."""

from sol_hf import SOLConfig, SOLForCausalLM, SOLPolicyModel
