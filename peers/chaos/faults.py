"""Faults by script: parses `DEGAN_FAULTS`, and decides which faults are due at a point of a step. Others inject them.

    w1@step12:kill, w2@step20.after_publish:stop:8s, redis0@step30:restart, w7:attack:sign_flip, w3:slow:10

An item is `WHO[@stepN[.HOOK]]:ACTION[:ARGUMENT]`; WHO is a worker (`w1`) or the Redis of its node (`redis1`).

| who    | action                | at                        | what happens |
| ------ | --------------------- | ------------------------- | ------------ |
| wN     | kill, term, int, usr1 | any hook of a step        | the worker sends itself that signal |
| wN     | stop:Ns               | any hook of a step        | SIGSTOP; another process sends SIGCONT N seconds later |
| wN     | nan                   | a step, or always         | its own gradient is NaN |
| wN     | slow:F                | from a step on, or always | a step takes this worker F times as long |
| wN     | disk_full, torn       | a saving, or always       | no space is left; a file loses its second half |
| wN     | attack:NAME           | always                    | it sends byzantine values (`peers.chaos.attacks`) |
| redisN | restart[:Ns]          | a step of worker N        | ended, and after N seconds started from its disk |
| redisN | kill[:Ns]             | a step of worker N        | killed; an empty one after N seconds, or at `back` |
| redisN | stop:Ns               | a step of worker N        | frozen for N seconds |
| redisN | full:BYTES[:Ns]       | a step of worker N        | `maxmemory` is BYTES, for N seconds or until `back` |
| redisN | back                  | a step of worker N        | the Redis is there again, with unlimited memory |

Without a hook a fault is due when the step begins; `disk_full` and `torn` are due at the first saving in or after the
step. The process that started a Redis injects its faults, not a worker.

`random:seed=7:every=20:actions=kill+stop+restart:until=400` stands for a list that the seed and the number of
workers determine, one item every 20 steps.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peers.chaos.attacks import NAMES as ATTACKS
from peers.errors import SetupError

VARIABLE = "DEGAN_FAULTS"
BEGIN, SAVING = "", "saving"
WIRE_HOOKS = ("before_publish", "between_chunks", "after_publish")
HOOKS = (*WIRE_HOOKS, "before_apply", SAVING)

SIGNALS = ("kill", "term", "int", "usr1")
DISK = ("disk_full", "torn")
# The actions that may hold from the beginning on, and those that hold from their step on.
STANDING = ("slow", "nan", "attack", *DISK)
LASTING = ("slow", "attack")
WORKER_ACTIONS = (*SIGNALS, "stop", *STANDING)
REDIS_ACTIONS = ("restart", "kill", "stop", "full", "back")
# The drawn actions that are for a Redis, and the name that each has in the script; all others are for a worker.
DRAWN_REDIS = {"restart": "restart", "redis_kill": "kill", "redis_stop": "stop"}
DRAWN = ("kill", "term", "stop", "nan", *DISK, *DRAWN_REDIS)

_ITEM = re.compile(r"(?P<who>w|redis)(?P<number>\d{1,6})(@step(?P<step>\d{1,12})(\.(?P<hook>\w+))?)?:(?P<what>.+)")
_SECONDS = re.compile(r"\d+(\.\d+)?s")
SHAPE = "WHO[@stepN[.HOOK]]:ACTION[:ARGUMENT] with WHO wN or redisN"


@dataclass(frozen=True)
class Fault:
    """One item.

    Attributes:
        is_redis: whether the fault is for the Redis of the worker's node, not for the worker.
        number: of the worker.
        step: None for a fault that holds from the beginning on.
        hook: one of `HOOKS`, or empty for the beginning of the step.
        action: one of `WORKER_ACTIONS` or `REDIS_ACTIONS`.
        arguments: the words after the action, as in the script.
    """

    is_redis: bool
    number: int
    step: int | None
    hook: str
    action: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        who = f"{'redis' if self.is_redis else 'w'}{self.number}"
        when = "" if self.step is None else f"@step{self.step}" + (f".{self.hook}" if self.hook else "")
        return f"{who}{when}:" + ":".join((self.action, *self.arguments))

    @property
    def seconds(self) -> float | None:
        """How long the fault lasts; None where the script gives no time."""
        found = [word for word in self.arguments if _SECONDS.fullmatch(word)]
        return float(found[0][:-1]) if found else None

    @property
    def factor(self) -> float:
        """The factor of `slow`."""
        return float(self.arguments[0])

    @property
    def size_bytes(self) -> int:
        """The memory limit of `full`."""
        return int(self.arguments[0])


class Plan:
    """The faults of one worker, or of one Redis. A fault is due once, or in every step from the beginning on.

    Args:
        faults: all of the same worker or Redis.
    """

    def __init__(self, faults: Iterable[Fault]):
        self.faults = tuple(faults)
        self._open = list(self.faults)

    def due(self, step: int, hook: str = BEGIN) -> list[Fault]:
        """The faults that are due now. A fault that lasts by itself (`LASTING`) is returned once.

        Only a fault at a saving, or of a Redis, or in `LASTING`, may come later than in its step.
        """
        may_be_late = hook == SAVING
        found = [
            fault
            for fault in self._open
            if fault.hook == hook
            and (
                fault.step is None
                or fault.step == step
                or fault.step < step
                and (may_be_late or fault.is_redis or fault.action in LASTING)
            )
        ]
        again = [fault for fault in found if fault.step is None and fault.action not in LASTING]
        self._open = [fault for fault in self._open if fault not in found or fault in again]
        return found


@dataclass(frozen=True)
class Faults:
    """A whole script; `str` gives a text that parses to the same."""

    faults: tuple[Fault, ...] = ()

    @classmethod
    def parse(cls, text: str, workers: int | None = None) -> Faults:
        """Read a script.

        Args:
            text: items separated by commas.
            workers: how many the run has; a number beyond that is an error, and `random` needs it.

        Raises:
            SetupError: names the item and what was expected.
        """
        found: list[Fault] = []
        for item in filter(None, (part.strip() for part in text.split(","))):
            if item.startswith("random"):
                found += _drawn(item, workers)
                continue
            fault = _parsed(item)
            if workers is not None and fault.number >= workers:
                raise _wrong(item, f"a number from 0 to {workers - 1}")
            found.append(fault)
        return cls(tuple(found))

    def for_worker(self, number: int, hooks: Sequence[str] = (BEGIN, *HOOKS)) -> Plan:
        """The faults that a worker injects into itself at these hooks."""
        return Plan(f for f in self.faults if not f.is_redis and f.number == number and f.hook in hooks)

    def for_redis(self, number: int) -> Plan:
        """The faults of the Redis of a worker's node, by that worker's step."""
        return Plan(f for f in self.faults if f.is_redis and f.number == number)

    def __str__(self) -> str:
        return ", ".join(map(str, self.faults))


def _wrong(item: str, expected: str) -> SetupError:
    return SetupError(f"{VARIABLE}: {item!r}: expected {expected}")


def _parsed(item: str) -> Fault:
    match = _ITEM.fullmatch(item)
    if match is None:
        raise _wrong(item, SHAPE)
    is_redis, step, hook = match["who"] == "redis", match["step"], match["hook"] or BEGIN
    action, *arguments = match["what"].split(":")
    allowed = REDIS_ACTIONS if is_redis else WORKER_ACTIONS
    if action not in allowed:
        raise _wrong(item, f"one of the actions {', '.join(allowed)}")
    if step is None and (is_redis or action not in STANDING):
        raise _wrong(item, f"a step, as in {match['who']}{match['number']}@step12:{action}")
    if step is not None and action == "attack":
        raise _wrong(item, "no step: an attack holds from the beginning on")
    if action in DISK:
        hook = hook or SAVING
        if hook != SAVING:
            raise _wrong(item, f"{action} at the hook {SAVING}")
    elif hook and (is_redis or action in STANDING):
        raise _wrong(item, f"no hook: {action} is due when the step begins")
    elif hook and hook not in HOOKS:
        raise _wrong(item, f"one of the hooks {', '.join(HOOKS)}")
    _check_arguments(item, action, arguments)
    return Fault(is_redis, int(match["number"]), None if step is None else int(step), hook, action, tuple(arguments))


def _check_arguments(item: str, action: str, arguments: list[str]) -> None:
    expected, is_right = "no argument", not arguments
    match action:
        case "stop":
            expected, is_right = "seconds, as in stop:8s", len(arguments) == 1 and _are_seconds(arguments)
        case "slow":
            expected = "a factor of at least 1, as in slow:10"
            is_right = len(arguments) == 1 and _is_factor(arguments[0])
        case "attack":
            expected = f"one of the attacks {', '.join(ATTACKS)}"
            is_right = len(arguments) == 1 and arguments[0] in ATTACKS
        case "full":
            expected = "bytes, as in full:1000000 or full:1000000:20s"
            is_right = 1 <= len(arguments) <= 2 and _is_size(arguments[0]) and _are_seconds(arguments[1:])
        case "restart" | "kill" if arguments:
            # A killed worker stays so: a worker cannot restart itself.
            is_redis = item.startswith("redis")
            expected = f"nothing or seconds, as in {action}:8s" if is_redis else expected
            is_right = is_redis and len(arguments) == 1 and _are_seconds(arguments)
    if not is_right:
        raise _wrong(item, expected)


def _are_seconds(words: list[str]) -> bool:
    return all(len(word) <= 12 and _SECONDS.fullmatch(word) for word in words)


def _is_factor(word: str) -> bool:
    return bool(re.fullmatch(r"\d{1,6}(\.\d{1,6})?", word)) and float(word) >= 1


def _is_size(word: str) -> bool:
    return bool(re.fullmatch(r"[1-9]\d{0,17}", word))


def _drawn(item: str, workers: int | None) -> list[Fault]:
    """The list that a `random` item stands for."""
    shape = "random:seed=N:every=STEPS:actions=A+B:until=STEP"
    words = dict(word.partition("=")[::2] for word in item.split(":")[1:])
    numbers = {name: words.get(name, "") for name in ("seed", "every", "until")}
    if words.keys() != {*numbers, "actions"} or not all(re.fullmatch(r"\d{1,9}", word) for word in numbers.values()):
        raise _wrong(item, shape)
    if not workers:
        raise _wrong(item, "a number of workers to draw from")
    actions, every = words["actions"].split("+"), int(numbers["every"])
    if unknown := [action for action in actions if action not in DRAWN]:
        raise _wrong(item, f"actions of {', '.join(DRAWN)}, not {unknown[0]!r}")
    if not every:
        raise _wrong(item, "every= of at least 1")
    # A generator of its own kind, whose numbers are the same in every version of Python.
    draw = random.Random(f"degan faults {numbers['seed']}")
    steps = range(every, int(numbers["until"]) + 1, every)
    return [_draw_one(draw, draw.choice(actions), step, workers) for step in steps]


def _draw_one(draw: random.Random, action: str, step: int, workers: int) -> Fault:
    number, seconds = draw.randrange(workers), f"{draw.randint(1, 8)}s"
    if action in DRAWN_REDIS:
        return Fault(True, number, step, BEGIN, DRAWN_REDIS[action], (seconds,))
    hook = draw.choice((BEGIN, *WIRE_HOOKS, "before_apply"))
    if action in DISK:
        hook = SAVING
    elif action in STANDING:
        hook = BEGIN
    return Fault(False, number, step, hook, action, (seconds,) if action == "stop" else ())
