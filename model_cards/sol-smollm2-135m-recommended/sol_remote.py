"""Where transformers finds the classes: in the package sol_hf, or else in `sol_plain.py` here.

Both compute the same. The package has compiled code, and its releases are newer: pip install sol_hf.
"""

try:
    from sol_hf import SOLConfig, SOLForCausalLM, SOLPolicyModel
    from sol_hf.hub.tokenizer import SOLTokenizer
    from sol_hf.integrations.custom_generate import generate_under_policy
except ModuleNotFoundError as error:
    if error.name is None or error.name.partition(".")[0] != "sol_hf":
        raise
    from .sol_plain import SOLConfig, SOLForCausalLM, SOLPolicyModel, SOLTokenizer, generate_under_policy
