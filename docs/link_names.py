# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What is transformers' style in docstrings, links [`Name`] and types of arguments, for mkdocstrings' pages."""

import re

import griffe


ARGUMENT = re.compile(r"^( +\*{0,2}\w+ )\((.+)\):", re.MULTILINE)
OPTIONAL = re.compile(r", \*optional\*.*")
NAMED = re.compile(r"\[`~?(?:\w+\.)*(\w+)`\](?![\[(])")


class LinkNames(griffe.Extension):
    """Turns [`Name`] into a link where `Name` is one of the package's `__all__`, and into code elsewhere."""

    def on_package(self, *, pkg: griffe.Module, **kwargs) -> None:
        """Rewrite the docstrings of a package when all of it is read."""
        public = {str(name) for name in pkg.exports or ()}
        places = {name: path for name, path in self._named(pkg) if name in public}
        for thing in self._with_docstring(pkg):
            text = ARGUMENT.sub(self._argument, thing.docstring.value)
            thing.docstring.value = NAMED.sub(lambda match: self._link(match[1], places), text)

    def _named(self, thing: griffe.Object):
        for member in thing.members.values():
            if member.is_alias:
                continue
            if member.is_class or member.is_function:
                yield member.name, member.path
            if member.is_module:
                yield from self._named(member)

    def _with_docstring(self, thing: griffe.Object):
        if thing.docstring:
            yield thing
        for member in thing.members.values():
            if not member.is_alias:
                yield from self._with_docstring(member)

    @staticmethod
    def _argument(match: re.Match) -> str:
        """Name and type of an argument; that it is optional, and its default, are known from the signature."""
        kind = OPTIONAL.sub("", match[2]).replace("[`", "").replace("`]", "").replace("`", "")
        return f"{match[1]}({kind}):"

    @staticmethod
    def _link(name: str, places: dict[str, str]) -> str:
        return f"[`{name}`][{places[name]}]" if name in places else f"`{name}`"
