# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A progress bar over the episodes of a sweep; parts of an earlier run do not enter its estimate of the time left."""

from tqdm.auto import tqdm


class SweepProgress:
    """Counts episodes; also where no bar is shown.

    Args:
        total (`int`): Episodes of the sweep.
        shown (`bool`): Whether to show a bar.
    """

    def __init__(self, total: int, shown: bool):
        self.done = 0
        self.bar = tqdm(total=total, unit="episode", smoothing=0, disable=not shown)

    def advance(self, episodes: int) -> None:
        """Count episodes that were run."""
        self.done += episodes
        self.bar.update(episodes)

    def skip(self, episodes: int) -> None:
        """Count episodes of an earlier run, which say nothing about the speed."""
        if not self.bar.disable:
            self.bar.initial += episodes
        self.advance(episodes)

    def close(self) -> None:
        """Close the bar; what it shows stays."""
        self.bar.close()
