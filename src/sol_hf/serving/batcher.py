# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The queue of a server, and the threads that run what waits in it as batches.

    arrival  →  queue  →  window  →  batch 1  step  .     .     step  .
                                     batch 2  .     step  .     .     step
                                     batch 3  .     .     step  .     .

A request waits for the window, for a free thread, and then for at most one step of every running batch. Rows do not
join a batch that runs.
"""

import logging
import threading
import time
from collections import deque

from ..modeling_sol import SOLForCausalLM
from .batch import Batch
from .errors import RequestRefusedError
from .limits import ServeLimits
from .metrics import Spending
from .row import Row
from .turns import Turns


logger = logging.getLogger(__name__)
STOPPED = "The server is shutting down."


class Batcher:
    """Runs rows in batches.

    Args:
        model ([`SOLForCausalLM`]): The model.
        limits ([`ServeLimits`]): Of rows, batches and queue.

    Attributes:
        running (`list[Row]`): Requests that are in a batch.
        turns ([`Turns`]): What every batch has while it computes.
    """

    def __init__(self, model: SOLForCausalLM, limits: ServeLimits):
        self._model, self._limits, self._spending = model, limits, Spending(model)
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._gathering = threading.Lock()
        self.turns = Turns()
        self.running: list[Row] = []
        self._is_stopped = False
        names = [f"sol-batch-{number}" for number in range(limits.batches)]
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for name in names]
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Requests that wait, and whose clients do too."""
        return sum(not row.is_cancelled for row in list(self._waiting))

    def check_room(self) -> None:
        """Raise a [`RequestRefusedError`] (503) if no further request can wait."""
        if self._is_stopped:
            raise RequestRefusedError(STOPPED, status=503)
        waiting = self.waiting
        if waiting >= self._limits.queue:
            raise RequestRefusedError(
                f"The server is busy: {waiting} requests wait already. Try again later.",
                status=503,
                retry_after=1,
            )

    def submit(self, row: Row) -> None:
        """Put a row into the queue.

        Raises:
            RequestRefusedError: if the queue is full, or the server is shutting down.
        """
        with self._changed:
            self.check_room()
            self._waiting.append(row)
            self._changed.notify_all()

    def stop(self, timeout: float = 5.0) -> None:
        """End all rows, and the threads."""
        with self._changed:
            self._is_stopped = True
            left = [*self._waiting, *self.running]
            self._waiting.clear()
            self._changed.notify_all()
        for row in left:
            row.cancel()
            row.fail(STOPPED)
        for thread in self._threads:
            thread.join(timeout)

    def _work(self) -> None:
        while (rows := self._next()) is not None:
            try:
                with self.turns:
                    Batch(self._model, rows, self._spending, self.turns.pass_on).run()
            except Exception as error:
                logger.exception("A batch of %d requests failed", len(rows))
                for row in rows:
                    row.fail(f"The generation failed: {type(error).__name__}: {error}")
            finally:
                with self._changed:
                    self.running = [row for row in self.running if row not in rows]

    def _next(self) -> list[Row] | None:
        """The rows of the next batch; `None` once the server is shutting down. One thread gathers at a time."""
        with self._gathering, self._changed:
            while not self._is_stopped:
                self._waiting = deque(row for row in self._waiting if not row.is_cancelled)
                if not self._waiting:
                    self._changed.wait()
                    continue
                first = self._waiting[0]
                rows = [row for row in self._waiting if row.company == first.company][: self._limits.rows]
                left = first.arrived + self._limits.window - time.monotonic()
                if left > 0 and len(rows) < self._limits.rows:
                    self._changed.wait(left)
                    continue
                self._waiting = deque(row for row in self._waiting if row not in rows)
                self.running += rows
                return rows
        return None
