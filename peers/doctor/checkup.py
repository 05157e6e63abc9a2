"""The checks of one node: what its Redis tells of itself, what its user may do there, and how far away it is.

A check is a row of a table: its name, the function that asks for its facts (`peers.doctor.facts`), and the function
that makes a finding of them (`peers.doctor.findings`). The checks change nothing on the node. To see whether writing is
allowed, and how fast it is, they write a few keys under the run's own prefix, which expire after a minute and are
deleted before `look` returns. A question that the server refuses costs its own line and no other. A server that stops
answering is not asked again, so a node costs at most a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import redis

from peers.bus.redis.client import address, connect, split_socket
from peers.bus.redis.tls import Access
from peers.doctor import facts, findings
from peers.doctor.findings import OK, WARN, Finding
from peers.doctor.node import Node, Visit
from peers.errors import UnreachableError, UnseenError


class Check(NamedTuple):
    """One row: `ask` returns facts of a node, which are the arguments of `decide`."""

    name: str
    ask: Callable[[Node], tuple[Any, ...]]
    decide: Callable[..., Finding | list[Finding]]


# In the order in which a person reads them; later checks need facts of earlier ones.
CHECKS = (
    Check("version", facts.version, findings.version),
    Check("access", facts.access, findings.access),
    Check("writing", facts.writing, findings.writing),
    Check("run", facts.running, findings.running),
    Check("left over", facts.left_over, findings.left_over),
    Check("maxmemory", facts.memory, findings.memory),
    Check("policy", facts.policy, findings.policy),
    Check("output buffer", facts.output_buffer, findings.output_buffer),
    Check("persistence", facts.persistence, findings.persistence),
    Check("clock", facts.clock, findings.clock),
    Check("round trip", facts.round_trip, findings.round_trip),
    Check("goodput", facts.speed, findings.speed),
)


def look(visit: Visit) -> list[Finding]:
    """All checks of a node, in the order in which a person reads them; no error of the server is raised."""
    far, near = split_socket(visit.url)
    try:
        client = connect(far, 0.0, access=visit.access)
    except UnreachableError as error:
        return [findings.unreachable(error, far, address(far))]
    found = [Finding("reachable", OK, f"{address(far)} answers")]
    try:
        if visit.is_own and near != far:
            found.append(_near(near, visit.access))
        node = Node(client, visit)
        return found + [finding for check in CHECKS for finding in _findings_of(check, node)]
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


def _findings_of(check: Check, node: Node) -> list[Finding]:
    try:
        found = check.decide(*check.ask(node))
    except UnseenError as error:
        return [Finding(check.name, WARN, findings.printable(f"cannot be seen ({error})"))]
    except (KeyError, ValueError, TypeError, IndexError, AttributeError):
        return [Finding(check.name, WARN, "cannot be seen (an answer that no Redis gives)")]
    return [found] if isinstance(found, Finding) else found
