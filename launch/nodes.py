"""The nodes of a secured run: their addresses, the redis.conf of each, and the rights of its users."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl, quote, urlsplit

from config import Experiment, UsageError
from config.security import CA, CERTIFICATE, KEY, user_of

PORT = 6379
CONF, USERS = "redis.conf", "users.acl"
# All Redis commands of a worker; SELECT as well where its URL has a database. A test trains with only these.
COMMANDS = (
    *("ping", "get", "set", "mget", "del", "expire", "hset", "hmget", "hdel"),
    *("xadd", "xread", "xrange", "xrevrange", "xtrim", "watch", "unwatch", "multi", "exec"),
)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})|[0-9a-fA-F:]{2,39}")


@dataclass(frozen=True)
class Node:
    """The address of a worker's Redis.

    Attributes:
        database: the number of the database; mostly 0.
        socket: a unix socket beside the port, for the node's own worker; empty for none.
    """

    host: str
    port: int
    database: int = 0
    socket: str = ""

    @property
    def place(self) -> tuple[str, int]:
        """The key by which two workers share a Redis."""
        return self.host, self.port

    @property
    def url(self) -> str:
        """The URL that all workers use."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        database = f"/{self.database}" if self.database else ""
        return f"rediss://{host}:{self.port}{database}" + (f"?socket={quote(self.socket)}" if self.socket else "")


def nodes_of(experiment: Experiment, hosts: Sequence[str] = ()) -> list[Node]:
    """Each worker's node.

    Args:
        hosts: a host, or host:port, for each worker, in the place of those in `peers`.

    Raises:
        UsageError: a worker has no host that the others can reach.
    """
    if isinstance(experiment.peers, int):
        if not hosts:
            raise UsageError("peers: a number names no hosts; give --hosts host0,host1,... or list them in `peers`")
        nodes = [_node(f"redis://{host}", f"--hosts {host}") for host in hosts]
    else:
        nodes = [_node(url, f"peers[{index}]") for index, url in enumerate(experiment.peers)]
        given = [_node(f"redis://{host}", f"--hosts {host}") for host in hosts]
        if given and len(given) == len(nodes):
            nodes = [
                replace(node, host=one.host, port=one.port if ":" in host else node.port)
                for node, one, host in zip(nodes, given, hosts, strict=True)
            ]
    if hosts and len(hosts) != experiment.workers:
        raise UsageError(f"--hosts: {len(hosts)} hosts for {experiment.workers} workers")
    return nodes


def _node(url: str, where: str) -> Node:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or PORT
        database = int(parts.path.strip("/") or 0) if host else 0
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    if parts.scheme not in ("redis", "rediss") or not _HOST.fullmatch(host):
        raise UsageError(f"{where}: {url.rpartition('@')[2]} names no host that the others could reach")
    socket = dict(parse_qsl(parts.query)).get("socket", "")
    if not socket.isprintable() or '"' in socket or "\\" in socket:
        raise UsageError(f"{where}: {socket!r} is no path for a socket")
    return Node(host, port, database, socket)


def users(run: str, nodes: Sequence[Node], place: tuple[str, int], passwords: Sequence[str]) -> str:
    """The users.acl of the node at a place: its workers may write their own keys, all workers may read.

    Args:
        passwords: the workers' passwords; only their hashes are written.
    """
    commands = (*COMMANDS, "select") if any(node.database for node in nodes) else COMMANDS
    may = " ".join(["resetkeys", "resetchannels", "-@all", *(f"+{command}" for command in commands)])
    lines = ["user default off resetpass resetkeys resetchannels -@all"]
    for worker, (node, password) in enumerate(zip(nodes, passwords, strict=True)):
        own = f" %RW~degan:{run}:{worker}:*" if node.place == place else ""
        digest = hashlib.sha256(password.encode()).hexdigest()
        lines.append(f"user {user_of(worker)} on resetpass #{digest} {may}{own} %R~degan:{run}:*")
    return "\n".join(lines) + "\n"


def conf(node: Node, is_local: bool) -> str:
    """The redis.conf of a node; its paths are relative to the folder in which redis-server is started."""
    lines = [
        "# Start it in this folder: redis-server redis.conf",
        f"bind {'127.0.0.1 -::1' if is_local else '* -::*'}",
        "protected-mode yes",
        "port 0",
        f"tls-port {node.port}",
        f"tls-cert-file {CERTIFICATE}",
        f"tls-key-file {KEY}",
        f"tls-ca-cert-file {CA}",
        "tls-auth-clients yes",
        'tls-protocols "TLSv1.2 TLSv1.3"',
        *([f'unixsocket "{node.socket}"', "unixsocketperm 700"] if node.socket else ()),
        f"aclfile {USERS}",
        "enable-protected-configs no",
        "enable-debug-command no",
        "enable-module-command no",
        "# Nothing is kept on disk: the workers' checkpoints do. A full Redis must refuse, never forget.",
        'save ""',
        "appendonly no",
        "maxmemory-policy noeviction",
        "client-output-buffer-limit normal 64mb 32mb 5",
        "timeout 0",
        "tcp-keepalive 60",
    ]
    return "\n".join(lines) + "\n"
