# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`python -m sol_hf.hub.remote_code FOLDER ...`: write the code files of this version into folders of policies."""

import argparse
from pathlib import Path

from .files import write_code


def main() -> None:
    """Read the arguments, and write."""
    parser = argparse.ArgumentParser(prog="python -m sol_hf.hub.remote_code", description=__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="folder", help="a folder with a policy")
    folders = parser.parse_args().folders
    for folder in folders:
        if not (folder / "config.json").is_file():
            parser.error(f"{folder} holds no policy: config.json is missing.")
    for folder in folders:
        write_code(folder)


if __name__ == "__main__":
    main()
