# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The name of an attention implementation under which transformers finds ours, and model code still reads its own."""

import zlib


PREFIX = "sol_" if __name__.startswith("sol_hf.") else f"sol_{zlib.crc32(__name__.encode()):08x}_"
"""Every copy of this code has its own: the package, and what repositories of policies hold of it."""


class ImplementationName(str):
    """Reads as the base's own implementation, and is looked up under our registered name.

    Some model files compare `config._attn_implementation` with a literal such as `"sdpa"`, and compute something else
    for other names. They have to take the same branch as without us. transformers finds the attention function in a
    dict. Both are possible at once: this string is equal to either name, and has the hash of the registered one.

    Args:
        own (`str`): The base's own implementation, e.g. `"sdpa"`.

    Examples:
        >>> name = ImplementationName("sdpa")
        >>> name == "sdpa", name in ("eager", "sdpa"), f"{name}"
        (True, True, 'sdpa')
        >>> {"sdpa": "theirs", "sol_sdpa": "ours"}[name]
        'ours'
    """

    __slots__ = ("_hash", "registered")
    _hash: int
    registered: str
    """The name under which transformers finds our attention."""

    def __new__(cls, own: str) -> "ImplementationName":
        name = super().__new__(cls, own)
        name.registered = PREFIX + str.__str__(name)
        name._hash = hash(name.registered)  # every layer looks the name up several times per token
        return name

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str):
            return NotImplemented
        return str.__eq__(self, other) or str.__eq__(self.registered, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __reduce__(self) -> tuple:
        return str, (str.__str__(self),)


def own_name(implementation: str | None) -> str | None:
    """The base's own name of an implementation, also while ours is in force."""
    return str.__str__(implementation) if isinstance(implementation, ImplementationName) else implementation
