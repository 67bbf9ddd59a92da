# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""lm-eval's command line, with what it does not say: the arguments of `--model sol`, and what a budget has spent."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from .lm_eval_help import print_help
from .lm_eval_spending import format_report


REPORTS: list[dict[str, Any]] = []
"""The entry `config.sol` of every evaluation of this process, which the command line prints."""


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
            print_help()
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
