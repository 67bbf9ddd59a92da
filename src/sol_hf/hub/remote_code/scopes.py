# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which names in the source of a module mean what its top level binds, and not something local."""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp


@dataclass(frozen=True)
class Use:
    """A name of the top level, where it is read or bound.

    Args:
        node (`ast.Name`, `ast.Attribute`, `ast.Constant` or a definition): Where. An attribute is that of a module; a
            constant is an annotation in quotes.
        name (`str`): The name, or `module.name`.
        hidden_by (`frozenset[str]`): Names that are local there, so that the use must not be given one of them.
    """

    node: ast.AST
    name: str
    hidden_by: frozenset[str]


def bound_names(nodes: list[ast.stmt]) -> list[str]:
    """The names that statements of one scope bind, in order, those of inner scopes not counted."""
    found: dict[str, None] = {}

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = None
            return
        if isinstance(node, ast.Lambda):
            return
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.update(dict.fromkeys((alias.asname or alias.name).split(".")[0] for alias in node.names))
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found[node.name] = None
        if isinstance(node, Comprehension):  # its targets are its own; what `:=` binds is not
            inner = [part for part in ast.walk(node) if isinstance(part, ast.NamedExpr)]
            found.update((part.target.id, None) for part in inner)
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    for node in nodes:
        visit(node)
    return list(found)


class _Walk:
    """Finds the uses; a scope is the set of its names, and whether it is that of a class."""

    def __init__(self, is_module: Callable[[str], bool]):
        self.is_module, self.uses = is_module, list[Use]()
        self.scopes: list[tuple[frozenset[str], bool]] = []

    def is_local(self, name: str) -> bool:
        if not self.scopes:
            return False
        return name in self.scopes[-1][0] or any(name in names for names, of_class in self.scopes if not of_class)

    def add(self, node: ast.AST, name: str) -> None:
        if not self.is_local(name.split(".")[0]):
            self.uses.append(Use(node, name, frozenset().union(*(names for names, _ in self.scopes))))

    def visit_all(self, nodes: list) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    def inside(self, names: set[str], of_class: bool, nodes: list) -> None:
        self.scopes.append((frozenset(names), of_class))
        self.visit_all(nodes)
        self.scopes.pop()

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, Function):
            self._visit_function(node)
        elif isinstance(node, ast.ClassDef):
            self.add(node, node.name)
            self.visit_all([*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)])
            self.inside(set(bound_names(node.body)), True, node.body)
        elif isinstance(node, Comprehension):
            self._visit_comprehension(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and self.is_module(node.value.id):
            self.add(node, f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Name):
            self.add(node, node.id)
        elif isinstance(node, ast.AnnAssign):
            self._visit_annotation(node.annotation)
            self.visit_all([node.target, node.value])
        elif isinstance(node, ast.Global):
            raise ValueError(f"Line {node.lineno} rebinds a name of the module, which a flattened file cannot rename.")
        else:
            self.visit_all(list(ast.iter_child_nodes(node)))

    def _visit_function(self, node: Function) -> None:
        arguments = node.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        given = [argument for argument in every if argument is not None]
        self.visit_all([*arguments.defaults, *arguments.kw_defaults])
        names = {argument.arg for argument in given}
        if isinstance(node, ast.Lambda):
            return self.inside(names, False, [node.body])
        self.add(node, node.name)
        self.visit_all(node.decorator_list)
        for annotation in [*(argument.annotation for argument in given), node.returns]:
            if annotation is not None:
                self._visit_annotation(annotation)
        self.inside(names | set(bound_names(node.body)), False, node.body)

    def _visit_comprehension(self, node: Comprehension) -> None:
        first, *others = node.generators
        self.visit(first.iter)
        targets = [part.id for each in node.generators for part in ast.walk(each.target) if isinstance(part, ast.Name)]
        values = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        inner = [*first.ifs, *(part for each in others for part in (each.iter, *each.ifs)), *values]
        self.inside(set(targets), False, inner)

    def _visit_annotation(self, node: ast.AST) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                for name in re.findall(r"[A-Za-z_]\w*", part.value):
                    self.add(part, name)
        self.visit(node)


def uses_of(body: list[ast.stmt], is_module: Callable[[str], bool]) -> Iterator[Use]:
    """All uses of names of the top level in statements of the top level; builtins and locals are not among them.

    Args:
        body (`list[ast.stmt]`): The statements.
        is_module (`Callable`): Whether a name is that of an imported module of the package.
    """
    walk = _Walk(is_module)
    walk.visit_all(body)
    yield from walk.uses
