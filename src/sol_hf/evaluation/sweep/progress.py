# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A progress bar over the episodes of a sweep, whose estimate of the remaining time ignores parts of earlier runs."""

from tqdm.auto import tqdm


class SweepProgress:
    """Counts episodes, also if no bar is shown.

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
        """Count episodes of an earlier run, which are not part of the estimate of the speed."""
        if not self.bar.disable:
            self.bar.initial += episodes
        self.advance(episodes)

    def close(self) -> None:
        """Close the bar; its last state stays visible."""
        self.bar.close()
