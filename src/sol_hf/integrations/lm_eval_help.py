# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The help of `sol-hf lm-eval`: the arguments of `--model sol`, then lm-eval's own help. Imports nothing large."""

import sys

from ..decoding.option_names import option_names


HELP = """usage: sol-hf lm-eval --model sol --model_args pretrained=POLICY,OPTION=VALUE,... --tasks TASKS [options]

Tasks of lm-evaluation-harness under a budget. The model arguments of `sol`:

  pretrained=POLICY        folder or Hub id of a policy
  base=BASE                folder or Hub id of the base, or smollm2-135m; default: the one that the policy names
  controller=NAME          policy (default), fixed, random, entropy, drift, dense, or one that was registered
  seed=N                   of a random controller
  policy_revision=NAME     of the policy's repository
  {options}
                           as in `generate`; see docs/api.md
  all others               of lm-eval's `hf`, for the base

Example: sol-hf lm-eval --model sol --model_args pretrained=my-policy,bits=8 --tasks arc_easy --limit 4

All other options are lm-eval's own:
"""


def model_options() -> tuple[str, ...]:
    """Names of the options of `generate` that the model takes as arguments; the controller is given by its name."""
    return tuple(name for name in option_names() if name not in ("controller", "measure_agreement"))


def print_help() -> None:
    """Print the arguments of the model, and lm-eval's own help; this ends the process, as `--help` does."""
    from lm_eval._cli import HarnessCLI

    lines: list[str] = []
    line = ""
    for name in model_options():
        if len(line) + len(name) > 100:
            lines, line = [*lines, line], ""
        line += f"{name}=, "
    print(HELP.format(options="\n  ".join([*lines, line.rstrip(", ")])))
    sys.argv = ["sol-hf lm-eval", "run", "--help"]
    HarnessCLI().parse_args()
