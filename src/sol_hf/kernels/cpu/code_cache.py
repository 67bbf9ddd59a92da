# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""numba's `njit` and `cfunc` with a cache of machine code that belongs to the sources of each kernel.

A *kernel* is a function that is called from outside of compiled code. It is loaded from the cache, or compiled, when
it is first used.

numba's own cache only knows the file of the function that it compiles. Code that was inlined from another file is not
compiled again if that file changes. Here a folder of the cache has a hash in its name, over all that the machine code
of a file of kernels depends on, see `source_hash.py`.

    NUMBA_CACHE_DIR, or kernels/cpu/__pycache__, or the user's cache folder       the first that can be written to
      └─ sol_hf-kernels-<file>-<hash>                                             another hash, another folder

Processes that need the same kernels compile one after the other, and the later ones load what the first has made.
Without a folder that can be written to, every process compiles for itself.

Functions that only compiled code calls become part of it wherever they are called. If they were functions of their
own, a process that compiles would call the copy that it made of them first, and one that loads the code another copy,
which may add in another order.

A kernel stands at the top of a module. For a function within another numba's key holds the values that it takes from
there; compiled functions among them are others in every process, so no process would find the code.
"""

import functools
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from filelock import FileLock, Timeout

from .inlined_code import InlinedCompiler
from .source_hash import code_hash


LONGEST_WAIT = 600.0
"""Seconds to wait for another process that compiles."""
SOURCES = Path(__file__).parent
_THREADS = threading.RLock()
logger = logging.getLogger(__name__)


class Kernel:
    """A function that is loaded from the cache, or compiled, when it is first used; threads may use it at once.

    Args:
        compiler (`Callable`): `numba.njit` or `numba.cfunc`.
        signature (`Any`): Types.
        options (`dict`): For the compiler.
        function (`Callable`): The function, at the top of a module.
    """

    def __init__(self, compiler: Callable, signature: Any, options: dict[str, Any], function: Callable):
        if function.__closure__:
            raise TypeError(
                f"{function.__qualname__} uses variables of the function around it: numba would compile it anew, and "
                "keep one more copy, in every process. Write it at the top of its module; let it call what differs."
            )
        functools.update_wrapper(self, function)
        self._compile, self._function = functools.partial(compiler, signature, **options), function
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._code: Any = None

    def load(self) -> Any:
        """What the compiler has made of the function.

        Raises:
            RuntimeError: if it cannot be compiled.
        """
        if self._code is None:
            with _THREADS:
                if self._code is None:
                    self._code = self._loaded_or_compiled()
        return self._code

    @functools.cached_property
    def address(self) -> int:
        """Where the machine code of a `cfunc` is."""
        return self.load().address

    def __call__(self, *arguments: Any) -> Any:
        """Call a function that `njit` has compiled."""
        return self.load()(*arguments)

    @property
    def folder(self) -> Path | None:
        """Where its machine code is kept; `None` if no folder can be written to."""
        return cache_folder(Path(self._function.__code__.co_filename))

    def _loaded_or_compiled(self) -> Any:
        try:
            if self.folder is not None:
                try:
                    return self._kept_in(self.folder)
                except Timeout:
                    pass  # another process holds the folder for ever: compile without it
                except OSError:  # the folder is gone, or the disk is full
                    say_that_it_is_not_kept()
            return self._compile()(self._function)
        except numba.core.errors.NumbaError as error:
            raise RuntimeError(
                f"numba {numba.__version__} cannot compile {self._name}: install another "
                f'version of it, or pass `backend="reference"` to run without compiled code. It says: {error}'
            ) from error

    def _kept_in(self, folder: Path) -> Any:
        index = f"{self._function.__qualname__}-{self._function.__code__.co_firstlineno}."
        with _cached_in(folder):
            if not any(index in file.name for file in folder.rglob("*.nbi")):
                _say_that_it_takes_long(folder.parent)
            return self._compile(cache=True)(self._function)


def njit(signature: str | None = None, **options: Any) -> Callable:
    """Decorator like `numba.njit`, for functions of this wing.

    Args:
        signature (`str`, *optional*): Types for a kernel that Python calls. Functions that only compiled code calls
            have none; they are part of the code of those that call them.
        options: For `numba.njit`.
    """
    if signature is not None:
        return functools.partial(Kernel, numba.njit, signature, options)
    own = dict(forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=InlinedCompiler)
    return numba.njit(**own, **options)


def cfunc(signature: Any, cache: bool = True, **options: Any) -> Callable:
    """Decorator like `numba.cfunc`, for kernels of this wing.

    Args:
        signature (`Any`): Types.
        cache (`bool`, *optional*, defaults to `True`): Whether the machine code is kept for other processes.
        options: For `numba.cfunc`.
    """
    if not cache:
        return numba.cfunc(signature, **options)
    return functools.partial(Kernel, numba.cfunc, signature, options)


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    """Within the block, numba caches new functions in a folder, which no other process writes to meanwhile."""
    with FileLock(folder / "lock", timeout=LONGEST_WAIT):
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
        try:
            yield
        finally:
            numba.config.CACHE_DIR = before


@functools.cache
def _say_that_it_takes_long(folder: Path) -> None:
    logger.warning(
        f"Compiling kernels for this machine, which takes up to half a minute, once. They are kept in {folder}."
    )


@functools.cache
def say_that_it_is_not_kept() -> None:
    """Warn, once a process."""
    warnings.warn(
        "No folder for compiled code can be written to, so every process compiles it again, which takes up to half a "
        "minute: set the environment variable `NUMBA_CACHE_DIR` to a folder that can.",
        RuntimeWarning,
        stacklevel=2,
    )


@functools.cache
def cache_folder(source: Path) -> Path | None:
    """The folder for machine code of a file of kernels on this machine; `None` if none can be written to."""
    name = f"sol_hf-kernels-{source.stem}-{code_hash(source)[:32]}"
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
    say_that_it_is_not_kept()
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
