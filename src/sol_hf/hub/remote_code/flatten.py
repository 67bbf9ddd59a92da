# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Writes modules of the package one after the other into one file.

The code stays as it is written, comments too, with these changes:

    imports          those of other packages stand at the top, once; those of this package fall away
    names            where two modules give one name to different things, each gets the name of its module added
    docstrings       the first paragraph stays
    registries       do not look for their members in a package: these are in the file
    what is left out a function that would import it calls `left_out`, which says what to install
"""

import ast
import builtins
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache

from ...version import TRANSFORMERS, __version__
from .contents import Source, sources
from .edits import Edits
from .scopes import Use, bound_names, uses_of


LOGGER = "logger = logging.get_logger(__name__)"
RULE = "# " + "=" * 117
HEAD = '''# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The code of sol_hf {version} that runs a policy, in one file, for machines where the package is not installed.

It was written by sol_hf.hub.remote_code from the modules of the package, one after the other; a heading names each.
Please change those, not this file. It needs transformers and torch, and nothing else. It opens files of the policy and
of its base through transformers and huggingface_hub, and writes files in `save_pretrained` and `push_to_hub` only.
Compiled code for CPUs and GPUs, training and evaluation are not in it: pip install sol_hf.
"""
'''
VERSIONS = """
if not {first!r} <= tuple(map(int, transformers.__version__.split(".")[:2])) < {last!r}:
    raise ImportError(
        f"This policy needs transformers>={names[0]},<{names[1]}, but {{transformers.__version__}} is installed: "
        "install one of these, or a newer sol_hf, whose code is then used instead of this file."
    )
"""
LEFT_OUT = '''

def left_out(part: str) -> NoReturn:
    """Raise the error for a part of the package that is not in this file."""
    raise ModuleNotFoundError(f"{part} is not in the code of a policy's repository: pip install sol_hf.")
'''


class _Names:
    """The name in the file of everything that a module binds at its top level."""

    def __init__(self, parts: Sequence[Source]):
        self.own = {part.module: _definitions(part) for part in parts}
        counts = Counter(name for names in self.own.values() for name in names)
        taken = {name for part in parts for name in _foreign_names(part)} | set(dir(builtins)) | {"left_out"}
        self.clashes = {name for name, count in counts.items() if count > 1 or name in taken}
        users = Counter((name, part.stem) for part in parts for name in self.own[part.module])
        self._alone = {pair for pair, count in users.items() if count == 1}

    def of(self, module: str, name: str) -> str:
        """The name in the file of a name of a module."""
        if name not in self.clashes or name not in self.own[module]:
            return name
        folder, _, stem = module.rpartition("/")
        place = stem if (name, stem) in self._alone else folder.rpartition("/")[2]
        return f"{name}_in_{place}"


def _definitions(part: Source) -> set[str]:
    body = [node for node in part.tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]
    return {name for name in bound_names(body) if name != "logger"}


def _foreign_names(part: Source) -> Iterator[str]:
    """Names that other packages' imports bind at the top level of a module."""
    for node in part.tree.body:
        if isinstance(node, ast.Import) or (isinstance(node, ast.ImportFrom) and not node.level):
            yield from bound_names([node])


class _Part:
    """One module on its way into the file."""

    def __init__(self, source: Source, names: _Names, kept: set[str]):
        self.source, self.names = source, names
        self.edits = Edits(source.text)
        self.imported = {imported.local: imported for imported in source.imports}
        self.kept = kept
        self.body = [node for node in source.tree.body if not isinstance(node, ast.Import | ast.ImportFrom)]

    def write(self) -> str:
        """The code of the part, with a heading."""
        tree, edits = self.source.tree, self.edits
        for statement in tree.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                edits.remove(statement)
        described = ast.get_docstring(tree) or ""
        edits.remove(tree.body[0])
        for node in self.source.nodes:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node, clean=False):
                self._shorten(node)
            elif isinstance(node, ast.ImportFrom) and node.level and node not in tree.body:
                self._replace_inner_import(node)
        for keyword in self.source.packages:
            edits.remove_argument(keyword)
        for use in uses_of(self.body, self._is_module):
            self._rename(use)
        code = re.sub(r"\A(#.*\n)+", "", edits.result()).strip("\n")
        code = re.sub(rf"^{re.escape(LOGGER)}\n+", "", code, flags=re.MULTILINE)
        heading = [RULE, f"# {self.source.module}.py", "#", *(f"# {line}".rstrip() for line in described.splitlines())]
        return "\n".join([*heading, RULE, "", "", re.sub(r"\n{4,}", "\n\n\n", code)])

    def _is_module(self, name: str) -> bool:
        found = self.imported.get(name)
        return found is not None and found.name is None and found.module in self.kept

    def _flat(self, name: str) -> str:
        """The name in the file of a name of this module, or of `module.name`."""
        place, _, attribute = name.rpartition(".")
        found = self.imported.get(place or name)
        if place:
            assert found is not None, "only names of imported modules have a dot"
            return self.names.of(found.module, attribute)
        if found is None:
            return self.names.of(self.source.module, name)
        if found.module not in self.kept:
            return name
        if found.name is None:
            raise ValueError(f"{self.source.module} uses the module {found.module} itself: use names of it.")
        return self.names.of(found.module, found.name)

    def _rename(self, use: Use) -> None:
        name = self._flat(use.name)
        if name == use.name:
            return
        if name in use.hidden_by:
            raise ValueError(f"{self.source.module}: {name} is local where {use.name} is used; rename the local one.")
        self.edits.rename(use.node, use.name, name)

    def _shorten(self, node: ast.AST) -> None:
        """Cut a docstring after its first paragraph."""
        constant = node.body[0].value  # type: ignore[attr-defined]
        first, blank, _ = constant.value.partition("\n\n")
        if blank:
            self.edits.replace(constant, ("r" if "\\" in first else "") + f'"""{first.rstrip()}"""')

    def _replace_inner_import(self, node: ast.ImportFrom) -> None:
        missing = [one for one in self.source.imports_of(node) if one.module not in self.kept]
        lines = [f'{one.local} = left_out("{one.module.replace("/", ".")}.{one.name}")' for one in missing]
        self.edits.replace(node, ("\n" + " " * node.col_offset).join(lines) or "pass")


@lru_cache
def flat_code() -> str:
    """The file, the same at every call: what is read is the package as it is on the disk."""
    parts = sources()
    names, kept = _Names(parts), {part.module for part in parts}
    bodies = [_Part(part, names, kept).write() for part in parts]
    head = HEAD.replace("{version}", __version__)
    imports = _imports(parts)
    first, last = (tuple(map(int, version.split("."))) for version in TRANSFORMERS)
    versions = VERSIONS.format(first=first, last=last, names=TRANSFORMERS)
    start = [head, "import transformers", versions, imports, "", "", LOGGER, LEFT_OUT, ""]
    return "\n".join([*start, *(f"{body}\n\n" for body in bodies)]).rstrip() + "\n"


def _imports(parts: Sequence[Source]) -> str:
    """The imports of other packages, once."""
    plain: set[str] = set()
    named: dict[str, set[str]] = {"typing": {"NoReturn"}, "transformers.utils": {"logging"}}
    for part in parts:
        for node in part.tree.body:
            if isinstance(node, ast.Import):
                plain |= {ast.unparse(alias) for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                named.setdefault(node.module, set()).update(ast.unparse(alias) for alias in node.names)
    lines = [f"import {name}" for name in sorted(plain - {"transformers"})]
    for module, members in sorted(named.items()):
        line = f"from {module} import {', '.join(sorted(members))}"
        if len(line) > 119:
            line = f"from {module} import (\n" + "".join(f"    {member},\n" for member in sorted(members)) + ")"
        lines.append(line)
    return "\n".join(lines)
