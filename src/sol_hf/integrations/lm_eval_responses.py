# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""lm-eval's cache of responses, which holds no word about the model that gave them.

lm-eval looks a response up by the hash of its request. Three things are added to the same file: the settings of the
model, so that answers of others are refused; a prefix of every key, so that no other model finds ours; and what every
response has spent, so that a run that is answered from the file reports the same as the run that filled it.
"""

from typing import Any

import torch
from lm_eval.api.model import CacheHook, hash_args

from .lm_eval_spending import Spending


PREFIX = "sol_hf "
FINGERPRINT = "settings"
SPENT = "spent "


class ResponseCache:
    """The file of `--use_cache`, for one model and its settings.

    Args:
        db (`SqliteDict`): lm-eval's own dictionary. The keys that lm-eval uses get a prefix from now on.
        settings (`dict[str, Any]`): All that the responses depend on.

    Raises:
        ValueError: if the file holds responses of other settings, or of another model.
    """

    def __init__(self, db: Any, settings: dict[str, Any]):
        self.db = db
        self.asked: set[str] = set()
        plain_key = self.db.encode_key
        foreign = [key for key in db if not str(key).startswith(PREFIX)]

        def encode_key(key: str) -> str:
            if not key.startswith((FINGERPRINT, SPENT)):
                self.asked.add(key)
            return plain_key(PREFIX + key)

        self.db.encode_key = encode_key
        found = db.get(FINGERPRINT)
        if found is None and foreign:
            raise ValueError(
                "The response cache was filled under other settings (another model, or an earlier version of sol_hf): "
                "give `--use_cache` another path."
            )
        if found is not None and found != settings:
            raise ValueError(
                f"The response cache was filled under other settings ({differences(found, settings)}): give "
                "`--use_cache` another path."
            )
        db[FINGERPRINT] = settings

    def keep(self, task: str, key: str, spent: torch.Tensor) -> None:
        """Store what a response has spent."""
        self.db[SPENT + key] = {**(self.db.get(SPENT + key) or {}), task: spent.tolist()}

    def served(self, computed: Spending) -> Spending:
        """What the responses have spent that lm-eval took from the file.

        Args:
            computed ([`Spending`]): Of the responses that were computed.
        """
        served, known = Spending(computed.space, computed.rule), {key for _, key in computed.records}
        for key in self.asked - known:
            for task, spent in (self.db.get(SPENT + key) or {}).items():
                served.put(task, key, torch.tensor(spent, dtype=torch.double))
        return served


class CountingHook(CacheHook):
    """A hook that also notes what the rows of a generated batch have spent, in the order of its responses.

    Args:
        hook (`CacheHook`): lm-eval's own.
        count: Called with the key of a response and what it has spent.
    """

    def __init__(self, hook: CacheHook, count):
        super().__init__(None)
        self.dbdict, self.count = hook.dbdict, count
        self.generated: list[torch.Tensor] = []

    def add_partial(self, attr: str, req, res) -> None:
        if attr == "generate_until" and self.generated:
            self.count(hash_args(attr, req), self.generated.pop(0))
        super().add_partial(attr, req, res)


def differences(found: dict[str, Any], mine: dict[str, Any]) -> str:
    """The settings in which two runs differ, in words."""
    names = [name for name in {**found, **mine} if found.get(name) != mine.get(name)]
    parts = []
    for name in names:
        old, new = found.get(name), mine.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            parts += [f"{name}: {differences(old, new)}"]
        else:
            parts.append(f"{name} {old!r}, now {new!r}")
    return "; ".join(parts)
