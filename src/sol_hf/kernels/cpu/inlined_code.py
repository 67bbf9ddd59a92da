# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compiles functions that only become part of others: to LLVM code that is left as it is.

By itself numba optimizes every function, turns it into machine code, and does so again in each function that calls it.
Nobody calls the first one. Here it stops at LLVM code, so that only whole kernels are optimized; compiling takes half
as long.
"""

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import FunctionPass, register_pass
from numba.core.typed_passes import NopythonTypeInference


class _NoProcess:
    """In place of the code of this process: functions that are part of others have no place in it."""

    @staticmethod
    def set_env(*arguments: object) -> None:
        """Nothing to set."""


class InlinedLibrary(JITCodeLibrary):
    """LLVM code of a function and of those that it calls, for libraries that link it."""

    codegen = _NoProcess

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        """Nothing: the library that links this one is optimized as a whole."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """0: there is no machine code."""
        self._ensure_finalized()
        return 0


@register_pass(mutates_CFG=False, analysis_only=False)
class _IntoInlinedLibrary(FunctionPass):
    _name = "into_inlined_library"

    def __init__(self) -> None:
        super().__init__()

    def run_pass(self, state: Any) -> bool:
        state.library = InlinedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.enable_object_caching()
        return True


class InlinedCompiler(CompilerBase):
    """numba's pipeline, for `njit(pipeline_class=...)`, that ends with LLVM code."""

    def define_pipelines(self) -> list[Any]:
        """numba's own passes, and the one that exchanges the library."""
        passes = DefaultPassBuilder.define_nopython_pipeline(self.state)
        passes.add_pass_after(_IntoInlinedLibrary, NopythonTypeInference)
        passes.finalize()
        return [passes]
