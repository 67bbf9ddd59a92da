# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a server takes on."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ServeLimits:
    """Limits of a server.

    Args:
        rows (`int`, *optional*, defaults to 8): Requests in a batch at most.
        batches (`int`, *optional*, defaults to 4): Batches that run at the same time at most, taking turns.
        queue (`int`, *optional*, defaults to 64): Requests that wait at most; further ones are refused (503).
        window (`float`, *optional*, defaults to 0.01): Seconds that a request waits for others to share its batch.
        max_new_tokens (`int`, *optional*, defaults to 1024): New tokens of an answer at most.
        max_prompt_tokens (`int`, *optional*): Tokens of a prompt at most; by default what the base has positions for.
        max_body_bytes (`int`, *optional*, defaults to 2 ** 20): Bytes of a request at most (413).

    Raises:
        ValueError: for a limit that lets nothing through.
    """

    rows: int = 8
    batches: int = 4
    queue: int = 64
    window: float = 0.01
    max_new_tokens: int = 1024
    max_prompt_tokens: int | None = None
    max_body_bytes: int = 2**20

    def __post_init__(self):
        for name in ("rows", "batches", "queue", "max_new_tokens", "max_prompt_tokens", "max_body_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if not 0 <= self.window <= 10:
            raise ValueError(f"`window` must be 0 to 10 seconds, got {self.window}.")
