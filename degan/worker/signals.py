"""The signals that a worker's process received, kept over all of its incarnations."""

from __future__ import annotations

import signal
from typing import Any


class Signals:
    """The requests to the process: leave alone (Ctrl-C, SIGTERM, SIGUSR1) or stop all together (SIGUSR2).

    The first signal lets the step end; a second one of the same kind ends the process at once. Before the
    first step there is nothing to save, so a request to leave interrupts any wait.

    Attributes:
        has_begun: set by the loop when training begins.
    """

    def __init__(self):
        self.is_leaving = self.is_together = self.has_begun = False

    def install(self) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._leave)
        if hasattr(signal, "SIGUSR2"):
            signal.signal(signal.SIGUSR2, self._stop)

    def _leave(self, number: int, frame: Any) -> None:
        if self.is_leaving:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.is_leaving = True
        if not self.has_begun:
            raise KeyboardInterrupt

    def _stop(self, number: int, frame: Any) -> None:
        self.is_together = True
