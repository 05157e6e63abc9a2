"""A thread pool whose jobs run in order per key: decode what came, encode and publish what goes."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable

from peers.errors import StalledError


class SerialPool:
    """k threads; jobs of one key run one after another, in the order in which they were submitted.

    Args:
        threads: how many.
        on_failure: called once, from the thread, with the first exception that a job raised; the pool
            then runs nothing more.
        limit: how many jobs of one key may wait before `submit` waits for room.
    """

    def __init__(self, threads: int, on_failure: Callable[[BaseException], None], limit: int = 64):
        self._changed = threading.Condition()
        self._queues: dict[Hashable, deque[Callable[[], None]]] = {}
        self._ready: deque[Hashable] = deque()
        self._has_failed = False
        self._is_closed = False
        self._on_failure = on_failure
        self._limit = limit
        self._threads = [
            threading.Thread(target=self._work, name=f"degan-pool-{k}", daemon=True) for k in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, key: Hashable, job: Callable[[], None], timeout_s: float = 60.0) -> bool:
        """Queue a job behind the others of its key; False if the pool is closed (the job is not run).

        Raises:
            StalledError: no room within `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not self._is_closed and len(self._queues.get(key, ())) >= self._limit:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    raise StalledError(f"{self._limit} jobs of {key} have waited for {timeout_s:g} s")
            if self._is_closed:
                return False
            # A key is in `_queues` from its first job until its last has run; that is what keeps the order.
            queue = self._queues.get(key)
            if queue is None:
                self._queues[key] = queue = deque()
                self._ready.append(key)
            queue.append(job)
            self._changed.notify()
            return True

    def drain(self, timeout_s: float, key: Hashable | None = None) -> bool:
        """Wait until nothing (of one key) is queued or running; returns whether that was reached in time."""

        def is_empty() -> bool:
            return key not in self._queues if key is not None else not self._queues

        with self._changed:
            return self._changed.wait_for(lambda: self._is_closed or is_empty(), timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Run nothing more and end the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._ready)
                if self._is_closed:
                    return
                key = self._ready.popleft()
                job = self._queues[key].popleft()
            try:
                job()
            except BaseException as error:  # The pool's owner decides; a thread may not die silently.
                # Told before anybody who waits for the pool goes on.
                with self._changed:
                    is_first = not self._has_failed and not self._is_closed
                    self._has_failed = True
                if is_first:
                    self._on_failure(error)
                with self._changed:
                    self._is_closed = True
                    self._changed.notify_all()
                return
            with self._changed:
                if self._queues[key]:
                    self._ready.append(key)
                else:
                    del self._queues[key]
                self._changed.notify_all()
