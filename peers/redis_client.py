"""A node's Redis: its URL, a client that has answered, and links for what is large.

Every client option is set here, once, because redis-py's defaults changed from one major version
to the next: RESP2, no retries inside the client, and a socket timeout on everything, longer than
the second for which a read may block.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from peers.errors import UnreachableError
from peers.resp import Busy, Connection

BLOCK_S = 1.0
SOCKET_TIMEOUT_S = BLOCK_S + 3.0


def address(url: str) -> str:
    """A Redis URL without its password, for people to read."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"


def split_socket(url: str) -> tuple[str, str]:
    """A node's Redis as the others reach it, and as the worker of that node does: `?socket=PATH` is for itself."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    path = query.pop("socket", "")
    if not path:
        return url, url
    far = urlunsplit(parts._replace(query=urlencode(query)))
    database = parts.path.strip("/")
    query = ({"db": database} if database else {}) | query
    login, at, _ = parts.netloc.rpartition("@")
    return far, f"unix://{login}{at}{quote(path)}" + ("?" + urlencode(query) if query else "")


def connect(url: str, timeout_s: float, say: Callable[[str], None] = lambda line: None) -> redis.Redis:
    """A client that has answered PING.

    Raises:
        UnreachableError: no answer within `timeout_s`, or one that waiting will not mend; the message
            has host, port and reason.
    """
    try:
        client = redis.Redis.from_url(
            url,
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=SOCKET_TIMEOUT_S,
            **({} if url.startswith("unix:") else {"socket_keepalive": True}),
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            health_check_interval=0,
        )
    except (ValueError, TypeError) as error:
        shown = re.sub(r"//[^@/]*@", "//", url)
        raise UnreachableError(f"{shown!r} is no Redis URL: {error}") from None
    deadline, has_said = time.monotonic() + timeout_s, False
    while True:
        try:
            client.ping()
            return client
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            client.close()
            raise UnreachableError(f"Redis at {address(url)} refuses us: {error}") from None
        except redis.RedisError as error:
            reason = " ".join(str(error).split()).rstrip(".")
            if time.monotonic() >= deadline:
                client.close()
                raise UnreachableError(
                    f"no Redis answers at {address(url)} ({reason}) after {timeout_s:g} s; "
                    "start a redis-server there, or mend `peers`"
                ) from None
            if not has_said:
                say(f"no Redis answers at {address(url)} yet ({reason}); trying for {timeout_s:g} s")
                has_said = True
            time.sleep(min(0.2, max(0.0, deadline - time.monotonic())))


def open_link(client: redis.Redis, buffer_bytes: int, busy: Busy | None = None) -> Connection:
    """A connection for `resp`, which the client has connected, authenticated and set up like all of its.

    Raises:
        redis.RedisError: there is no connection to be had.
    """
    made = client.connection_pool.make_connection()
    made.connect()
    # From here on the socket is ours: the client's connection would close it with itself.
    socket, made._sock = made._sock, None
    return Connection(socket, buffer_bytes, busy)
