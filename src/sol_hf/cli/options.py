# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Options that several commands have. Imports nothing large, for a quick `--help`."""

from enum import Enum
from typing import Annotated

import typer

from ..integrations.packaged_bases import NEED_NO_HUB
from .arguments import DTYPES


Dtype = Enum("Dtype", {name: name for name in DTYPES}, type=str)  # type: ignore[misc]
"""Dtypes of a base."""

Model = Annotated[str, typer.Argument(help=f"folder or Hub id of a policy, or of a base; or {NEED_NO_HUB}")]
Base = Annotated[str | None, typer.Option(help="folder or Hub id of the base of a policy that does not name it")]
DtypeOf = Annotated[Dtype, typer.Option(help="of the base")]
BitsBackend = Annotated[
    str | None, typer.Option(help="fake, int8 or nested; by default what the policy has stored, nested for a base")
]
TokenKeep = Annotated[float | None, typer.Option(help="target: share of the cached tokens that are read")]
MlpKeep = Annotated[float | None, typer.Option(help="target: share of the MLPs' input channels")]
Bits = Annotated[float | None, typer.Option(help="target: bits, 2 to 16")]
NeuronKeep = Annotated[float | None, typer.Option(help="target: share of the MLPs' neurons, if the policy has it")]
Compute = Annotated[
    str | None,
    typer.Option(help="one number instead, of a policy with a calibration, such as 0.6; or quality:0.02"),
]
Lossless = Annotated[bool, typer.Option("--lossless", help="the text of the base: drafts under the budget, checked")]
Threads = Annotated[int | None, typer.Option(min=1, help="of torch; default: what torch takes")]
