# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Hashes of all that the machine code of a kernel depends on: its sources, versions, and the processor.

Compiled code holds what its functions call, and the values of constants, also those of other files. So the sources of
a kernel are its own file and those that it imports from this package, and these import, and so on.
"""

import functools
import hashlib
import platform
import re
from pathlib import Path

import llvmlite
import numba
from llvmlite import binding


RELATIVE_IMPORT = re.compile(r"^[ \t]*from[ \t]+(\.+)([\w.]*)[ \t]+import[ \t]+(\([^)]*\)|[^\n(]*)", re.MULTILINE)
"""The dots, the module, and the names; to parse whole files takes too long at the start of a process."""


@functools.cache
def code_hash(source: Path) -> str:
    """Hash of all that machine code of the functions in a file depends on.

    Args:
        source (`Path`): The file.

    Raises:
        RuntimeError: if there is no such file, for example in a zip archive.
    """
    digest = hashlib.sha256(repr(_machine()).encode())
    for file in sources_of(source):
        content = file.read_bytes()
        digest.update(f"\0{file.parent.name}/{file.name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def sources_of(source: Path) -> list[Path]:
    """A file and all files of its package that it imports, also by way of others."""
    found, waiting = set(), [source]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += imported_by(file)
    return sorted(found)


@functools.cache
def imported_by(file: Path) -> tuple[Path, ...]:
    """Files that a source file imports by relative imports, at its top or within functions."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise RuntimeError(f"there is no source file {file}: install sol_hf as a folder") from error
    files: list[Path] = []
    for found in RELATIVE_IMPORT.finditer(text):
        dots, module, names = found.groups()
        folder = file.parents[len(dots) - 1].joinpath(*module.split("."))
        listed = [name.split()[0] for name in re.sub(r"#.*|[()]", "", names).split(",") if name.strip()]
        files += [_file_of(folder / name) or _file_of(folder) or _missing(file, folder) for name in listed]
    return tuple(dict.fromkeys(files))


def _file_of(module: Path) -> Path | None:
    files = module.with_suffix(".py"), module / "__init__.py"
    return next((file for file in files if file.is_file()), None)


def _missing(file: Path, module: Path) -> Path:
    raise RuntimeError(f"{file.name} imports {module}, of which there is no source file: install sol_hf as a folder")


@functools.cache
def _machine() -> tuple[object, ...]:
    processor = (numba.config.CPU_NAME, numba.config.CPU_FEATURES, binding.get_host_cpu_name(), _host_features())
    return processor, platform.python_version(), numba.__version__, llvmlite.__version__, binding.llvm_version_info


def _host_features() -> str:
    try:
        return str(binding.get_host_cpu_features().flatten())
    except RuntimeError:  # LLVM does not know them on every processor
        return ""
