# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""numba's `njit` and `cfunc` with a cache of machine code that belongs to the sources of all kernels.

numba's own cache only knows the file of the function that it compiles. Code that was inlined from another file is not
compiled again if that file changes. Here a folder of the cache has a hash in its name, over all that machine code
depends on: every source file of this wing, the versions of Python, numba and LLVM, and the processor.

    NUMBA_CACHE_DIR, or kernels/cpu/__pycache__, or the user's cache folder       the first that can be written to
      └─ sol_hf-kernels-<hash>                                                    another hash, another folder

Processes that start at the same time compile one after the other, and the later ones load what the first has made.
Without a folder that can be written to, every process compiles for itself.

Functions that only compiled code calls become part of it wherever they are called. If they were functions of their
own, a process that compiles would call the copy that it made of them first, and one that loads the code another copy,
which may add in another order.

A function that is cached stands at the top of a module. For one within another function numba's key holds the values
that it takes from there; compiled functions among them are others in every process, so no process would find the code.
"""

import functools
import hashlib
import os
import platform
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llvmlite
import numba
from filelock import FileLock, Timeout
from llvmlite import binding


LONGEST_WAIT = 600.0
"""Seconds to wait for another process that compiles."""
SOURCES = Path(__file__).parent
_THREADS = threading.RLock()


def njit(signature: str | None = None, **options: Any) -> Callable:
    """Decorator like `numba.njit`, for functions of this wing.

    Args:
        signature (`str`, *optional*): Types for a function that Python calls: it is compiled at once, and cached.
            Functions that only compiled code calls have none; they are part of the code of those that call them.
        options: For `numba.njit`.
    """
    if signature is None:
        return numba.njit(forceinline=True, **options)
    return lambda function: _compiled(numba.njit, signature, options, function)


def cfunc(signature: Any, cache: bool = True, **options: Any) -> Callable:
    """Decorator like `numba.cfunc`, for functions of this wing.

    Args:
        signature (`Any`): Types.
        cache (`bool`, *optional*, defaults to `True`): Whether the machine code is kept for other processes.
        options: For `numba.cfunc`.
    """
    if not cache:
        return numba.cfunc(signature, **options)
    return lambda function: _compiled(numba.cfunc, signature, options, function)


def _compiled(compiler: Callable, signature: Any, options: dict[str, Any], function: Callable) -> Any:
    if function.__closure__:
        raise TypeError(
            f"{function.__qualname__} uses variables of the function around it: numba would compile it anew, and keep "
            "one more copy, in every process. Write it at the top of its module, and let it call what differs."
        )
    folder = cache_folder()
    if folder is not None:
        try:
            with _cached_in(folder):
                return compiler(signature, cache=True, **options)(function)
        except Timeout:
            pass  # another process holds the folder for ever: compile without it
    return compiler(signature, **options)(function)


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    """Within the block, numba caches new functions in a folder, which no other process writes to meanwhile."""
    with _THREADS, FileLock(folder / "lock", timeout=LONGEST_WAIT):
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
        try:
            yield
        finally:
            numba.config.CACHE_DIR = before


@functools.cache
def cache_folder() -> Path | None:
    """The folder for machine code of these sources on this machine; `None` if there is none that can be written to."""
    name = f"sol_hf-kernels-{code_hash()[:32]}"
    for parent in _parents():
        folder = parent / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "lock", timeout=LONGEST_WAIT):
                probe = folder / f"probe-{os.getpid()}-{threading.get_ident()}"
                probe.write_bytes(b"")
                probe.unlink()
        except (OSError, NotImplementedError):  # the latter: a file system without locks
            continue
        return folder
    warnings.warn(
        "No folder for compiled code can be written to, so every process compiles it again, which takes up to half a "
        "minute: set the environment variable `NUMBA_CACHE_DIR` to a folder that can.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _parents() -> Iterator[Path]:
    if numba.config.CACHE_DIR:
        yield Path(numba.config.CACHE_DIR)
        return
    yield SOURCES / "__pycache__"
    own = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        yield (Path(own) if own else Path.home() / ".cache") / "sol_hf"
    except RuntimeError:  # a user without a home
        return


def code_hash() -> str:
    """Hash of all that machine code depends on: sources of this wing, versions, processor.

    Raises:
        RuntimeError: if there are no source files, for example in a zip archive.
    """
    files = sorted(SOURCES.glob("*.py"))
    if not files:
        raise RuntimeError(f"there are no source files in {SOURCES}: install sol_hf as a folder")
    digest = hashlib.sha256()
    processor = (numba.config.CPU_NAME, numba.config.CPU_FEATURES, binding.get_host_cpu_name(), _host_features())
    versions = (platform.python_version(), numba.__version__, llvmlite.__version__, binding.llvm_version_info)
    digest.update(repr((processor, versions)).encode())
    for file in files:
        content = file.read_bytes()
        digest.update(f"\0{file.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _host_features() -> str:
    try:
        return str(binding.get_host_cpu_features().flatten())
    except RuntimeError:  # LLVM does not know them on every processor
        return ""
