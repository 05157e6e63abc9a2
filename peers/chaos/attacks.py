"""The attacks of a byzantine worker on its own contributions; for tests and benchmarks of the robust rules.

| name         | sends |
| ------------ | ----- |
| sign_flip    | the honest values with the opposite sign |
| scale        | a hundred times the honest values |
| constant     | the same value in every coordinate, with ten times the norm of the honest values |
| small_enough | the mean less z standard deviations, of this and its last honest values: within the honest spread |
| nan          | NaN in every coordinate |

Switched on for one worker through the environment only: `DEGAN_FAULTS="w7:attack:sign_flip"`.

Sources: Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For Distributed Learning", NeurIPS 2019
(there the attackers know each other's gradients; this one is alone and estimates from its own last ones).
"""

from __future__ import annotations

from collections import deque

import numpy as np

from peers.errors import SetupError

NAMES = ("sign_flip", "scale", "constant", "small_enough", "nan")
SCALE = 100.0
CONSTANT = 10.0
Z = 1.5
REMEMBERED = 8


def attack_of(text: str, worker: int) -> str | None:
    """The attack that `DEGAN_FAULTS` asks of a worker, if any: items `wN:attack:NAME`; other items are skipped.

    Raises:
        SetupError: there is no attack of that name.
    """
    found = None
    for item in text.split(","):
        who, _, rest = item.strip().partition(":")
        action, _, name = rest.partition(":")
        if action.strip() != "attack":
            continue
        if name.strip() not in NAMES:
            known = ", ".join(NAMES)
            raise SetupError(f"DEGAN_FAULTS: unknown attack {name.strip()!r} in {item.strip()!r}; known: {known}")
        if who.strip() == f"w{worker}":
            found = name.strip()
    return found


class Attack:
    """One attack of one worker. It does not change the honest values.

    Args:
        name: one of `NAMES`.
    """

    def __init__(self, name: str):
        if name not in NAMES:
            raise ValueError(f"unknown attack {name!r}")
        self.name = name
        # The last honest values, for `small_enough`.
        self._seen: deque[np.ndarray] = deque(maxlen=REMEMBERED)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The vector to send instead of `values`, float32 of any shape."""
        with np.errstate(over="ignore", invalid="ignore"):
            match self.name:
                case "sign_flip":
                    return -values
                case "scale":
                    return values * np.float32(SCALE)
                case "constant":
                    return np.full_like(values, CONSTANT * float(np.sqrt(np.mean(np.square(values)))))
                case "nan":
                    return np.full_like(values, np.nan)
                case _:
                    return self._small_enough(values)

    def _small_enough(self, values: np.ndarray) -> np.ndarray:
        self._seen.append(values.copy())
        small: np.ndarray = np.mean(self._seen, axis=0) - np.float32(Z) * np.std(self._seen, axis=0)
        return small
