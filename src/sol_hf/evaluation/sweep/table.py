# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of a sweep: one row per controller, budget and seed, and beside them the single blocks and trials.

    folder/sweep.parquet, sweep.csv    one row per controller, budget and seed
           blocks.parquet              loss and divergence of every block in every row, for paired comparisons
           trials.parquet              mean loss of every random schedule that was tried

Triples are in units of the axes, losses in nats a token.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, Features, List, Value
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ...budget.action_space import AXES


def _columns(names: Sequence[str], kind: str) -> dict[str, Any]:
    return {name: Value(kind) for name in names}


SWEEP_COLUMNS: dict[str, Any] = {
    "controller": Value("string"),
    "seed": Value("int64"),
    **_columns(AXES, "float64"),
    **_columns([f"target_{axis}" for axis in AXES], "float64"),
    **_columns([f"realised_{axis}" for axis in AXES], "float64"),
    **_columns(["net_keep", "perplexity", "log_perplexity", "log_perplexity_error", "divergence"], "float64"),
    **_columns(["budget_error", "refresh_overhead"], "float64"),
    **_columns(["blocks", "tokens"], "int64"),
    **_columns(["bytes_per_token", "flops_per_token", "nominal_bytes_per_token"], "float64"),
    **_columns(["dense_bytes_per_token", "dense_flops_per_token", "seconds"], "float64"),
}
"""Columns of `sweep.parquet`, explained in `docs/pareto.md`.

`token_keep`, `mlp_keep`, `bits` name the budget, `target_*` what the controller was asked for: that budget for the
policy, what the policy realised for all others.
"""
KEY = ("controller", "seed", *AXES)
BLOCK_COLUMNS = {
    **{name: SWEEP_COLUMNS[name] for name in KEY},
    "losses": List(Value("float64")),
    "divergences": List(Value("float64")),
}
"""Columns of `blocks.parquet`; a row has the figures of all blocks, in order."""
TRIAL_COLUMNS = {
    **{name: SWEEP_COLUMNS[name] for name in KEY},
    "trial": Value("int64"),
    "log_perplexity": Value("float64"),
}
"""Columns of `trials.parquet`."""
TABLES = {"sweep": SWEEP_COLUMNS, "blocks": BLOCK_COLUMNS, "trials": TRIAL_COLUMNS}


class SweepError(ValueError):
    """A folder that does not hold what was expected: another sweep, an unfinished or a damaged one."""


def make_table(name: str, rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """Rows as a table.

    Args:
        name (`str`): `sweep`, `blocks` or `trials`.
        rows (`Sequence[Mapping[str, Any]]`): With all columns of that table.
    """
    columns = TABLES[name]
    return Dataset.from_dict({key: [row[key] for row in rows] for key in columns}, features=Features(columns))


def write_table(table: Dataset, path: Path) -> None:
    """Write a table as the suffix of `path` says, `.parquet` or `.csv`; the file is whole or not there."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    write = table.to_csv if path.suffix == ".csv" else table.to_parquet
    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        write(str(partial))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        if not quiet:
            enable_progress_bars()


def read_table(folder: str | os.PathLike, name: str = "sweep") -> Dataset:
    """A table of a finished sweep.

    Args:
        folder (`str` or `os.PathLike`): Of the sweep.
        name (`str`, *optional*, defaults to `"sweep"`): `sweep`, `blocks` or `trials`.

    Raises:
        SweepError: if it is not there, damaged, or has other columns.
    """
    path = Path(folder, f"{name}.parquet")
    again = "give the command of the sweep again, it goes on where it was"
    if not path.exists():
        raise SweepError(f"{path} is not there: the sweep has not ended. Please {again}.")
    try:
        table = Dataset(pyarrow.parquet.read_table(path))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise SweepError(f"{path} is damaged ({error}): please {again}.") from error
    missing = sorted(set(TABLES[name]) - set(table.column_names))
    if missing:
        raise SweepError(
            f"{path} lacks the columns {', '.join(missing)}: it was not written by this version of sol_hf."
        )
    return table
