# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which sources the compiled code of a kernel belongs to."""

from pathlib import Path

import pytest

from sol_hf.kernels.cpu import compilation


pytestmark = pytest.mark.skipif(not compilation.loads("numba_linear"), reason="numba is not installed")
WING = Path(compilation.__file__).parent


def names_of(source: Path) -> set[str]:
    from sol_hf.kernels.cpu.source_hash import sources_of

    return {file.name for file in sources_of(source)}


@pytest.mark.parametrize("name", sorted(file.name for file in WING.glob("numba_*.py")))
def test_every_kernel_belongs_to_itself_to_what_it_imports_and_to_the_compiler(name):
    found = names_of(WING / name)
    assert {name, "code_cache.py", "inlined_code.py", "source_hash.py"} <= found or name in (
        "numba_vectors.py",
        "numba_tiles.py",
    )
    assert not found & {"linear.py", "program.py", "compilation.py"}, "files without compiled code"


def test_layers_of_imports_other_folders_and_no_more():
    planes = names_of(WING / "numba_planes.py")
    assert {"nested_planes.py", "numba_plane_integers.py", "numba_vectors.py"} <= planes
    assert not planes & {"numba_mlp.py", "numba_step.py", "numba_attention.py"}
    assert {"numba_attention.py", "numba_token_choice.py"} <= names_of(WING / "numba_tokens.py")
    assert "numba_tokens.py" not in names_of(WING / "numba_attention.py")


IMPORTS = """
from . import beside, folder as other
from .beside import A  # a comment
def later():
    from ..above.deep import (
        B,  # and ) another
        C,
    )
"""


def test_all_forms_of_relative_imports(tmp_path):
    for name in ("wing/beside.py", "wing/folder/__init__.py", "above/deep.py", "wing/unused.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("")
    (tmp_path / "wing" / "kernel.py").write_text(IMPORTS)
    assert names_of(tmp_path / "wing" / "kernel.py") == {"kernel.py", "beside.py", "__init__.py", "deep.py"}


def test_a_file_that_is_missing_is_an_error(tmp_path):
    (tmp_path / "kernel.py").write_text("from .gone import x")
    with pytest.raises(RuntimeError, match="install sol_hf as a folder"):
        names_of(tmp_path / "kernel.py")
