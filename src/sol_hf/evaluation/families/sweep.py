# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A sweep over families: each in a process of its own, with limits of time and memory; one JSON file for each.

A family whose file is there is not tried again. So a sweep can be interrupted, and its parts can run side by side.
"""

import json
import math
import multiprocessing
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from ...execution.attention.step.numba_pages import has_numba
from .examination import examine
from .tiny_configs import COMPOSITES, FAMILY_NAMES, family_base


ALL_FAMILIES = tuple(dict.fromkeys([*FAMILY_NAMES, *COMPOSITES]))
"""Causal-LM families of the installed transformers, and some bases with towers."""
EXAMINED, NOT_BUILT, NOT_RUNNING, LIMIT, CRASHED = "examined", "not built", "does not run", "limit", "crashed"
"""What became of a family. Those that are not built or do not run do so without this package."""
MOST_SECONDS = 60.0
PATIENCE = 20
"""A process may take this many times its CPU time, on a loaded machine."""
MOST_BYTES = 16 << 30


def sweep(
    folder: Path,
    families: Sequence[str] = ALL_FAMILIES,
    most_seconds: float = MOST_SECONDS,
    most_bytes: int = MOST_BYTES,
) -> Iterator[dict[str, Any]]:
    """Try families that have no result in a folder yet.

    Args:
        folder (`Path`): Where `FAMILY.json` are written.
        families (`Sequence[str]`, *optional*): Model types; all by default.
        most_seconds (`float`, *optional*, defaults to 60): CPU time of a family.
        most_bytes (`int`, *optional*, defaults to 16 GiB): Address space of a family's process.

    Yields:
        `dict`: The result of every family that was tried, as it is in its file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left = [family for family in families if not (folder / f"{family}.json").exists()]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a process of several threads cannot be forked
    has_numba()  # loads it once, before the forks
    try:
        for family in left:
            path = folder / f"{family}.json"
            if not path.exists():  # another sweep may have written it meanwhile
                result = _in_process(family, most_seconds, most_bytes)
                path.write_text(json.dumps(result, indent=1) + "\n")
                yield result
    finally:
        torch.set_num_threads(threads)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The results in a folder by family.

    Raises:
        ValueError: if there are none, or they are of several versions of transformers.
    """
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    versions = {result["transformers"] for result in results.values()}
    if len(versions) != 1:
        raise ValueError(
            f"{folder} has results of {len(versions)} versions of transformers ({', '.join(sorted(versions))}), and "
            "one is needed: sweep into an empty folder."
        )
    return results


def _in_process(family: str, most_seconds: float, most_bytes: int) -> dict[str, Any]:
    """The result of a family, from a process that is ended if it exceeds a limit."""
    context = multiprocessing.get_context("fork")  # so that torch and transformers are imported once
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, family, most_seconds, most_bytes))
    start = time.monotonic()
    process.start()
    sender.close()
    result: dict[str, Any] = {"status": LIMIT, "reason": f"it took more than {most_seconds:g} seconds"}
    try:
        if receiver.poll(most_seconds * PATIENCE):
            result = receiver.recv()
        else:
            process.kill()
        process.join()
    except EOFError:
        process.join()
        if process.exitcode != -signal.SIGXCPU:
            result = {"status": CRASHED, "reason": f"its process ended with {process.exitcode}"}
    seconds = round(time.monotonic() - start, 1)
    return {"family": family, "transformers": transformers.__version__, "seconds": seconds, **result}


def _send(sender: Any, family: str, most_seconds: float, most_bytes: int) -> None:
    seconds = math.ceil(most_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    sender.send(try_family(family))


def try_family(family: str) -> dict[str, Any]:
    """Build a tiny model of a family, run it by itself, and examine it."""
    start = time.process_time()
    try:
        base = family_base(family)
    except Exception as error:  # noqa: BLE001 - the family's own
        return {"status": NOT_BUILT, "reason": _first_line(error)}
    try:
        base.generate(torch.arange(3, 12)[None], max_new_tokens=2, do_sample=False)
    except Exception as error:  # noqa: BLE001 - the family's own
        return {"status": NOT_RUNNING, "reason": _first_line(error)}
    name = type(base).__name__
    try:
        found = asdict(examine(base))
    except Exception as error:  # noqa: BLE001 - a fault of ours, which belongs into the result
        found = {"faults": [f"the examination raised {_first_line(error)}"], "axes": []}
    return {"status": EXAMINED, "model": name, "cpu_seconds": round(time.process_time() - start, 1), **found}


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0]}"
