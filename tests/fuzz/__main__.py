# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`python -m fuzz --seed 1 --cases 5000 --jobs 2`, from the folder `tests`; `make fuzz` does this."""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import sys


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from fuzz.campaign import Summary, run_share  # noqa: E402


def main() -> int:
    """Run the campaign; 1 if a case breaks a promise."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="which cases (default: 0)")
    parser.add_argument("--cases", type=int, default=5000, help="how many (default: 5000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default: 1)")
    parser.add_argument("--as-drawn", action="store_true", help="do not look for a simpler case of a violation")
    arguments = parser.parse_args()
    share = functools.partial(run_share, arguments)
    if arguments.jobs == 1:
        summaries = [share(0)]
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
            summaries = list(pool.map(share, range(arguments.jobs)))
    total = functools.reduce(Summary.join, summaries)
    print(f"seed {arguments.seed}: {total}")
    return 1 if total.broken else 0


if __name__ == "__main__":
    sys.exit(main())
