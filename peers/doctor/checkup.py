"""The checks of one node: what its Redis says of itself, what we may do there, and how far away it is.

`look` asks, one question after the other, and `verdicts` judges. It changes nothing: what it writes, to see whether
it may and how fast, are a few keys under the run's own prefix that expire after a minute and are deleted before it
returns. A question that the server refuses costs its own line and no other; a server that stops answering is not
asked again, so a node costs at most a few seconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import redis

from peers.bus.redis.authenticate import Authenticator
from peers.bus.redis.client import address, connect, split_socket
from peers.bus.redis.keys import Keys
from peers.bus.redis.tls import Access
from peers.doctor import findings, goodput
from peers.doctor.findings import FAIL, OK, WARN, Finding, Incarnation
from peers.errors import UnreachableError, UnseenError
from peers.types import Lease

PROBE_S = 60
PINGS, TIMES = 20, 5
SCAN_S = 2.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Visit:
    """What one node is looked at for.

    Attributes:
        url: as in the settings; `?socket=PATH` counts where the node is our own.
        run: name of the run.
        workers: whose node it is.
        is_own: it is this host's.
        needed_bytes: payload that the run may keep there.
        step_bytes: what one peer reads from there in a step.
        lease_s, beat_s: how long a lease lasts, and how often it is renewed.
        is_dead: whether the process that wrote a lease is certainly gone.
        access: what is shown to the node, and whom we trust.
        run_key: with which the run's leases are sealed; None for no seals.
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


def look(visit: Visit) -> list[Finding]:
    """All checks of a node, in the order in which a person reads them; never raises for what a server does."""
    far, near = split_socket(visit.url)
    try:
        client = connect(far, 0.0, access=visit.access)
    except UnreachableError as error:
        return [findings.unreachable(error, far, address(far))]
    found = [Finding("reachable", OK, f"{address(far)} answers")]
    try:
        if visit.is_own and near != far:
            found.append(_near(near, visit.access))
        return found + _Checkup(client, visit).all()
    finally:
        _close(client)


def _near(url: str, access: Access) -> Finding:
    """The socket by which this host's own worker reaches its node."""
    try:
        _close(connect(url, 0.0, access=access))
    except UnreachableError as error:
        return findings.unreachable(error, url, address(url))._replace(check="socket")
    return Finding("socket", OK, f"{address(url)} answers")


def _close(client: redis.Redis) -> None:
    client.close()
    client.connection_pool.disconnect()


class _Checkup:
    """One server that has answered, asked one thing after the other."""

    def __init__(self, client: redis.Redis, visit: Visit):
        self._client, self._visit = client, visit
        self._keys = Keys(visit.run)
        self._gone = ""
        self._refused: dict[str, str] = {}
        self._user = "default"
        self._incarnations: list[Incarnation] = []
        # Bytes of all keys of the run, where they can be seen.
        self._own_bytes = 0
        token = os.urandom(6).hex()
        self._probes = {kind: self._keys.probe(visit.workers[0], token, kind) for kind in ("string", "stream", "hash")}

    def all(self) -> list[Finding]:
        checks = {
            "version": self._version,
            "access": self._access,
            "writing": self._writing,
            "run": self._running,
            "left over": self._left_over,
            "maxmemory": self._memory,
            "policy": self._policy,
            "output buffer": self._output_buffer,
            "persistence": self._persistence,
            "clock": self._clock,
            "round trip": self._round_trip,
            "goodput": self._goodput,
        }
        return [finding for name, check in checks.items() for finding in self._try(name, check)]

    def _try(self, name: str, check: Callable[[], Finding | list[Finding]]) -> list[Finding]:
        try:
            found = check()
        except UnseenError as error:
            return [Finding(name, WARN, findings.printable(f"cannot be seen ({error})"))]
        except (KeyError, ValueError, TypeError, IndexError, AttributeError):
            return [Finding(name, WARN, "cannot be seen (an answer that no Redis gives)")]
        return found if isinstance(found, list) else [found]

    def _ask(self, question: Callable[[redis.Redis], Answer]) -> Answer:
        """One question. Raises UnseenError."""
        if self._gone:
            raise UnseenError(self._gone)
        try:
            return question(self._client)
        except (redis.ConnectionError, redis.TimeoutError) as error:
            self._gone = f"it stopped answering: {error}"
            raise UnseenError(self._gone) from None
        except redis.RedisError as error:
            # A pipeline's errors begin with the whole command.
            why = str(error).rpartition("of pipeline caused error: ")[2]
            raise UnseenError(why or type(error).__name__) from None

    def _may(self, question: Callable[[redis.Redis], Any]) -> bool:
        try:
            self._ask(question)
            return True
        except UnseenError:
            return False

    def _config(self, name: str) -> str:
        """One setting of the server. Raises UnseenError."""
        return _text(self._ask(lambda client: client.config_get(name))[name])

    # --- who it is, and who we are ------------------------------------------------------------

    def _version(self) -> Finding:
        try:
            info = self._ask(lambda client: client.info("server"))
        except UnseenError:
            # A user who may not see INFO may say HELLO; a stand-in has nothing else.
            words = [_text(word) for word in self._ask(lambda client: client.execute_command("HELLO"))[:4]]
            hello = dict(zip(words[::2], words[1::2], strict=True))
            return findings.version(hello["server"], hello["version"])
        if "valkey_version" in info:
            return findings.version("valkey", str(info["valkey_version"]))
        return findings.version(str(info.get("server_name", "redis")), str(info["redis_version"]))

    def _access(self) -> Finding:
        login = self._client.connection_pool.connection_kwargs
        try:
            self._user = _text(self._ask(lambda client: client.execute_command("ACL WHOAMI")))
        except UnseenError:
            # Where ACL is closed to us we are whom the URL says.
            self._user = str(login.get("username") or "default")
        dangerous = {
            "CONFIG": lambda client: client.config_get("maxmemory"),
            "EVAL": lambda client: client.eval("return 1", 0),
            "ACL": lambda client: client.execute_command("ACL GETUSER", self._user),
        }
        may = [name for name, ask in dangerous.items() if self._may(ask)]
        if self._gone:
            raise UnseenError(self._gone)
        return findings.access(self._user, bool(login.get("password")), may)

    def _writing(self) -> Finding:
        """Everything that a worker says to its own node, said once."""
        text, stream, table = self._probes.values()

        def claim(pipeline: redis.client.Pipeline) -> None:
            pipeline.multi()
            pipeline.expire(text, PROBE_S)

        writing = {
            "EXPIRE": lambda client: client.expire(text, PROBE_S),
            "DEL": lambda client: client.delete(text),
            "SET": lambda client: client.set(text, b"1", ex=PROBE_S),
            "WATCH and MULTI": lambda client: client.transaction(claim, text),
            "XADD": lambda client: goodput.begin_stream(client, stream, b"1", PROBE_S),
            "HSET": lambda client: client.pipeline().hset(table, "f", b"1").expire(table, PROBE_S).execute(),
            "HDEL": lambda client: client.hdel(table, "f"),
        }
        reading = {
            "GET": lambda client: client.get(text),
            "MGET": lambda client: client.mget([text]),
            "XRANGE": lambda client: client.xrange(stream, count=1),
            "XREAD": lambda client: client.xread({stream: "0"}, count=1),
            "HMGET": lambda client: client.hmget(table, ["f"]),
        }
        for name, question in (writing | reading).items():
            if name in writing and "EXPIRE" in self._refused:
                # Nothing is written that would not go away by itself.
                self._refused[name] = self._refused["EXPIRE"]
                continue
            try:
                self._ask(question)
            except UnseenError as error:
                self._refused[name] = str(error)
        self._forget()
        if self._gone:
            raise UnseenError(self._gone)
        prefix = f"degan:{self._visit.run}:{self._visit.workers[0]}:"
        return findings.writing(self._refused, self._visit.is_own, prefix, self._user)

    def _forget(self) -> None:
        for key in self._probes.values():
            self._may(lambda client, key=key: client.delete(key))

    # --- what it keeps ------------------------------------------------------------------------

    def _memory(self) -> Finding:
        info = self._ask(lambda client: client.info("memory"))
        return findings.memory(
            int(info["maxmemory"]),
            int(info["used_memory"]),
            self._own_bytes,
            int(info.get("total_system_memory", 0)),
            self._visit.needed_bytes,
        )

    def _policy(self) -> Finding:
        info = self._ask(lambda client: client.info("memory"))
        return findings.policy(str(info["maxmemory_policy"]), int(info["maxmemory"]))

    def _output_buffer(self) -> Finding:
        return findings.output_buffer(self._config("client-output-buffer-limit"))

    def _persistence(self) -> Finding:
        config = {}
        for name in ("save", "appendfsync", "stop-writes-on-bgsave-error"):
            try:
                config[name] = self._config(name)
            except UnseenError:
                continue
        return findings.persistence(self._ask(lambda client: client.info("persistence")), config)

    # --- how far away it is -------------------------------------------------------------------

    def _clock(self) -> Finding:
        samples = []
        for _ in range(TIMES):
            before = time.time()
            seconds, microseconds = self._ask(lambda client: client.time())
            after = time.time()
            samples.append((after - before, seconds + microseconds / 1e6 - (before + after) / 2))
        # The quickest answer is the one that half of its time corrects best.
        return findings.clock(min(samples)[1])

    def _round_trip(self) -> Finding:
        times_s: list[float] = []
        while len(times_s) < PINGS and sum(times_s) < SCAN_S:
            began = time.perf_counter()
            self._ask(lambda client: client.ping())
            times_s.append(time.perf_counter() - began)
        return findings.round_trip(times_s)

    def _goodput(self) -> Finding:
        step_bytes, stream = self._visit.step_bytes, self._probes["stream"]
        why_not = self._refused.get("XADD") or self._refused.get("XRANGE") or self._has_no_room()
        if why_not:
            # What the workers of a run that is going on have said can be read.
            outs = [
                self._keys.out(incarnation.lease.worker, incarnation.lease.incarnation)
                for incarnation in self._incarnations
            ]
            return findings.speed(None, goodput.read_rate(self._ask, outs), step_bytes, why_not)
        try:
            self._ask(lambda client: goodput.begin_stream(client, stream, b"1", PROBE_S))
            written = goodput.write_rate(self._ask, stream)
            return findings.speed(written, goodput.read_rate(self._ask, [stream]), step_bytes)
        finally:
            self._forget()

    def _has_no_room(self) -> str:
        """A run that is going on may not be told that its node is full because we try how fast it is."""
        try:
            info = self._ask(lambda client: client.info("memory"))
            limit, used = int(info["maxmemory"]), int(info["used_memory"])
        except (UnseenError, KeyError, ValueError):
            return ""
        return "it is almost full" if limit and limit - used < 4 * goodput.TRANSFER_BYTES else ""

    # --- who is there -------------------------------------------------------------------------

    def _running(self) -> list[Finding]:
        visit = self._visit
        keys = [self._keys.lease(worker) for worker in visit.workers]
        values = self._ask(lambda client: client.mget(keys))
        authenticator = Authenticator(visit.run_key, self._keys, lambda line: None)
        for worker, key, value in zip(visit.workers, keys, values, strict=True):
            lease = authenticator.open_lease(worker, value)
            if lease is None:
                continue
            left_s = self._ask(lambda client, key=key: client.pttl(key)) / 1000
            silent_s = max(0.0, visit.lease_s - left_s)
            self._incarnations.append(
                Incarnation(lease, silent_s, left_s, visit.is_dead(lease) or silent_s > 2 * visit.beat_s + 1)
            )
        strange = [
            Finding("run", FAIL, f"worker {worker}: {why}") for worker, why in sorted(authenticator.strangers.items())
        ]
        return strange or findings.running(self._incarnations)

    def _left_over(self) -> Finding:
        live = {
            f"degan:{self._visit.run}:{incarnation.lease.worker}:{incarnation.lease.incarnation}:"
            for incarnation in self._incarnations
        }
        leases = {self._keys.lease(incarnation.lease.worker) for incarnation in self._incarnations}
        count, total_bytes, forever, deadline = 0, 0, [], time.monotonic() + SCAN_S
        knows_sizes = True
        for key in self._scan(deadline):
            size_bytes = 0
            if knows_sizes:
                try:
                    size_bytes = int(self._ask(lambda client, key=key: client.memory_usage(key)) or 0)
                except UnseenError:
                    knows_sizes = False
            self._own_bytes += size_bytes
            if key in leases or any(key.startswith(prefix) for prefix in live):
                continue
            count, total_bytes = count + 1, total_bytes + size_bytes
            if self._ask(lambda client, key=key: client.ttl(key)) == -1:
                forever.append(key)
        return findings.left_over(count, total_bytes if knows_sizes else None, len(forever), min(forever, default=""))

    def _scan(self, deadline: float) -> Iterator[str]:
        """The keys of the run, until the deadline. Raises UnseenError."""
        cursor, seen = 0, set()
        while time.monotonic() < deadline:
            cursor, keys = self._ask(
                lambda client: client.scan(cursor, match=self._keys.everything(), count=1000)  # noqa: B023
            )
            for key in map(_text, keys):
                # Far away what is asked of each key takes longer than the scan.
                if key not in seen and time.monotonic() < deadline:
                    seen.add(key)
                    yield key
            if not cursor:
                return


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
