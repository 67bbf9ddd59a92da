# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""lm-eval's command line, with what it does not say: the arguments of `--model sol`, and what a budget has spent."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from ..decoding.options import option_names
from .lm_eval_spending import format_report


REPORTS: list[dict[str, Any]] = []
"""The entry `config.sol` of every evaluation of this process, which the command line prints."""
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

All other options are lm-eval's own:
"""


def model_options() -> tuple[str, ...]:
    """Names of the options of `generate` that the model takes as arguments; the controller is given by its name."""
    return tuple(name for name in option_names() if name != "controller")


def run_command(evaluate: Callable[[], None], arguments: Sequence[str] | None = None) -> None:
    """Run lm-eval's command line and print what every evaluation has spent. Wrong input ends it with one message.

    Args:
        evaluate (`Callable`): lm-eval's `cli_evaluate`, which only reads `sys.argv`.
        arguments (`Sequence[str]`, *optional*): Arguments to use instead of `sys.argv[1:]`.
    """
    given, seen = sys.argv, len(REPORTS)
    if arguments is not None:
        sys.argv = ["sol-hf lm-eval", *arguments]
    try:
        if sys.argv[1:] in (["--help"], ["-h"]):
            _print_help()
            sys.argv = [sys.argv[0], "run", "--help"]
        evaluate()
        for report in REPORTS[seen:]:
            print(format_report(report))
    except (ConnectionError, OfflineModeIsEnabled, LocalEntryNotFoundError, DatasetNotFoundError) as error:
        offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(name)]
        reason = f" while {' and '.join(offline)} is set" if offline else ""
        sys.exit(
            f"A task or a model needs files from the Hub{reason}: {error}\nRun it once with a network, which fills "
            "the cache, or give tasks with local data by --include_path."
        )
    except (ValueError, OSError) as error:
        sys.exit(f"sol-hf lm-eval: {error}")
    finally:
        sys.argv = given


def _print_help() -> None:
    lines: list[str] = []
    line = ""
    for name in model_options():
        if len(line) + len(name) > 100:
            lines, line = [*lines, line], ""
        line += f"{name}=, "
    print(HELP.format(options="\n  ".join([*lines, line.rstrip(", ")])))
