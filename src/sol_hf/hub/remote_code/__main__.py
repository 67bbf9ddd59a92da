# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`python -m sol_hf.hub.remote_code FOLDER`: write the code files of this version into the folder of a policy."""

import argparse
from pathlib import Path

from .files import write_code


def main() -> None:
    """Read the arguments, and write."""
    parser = argparse.ArgumentParser(prog="python -m sol_hf.hub.remote_code", description=__doc__)
    parser.add_argument("folder", type=Path, help="a folder with a policy")
    folder = parser.parse_args().folder
    if not (folder / "config.json").is_file():
        parser.error(f"{folder} holds no policy: config.json is missing.")
    write_code(folder)


if __name__ == "__main__":
    main()
