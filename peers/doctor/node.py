"""One node that has answered: gets one question after the other, and none after it has stopped answering."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import redis

from peers.bus.redis.keys import Keys
from peers.bus.redis.tls import Access
from peers.doctor.findings import Incarnation
from peers.errors import UnseenError
from peers.types import Lease

PROBE_S = 60

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Visit:
    """A visit of the doctor: the node, and the facts of the run that the checks need.

    Attributes:
        url: as in the settings; `?socket=PATH` counts where the node is our own.
        run: name of the run.
        workers: the workers whose node it is.
        is_own: whether it is this host's node.
        needed_bytes: payload that the run may keep there.
        step_bytes: the bytes that one peer reads from there in a step.
        lease_s, beat_s: how long a lease lasts, and how often it is renewed.
        is_dead: whether the process that wrote a lease is certainly gone.
        access: our credentials for the node, and the authority that we trust.
        run_key: the key of the run's MACs; None for no MACs.
    """

    url: str
    run: str
    workers: tuple[int, ...]
    is_own: bool
    needed_bytes: int
    step_bytes: int
    lease_s: float
    beat_s: float
    is_dead: Callable[[Lease], bool]
    access: Access = Access()
    run_key: bytes | None = None


class Node:
    """The questions to one server, and the answers that later questions need.

    Args:
        client: connected to the server.
        visit: the node and the facts of the run.

    Attributes:
        keys: names of the run's keys.
        probes: by type, the keys that are written to see whether that is allowed.
        refused: by command, the reason of the refusal; once `facts.writing` has tried.
        user: our user there; once `facts.access` has asked.
        incarnations: the leases that were found; once `facts.running` has looked.
        own_bytes: of all keys of the run whose size the server shows; once `facts.left_over` has looked.
    """

    def __init__(self, client: redis.Redis, visit: Visit):
        self._client, self.visit = client, visit
        self.keys = Keys(visit.run)
        self.gone = ""
        self.refused: dict[str, str] = {}
        self.user = "default"
        self.incarnations: list[Incarnation] = []
        self.own_bytes = 0
        token = os.urandom(6).hex()
        self.probes = {kind: self.keys.probe(visit.workers[0], token, kind) for kind in ("string", "stream", "hash")}

    def ask(self, question: Callable[[redis.Redis], Answer]) -> Answer:
        """The answer to one question. Raises UnseenError."""
        self.check()
        try:
            return question(self._client)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self.gone = f"it stopped answering: {error}"
            raise UnseenError(self.gone) from None
        except redis.RedisError as error:
            # A pipeline's error text begins with the whole command.
            why = str(error).rpartition("of pipeline caused error: ")[2]
            raise UnseenError(why or type(error).__name__) from None

    def check(self) -> None:
        """Raise UnseenError if the server has stopped answering."""
        if self.gone:
            raise UnseenError(self.gone)

    def may(self, question: Callable[[redis.Redis], Any]) -> bool:
        """Whether a question is answered."""
        try:
            self.ask(question)
            return True
        except UnseenError:
            return False

    def command(self, *words: str) -> Any:
        """The answer to a command that redis-py has no method for. Raises UnseenError."""
        return self.ask(lambda client: client.execute_command(*words))  # type: ignore[no-untyped-call]

    def config(self, name: str) -> str:
        """One setting of the server. Raises UnseenError."""
        return text(self.ask(lambda client: client.config_get(name))[name])

    def info(self, section: str) -> dict[str, Any]:
        """One section of INFO. Raises UnseenError."""
        return self.ask(lambda client: client.info(section))

    def forget(self) -> None:
        """Delete the probes."""
        for key in self.probes.values():
            self.may(partial(_delete, key=key))

    @property
    def login(self) -> dict[str, Any]:
        """The credentials with which the client has connected."""
        return self._client.connection_pool.connection_kwargs


def _delete(client: redis.Redis, key: str) -> None:
    client.delete(key)


def text(value: Any) -> str:
    """A server's text as str."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
