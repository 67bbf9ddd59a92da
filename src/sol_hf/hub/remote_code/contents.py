# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which modules of the package go into the code of a repository, and in which order.

Everything that the model class needs, and the members of registries. Left out is what needs a compiler: kernels, what
runs on them, and the members of registries that do. Where something else imports a part that is left out, a stand-in
says that it is not available, and plain torch runs.
"""

import ast
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


PACKAGE = Path(__file__).parents[2]
ROOTS = ("configuration_sol", "modeling_sol_policy", "modeling_sol", "hub/tokenizer", "integrations/custom_generate")
LEFT_OUT = ("kernels/", "execution/stack/", "policy/programs", "execution/cuda_graphs", "execution/compiled_code")
"""How the names of modules begin that are left out."""
STAND_INS = {
    "kernels/cuda/triton_support": "triton_support",
    "kernels/cpu/sparse_mlp": "sparse_mlp",
    "execution/stack/stack": "stack",
    "execution/cuda_graphs": "cuda_graphs",
    "execution/compiled_code": "compiled_code",
    "policy/programs": "policy_programs",
    "hub/remote_code/flatten": "own_code",
}
"""Modules that are replaced, and the files in `stand_ins/` that replace them."""


@dataclass(frozen=True)
class Imported:
    """A name that a module imports from this package.

    Args:
        local (`str`): The name there.
        module (`str`): The module that it comes from.
        name (`str`, *optional*): Its name there; `None` if it is the module itself.
    """

    local: str
    module: str
    name: str | None


@dataclass(frozen=True)
class Source:
    """The source of a module, or of what stands in for it.

    Args:
        module (`str`): Path in the package, without `.py`.
    """

    module: str

    @property
    def stem(self) -> str:
        """Last part of the module's name."""
        return self.module.rpartition("/")[2]

    @cached_property
    def text(self) -> str:
        """The code."""
        stand_in = STAND_INS.get(self.module)
        path = self.module if stand_in is None else f"hub/remote_code/stand_ins/{stand_in}"
        return (PACKAGE / f"{path}.py").read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """The code, parsed."""
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the tree."""
        return list(ast.walk(self.tree))

    def imports_of(self, node: ast.ImportFrom) -> list[Imported]:
        """What a relative import binds."""
        place = [*self.module.split("/")[: -node.level], *(node.module.split(".") if node.module else ())]
        found = []
        for alias in node.names:
            whole, parent = "/".join([*place, alias.name]), "/".join(place)
            is_module = _exists(whole)
            found.append(
                Imported(alias.asname or alias.name, whole if is_module else parent, None if is_module else alias.name)
            )
        return found

    @cached_property
    def imports(self) -> list[Imported]:
        """All that is imported from this package, at the top or within functions."""
        nodes = [node for node in self.nodes if isinstance(node, ast.ImportFrom) and node.level]
        return [imported for node in nodes for imported in self.imports_of(node)]

    @cached_property
    def packages(self) -> list[ast.keyword]:
        """The arguments that name a package of members of a registry."""
        keywords = [node for node in self.nodes if isinstance(node, ast.keyword) and node.arg == "package"]
        return [keyword for keyword in keywords if "__package__" in ast.unparse(keyword.value)]

    def check(self) -> None:
        """Raise a ValueError if the module cannot be imported without a part that is left out."""
        nodes = [node for node in self.tree.body if isinstance(node, ast.ImportFrom) and node.level]
        for imported in (imported for node in nodes for imported in self.imports_of(node)):
            if is_left_out(imported.module) and imported.module not in STAND_INS:
                raise ValueError(
                    f"{self.module} imports {imported.module}, which is not in the code of a policy's repository. "
                    "Write what stands in for it, see STAND_INS in hub/remote_code/contents.py, or leave out both."
                )

    @property
    def compiles(self) -> bool:
        """Whether a member of a registry is there for the sake of a part that is left out."""
        return any(is_left_out(imported.module) for imported in self.imports)

    def members(self) -> list[str]:
        """Modules that the module's registries import at their first lookup."""
        folder = self.module.rpartition("/")[0]
        places = [_below(folder, keyword.value) for keyword in self.packages]
        return [f"{place}/{path.stem}" for place in places for path in sorted((PACKAGE / place).glob("[!_]*.py"))]


def is_left_out(module: str) -> bool:
    """Whether a module needs a compiler."""
    return module.startswith(LEFT_OUT)


def sources() -> list[Source]:
    """All modules in an order in which each imports from those before it only; the same at every call."""
    found: dict[str, Source] = {}
    members: dict[str, Source] = {}

    def add(source: Source) -> None:
        if source.module in found:
            return
        source.check()
        for imported in source.imports:
            if not is_left_out(imported.module) or imported.module in STAND_INS:
                add(members.get(imported.module) or Source(imported.module))
        found[source.module] = source

    for root in ROOTS:
        add(Source(root))
    done: set[str] = set()
    while ahead := [source for name, source in found.items() if name not in done]:
        done |= {source.module for source in ahead}
        names = [name for source in ahead for name in source.members() if name not in found]
        members |= {name: Source(name) for name in names}
        for name in names:
            if not members[name].compiles:
                add(members[name])
    return list(found.values())


def _below(folder: str, value: ast.expr) -> str:
    """The folder that `__package__` or `f"{__package__}.name"` stands for in a module of `folder`."""
    name = value.values[-1] if isinstance(value, ast.JoinedStr) else None
    return folder + str(name.value).replace(".", "/") if isinstance(name, ast.Constant) else folder


def _exists(module: str) -> bool:
    return (PACKAGE / f"{module}.py").is_file()
