"""The facts that each check asks of a node, as the arguments of its function in `peers.doctor.findings`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import redis

from peers.bus.redis.authenticate import Authenticator
from peers.doctor import goodput
from peers.doctor.findings import Incarnation
from peers.doctor.node import PROBE_S, Node, text
from peers.errors import UnseenError

PINGS, TIMES = 20, 5
SCAN_S = 2.0


# --- the server, and our user ---------------------------------------------------------------------


def version(node: Node) -> tuple[str, str]:
    try:
        info = node.info("server")
    except UnseenError:
        # A user without the right to INFO may say HELLO; a stand-in has no other command for it.
        words = [text(word) for word in node.command("HELLO")[:4]]
        hello = dict(zip(words[::2], words[1::2], strict=True))
        return hello["server"], hello["version"]
    if "valkey_version" in info:
        return "valkey", str(info["valkey_version"])
    return str(info.get("server_name", "redis")), str(info["redis_version"])


def access(node: Node) -> tuple[str, bool, list[str]]:
    try:
        node.user = text(node.command("ACL WHOAMI"))
    except UnseenError:
        # Where ACL is closed to us, our user is the one of the URL.
        node.user = str(node.login.get("username") or "default")
    dangerous: dict[str, Callable[[redis.Redis], Any]] = {
        "CONFIG": lambda client: client.config_get("maxmemory"),
        "EVAL": lambda client: client.eval("return 1", 0),
        "ACL": lambda client: client.execute_command("ACL GETUSER", node.user),  # type: ignore[no-untyped-call]
    }
    may = [name for name, ask in dangerous.items() if node.may(ask)]
    node.check()
    return node.user, bool(node.login.get("password")), may


def writing(node: Node) -> tuple[dict[str, str], bool, str, str]:
    """Each command that a worker uses at its own node, once."""
    string, stream, table = node.probes.values()

    def claim(pipeline: redis.client.Pipeline) -> None:
        pipeline.multi()
        pipeline.expire(string, PROBE_S)

    def fill(client: redis.Redis) -> None:
        pipeline = client.pipeline()
        pipeline.hset(table, "f", b"1")
        pipeline.expire(table, PROBE_S)
        pipeline.execute()

    writes: dict[str, Callable[[redis.Redis], Any]] = {
        "EXPIRE": lambda client: client.expire(string, PROBE_S),
        "DEL": lambda client: client.delete(string),
        "SET": lambda client: client.set(string, b"1", ex=PROBE_S),
        "WATCH and MULTI": lambda client: client.transaction(claim, string),
        "XADD": lambda client: goodput.begin_stream(client, stream, b"1", PROBE_S),
        "HSET": fill,
        "HDEL": lambda client: client.hdel(table, "f"),
    }
    reads: dict[str, Callable[[redis.Redis], Any]] = {
        "GET": lambda client: client.get(string),
        "MGET": lambda client: client.mget([string]),
        "XRANGE": lambda client: client.xrange(stream, count=1),
        "XREAD": lambda client: client.xread({stream: "0"}, count=1),
        "HMGET": lambda client: client.hmget(table, ["f"]),
    }
    for name, question in (writes | reads).items():
        if name in writes and "EXPIRE" in node.refused:
            # The doctor writes nothing that would not expire by itself.
            node.refused[name] = node.refused["EXPIRE"]
            continue
        try:
            node.ask(question)
        except UnseenError as error:
            node.refused[name] = str(error)
    node.forget()
    node.check()
    prefix = f"degan:{node.visit.run}:{node.visit.workers[0]}:"
    return node.refused, node.visit.is_own, prefix, node.user


# --- memory and disk ------------------------------------------------------------------------------


def memory(node: Node) -> tuple[int, int, int, int, int]:
    info = node.info("memory")
    limit, used, system = int(info["maxmemory"]), int(info["used_memory"]), int(info.get("total_system_memory", 0))
    return limit, used, node.own_bytes, system, node.visit.needed_bytes


def policy(node: Node) -> tuple[str, int]:
    info = node.info("memory")
    return str(info["maxmemory_policy"]), int(info["maxmemory"])


def output_buffer(node: Node) -> tuple[str]:
    return (node.config("client-output-buffer-limit"),)


def persistence(node: Node) -> tuple[dict[str, Any], dict[str, str]]:
    config = {}
    for name in ("save", "appendfsync", "stop-writes-on-bgsave-error"):
        try:
            config[name] = node.config(name)
        except UnseenError:
            continue
    return node.info("persistence"), config


# --- distance and speed ---------------------------------------------------------------------------


def clock(node: Node) -> tuple[float]:
    samples = []
    for _ in range(TIMES):
        before = time.time()
        seconds, microseconds = node.ask(lambda client: client.time())
        after = time.time()
        samples.append((after - before, seconds + microseconds / 1e6 - (before + after) / 2))
    # The quickest answer is the one that subtracting half of its time corrects best.
    return (min(samples)[1],)


def round_trip(node: Node) -> tuple[list[float]]:
    times_s: list[float] = []
    while len(times_s) < PINGS and sum(times_s) < SCAN_S:
        began = time.perf_counter()
        node.ask(lambda client: client.ping())
        times_s.append(time.perf_counter() - began)
    return (times_s,)


def speed(node: Node) -> tuple[float | None, float | None, int, str]:
    step_bytes, stream = node.visit.step_bytes, node.probes["stream"]
    why_not = node.refused.get("XADD") or node.refused.get("XRANGE") or _has_no_room(node)
    if why_not:
        # The entries of a running group of workers can be read instead.
        outs = [
            node.keys.out(incarnation.lease.worker, incarnation.lease.incarnation) for incarnation in node.incarnations
        ]
        return None, goodput.read_rate(node.ask, outs), step_bytes, why_not
    try:
        node.ask(lambda client: goodput.begin_stream(client, stream, b"1", PROBE_S))
        written = goodput.write_rate(node.ask, stream)
        return written, goodput.read_rate(node.ask, [stream]), step_bytes, ""
    finally:
        node.forget()


def _has_no_room(node: Node) -> str:
    """Why the speed test must not write: it could make the node of a running group full. Empty where there is room."""
    try:
        info = node.info("memory")
        limit, used = int(info["maxmemory"]), int(info["used_memory"])
    except (UnseenError, KeyError, ValueError):
        return ""
    return "it is almost full" if limit and limit - used < 4 * goodput.TRANSFER_BYTES else ""


# --- leases and keys ------------------------------------------------------------------------------


def running(node: Node) -> tuple[Sequence[Incarnation], Mapping[int, str]]:
    visit = node.visit
    keys = [node.keys.lease(worker) for worker in visit.workers]
    values = node.ask(lambda client: client.mget(keys))
    authenticator = Authenticator(visit.run_key, node.keys, lambda line: None)
    for worker, key, value in zip(visit.workers, keys, values, strict=True):
        lease = authenticator.open_lease(worker, value)
        if lease is None:
            continue
        left_s = node.ask(partial(_left_ms, key=key)) / 1000
        silent_s = max(0.0, visit.lease_s - left_s)
        node.incarnations.append(
            Incarnation(lease, silent_s, left_s, visit.is_dead(lease) or silent_s > 2 * visit.beat_s + 1)
        )
    return node.incarnations, authenticator.strangers


def left_over(node: Node) -> tuple[int, int | None, int, str]:
    live = {
        f"degan:{node.visit.run}:{incarnation.lease.worker}:{incarnation.lease.incarnation}:"
        for incarnation in node.incarnations
    }
    leases = {node.keys.lease(incarnation.lease.worker) for incarnation in node.incarnations}
    count, total_bytes, deadline = 0, 0, time.monotonic() + SCAN_S
    forever: list[str] = []
    knows_sizes = True
    for key in _scan(node, deadline):
        size_bytes = 0
        if knows_sizes:
            try:
                size_bytes = int(node.ask(partial(_usage, key=key)) or 0)
            except UnseenError:
                knows_sizes = False
        node.own_bytes += size_bytes
        if key in leases or any(key.startswith(prefix) for prefix in live):
            continue
        count, total_bytes = count + 1, total_bytes + size_bytes
        if node.ask(partial(_left_s, key=key)) == -1:
            forever.append(key)
    return count, total_bytes if knows_sizes else None, len(forever), min(forever, default="")


def _scan(node: Node, deadline: float) -> Iterator[str]:
    """The keys of the run, until the deadline. Raises UnseenError."""
    cursor = 0
    seen: set[str] = set()
    while time.monotonic() < deadline:
        cursor, keys = node.ask(partial(_scanned, cursor=cursor, match=node.keys.everything()))
        for key in map(text, keys):
            # On a far node, the questions about each key take longer than the scan.
            if key not in seen and time.monotonic() < deadline:
                seen.add(key)
                yield key
        if not cursor:
            return


def _scanned(client: redis.Redis, cursor: int, match: str) -> Any:
    return client.scan(cursor, match=match, count=1000)


def _usage(client: redis.Redis, key: str) -> Any:
    return client.memory_usage(key)


def _left_ms(client: redis.Redis, key: str) -> Any:
    return client.pttl(key)


def _left_s(client: redis.Redis, key: str) -> Any:
    return client.ttl(key)
