# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The record in a checkpoint: which files it has, and what a run has to know in order to go on from it.

    checkpoint-40/sol_checkpoint.json       written last, before the checkpoint is moved to its final path

A checkpoint is complete if it has a record and all files of the record in their full size. Checkpoints of a folder are
numbered in the order in which they were written. So the newest is found without a clock, also if an earlier run with
more updates wrote to the same folder.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging


logger = logging.get_logger(__name__)

RECORD = "sol_checkpoint.json"
UNFINISHED = ".unfinished"
NOT_READ = (
    "README.md",
    "training_args.json",
    "config.json",
    "generation_config.json",
    "sol_remote.py",
    "sol_plain.py",
    "generate.py",
    RECORD,
)
"""Files of a checkpoint that a run does not read when it goes on."""


@dataclass(frozen=True)
class CheckpointRecord:
    """What is written about a checkpoint.

    Args:
        number (`int`): Counts the checkpoints of a folder, in the order in which they were written.
        forward_passes (`int`): Minibatches that the run has processed.
        processes (`int`): Processes of the run.
        trains_adapter (`bool`): An adapter was trained, not the policy.
        can_be_resumed (`bool`): Optimizer and states of random numbers are there, too.
        batching (`dict[str, Any]`): Settings that say which blocks are in which batch.
        files (`dict[str, list]`): Size in bytes and SHA-256 of the files that are read when the run goes on.
    """

    number: int
    forward_passes: int
    processes: int
    trains_adapter: bool
    can_be_resumed: bool
    batching: dict[str, Any]
    files: dict[str, list] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the record of a checkpoint whose files are all there."""
        self.files.clear()
        for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_READ):
            self.files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _sha256(path)]
        (folder / RECORD).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "CheckpointRecord":
        """The record of a checkpoint.

        Raises:
            ValueError: if there is none, or it is damaged.
        """
        path = folder / RECORD
        if not path.is_file():
            raise ValueError(
                f"{folder} is not a complete checkpoint of SOLGRPOTrainer: {RECORD} is missing. Resume from another "
                "one, or start a new run from the policy in it."
            )
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}): resume from another checkpoint, or start a new run from the policy in "
                "this one."
            ) from error

    def missing(self, folder: Path) -> list[str]:
        """Files of the record that are missing, or that are shorter or longer than they were."""
        return [
            name
            for name, (size, _) in self.files.items()
            if not (folder / name).is_file() or (folder / name).stat().st_size != size
        ]

    def check_files(self, folder: Path) -> None:
        """Raise a ValueError that names a file of the checkpoint which is missing or was changed."""
        for name, (size, digest) in self.files.items():
            path = folder / name
            if not path.is_file():
                problem = "is missing"
            elif path.stat().st_size != size:
                problem = f"has {path.stat().st_size} bytes, but {size} were written"
            elif _sha256(path) != digest:
                problem = "is not what was written"
            else:
                continue
            raise ValueError(
                f"{path} {problem}: the checkpoint is damaged, and the run would not go on as it was. Restore the "
                "file, resume from another checkpoint, or start a new run from the policy in this one."
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoints(run: Path) -> list[Path]:
    """The checkpoint folders of a run, complete or not, those that were written last at the end.

    Folders without a record come first, by their step.
    """
    found = []
    for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if path.is_dir() and step.isdecimal():
            found.append((_number(path), int(step), path))
    return [path for *_, path in sorted(found)]


def _number(checkpoint: Path) -> int:
    try:
        return CheckpointRecord.read(checkpoint).number
    except ValueError:
        return 0


def newest_checkpoint(run: Path) -> Path | None:
    """The complete checkpoint that was written last; others are named in a warning and left out."""
    for path in reversed(checkpoints(run)):
        try:
            missing = CheckpointRecord.read(path).missing(path)
        except ValueError as error:
            logger.warning(f"Left out: {error}")
            continue
        if not missing:
            return path
        logger.warning(f"{path} is left out, because it is not complete: {', '.join(missing)}.")
    return None


def next_number(run: Path) -> int:
    """The number of the next checkpoint of a run."""
    return 1 + max(map(_number, checkpoints(run)), default=0)


def remove_old(run: Path, limit: int | None, keep: list[Path]) -> None:
    """Remove the oldest checkpoints until there are at most `limit`, never those in `keep`."""
    if limit is None or limit <= 0:
        return
    found = checkpoints(run)
    spare = [path for path in found if path not in keep]
    for path in spare[: max(0, len(found) - max(limit, len(found) - len(spare)))]:
        remove(path)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint such that it is never seen in part."""
    hidden = checkpoint.parent / UNFINISHED / f"old-{checkpoint.name}"
    hidden.parent.mkdir(exist_ok=True)
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden.parent, ignore_errors=True)


def put_back(run: Path) -> None:
    """Finish what a killed process had begun: move complete checkpoints to their paths, and remove the rest."""
    for staged in _staged(run):
        name = staged.name.removeprefix("replaced-")
        if not (run / name).exists():
            staged.rename(run / name)
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)


def _staged(run: Path) -> Iterator[Path]:
    """Complete checkpoints that are not at their paths, new ones before those that they replace."""
    for pattern in (f"{PREFIX_CHECKPOINT_DIR}-*", f"replaced-{PREFIX_CHECKPOINT_DIR}-*"):
        for path in sorted((run / UNFINISHED).glob(pattern)):
            if _is_complete(path):
                yield path


def _is_complete(path: Path) -> bool:
    try:
        return not CheckpointRecord.read(path).missing(path)
    except ValueError:
        return False


def has_checkpoint(run: Path) -> bool:
    """Whether a run can be resumed in this folder."""
    return newest_checkpoint(run) is not None or any(_staged(run))
