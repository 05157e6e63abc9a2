"""How the main thread waits for other threads: always with a deadline, and with a line in the log.

After a few seconds a log line names the awaited peers, the beginning and the end of the wait. The first failure of
any thread ends every wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from peers.errors import PeersError, StalledError
from peers.types import LOG_AFTER_S


class Waiting:
    """A condition variable that carries the first failure of any thread.

    Args:
        stall_timeout_s: how long a wait may take before that is an error.
        log: called with one line for a person.
        now: seconds, monotonic.
    """

    def __init__(
        self,
        stall_timeout_s: float,
        log: Callable[[str], None] = lambda line: None,
        now: Callable[[], float] = time.monotonic,
    ):
        self._stall_timeout_s = stall_timeout_s
        self._log = log
        self._now = now
        self._changed = threading.Condition(threading.RLock())
        self._failure: BaseException | None = None

    def restarted(self, peer: int, incarnation: str) -> None:
        """A peer that was there was started again; a subclass overrides this to know before the peer's hello."""

    def touch(self) -> None:
        """Something that a wait may be for has changed."""
        with self._changed:
            self._changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """End every wait, now and later, with the first failure of any thread."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()

    def check(self) -> None:
        """Raise the first failure of any thread."""
        if self._failure is not None:
            raise self._failure

    def until(
        self,
        is_done: Callable[[], bool],
        describe: Callable[[], str],
        timeout_s: float | None = None,
    ) -> None:
        """Wait for a condition; both functions are called with the lock held.

        Raises:
            StalledError: the condition did not come true within the timeout.
            PeersError: the first failure of another thread.
        """
        start = self._now()
        timeout_s = self._stall_timeout_s if timeout_s is None else timeout_s
        next_line_s = LOG_AFTER_S
        with self._changed:
            while True:
                self.check()
                if is_done():
                    return
                waited_s = self._now() - start
                if waited_s >= timeout_s:
                    raise StalledError(f"waited {waited_s:.0f} s for {describe()}")
                if waited_s >= next_line_s:
                    self._log(f"waiting for {describe()} since {waited_s:.0f} s; giving up after {timeout_s:g} s")
                    next_line_s *= 2
                self._changed.wait(min(next_line_s - waited_s, timeout_s - waited_s, 1.0))


def failed(error: BaseException, where: str) -> PeersError:
    """Wrap the error of a thread, so that its message names the thread's task."""
    return error if isinstance(error, PeersError) else PeersError(f"{where}: {type(error).__name__}: {error}")
