# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`sol-hf convert`: a published checkpoint as a policy's folder."""

from pathlib import Path
from typing import Annotated

import typer


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="torch file with policy_state_dict and cfg")],
    base: Annotated[str, typer.Option(help="folder or Hub id of the base, or smollm2-135m; only its config is read")],
    out: Annotated[Path, typer.Option(help="folder to write to")],
    config: Annotated[Path | None, typer.Option(help="YAML file with what the checkpoint does not say")] = None,
    revision: Annotated[str | None, typer.Option(help="of the base on the Hub")] = None,
) -> int:
    """Write the policy of a published checkpoint as a folder. No code in the checkpoint is run.

    Example: sol-hf convert policy_latest.pt --config config.yml --base smollm2-135m --out my-sol-policy
    """
    from ..integrations.convert import convert_checkpoint
    from ..integrations.packaged_bases import base_source

    convert_checkpoint(checkpoint, config, base_source(base), out, revision=revision)
    print(f"wrote: {out}")
    return 0
