# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""How far ahead of the text a base can process tokens and get what it would get one by one."""

from dataclasses import dataclass

from transformers import PreTrainedModel

from ...execution.decoder_layers import text_config


NO_LIMIT = 1 << 30


@dataclass(frozen=True)
class Reach:
    """Lengths of a text that tokens which are processed together may not cross.

    Some rotary embeddings change with the longest position of a forward: `longrope` at one length, `dynamic` at every
    token beyond the positions of the base. All tokens of the forward then get those of the longest.

    Args:
        longest (`int`): Positions of the base.
        switch (`int`): Length at which its embeddings change.
        moves_beyond (`int`): Length from which on they change at every token.
    """

    longest: int = NO_LIMIT
    switch: int = NO_LIMIT
    moves_beyond: int = NO_LIMIT

    @classmethod
    def of(cls, base: PreTrainedModel) -> "Reach":
        """That of a base, by its config."""
        config = text_config(base)
        longest = getattr(config, "max_position_embeddings", None) or NO_LIMIT
        kinds = _rope_kinds(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {})
        switch = getattr(config, "original_max_position_embeddings", None) or longest
        return cls(
            longest=longest,
            switch=switch if "longrope" in kinds else NO_LIMIT,
            moves_beyond=longest if "dynamic" in kinds else NO_LIMIT,
        )

    def ahead_of(self, length: int) -> int:
        """Tokens that can be processed together with the one that follows `length` tokens."""
        if length >= self.moves_beyond:
            return 0
        ends = (end for end in (self.longest, self.switch, self.moves_beyond) if length < end)
        return max(0, min(ends, default=NO_LIMIT) - length - 1)


def _rope_kinds(parameters: dict) -> set[str]:
    """The kinds of rotary embeddings in a config; there may be one for every kind of layer."""
    kinds = {parameters.get(name) for name in ("rope_type", "type")}
    for value in parameters.values():
        if isinstance(value, dict):
            kinds |= _rope_kinds(value)
    return {kind for kind in kinds if isinstance(kind, str)}
