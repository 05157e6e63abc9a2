"""A thread beside the main one that runs jobs in the order in which they were submitted: encode, publish."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from peers.errors import StalledError
from peers.types import LOG_AFTER_S


class SenderThread:
    """One thread, one queue of jobs.

    Args:
        on_failure: called once, from the thread, with the first exception that a job raised; no further job runs
            then.
        limit: how many jobs may wait before `submit` waits for room.
    """

    def __init__(self, on_failure: Callable[[BaseException], None], limit: int = 64):
        self._changed = threading.Condition()
        # The first job is the running one, until it has ended.
        self._jobs: deque[Callable[[], None]] = deque()
        self._is_closed = False
        self._on_failure = on_failure
        self._limit = limit
        self._thread = threading.Thread(target=self._work, name="degan-pool", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None], timeout_s: float = 60.0) -> bool:
        """Queue a job; False if the thread is closed (the job is not run).

        Raises:
            StalledError: no room within `timeout_s`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._is_closed or len(self._jobs) <= self._limit, timeout_s):
                raise StalledError(f"{self._limit} jobs have waited for {timeout_s:g} s")
            if self._is_closed:
                return False
            self._jobs.append(job)
            self._changed.notify_all()
            return True

    def drain(self, timeout_s: float, log: Callable[[str], None] = lambda line: None) -> bool:
        """Wait until nothing is queued or running; returns whether that was reached in time.

        Args:
            log: called with one line for a person, if the wait takes long.
        """
        with self._changed:
            if self._changed.wait_for(self._is_idle, min(LOG_AFTER_S, timeout_s)):
                return True
            log(f"waiting for our own Redis to take what was said since {LOG_AFTER_S:g} s, {timeout_s:g} s at most")
            return self._changed.wait_for(self._is_idle, max(0.0, timeout_s - LOG_AFTER_S))

    def _is_idle(self) -> bool:
        return self._is_closed or not self._jobs

    def close(self, timeout_s: float = 5.0) -> None:
        """Run no further job and end the thread."""
        self._end()
        self._thread.join(timeout_s)

    def _end(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._jobs)
                if self._is_closed:
                    return
                job = self._jobs[0]
            try:
                job()
            except BaseException as error:  # The thread's owner decides; a thread may not die silently.
                # The owner is told before any waiting thread goes on. After the end no owner needs to know.
                if not self._is_closed:
                    self._on_failure(error)
                self._end()
                return
            with self._changed:
                self._jobs.popleft()
                self._changed.notify_all()
