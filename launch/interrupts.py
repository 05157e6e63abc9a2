"""Ctrl-C, SIGTERM and a closed terminal as a counter to check, instead of an exception anywhere."""

from __future__ import annotations

import signal
import time


class Interrupted(Exception):
    """A person ended the launch before training began."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Interrupts:
    """Counts the signals that ask the launcher to end, from `with` to its end (main thread only)."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup SIGHUP is ignored, and stays ignored.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, lambda came, frame: self._came.append(came))
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def count(self) -> int:
        """How many signals came."""
        return len(self._came)

    @property
    def name(self) -> str:
        """The name of the first signal."""
        return "Ctrl-C" if self._came[0] == signal.SIGINT else signal.Signals(self._came[0]).name

    @property
    def exit_code(self) -> int:
        """128 + the first signal, as in shells."""
        return 128 + self._came[0]

    def check(self) -> None:
        """End the launch if a signal came.

        Raises:
            Interrupted: a signal came.
        """
        if self._came:
            raise Interrupted(self._came[0])

    def wait(self, seconds: float) -> None:
        """Sleep; signal handlers run meanwhile."""
        time.sleep(seconds)
