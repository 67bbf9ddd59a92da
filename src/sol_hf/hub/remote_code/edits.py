# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Changes to a source text at places that its syntax tree names."""

import ast
import re


class Edits:
    """Collected changes to a text, which do not overlap.

    Args:
        text (`str`): The source.
    """

    def __init__(self, text: str):
        self._text = text.encode()
        self._starts = [0]
        for line in self._text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._changes: dict[tuple[int, int], bytes] = {}

    def _span(self, node: ast.AST) -> tuple[int, int]:
        begin = self._starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return begin, end

    def replace(self, node: ast.AST, new: str) -> None:
        """Put a text in place of a node."""
        self._changes[self._span(node)] = new.encode()

    def remove(self, node: ast.stmt) -> None:
        """Remove a statement with its lines."""
        assert node.end_lineno is not None
        self._changes[self._starts[node.lineno - 1], self._starts[node.end_lineno]] = b""

    def remove_argument(self, argument: ast.keyword) -> None:
        """Remove an argument of a call, and the comma before it."""
        begin, end = self._span(argument)
        while self._text[begin - 1 : begin] in (b" ", b"\n", b","):
            begin -= 1
        self._changes[begin, end] = b""

    def rename(self, node: ast.AST, old: str, new: str) -> None:
        """Give a name another one, where it is used or defined, or in an annotation in quotes."""
        begin, end = self._span(node)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found = re.compile(rb"(?:def|class)\s+").search(self._text, begin)
            assert found is not None
            begin = found.end()
            end = begin + len(old.encode())
        elif isinstance(node, ast.Constant):
            text = self._changes.get((begin, end), self._text[begin:end]).decode()
            new = re.sub(rf"\b{re.escape(old)}\b", new, text)
        self._changes[begin, end] = new.encode()

    def result(self) -> str:
        """The text with all changes."""
        pieces, place = [], 0
        for (begin, end), new in sorted(self._changes.items()):
            assert begin >= place, "changes do not overlap"
            pieces += [self._text[place:begin], new]
            place = end
        return b"".join([*pieces, self._text[place:]]).decode()
